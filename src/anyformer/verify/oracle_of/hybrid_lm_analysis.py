"""Hybrids of attention and Mamba-2, between layers and within one, written out token by token, to hold ours against.

Names of parameters are those of TorchTitan's Llama and of Mamba-2's authors. Nothing here is fast and nothing is shared with
the library's own forms.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer import core
from anyformer.core import registry
from anyformer.verify.oracle_of.linear_attention_layers import RootMeanSquare, rotated


class HeadNorm(nn.Module):
    """Every head's channels over their root mean square, then a scale a channel."""

    def __init__(self, heads: int, dim: int, eps: float) -> None:
        super().__init__()
        self.heads, self.eps = heads, eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Head by head."""
        parts = [part / (part.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() for part in x.chunk(self.heads, -1)]
        return torch.cat(parts, -1) * self.weight


class Attention(nn.Module):
    """Causal attention, with rotary positions or none, ``group`` queries a key; heads are normalised last, or not."""

    def __init__(self, dim: int, mixer: Any, eps: float | None) -> None:
        super().__init__()
        self.keys, self.group, self.width = mixer.kv_heads, mixer.group, mixer.head_dim
        self.base = None if mixer.position is None else mixer.position.base
        self.wq = nn.Linear(dim, self.keys * self.group * self.width, bias=False)
        self.wk = nn.Linear(dim, self.keys * self.width, bias=False)
        self.wv = nn.Linear(dim, self.keys * self.width, bias=False)
        heads = self.keys * self.group
        self.norm = None if eps is None else HeadNorm(heads, heads * self.width, eps)
        self.wo = nn.Linear(heads * self.width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """One query head after the other."""
        batch, tokens, _ = x.shape
        q = self.wq(x).view(batch, tokens, self.keys * self.group, self.width)
        k = self.wk(x).view(batch, tokens, self.keys, self.width)
        if self.base is not None:
            q, k = rotated(q, self.base), rotated(k, self.base)
        v = self.wv(x).view(batch, tokens, self.keys, self.width)
        later = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
        outs: list[Tensor] = []
        for head in range(self.keys * self.group):
            key, value = k[:, :, head // self.group], v[:, :, head // self.group]
            scores = q[:, :, head] @ key.transpose(1, 2) / math.sqrt(self.width)
            outs.append(scores.masked_fill(later, -math.inf).softmax(-1) @ value)
        mixed = torch.cat(outs, -1)
        return self.wo(mixed if self.norm is None else self.norm(mixed))


class Mamba2(nn.Module):
    """The state space of heads that decay by a number each (arXiv:2405.21060), one token after the other, one group."""

    def __init__(self, dim: int, mixer: Any, eps: float, by_head: bool) -> None:
        super().__init__()
        self.heads, self.width, self.state = mixer.heads, mixer.p, mixer.state
        inner, kernel = self.heads * self.width, mixer.convolution.kernel
        mixed = inner + 2 * self.state
        self.in_proj = nn.Linear(dim, inner + mixed + self.heads, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, kernel, groups=mixed, padding=kernel - 1)
        self.dt_bias = nn.Parameter(torch.zeros(self.heads))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = HeadNorm(self.heads if by_head else 1, inner, eps)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        """``h = exp(dt A) h + dt B x``, ``y = C h + D x``."""
        batch, tokens, _ = u.shape
        inner = self.heads * self.width
        z, xbc, dt = self.in_proj(u).split([inner, inner + 2 * self.state, self.heads], -1)
        xbc = F.silu(self.conv1d(xbc.transpose(1, 2))[..., :tokens].transpose(1, 2))
        x, b, c = xbc.split([inner, self.state, self.state], -1)
        x = x.view(batch, tokens, self.heads, self.width)
        dt = F.softplus(dt + self.dt_bias)
        h = x.new_zeros(batch, self.heads, self.width, self.state)
        outs: list[Tensor] = []
        for t in range(tokens):
            decay = torch.exp(-dt[:, t] * self.A_log.exp())
            entering = dt[:, t, :, None, None] * x[:, t, :, :, None] * b[:, t, None, None, :]
            h = decay[:, :, None, None] * h + entering
            y = (h * c[:, t, None, None, :]).sum(-1) + self.D[:, None] * x[:, t]
            outs.append(y.reshape(batch, inner))
        return self.out_proj(self.norm(torch.stack(outs, 1) * F.silu(z)))


class Parallel(nn.Module):
    """Attention and Mamba-2 of the same tokens, each with norms of its heads and a last product of its own."""

    def __init__(self, dim: int, mixer: Any) -> None:
        super().__init__()
        self.difference = mixer.fusion == "difference"
        attention, mamba = mixer.mixer1, mixer.mixer2
        self.attention = Attention(dim, attention, attention.proj.norm.eps)
        self.mamba = Mamba2(dim, mamba, mamba.out_proj.norm.eps, by_head=True)

    def forward(self, x: Tensor) -> Tensor:
        """The difference, or the sum."""
        a, m = self.attention(x), self.mamba(x)
        return a - m if self.difference else a + m


class FeedForward(nn.Module):
    """``w2(silu(w1 x) * w3 x)``."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Every token by itself."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    """Two residual branches, each after a norm."""

    def __init__(self, dim: int, block: Any) -> None:
        super().__init__()
        self.mixer_norm = RootMeanSquare(dim, block.norm1.eps)
        self.mixer = _mixer(dim, block.mixer)
        self.ffn_norm = RootMeanSquare(dim, block.norm2.eps)
        self.feed_forward = FeedForward(dim, block.channel_mixer.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        x = x + self.mixer(self.mixer_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class LanguageModel(nn.Module):
    """Embeddings, layers, a norm, and scores by the embeddings' matrix."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(spec.vocabulary, spec.dim)
        self.layers = nn.ModuleList(Layer(spec.dim, block) for block in spec.blocks)
        self.norm = RootMeanSquare(spec.dim, spec.norm.eps)

    def forward(self, ids: Tensor) -> list[Tensor]:
        """The features after every layer but the last, the last ones normalised, and the scores."""
        x = self.tok_embeddings(ids)
        features: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        final = self.norm(x)
        return [*features[:-1], final, final @ self.tok_embeddings.weight.T]


def oracle(name: str) -> nn.Module:
    """The model of a name of ours, with fresh weights."""
    return LanguageModel(core.resolve(registry.system_of(name).pattern(name))).eval()


def stages_and_scores(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """What is compared: features after every block but the last, the final ones, and the scores."""
    return model(ids)


def _mixer(dim: int, mixer: Any) -> nn.Module:
    match mixer.part.name:
        case "grouped_query_attention":
            return Attention(dim, mixer, None)
        case "mamba2":
            return Mamba2(dim, mixer, mixer.norm.eps, by_head=False)
        case _:
            return Parallel(dim, mixer)
