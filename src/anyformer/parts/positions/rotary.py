"""Rotary position embedding (RoFormer, arXiv:2104.09864, section 3.2)."""

import math

import torch
from torch import Tensor

from anyformer import core
from anyformer.ops.matrix_vector import asked, turn_token


class Rotary(core.Part, name="rotary"):
    """Turn each pair of channels by an angle that grows with the position, so that products depend on distances; eq. 34.

    Channel ``i`` is paired with ``i + half``. Shapes: ``(batch, heads, tokens, head_dim)`` to the same. The numbers of the
    pairs are stored with the weights, because a pruned model keeps the frequencies of those it kept; as whole numbers,
    which no change of precision rounds.
    """

    slot = "query_key_position"

    class Config(core.Config):
        """``base`` sets the longest wavelength, in tokens, to about ``2 pi base``; ``pairs`` were there before any was cut."""

        head_dim: int = core.bound()
        base: float = 10000.0
        pairs: int = core.derived(lambda c: c.head_dim // 2)

        @property
        def half(self) -> int:
            """The number of pairs."""
            return self.head_dim // 2

    axes = {"pair": "half"}
    definitions = {"head_dim": "2 half"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("pair", torch.arange(config.half))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """``x`` turned for ``positions``, which are ``(tokens,)`` or ``(batch, 1, tokens)`` whole numbers."""
        step = -math.log(self.config.base) / self.config.pairs
        if asked():
            turned = turn_token(x, positions, self.pair, step)
            if turned is not None:
                return turned
        precise = torch.promote_types(x.dtype, torch.float32)
        frequency = torch.exp(self.pair.to(precise) * step)
        angle = positions[..., None] * frequency
        cosine, sine = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        turned = x * torch.cat((cosine, cosine), dim=-1)
        half = self.config.half
        # in place: of long texts, another copy costs more than the products
        turned[..., :half].addcmul_(x[..., half:], sine, value=-1)
        turned[..., half:].addcmul_(x[..., :half], sine)
        return turned
