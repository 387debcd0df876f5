"""Combiner, written out as the attention matrix that it induces, to hold ours against; arXiv:2107.05768.

Every token's distribution over all that it may see is p(j | i) = p(j | i) for direct keys, and p(span | i) p(j | span) for
keys in spans: section 3, as the authors' code has it (the page itself was not at hand). A span stands for its tokens by the
largest query and the largest key of each channel; the first asks what the span's value is, the second is asked whether the
span is meant. The model around it is that of the authors' language models in TensorFlow; names follow theirs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer import core
from anyformer.core import registry

Seen = tuple[list[int], list[range]]
"""What a token sees directly, and in which spans it sees the rest."""


def fixed(i: int, mixer: Any) -> Seen:
    """The tokens of its own block; all earlier blocks."""
    first = i // mixer.span * mixer.span
    return list(range(first, i + 1)), [range(start, start + mixer.span) for start in range(0, first, mixer.span)]


def logsparse(i: int, mixer: Any) -> Seen:
    """Itself; spans whose lengths are the powers of two that its place is the sum of, short ones nearest."""
    spans, end = list[range](), i
    for bit in range(i.bit_length()):
        if i >> bit & 1:
            spans.append(range(end - 2**bit, end))
            end -= 2**bit
    return [i], spans


SEEN: dict[str, Callable[[int, Any], Seen]] = {"combiner_fixed": fixed, "combiner_logsparse": logsparse}


def induced_attention(q: Tensor, k: Tensor, seen: Sequence[Seen]) -> Tensor:
    """The whole matrix, (batch, heads, tokens, tokens), of q (scaled) and k, (batch, heads, tokens, width)."""
    rows: list[Tensor] = []
    for i, (direct, spans) in enumerate(seen):
        scores = [torch.einsum("bhd,bhjd->bhj", q[:, :, i], k[:, :, direct])]
        for span in spans:
            key = k[:, :, list(span)].amax(2)
            scores.append(torch.einsum("bhd,bhd->bh", q[:, :, i], key)[..., None])
        shares = torch.cat(scores, -1).softmax(-1)
        row = torch.zeros_like(q[..., 0])
        row[:, :, direct] = shares[..., : len(direct)]
        for n, span in enumerate(spans):
            query = q[:, :, list(span)].amax(2)
            within = torch.einsum("bhd,bhjd->bhj", query, k[:, :, list(span)]).softmax(-1)
            row[:, :, list(span)] = shares[..., len(direct) + n, None] * within
        rows.append(row)
    return torch.stack(rows, 2)


class Attention(nn.Module):
    """The induced matrix times the values."""

    def __init__(self, dim: int, mixer: Any) -> None:
        super().__init__()
        self.mixer = mixer
        self.pre_norm = nn.LayerNorm(dim, eps=1e-5)
        self.qkv = nn.Linear(dim, 3 * mixer.heads * mixer.head_dim)  # in one: the keys' bias alone changes nothing
        self.dense = nn.Linear(mixer.heads * mixer.head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) to the same, the residual not yet added."""
        m, x = self.mixer, self.pre_norm(x)
        q, k, v = (part.unflatten(-1, (m.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        seen = [SEEN[m.part.name](i, m) for i in range(x.shape[1])]
        attention = induced_attention(q * m.scale, k, seen)
        return self.dense((attention @ v).transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Widen, GELU in its tanh form, narrow."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(dim, eps=1e-5)
        self.dense = nn.Linear(dim, hidden)
        self.dense_1 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) to the same, the residual not yet added."""
        return self.dense_1(F.gelu(self.dense(self.pre_norm(x)), approximate="tanh"))


class Layer(nn.Module):
    """Two residual branches."""

    def __init__(self, dim: int, block: Any) -> None:
        super().__init__()
        self.attn = Attention(dim, block.mixer)
        self.ffn = Perceptron(dim, block.channel_mixer.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        x = x + self.attn(x)
        return x + self.ffn(x)


class LanguageModel(nn.Module):
    """Words and places, layers, a norm; scores from the table of the words, with a bias a word."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(spec.vocabulary, spec.dim)
        self.pos_embeddings = nn.Embedding(spec.embed.context, spec.dim)
        self.layers = nn.ModuleList(Layer(spec.dim, block) for block in spec.blocks)
        self.final_norm = nn.LayerNorm(spec.dim, eps=1e-5)
        self.softmax_bias = nn.Parameter(torch.zeros(spec.vocabulary))

    def forward(self, ids: Tensor) -> list[Tensor]:
        """The features after every layer but the last, the last ones normalised, and the scores."""
        x = self.word_embeddings(ids) + self.pos_embeddings.weight[: ids.shape[1]]
        features: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        x = self.final_norm(x)
        return [*features[:-1], x, x @ self.word_embeddings.weight.T + self.softmax_bias]


def oracle(name: str) -> nn.Module:
    """The model of a name of ours, with fresh weights."""
    return LanguageModel(core.resolve(registry.system_of(name).pattern(name))).eval()


def stages_and_scores(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """What is compared: features after every block but the last, the final ones, and the scores."""
    return model(ids)
