import json
import subprocess
import sys

import pytest

from anyformer.core import registry
from anyformer.core.errors import AnyformerError
from anyformer.measure.cost import Cost
from anyformer.verify import index, ledger, structure


@pytest.fixture
def vit_alone(monkeypatch):
    """An index of one system, whose models are not counted but have the figures of their places."""
    system = registry.system("vit")
    costs = {name: place for place, name in enumerate(system.names, start=1)}

    def counted(name, size):
        assert size == structure.native_size(name)
        return Cost(**{**known, "params": costs[name], "macs": 10 * costs[name]})

    known = vars(structure.counted("vit_micro", (32, 32)))
    monkeypatch.setattr(registry, "systems", lambda: {"vit": system})
    monkeypatch.setattr(structure, "counted", counted)
    return system


def test_reading_needs_no_torch():
    code = (
        "import sys; from anyformer.verify import index; rows = index.read(); print(len(rows), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [str(len(index.read())), "False"]


def test_writing_gives_what_reading_reads(tmp_path, monkeypatch):
    row = {"name": "a é b", "levels": ["built"], "licence": None}
    monkeypatch.setattr(index, "rows", lambda: [row, row])
    monkeypatch.setattr(index, "INDEX", tmp_path / "index.json")
    index.write(index.INDEX)
    assert index.read() == [row, row]
    assert len(index.INDEX.read_text(encoding="utf-8").splitlines()) == 4


def test_a_row_for_every_model_in_the_order_of_its_system(vit_alone):
    rows = index.rows()
    assert [row["name"] for row in rows] == list(vit_alone.names)
    assert [(row["params"], row["macs"]) for row in rows] == [(i, 10 * i) for i in range(1, len(rows) + 1)]
    assert [row["name"] for row in rows if row["small"]] == list(vit_alone.small)
    assert {(row["system"], row["field"]) for row in rows} == {("vit", "vision")}
    assert next(row["size"] for row in rows if row["name"] == "vit_base_patch16_384") == [384, 384]


def test_what_was_proven_makes_an_index_stale(vit_alone, monkeypatch):
    before = index.text()
    monkeypatch.setattr(ledger, "levels", lambda name: ("built",) if name == "vit_micro" else ())
    rows = {row["name"]: row["levels"] for row in json.loads(index.text())}
    assert (rows.pop("vit_micro"), set(map(tuple, rows.values()))) == (["built"], {()})
    assert index.text() != before


def test_licences_are_those_of_the_catalogue(vit_alone, monkeypatch, tmp_path):
    monkeypatch.setattr(index, "CATALOGUE", tmp_path / "catalogue.jsonl")
    index.CATALOGUE.write_text('{"slug": "vit", "licence_code": "BSD"}\n{"slug": "swin"}\n', encoding="utf-8")
    assert {row["licence"] for row in index.rows()} == {"BSD"}
    index.CATALOGUE.write_text('{"slug": "swin", "licence_code": "MIT"}\n', encoding="utf-8")
    assert {row["licence"] for row in index.rows()} == {None}


def test_an_index_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "rows", list)
    with pytest.raises(AnyformerError, match="could not write"):
        index.write(tmp_path / "absent" / "index.json")
