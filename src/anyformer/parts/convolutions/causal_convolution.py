"""The short causal convolution of sequence mixers, with its state (arXiv:2312.00752, figure 3)."""

from typing import Literal

import torch
from torch import Tensor

from anyformer import core
from anyformer.ops.causal_convolution import causal_convolution, convolve_token


class CausalConvolution(core.Part, name="causal_convolution"):
    """Each channel's weighted sum of its present and its last ``kernel - 1`` inputs, then an activation.

    Tokens that ``ctx.mask`` keeps out enter as zeros and not at all into the state; in the chunks of a stream they stand
    behind those that count. Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``kernel * dim`` multiply-adds a token. State:
    ``(batch, kernel - 1, dim)``, the last inputs.
    """

    slot = "convolution"

    class Config(core.Config):
        """``bias`` is added before the activation."""

        dim: int = core.bound()
        kernel: int = 4
        bias: bool = True
        activation: Literal["silu"] | None = "silu"
        init: core.Init = core.Init("uniform_fan_in")

    axes = {"weight": "dim 1 kernel", "bias": "dim"}
    fixed = {"kernel": "its indices are places, not channels"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", config.init)
        self.bias = self.parameter("bias", core.ZEROS) if config.bias else None

    def init_state(self, batch: int, like: Tensor) -> Tensor:
        """The inputs before the first: zeros."""
        return like.new_zeros(batch, self.config.kernel - 1, self.config.dim)

    def forward(self, x: Tensor, ctx: core.Context, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve from a state, which may be overwritten; gives the outputs and the state after what counts."""
        bias, activation = self.bias, self.config.activation
        if state is not None and x.shape[1] == 1 and activation and ctx.mask is None:
            y = convolve_token(x, self.weight, bias, state)
            if y is not None:
                return y, state
        weight = self.weight.squeeze(1)
        if ctx.mask is None:
            return causal_convolution(x, weight, bias, state=state, offsets=ctx.offsets, activation=activation)
        x = x.masked_fill(~ctx.mask[..., None], 0.0)
        y, _ = causal_convolution(x, weight, bias, state=state, activation=activation)
        before = self.init_state(len(x), x) if state is None else state
        kept = self.config.kernel - 1
        # rows end at their last token that counts; those without one keep the state as it was
        ends = (ctx.mask * torch.arange(1, x.shape[1] + 1, device=x.device)).amax(1) if x.shape[1] else 0
        places = (torch.arange(kept, device=x.device) + torch.as_tensor(ends, device=x.device)[..., None]).expand(
            len(x), kept
        )
        seen = torch.cat((before.to(x.dtype), x), dim=1)
        return y, seen.gather(1, places[..., None].expand(-1, -1, x.shape[2]))
