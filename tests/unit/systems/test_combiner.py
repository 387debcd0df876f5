"""Combiner: what its file says beyond what every system must show."""

from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.systems.language.combiner import SIZES, CombinerFixed, CombinerLogsparse, data_config, pattern
from anyformer.verify.equal import compare
from anyformer.verify.filling import fill
from anyformer.verify.oracle_of.combiner import SEEN, induced_attention

MIXERS = [CombinerFixed.Config(dim=8, heads=2, span=5), CombinerLogsparse.Config(dim=8, heads=2)]


def made(config) -> Any:
    part = core.resolve(config).build()
    fill(part)
    return part.double().eval().requires_grad_(False)


def drawn(tokens, width=4):
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(2, 2, tokens, width, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("name", ["combiner_micro", "combiner_logsparse_micro"])
def test_equal_to_the_induced_matrix(name):
    assert compare(name, (21,), 2).failures() == []


@pytest.mark.parametrize("config", MIXERS)
@pytest.mark.parametrize("tokens", [1, 5, 16, 23])
def test_rows_sum_to_one_and_nothing_earlier_is_unseen(config, tokens):
    """The matrix that a mixer induces is what it makes of values that are the unit vectors."""
    part = made(config)
    q, k, _ = drawn(tokens)
    units = torch.eye(tokens, dtype=q.dtype).expand(2, 2, tokens, tokens)
    induced = part.mix(q, k, units)
    assert (induced.sum(-1) - 1).abs().max() <= 1e-12
    assert torch.equal(induced > 0, torch.ones_like(induced).tril() > 0)
    expected = induced_attention(q, k, [SEEN[config.part.name](i, part.config) for i in range(tokens)])
    assert (induced - expected).abs().max() <= 1e-12


def test_a_span_of_all_tokens_is_softmax_attention():
    q, k, v = drawn(12)
    expected = (q @ k.mT).masked_fill(torch.ones(12, 12, dtype=torch.bool).triu(1), -torch.inf).softmax(-1) @ v
    for span in (12, 100):
        part = made(CombinerFixed.Config(dim=8, heads=2, span=span))
        assert (part.mix(q, k, v) - expected).abs().max() <= 1e-12
    single = made(CombinerFixed.Config(dim=8, heads=2, span=1))  # spans of one token stand for themselves
    assert (single.mix(q, k, v) - expected).abs().max() <= 1e-12


def test_spans_of_the_logarithmic_pattern_are_the_binary_digits_of_the_place():
    direct, spans = SEEN["combiner_logsparse"](13, None)
    assert direct == [13]
    assert spans == [range(12, 13), range(8, 12), range(8)]


def test_a_new_token_is_summed_up_when_its_block_has_ended():
    """So that the queries of a block do not depend on one another: only what lies behind it asks with their largest."""
    part = made(MIXERS[0])
    q, k, v = drawn(12)
    other = q.clone()
    other[:, :, 2] += 10
    changed = (part.mix(q, k, v) - part.mix(other, k, v)).abs().amax((0, 1, 3)) > 1e-9
    assert changed.tolist() == [i == 2 or i >= 5 for i in range(12)]


@pytest.mark.parametrize("config", MIXERS)
@pytest.mark.parametrize("capacity", [23, 64])
@pytest.mark.parametrize("cut", [(23,), (1,) * 23, (4, 6, 1, 12)])
def test_any_cut_of_a_stream_and_its_end(config, capacity, cut):
    part = made(config)
    x = torch.randn(2, 23, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    state, outs = part.init_state(2, capacity, x), []
    for piece in x.split(cut, 1):
        y, state = part.stream(piece, core.Context(), state)
        outs.append(y)
    assert (torch.cat(outs, 1) - part(x, core.Context())).abs().max() <= 1e-12
    if capacity == 23:
        with pytest.raises(core.UsageError, match="room for 23 tokens, not for 24"):
            part.stream(x[:, :1], core.Context(), state)


def test_a_state_for_less_than_a_block():
    part = made(CombinerFixed.Config(dim=8, heads=2, span=50))
    x = torch.randn(1, 7, 8, dtype=torch.float64)
    state = part.init_state(1, 7, x)
    assert (state.tokens[0].shape[2], state.span_keys.shape[2]) == (7, 0)
    first, state = part.stream(x[:, :6], core.Context(), state)
    last, _ = part.stream(x[:, 6:], core.Context(), state)
    assert (torch.cat((first, last), 1) - part(x, core.Context())).abs().max() <= 1e-12


def test_a_fixed_state_is_a_block_and_the_spans_behind_it():
    state = af.create_model("combiner_mini").init_state(1, 512).blocks[0]
    assert [tuple(t.shape) for t in state.tokens] == [(1, 4, 16, 32)] * 3
    assert tuple(state.span_keys.shape) == (1, 4, 32, 32)


def test_a_span_has_tokens():
    with pytest.raises(core.UsageError, match="cannot have 0 tokens"):
        made(CombinerFixed.Config(dim=8, heads=2, span=0))


def test_the_sizes_of_the_code():
    spec: Any = core.resolve(pattern("combiner_fixed"))
    mixer = spec.blocks[0].mixer
    assert (spec.dim, len(spec.blocks), mixer.heads, mixer.span) == (768, 12, 12, 128)
    assert (spec.embed.context, spec.blocks[0].channel_mixer.hidden) == (2048, 3072)
    with torch.device("meta"):
        parameters = [
            sum(p.numel() for p in af.create_model(name).parameters())
            for name in ("combiner_fixed", "combiner_logsparse")
        ]
    layer = 12 * 768**2 + 13 * 768
    assert parameters == [12 * layer + (32000 + 2048 + 2) * 768 + 32000] * 2


def test_texts():
    assert data_config("combiner_mini") == {"vocabulary": 256, "tokenizer": "bytes", "context": 1024}
    assert data_config("combiner_fixed")["context"] == SIZES["combiner_fixed"]["context"] == 2048
