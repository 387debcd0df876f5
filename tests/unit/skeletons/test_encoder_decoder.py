"""An encoder-decoder hosts any mixers, streams its target, generates from its sources, and refuses what it cannot take."""

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.core.errors import UsageError
from anyformer.parts.embeds.token_table import Tokens
from anyformer.skeletons.encoder_decoder import EncoderDecoder, Texts

VOCABULARY = 14
SIDES = {
    "encoder": "1 x relative_attention(kv_heads=2), 1 x attention(heads=4)",
    "decoder": "1 x causal_relative_attention(kv_heads=2), 1 x mamba",
}
SOURCES = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [12]]


def made(**changes):
    torch.manual_seed(0)
    text = {
        "skeleton": "encoder_decoder",
        "dim": 32,
        "vocabulary": VOCABULARY,
        "cross_mixer": "cross_attention(kv_heads=2)",
    }
    model = af.build_hybrid({**text, **SIDES, "tie": False, **changes}).double().eval()
    # large, so that the likeliest tokens differ, and by more than rounding
    torch.nn.init.normal_(model.decoder.embed.table.weight)
    torch.nn.init.normal_(model.head.linear.weight, std=0.2)
    for name, parameter in model.named_parameters():
        if "cross_mixer" in name:
            torch.nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture(scope="module")
def model():
    return made()


def ids(*shape, seed=1):
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def padded():
    """The sources with what pads them."""
    keep = torch.arange(7) < torch.tensor([[len(row)] for row in SOURCES])
    source = torch.full((3, 7), 13)
    source[keep] = torch.tensor([token for row in SOURCES for token in row])
    return source, keep


def test_one_table_serves_source_target_and_scores():
    tied = made(tie=True)
    assert tied.encoder.embed.table.weight is tied.decoder.embed.table.weight
    assert tied.head.linear.weight is tied.decoder.embed.table.weight
    assert (tied.spec.vocabulary, tied.spec.encoder.dim, tied.spec.encoder.vocabulary) == (VOCABULARY, 32, VOCABULARY)


@torch.no_grad()
def test_the_whole_source_reaches_every_score_and_the_target_only_later_ones(model):
    source, target = ids(1, 6), ids(1, 5, seed=2)
    before = model(Texts(source, target))
    for place in range(6):
        other = source.clone()
        other[0, place] = (other[0, place] + 1) % VOCABULARY
        assert ((model(Texts(other, target)) - before).abs().amax(-1) > 1e-6).all()
    for place in range(5):
        other = target.clone()
        other[0, place] = (other[0, place] + 1) % VOCABULARY
        moved = (model(Texts(source, other)) - before).abs().amax(-1)[0] > 1e-6
        assert moved.tolist() == [later >= place for later in range(5)]


@torch.no_grad()
def test_pads_of_both_texts_are_harmless(model):
    (source, keep), target, kept = padded(), ids(3, 6), torch.arange(6) < torch.tensor([[6], [2], [4]])
    given = model(Texts(source, target, keep, kept))
    for row, words in enumerate(SOURCES):
        alone = model(Texts(torch.tensor([words]), target[row : row + 1, kept[row]]))
        torch.testing.assert_close(given[row, kept[row]], alone[0], rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_stream_holds_what_it_attends_to(model):
    (source, keep), target = padded(), ids(3, 9)
    whole = model(Texts(source, target, keep))
    state, given = model.init_state(3, 9, model.encode(Tokens(source, keep))), []
    assert state.blocks[0].memory.keys.shape == (3, 2, 7, 16)
    model.encoder.forward = None  # the source is read once
    for piece in target.split((4, 1, 1, 3), 1):
        scores, state = model.stream(piece, state)
        given.append(scores)
    del model.encoder.forward
    torch.testing.assert_close(torch.cat(given, 1), whole, rtol=0, atol=1e-12)


@torch.no_grad()
def test_stages_are_the_memory_and_the_decoders_blocks(model):
    source, target = ids(2, 6), ids(2, 5)
    stages, final, context = model.stages_of(Texts(source, target))
    memory, of_source = model.encode(source)
    assert torch.equal(stages[0], memory)
    assert of_source.layout.grid == (6,)
    assert [tuple(stage.shape) for stage in stages[1:]] == [(2, 5, 32)] * 2
    assert context.memory is not None
    assert torch.equal(model.forward_head(final, context), model(Texts(source, target)))


@torch.no_grad()
def test_a_target_alone_has_the_start_token_as_its_source(model):
    target, starts = ids(2, 5), torch.zeros(2, 1, dtype=torch.int64)
    wanted = model(Texts(starts, target))
    assert torch.equal(model(target), wanted)
    assert torch.equal(model(Tokens(target)), wanted)
    state = model.init_state(2, 5)
    torch.testing.assert_close(model.stream(target, state)[0], wanted, rtol=0, atol=1e-12)


@torch.no_grad()
def test_greedy_generation_is_that_of_whole_forwards(model):
    made = model.generate(SOURCES, max_new_tokens=8)
    assert [row[0] for row in made] == [0, 0, 0]
    for source, row in zip(SOURCES, made, strict=True):
        scores = model(Texts(torch.tensor([source]), torch.tensor([row])))
        assert scores[0, :-1].argmax(-1).tolist() == row[1:]
        assert model.generate([source], max_new_tokens=8) == [row]
    assert len({tuple(row) for row in made}) == 3
    source, keep = padded()
    given = model.generate(source, keep=keep, max_new_tokens=8)
    assert given.tolist() == made


def test_generation_takes_the_options_of_every_decoder(model):
    drawn = {"max_new_tokens": 6, "temperature": 1.5, "top_k": 9, "top_p": 0.9, "seed": 3}
    made = model.generate(SOURCES, **drawn)
    assert made == model.generate(SOURCES, **drawn)
    assert made != model.generate(SOURCES, **{**drawn, "seed": 4})
    (stopped,) = model.generate(SOURCES[:1], **drawn, stop=made[0][2])
    assert stopped == made[0][: made[0].index(made[0][2], 1) + 1]
    assert [row[:2] for row in model.generate(SOURCES, max_new_tokens=2, start=(5, 6))] == [[5, 6]] * 3
    assert model.generate(SOURCES, max_new_tokens=0) == [[0]] * 3
    assert model.generate([], max_new_tokens=3) == []
    one, many = (model.generate(SOURCES, max_new_tokens=5, beams=beams) for beams in (1, 6))

    def likelihood(source, row):
        with torch.no_grad():
            logs = model(Texts(torch.tensor([source]), torch.tensor([row])))[0, :-1].log_softmax(-1)
        return float(logs.gather(1, torch.tensor(row[1:])[:, None]).sum())

    for source, greedy, best in zip(SOURCES, one, many, strict=True):
        assert likelihood(source, best) >= likelihood(source, greedy) - 1e-12


def test_the_start_token_is_the_models(model):
    other = made()
    other.data_config["start"] = 7
    assert [row[0] for row in other.generate(SOURCES, max_new_tokens=1)] == [7, 7, 7]


def test_it_is_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    again, raw = af.from_pretrained(tmp_path), Texts(ids(2, 4), ids(2, 3))
    assert again.spec == model.spec
    assert torch.equal(again(raw), model(raw))


def test_channel_mixers_may_count():
    model = made(channel_mixer="capped_experts(capacity=2, count=3)")
    source, target = ids(2, 6), ids(2, 9)
    with torch.no_grad():
        whole, state = model(Texts(source, target)), model.init_state(2, 9, model.encode(source))
        given = []
        for piece in target.split((5, 1, 3), 1):
            scores, state = model.stream(piece, state)
            given.append(scores)
    torch.testing.assert_close(torch.cat(given, 1), whole, rtol=0, atol=1e-12)
    sink = {}
    model(Texts(source, target), sink)
    assert len(sink["load_balance"]) == 4


def test_layers_may_be_whole_blocks():
    block = (
        "cross_block(norm1=rms_norm(), mixer=mamba(), norm2=rms_norm(), cross_mixer=cross_attention(), "
        "norm3=rms_norm(), channel_mixer=mlp())"
    )
    model = made(decoder=f"2 x {block}")
    assert [layer.mixer.name for layer in model.decoder.blocks] == ["mamba", "mamba"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": "1 x attention(heads=4)"}, "block 0: 'attention' cannot stand in a decoder"),
        (
            {"decoder": "1 x mixer_block(norm=rms_norm(), mixer=mamba())"},
            "decoder block 0 must be a cross_block, a mixer_block",
        ),
        ({"decoder": "1 x mlp"}, "a layer is a token mixer or a block, 'mlp' is a channel_mixer"),
        ({"encoder": "1 x mlp"}, "a layer is a token mixer or a block, 'mlp' is a channel_mixer"),
        ({"cross_mixer": "mamba"}, "cross_mixer must be one, such as cross_attention; a token_mixer reads no memory"),
    ],
)
def test_patterns_that_do_not_go_together(changes, message):
    with pytest.raises(UsageError, match=message):
        made(**changes)


@pytest.mark.parametrize("what", ["encoder", "decoder"])
def test_its_sides_are_what_they_are_called(model, what):
    other = {"encoder": model.spec.encoder.embed, "decoder": model.spec.encoder}
    with pytest.raises(UsageError, match=f"the {what} of an encoder_decoder is one, not a "):
        EncoderDecoder(model.spec.replace(**{what: other[what]}))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ([[1], []], {}, "the source of row 1 is empty"),
        (torch.zeros(1, 0, dtype=torch.int64), {}, "the source of row 0 is empty"),
        (
            torch.ones(1, 2, dtype=torch.int64),
            {"keep": torch.zeros(1, 2, dtype=torch.bool)},
            "the source of row 0 is empty",
        ),
        ([[1, VOCABULARY]], {}, "row 0 has the token 14, the model knows 0 to 13"),
        ([[1]], {"start": ()}, "the prompt of row 0 is empty"),
        ([[1]], {"max_new_tokens": -1}, "max_new_tokens=-1"),
        ([[1]], {"temperature": -1.0}, "temperature=-1.0"),
    ],
)
def test_what_cannot_be_generated_from_is_refused(model, source, options, message):
    with pytest.raises(UsageError, match=message):
        model.generate(source, **({"max_new_tokens": 3} | options))


def test_what_cannot_be_read_is_refused(model):
    with pytest.raises(UsageError, match="the source is empty; give at least one token"):
        model(Texts(ids(2, 0), ids(2, 3)))
    with pytest.raises(UsageError, match="sources are not packed; give them as rows with pads"):
        model.encode(Tokens(ids(1, 5), offsets=torch.tensor([0, 2, 5])))
    with pytest.raises(UsageError, match="there are 2 sources for 3 targets; give one a row"):
        model(Texts(ids(2, 4), ids(3, 3)))


def test_states_that_do_not_fit_are_refused(model):
    with pytest.raises(UsageError, match="the memory has 2 rows, not 3; encode as many sources as targets"):
        model.init_state(3, 5, model.encode(ids(2, 4)))
    other = made(vocabulary=15)
    with pytest.raises(UsageError, match="the state belongs to another model"):
        model.stream(ids(1, 2), other.init_state(1, 5))
    with pytest.raises(UsageError, match="a stream of 6 tokens needs a state of that capacity, not 5"):
        model.stream(ids(1, 6), model.init_state(1, 5))
    with pytest.raises(UsageError, match="a stream takes the target alone; the source is in the state"):
        model.stream(Texts(ids(1, 2), ids(1, 2)), model.init_state(1, 5))


def test_a_decoder_of_cross_blocks_alone_says_what_it_lacks(model):
    for run in (lambda: model.decoder(ids(1, 2)), lambda: model.decoder.init_state(1, 4)):
        with pytest.raises(core.UsageError, match="no memory to attend to; it belongs into an encoder_decoder"):
            run()
