"""Patterns as people write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer import core
from anyformer.core import config, registry
from anyformer.core.pattern import parse_part, parse_pattern
from anyformer.parts.token_mixers.attention import Attention
from anyformer.parts.token_mixers.depthwise import DepthwiseConvolution

from .random_patterns import refusal

pieces = st.sampled_from(
    (
        *("(", ")", ",", "=", " x ", "3", "0", "1.5", "2 x ", "attention", "heads=2", "mlp(ratio=2)"),
        *(
            "depthwise_convolution(kernel=3)",
            "true",
            "a",
            "²",
            "-",
            "\n",
            "norm=layer_norm()",
            "1e999",
            "part",
            "9" * 50,
        ),
    )
)


def convolution(kernel=7):
    return DepthwiseConvolution.Config(kernel=kernel)


def attention(heads):
    return Attention.Config(heads=heads)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        (
            "3 x depthwise_convolution(kernel=7), 1 x attention(heads=2)",
            (convolution(), convolution(), convolution(), attention(2)),
        ),
        ("attention(heads=2)", (attention(2),)),
        ("  2x attention( heads = 2 )\n", (attention(2), attention(2))),
        ("2 x (depthwise_convolution, attention(heads=1))", (convolution(), attention(1)) * 2),
        (
            "2 x (2 x depthwise_convolution(kernel=3), attention(heads=1)), attention(heads=4)",
            (convolution(3), convolution(3), attention(1)) * 2 + (attention(4),),
        ),
        ("(attention(heads=3))", (attention(3),)),
        ("attention(heads=2, scale=0.25)", (Attention.Config(heads=2, scale=0.25),)),
        ("attention(heads=2, scale=1e-2, )", (Attention.Config(heads=2, scale=0.01),)),
    ],
)
def test_a_list_of_layers(text, layers):
    assert parse_pattern(text) == layers


def test_settings_are_words_truths_and_parts():
    (mixer,) = parse_pattern("mlp(activation=relu, fc1=linear(bias=false), fc2=linear(bias=true))")
    linear = registry.part("linear").Config
    assert (mixer.activation, mixer.fc1, mixer.fc2) == ("relu", linear(bias=False), linear(bias=True))


def test_repeated_layers_are_one_object():
    first, second, third = parse_pattern("2 x attention(heads=2), attention(heads=2)")
    assert first is second
    assert first == third


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected more, got the end"),
        ("3 x", "expected more, got the end"),
        ("3 attention(heads=2)", "expected 'x', got 'attention'"),
        ("attention(heads=2", "expected ',', got the end"),
        ("attention(heads=2))", "cannot read on from ')'"),
        ("attention(heads 2)", "expected '=', got '2'"),
        ("attention(heads=)", "expected a value, got ')'"),
        ("attention(heads=2, heads=3)", "'heads' stands twice"),
        ("attention(part=mlp)", "'part' stands twice"),
        ("attention(2=2)", "part 'attention' has no '2'"),
        ("attention(heads=-2)", "cannot read '-2)'"),
        ("attention; mlp", "cannot read '; mlp'"),
        ("atention(heads=2)", "no part is named 'atention'; did you mean attention"),
        ("1 x attention(heads=2), 2 x atention", "no part is named 'atention'"),
        ("attention(hads=2)", "part 'attention' has no 'hads'; did you mean heads"),
        ("attention(heads=two)", "expected a whole number, got 'two'"),
        ("attention(heads=2, scale=1e999)", "scale: expected a number, got inf"),
        ("0 x attention(heads=2)", "a count is at least 1, and a pattern has at most 10000 layers"),
        ("10001 x attention(heads=2)", "at most 10000 layers"),
        ("9999 x (9999 x attention(heads=2))", "at most 10000 layers"),
        ("100 x (100 x (100 x (100 x (100 x attention(heads=2)))))", "at most 10000 layers"),
        ("9999999999999999999999999999 x attention(heads=2)", "at most 10000 layers"),
        (f"{'9' * 5000} x attention", "cannot read '9999"),
        ("२ x attention(heads=2)", "cannot read '२ x attention"),
        (f"{'(' * 40}attention(heads=2){')' * 40}", "at most 32 brackets deep"),
        ("(" * 100_000, "at most 32 brackets deep"),
        ("a(b=" * 5000, "at most 32 brackets deep"),
        (f"attention(heads=2){' ' * 2_000_000}x", "a pattern may be at most 1000000 bytes long"),
        ("3 x 4 x attention(heads=2)", "expected the name of a part, got '4'"),
        ("attention(heads=3(2))", "expected the name of a part, got '3'"),
    ],
    ids=lambda value: value[:40],
)
def test_what_cannot_be_read_is_named(text, words):
    with pytest.raises(core.UsageError) as caught:
        parse_pattern(text)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300, "a sentence, not the whole text again"


def test_the_longest_pattern_is_accepted():
    layers = parse_pattern(f"{config.MAX_LAYERS} x attention(heads=2)")
    assert len(layers) == config.MAX_LAYERS


def test_one_part_where_one_is_wanted():
    assert parse_part("attention(heads=2)") == attention(2)
    with pytest.raises(core.UsageError, match="expected one part, got 2"):
        parse_part("2 x attention(heads=2)")


@settings(max_examples=400)
@given(st.lists(pieces, max_size=25).map("".join) | st.text(max_size=40))
def test_arbitrary_text_is_read_or_refused(text):
    assert len(refusal(parse_pattern, text)) < 400
