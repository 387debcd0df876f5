"""TransNormer, written out from the equations, to hold ours against: all pairs of tokens, one head after the other.

arXiv:2210.10340: NormAttention is ``norm(phi(q) (phi(k)^T v))``, DiagAttention attends inside blocks. What the paper leaves
open is as in the authors' fork of fairseq, whose names the parameters have; its two mixers, run with the same weights,
agree to 6e-16 in float64.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer import core
from anyformer.core import registry


def normalised(x: Tensor, eps: float) -> Tensor:
    """``x / (sqrt(mean(x ** 2)) + eps)`` over the last axis."""
    root = x.norm(2, dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
    return x / (root + eps)


class Urpe(nn.Module):
    """A reflection, then a turn of each pair of neighbouring channels by a learned angle a position."""

    v: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1, 1, width // 2))
        self.register_buffer("v", torch.zeros(width))  # a parameter without gradient, in theirs

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        reflection = torch.eye(len(self.v), dtype=x.dtype, device=x.device) - 2 * torch.outer(self.v, self.v)
        x = x @ reflection
        angle = positions.to(x.dtype)[:, None] * self.theta[0]
        out = torch.zeros_like(x)
        for pair in range(angle.shape[1]):
            cosine, sine = angle[:, pair].cos(), angle[:, pair].sin()
            first, second = x[..., 2 * pair], x[..., 2 * pair + 1]
            out[..., 2 * pair] = first * cosine - second * sine
            out[..., 2 * pair + 1] = first * sine + second * cosine
        return out


class Attention(nn.Module):
    """What both kinds have: four products with biases, and positions of queries and keys."""

    def __init__(self, dim: int, mixer: Any) -> None:
        super().__init__()
        self.mixer, self.width = mixer, dim // mixer.heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.urpe = Urpe(self.width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) to the same."""
        outs: list[Tensor] = []
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        for head in range(self.mixer.heads):
            part = slice(head * self.width, (head + 1) * self.width)
            outs.append(self.head(q[..., part], k[..., part], v[..., part]))
        return self.out_proj(self.together(torch.cat(outs, -1)))

    def head(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One head: (batch, tokens, width)."""
        raise NotImplementedError

    def together(self, x: Tensor) -> Tensor:
        """What becomes of all heads beside each other."""
        raise NotImplementedError


class NormAttention(Attention):
    """Linear attention without the denominator; the norm stands in its place."""

    def head(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Every weight by itself, those of later tokens zero."""
        shift = {"elu": 0.0, "1+elu": 1.0}[self.mixer.activation]
        positions = torch.arange(q.shape[1], device=q.device)
        q, k = self.urpe(shift + F.elu(q), positions), self.urpe(shift + F.elu(k), positions)
        return torch.tril(q @ k.transpose(1, 2)) @ v

    def together(self, x: Tensor) -> Tensor:
        """Normalise."""
        return normalised(x, self.mixer.norm.eps)


class DiagAttention(Attention):
    """Softmax, or rectified products and a norm, inside blocks that do not overlap; positions begin anew in each."""

    def head(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Block after block."""
        outs: list[Tensor] = []
        for start in range(0, q.shape[1], self.mixer.block):
            part = slice(start, min(start + self.mixer.block, q.shape[1]))
            positions = torch.arange(part.stop - start, device=q.device)
            turned = self.urpe(q[:, part] / math.sqrt(self.width), positions)
            scores = turned @ self.urpe(k[:, part], positions).transpose(1, 2)
            later = torch.ones_like(scores, dtype=torch.bool).triu(1)
            if self.mixer.weights == "softmax":
                weights = scores.masked_fill(later, -torch.inf).softmax(-1)
            else:
                weights = F.relu(scores).masked_fill(later, 0.0)
            outs.append(weights @ v[:, part])
        return torch.cat(outs, 1) if outs else v

    def together(self, x: Tensor) -> Tensor:
        """Normalise what softmax does not."""
        return x if self.mixer.norm is None else normalised(x, self.mixer.norm.eps)


class GLU(nn.Module):
    """``l3(silu(l1(x)) * l2(x))``."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.l1 = nn.Linear(dim, hidden)
        self.l2 = nn.Linear(dim, hidden)
        self.l3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Every token by itself."""
        return self.l3(F.silu(self.l1(x)) * self.l2(x))


class Layer(nn.Module):
    """Two residual branches, each after a norm."""

    def __init__(self, dim: int, block: Any) -> None:
        super().__init__()
        kinds = {"norm_attention": NormAttention, "diag_attention": DiagAttention}
        self.self_attn = kinds[block.mixer.part.name](dim, block.mixer)
        self.glu = GLU(dim, block.channel_mixer.hidden)
        self.eps = block.norm1.eps

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        x = x + self.self_attn(normalised(x, self.eps))
        return x + self.glu(normalised(x, self.eps))


class Decoder(nn.Module):
    """Scaled embeddings, sines and cosines of the positions, which are counted from 2, and the layers."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocabulary, spec.dim)
        self.layers = nn.ModuleList(Layer(spec.dim, block) for block in spec.blocks)
        self.eps = spec.norm.eps

    def forward(self, ids: Tensor) -> list[Tensor]:
        """The features after each layer but the last, the normalised last ones, the scores."""
        weight = self.embed_tokens.weight
        half = weight.shape[1] // 2
        precise = torch.promote_types(weight.dtype, torch.float32)
        rate = torch.exp(torch.arange(half, dtype=precise, device=ids.device) * (-math.log(10000) / (half - 1)))
        angle = (torch.arange(ids.shape[1], dtype=precise, device=ids.device)[:, None] + 2) * rate
        x = math.sqrt(weight.shape[1]) * self.embed_tokens(ids) + torch.cat((angle.sin(), angle.cos()), 1).to(weight)
        features: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        last = normalised(x, self.eps)
        return [*features[:-1], last, last @ weight.T]


class LanguageModel(nn.Module):
    """The decoder under the name that fairseq gives it."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.decoder = Decoder(spec)

    def forward(self, ids: Tensor) -> list[Tensor]:
        """See :class:`Decoder`."""
        return self.decoder(ids)


def oracle(name: str) -> nn.Module:
    """The model of a name of ours, with fresh weights."""
    return LanguageModel(core.resolve(registry.system_of(name).pattern(name))).eval()


def stages_and_scores(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """What is compared: features after every block but the last, the final ones, and the scores."""
    return model(ids)
