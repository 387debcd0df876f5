import sys
import warnings

import pytest
import torch

from anyformer.core.errors import UsageError
from anyformer.verify import oracles
from anyformer.verify.oracles import oracle, oracle_stages_and_scores


def test_an_oracle_gives_features_channels_last_and_scores():
    tensors = oracle_stages_and_scores(oracle("convnext_micro", num_classes=5), torch.zeros(2, 3, 32, 64))
    assert [tuple(t.shape) for t in tensors] == [(2, 8, 16, 32), (2, 4, 8, 64), (2, 2, 4, 128), (2, 5)]


def test_models_of_one_size_are_made_for_the_size_asked():
    tensors = oracle_stages_and_scores(oracle("vit_micro", img_size=(8, 12)), torch.zeros(1, 3, 8, 12))
    assert [tuple(t.shape) for t in tensors[:-1]] == [(1, 2, 3, 64)] * 4


def test_an_oracle_has_no_stochastic_depth():
    model = oracle("swin_micro").train()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), model(images))


def test_it_can_be_imported_without_the_compiled_library_of_torchvision():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        oracle("vit_micro")
    assert hasattr(torch.ops.torchvision, "nms")


def test_without_timm_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r'pip install "anyformer\[test\]"'):
        oracle("vit_micro")


def test_a_model_that_timm_has_not_is_named():
    with pytest.raises(UsageError, match="no model is named 'vit_mikro'"):
        oracle("vit_mikro")


def test_a_model_of_ours_that_timm_has_not_is_named(monkeypatch):
    monkeypatch.setattr(oracles, "SMALL", {**oracles.SMALL, "vit_micro": ("vit_of_tomorrow", {}, 0)})
    with pytest.raises(
        UsageError, match="timm has no 'vit_of_tomorrow', so there is nothing to hold vit_micro against"
    ):
        oracle("vit_micro")
