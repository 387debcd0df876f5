"""JSON and YAML of plain values only: no repeated keys, no tags, no aliases, nothing endless."""

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer import core
from anyformer.core import serial

from .random_patterns import refusal

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
yaml_pieces = st.sampled_from(
    (
        *"[]{}:,-?&*!|>'\"%@`#\n\t \\.=<~0123456789eE+_xob",
        *("a", "b: ", "- ", "\n  ", "&a ", "*a", "!!", "<<: ", "---\n"),
        *(
            "!!python/object:os.system ",
            "2001-99-99",
            "1:30",
            ".nan",
            ".inf",
            "0x_",
            "true",
            "null",
            "\u2028",
            "\ufeff",
        ),
    )
)


@given(json_values)
def test_json_is_read_as_json(value):
    assert serial.parse_json(json.dumps(value), "here") == value


words = st.text(string.ascii_letters, min_size=1)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-999, 999).map(lambda n: n / 8) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
)


@given(plain_values)
def test_plain_json_is_yaml_too(value):
    assert serial.parse_yaml(json.dumps(value), "here") == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"b": {"a": 1, "a": 1}}', "the key 'a' stands twice"),
        ("[NaN]", "NaN is not allowed"),
        ("[Infinity]", "Infinity is not allowed"),
        ("[-Infinity]", "-Infinity is not allowed"),
        ("{", "not JSON"),
        ("", "not JSON"),
        ("{'a': 1}", "not JSON (Expecting property name enclosed in double quotes at line 1, column 2)"),
        ("[" * 100_000, "at most 32 levels deep"),
        ("9" * 5000, "not JSON that can be read"),
        ("[" + "1," * 500_000 + "1]", "here may be at most 1000000 bytes long, this one has 1000003"),
    ],
    ids=lambda value: value[:20],
)
def test_json_that_is_refused(text, words):
    with pytest.raises(core.UsageError) as caught:
        serial.parse_json(text, "here")
    assert words in str(caught.value)
    assert str(caught.value).startswith("here")


LAUGHS = "a: &a [x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "a key stands twice"),
        ("{a: {b: 1, b: 1}}", "a key stands twice"),
        ('{1: a, "1": b}', "a key stands twice"),
        ("? [a, b]\n: 1", "a key stands twice, or is no plain word"),
        ("a: &x 1\nb: *x", "aliases are not allowed"),
        (LAUGHS, "aliases are not allowed"),
        ("a: &a [*a]", "aliases are not allowed"),
        ("base: &b {x: 1}\nmore: {<<: *b}", "aliases are not allowed"),
        ("!!python/object/apply:os.system ['touch canary']", "tags are not allowed"),
        ("a: !!python/name:os.system", "tags are not allowed"),
        ("!!set {a, b}", "tags are not allowed"),
        ("!!binary aGVsbG8=", "tags are not allowed"),
        ("!part {a: 1}", "tags are not allowed"),
        ("a: !<tag:yaml.org,2002:int> 3", "tags are not allowed"),
        ("a: [1, 2", "not YAML of plain values"),
        ("a: 2001-99-99", "not YAML of plain values (month must be in 1..12)"),
        ("a: " + "9" * 5000, "not YAML of plain values"),
        ("- 1\n---\n- 2", "expected a single document"),
        ("\0", "not YAML of plain values"),
        ("[" * 500, "at most 32 levels deep"),
        ("a" * 1_000_001, "here may be at most 1000000 bytes long, this one has 1000001"),
    ],
    ids=lambda value: value[:20].replace("\0", "NUL"),
)
def test_yaml_that_is_refused(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(core.UsageError) as caught:
        serial.parse_yaml(text, "here")
    assert words in str(caught.value)
    assert str(caught.value).startswith("here")
    assert list(tmp_path.iterdir()) == [], "something in the text was executed"


def test_yaml_as_people_write_it():
    text = (
        "skeleton: isotropic  # a remark\ndim: 64\nlayers: 3 x attention(heads=2)\nsizes: [1, 2.5]\nmore: {deep: yes}\n"
    )
    assert serial.parse_yaml(text, "here") == {
        "skeleton": "isotropic",
        "dim": 64,
        "layers": "3 x attention(heads=2)",
        "sizes": [1, 2.5],
        "more": {"deep": True},
    }


@settings(max_examples=400)
@given(st.lists(yaml_pieces, max_size=30).map("".join) | st.text(max_size=60))
def test_arbitrary_text_is_read_or_refused(text):
    for parse in (serial.parse_json, serial.parse_yaml):
        assert refusal(parse, text, "here")[:4] in ("", "here")
