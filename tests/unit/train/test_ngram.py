"""The byte n-gram against counting by hand, and as a distribution."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.train.ngram import ByteNGram


def by_hand(text: bytes, context: bytes, byte: int) -> float:
    """Witten and Bell's recursion, straight from the text."""
    shorter = 1 / 256 if not context else by_hand(text, context[1:], byte)
    if not context:
        follows = Counter(text)
    else:
        length = len(context)
        follows = Counter(text[i + length] for i in range(len(text) - length) if text[i : i + length] == context)
    total, kinds = sum(follows.values()), len(follows)
    return (follows[byte] + kinds * shorter) / (total + kinds) if total else shorter


@given(st.binary(max_size=40), st.binary(min_size=1, max_size=12), st.integers(0, 4))
def test_equals_counting_by_hand(text: bytes, test: bytes, order: int) -> None:
    model = ByteNGram(np.frombuffer(text, np.uint8), order)
    found = model.probabilities(np.frombuffer(test, np.uint8))
    expected = [by_hand(text, test[max(0, i - order) : i], byte) for i, byte in enumerate(test)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_probabilities_of_all_bytes_sum_to_one() -> None:
    model = ByteNGram(np.frombuffer(b"abracadabra" * 3, np.uint8), 3)
    rows = [np.frombuffer(b"xabra" + bytes([byte]), np.uint8) for byte in range(256)]
    assert sum(model.probabilities(row)[-1] for row in rows) == pytest.approx(1, abs=1e-12)


def test_longer_contexts_of_a_text_seen_before_cost_fewer_bits() -> None:
    text = np.frombuffer(b"the cat sat on the mat. " * 20, np.uint8)
    bits = [ByteNGram(text, order).bits_per_byte(text) for order in range(8)]
    assert bits == sorted(bits, reverse=True)
    assert bits[7] < 0.1 < 3 < bits[0]


def test_orders_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="an order of 8 bytes; give 0 to 7"):
        ByteNGram(np.zeros(3, np.uint8), 8)
