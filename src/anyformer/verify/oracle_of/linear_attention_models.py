"""Decoders of linear mixers, written out token by token from the equations of their papers, to hold ours against.

Names and shapes of the parameters are those of flash-linear-attention's checkpoints. Nothing here is fast and nothing is
shared with the library's own forms: states are advanced by one token at a time, in the dtype of the parameters.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer import core
from anyformer.core import registry
from anyformer.verify.oracle_of.linear_attention_layers import LAYERS, RootMeanSquare, forget_floors, rotated


class Perceptron(nn.Module):
    """``down(silu(gate) * up)``."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Every token by itself."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Attention(nn.Module):
    """Causal softmax attention with rotary positions, over all earlier tokens or over the last ``window``."""

    def __init__(self, dim: int, heads: int, window: int | None, base: float) -> None:
        super().__init__()
        self.heads, self.window, self.base = heads, window, base
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, floor: Tensor | None) -> Tensor:
        """All scores at once, those that do not count at minus infinity."""
        batch, tokens, dim = x.shape
        q, k, v = (
            proj(x).view(batch, tokens, self.heads, dim // self.heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotated(q, self.base), rotated(k, self.base)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(dim // self.heads)
        distance = torch.arange(tokens, device=x.device)[:, None] - torch.arange(tokens, device=x.device)
        seen = distance >= 0
        if self.window is not None:
            seen = seen & (distance < self.window)
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        return self.o_proj(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, tokens, dim))


class Layer(nn.Module):
    """Two residual branches, each after a norm."""

    def __init__(self, dim: int, hidden: int, eps: float, attn: nn.Module) -> None:
        super().__init__()
        self.attn_norm = RootMeanSquare(dim, eps)
        self.attn = attn
        self.mlp_norm = RootMeanSquare(dim, eps)
        self.mlp = Perceptron(dim, hidden)

    def forward(self, x: Tensor, floor: Tensor | None) -> Tensor:
        """One layer."""
        x = x + self.attn(self.attn_norm(x), floor)
        return x + self.mlp(self.mlp_norm(x))


class Body(nn.Module):
    """Embeddings, layers and the last norm; with forget gates that have floors, the table of these."""

    def __init__(self, spec: Any, layers: list[Layer], floors: bool) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(spec.vocabulary, spec.dim)
        if floors:
            self.lower_bounds = nn.Parameter(torch.zeros(len(layers), spec.dim))
        self.layers = nn.ModuleList(layers)
        self.norm = RootMeanSquare(spec.dim, spec.norm.eps)

    def forward(self, ids: Tensor) -> list[Tensor]:
        """The features after every layer but the last, and the last ones normalised."""
        x = self.embeddings(ids)
        floors = forget_floors(self.lower_bounds) if hasattr(self, "lower_bounds") else None
        features: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            x = layer(x, None if floors is None or index == 0 else floors[index])
            features.append(x)
        return [*features[:-1], self.norm(x)]


class LanguageModel(nn.Module):
    """A body and scores, by a matrix of their own or by the embeddings'."""

    def __init__(self, spec: Any, layers: list[Layer], floors: bool) -> None:
        super().__init__()
        self.model = Body(spec, layers, floors)
        if not isinstance(spec.head.linear, core.Shared.Config):
            self.lm_head = nn.Linear(spec.dim, spec.vocabulary, bias=False)

    def forward(self, ids: Tensor) -> list[Tensor]:
        """The features, and the scores last."""
        features = self.model(ids)
        weight = self.lm_head.weight if hasattr(self, "lm_head") else self.model.embeddings.weight
        return [*features, features[-1] @ weight.T]


def oracle(name: str) -> nn.Module:
    """The model of a name of ours, with fresh weights."""
    spec: Any = core.resolve(registry.system_of(name).pattern(name))
    layers = [
        Layer(spec.dim, block.channel_mixer.hidden, block.norm1.eps, _mixer(spec.dim, block.mixer))
        for block in spec.blocks
    ]
    return LanguageModel(spec, layers, any(hasattr(block.mixer, "floors") for block in spec.blocks)).eval()


def stages_and_scores(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """What is compared: features after every block but the last, the final ones, and the scores."""
    return model(ids)


def _mixer(dim: int, mixer: Any) -> nn.Module:
    name = mixer.part.name
    if name == "grouped_query_attention":
        return Attention(dim, mixer.kv_heads * mixer.group, mixer.window, mixer.position.base)
    return LAYERS[name](dim, mixer)
