"""The block of the first Transformers, whose norms stand after the residual sums."""

from torch import Tensor

from anyformer import core
from anyformer.parts.residuals.residual import PlainResidual


class PostNormBlock(core.Block, name="post_norm_block"):
    """``x = norm1(residual1(x, mixer(x)))``, then ``x = norm2(residual2(x, channel_mixer(x)))``.

    Vaswani et al. 2017 (arXiv:1706.03762, section 3.1). The output is normalised, so that no norm follows the last block.
    """

    class Config(core.Config):
        """One part a slot."""

        dim: int = core.bound()
        mixer: core.Config
        residual1: core.Config = PlainResidual.Config()
        norm1: core.Config
        channel_mixer: core.Config
        residual2: core.Config = PlainResidual.Config()
        norm2: core.Config

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """One layer."""
        x = self.norm1(self.residual1(x, self.mixer(x, ctx)))
        return self.norm2(self.residual2(x, self.channel_mixer(x, ctx)))
