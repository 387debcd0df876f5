"""A stem of convolutions that is narrow but for its end."""

import torch
from torch import Tensor

from anyformer import core


class NarrowStem(core.Embed, name="narrow_stem"):
    """Two or more convolutions one after another, of ``hidden`` channels between them.

    Shapes: ``(batch, channels, height, width) -> (batch, rows, columns, dim)``, as the convolutions have it. Cost: theirs.
    """

    class Config(core.Config):
        """``layers`` are parts ``x -> x`` on features; ``hidden`` is half of ``dim`` where it is left open."""

        dim: int = core.bound()
        channels: int = 3
        hidden: int = core.derived(lambda c: c.dim // 2)
        layers: tuple[core.Config, ...]

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """Image to hidden, hidden to hidden, hidden to ``dim``."""
        last = len(config.layers) - 1
        return {
            f"layers.{i}": {"inputs": "hidden" if i else "channels", "dim": "dim" if i == last else "hidden"}
            for i in range(len(config.layers))
        }

    def forward(self, raw: Tensor) -> tuple[Tensor, core.Context]:
        """Convolve."""
        x = raw.contiguous(memory_format=torch.channels_last).movedim(1, -1)
        for layer in self.layers:
            x = layer(x)
        return x, core.Context(layout=core.Layout(grid=(x.shape[1], x.shape[2])))
