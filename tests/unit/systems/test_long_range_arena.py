"""Long Range Arena: its encoder is the authors', written out; its sizes have their numbers; its tasks go in."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import anyformer as af
from anyformer import core
from anyformer.data.list_operations import ListOperations
from anyformer.data.pathfinder import Pathfinder
from anyformer.data.source_packages import SourcePackages
from anyformer.parts.embeds.token_table import Tokens
from anyformer.systems.survey.long_range_arena import SIZES, SMALL, ClassTokenTable, pattern
from anyformer.verify.filling import fill

PAPER = sorted(set(SIZES) - set(SMALL))


def ids(*shape, vocabulary=16):
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(1))


def parameters(vocabulary, dim, width, depth, hidden, classes, class_token):
    """As the flax modules of the official code have them: attention without biases, everything else with."""
    block = 2 * 2 * dim + 4 * dim * width + dim * hidden + hidden + hidden * dim + dim
    head = dim * hidden + hidden + hidden * classes + classes
    return vocabulary * dim + class_token * dim + depth * block + 2 * dim + head


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("long_range_arena_listops", (17, 512, 512, 4, 1024, 10, True)),
        ("long_range_arena_text", (257, 256, 256, 4, 1024, 2, True)),
        ("long_range_arena_pathfinder", (256, 32, 16, 4, 32, 2, False)),
    ],
)
def test_parameters_are_those_of_the_official_configurations(name, numbers):
    with torch.device("meta"):
        model = af.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters(*numbers)


def test_every_published_size_is_checked_and_the_small_ones_differ_in_the_mixer_alone():
    assert PAPER == ["long_range_arena_listops", "long_range_arena_pathfinder", "long_range_arena_text"]
    specs: list[Any] = [core.resolve(pattern(name)) for name in SMALL]
    mixers = {spec.blocks[0].mixer.part.name for spec in specs}
    assert mixers == {"attention", "gated_linear_attention", "delta_net", "retention", "mamba", "mamba2"}
    without = [spec.replace(blocks=tuple(block.replace(mixer=None) for block in spec.blocks)) for spec in specs]
    assert all(spec == without[0] for spec in without)


def written_out(model, tokens):
    """The authors' encoder and head, row by row without pads, from the equations and with the weights of ours."""
    w, spec = {name: tensor.double() for name, tensor in model.state_dict().items()}, model.spec
    dim, heads = spec.dim, spec.blocks[0].mixer.heads
    has_class = spec.embed.tokens.part is ClassTokenTable
    table = w["embed.tokens.tokens.table.weight" if has_class else "embed.tokens.table.weight"]
    x = torch.stack([table[token] for token in tokens])
    if has_class:
        x = torch.cat((w["embed.tokens.class_token"][None], x))
    waves = torch.zeros(len(x), dim, dtype=torch.float64)
    for place in range(len(x)):
        for pair in range(0, dim, 2):
            angle = place * math.exp(-pair * math.log(10000.0) / dim)
            waves[place, pair], waves[place, pair + 1] = math.sin(angle), math.cos(angle)
    x = x + waves

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    for i in range(len(spec.blocks)):
        q, k, v = (norm(x, f"blocks.{i}.norm1") @ w[f"blocks.{i}.mixer.qkv.weight"].T).chunk(3, dim=-1)
        mixed = []
        for q_head, k_head, v_head in zip(*(t.chunk(heads, dim=-1) for t in (q, k, v)), strict=True):
            mixed.append((q_head @ k_head.T / math.sqrt(q_head.shape[-1])).softmax(-1) @ v_head)
        x = x + torch.cat(mixed, dim=-1) @ w[f"blocks.{i}.mixer.proj.weight"].T
        hidden = dense(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.channel_mixer.fc1")
        x = x + dense(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, f"blocks.{i}.channel_mixer.fc2")
    x = norm(x, "norm")
    pooled = x[0] if has_class else x.mean(0)
    return dense(dense(pooled, "head.hidden").clamp(min=0), "head.linear")


@pytest.mark.parametrize("name", ["long_range_arena_text", "long_range_arena_pathfinder", SMALL[-1]])
def test_the_encoder_is_the_authors_written_out(name):
    small = {} if name in SMALL else {"vocabulary": 16, "num_classes": 3}
    model = af.create_model(name, **small).double().eval().requires_grad_(False)
    fill(model)
    texts = [ids(1, length)[0] for length in (13, 6, 1)]
    wanted = torch.stack([written_out(model, text.tolist()) for text in texts])
    alone = torch.cat([model(text[None]) for text in texts])
    assert ((alone - wanted).abs().max() / wanted.abs().max()).item() < 1e-12
    rows, keep = torch.full((3, 13), 7), torch.arange(13) < torch.tensor([[13], [6], [1]])
    for row, kept, text in zip(rows, keep, texts, strict=True):
        row[kept] = text
    torch.testing.assert_close(model(Tokens(rows, keep)), wanted, rtol=0, atol=1e-11)


def test_what_is_not_a_number_at_a_pad_reaches_no_score():
    model = af.create_model(SMALL[0], vocabulary=17).double().eval().requires_grad_(False)
    text, keep = ids(1, 6), torch.tensor([[True] * 6 + [False] * 2])
    before = model(text)
    model.embed.tokens.table.weight[16] = torch.nan
    given = model(Tokens(F.pad(text, (0, 2), value=16), keep))
    torch.testing.assert_close(given, before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["long_range_arena_text", SMALL[0]])
def test_packed_sequences_are_refused(name):
    model = af.create_model(name).eval()
    with pytest.raises(core.UsageError, match="packed sequences"):
        model(Tokens(ids(1, 5), offsets=torch.tensor([0, 2, 5])))


@pytest.mark.parametrize(
    "task",
    [ListOperations(size=2), Pathfinder(size=2, side=16), SourcePackages(size=2, tokens=64)],
    ids=lambda task: type(task).__name__,
)
def test_every_task_goes_in(task):
    model = af.create_model(SMALL[1], vocabulary=task.vocabulary, num_classes=task.classes).eval()
    batch = task(0)
    with torch.no_grad():
        assert model(batch.images).shape == (2, task.classes)
    assert model.data_config["vocabulary"] == task.vocabulary
