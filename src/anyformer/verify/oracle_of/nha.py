"""Native hybrid attention, written out token by token, to hold ours against; arXiv:2510.07019.

The paper's page was not at hand: the equations are those of its repository, of the reference in float64 that its authors
test their kernels against and of the first published layer. A token enters the slots when it leaves the window; queries and
keys are turned by their place for the window alone; slots before their first token are zeros, and score 0. Parameters have
the repository's names.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer import core
from anyformer.core import registry
from anyformer.verify.oracle_of.linear_attention_layers import RootMeanSquare, rotated
from anyformer.verify.oracle_of.linear_attention_models import LanguageModel, Layer, stages_and_scores

__all__ = ["oracle", "stages_and_scores"]


class NativeHybridAttention(nn.Module):
    """One softmax over the slots, in which all but the last ``window`` tokens are kept, and over those."""

    def __init__(self, dim: int, mixer: Any) -> None:
        super().__init__()
        self.mixer = mixer
        keys, values = mixer.heads * mixer.key, mixer.heads * mixer.value
        self.q_proj = nn.Linear(dim, keys, bias=False)
        self.k_proj = nn.Linear(dim, keys, bias=False)
        self.v_proj = nn.Linear(dim, values, bias=False)
        self.f_proj = nn.Linear(dim, mixer.heads * mixer.slots, bias=False)
        self.g_norm = RootMeanSquare(values, mixer.norm.eps)
        self.o_proj = nn.Linear(values, dim, bias=False)

    def forward(self, x: Tensor, floor: Tensor | None) -> Tensor:
        """(batch, tokens, dim) to the same."""
        m = self.mixer
        q, k = (proj(x).unflatten(-1, (m.heads, m.key)) for proj in (self.q_proj, self.k_proj))
        v = F.silu(self.v_proj(x)).unflatten(-1, (m.heads, m.value))
        forget = torch.sigmoid(self.f_proj(x)).unflatten(-1, (m.heads, m.slots)) ** (1 / m.normalizer)
        out = hybrid(q, k, rotated(q, m.position.base), rotated(k, m.position.base), v, forget, m.window, m.scale)
        return self.o_proj(self.g_norm(F.silu(out.flatten(2))))


def hybrid(
    q: Tensor, k: Tensor, turned_q: Tensor, turned_k: Tensor, v: Tensor, forget: Tensor, window: int, scale: float
) -> Tensor:
    """All (batch, tokens, heads, width); ``forget`` is what a token leaves of each slot, the rest is what it writes."""
    batch, tokens, heads, slots = forget.shape
    slot_keys = torch.zeros(batch, heads, slots, k.shape[3], dtype=q.dtype, device=q.device)
    slot_values = torch.zeros(batch, heads, slots, v.shape[3], dtype=q.dtype, device=q.device)
    out: list[Tensor] = []
    for t in range(tokens):
        if t - window >= 0:
            kept, key, value = (tensor[:, t - window] for tensor in (forget, k, v))
            slot_keys = kept[..., None] * slot_keys + (1 - kept)[..., None] * key[:, :, None]
            slot_values = kept[..., None] * slot_values + (1 - kept)[..., None] * value[:, :, None]
        near = slice(max(0, t - window + 1), t + 1)
        scores = torch.cat(
            (
                torch.einsum("bhd,bhmd->bhm", q[:, t], slot_keys),
                torch.einsum("bhd,bwhd->bhw", turned_q[:, t], turned_k[:, near]),
            ),
            dim=-1,
        )
        values = torch.cat((slot_values, v[:, near].transpose(1, 2)), dim=2)
        out.append(torch.einsum("bhn,bhnd->bhd", (scale * scores).softmax(-1), values))
    return torch.stack(out, 1)


def oracle(name: str) -> nn.Module:
    """The model of a name of ours, with fresh weights."""
    spec: Any = core.resolve(registry.system_of(name).pattern(name))
    layers = [
        Layer(spec.dim, block.channel_mixer.hidden, block.norm1.eps, NativeHybridAttention(spec.dim, block.mixer))
        for block in spec.blocks
    ]
    return LanguageModel(spec, layers, floors=False).eval()
