"""A stem of convolutions, which overlap, in the place of patches."""

import torch
from torch import Tensor

from anyformer import core
from anyformer.parts.convolutions.convolution import Convolution
from anyformer.parts.convolutions.parallel import MobileOne
from anyformer.parts.norms.batch_norm import BatchNorm


class ConvolutionalStem(core.Embed, name="convolutional_stem"):
    """Convolutions one after another, the first from the image's channels, the others from ``dim`` to ``dim``.

    Shapes: ``(batch, channels, height, width) -> (batch, rows, columns, dim)``, where every stride divides rows and
    columns, rounded up. Cost: that of the convolutions.
    """

    class Config(core.Config):
        """``layers`` are parts ``x -> x`` on features."""

        dim: int = core.bound()
        channels: int = 3
        layers: tuple[core.Config, ...]

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """All layers but the first keep every channel."""
        rest = {f"layers.{i}": {"inputs": "dim", "dim": "dim", "multiplier": "1"} for i in range(1, len(config.layers))}
        return {"layers.0": {"inputs": "channels", "dim": "dim", "multiplier": "1"}, **rest}

    def forward(self, raw: Tensor) -> tuple[Tensor, core.Context]:
        """Convolve."""
        x = raw.contiguous(memory_format=torch.channels_last).movedim(1, -1)
        for layer in self.layers:
            x = layer(x)
        return x, core.Context(layout=core.Layout(grid=(x.shape[1], x.shape[2])))


def halving_stem(channels: int, stride: int) -> core.Config:
    """Dense 3 x 3 convolutions with batch norms, for small networks that read pictures in patches too large for one map.

    One halves the grid, then two for every further halving, of which the first halves (the stem of "Early Convolutions
    Help Transformers See Better", arXiv:2106.14881, section 3, is of this kind). A patch that one linear map reads is
    mostly noise where the picture is noisy, and a layer norm behind it makes flat ground as loud as the strokes.

    Args:
        channels: of the image.
        stride: a power of two, 2 or more.
    """

    def layer(stride: int) -> core.Config:
        return MobileOne.Config(convolution=Convolution.Config(kernel=3, stride=stride, norm=BatchNorm.Config()))

    halvings = stride.bit_length() - 1
    if stride != 2**halvings or not halvings:
        raise core.UsageError(f"patch_size={stride}: the stem halves the grid, so give a power of two")
    return ConvolutionalStem.Config(channels=channels, layers=(layer(2), *((layer(2), layer(1)) * (halvings - 1))))
