"""Aaren, written out as the recurrence of its paper, one token after the other, to hold ours against.

arXiv:2405.13956, section 3: of one query and its scores ``s_k``, the maximum ``m_k = max(m_{k-1}, s_k)``, and the sums
``a_k = a_{k-1} exp(m_{k-1} - m_k) + v_k exp(s_k - m_k)`` and ``c_k``, the same without ``v_k``; ``o_k = a_k / c_k``. Layers
as in the two public codes that the paper builds on, a norm after each branch. Names of the parameters are our own.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer import core
from anyformer.core import registry


class Aaren(nn.Module):
    """Attention of one learned query to all tokens so far."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(dim))
        self.query_projection = nn.Linear(dim, dim)
        self.key_projection = nn.Linear(dim, dim)
        self.value_projection = nn.Linear(dim, dim)
        self.out_projection = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) to the same."""
        batch, tokens, dim = x.shape
        width = dim // self.heads
        q = self.query_projection(self.query).view(self.heads, width)
        k = self.key_projection(x).view(batch, tokens, self.heads, width)
        v = self.value_projection(x).view(batch, tokens, self.heads, width)
        s = torch.einsum("hw,bthw->bth", q, k) / math.sqrt(width)
        m = torch.full((batch, self.heads), -torch.inf, dtype=x.dtype, device=x.device)
        a, c = torch.zeros_like(q).expand(batch, -1, -1), torch.zeros_like(m)
        outs: list[Tensor] = []
        for t in range(tokens):
            m_now = torch.maximum(m, s[:, t])
            kept, entering = torch.exp(m - m_now), torch.exp(s[:, t] - m_now)
            a = a * kept[..., None] + v[:, t] * entering[..., None]
            c = c * kept + entering
            m = m_now
            outs.append(a / c[..., None])
        mixed = torch.stack(outs, 1).reshape(batch, tokens, dim) if outs else x
        return self.out_projection(mixed)


class Layer(nn.Module):
    """``x = norm1(x + attention(x))``, then ``norm2(x + perceptron(x))``."""

    def __init__(self, dim: int, block: Any) -> None:
        super().__init__()
        self.attention = Aaren(dim, block.mixer.heads)
        self.conv1 = nn.Linear(dim, block.channel_mixer.hidden)
        self.conv2 = nn.Linear(block.channel_mixer.hidden, dim)
        self.norm1 = nn.LayerNorm(dim, block.norm1.eps)
        self.norm2 = nn.LayerNorm(dim, block.norm2.eps)

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.conv2(F.gelu(self.conv1(x))))


class Decoder(nn.Module):
    """Embeddings, layers, and scores from the embeddings."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(spec.vocabulary, spec.dim)
        self.layers = nn.ModuleList(Layer(spec.dim, block) for block in spec.blocks)

    def forward(self, ids: Tensor) -> list[Tensor]:
        """The features after every layer, and the scores last."""
        x = self.embedding(ids)
        features: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return [*features, x @ self.embedding.weight.T]


def oracle(name: str) -> nn.Module:
    """The model of a name of ours, with fresh weights."""
    return Decoder(core.resolve(registry.system_of(name).pattern(name))).eval()


def stages_and_scores(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """What is compared: features after every block, and the scores."""
    return model(ids)
