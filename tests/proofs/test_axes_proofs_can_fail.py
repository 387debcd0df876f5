"""What a wrong declaration or a forgotten rule would do: each is far above the tolerance of the proofs."""

import pytest
import torch

from anyformer import core
from anyformer.core.binding import axis_table, slice_spec, slice_state
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.token_mixers.attention import Attention
from anyformer.systems.vision.edgenext import SDTA

from .axes_cutting import VISIBLE, cut, difference, masked, random_keep, silenced
from .axes_models import NAMES, example
from .axes_parts import Mamba2

TURNED = "(q:head_dim heads + k:head_dim heads + v:head_dim heads) dim"
WRONG = [
    (Attention, "axes", "qkv.weight", TURNED, "vit_micro", "head_dim"),
    (Attention, "axes", "proj.weight", "dim (head_dim heads)", "vit_micro", "heads"),
    (SDTA, "definitions", "dim", "width chunks + rest", "edgenext_micro", "width"),
    (SDTA, "definitions", "dim", "rest + chunks width", "edgenext_micro", "rest"),
    (Rotary, "definitions", "head_dim", "half 2", "grouped_query_decoder", "half"),
    (Mamba2, "definitions", "heads", "heads_per_group groups", "mamba2", "groups"),
    (Mamba2, "axes", "skip", "(heads_per_group groups)", "mamba2", "groups"),
]


@pytest.mark.parametrize(("part", "table", "key", "text", "name", "axis"), WRONG)
def test_a_wrong_order_is_seen(
    part: type[core.Part], table: str, key: str, text: str, name: str, axis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, raw = example(name)
    names = [each for each in axis_table(model.spec).atoms() if each.endswith("." + axis)]
    keep = random_keep(axis_table(model.spec), names, seed=5)
    right = masked(model, keep)
    monkeypatch.setitem(getattr(part, table), key, text)
    assert difference(cut(model, keep), right, raw, keep) > VISIBLE


@pytest.mark.parametrize("name", NAMES)
def test_a_norm_or_softmax_that_counts_dead_channels_is_seen(name: str) -> None:
    model, raw = example(name)
    table = axis_table(model.spec)
    for axis in table.reduces & set(table.atoms()):
        keep = random_keep(table, [axis], seed=5)
        assert difference(cut(model, keep), silenced(model, keep), raw, keep) > VISIBLE, axis


@pytest.mark.parametrize(("name", "axis"), [("vit_micro", "head_dim"), ("grouped_query_decoder", "half")])
def test_a_scale_that_follows_the_width_is_seen(name: str, axis: str) -> None:
    model, raw = example(name)
    names = [each for each in axis_table(model.spec).atoms() if each.endswith("." + axis)]
    keep = random_keep(axis_table(model.spec), names, seed=5)
    kept = slice_spec(model.spec, keep)
    derived = core.build(core.edit(kept, {f"blocks.{i}.mixer.scale": None for i in range(len(kept.blocks))})).double()
    derived.load_state_dict(slice_state(model.spec, model.state_dict(), keep))
    assert difference(derived, masked(model, keep), raw, keep) > VISIBLE


def test_rotary_frequencies_made_anew_are_seen() -> None:
    model, raw = example("grouped_query_decoder")
    keep = {f"blocks.{i}.mixer.position.half": torch.tensor([1, 3]) for i in (0, 1)}
    fresh = core.build(slice_spec(model.spec, keep)).double()
    state = slice_state(model.spec, model.state_dict(), keep)
    fresh.load_state_dict({name: t for name, t in state.items() if not name.endswith("position.pair")}, strict=False)
    assert difference(fresh, masked(model, keep), raw, keep) > VISIBLE
