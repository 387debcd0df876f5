import pytest

from anyformer.app.proving import prove
from anyformer.core.errors import UsageError
from anyformer.verify import ledger, levels
from anyformer.verify.evidence import Evidence
from anyformer.verify.levels import LEVELS, behaviours, built, verify
from anyformer.verify.subjects import absent

MICRO = "long_range_arena_attention_micro"


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Levels that fail for vit_mini, and a ledger of this test's own."""

    def prove(name):
        return Evidence({"of": name}, ("it is wrong",) if name == "vit_mini" else (), seeds=(3,))

    for level in LEVELS:
        monkeypatch.setitem(LEVELS, level, prove)
    return tmp_path / "ledger.jsonl"


def test_every_outcome_is_reported_and_in_the_ledger(recorded):
    told = []
    records = verify("vit", ["built", "equal"], ["vit_micro", "vit_mini"], told.append, recorded)
    assert told == records == ledger.read(recorded)
    assert [(r.level, r.name, r.reached, r.failures) for r in records] == [
        ("built", "vit_micro", True, []),
        ("built", "vit_mini", False, ["it is wrong"]),
        ("equal", "vit_micro", True, []),
        ("equal", "vit_mini", False, ["it is wrong"]),
    ]
    assert all(record.figures == {"of": record.name} and record.seeds == [3] for record in records)


def test_all_models_of_a_system_and_its_largest_small_one_for_learning(recorded):
    records = verify("edgenext", ["equal", "learns"], path=recorded)
    assert [record.name for record in records if record.level == "learns"] == ["edgenext_mini"]
    assert len([record for record in records if record.level == "equal"]) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vti", ["built"]), "no system is named 'vti'; did you mean vit"),
        (("vit", ["bild"]), "no level is named 'bild'"),
        (("vit", ["built"], ["vit_nano"]), "no model of vit is named 'vit_nano'"),
    ],
)
def test_what_is_unknown_is_named(recorded, arguments, message):
    with pytest.raises(UsageError, match=message):
        verify(*arguments, path=recorded)
    assert not recorded.exists()


def test_what_was_proven_before_an_error_stays(recorded, monkeypatch):
    def broken(name):
        raise UsageError("timm is not installed")

    monkeypatch.setitem(LEVELS, "equal", broken)
    with pytest.raises(UsageError):
        verify("vit", ["built", "equal"], ["vit_micro"], path=recorded)
    assert [record.level for record in ledger.read(recorded)] == ["built"]


def test_built_has_our_count_beside_the_printed_figure():
    evidence = built("edgenext_xx_small")
    assert evidence.failures == ()
    assert evidence.figures["params"] == 1_327_216
    assert evidence.figures["macs"] == 257_905_088
    assert evidence.figures["published"]["macs"] == 261e6


def test_built_runs_small_models(monkeypatch):
    monkeypatch.setattr(levels.behaviour, "CHECKS", {"one": lambda make: [make.args[0]]})
    assert built("vit_micro").failures == ("vit_micro",)
    assert built("vit_tiny_patch16_224").failures == ()


def test_a_check_that_fails_keeps_a_model_from_being_built(monkeypatch):
    monkeypatch.setitem(levels.structure.CHECKS, "paths", lambda model: ["a module is missing"])
    assert built("vit_tiny_patch16_224").failures == ("a module is missing",)


def test_the_index_is_renewed_beside_the_ledger_of_the_package_alone(recorded, monkeypatch):
    renewed = []
    monkeypatch.setattr(levels.index, "write", lambda: renewed.append(len(ledger.read(recorded))))
    verify("vit", ["built"], ["vit_micro"], path=recorded)
    assert renewed == []
    monkeypatch.setattr(ledger, "LEDGER", recorded)
    verify("vit", ["built"], ["vit_micro"], path=recorded)
    assert renewed == [2]


def test_a_level_that_does_not_apply_is_said_once_and_not_recorded(recorded, monkeypatch):
    told = []
    monkeypatch.setattr(levels, "absent", lambda name: "nobody has ever published any")
    records = verify("vit", ["built", "equal"], ["vit_micro", "vit_mini"], path=recorded, note=told.append)
    assert [(record.level, record.name) for record in records] == [("built", "vit_micro"), ("built", "vit_mini")]
    assert records == ledger.read(recorded)
    assert told == ["the level equal does not apply to vit: nobody has ever published any"]


def test_models_are_run_by_what_they_read():
    checks = {name: behaviours(name) for name in ("vit_micro", "mamba_micro", "bert_micro", MICRO)}
    assert checks["vit_micro"] is levels.behaviour.CHECKS
    assert checks["mamba_micro"] is levels.text_behaviour.CHECKS
    assert checks["bert_micro"] is checks[MICRO] is levels.encoder_behaviour.CHECKS


def test_the_arena_has_nothing_to_be_equal_to(monkeypatch, capsys):
    monkeypatch.setattr(levels.index, "write", lambda: None)
    prove("long_range_arena", "equal", [])
    assert capsys.readouterr().out == f"the level equal does not apply to long_range_arena: {absent(MICRO)}\n"
    assert absent(MICRO).startswith("no weights of these encoders are public")
    assert absent("mamba_micro") == absent("vit_micro") == ""


def test_a_record_says_how_long_it_took(recorded, monkeypatch):
    moments = iter([10.0, 12.54])
    monkeypatch.setattr(levels.time, "monotonic", lambda: next(moments))
    (record,) = verify("vit", ["built"], ["vit_micro"], path=recorded)
    assert record.seconds == 2.5
