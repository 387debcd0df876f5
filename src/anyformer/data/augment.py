"""Light changes of training pictures that leave their class as it is."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A random shift, turn and scale of each picture, and a mirror image only where asked: it turns b into d.

    One bilinear resampling, about the centre, with zeros beyond the border. Every number is drawn from the generator
    that the call is given, in one draw, so that the result is a pure function of the generator's state.

    Args:
        shift: Largest shift along each axis, as a fraction of the side; shifts are whole pixels.
        degrees: Largest turn to either side.
        scale: Largest relative change of size, up or down.
        flip: Whether each picture is mirrored left to right with probability 1/2.
    """

    shift: float = 1 / 8
    degrees: float = 10.0
    scale: float = 0.1
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Changed pictures of the same shape.

        Args:
            images: ``(batch, channels, size, size)`` float, with 0 as the colour to show beyond the border.
            generator: The only source of chance.
        """
        side = images.shape[-1]
        draws = torch.rand(5, len(images), generator=generator).to(images.device)
        down, right, turn, growth, mirror = draws
        turn = torch.deg2rad((2 * turn - 1) * self.degrees)
        growth = (2 * growth - 1) * self.scale + 1
        mirror = torch.where(mirror < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(mirror)
        # Each row maps a place in the result to the place in the picture that it shows, both in [-1, 1].
        rows = (
            torch.stack([turn.cos() * mirror, -turn.sin(), _pixels(right, self.shift, side)], dim=1),
            torch.stack([turn.sin() * mirror, turn.cos(), _pixels(down, self.shift, side)], dim=1),
        )
        matrix = torch.stack(rows, dim=1)
        matrix[:, :, :2] /= growth[:, None, None]
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False).to(images.dtype)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _pixels(draw: Tensor, shift: float, side: int) -> Tensor:
    """A uniform draw as a shift by whole pixels in ``[-shift * side, shift * side]``, where the side measures 2."""
    most = int(shift * side)
    return ((2 * most + 1) * draw).floor().sub(most) * 2 / side
