"""Form: low-rank updates put into chosen linear nodes of a built model, trained alone, and merged back.

As in LoRA (arXiv:2106.09685, section 4.1): ``W x + scale B A x`` with a frozen ``W``.
"""

from fnmatch import fnmatchcase

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import anyformer as af
from anyformer import core
from anyformer.core.binding import slice_spec, slice_state
from anyformer.core.config import at
from anyformer.core.model import Model
from anyformer.ops.linear import Activation
from anyformer.train.schedule import adamw


class ToyLora(core.LinearPart, name="toy_lora"):
    """Whatever linear node stands in ``base``, plus a product of rank ``rank``, which starts at zero."""

    class Config(core.Config):
        inputs: int = core.bound()
        outputs: int = core.bound()
        rank: int
        scale: float = 1.0
        base: core.Config = core.linear()

    axes = {"base.weight": "outputs inputs", "reduce": "rank inputs", "expand": "outputs rank"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.base.requires_grad_(False)
        self.reduce = self.parameter("reduce", core.Init("uniform_fan_in"))
        self.expand = self.parameter("expand", core.ZEROS)

    def update(self) -> Tensor:
        """What is added to the weight, ``(outputs, inputs)``."""
        return self.config.scale * self.expand @ self.reduce

    def forward(self, x: Tensor, act: Activation | None = None, add: Tensor | None = None) -> Tensor:
        y = self.base(x, None, self.config.scale * F.linear(F.linear(x, self.reduce), self.expand))
        y = y if act is None else getattr(F, act)(y)
        return y if add is None else y + add


def linears(spec: core.Config, glob: str, part: str) -> dict[str, core.Config]:
    """The linear nodes of one part whose paths match."""
    return {path: node for path, node in core.walk(spec) if node.part.name == part and fnmatchcase(path, glob)}


def with_lora(model: Model, glob: str, rank: int) -> Model:
    """The model with an update in every linear node that matches; only the updates learn."""
    nodes = linears(model.spec, glob, "linear")
    edits = {path: ToyLora.Config(rank=rank, base=node) for path, node in nodes.items()}
    tuned = core.build(core.edit(model.spec, edits)).to(next(model.parameters()))

    def renamed(name: str) -> str:
        node, _, own = name.rpartition(".")
        return f"{node}.base.{own}" if node in nodes else name

    state = {renamed(name): tensor for name, tensor in model.state_dict().items()}
    missing, unexpected = tuned.load_state_dict(state, strict=False)
    assert not unexpected
    for name, parameter in tuned.named_parameters():
        parameter.requires_grad_(name in missing)
    return tuned


@torch.no_grad()
def merged(tuned: Model) -> Model:
    """A model of plain linear nodes again, the updates added to their weights."""
    nodes = linears(tuned.spec, "*", "toy_lora")
    plain = core.build(core.edit(tuned.spec, {path: node.base for path, node in nodes.items()})).to(
        next(tuned.parameters())
    )
    state = {name.replace(".base.", "."): tensor for name, tensor in tuned.state_dict().items()}
    for path in nodes:
        state[f"{path}.weight"] = state[f"{path}.weight"] + tuned.get_submodule(path).update()
        del state[f"{path}.reduce"], state[f"{path}.expand"]
    plain.load_state_dict(state)
    return plain


GLOB = "blocks.*.mixer.*"
IMAGES = torch.randn(8, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
LABELS = torch.arange(8) % 2


@pytest.fixture
def base() -> Model:
    torch.manual_seed(0)
    return af.create_model("vit_micro", img_size=8, patch_size=4, in_chans=1, num_classes=2).double()


@pytest.fixture
def tuned(base: Model) -> Model:
    """After some steps on all that may learn."""
    model = with_lora(base, GLOB, rank=2)
    optimizer = adamw(model, 0.02)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()
    return model


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_fresh_update_changes_nothing_and_sits_where_the_path_says(base):
    model = with_lora(base, GLOB, rank=2)
    same(model(IMAGES), base(IMAGES))
    paths = {path for path, module in model.named_modules() if isinstance(module, ToyLora)}
    assert paths == {f"blocks.{i}.mixer.{name}" for i in range(4) for name in ("qkv", "proj")}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{path}.{name}" for path in paths for name in ("reduce", "expand")}


def test_only_the_updates_learn_and_merge_back(base, tuned):
    before, after = F.cross_entropy(base(IMAGES), LABELS), F.cross_entropy(tuned(IMAGES), LABELS)
    assert after < 0.5 * before
    plain = merged(tuned)
    assert plain.spec == base.spec
    same(plain(IMAGES), tuned(IMAGES))
    changed = [name for name, tensor in plain.state_dict().items() if not torch.equal(tensor, base.state_dict()[name])]
    assert changed == [f"blocks.{i}.mixer.{name}.weight" for i in range(4) for name in ("qkv", "proj")]


def test_saved_and_read_again_through_the_registry(tuned, tmp_path):
    tuned.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text().count('"toy_lora"') == 8
    again = af.from_pretrained(tmp_path)
    assert isinstance(again.get_submodule("blocks.1.mixer.qkv"), ToyLora)
    assert torch.equal(again(IMAGES), tuned(IMAGES))


def test_activation_and_addend_of_the_slot_are_kept(base):
    """In a perceptron the slot asks for a GELU, which comes after the update."""
    model = with_lora(base, "blocks.*.channel_mixer.fc1", rank=3)
    for module in model.modules():
        if isinstance(module, ToyLora):
            torch.nn.init.normal_(module.expand)
    same(merged(model)(IMAGES), model(IMAGES))
    assert (model(IMAGES) - base(IMAGES)).abs().max() > 1e-3


def test_axes_reach_through_the_update(tuned):
    """Cutting a head, then merging, is merging, then cutting."""
    keep = {"blocks.2.mixer.heads": torch.tensor([1])}

    def cut(model: Model) -> Model:
        small = core.build(slice_spec(model.spec, keep)).double()
        small.load_state_dict(slice_state(model.spec, model.state_dict(), keep))
        return small

    assert at(cut(tuned).spec, "blocks.2.mixer").heads == 1
    same(merged(cut(tuned))(IMAGES), cut(merged(tuned))(IMAGES))
    same(cut(tuned)(IMAGES), cut(merged(tuned))(IMAGES))
