"""Form: a pass with two models in and one out: the weights of two fine-tuned models, averaged.

As in model soups (arXiv:2203.05482, section 2) and WiSE-FT: fine-tuned from one start, the two lie in one valley of the
loss. Here each has seen half of the classes and forgotten the other half; the data chooses the share of each.
"""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer import core
from anyformer.core.model import Model
from anyformer.core.store import build_hybrid
from anyformer.data.images import load

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class ToyMerge:
    """``share * first + (1 - share) * second`` for the share of the least loss on the data."""

    shares: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

    def apply(self, models: tuple[Model, ...], data: Data) -> tuple[tuple[Model, ...], dict[str, Any]]:
        """Raises UsageError unless two models of one spec are given."""
        if len(models) != 2 or models[0].spec != models[1].spec:
            raise core.UsageError(f"merging needs two models of one spec, got {[m.model_name for m in models]}")
        merged, losses = copy.deepcopy(models[0]), {}
        for share in self.shares:
            self._blend(merged, models, share)
            losses[share] = loss_of(merged, data)
        best = min(losses, key=losses.__getitem__)
        self._blend(merged, models, best)
        return (merged,), {"share": best, "losses": losses}

    def _blend(self, merged: Model, models: tuple[Model, ...], share: float) -> None:
        first, second = (model.state_dict() for model in models)
        merged.load_state_dict({name: share * first[name] + (1 - share) * second[name] for name in first})


@torch.no_grad()
def loss_of(model: nn.Module, data: Data) -> float:
    return F.cross_entropy(model(data[0]), data[1]).item()


def tuned(model: Model, data: Data, steps: int) -> Model:
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    order = torch.randint(len(data[1]), (steps, 64), generator=torch.Generator().manual_seed(0))
    for index in order:
        optimizer.zero_grad()
        F.cross_entropy(model(data[0][index]), data[1][index]).backward()
        optimizer.step()
    return model


def small_vit() -> Model:
    return build_hybrid(
        {
            "skeleton": "isotropic",
            "dim": 32,
            "embed": "patch_embed(patch=4)",
            "layers": "1 x attention(heads=4)",
            "num_classes": 10,
            "in_chans": 1,
        }
    )


@pytest.fixture(scope="module")
def digits() -> tuple[Data, Data, Data]:
    found = load("digits")
    images, labels = found.images.float() / 255, found.labels
    return tuple((images[part], labels[part]) for part in (slice(900), slice(900, 1200), slice(1200, None)))


def test_merged_model_knows_what_each_has_kept(digits):
    train, validation, test = digits
    torch.manual_seed(0)
    start = tuned(small_vit(), train, 60)
    low = train[1] < 5
    halves = tuple(tuned(start, (train[0][half], train[1][half]), 20) for half in (low, ~low))
    before = [copy.deepcopy(model.state_dict()) for model in halves]
    (merged,), record = ToyMerge().apply(halves, validation)
    assert loss_of(merged, test) < 0.8 * min(loss_of(model, test) for model in halves)
    share = record["share"]
    assert record["losses"][share] == loss_of(merged, validation) == min(record["losses"].values())
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, share * before[0][name] + (1 - share) * before[1][name])
    for model, old in zip(halves, before, strict=True):  # a pass takes nothing away from what it is given
        assert all(torch.equal(tensor, old[name]) for name, tensor in model.state_dict().items())


def test_models_of_two_specs_are_refused(digits):
    models = small_vit(), core.build(core.edit(small_vit().spec, {"blocks.0.channel_mixer.hidden": 64}))
    for given in (models, models[:1]):
        with pytest.raises(core.UsageError, match="merging needs two models of one spec"):
            ToyMerge().apply(given, digits[0])
