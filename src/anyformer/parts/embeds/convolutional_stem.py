"""A stem of convolutions, which overlap, in the place of patches."""

import torch
from torch import Tensor

from anyformer import core


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
