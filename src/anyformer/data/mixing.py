"""Pictures mixed with others of their batch, and their labels with them, which makes the labels soft."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anyformer.core.errors import UsageError


class Mixed(NamedTuple):
    """Pictures of the shape they had, and labels ``(batch, k)`` float32."""

    images: Tensor
    labels: Tensor


class Mixing(Protocol):
    """From pictures, labels and a generator to pictures and soft labels."""

    def __call__(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Mixed:
        """Mixes ``(batch, channels, height, width)`` and labels; a pure function of the generator's state."""
        ...


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """Weighted means of two pictures and of their labels (arXiv:1710.09412, section 2); also of numbers and multi-labels.

    Each picture is mixed with the one that a random permutation puts in its place, with a weight of its own from
    Beta(alpha, alpha), where the paper's code draws one weight a batch. Costs O(pixels).

    Args:
        classes: How many classes there are; absent where labels are ``(batch, k)`` already.
        alpha: Of the distribution; near 0 leaves pictures almost as they are, 1 is uniform.

    Raises:
        UsageError: Alpha is not positive.
    """

    classes: int | None = None
    alpha: float = 0.2

    def __post_init__(self):
        _check_alpha(self.alpha)

    def __call__(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Mixed:
        """Mixes ``(batch, channels, height, width)`` and labels ``(batch,)`` int64 or ``(batch, k)`` float."""
        partner, weight = _draws(len(images), self.alpha, generator)
        soft = _soft(labels, self.classes)
        of_image = weight[:, None, None, None].to(images)
        return Mixed(images.lerp(images[partner], 1 - of_image), soft.lerp(soft[partner], 1 - weight[:, None].to(soft)))


@dataclass(frozen=True, kw_only=True)
class CutMix:
    """A rectangle of another picture is pasted in, and labels are mixed by area (arXiv:1905.04899, section 3.1, eq. 1-2).

    Each picture has a rectangle of its own, about a uniform centre, with sides ``sqrt(1 - weight)`` of the picture's for a
    weight from Beta(alpha, alpha), cut at the border. Labels are weighted by the pixels that were really pasted.

    Args:
        classes: How many classes there are; absent where labels are ``(batch, k)`` already.
        alpha: Of the distribution; 1 is uniform, as in the paper.

    Raises:
        UsageError: Alpha is not positive.
    """

    classes: int | None = None
    alpha: float = 1.0

    def __post_init__(self):
        _check_alpha(self.alpha)

    def __call__(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Mixed:
        """Mixes ``(batch, channels, height, width)`` and labels ``(batch,)`` int64 or ``(batch, k)`` float."""
        partner, weight = _draws(len(images), self.alpha, generator)
        sides = (1 - weight).sqrt()
        inside = []
        for length in images.shape[-2:]:
            middle = torch.rand(len(images), generator=generator) * length
            half = sides * length / 2
            places = torch.arange(length)
            inside.append((places >= (middle - half).round()[:, None]) & (places < (middle + half).round()[:, None]))
        pasted = inside[0][:, :, None] & inside[1][:, None, :]
        share = pasted.double().mean((1, 2))
        soft = _soft(labels, self.classes)
        mixed = torch.where(pasted[:, None].to(images.device), images[partner], images)
        return Mixed(mixed, soft.lerp(soft[partner], share[:, None].to(soft)))


@dataclass(frozen=True, kw_only=True)
class OneOf:
    """One of two mixings a batch, drawn by the generator; with neither, labels are only made soft.

    Args:
        first: Taken with probability ``share / 2``.
        second: Taken with probability ``share / 2``.
        share: Of batches that are mixed.
    """

    first: Mixup
    second: CutMix
    share: float = 1.0

    def __call__(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Mixed:
        """Mixes ``(batch, channels, height, width)`` and labels ``(batch,)`` int64 or ``(batch, k)`` float."""
        draw = torch.rand((), generator=generator).item()
        if draw >= self.share:
            return Mixed(images, _soft(labels, self.first.classes))
        return (self.first if 2 * draw < self.share else self.second)(images, labels, generator)


def _check_alpha(alpha: float) -> None:
    if alpha <= 0:
        raise UsageError(f"alpha of mixup and cutmix is a positive number, not {alpha:g}; leave mixing out instead")


def _draws(count: int, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Partners ``(count,)`` and weights ``(count,)`` float64 from Beta(alpha, alpha)."""
    partner = torch.randperm(count, generator=generator)
    # torch's Beta takes no generator; NumPy's is seeded by a draw from ours.
    chance = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    return partner, torch.from_numpy(chance.beta(alpha, alpha, count))


def _soft(labels: Tensor, classes: int | None) -> Tensor:
    return labels.float() if classes is None else F.one_hot(labels, classes).float()
