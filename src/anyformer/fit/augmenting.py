"""How training pictures are changed in a fit."""

from dataclasses import dataclass

import torch
from torch import Tensor

from anyformer.data.augment import Augmentation
from anyformer.data.batches import Augment
from anyformer.data.distort import Chain, Light

TINY = 32  # pixels along a side, below which what lies beyond the border is black
LIGHT = Light(brightness=0.3, contrast=0.5)  # of pictures, whose class does not hang on it


@dataclass(frozen=True)
class OnGround:
    """A change of pictures that shows beyond their borders their own ground, the mean of the border, instead of black.

    A wedge of black beside a light picture is an edge that no picture to come will have.

    Attributes:
        inner: the change, which takes 0 for what lies beyond.
    """

    inner: Augment

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Changed pictures of the same shape ``(batch, channels, height, width)``."""
        sides = (images[..., 0, :], images[..., -1, :], images[..., :, 0], images[..., :, -1])
        ground = torch.cat(sides, dim=-1).mean(dim=-1)[..., None, None]
        return self.inner(images - ground, generator) + ground


def augmentation(size: int) -> Augment:
    """What suits pictures of a side: shifts, turns, scales and other light, which leave letters and things what they are."""
    return Augmentation() if size < TINY else Chain((OnGround(Augmentation()), LIGHT))
