"""A spec of one kilobyte is refused before it has taken memory, however large a model it asks for."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import anyformer as af
from anyformer import core
from anyformer.core import axes, registry, serial, store

from .random_patterns import refusal

MEGABYTE = 2**20
ALLOWED = 64 * MEGABYTE


class Allocations(TorchDispatchMode):
    """Counts the bytes of every tensor that an operation gives back."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.total += result.numel() * result.element_size()
        return result


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """A machine that allows a model 64 MB."""
    monkeypatch.setattr(store, "_memory", lambda: int(ALLOWED / store.MEMORY_SHARE))
    registry.parts()


def isotropic(**changes):
    return {"skeleton": "isotropic", "dim": 64, "layers": "attention(heads=2)", **changes}


VIT = serial.to_data(registry.system_of("vit_micro").pattern("vit_micro"))
SWIN = serial.to_data(registry.system_of("swin_micro").pattern("swin_micro"))
WINDOW = "window_attention(heads=1, rows={0}, columns={0}, grid_rows={0}, grid_columns={0}, shift_rows=1)"


HOSTILE = [
    isotropic(dim=2**40),
    isotropic(dim=2**62),
    isotropic(dim=10**30),
    isotropic(dim=20_000),
    isotropic(num_classes=10**9),
    isotropic(in_chans=10**9),
    isotropic(embed="patch_embed(patch=1000000)"),
    isotropic(channel_mixer="mlp(hidden=1000000)"),
    isotropic(channel_mixer="mlp(ratio=1e300)"),
    isotropic(layers="attention(heads=1000000, head_dim=1000000)"),
    isotropic(layers="depthwise_convolution(kernel=100001)"),
    isotropic(layers=WINDOW.format(1000)),
    isotropic(layers=WINDOW.format(10**6)),
    isotropic(layers="10000 x attention(heads=2)", dim=4096),
    isotropic(layers="100 x (100 x attention(heads=1))", dim=100_000),
    isotropic(layers="100 x (" * 12 + "attention(heads=1)" + ")" * 12),
    {"skeleton": "pyramid", "dims": [8] * 25, "stages": ["9999 x attention(heads=1)"] * 25},
    {"skeleton": "pyramid", "dims": [10**6, 10**7], "stages": ["attention(heads=1)"] * 2},
    {**VIT, "embed": {**VIT["embed"], "rows": 10**6, "columns": 10**6}, "blocks": []},
    {**VIT, "embed": {**VIT["embed"], "prefix": 10**12}, "blocks": []},
]


@pytest.mark.parametrize("data", HOSTILE, ids=lambda data: json.dumps(data)[:60])
def test_a_kilobyte_makes_no_tensor_before_it_is_refused(data):
    assert len(json.dumps(data)) <= 1100
    with Allocations() as tensors:
        sentence = refusal(af.build_hybrid, data)
    assert sentence
    assert tensors.total == 0


IN_A_PROCESS_APART = """
import json, resource, sys
import anyformer as af
from anyformer.core import registry, store

registry.parts()
store._memory = lambda: int(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for data in json.load(sys.stdin):
    try:
        af.build_hybrid(data)
    except af.UsageError:
        continue
    sys.exit("not refused")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_kilobyte_takes_no_memory_before_it_is_refused():
    command = [sys.executable, "-c", IN_A_PROCESS_APART, str(store._memory())]
    done = subprocess.run(command, input=json.dumps(HOSTILE), capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < ALLOWED


sizes = st.sampled_from((1, 2, 3, 16, 300, 5000, 10**5, 10**9, 2**61))


@settings(max_examples=80)
@given(sizes, sizes, sizes, sizes, st.integers(1, 3))
def test_what_is_not_refused_stays_within_the_limit(dim, heads, head_dim, hidden, layers):
    data = isotropic(
        dim=dim,
        layers=f"{layers} x attention(heads={heads}, head_dim={head_dim})",
        channel_mixer=f"mlp(hidden={hidden})",
        embed="patch_embed(patch=2)",
        num_classes=10,
    )
    before = torch.get_rng_state()
    with Allocations() as tensors:
        sentence = refusal(af.build_hybrid, data)
    if sentence:
        assert tensors.total == 0
        assert torch.equal(torch.get_rng_state(), before)
    else:
        assert 0 < tensors.total <= 3 * ALLOWED  # initialisers give back what they fill, and compare it


def test_the_estimate_is_what_the_model_has():
    for name in af.list_models():
        with torch.device("meta"):
            model = af.create_model(name)
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        counted = sum(map(store._elements, store._parts(model.spec)))
        own = sum(tensor.numel() for tensor in tensors.values())
        unshifted = sum(
            node.size("windows") * node.size("tokens") ** 2
            for _, node in core.walk(model.spec)
            if node.part.name == "window_attention" and not (node.shift_rows or node.shift_columns)
        )
        without = sum(
            axes.size(axes.parse(node.part.axes["bias"])[0], node.size)
            for _, node in core.walk(model.spec)
            if (node.part.name in ("linear", "causal_convolution") and not node.bias)
            or (node.part.name in ("convolution", "grouped_convolution") and node.norm is not None)
            or (node.part.name == "normed_convolution" and not node.bias)
        )
        unscaled = sum(
            2 for _, node in core.walk(model.spec) if node.part.name == "parallel_mixers" and node.scales is None
        )
        assert counted == own + unshifted + without + unscaled, name


def test_the_sentence_says_how_much_is_too_much():
    with pytest.raises(core.UsageError) as caught:
        af.create_model("vit_base_patch16_224")
    assert str(caught.value) == "this model needs 0.322 GiB, more than the 0.0625 GiB allowed here; make it smaller"


def test_more_parts_than_can_be_built_are_refused(monkeypatch):
    spec = af.build_hybrid(isotropic()).spec
    monkeypatch.setattr(store, "MAX_PARTS", sum(1 for _ in core.walk(spec)))
    af.build_hybrid(isotropic())
    with pytest.raises(core.UsageError, match=r"a model may have at most [0-9]+ parts; give it fewer layers"):
        af.build_hybrid(isotropic(layers="2 x attention(heads=2)"))


def test_the_meta_device_has_room_for_everything():
    with torch.device("meta"):
        assert af.create_model("vit_huge_patch14_224").norm.weight.is_meta
