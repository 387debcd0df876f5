"""Native hybrid attention: one softmax over a few slots, which sum up the far past, and over a window of the last tokens.

Gated slot attention (arXiv:2409.07146) keeps the past in a fixed number of keys and values, each of which forgets at a pace
that the token sets, and reads them by softmax. Here the last tokens stand beside the slots as they are: a token is written
to the slots when it leaves the window, and one softmax weighs slots and window, a head and token at a time, without weights
of its own for that. The window is the dial of a layer: 0 is a linear mixer, as many as there are tokens full attention
(beside slots that are still empty, whose keys are zeros). Layers differ in it alone. Queries and keys are turned by their
place for the window, not for the slots.

Names: our ``in_proj`` is their ``q_proj``, ``k_proj``, ``v_proj`` and ``f_proj``, one below the other, ``norm`` their
``g_norm``, ``out_proj`` their ``o_proj``; all else is GLA's.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.core import registry
from anyformer.core.joins import Concatenate, Counts
from anyformer.core.keymap import KeyMap, Row, row
from anyformer.ops.causal_attention import kept_first, ordered, restored
from anyformer.ops.slot_memory import SlotState, delayed, slot_memory, window_attention
from anyformer.parts.channel_mixers.gated_mlp import GatedMLP
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.token_mixers.linear_memory import at_least_single, heads, merged
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.decoder import Decoder

PAPER = core.Paper(
    "nha",
    contributes=("model", "part"),
    extends=("gla",),
    deviations=(
        "The paper's page was not at hand; the layer is that of the repository when the paper came out, which has no feature "
        "map on queries and keys. The repository's later layer has one, scales by 1, and writes tokens to the slots at once.",
        "A token leaves every window for the slots. In the repository's layers of wide windows the slots stay empty for good.",
        "A stream gives what the whole gives; the repository's later layer averages slots and window in its decoding steps.",
        "The configuration files were not at hand: widths are those of Gated slot attention in flash-linear-attention, slots "
        "and window the defaults of the code. The size of 340 million ties the head to the embedding, as GLA's does: untied "
        "it would be 380 million. That there is one of 1.3 billion is from memory.",
        "Key and value heads are as many as query heads, and there are no short convolutions, as by the code's defaults.",
    ),
)

SIZES: dict[str, dict[str, Any]] = {
    "nha_340m": {"dim": 1024, "hidden": 2816, "heads": 4, "slots": 64, "windows": (32,) * 24, "tie": True},
    "nha_1.3b": {"dim": 2048, "hidden": 5632, "heads": 4, "slots": 64, "windows": (32,) * 24, "tie": False},
    "nha_micro": {"dim": 64, "hidden": 176, "heads": 2, "slots": 8, "windows": (4, 16), "tie": True},
    "nha_mini": {"dim": 128, "hidden": 352, "heads": 2, "slots": 16, "windows": (0, 8, 8, 32), "tie": True},
}
SMALL = ("nha_micro", "nha_mini")  # not of the paper: for bytes and tight budgets


class HybridState(core.State):
    """Where a stream stands.

    Attributes:
        slot_keys: ``(batch, heads, key, slots)``, float32 at least.
        slot_values: ``(batch, heads, slots, value)``, likewise.
        near: the last tokens, oldest first: keys, turned keys, values and log decays, each ``(batch, heads, places, width)``.
        filled: ``(batch, places)``, whether there is a token at a place.
        length: tokens that have passed, masked ones included.
    """

    slot_keys: Tensor
    slot_values: Tensor
    near: list[Tensor]
    filled: Tensor
    length: int


class NativeHybridAttention(core.TokenMixer, name="native_hybrid_attention"):
    """Softmax over ``slots`` memories of the tokens behind the window, and over the last ``window`` tokens.

    A slot keeps ``sigmoid(...)^(1 / normalizer)`` of its key and value, and takes in the rest of the token that leaves the
    window. What ``ctx.mask`` keeps out is no key, is not counted by the window, and writes nothing.

    Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``dim * heads * (2 key + 2 value + slots)`` multiply-adds a token for
    the products, and O(heads * (window + slots) * (key + value)) for the attention. State: ``heads * slots * (key + value)``
    numbers, and ``heads * (2 key + value + slots)`` for each token of the window, or of the capacity where that is less.
    Errors: UsageError for a window below 0, and for a stream longer than a capacity that is less than the window.
    """

    class Config(core.Config):
        """``key`` and ``value`` are the widths of a head; ``scale`` multiplies all scores."""

        dim: int = core.bound()
        heads: int
        slots: int
        window: int
        key: int = core.derived(lambda c: c.dim // c.heads)
        value: int = core.derived(lambda c: c.dim // c.heads)
        normalizer: float = 8.0
        scale: float = core.derived(lambda c: c.key**-0.5)
        position: core.Config = Rotary.Config()
        in_proj: core.Config = core.linear(bias=False)
        norm: core.Config = RMSNorm.Config(eps=1e-5)
        out_proj: core.Config = core.linear(bias=False)

    axes = {
        "in_proj.weight": "(q:heads key + k:heads key + v:heads value + forget:heads slots) dim",
        "out_proj.weight": "dim (heads value)",
    }
    reduces = ("slots",)

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """The norm runs over all heads; positions turn a head's keys."""
        return {"norm": {"dim": "heads value"}, "position": {"head_dim": "key"}}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.window < 0:
            raise core.UsageError(f"a window cannot have {config.window} tokens; give 0 for slots alone, or more")

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Attend over whole rows, or packed sequences."""
        heads = _kept_first(self._heads(x, ctx), ctx.mask)
        leaving = [delayed(tensor, self.config.window, ctx.offsets) for tensor in heads[2:]]
        y, _ = self._attend(heads, leaving, offsets=ctx.offsets)
        return self._out(y, ctx.mask)

    def init_state(self, batch: int, capacity: int, like: Tensor) -> HybridState:
        """Empty slots, and places for the window or for ``capacity`` tokens, whichever are fewer."""
        config: NativeHybridAttention.Config = self.config
        places, single = min(config.window, capacity), at_least_single(like)
        near = [like.new_zeros(batch, config.heads, places, width) for width in (config.key, config.key, config.value)]
        return HybridState(
            slot_keys=like.new_zeros(batch, config.heads, config.key, config.slots, dtype=single),
            slot_values=like.new_zeros(batch, config.heads, config.slots, config.value, dtype=single),
            near=[*near, like.new_zeros(batch, config.heads, places, config.slots, dtype=single)],
            filled=torch.zeros(batch, places, dtype=torch.bool, device=like.device),
            length=0,
        )

    def stream(self, x: Tensor, ctx: core.Context, state: HybridState) -> tuple[Tensor, HybridState]:
        """The next tokens of a stream. Raises UsageError where the state has no room for them."""
        window, places, tokens = self.config.window, state.filled.shape[1], x.shape[1]
        if places < window and state.length + tokens > places:
            raise core.UsageError(
                f"the state has room for {places} tokens, not for {state.length + tokens}; ask init_state for more"
            )
        heads = _kept_first(self._heads(x, ctx), ctx.mask)
        counted = (
            state.filled.new_ones(len(x), tokens) if ctx.mask is None else ctx.mask.sort(dim=1, descending=True)[0]
        )
        present = [torch.cat(pair, 2) for pair in zip(state.near, heads[2:], strict=True)]
        seen = torch.cat((state.filled, counted), 1)
        if places < window:  # and so than any token's way through it
            leaving = [torch.zeros_like(tensor) for tensor in heads[2:]]
        else:
            leaving = [tensor[:, :, :tokens] for tensor in present]
        if ctx.mask is not None:  # as many leave as come
            leaving[3] = leaving[3].masked_fill(~counted[:, None, :, None], 0.0)
        slots = state.slot_keys, state.slot_values
        y, (slot_keys, slot_values) = self._attend([*heads[:2], *present], leaving, seen=seen, slots=slots)
        last = counted.sum(1, keepdim=True) + torch.arange(places, device=x.device)
        near = [
            tensor.gather(2, last[:, None, :, None].expand(-1, *tensor.shape[1:2], -1, tensor.shape[3]))
            for tensor in present
        ]
        return self._out(y, ctx.mask), HybridState(
            slot_keys=slot_keys,
            slot_values=slot_values,
            near=near,
            filled=seen.gather(1, last),
            length=state.length + tokens,
        )

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.out_proj.scaled(scale)

    def _heads(self, x: Tensor, ctx: core.Context) -> list[Tensor]:
        """Queries, turned queries, keys, turned keys, values, log decays."""
        config: NativeHybridAttention.Config = self.config
        keys = config.heads * config.key
        sizes = keys, keys, config.heads * config.value, config.heads * config.slots
        q, k, v, forget = (heads(tensor, config.heads) for tensor in self.in_proj(x).split(sizes, dim=-1))
        q = q * config.scale
        positions = torch.arange(x.shape[1], device=x.device) if ctx.positions is None else ctx.positions
        positions = positions if positions.dim() == 1 else positions[:, None]
        # In double precision: far into a text, single rounds the angles, which a narrow window does not average away.
        both = self.position(torch.cat((q, k), dim=1).double(), positions).to(x.dtype)
        turned_q, turned_k = both.chunk(2, dim=1)
        decay = F.logsigmoid(forget.to(at_least_single(x))) / config.normalizer
        return [q, turned_q, k, turned_k, F.silu(v), decay]

    def _attend(
        self,
        heads: list[Tensor],
        leaving: list[Tensor],
        *,
        seen: Tensor | None = None,
        slots: SlotState | None = None,
        offsets: Tensor | None = None,
    ) -> tuple[Tensor, SlotState]:
        """One softmax over what the window sees of ``heads`` and over the slots, into which goes what is ``leaving`` it."""
        q, turned_q, _, turned_k, v, _ = heads
        late_k, _, late_v, decay = leaving
        mixed = beside = None
        if self.config.window:
            mixed, beside = window_attention(
                turned_q, turned_k, v, window=self.config.window, seen=seen, offsets=offsets
            )
        write = -torch.expm1(decay)
        y, lse, slots = slot_memory(q, late_k, late_v, write, decay, beside=beside, state=slots, offsets=offsets)
        if mixed is not None and beside is not None:
            y = y + mixed * (beside - lse).exp().to(y.dtype)[..., None]
        return y, slots

    def _out(self, y: Tensor, keep: Tensor | None) -> Tensor:
        if keep is not None:
            y = restored(y, kept_first(keep), keep)
        return self.out_proj(self.norm(F.silu(merged(y))))


def _kept_first(tensors: list[Tensor], keep: Tensor | None) -> list[Tensor]:
    """What counts before what does not, which is zeros: no log decay, and so nothing to write."""
    if keep is None:
        return tensors
    places = kept_first(keep)
    return [ordered(tensor, places, keep) for tensor in tensors]


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of the published weights, or of bytes, unless it is given."""
    size = SIZES[name]
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    start = core.Init("xavier_uniform") if name in SMALL else core.Init("normal", 0.02)
    linear = Linear.Config(bias=False, init=start)
    norm = RMSNorm.Config(eps=1e-6)
    perceptron = GatedMLP.Config(hidden=size["hidden"], fc1=linear, fc2=linear)
    layers = {
        window: layer_block(
            NativeHybridAttention.Config(
                heads=size["heads"], slots=size["slots"], window=window, in_proj=linear, out_proj=linear
            ),
            perceptron,
            norm,
        )
        for window in size["windows"]
    }
    return Decoder.Config(
        dim=size["dim"],
        vocabulary=vocabulary or data_config(name)["vocabulary"],
        embed=TokenTable.Config(table=linear),
        blocks=tuple(layers[window] for window in size["windows"]),
        norm=norm,
        head=VocabularyHead.Config(linear=core.Shared.Config(path="embed.table") if size["tie"] else linear),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the weights expect of a text."""
    if name in SMALL:
        return {"vocabulary": 256, "tokenizer": "bytes", "context": None}
    return {"vocabulary": 32000, "tokenizer": "fla-hub/gla-1.3B-100B", "context": None}


PUBLISHED = {
    "nha_340m": core.Published(params=340e6, macs=None, at=(64,), source="the repository's README"),
    "nha_1.3b": core.Published(
        params=1.3e9, macs=None, at=(64,), source="from memory", explained="its siblings have 1.366 billion as well"
    ),
}


def _official(spec: Any) -> KeyMap:
    """The names of the authors' repository; GLA's decoder with other mixers."""
    gla = registry.system("gla").keys["official"](spec)
    mixers = (line for i, block in enumerate(spec.blocks) for line in _mixer(i, block.mixer))
    return KeyMap((*gla.rows, *mixers))


def _mixer(layer: int, mixer: Any) -> tuple[Row, ...]:
    if not isinstance(mixer, NativeHybridAttention.Config):
        return ()
    theirs, ours = f"model.layers.{layer}.attn", f"blocks.{layer}.mixer"
    keys, values = mixer.heads * mixer.key, mixer.heads * mixer.value
    together = tuple(f"{theirs}.{role}_proj.weight" for role in "qkvf")
    return (
        row(together, f"{ours}.in_proj.weight", Concatenate((keys, keys, values, mixer.heads * mixer.slots))),
        row((), f"{ours}.position.pair", Counts()),
        row(f"{theirs}.g_norm.weight", f"{ours}.norm.weight"),
        row(f"{theirs}.o_proj.weight", f"{ours}.out_proj.weight"),
    )


KEYS = {"official": _official, "oracle": _official}
