"""Packed sequences stand at the starts of chunks, each chunk belonging to one; the layout is undone to the bit."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from anyformer.core.errors import UsageError
from anyformer.ops.linear_attention import linear_attention
from anyformer.ops.packed import pack

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@given(sizes=st.lists(st.integers(0, 9), max_size=6), chunk=st.sampled_from([1, 2, 4, 8]), dim=st.sampled_from([1, 2]))
def test_every_chunk_belongs_to_one_sequence(sizes, chunk, dim):
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    tokens = sum(sizes)
    shape = (1, 2, tokens, 3) if dim == 2 else (1, tokens, 3)
    x = torch.arange(1, tokens + 1).view(tokens, 1).expand(shape).clone()
    packing = pack(offsets, x, chunk, dim)
    aligned = packing.align(x, dim)
    assert aligned.shape[dim] == len(packing.first) * chunk == (tokens // chunk + len(sizes)) * chunk
    assert torch.equal(packing.restore(aligned, dim), x)

    owner = [-1] + [i for i, size in enumerate(sizes) for _ in range(size)]
    found = []
    cells = aligned.movedim(dim, 0).flatten(1)[:, 0].view(-1, chunk).tolist()
    for number, places in enumerate(cells):
        real = [place for place in places if place]
        assert places == real + [0] * (chunk - len(real))
        if real:
            assert {owner[place] for place in real} == {int(packing.sequence[number])}
            assert bool(packing.first[number]) == (real[0] - 1 == int(offsets[packing.sequence[number]]))
        found += real
    assert found == list(range(1, tokens + 1))


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_states_before_and_after(sizes):
    """With a state that counts its chunks, a sequence ends at its number of chunks, an empty one where it began."""
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    packing = pack(offsets, torch.zeros(1, 1, sum(sizes)), 4)
    state = 100.0 * torch.arange(1, len(sizes) + 1)
    opening, carried, after = packing.opening(state), torch.tensor(torch.nan), []
    for number, first in enumerate(packing.first):
        carried = (opening[number] if first else carried) + 1
        after.append(carried)
    after = torch.stack(after) if after else state[:0]
    expected = [100.0 * (i + 1) + -(-size // 4) for i, size in enumerate(sizes)]
    assert packing.final(after, state).tolist() == expected


def test_packed_sequences_stand_in_one_row():
    x = torch.zeros(2, 1, 5, 3)
    with pytest.raises(UsageError, match="batch of 1, not of 2: lay them along the tokens"):
        linear_attention(x, x, x, offsets=torch.tensor([0, 5]))


@pytest.mark.parametrize("offsets", [[1, 5], [0, 4], [0, 6], [0, 3, 2, 5], [0]])
def test_offsets_that_do_not_rise_to_the_number_of_tokens(offsets):
    with pytest.raises(UsageError, match=r"must rise from 0 to the number of tokens, 5, not \[.*\]"):
        pack(torch.tensor(offsets), torch.zeros(1, 1, 5, 3), 4)
