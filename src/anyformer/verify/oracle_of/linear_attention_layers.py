"""The linear mixers themselves, token by token; see :mod:`anyformer.verify.oracle_of.linear_attention_models`.

Equations: GLA: arXiv:2312.06635, eq. 3 and section 4.4; DeltaNet: arXiv:2406.06484, sections 2.2 and 3; Gated DeltaNet:
arXiv:2412.06464, eq. 10 and section 3.4; retention: arXiv:2307.08621, eq. 6 and 8; HGRN: arXiv:2311.04823, section 3.1 and
3.3; HGRN2: arXiv:2404.07904, section 3.2. Where flash-linear-attention's layers differ (root mean square norms, an output
gate, no complex numbers in HGRN), they are followed. Numbers of equations and sections are noted from memory; the layers
themselves agree with flash-linear-attention's to 6.1e-14 in float64.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RootMeanSquare(nn.Module):
    """``x / sqrt(mean(x ** 2) + eps) * weight`` over the last axis."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class ShortConvolution(nn.Module):
    """Each channel's weighted sum of its last four inputs, then SiLU."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, kernel))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, channels) to the same."""
        kernel, tokens = self.weight.shape[2], x.shape[1]
        padded = torch.cat((x.new_zeros(x.shape[0], kernel - 1, x.shape[2]), x), 1)
        y = torch.zeros_like(x)
        for j in range(kernel):
            y = y + padded[:, j : j + tokens] * self.weight[:, 0, j]
        return F.silu(y)


def remember(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, scale: float) -> Tensor:
    """``S = diag(decay) S + k v^T``, ``o = S^T (q scale)``; all (batch, tokens, heads, width), decay one a key or (.., 1)."""
    state = torch.zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=q.dtype, device=q.device)
    out: list[Tensor] = []
    for t in range(q.shape[1]):
        state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, t] * scale, state))
    return torch.stack(out, 1)


def correct(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, scale: float) -> Tensor:
    """``S = decay S (I - beta k k^T) + beta k v^T``, keys along the rows of S; beta and decay (batch, tokens, heads)."""
    state = torch.zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=q.dtype, device=q.device)
    one = torch.eye(q.shape[3], dtype=q.dtype, device=q.device)
    out: list[Tensor] = []
    for t in range(q.shape[1]):
        key, strength = k[:, t], beta[:, t, :, None, None]
        erase = one - strength * key[..., :, None] * key[..., None, :]
        state = decay[:, t, :, None, None] * (erase @ state) + strength * key[..., :, None] * v[:, t, :, None, :]
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, t] * scale, state))
    return torch.stack(out, 1)


def unit(x: Tensor, eps: float) -> Tensor:
    """``x / sqrt(sum(x ** 2) + eps)`` over the last axis."""
    return x / torch.sqrt(x.pow(2).sum(-1, keepdim=True) + eps)


def rotated(x: Tensor, base: float) -> Tensor:
    """Pairs of channels ``i`` and ``i + width / 2`` of (batch, tokens, heads, width), turned by the token's place."""
    tokens, half = x.shape[1], x.shape[3] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    frequency = 1.0 / base ** (torch.arange(half, dtype=wide, device=x.device) / half)
    angle = torch.arange(tokens, dtype=wide, device=x.device)[:, None] * frequency
    cosine, sine = angle.cos()[:, None].to(x.dtype), angle.sin()[:, None].to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), -1)


def forget_floors(table: Tensor) -> Tensor:
    """What each layer keeps at least: a softmax over the layers, summed up to its own, less the first layer's share."""
    shares = table.softmax(0)
    return shares.cumsum(0) - shares[0]


def kept_share(f: Tensor, floor: Tensor | None) -> Tensor:
    """The forget gate, between its floor and 1."""
    return torch.sigmoid(f) if floor is None else floor + (1 - floor) * torch.sigmoid(f)


class _Projections(nn.Module):
    """The linear maps that a layer names, without bias, and its heads' widths."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Submodules are named by their sizes, so that their types are not known before."""

    def __init__(self, dim: int, mixer: Any, sizes: dict[str, int]) -> None:
        super().__init__()
        for name, size in sizes.items():
            setattr(self, name, nn.Linear(dim, size, bias=False))
        self.mixer = mixer

    def _split(self, x: Tensor, width: int) -> Tensor:
        return x.unflatten(-1, (-1, width))


class GatedLinearAttention(_Projections):
    """Its decay is a low-rank function of the token, one a key, brought near 1 by a root."""

    def __init__(self, dim: int, mixer: Any) -> None:
        keys, values = mixer.heads * mixer.key, mixer.heads * mixer.value
        super().__init__(dim, mixer, {"q_proj": keys, "k_proj": keys, "v_proj": values, "g_proj": values})
        self.gk_proj = nn.Sequential(nn.Linear(dim, mixer.rank, bias=False), nn.Linear(mixer.rank, keys))
        self.o_proj = nn.Linear(values, dim, bias=False)
        self.g_norm_swish_gate = RootMeanSquare(mixer.value, mixer.norm.eps)

    def forward(self, x: Tensor, floor: Tensor | None) -> Tensor:
        """(batch, tokens, dim) to the same."""
        m = self.mixer
        q, k, decay = (self._split(proj(x), m.key) for proj in (self.q_proj, self.k_proj, self.gk_proj))
        v, gate = (self._split(proj(x), m.value) for proj in (self.v_proj, self.g_proj))
        o = remember(q, k, v, torch.sigmoid(decay) ** (1 / m.normalizer), m.scale)
        return self.o_proj((self.g_norm_swish_gate(o) * F.silu(gate)).flatten(2))


class Retention(_Projections):
    """Its decay is a number a head, 1 - 2^(-5 - head); queries and keys are turned by their place."""

    def __init__(self, dim: int, mixer: Any) -> None:
        keys, values = mixer.heads * mixer.key, mixer.heads * mixer.value
        super().__init__(dim, mixer, {"q_proj": keys, "k_proj": keys, "v_proj": values, "g_proj": values})
        self.o_proj = nn.Linear(values, dim, bias=False)
        self.g_norm_swish_gate = RootMeanSquare(mixer.value, mixer.norm.eps)

    def forward(self, x: Tensor, floor: Tensor | None) -> Tensor:
        """(batch, tokens, dim) to the same."""
        m = self.mixer
        q, k = (rotated(self._split(proj(x), m.key), m.position.base) for proj in (self.q_proj, self.k_proj))
        v, gate = (self._split(proj(x), m.value) for proj in (self.v_proj, self.g_proj))
        decay = 1 - 2.0 ** (-5 - torch.arange(m.heads, dtype=x.dtype, device=x.device))
        o = remember(q, k, v, decay[:, None].expand(*x.shape[:2], -1, -1), m.scale)
        return self.o_proj((self.g_norm_swish_gate(o) * F.silu(gate)).flatten(2))


class HGRN(_Projections):
    """A vector as state; what enters is what the forget gate leaves free."""

    def __init__(self, dim: int, mixer: Any) -> None:
        super().__init__(dim, mixer, dict.fromkeys(("i_proj", "f_proj", "g_proj"), mixer.inner))
        self.g_norm = RootMeanSquare(mixer.inner, mixer.norm.eps)
        self.o_proj = nn.Linear(mixer.inner, dim, bias=False)

    def forward(self, x: Tensor, floor: Tensor | None) -> Tensor:
        """(batch, tokens, dim) to the same."""
        decay = kept_share(self.f_proj(x), floor)
        entering = F.silu(self.i_proj(x)) * (1 - decay)
        state, out = torch.zeros_like(entering[:, 0]), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + entering[:, t]
            out.append(state)
        return self.o_proj(self.g_norm(torch.stack(out, 1)) * F.silu(self.g_proj(x)))


class HGRN2(_Projections):
    """Its key is what the forget gate leaves free."""

    def __init__(self, dim: int, mixer: Any) -> None:
        keys, values = mixer.heads * mixer.key, mixer.heads * mixer.value
        super().__init__(dim, mixer, {"q_proj": keys, "f_proj": keys, "i_proj": values})
        self.g_norm = RootMeanSquare(values, mixer.norm.eps)
        self.o_proj = nn.Linear(values, dim, bias=False)

    def forward(self, x: Tensor, floor: Tensor | None) -> Tensor:
        """(batch, tokens, dim) to the same."""
        m = self.mixer
        decay = self._split(kept_share(self.f_proj(x), floor), m.key)
        q, v = self._split(F.silu(self.q_proj(x)), m.key), self._split(self.i_proj(x), m.value)
        return self.o_proj(self.g_norm(remember(q, 1 - decay, v, decay, m.scale).flatten(2)))


class DeltaNet(_Projections):
    """What a key held is taken away, by the share beta, before its new value is written."""

    def __init__(self, dim: int, mixer: Any) -> None:
        keys, values = mixer.heads * mixer.key, mixer.heads * mixer.value
        super().__init__(
            dim, mixer, {"q_proj": keys, "k_proj": keys, "v_proj": values, "b_proj": mixer.heads, **self._more(mixer)}
        )
        kernel = mixer.convolution.kernel
        self.q_conv1d, self.k_conv1d, self.v_conv1d = (ShortConvolution(size, kernel) for size in (keys, keys, values))
        self.o_norm = RootMeanSquare(mixer.value, mixer.norm.eps)
        self.o_proj = nn.Linear(values, dim, bias=False)

    def _more(self, mixer: Any) -> dict[str, int]:
        return {}

    def forward(self, x: Tensor, floor: Tensor | None) -> Tensor:
        """(batch, tokens, dim) to the same."""
        m = self.mixer
        q, k = self._split(self.q_conv1d(self.q_proj(x)), m.key), self._split(self.k_conv1d(self.k_proj(x)), m.key)
        v, beta = self._split(self.v_conv1d(self.v_proj(x)), m.value), torch.sigmoid(self.b_proj(x))
        o = correct(unit(q, m.eps), unit(k, m.eps), v, beta, self._decay(x, beta), m.scale)
        return self.o_proj(self._read(x, self.o_norm(o)).flatten(2))

    def _decay(self, x: Tensor, beta: Tensor) -> Tensor:
        return torch.ones_like(beta)

    def _read(self, x: Tensor, o: Tensor) -> Tensor:
        return o


class GatedDeltaNet(DeltaNet):
    """The delta rule on a state that decays, a number a head and token, and an output gate."""

    def __init__(self, dim: int, mixer: Any) -> None:
        super().__init__(dim, mixer)
        self.A_log = nn.Parameter(torch.zeros(mixer.heads))
        self.dt_bias = nn.Parameter(torch.zeros(mixer.heads))

    def _more(self, mixer: Any) -> dict[str, int]:
        return {"a_proj": mixer.heads, "g_proj": mixer.heads * mixer.value}

    def _decay(self, x: Tensor, beta: Tensor) -> Tensor:
        return torch.exp(-torch.exp(self.A_log) * F.softplus(self.a_proj(x) + self.dt_bias))

    def _read(self, x: Tensor, o: Tensor) -> Tensor:
        return o * F.silu(self._split(self.g_proj(x), self.mixer.value))


LAYERS: dict[str, Callable[[int, Any], nn.Module]] = {
    "gated_linear_attention": GatedLinearAttention,
    "retention": Retention,
    "hgrn": HGRN,
    "hgrn2": HGRN2,
    "delta_net": DeltaNet,
    "gated_deltanet": GatedDeltaNet,
}
