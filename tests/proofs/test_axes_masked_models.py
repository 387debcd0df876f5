"""Every axis that can be cut, alone and with all others: the cut model equals the masked one, and is a model like others."""

from pathlib import Path

import pytest
import torch

import anyformer as af
from anyformer.core.binding import axis_table

from .axes_cutting import TOLERANCE, VISIBLE, cut, difference, masked, random_keep, silenced
from .axes_models import NAMES, example


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_without_norm_or_softmax_over_the_axes_plain_zeros_are_the_same(name: str, seed: int) -> None:
    model, raw = example(name)
    table = axis_table(model.spec)
    keep = random_keep(table, [axis for axis in table.atoms() if axis not in table.reduces], seed)
    assert difference(cut(model, keep), silenced(model, keep), raw, keep) <= TOLERANCE


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_all_axes_at_once_equal_the_masked_model(name: str, seed: int) -> None:
    model, raw = example(name)
    keep = random_keep(axis_table(model.spec), axis_table(model.spec).atoms(), seed)
    assert difference(cut(model, keep), masked(model, keep), raw, keep) <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_each_axis_alone_equals_the_masked_model_and_matters(name: str) -> None:
    model, raw = example(name)
    table = axis_table(model.spec)
    for axis in table.atoms():
        keep = random_keep(table, [axis], seed=3)
        smaller = cut(model, keep)
        assert difference(smaller, masked(model, keep), raw, keep) <= TOLERANCE, axis
        output = axis in ("vocabulary", "head.num_classes")  # the scores that are left do not change
        assert (difference(smaller, model, raw, keep) > VISIBLE) != output, axis


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_model_is_smaller_and_saved_and_loaded_like_any_other(name: str, tmp_path: Path) -> None:
    model, raw = example(name)
    table = axis_table(model.spec)
    inner = [axis for axis in table.atoms() if axis != "vocabulary" and not axis.endswith("channels")]
    smaller = cut(model, random_keep(table, inner, seed=4))
    smaller.save_pretrained(tmp_path)
    again = af.from_pretrained(tmp_path)
    assert again.spec == smaller.spec
    with torch.no_grad():
        assert torch.equal(again(raw), smaller(raw))
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in model.parameters())
