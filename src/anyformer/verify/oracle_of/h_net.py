"""H-Net written out from its equations, one row, one token at a time: slow, literal, and without a line of the library's.

Equations of arXiv:2507.07955, section 2.2 (numbers from memory): routing, the smoothing of chunks, and the confidence with
its straight-through estimator; Mamba-2: arXiv:2405.21060, section 6 and figure 6. The clamp of the probabilities in the
smoothing, the roles of query and key, the norms behind all networks, and the names and shapes of the parameters are those of
the official code. Its scores, with plain functions in place of its kernels, differ from these by 1.1e-14 of the largest in
float64, and its gradients by 6.4e-14, for the small sizes with one and with two stages, two rows of 64 tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer import core
from anyformer.core import registry

LEAST = 1e-4  # of a probability that a chunk's vector enters the smoothing with, and of what is left to the one before


class RootMeanSquare(nn.Module):
    """``x / sqrt(mean(x ** 2) + eps) * weight``."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Over the last axis."""
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


class Mamba2(nn.Module):
    """``h = exp(dt A) h + dt x B^T``, ``y = h C + D x``, with a convolution before and a gated norm behind."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.heads, self.p, self.n = spec.heads, spec.p, spec.state
        inner = spec.heads * spec.p
        self.in_proj = nn.Linear(spec.dim, 2 * inner + 2 * spec.state + spec.heads, bias=False)
        channels = inner + 2 * spec.state
        self.conv1d = nn.Conv1d(channels, channels, spec.convolution.kernel, groups=channels)
        self.dt_bias = nn.Parameter(torch.zeros(spec.heads))
        self.A_log = nn.Parameter(torch.zeros(spec.heads))
        self.D = nn.Parameter(torch.ones(spec.heads))
        self.norm = RootMeanSquare(inner, spec.norm.eps)
        self.out_proj = nn.Linear(inner, spec.dim, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        """(tokens, dim) to the same."""
        inner = self.heads * self.p
        z, xbc, dt = self.in_proj(u).split((inner, inner + 2 * self.n, self.heads), -1)
        state, out = u.new_zeros(self.heads, self.p, self.n), list[Tensor]()
        for t in range(len(u)):
            mixed: Any = self.conv1d.bias
            for back in range(min(t + 1, self.conv1d.weight.shape[2])):
                mixed = mixed + self.conv1d.weight[:, 0, -1 - back] * xbc[t - back]
            x, b, c = F.silu(mixed).split((inner, self.n, self.n))
            x, step = x.view(self.heads, self.p), F.softplus(dt[t] + self.dt_bias)
            decay = torch.exp(-step * torch.exp(self.A_log))
            state = decay[:, None, None] * state + (step[:, None] * x)[:, :, None] * b
            out.append((state @ c + self.D[:, None] * x).flatten())
        return self.out_proj(self.norm(torch.stack(out) * F.silu(z)))


class Attention(nn.Module):
    """Each token to itself and those before it, ``window`` at most; the first channels of a head are turned."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.heads, self.head_dim, self.window = spec.kv_heads, spec.head_dim, spec.window
        self.turned, self.base = spec.position.turned, spec.position.rotary.base
        self.Wqkv = nn.Linear(spec.dim, 3 * spec.kv_heads * spec.head_dim, bias=False)
        self.out_proj = nn.Linear(spec.kv_heads * spec.head_dim, spec.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, dim) to the same."""
        q, k, v = self.Wqkv(x).view(len(x), 3, self.heads, self.head_dim).unbind(1)
        q, k = (torch.stack([self._turn(row, t) for t, row in enumerate(rows)]) for rows in (q, k))
        out: list[Tensor] = []
        for t in range(len(x)):
            first = 0 if self.window is None else max(0, t + 1 - self.window)
            weights = (torch.einsum("hd,khd->hk", q[t], k[first : t + 1]) / self.head_dim**0.5).softmax(-1)
            out.append(torch.einsum("hk,khd->hd", weights, v[first : t + 1]).flatten())
        return self.out_proj(torch.stack(out))

    def _turn(self, x: Tensor, place: int) -> Tensor:
        half = self.turned // 2
        wide = torch.promote_types(x.dtype, torch.float32)
        angle = place * self.base ** (-torch.arange(half, dtype=wide, device=x.device) / half)
        cosine, sine = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        first, second = x[:, :half], x[:, half : self.turned]
        turned = first * cosine - second * sine, first * sine + second * cosine
        return torch.cat((*turned, x[:, self.turned :]), -1)


class SwiGLU(nn.Module):
    """``fc2(y * silu(gate))``."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden, bias=False)
        self.fc2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Every token by itself."""
        y, gate = self.fc1(x).chunk(2, -1)
        return self.fc2(y * F.silu(gate))


class Layer(nn.Module):
    """A mixer, and a perceptron where there is one, each after a norm and added to the stream."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.mixer = (Mamba2 if spec.mixer.part.name == "mamba2" else Attention)(spec.mixer)
        whole = hasattr(spec, "channel_mixer")
        self.norm1 = RootMeanSquare(spec.dim, (spec.norm1 if whole else spec.norm).eps)
        if whole:
            self.norm2 = RootMeanSquare(spec.dim, spec.norm2.eps)
            self.mlp = SwiGLU(spec.dim, spec.channel_mixer.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, dim) to the same."""
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x)) if hasattr(self, "mlp") else x


class Isotropic(nn.Module):
    """Layers and a norm."""

    def __init__(self, blocks: Any, norm: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(Layer, blocks))
        self.rmsnorm = RootMeanSquare(norm.dim, norm.eps)

    def forward(self, x: Tensor) -> list[Tensor]:
        """What every layer gives, and the last of them normalised."""
        features: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return [*features, self.rmsnorm(x)]


class Routing(nn.Module):
    """``p_t = (1 - cos(q_(t-1), k_t)) / 2``, in which the code gives the query to the earlier token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q_proj_layer = nn.Linear(dim, dim, bias=False)
        self.k_proj_layer = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The probability of each of (tokens, dim) that a chunk starts there."""
        p = [x.new_ones(())]
        for t in range(1, len(x)):
            q, k = self.q_proj_layer(x[t - 1]), self.k_proj_layer(x[t])
            p.append((1 - q @ k / (q.norm() * k.norm())) / 2)
        return torch.stack(p)


class HNet(nn.Module):
    """A stage: all of the network below it is its main network."""

    def __init__(self, blocks: Any, norm: Any, padded: int = 0) -> None:
        super().__init__()
        if padded:
            self.pad_dimension = nn.Parameter(torch.zeros(padded))
        place = next((i for i, block in enumerate(blocks) if hasattr(block, "down")), None)
        if place is None:
            self.main_network = Isotropic(blocks, norm)
            return
        stage = blocks[place]
        self.encoder = Isotropic(blocks[:place], stage.norm)
        self.main_network = HNet(stage.blocks, stage.norm2, stage.width - stage.dim)
        self.decoder = Isotropic(blocks[place + 1 :], norm)
        self.routing_module = Routing(stage.dim)
        self.residual_proj = nn.Linear(stage.dim, stage.dim)

    def forward(self, x: Tensor) -> list[Tensor]:
        """What every layer of this stage gives, what goes into its decoder among it, and the final features last."""
        if hasattr(self, "pad_dimension"):
            x = torch.cat((x, self.pad_dimension.expand(len(x), -1)), -1)
        if not hasattr(self, "encoder"):
            return self.main_network(x)
        *features, x = self.encoder(x)
        p = self.routing_module(x)
        b = [bool(probability >= 0.5) for probability in p]
        chunks = self.main_network(x[[t for t in range(len(x)) if b[t]]])[-1][:, : x.shape[1]]
        smoothed: list[Tensor] = []
        for j, probability in enumerate(p[b].clamp(LEAST, 1 - LEAST)):
            before = smoothed[-1] if smoothed else torch.zeros_like(x[0])
            smoothed.append(probability * chunks[j] + (1 - probability) * before)
        up: list[Tensor] = []
        for t in range(len(x)):
            confidence = p[t] if b[t] else 1 - p[t]
            straight_through = confidence + (1 - confidence).detach()
            up.append(straight_through * smoothed[sum(b[: t + 1]) - 1])
        x = torch.stack(up) + self.residual_proj(x)
        return [*features, x, *self.decoder(x)]


class LanguageModel(nn.Module):
    """Bytes in, scores of the next byte out."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(spec.vocabulary, spec.dim)
        self.backbone = HNet(spec.blocks, spec.norm)
        self.lm_head = nn.Linear(spec.dim, spec.vocabulary, bias=False)

    def forward(self, ids: Tensor) -> list[Tensor]:
        """Features after every outer layer and the whole inner network, final ones, scores; row by row."""
        rows = [self.backbone(self.embeddings(row)) for row in ids]
        *features, _, final = [torch.stack(parts) for parts in zip(*rows, strict=True)]
        return [*features, final, self.lm_head(final)]


def oracle(name: str) -> nn.Module:
    """The model of a name of ours, with fresh weights."""
    return LanguageModel(core.resolve(registry.system_of(name).pattern(name))).eval()


def stages_and_scores(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """What is compared: features after every block but the last, the final ones, and the scores."""
    return model(ids)
