"""Changes of training pictures that go beyond moving them: crops, light, and parts that are hidden."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Chain:
    """Augmentations one after the other, from one generator.

    Args:
        steps: Each from pictures and a generator to pictures.
    """

    steps: tuple[Callable[[Tensor, torch.Generator], Tensor], ...]

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Changed pictures of the same shape."""
        for step in self.steps:
            images = step(images, generator)
        return images


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A random part of each picture, brought to the whole size by one bilinear resampling, and a mirror image if asked.

    As in the training of Inception (arXiv:1409.4842, section 6), without its filter for shrinking.

    Args:
        area: Smallest and largest area, as shares of the picture's; uniform.
        stretch: Largest ratio of the sides, either way; uniform in its logarithm.
        flip: Whether each picture is mirrored left to right with probability 1/2.
    """

    area: tuple[float, float] = (0.5, 1.0)
    stretch: float = 4 / 3
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Crops of the same shape ``(batch, channels, height, width)``."""
        draws = torch.rand(5, len(images), generator=generator)
        area = self.area[0] + (self.area[1] - self.area[0]) * draws[0]
        ratio = torch.exp((2 * draws[1] - 1) * math.log(self.stretch) / 2)
        width, height = (area.sqrt() * ratio).clamp_max(1), (area.sqrt() / ratio).clamp_max(1)
        right, down = (1 - width) * (2 * draws[2] - 1), (1 - height) * (2 * draws[3] - 1)
        mirror = torch.where(draws[4] < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(right)
        none = torch.zeros_like(right)
        rows = (torch.stack([width * mirror, none, right], dim=1), torch.stack([none, height, down], dim=1))
        matrix = torch.stack(rows, dim=1).to(images)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True, kw_only=True)
class Light:
    """Random brightness and contrast, and saturation where there is colour; the result stays in [0, 1].

    Args:
        brightness: Largest relative change of all values.
        contrast: Largest relative change of the distance from the picture's mean.
        saturation: Largest relative change of the distance from each pixel's grey.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Pictures ``(batch, channels, height, width)`` in [0, 1] in another light."""
        draws = (2 * torch.rand(3, len(images), generator=generator) - 1).to(images)[..., None, None, None]
        images = images * (1 + self.brightness * draws[0])
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (images - mean) * (1 + self.contrast * draws[1])
        if images.shape[1] > 1:
            grey = images.mean(1, keepdim=True)
            images = grey + (images - grey) * (1 + self.saturation * draws[2])
        return images.clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Erase:
    """A rectangle of some pictures is filled with its picture's mean (random erasing, arXiv:1708.04896, algorithm 1).

    The paper fills with noise; the mean leaves what is normalised later near zero. Rectangles lie wholly inside.

    Args:
        share: Of pictures.
        area: Smallest and largest area, as shares of the picture's; uniform.
        stretch: Largest ratio of the sides, either way; uniform in its logarithm.
    """

    share: float = 0.25
    area: tuple[float, float] = (0.02, 0.2)
    stretch: float = 3.0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Pictures ``(batch, channels, height, width)``, parts of some of them hidden."""
        draws = torch.rand(5, len(images), generator=generator)
        area = self.area[0] + (self.area[1] - self.area[0]) * draws[0]
        ratio = torch.exp((2 * draws[1] - 1) * math.log(self.stretch) / 2)
        hidden = (draws[4] < self.share)[:, None, None]
        for axis, part in enumerate((area.sqrt() / ratio, area.sqrt() * ratio)):
            length = images.shape[2 + axis]
            sides = (part * length).round().clamp(1, length)
            start = (draws[2 + axis] * (length - sides + 1)).floor()
            places = torch.arange(length)
            inside = (places >= start[:, None]) & (places < (start + sides)[:, None])
            hidden = hidden & (inside[:, :, None] if axis == 0 else inside[:, None, :])
        return torch.where(hidden[:, None].to(images.device), images.mean((1, 2, 3), keepdim=True), images)
