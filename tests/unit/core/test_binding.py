"""The axes of whole models, cutting by them, and what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer import core
from anyformer.core import registry
from anyformer.core.binding import axis_table, slice_spec, slice_state
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.residuals.residual import PlainResidual
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.skeletons.blocks import PreNormBlock
from anyformer.skeletons.decoder import Decoder


def decoder(tied: str = "embed.table") -> core.Config:
    norm, join = LayerNorm.Config(), PlainResidual.Config()
    mixer = GroupedQueryAttention.Config(kv_heads=2, group=3, head_dim=4, position=Rotary.Config())
    block = PreNormBlock.Config(
        norm1=norm, mixer=mixer, residual1=join, norm2=norm, channel_mixer=MLP.Config(hidden=5), residual2=join
    )
    head = VocabularyHead.Config(linear=core.Shared.Config(path=tied))
    return core.resolve(Decoder.Config(dim=24, vocabulary=24, embed=TokenTable.Config(), blocks=(block,), head=head))


SPEC = decoder()
STATE = {name: torch.randn(tensor.shape) for name, tensor in core.build(SPEC).state_dict().items()}
TABLE = axis_table(SPEC)


class Divided(core.Part, name="unit_divided"):
    """Says in ``definitions`` what ``whole`` consists of."""

    class Config(core.Config):
        whole: int = core.bound()
        first: int = 2

        @property
        def second(self) -> int:
            return self.whole // self.first

    definitions = {"whole": "first second"}


class Given(core.Part, name="unit_given"):
    """Divides as ``Divided`` does, into a number of groups that the parent names."""

    class Config(core.Config):
        whole: int = core.bound()
        first: int = core.bound()

        @property
        def second(self) -> int:
            return self.whole // self.first

    definitions = {"whole": "first second"}


class Even(core.Part, name="unit_even"):
    """Needs two halves."""

    class Config(core.Config):
        whole: int = core.bound()

        @property
        def half(self) -> int:
            return self.whole // 2

    definitions = {"whole": "2 half"}


class Holder(core.Part, name="unit_holder"):
    """Binds its axes to all its children; ``again`` has no field behind it, ``count`` must stay."""

    class Config(core.Config):
        whole: int = 6
        count: int = 4
        first: int = 2
        children: tuple[core.Config, ...]

        @property
        def again(self) -> int:
            return 2 * self.count

    axes = {"weight": "whole", "table": "count again"}
    fixed = {"count": "its order is a meaning"}
    reduces = ("whole",)


class Doubled(core.Part, name="unit_doubled"):
    """An axis that consists of computed sizes only: they can be told apart, but not set."""

    class Config(core.Config):
        count: int

        @property
        def whole(self) -> int:
            return 2 * self.count

        @property
        def half(self) -> int:
            return self.count

    axes = {"weight": "whole"}
    definitions = {"whole": "2 half"}


def holder(*children: core.Config) -> core.Config:
    return core.resolve(Holder.Config(children=children))


@st.composite
def keeps(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    names = draw(st.lists(st.sampled_from(TABLE.atoms()), unique=True))
    orders = {name: draw(st.permutations(range(TABLE.sizes[name]))) for name in names}
    return {name: torch.tensor(order[: draw(st.integers(1, len(order)))]) for name, order in orders.items()}


def test_axes_are_named_by_their_owner() -> None:
    assert {name: TABLE.sizes[name] for name in TABLE.atoms()} == {
        "dim": 24,
        "vocabulary": 24,
        "blocks.0.mixer.kv_heads": 2,
        "blocks.0.mixer.group": 3,
        "blocks.0.mixer.position.half": 2,
        "blocks.0.channel_mixer.hidden": 5,
    }
    assert TABLE.reduces == {"dim"}


@given(keeps())
@settings(deadline=None, derandomize=True, max_examples=30)
def test_the_cut_spec_has_the_shapes_of_the_cut_tensors(keep: dict[str, torch.Tensor]) -> None:
    after = axis_table(slice_spec(SPEC, keep))
    state = slice_state(SPEC, STATE, keep)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {name: after.shape(name) for name in state}
    assert {name: after.sizes[name] for name in TABLE.atoms()} == {
        name: len(keep[name]) if name in keep else TABLE.sizes[name] for name in TABLE.atoms()
    }


@given(keeps(), st.data())
@settings(deadline=None, derandomize=True, max_examples=30)
def test_cutting_twice_is_cutting_once(keep: dict[str, torch.Tensor], data: st.DataObject) -> None:
    again = {name: torch.tensor(data.draw(st.permutations(range(len(index))))[:1]) for name, index in keep.items()}
    once = {name: index[again[name]] for name, index in keep.items()}
    between = slice_spec(SPEC, keep)
    assert slice_spec(between, again) == slice_spec(SPEC, once)
    twice = slice_state(between, slice_state(SPEC, STATE, keep), again)
    for name, tensor in slice_state(SPEC, STATE, once).items():
        assert torch.equal(twice[name], tensor), name


def test_nothing_cut_is_the_same_spec_and_a_copy_of_the_tensors() -> None:
    assert slice_spec(SPEC, {}) == SPEC
    state = slice_state(SPEC, STATE, {})
    assert all(torch.equal(state[name], tensor) for name, tensor in STATE.items())
    state["embed.table.weight"].zero_()
    assert STATE["embed.table.weight"].any()


def test_all_indices_in_another_order_reorder_every_tensor() -> None:
    keep = {"blocks.0.mixer.position.half": torch.tensor([1, 0])}
    state = slice_state(SPEC, STATE, keep)
    assert slice_spec(SPEC, keep) == SPEC
    pair, proj = "blocks.0.mixer.position.pair", "blocks.0.mixer.proj.weight"
    assert torch.equal(state[pair], STATE[pair].flip(0))
    assert torch.equal(state[proj], STATE[proj].view(24, 6, 2, 2).flip(3).flatten(1))


BAD = [
    (
        "blocks.0.mixer.heads",
        torch.tensor([0]),
        r"no axis 'blocks.0.mixer.heads'; did you mean blocks.0.mixer.kv_heads",
    ),
    ("blocks.0.mixer.head_dim", torch.tensor([0]), "cut through what it consists of: blocks.0.mixer.position.half"),
    ("dim", torch.tensor([], dtype=torch.int64), "must keep some of its 24 indices"),
    ("dim", torch.ones(24, dtype=torch.bool), "row of int64"),
    ("dim", torch.tensor([0.0, 1.0]), "row of int64"),
    ("dim", torch.tensor([[0, 1]]), "row of int64"),
    ("dim", torch.tensor([0, 24]), "has the indices 0 to 23, asked to keep 0 to 24"),
    ("dim", torch.tensor([-1, 3]), "has the indices 0 to 23, asked to keep -1 to 3"),
    ("dim", torch.tensor([3, 4, 3]), "an index twice"),
]


@pytest.mark.parametrize(("axis", "index", "sentence"), BAD)
def test_what_cannot_be_kept_is_refused(axis: str, index: torch.Tensor, sentence: str) -> None:
    for refuse in (lambda keep: slice_spec(SPEC, keep), lambda keep: slice_state(SPEC, STATE, keep)):
        with pytest.raises(core.UsageError, match=sentence):
            refuse({axis: index})


@pytest.mark.parametrize("name", ["embed.table.wieght", "embed.table.weight"])
def test_tensors_of_another_model_are_refused(name: str) -> None:
    with pytest.raises(core.UsageError, match=rf"{name} of shape \(3, 24\) is not of this spec"):
        slice_state(SPEC, {name: torch.zeros(3, 24)}, {"dim": torch.tensor([1])})


def test_sharing_over_other_axes_ties_them_so_that_neither_is_cut() -> None:
    table = axis_table(decoder(tied="blocks.0.mixer.proj"))  # 24 x 24 too, but dim x heads instead of vocabulary x dim
    assert "blocks.0.channel_mixer.hidden" in table.atoms()
    assert not {"vocabulary", "dim", "blocks.0.mixer.kv_heads", "blocks.0.mixer.position.half"} & set(table.atoms())
    with pytest.raises(core.UsageError, match=r"head.linear ties it to another axis by sharing blocks.0.mixer.proj"):
        slice_spec(decoder(tied="blocks.0.mixer.proj"), {"dim": torch.arange(4)})


def frozen(spec: core.Config, axis: str) -> str:
    with pytest.raises(core.UsageError, match="cannot be cut") as caught:
        slice_spec(spec, {axis: torch.tensor([0])})
    return str(caught.value)


def test_fixed_and_computed_axes_are_frozen() -> None:
    assert frozen(holder(), "count").endswith("its order is a meaning")
    assert "follows from other numbers" in frozen(holder(), "again")
    assert axis_table(holder()).atoms() == ("whole",)


def test_parts_that_divide_alike_share_the_axes() -> None:
    table = axis_table(holder(Divided.Config(), Divided.Config()))
    assert table.local["children.0"] == table.local["children.1"]
    assert {"children.0.first", "children.0.second"} <= set(table.atoms())
    assert table.reduces == {"whole", "children.0.first", "children.0.second"}
    smaller: Any = slice_spec(holder(Divided.Config(), Divided.Config()), {"children.0.first": torch.tensor([1])})
    assert (smaller.whole, smaller.children[0].first, smaller.children[1].first) == (3, 1, 1)


@pytest.mark.parametrize(
    "children",
    [
        (Divided.Config(first=2), Divided.Config(first=3)),
        (
            Divided.Config(first=2),
            Given.Config(),
        ),  # of equal size, but two axes: the first part's own, and the parent's
        (Divided.Config(first=2), Even.Config()),  # 2 is a number of groups there, and two halves for ever here
    ],
)
def test_parts_that_divide_differently_freeze_all_axes_of_both(children: tuple[core.Config, ...]) -> None:
    spec = holder(*children)
    table = axis_table(spec)
    assert table.atoms() == ()
    for axis in {"whole"} | {name for name in table.sizes if name.startswith("children")}:
        assert "children.1 divides it in another way" in frozen(spec, axis)


def test_a_literal_number_of_groups_stays_while_what_is_in_them_is_cut() -> None:
    spec = holder(Even.Config(), Divided.Config(first=2))
    assert axis_table(spec).atoms() == ("children.0.half",)
    smaller: Any = slice_spec(spec, {"children.0.half": torch.tensor([2])})
    assert (smaller.whole, smaller.children[1].first, smaller.children[1].second) == (2, 2, 1)


def test_computed_sizes_that_no_cut_can_set_are_refused() -> None:
    with pytest.raises(core.UsageError, match="cutting half would make axis"):
        slice_spec(core.resolve(Doubled.Config(count=3)), {"half": torch.tensor([0, 2])})


def test_a_descendants_axis_is_cut_where_it_lives() -> None:
    spec: Any = core.resolve(registry.system("convnext").pattern("convnext_micro", num_classes=3))
    smaller: Any = slice_spec(spec, {"stages.0.dim": torch.arange(5)})
    assert (smaller.embed.dim, smaller.stages[0].dim, smaller.stages[1].inputs, smaller.stages[1].dim) == (5, 5, 5, 64)
