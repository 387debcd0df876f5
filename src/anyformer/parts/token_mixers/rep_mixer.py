"""RepMixer: a token mixer that is one depth-wise convolution when trained (FastViT, arXiv:2303.14189)."""

from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.core.part import filled
from anyformer.ops.convolution import depthwise_convolution
from anyformer.parts.convolutions.parallel import together
from anyformer.parts.token_mixers.depthwise import DepthwiseConvolution


class RepMixer(core.TokenMixer, name="rep_mixer"):
    """``x + gamma * (convolution(x) - norm(x))``, in evaluation one depth-wise convolution; section 3.2.1, eq. 2 to 4.

    The skip connection is inside, so the deploy form has none to read. Shapes: ``(batch, height, width, dim)`` to the
    same. Cost: ``dim * kernel^2`` multiply-adds a token in evaluation, several times that in training.
    """

    class Config(core.Config):
        """``convolution`` is one of each channel by itself, ``norm`` a batch norm; ``init`` is gamma's start."""

        dim: int = core.bound()
        convolution: core.Config
        norm: core.Config
        init: core.Init = core.Init("constant", 1e-5)

    axes = {"gamma": "dim"}
    refuses = {
        "stream": "looks at both sides of a token",
        "prefix": "needs a grid",
        "mask": "every place of the grid counts",
    }

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """The convolution keeps every channel."""
        return {"convolution": {"inputs": "dim", "multiplier": "1"}}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.gamma = self.parameter("gamma", config.init)

    def filters(self) -> tuple[Tensor, Tensor]:
        """The one depth-wise convolution that acts in evaluation mode."""
        weight, bias = self.convolution.filters()
        scale, shift = self.norm.affine()
        gamma = self.gamma[:, None, None, None]
        skip = 1 - gamma * scale[:, None, None, None]
        return together([(gamma * weight, self.gamma * bias), (skip, -self.gamma * shift)])

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Mix the neighbourhood."""
        core.grid_of(ctx, self)
        if self.training:
            return x + self.gamma * (self.convolution(x) - self.norm(x))
        weight, bias = self.filters()
        return depthwise_convolution(x, weight, bias, padding=weight.shape[-1] // 2)

    def deployed(self) -> core.Part:
        """A depth-wise convolution."""
        weight, bias = self.filters()
        config = DepthwiseConvolution.Config(dim=self.config.dim, kernel=weight.shape[-1])
        return filled(config, {"weight": weight, "bias": bias})


class ConditionalPosition(core.TokenMixer, name="conditional_position"):
    """``x + convolution(x)``: tokens learn where they are from their neighbours and the zeros at the border.

    Conditional position encoding (arXiv:2102.10882, section 3.2), whose skip connection the filters take in. Shapes:
    ``(batch, height, width, dim)`` to the same. Cost: that of the convolution.
    """

    class Config(core.Config):
        """``convolution`` is a token mixer, depth-wise."""

        dim: int = core.bound()
        convolution: core.Config

    refuses = {
        "stream": "looks at both sides of a token",
        "prefix": "needs a grid",
        "mask": "every place of the grid counts",
    }

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Add the encoding."""
        return x + self.convolution(x, ctx)

    def deployed(self) -> core.Part:
        """The convolution, with 1 added to the middle of each filter."""
        if not isinstance(self.convolution, DepthwiseConvolution):
            return self
        weight = self.convolution.weight
        weight += F.pad(weight.new_ones(1, 1, 1, 1), (weight.shape[-1] // 2,) * 4)
        return self.convolution
