"""The index that `anyformer list` reads, and the ledger behind it."""

import json

import pytest

from anyformer.core import registry
from anyformer.verify import index, ledger
from anyformer.verify.subjects import absent

LARGE = 2e8
ROWS = {row["name"]: row for row in index.read()}


def test_the_index_is_not_stale():
    assert index.INDEX.read_text(encoding="utf-8") == index.text(), "renew it: python -m anyformer.verify.index"


@pytest.mark.parametrize("name", registry.model_names())
def test_row(name: str) -> None:
    row = ROWS[name]
    own = {"name", "system", "field", "small", "size", "params", "macs", "levels", "licence"}
    assert set(row) - own == ({"ahead"} if "ahead" in row else set())
    assert own <= set(row)
    assert row.get("ahead", 1) > 0
    assert row["params"] > 0
    assert row["macs"] > row["params"] / 2
    known = {"MIT", "Apache-2.0", "BSD-3-Clause", "LicenseRef-Apple-Sample-Code", "LicenseRef-Snap"}
    states_none = row["field"] != "vision" or row["system"] == "visformer"
    assert row["licence"] in known or (states_none and row["licence"] is None)


def test_the_ledger_is_of_models_that_exist():
    records = ledger.read()
    assert {record.name for record in records} <= set(registry.model_names())
    assert all(
        record.level in (*ledger.LEVELS, ledger.RULE) and record.slug in registry.systems() for record in records
    )


def test_every_line_of_the_ledger_is_one_record():
    lines = ledger.LEDGER.read_text(encoding="utf-8").splitlines()
    assert all(list(json.loads(line)) == list(ledger.Record.__annotations__) for line in lines)


def test_nothing_in_the_ledger_failed():
    asked = [
        record for record in ledger.latest().values() if record.level != "claim"
    ]  # the papers', reported as they are
    assert [(record.name, record.level) for record in asked if not record.reached] == []


def test_every_claim_was_measured_by_the_rule_before_it():
    rules: dict[str, str] = {}
    for record in ledger.read():
        if record.level == ledger.RULE:
            rules[record.slug] = record.figures["sha256"]
        elif record.level == "claim":
            assert record.figures["rule"] == rules[record.slug]


@pytest.mark.parametrize("name", registry.model_names())
def test_every_model_is_proven_built_and_equal(name: str) -> None:
    row = ROWS[name]
    # a model in float64 with its gradients, beside its oracle, must fit into this machine's memory
    large = row["params"] > LARGE
    asked = {"built"} if large or absent(name) else {"built", "equal"}
    assert asked <= set(row["levels"]), f"prove it: anyformer verify {row['system']} --name {name}"
