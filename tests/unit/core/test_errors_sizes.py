"""Errors of sizes that do not go together, and of a structure that adapting would change."""

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.core import store
from anyformer.core.errors import UsageError


class Divided(core.Config):
    """An axis that follows from two numbers."""

    dim: int
    heads: int

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


class Part:
    name = "divided"


Divided.part = Part


def test_a_size_that_cannot_be_computed():
    assert Divided(dim=8, heads=2).size("head_dim") == 4
    with pytest.raises(UsageError, match=r"divided: the size of axis 'head_dim' cannot be computed \(.*by zero\)"):
        Divided(dim=8, heads=0).size("head_dim")


@pytest.mark.parametrize("dim", [-1, 2.0, True, None, 2**63])
def test_a_size_that_is_none(dim):
    with pytest.raises(UsageError, match=r"divided: the size of axis 'dim' is .*; give a whole number from 0 on"):
        Divided(dim=dim, heads=1).size("dim")


def test_adapting_does_not_change_the_structure(monkeypatch):
    model = af.create_model("convnext_micro")
    create = store.create_model

    def with_one_more(name, **options):
        made = create(name, **options)
        made.embed.register_buffer("extra", torch.zeros(1))
        return made

    monkeypatch.setattr(store, "create_model", with_one_more)
    with pytest.raises(UsageError, match=r"adapting changes the structure: embed\.extra has no counterpart"):
        af.adapt(model, num_classes=3)
