"""From pictures to batches for training; each is a pure function of the seed and the step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anyformer.core.errors import UsageError
from anyformer.data.mixing import Mixing
from anyformer.data.pixels import Pixels
from anyformer.data.seeds import derive_seed

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Changes pictures ``(batch, channels, height, width)`` in [0, 1] by the generator's draws alone."""


class Batch(NamedTuple):
    """Pictures ``(batch, channels, height, width)`` float32, normalised, and their labels.

    Labels are those of the set, ``(batch,)`` int64 or ``(batch, k)`` float32; mixed classes are ``(batch, classes)`` float32
    that sum to one, which cross entropy takes as well.
    """

    images: Tensor
    labels: Tensor


class Batches:
    """Batches of training pictures by step: shuffled anew each epoch, augmented, normalised.

    There is no iterator and so nothing to save: a resumed run asks for the next step and gets the same bits. The
    pictures that do not fill the last batch of an epoch are left out of it; the next epoch shuffles them in.

    Args:
        images: ``(n, channels, height, width)`` uint8; of pictures in a file only a batch at a time is read.
        labels: As in ``ImageSet``.
        data_config: As from ``data_config``, of these pictures.
        size: Pictures a batch; all of them when there are fewer.
        seed: Of order, augmentation and mixing.
        augmentation: How pictures are changed; not at all when absent.
        mixing: How pictures and their labels are mixed after that; not at all when absent.

    Raises:
        UsageError: There is no picture, or the size of a batch is not positive.
    """

    def __init__(
        self,
        images: Tensor | Pixels,
        labels: Tensor,
        data_config: dict[str, Any],
        *,
        size: int,
        seed: int,
        augmentation: Augment | None = None,
        mixing: Mixing | None = None,
    ):
        if not len(images) or size < 1:
            raise UsageError(f"batches of {size} from {len(images)} pictures cannot be made; both must be positive")
        self.images, self.labels, self.data_config = images, labels, data_config
        self.size, self.seed, self.augmentation, self.mixing = min(size, len(images)), seed, augmentation, mixing
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    @property
    def epoch_steps(self) -> int:
        """Steps in an epoch."""
        return len(self.images) // self.size

    def order(self, epoch: int) -> Tensor:
        """The order ``(n,)`` in which an epoch takes the pictures."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        return torch.randperm(len(self.images), generator=generator)

    def __call__(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.epoch_steps)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.order(epoch)
        chosen = self._order[place * self.size : (place + 1) * self.size]
        pixels, labels = self.images[chosen].float() / 255, self.labels[chosen]
        if self.augmentation is not None:
            pixels = self.augmentation(pixels, self._generator("augmentation", step))
        if self.mixing is not None:
            pixels, labels = self.mixing(pixels, labels, self._generator("mixing", step))
        return Batch(_standardize(pixels, self.data_config), labels)

    def _generator(self, purpose: str, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, purpose, step))


def data_config(images: Tensor | Pixels) -> dict[str, Any]:
    """What a model must be told of its pictures; measured on the training part alone and carried with the model.

    Args:
        images: ``(n, channels, size, size)`` uint8.

    Returns:
        ``mean`` and ``std`` by channel, of pixels in [0, 1]; ``size``, ``channels``, ``crop`` and ``interpolation``.
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for chunk in (Pixels(images) if isinstance(images, Tensor) else images).chunks():
        for channel, row in enumerate(counts):
            row += torch.bincount(chunk[:, channel].flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    weights = counts.double() / counts.sum(1, keepdim=True)
    means, deviations = [], []
    for row in weights:
        mean = (row * levels).sum()
        means.append(mean.item())
        # Pictures of one colour have no deviation; one grey level stands in, as nothing can be divided by zero.
        deviations.append(max((row * (levels - mean) ** 2).sum().sqrt().item(), 1 / 255))
    return {
        "mean": means,
        "std": deviations,
        "size": list(images.shape[-2:]),
        "channels": images.shape[1],
        "crop": 1.0,
        "interpolation": "bicubic",
    }


def normalize(images: Tensor, data_config: dict[str, Any]) -> Tensor:
    """Pictures as a model takes them: uint8 ``(batch, channels, height, width)`` to float32 of the same shape."""
    return _standardize(images.float() / 255, data_config)


def _standardize(pixels: Tensor, data_config: dict[str, Any]) -> Tensor:
    mean, std = (torch.tensor(data_config[name], dtype=torch.float32)[:, None, None] for name in ("mean", "std"))
    return (pixels - mean) / std
