"""Form: a search space is a pattern with nodes that list alternatives; sampling it gives ordinary specs.

A search asks for a spec and is told what was measured of it (random search: Bergstra and Bengio 2012).
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from anyformer import core
from anyformer.core import serial
from anyformer.core.config import children, with_children
from anyformer.measure.cost import Cost, cost
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.embeds.patch_embed import PatchEmbed
from anyformer.parts.heads.classifier import MeanPoolHead
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.token_mixers.attention import Attention
from anyformer.parts.token_mixers.depthwise import DepthwiseConvolution
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.isotropic import Isotropic


class ToyChoice(core.Part, name="toy_choice"):
    """A node of a search space: one of its options will stand here. It is never built."""

    class Config(core.Config):
        options: tuple[core.Config, ...]


def settle(space: core.Config, pick: Callable[[tuple[core.Config, ...]], core.Config]) -> core.Config:
    """The pattern with every choice replaced by the option that ``pick`` takes; options may hold choices."""
    if isinstance(space, ToyChoice.Config):
        return settle(pick(space.options), pick)
    return with_children(space, lambda _, child: settle(child, pick))


def sample(space: core.Config, generator: torch.Generator) -> core.Config:
    """A random spec of the space, every option of a choice equally likely."""

    def pick(options: tuple[core.Config, ...]) -> core.Config:
        return options[int(torch.randint(len(options), (), generator=generator))]

    return core.resolve(settle(space, pick))


class ToyRandomSearch:
    """The most parameters within a budget of multiply-adds."""

    def __init__(self, space: core.Config, budget: int, seed: int) -> None:
        self.space, self.budget, self.generator = space, budget, torch.Generator().manual_seed(seed)
        self.told: dict[core.Config, Cost] = {}

    def ask(self) -> core.Config:
        return sample(self.space, self.generator)

    def tell(self, spec: core.Config, record: Cost) -> None:
        self.told[spec] = record

    def best(self) -> core.Config | None:
        fitting = [spec for spec, record in self.told.items() if record.macs <= self.budget]
        return max(fitting, key=lambda spec: self.told[spec].params, default=None)


NORM = LayerNorm.Config()
MIXER = ToyChoice.Config(
    options=(
        Attention.Config(heads=2),
        ToyChoice.Config(options=tuple(DepthwiseConvolution.Config(kernel=kernel) for kernel in (3, 5))),
    )
)
HIDDEN = ToyChoice.Config(options=tuple(MLP.Config(hidden=hidden) for hidden in (8, 20, 32)))
SPACE = Isotropic.Config(
    dim=8,
    embed=PatchEmbed.Config(channels=1, patch=2),
    blocks=(
        layer_block(Attention.Config(heads=2), HIDDEN, NORM),
        layer_block(Attention.Config(heads=2), MLP.Config(), NORM).replace(mixer=MIXER),
    ),
    norm=NORM,
    head=MeanPoolHead.Config(num_classes=3),
)


def everything(space: core.Config) -> list[core.Config]:
    """All patterns of a small space, by recursion over its nodes."""
    if isinstance(space, ToyChoice.Config):
        return [pattern for option in space.options for pattern in everything(option)]
    below = {path: everything(child) for path, child in children(space)}
    answers = [dict(zip(below, picked, strict=True)) for picked in itertools.product(*below.values())]
    return [with_children(space, lambda path, _, answer=answer: answer[path]) for answer in answers]


ALL = [core.resolve(pattern) for pattern in everything(SPACE)]


def measured(spec: core.Config) -> Cost:
    with torch.device("meta"):
        model = core.build(spec)
    return cost(model, (1, 1, 8, 8))


def test_samples_are_specs_of_the_space_each_option_as_often_as_the_others():
    generator = torch.Generator().manual_seed(0)
    count = Counter(sample(SPACE, generator) for _ in range(600))
    assert set(count) == set(ALL)
    assert len(ALL) == 9
    hidden = Counter(dict.fromkeys((8, 20, 32), 0))
    mixers: Counter[tuple[str, int]] = Counter()
    for spec, times in count.items():
        hidden[spec.blocks[0].channel_mixer.hidden] += times
        mixer = spec.blocks[1].mixer
        mixers[mixer.part.name, getattr(mixer, "kernel", 0)] += times
    assert all(abs(times - 200) < 50 for times in hidden.values()), hidden  # four standard deviations
    assert abs(mixers["attention", 0] - 300) < 50, mixers
    assert abs(mixers["depthwise_convolution", 3] - 150) < 45, mixers


def test_same_seed_same_samples():
    first, second, other = (torch.Generator().manual_seed(seed) for seed in (1, 1, 2))
    drawn = [[sample(SPACE, generator) for _ in range(8)] for generator in (first, second, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_samples_build_save_and_run():
    for spec in ALL:
        assert serial.loads(serial.dumps(spec)) == spec
        assert core.build(spec)(torch.randn(2, 1, 8, 8)).shape == (2, 3)


def test_space_is_data_and_is_not_a_model():
    assert serial.from_data(json.loads(serial.dumps(SPACE))) == SPACE
    with pytest.raises(core.UsageError, match=r"blocks\.0\.channel_mixer\.options\.0 .* dim is not given"):
        core.build(SPACE)


def test_search_finds_what_trying_everything_finds():
    costs = {spec: measured(spec) for spec in ALL}
    budget = sorted(record.macs for record in costs.values())[5]
    search = ToyRandomSearch(SPACE, budget, seed=0)
    assert search.best() is None
    for _ in range(40):
        spec = search.ask()
        search.tell(spec, costs[spec])
    winner = max((spec for spec in ALL if costs[spec].macs <= budget), key=lambda spec: costs[spec].params)
    assert search.best() == winner
    assert costs[winner].params == sum(parameter.numel() for parameter in core.build(winner).parameters())
    assert costs[winner].params < max(record.params for record in costs.values())
