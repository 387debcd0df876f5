"""How our small pyramids read pictures in large patches: they are trained in minutes, and must see through noise at once."""

from typing import Any

from anyformer import core
from anyformer.parts.embeds.convolutional_stem import halving_stem
from anyformer.parts.norms.batch_norm import BatchNorm

COARSE = 8  # pixels; no published pyramid begins with patches of this size


def coarse(pattern: Any, channels: int, stride: int) -> core.Config:
    """The pattern of a pyramid with a stem of convolutions, and a batch norm before its scores, where the stride is coarse.

    Without them such a network stays at chance for hundreds of steps on noisy pictures: one linear map a patch sees no
    strokes, and what the classes differ in is small beside what all pictures share, which a batch norm takes away.

    Args:
        pattern: of a pyramid, its head with a norm.
        channels: of the image.
        stride: of the stem; below ``COARSE`` the pattern stays as it is.
    """
    if stride < COARSE:
        return pattern
    return pattern.replace(embed=halving_stem(channels, stride), head=pattern.head.replace(norm=BatchNorm.Config()))
