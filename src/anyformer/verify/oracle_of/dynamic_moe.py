"""Dynamic MoE written out token by token, from arXiv:2403.07652 and the authors' code, to hold ours against.

Names and shapes of the parameters are those of the authors' code; nothing is shared with the library's own forms. Their
code agrees with this one to 2e-15 in float64, its casts to float32 undone.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer import core
from anyformer.core import registry


class RootMeanSquare(nn.Module):
    """``x / sqrt(mean(x ** 2) + eps) * weight`` over the last axis."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """Causal attention, all scores at once; pairs of channels ``i`` and ``i + width / 2`` are turned by their place."""

    def __init__(self, dim: int, heads: int, base: float) -> None:
        super().__init__()
        self.heads, self.base = heads, base
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def _turned(self, x: Tensor) -> Tensor:
        """(batch, tokens, heads, width) to the same."""
        tokens, width = x.shape[1], x.shape[3]
        wide = torch.promote_types(x.dtype, torch.float32)
        frequency = 1.0 / self.base ** (torch.arange(0, width, 2, dtype=wide) / width)
        angle = torch.outer(torch.arange(tokens, dtype=wide), frequency)
        angle = torch.cat((angle, angle), -1)[:, None]
        other = torch.cat((-x[..., width // 2 :], x[..., : width // 2]), -1)
        return x * angle.cos().to(x.dtype) + other * angle.sin().to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) to the same."""
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        scores = torch.einsum("bqhd,bkhd->bhqk", self._turned(q), self._turned(k)) / math.sqrt(q.shape[3])
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
        return self.o_proj(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))


class Perceptron(nn.Module):
    """``down(silu(gate) * up)``."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Every token by itself."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """A token's experts are added, the most probable first, until their probabilities sum to more than ``p``."""

    def __init__(self, dim: int, hidden: int, count: int, p: float) -> None:
        super().__init__()
        self.p = p
        self.router = nn.Linear(dim, count, bias=False)
        self.experts = nn.ModuleList(Perceptron(dim, hidden) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) to the same."""
        return torch.stack([torch.stack([self._mixed(token) for token in row]) for row in x])

    def _mixed(self, token: Tensor) -> Tensor:
        """What one token gets: outputs weighted by the probabilities as they are."""
        probabilities = self.router(token).softmax(-1)
        mixed, confidence = torch.zeros_like(token), 0.0
        for expert in sorted(range(len(self.experts)), key=lambda e: -probabilities[e].item()):
            mixed = mixed + probabilities[expert] * self.experts[expert](token)
            confidence += probabilities[expert].item()
            if confidence > self.p:
                break
        return mixed


class Layer(nn.Module):
    """Two residual branches, each after a norm."""

    def __init__(self, dim: int, block: Any) -> None:
        super().__init__()
        mixer, channels = block.mixer, block.channel_mixer
        self.self_attn = Attention(dim, mixer.kv_heads * mixer.group, mixer.position.base)
        self.mlp = Experts(dim, channels.experts[0].hidden, channels.count, channels.router.p)
        self.input_norm = RootMeanSquare(dim, block.norm1.eps)
        self.post_attention_norm = RootMeanSquare(dim, block.norm2.eps)

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        x = x + self.self_attn(self.input_norm(x))
        return x + self.mlp(self.post_attention_norm(x))


class Body(nn.Module):
    """Embeddings, layers and the last norm."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocabulary, spec.dim)
        self.layers = nn.ModuleList(Layer(spec.dim, block) for block in spec.blocks)
        self.norm = RootMeanSquare(spec.dim, spec.norm.eps)

    def forward(self, ids: Tensor) -> list[Tensor]:
        """The features after every layer but the last, and the last ones normalised."""
        x = self.embed_tokens(ids)
        features: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return [*features[:-1], self.norm(x)]


class LanguageModel(nn.Module):
    """A body, and scores by a matrix of their own."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.model = Body(spec)
        self.lm_head = nn.Linear(spec.dim, spec.vocabulary, bias=False)

    def forward(self, ids: Tensor) -> list[Tensor]:
        """The features, and the scores last."""
        features = self.model(ids)
        return [*features, self.lm_head(features[-1])]


def oracle(name: str) -> nn.Module:
    """The model of a name of ours, with fresh weights."""
    return LanguageModel(core.resolve(registry.system_of(name).pattern(name))).eval()


def stages_and_scores(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """What is compared: features after every block but the last, the final ones, and the scores."""
    return model(ids)
