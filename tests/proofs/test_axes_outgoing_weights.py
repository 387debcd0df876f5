"""Removing whole heads, groups or hidden units by axes alone equals zeroing their outgoing weights, and nothing else."""

import pytest

from anyformer.core.binding import axis_table

from .axes_cutting import TOLERANCE, VISIBLE, cut, difference, random_keep, silenced
from .axes_models import NAMES, example

HIDDEN = {"channel_mixer.hidden": "channel_mixer.fc2.weight"}
GATED = {"channel_mixer.hidden": "channel_mixer.down.weight"}
OUTGOING = {
    "vit_micro": {"mixer.heads": "mixer.proj.weight", **HIDDEN},
    "swin_mini": {"mixer.heads": "mixer.proj.weight", **HIDDEN},
    "edgenext_micro": {"mixer.attention.heads": "mixer.attention.proj.weight", **HIDDEN},
    "convnext_micro": HIDDEN,
    "grouped_query_decoder": {"mixer.kv_heads": "mixer.proj.weight", "mixer.group": "mixer.proj.weight", **GATED},
    "mamba2": {"mixer.groups": "mixer.out_proj.weight", **GATED},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_removing_units_equals_zeroing_their_outgoing_weights(name: str, seed: int) -> None:
    model, raw = example(name)
    table = axis_table(model.spec)
    outgoing = {
        axis: axis.removesuffix(unit) + weight
        for unit, weight in OUTGOING[name].items()
        for axis in table.sizes
        if axis.endswith("." + unit)
    }
    keep = random_keep(table, outgoing, seed)
    zeroed = silenced(model, keep, only=set(outgoing.values()))
    assert difference(cut(model, keep), zeroed, raw, keep) <= TOLERANCE
    assert difference(zeroed, model, raw, {}) > VISIBLE
