"""Generating from the streams of mixers is what the whole forward would have said, whatever the rows and their pads."""

import dataclasses
import itertools

import pytest
import torch

from anyformer import core
from anyformer.core import registry
from anyformer.core.errors import AnyformerError, UsageError
from anyformer.data.tokenizers import ByteTokenizer
from anyformer.skeletons.decoder import Decoder
from anyformer.skeletons.generation import generate, rows_of, stream_tokens


def mixers():
    """Every token mixer that streams, the numbers that it leaves open settled."""
    for name, part in registry.parts("token_mixer").items():
        if hasattr(part, "stream") and "stream" not in part.refuses:
            open_fields = [f.name for f in dataclasses.fields(part.Config) if f.default is dataclasses.MISSING]
            yield f"{name}({', '.join(f'{field}=2' for field in open_fields)})"


MIXERS = [*mixers(), "grouped_query_attention(kv_heads=2, window=7, sinks=1)"]
FULL = "grouped_query_attention(kv_heads=1, group=2, position=rotary())"
BOTH = f"1 x {FULL}, 1 x mamba()"
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 3, 2], [12], [0, 13, 13, 13]]


def decoder(layers=BOTH, vocabulary=14, dim=64):
    torch.manual_seed(0)
    # a table of its own for the scores, large: then the likeliest tokens differ, and by more than rounding
    model = core.build(Decoder.pattern(dim=dim, layers=layers, vocabulary=vocabulary, tie=False)).double().eval()
    torch.nn.init.normal_(model.embed.table.weight)
    torch.nn.init.normal_(model.head.linear.weight, std=0.2)
    return model


@pytest.fixture(scope="module")
def mixed():
    return decoder()


@pytest.mark.parametrize("layers", [*MIXERS, f"2 x {FULL}", ", ".join(f"1 x {mixer}" for mixer in [*MIXERS, FULL])])
def test_cached_decoding_is_uncached_decoding(layers):
    model = decoder(layers)
    made = generate(model, torch.tensor([[1, 2, 3], [4, 5, 6]]), max_new_tokens=64)
    assert made.shape == (2, 67)
    with torch.no_grad():  # what comes later changes nothing before it, so that one forward says what 64 would
        wanted = model(made)[:, 2:-1].argmax(-1)
    assert made[:, 3:].tolist() == wanted.tolist()
    assert len(wanted.unique()) > 2


@pytest.mark.parametrize("layers", [*MIXERS, FULL])
def test_rows_of_a_batch_are_rows_alone(layers):
    model = decoder(layers)
    whole = generate(model, PROMPTS, max_new_tokens=12)
    assert whole == [generate(model, [row], max_new_tokens=12)[0] for row in PROMPTS]


@pytest.mark.parametrize("where", ["left", "right", "between"])
def test_pads_are_harmless(mixed, where):
    ids = torch.full((len(PROMPTS), 12), 999)  # outside of the vocabulary: pads may hold anything
    keep = torch.zeros(ids.shape, dtype=torch.bool)
    for row, kept, prompt in zip(ids, keep, PROMPTS, strict=True):
        places = {"left": range(12 - len(prompt), 12), "right": range(len(prompt)), "between": range(12)}[where]
        if where == "between":
            places = sorted(torch.randperm(12)[: len(prompt)].tolist())
        row[list(places)], kept[list(places)] = torch.tensor(prompt), True
    made = generate(mixed, ids, keep=keep, max_new_tokens=9, pad=-1)
    assert [[token for token in row if token >= 0] for row in made.tolist()] == generate(
        mixed, PROMPTS, max_new_tokens=9
    )


def test_a_tensor_gives_a_tensor(mixed):
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    made = generate(mixed, ids, max_new_tokens=5)
    assert made.shape == (2, 8)
    assert made.dtype == torch.int64
    assert torch.equal(made[:, :3], ids)
    assert not made.is_inference()
    assert generate(mixed, ids, max_new_tokens=0).tolist() == ids.tolist()
    assert generate(mixed, ids[:0], max_new_tokens=5).shape == (0, 0)
    assert generate(mixed, [], max_new_tokens=5) == []


def test_draws_are_those_of_the_seed(mixed):
    options = {"max_new_tokens": 20, "temperature": 1.5, "top_k": 9, "top_p": 0.9}
    first = generate(mixed, PROMPTS, seed=3, **options)
    assert first == generate(mixed, PROMPTS, seed=3, **options)
    assert first[:2] == generate(mixed, PROMPTS[:2], seed=3, **options)
    assert first == generate(mixed, PROMPTS, seed=torch.Generator().manual_seed(3), **options)
    assert first != generate(mixed, PROMPTS, seed=4, **options)
    torch.manual_seed(0)
    unseeded = [generate(mixed, PROMPTS, **options) for _ in range(2)]
    torch.manual_seed(0)
    assert unseeded == [generate(mixed, PROMPTS, **options) for _ in range(2)]
    assert unseeded[0] != unseeded[1]
    same = generate(mixed, [[1, 2]] * 4, seed=0, **options)
    assert len({tuple(row) for row in same}) > 1  # rows of one prompt go different ways


def test_draws_are_those_of_the_scores():
    model = decoder(vocabulary=5)
    with torch.no_grad():
        chances = (model(torch.tensor([[1, 2]]))[0, -1] / 2).softmax(0)
    count = 1000
    made = generate(model, [[1, 2]] * count, max_new_tokens=1, temperature=2.0, seed=0)
    shares = torch.tensor([row[-1] for row in made]).bincount(minlength=5) / count
    assert (shares - chances).abs().max() < 4 * 0.5 / count**0.5


def test_every_row_stops_for_itself(mixed):
    free = generate(mixed, PROMPTS, max_new_tokens=20)
    new = [row[len(prompt) :] for row, prompt in zip(free, PROMPTS, strict=True)]
    stop = [new[0][4], new[1][9]]
    wanted = []
    for prompt, row in zip(PROMPTS, new, strict=True):
        ends = [place for place, token in enumerate(row) if token in stop]
        wanted.append(prompt + row[: ends[0] + 1 if ends else None])
    assert generate(mixed, PROMPTS, max_new_tokens=20, stop=stop) == wanted
    assert len({len(row) - len(prompt) for row, prompt in zip(wanted, PROMPTS, strict=True)}) > 1
    padded = generate(mixed, torch.tensor([PROMPTS[0]] * 2), max_new_tokens=20, stop=stop[0], pad=77)
    assert padded.tolist() == [PROMPTS[0] + new[0][: new[0].index(stop[0]) + 1]] * 2


def test_stop_strings_are_found_across_tokens():
    model, words = decoder(vocabulary=256), ByteTokenizer()
    prompt = words.encode("stop")  # the prompt itself stops nothing
    (free,) = generate(model, [prompt], max_new_tokens=30)
    continuation = words.to_bytes(free[len(prompt) :])
    text = continuation[5:8].decode(errors="surrogateescape")
    end = continuation.find(continuation[5:8]) + 3
    assert 4 < end < 30
    for stop in (text, (text, "stop"), (text, 9999)):
        (made,) = generate(model, [prompt], max_new_tokens=30, stop=stop, tokenizer=words)
        assert words.to_bytes(made[len(prompt) :]) == continuation[:end]
    assert generate(model, [prompt], max_new_tokens=30, stop="a longer text", tokenizer=words) == [free]


def test_tokens_stream_as_they_are_chosen(mixed):
    options = {"max_new_tokens": 8, "temperature": 1.0, "seed": 1, "stop": (3, 5)}
    whole = generate(mixed, PROMPTS, **options)
    rows = [list(prompt) for prompt in PROMPTS]
    for step in stream_tokens(mixed, PROMPTS, **options):
        for row, token in step.items():
            rows[row].append(token)
    assert rows == whole
    told = [list(prompt) for prompt in PROMPTS]
    assert generate(mixed, PROMPTS, notify=lambda row, token: told[row].append(token), **options) == whole
    assert told == whole
    first = next(stream_tokens(mixed, PROMPTS, **options))
    assert first == {row: tokens[len(PROMPTS[row])] for row, tokens in enumerate(whole)}


def likeliest(model, prompt, count, stop=()):
    """The continuation with the largest sum of log-probabilities, of all there are."""
    every = torch.tensor(list(itertools.product(range(model.config.vocabulary), repeat=count)))
    with torch.no_grad():
        scores = model(torch.cat((torch.tensor([prompt]).expand(len(every), -1), every), dim=1))
    logs = scores[:, len(prompt) - 1 : -1].log_softmax(-1).gather(-1, every[..., None])[..., 0]
    best, chosen = float("-inf"), []
    for tokens, row in zip(every.tolist(), logs.tolist(), strict=True):
        length = next((place + 1 for place, token in enumerate(tokens) if token in stop), count)
        if sum(row[:length]) > best:
            best, chosen = sum(row[:length]), tokens[:length]
    return [*prompt, *chosen]


@pytest.mark.parametrize("stop", [(), (2,), (0, 1, 2)])
def test_beams_enough_find_the_likeliest_whole(stop):
    model = decoder(vocabulary=4)
    for prompt in ([1], [3, 0, 2]):
        assert generate(model, [prompt], max_new_tokens=4, beams=64, stop=stop) == [likeliest(model, prompt, 4, stop)]


def test_more_beams_are_no_less_likely_and_one_is_greedy(mixed):
    def total(row, prompt):
        with torch.no_grad():
            logs = mixed(torch.tensor([row]))[0].log_softmax(-1)
        return sum(float(logs[place - 1, row[place]]) for place in range(len(prompt), len(row)))

    one, two, many = (generate(mixed, PROMPTS, max_new_tokens=10, beams=beams) for beams in (1, 2, 40))
    assert one == generate(mixed, PROMPTS, max_new_tokens=10)
    sums = [[total(row, prompt) for row, prompt in zip(rows, PROMPTS, strict=True)] for rows in (one, two, many)]
    assert all(best >= greedy - 1e-9 for greedy, best in zip(sums[0], sums[2], strict=True))
    assert sums[2] != sums[0]
    assert two == [generate(mixed, [row], max_new_tokens=10, beams=2)[0] for row in PROMPTS]


def test_beams_stop_at_strings():
    model, words = decoder(vocabulary=256), ByteTokenizer()
    (free,) = generate(model, [[65]], max_new_tokens=6, beams=3)
    stop = words.decode(free[2:4])
    (made,) = generate(model, [[65]], max_new_tokens=6, beams=3, stop=stop, tokenizer=words)
    assert len(made) == 7 or words.decode(made).endswith(stop)
    assert generate(model, [[65]], max_new_tokens=0, beams=3) == [[65]]


def test_a_state_goes_on_where_its_tokens_ended(mixed):
    rows = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    whole = generate(mixed, rows, max_new_tokens=6)
    with torch.no_grad():
        _, state = mixed.stream(rows[:, :3], mixed.init_state(2, 11))
    for _ in range(2):  # it is copied, so that it can be gone on from twice
        made = generate(mixed, rows[:, 3:], max_new_tokens=6, state=state)
        assert made[:, 2:].tolist() == whole[:, 5:].tolist()


def test_rows_of_a_state_are_branches(mixed):
    with torch.no_grad():
        _, state = mixed.stream(torch.tensor([[1, 2, 3], [4, 5, 6]]), mixed.init_state(2, 5))
        swapped = rows_of(state, torch.tensor([1, 0, 1]))
        ahead, _ = mixed.stream(torch.tensor([[7], [7], [7]]), swapped)
        plain, _ = mixed.stream(torch.tensor([[7], [7]]), state)
    torch.testing.assert_close(ahead, plain[[1, 0, 1]], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(plain[0], plain[1])


@pytest.mark.parametrize(
    ("ids", "options", "says"),
    [
        ([[1], []], {}, "the prompt of row 1 is empty"),
        (torch.zeros(1, 0, dtype=torch.int64), {}, "the prompt of row 0 is empty"),
        (torch.ones(1, 2, dtype=torch.int64), {"keep": torch.zeros(1, 2, dtype=torch.bool)}, "row 0 is empty"),
        ([[1, 14]], {}, "row 0 has the token 14, the model knows 0 to 13"),
        ([[1, -1]], {}, "row 0 has the token -1"),
        ([1, 2], {}, "prompts are rows of whole numbers"),
        ([["a"]], {}, "prompts are rows of whole numbers"),
        ("text", {}, "prompts are rows of whole numbers"),
        (torch.ones(1, 2), {}, "token identifiers are whole numbers"),
        (torch.ones(2, dtype=torch.int64), {}, "token identifiers are whole numbers"),
        ([[1]], {"keep": torch.ones(1, 1, dtype=torch.bool)}, "leave keep out"),
        (
            torch.ones(1, 2, dtype=torch.int64),
            {"keep": torch.ones(1, 3, dtype=torch.bool)},
            "keep is bool of the shape",
        ),
        ([[1]], {"max_new_tokens": -1}, "max_new_tokens=-1"),
        ([[1]], {"beams": 0}, "beams=0"),
        ([[1]], {"beams": 2, "temperature": 1.0}, "leave temperature at 0"),
        ([[1]], {"temperature": -1.0}, "temperature=-1.0"),
        ([[1]], {"stop": "end"}, "the stop string 'end' needs a tokenizer"),
        ([[1]], {"stop": ("",), "tokenizer": ByteTokenizer()}, "a stop string is empty"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused(mixed, ids, options, says):
    with pytest.raises(UsageError, match=says):
        generate(mixed, ids, **({"max_new_tokens": 3} | options))


def test_refusals_of_a_stream_come_before_its_first_token(mixed):
    with pytest.raises(UsageError, match="row 0 is empty"):
        stream_tokens(mixed, [[]], max_new_tokens=3)
    with pytest.raises(UsageError, match="a Linear does not generate; give a decoder"):
        generate(torch.nn.Linear(2, 2), [[1]], max_new_tokens=3)


def test_a_fixed_context_is_not_overrun():
    model = decoder()
    model.data_config["context"] = 8
    assert len(generate(model, [[1, 2, 3]], max_new_tokens=5)[0]) == 8
    with pytest.raises(UsageError, match=r"3 tokens and 6 new ones do not fit .* context of 8; .* at most 5"):
        generate(model, [[1, 2, 3]], max_new_tokens=6)
    with torch.no_grad():
        _, state = model.stream(torch.tensor([[1, 2, 3]]), model.init_state(1, 9))
    with pytest.raises(UsageError, match="a prompt of 4 tokens and 5 new ones"):
        generate(model, [[1]], max_new_tokens=5, state=state)


def test_states_of_other_models_and_rows_are_refused(mixed):
    other = decoder(vocabulary=15)
    with pytest.raises(UsageError, match="the state belongs to another model"):
        generate(mixed, [[1]], max_new_tokens=2, state=other.init_state(1, 5))
    with pytest.raises(UsageError, match="the state is not of 2 rows"):
        generate(mixed, [[1], [2]], max_new_tokens=2, state=mixed.init_state(1, 5))


def test_scores_that_are_not_finite_name_the_weights():
    model = decoder()
    weight = next(name for name, _ in model.named_parameters() if "channel_mixer" in name)
    model.get_parameter(weight).data[0, 0] = float("nan")
    for beams in (1, 2):
        with pytest.raises(AnyformerError, match=f"the weights hold NaN or infinity .*{weight}"):
            generate(model, [[1]], max_new_tokens=3, beams=beams)
    large = decoder().float()
    for parameter in large.parameters():
        parameter.data *= 1e30
    with pytest.raises(AnyformerError, match="the weights are finite; compute in float32"):
        generate(large, [[1]], max_new_tokens=3)
