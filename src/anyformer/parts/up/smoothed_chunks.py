"""Up from chunks of tokens, smoothed where their borders are in doubt (H-Net, arXiv:2507.07955, section 2.2)."""

import torch
from torch import Tensor

from anyformer import core
from anyformer.ops.linear_attention import linear_attention
from anyformer.parts.down.dynamic_chunks import Chunks


class SmoothedChunks(core.Up, name="smoothed_chunks"):
    """Give every token its chunk's vector, ``z_j = p_j x_j + (1 - p_j) z_(j-1)``, so that doubtful starts change little.

    What a token gets is multiplied by the confidence of the choice made there, ``p`` or ``1 - p``, which counts as 1 and
    passes its gradient on: so choices are learnt, though they are discrete. The smoothing is linear attention with one key.

    Shapes: ``(batch, chunks, dim) -> (batch, tokens, dim)``. Cost: O(dim) a chunk and a token. State: ``dim`` numbers.
    """

    class Config(core.Config):
        """``least`` is the least share of a chunk and of what is before it."""

        dim: int = core.bound()
        least: float = 1e-4

    def forward(self, x: Tensor, trace: Chunks) -> Tensor:
        """Whole rows, or packed sequences."""
        return self.stream(x, trace, None)[0]

    def init_state(self, batch: int, like: Tensor) -> Tensor:
        """Zeros, ``(batch, 1, 1, dim)``."""
        return like.new_zeros(batch, 1, 1, self.config.dim, dtype=torch.promote_types(like.dtype, torch.float32))

    def stream(self, x: Tensor, trace: Chunks, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The next tokens; those before the first start of a chunk among them get the vector of the one before."""
        least, p, wide = self.config.least, trace.weight, x.to(torch.promote_types(x.dtype, torch.float32))
        p = p.clamp(least, 1 - least)
        decay = torch.log1p(-p)
        if trace.keep is not None:
            p, decay = p.masked_fill(~trace.keep, 0.0), decay.masked_fill(~trace.keep, 0.0)
            wide = wide.masked_fill(~trace.keep[..., None], 0.0)
        one, weight = (t[:, None, :, None].to(wide.dtype) for t in (torch.ones_like(p), p))
        smooth, after = linear_attention(
            one, weight, wide[:, None], decay=decay[:, None], state=state, offsets=trace.offsets
        )
        before = self.init_state(len(x), x) if state is None else state
        known = torch.cat((before[:, 0], smooth[:, 0]), 1)
        y = known.gather(1, trace.chunk[..., None].expand(-1, -1, x.shape[2]))
        confidence = torch.where(trace.starts, trace.probability, 1 - trace.probability)[..., None]
        return (y * (1 + (confidence - confidence.detach()))).to(x.dtype), after
