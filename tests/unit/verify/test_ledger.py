import json
import subprocess
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


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one file, under which the package seems to lie."""
    package = tmp_path / "src" / "anyformer"
    package.mkdir(parents=True)
    (package / "part.py").write_text("")
    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *arguments], check=True, timeout=60)
    monkeypatch.setattr(ledger, "PACKAGE", package)
    return package


def test_a_record_says_whether_the_code_was_that_of_its_commit(repository):
    state = ledger.code()
    assert len(state["commit"]) == 40
    assert not state["modified"]
    (repository / "ledger.jsonl").write_text("a record is no change of the code")
    assert ledger.code() == state
    (repository / "part.py").write_text("changed = 1\n")
    assert ledger.code() == {**state, "modified": True}


def test_outside_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "PACKAGE", tmp_path / "site-packages" / "anyformer")
    assert ledger.code() == {"commit": "", "modified": False}


def test_without_git_there_is_no_commit(repository, monkeypatch):
    monkeypatch.setattr(ledger, "which", lambda name: None)
    assert ledger.code() == {"commit": "", "modified": False}


def test_a_library_that_is_not_there_has_no_version(monkeypatch):
    monkeypatch.setattr(ledger, "LIBRARIES", ("torch", "no-such-library"))
    assert set(ledger.surroundings()["versions"]) == {"python", "torch"}


def test_a_line_of_another_kind_is_named(path):
    path.write_text("[1, 2]\n")
    with pytest.raises(AnyformerError, match="line 1"):
        read(path)
