import json
from dataclasses import replace

import pytest

from anyformer.core.errors import AnyformerError
from anyformer.verify import ledger
from anyformer.verify.ledger import Record, append, latest, levels, read

RECORD = Record(
    slug="vit",
    name="vit_micro",
    level="built",
    reached=True,
    failures=[],
    figures={"params": 3, "image": [8, 8]},
    seeds=[],
    seconds=1.5,
    **ledger.code(),
    **ledger.surroundings(),
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def test_what_is_appended_is_read(path):
    assert read(path) == []
    append(RECORD, path)
    first = path.read_bytes()
    append(replace(RECORD, level="equal", failures=["a é b"], reached=False), path)
    assert path.read_bytes().startswith(first)
    assert [record.level for record in read(path)] == ["built", "equal"]
    assert read(path)[0] == RECORD


def test_the_newest_record_counts(path):
    for reached in (True, False):
        append(replace(RECORD, reached=reached), path)
    assert latest(path)["vit_micro", "built"].reached is False
    assert levels("vit_micro", path) == ()
    append(RECORD, path)
    assert levels("vit_micro", path) == ("built",)


def test_a_system_has_a_level_when_none_of_its_models_failed(path):
    append(RECORD, path)
    append(replace(RECORD, name="vit_mini"), path)
    assert levels("vit", path) == ("built",)
    append(replace(RECORD, name="vit_mini", reached=False), path)
    assert (levels("vit", path), levels("vit_micro", path), levels("vit_mini", path)) == ((), ("built",), ())


def test_learning_is_of_the_system(path):
    append(RECORD, path)
    append(replace(RECORD, name="vit_mini", level="learns"), path)
    append(replace(RECORD, slug="swin", name="swin_micro"), path)
    assert levels("vit_micro", path) == ("built", "learns")
    assert levels("swin_micro", path) == ("built",)
    assert levels("convnext", path) == ()


def test_a_damaged_line_is_named(path):
    append(RECORD, path)
    with path.open("a") as file:
        file.write('{"slug": "vit"}\n')
    with pytest.raises(AnyformerError, match=r"line 2 of .*ledger\.jsonl is damaged"):
        read(path)


def test_a_ledger_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(AnyformerError, match="could not write"):
        append(RECORD, tmp_path / "absent" / "ledger.jsonl")


def test_a_line_that_does_not_fit_on_the_disk_leaves_nothing(path, monkeypatch):
    append(RECORD, path)
    before, write = path.read_bytes(), ledger.os.write
    monkeypatch.setattr(ledger.os, "write", lambda descriptor, line: write(descriptor, line[:10]))
    with pytest.raises(AnyformerError, match="the disk is full"):
        append(RECORD, path)
    assert path.read_bytes() == before


def test_a_record_says_when_of_what_with_what_and_where():
    assert RECORD.date.endswith("+00:00")
    assert {"python", "anyformer", "torch"} <= RECORD.versions.keys()
    assert set(RECORD.machine) == {"processor", "cores", "system"}
    assert len(RECORD.commit) in (0, 40)
    json.dumps(RECORD.machine)
