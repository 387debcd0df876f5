"""Specs as JSON: out and in without loss, and nothing else comes in."""

import copy
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer import core
from anyformer.core import registry, serial
from anyformer.core.errors import shown

from .random_patterns import ALL_MODELS, models, refusal

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
names = st.sampled_from((*registry.parts(), "part", "dim", "heads", "blocks", "norm", "init", "value"))
plain = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | st.text(max_size=5), inner, max_size=5)
)


def spec_of(name):
    system = registry.system_of(name)
    return core.resolve(system.pattern(name, **({"drop_path_rate": 0.1} if system.field == "vision" else {})))


@pytest.mark.parametrize("name", ALL_MODELS)
def test_the_spec_of_every_model_goes_out_and_in(name):
    spec = spec_of(name)
    again = serial.loads(serial.dumps(spec))
    assert again == spec
    assert repr(again) == repr(spec), "1 and 1.0 are equal, and not the same"


@given(models)
def test_random_patterns_go_out_and_in(pattern):
    assert serial.from_data(json.loads(json.dumps(serial.to_data(pattern)))) == pattern
    spec = core.resolve(pattern)
    assert serial.loads(serial.dumps(spec)) == spec


def test_linear_nodes_are_left_out_until_they_are_something_else():
    spec = spec_of("vit_tiny_patch16_224")
    assert '"linear"' not in serial.dumps(spec)
    other = core.edit(spec, {"blocks.0.mixer.qkv.bias": False})
    assert serial.to_data(other)["blocks"][0]["mixer"]["qkv"] == {
        "part": "linear",
        "inputs": 192,
        "outputs": 576,
        "bias": False,
        "init": {"init": "truncated_normal", "value": 0.02},
        "bias_init": {"init": "constant", "value": 0.0},
    }
    assert serial.loads(serial.dumps(other)) == other


def test_every_other_number_is_written_out():
    data = serial.to_data(spec_of("vit_tiny_patch16_224"))["blocks"][0]["mixer"]
    assert data == {"part": "attention", "dim": 192, "heads": 3, "head_dim": 64, "scale": 64**-0.5}


def test_nothing_where_something_is_the_default_is_written_down(own_parts):
    class Optional(core.Norm, name="optional_norm"):
        """A norm whose number may be left out."""

        class Config(core.Config):
            """``eps`` has a default, and may be nothing."""

            eps: float | None = 0.5
            inner: core.Config | None = None

    assert serial.to_data(Optional.Config()) == {"part": "optional_norm", "eps": 0.5}
    assert serial.to_data(Optional.Config(eps=None)) == {"part": "optional_norm", "eps": None}
    for config in (Optional.Config(), Optional.Config(eps=None)):
        assert serial.from_data(serial.to_data(config)) == config


def block(**changes: Any) -> dict[str, Any]:
    spec = serial.to_data(spec_of("vit_micro"))["blocks"][0]
    return {**copy.deepcopy(spec), **changes}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (7, 'the root: expected a mapping with a key "part" that names the part, got 7'),
        ({"dim": 3}, "the root: expected a mapping with a key \"part\" that names the part, got {'dim': 3}"),
        ({"part": ["mlp"]}, "expected a mapping with a key \"part\" that names the part, got {'part': ['mlp']}"),
        ({"part": "atention"}, "no part is named 'atention'; did you mean attention"),
        ({"part": "os.system"}, "no part is named 'os.system'"),
        ({"part": "attention", "hads": 2}, "the root: part 'attention' has no 'hads'; did you mean heads"),
        ({"part": "attention"}, "the root: part 'attention' needs heads"),
        ({"part": "attention", "heads": "two"}, "heads: expected a whole number, got 'two'"),
        ({"part": "attention", "heads": 2.0}, "heads: expected a whole number, got 2.0"),
        ({"part": "attention", "heads": True}, "heads: expected a whole number, got True"),
        ({"part": "attention", "heads": None}, "heads: expected a whole number, got None"),
        ({"part": "attention", "heads": 2, "scale": float("nan")}, "scale: expected a number, got nan"),
        ({"part": "attention", "heads": 2, "scale": float("inf")}, "scale: expected a number, got inf"),
        ({"part": "attention", "heads": 2, "scale": 10**400}, "scale: expected a number, got 1000"),
        ({"part": "attention", "heads": 2, "scale": True}, "scale: expected a number, got True"),
        ({"part": "linear", "bias": 1}, "bias: expected true or false, got 1"),
        ({"part": "mlp", "activation": "swish"}, "activation: expected one of 'gelu', 'relu', got 'swish'"),
        ({"part": "mlp", "activation": ["gelu"]}, "activation: expected one of 'gelu', 'relu', got ['gelu']"),
        ({"part": "mlp", "fc1": "linear"}, 'fc1: expected a mapping with a key "part"'),
        ({"part": "mlp", "fc1": {"part": "linear", "rank": 3}}, "fc1: part 'linear' has no 'rank'"),
        ({"part": "layer_norm", "eps": None}, "eps: expected a number, got None"),
        ({"part": "linear", "init": "zeros"}, "init: an initialiser is {init: one of constant, normal"),
        ({"part": "linear", "init": {"init": "magic"}}, "init: an initialiser is"),
        ({"part": "linear", "init": {"init": "normal", "value": float("nan")}}, "init: an initialiser is"),
        ({"part": "linear", "init": {"init": "normal", "std": 1.0}}, "init: an initialiser is"),
        ({"part": "linear", "init": {"init": "normal", "value": -1}}, "spread is not negative"),
        ({"part": "stage", "dim": 4, "blocks": {"0": 1}}, "blocks: expected a list, got {'0': 1}"),
        ({"part": "stage", "dim": 4, "blocks": [block(norm1=3)]}, "blocks.0.norm1: expected a mapping"),
        ({"part": "stage", "dim": 4, "blocks": [0] * 10_001}, "blocks: at most 10000 entries, got 10001"),
        ({"part": "mlp", 3: 4}, "part 'mlp' has no 3"),
    ],
    ids=lambda value: shown(value)[:40],
)
def test_what_is_wrong_is_named(data, sentence):
    with pytest.raises(core.UsageError) as caught:
        serial.from_data(data)
    assert sentence in str(caught.value)


def test_a_part_may_not_be_deeper_than_any_model_is():
    data: dict[str, Any] = {"part": "linear"}
    for _ in range(serial.MAX_DEPTH):
        data = {"part": "token_table", "table": data}
    assert serial.from_data(data)
    with pytest.raises(core.UsageError, match="at most 32 levels deep"):
        serial.from_data({"part": "token_table", "table": data})


@settings(max_examples=150)
@given(plain)
def test_arbitrary_data_is_read_or_refused(data):
    assert len(refusal(lambda: core.resolve(serial.from_data(data)))) < 400


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, value in below for place in places(value, (*path, key)))]


PATTERNS = [serial.to_data(spec_of(name)) for name in ("vit_micro", "swin_micro", "edgenext_micro")]


@settings(max_examples=300)
@given(st.data(), st.sampled_from(PATTERNS), plain | st.integers(-5, 5) | st.just(2**62))
def test_a_spec_with_one_thing_changed_is_read_or_refused(choice, data, value):
    place = choice.draw(st.sampled_from(places(data)[1:]))
    data = copy.deepcopy(data)
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert len(refusal(lambda: core.resolve(serial.from_data(data)))) < 400


def given_kinds(*, whole: int, rate: float = 0.5, size: int | tuple[int, int] | None = None, rows: Sequence[str] = ()):
    """What ``arguments`` reads the types of."""


@pytest.mark.parametrize(
    ("data", "read"),
    [
        ({"whole": 3}, {"whole": 3}),
        ({"whole": 3, "rate": 1}, {"whole": 3, "rate": 1.0}),
        ({"whole": 3, "size": [2, 3]}, {"whole": 3, "size": (2, 3)}),
        ({"whole": 3, "size": 4, "rows": ["a", "b"]}, {"whole": 3, "size": 4, "rows": ("a", "b")}),
        ({"whole": 3, "size": None}, {"whole": 3, "size": None}),
    ],
)
def test_arguments_are_read_by_their_types(data, read):
    assert serial.arguments(given_kinds, data, "here") == read


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({}, "here: whole must be given"),
        ({"whole": 1, "rat": 1}, "here: there is no 'rat'; did you mean rate?"),
        ({"whole": 1, 5: 1}, "here: there is no 5"),
        ({"whole": "1"}, "here: whole: expected a whole number, got '1'"),
        ({"whole": None}, "here: whole: expected a whole number, got None"),
        ({"whole": 1, "size": [1, 2, 3]}, "here: size: expected 2 values, got 3"),
        ({"whole": 1, "rows": [1]}, "here: rows.0: expected a word, got 1"),
        ({"whole": 1, "rows": "ab"}, "here: rows: expected a list, got 'ab'"),
    ],
)
def test_arguments_of_other_types_are_refused(data, sentence):
    with pytest.raises(core.UsageError) as caught:
        serial.arguments(given_kinds, data, "here")
    assert str(caught.value) == sentence
