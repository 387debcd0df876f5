"""Every system that transformers has: our models load there, theirs load here, and the scores are the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.core import registry
from anyformer.core.errors import UsageError
from anyformer.core.folders import Settings, same
from anyformer.skeletons.encoder_decoder import Texts
from anyformer.verify.oracle_of import transformers

SMALL = [
    pytest.param(name, id=name) for system in registry.systems().values() if system.folders for name in system.small
]
PUBLISHED = [
    pytest.param(name, id=name)
    for system in registry.systems().values()
    if system.folders
    for name in system.names
    if name not in system.small
]


@pytest.mark.parametrize("name", SMALL)
def test_ours_loads_there_and_comes_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours: Any = af.create_model(name).eval()
    ours.save_pretrained(tmp_path / "theirs", format="transformers")
    ids, scores = _scores(ours)

    auto: Any = getattr(
        transformers(), json.loads((tmp_path / "theirs" / "config.json").read_text())["architectures"][0]
    )
    theirs, report = auto.from_pretrained(tmp_path / "theirs", attn_implementation="eager", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        raw = {"input_ids": ids[:, :5], "decoder_input_ids": ids} if hasattr(ours, "encode") else {"input_ids": ids}
        torch.testing.assert_close(theirs.eval()(**raw).logits, scores, rtol=1e-4, atol=1e-4)

    theirs.save_pretrained(tmp_path / "back")
    again: Any = af.from_pretrained(tmp_path / "back", format="transformers")
    assert again.model_name == name
    assert torch.equal(_scores(again)[1], scores)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_words_there(name: str) -> None:
    system = registry.system_of(name)
    with torch.device("meta"):
        model: Any = af.create_model(name)
    values = [(form, form.write(model.spec)) for form in system.folders]
    if not any(value is not None for _, value in values):
        pytest.fail(f"no folder of {name}'s system knows it")
    assert any(same(form.read(Settings(value, name)), model.spec) for form, value in values if value is not None)


def test_a_changed_model_is_not_written_as_another(tmp_path: Path) -> None:
    hybrid = af.build_hybrid({"skeleton": "decoder", "dim": 32, "layers": "2 x mamba"})
    with pytest.raises(UsageError, match="a hybrid cannot be written for transformers"):
        hybrid.save_pretrained(tmp_path, format="transformers")


def _scores(model: Any) -> tuple[Tensor, Tensor]:
    ids = torch.randint(model.spec.vocabulary, (2, 33), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return ids, model(Texts(ids[:, :5], ids) if hasattr(model, "encode") else ids)
