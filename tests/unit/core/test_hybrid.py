"""Models from patterns in files: they are built as written, run and learn, or are refused in a sentence."""

import json

import pytest
import torch
from hypothesis import given, settings

import anyformer as af
from anyformer import core
from anyformer.core import serial
from anyformer.parts.token_mixers.attention import Attention
from anyformer.parts.token_mixers.depthwise import DepthwiseConvolution

from .random_patterns import models

ISOTROPIC = """
skeleton: isotropic
dim: 24
embed: patch_embed(patch=4, norm=layer_norm())
layers: 3 x depthwise_convolution(kernel=7), 1 x attention(heads=2)  # convolutions first
channel_mixer: mlp(ratio=2, activation=relu)
num_classes: 5
in_chans: 1
"""
PYRAMID = {
    "skeleton": "pyramid",
    "dims": [16, 32],
    "stages": ["2 x (depthwise_convolution(kernel=3), attention(heads=4))", "sdta(chunks=2, convolutions=none)"],
    "num_classes": 3,
}
PYRAMID["stages"][1] = (
    "1 x cross_covariance_attention(heads=2), 1 x window_attention(heads=2, rows=2, columns=2, grid_rows=2, grid_columns=2)"
)


def learns(model, images):
    scores = model(images)
    scores.square().sum().backward()
    assert scores.isfinite().all()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert still == []
    assert any(p.grad.any() for p in model.parameters())
    return scores


def test_an_isotropic_hybrid_from_yaml(tmp_path):
    path = tmp_path / "hybrid.yaml"
    path.write_text(ISOTROPIC)
    model = af.build_hybrid(path)
    assert [type(block.mixer) for block in model.blocks] == [DepthwiseConvolution] * 3 + [Attention]
    assert model.spec.blocks[0].channel_mixer.activation == "relu"
    assert learns(model, torch.randn(2, 1, 16, 20)).shape == (2, 5)


def test_a_pyramid_of_four_mixers_from_json(tmp_path):
    path = tmp_path / "hybrid.json"
    path.write_text(json.dumps(PYRAMID))
    model = af.build_hybrid(str(path))
    assert [len(stage.blocks) for stage in model.stages] == [4, 2]
    assert learns(model, torch.randn(2, 3, 16, 16)).shape == (2, 3)
    features, _, _ = model.stages_of(torch.randn(1, 3, 16, 16))
    assert [tuple(x.shape) for x in features] == [(1, 4, 4, 16), (1, 2, 2, 32)]


def test_a_mapping_a_file_and_a_spec_give_the_same_model(tmp_path):
    (tmp_path / "hybrid.json").write_text(json.dumps(PYRAMID))
    model = af.build_hybrid(PYRAMID)
    assert af.build_hybrid(tmp_path / "hybrid.json").spec == model.spec
    assert af.build_hybrid(serial.to_data(model.spec)).spec == model.spec
    assert "skeleton" in PYRAMID, "what was given is left as it was"


@settings(max_examples=20)
@given(models)
def test_any_combination_of_parts_runs_and_learns(pattern):
    model = af.build_hybrid(serial.to_data(pattern))
    images = torch.randn(2, model.spec.embed.channels, 8, 8)
    assert learns(model, images).shape[0] == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("skeleton: isotropc\n", "no part is named 'isotropc'; did you mean isotropic"),
        ("skeleton: mlp\n", "'mlp' is no skeleton"),
        ("skeleton: [isotropic]\n", "no part is named"),
        ("skeleton: isotropic\n", "dim, layers must be given"),
        ("skeleton: isotropic\ndim: 8\nlayer: attention", "there is no 'layer'; did you mean layers?"),
        ("skeleton: isotropic\ndim: 8\nlayers: 7", "layers: expected a word, got 7"),
        ("skeleton: isotropic\ndim: wide\nlayers: attention(heads=2)", "dim: expected a whole number, got 'wide'"),
        ("skeleton: isotropic\ndim: .inf\nlayers: attention(heads=2)", "dim: expected a whole number, got inf"),
        ("skeleton: isotropic\ndim: -8\nlayers: attention(heads=2)", "the size of axis 'dim' is -8"),
        (
            "skeleton: isotropic\ndim: 8\nlayers: atention(heads=2)",
            "no part is named 'atention'; did you mean attention",
        ),
        ("skeleton: isotropic\ndim: 8\nlayers: mlp", "a layer is a token mixer or a block, 'mlp' is a channel_mixer"),
        ("skeleton: isotropic\ndim: 8\nlayers: 0 x attention(heads=2)", "a count is at least 1"),
        ("skeleton: pyramid\ndims: [8, 8]\nstages: [attention(heads=2)]", "one width a stage, got 2 for 1 stages"),
        ("skeleton: pyramid\ndims: 8\nstages: [attention(heads=2)]", "dims: expected a list, got 8"),
        ("part: mlp\ndim: 4", "part 'mlp' is no skeleton, so it is no model by itself"),
        ("part: isotropic\ndim: 8", "part 'isotropic' needs embed, blocks"),
        ("dim: 8", 'expected a mapping with a key "skeleton" or "part"'),
        ("- skeleton", 'expected a mapping with a key "skeleton" or "part"'),
        ("", 'expected a mapping with a key "skeleton" or "part"'),
        ("skeleton: isotropic\nskeleton: pyramid", "a key stands twice"),
    ],
)
def test_what_cannot_be_built_is_named(text, words, tmp_path):
    path = tmp_path / "hybrid.yaml"
    path.write_text(text)
    with pytest.raises(core.UsageError) as caught:
        af.build_hybrid(path)
    assert words in str(caught.value)


def test_files_that_are_no_patterns(tmp_path):
    with pytest.raises(core.UsageError, match="there is no file"):
        af.build_hybrid(tmp_path / "nowhere.yaml")
    with pytest.raises(core.UsageError, match="there is no file"):
        af.build_hybrid(tmp_path)
    (tmp_path / "noise.yaml").write_bytes(bytes(range(256)) * 10)
    with pytest.raises(core.UsageError, match=r"noise\.yaml: not YAML"):
        af.build_hybrid(tmp_path / "noise.yaml")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2**40)  # a terabyte that takes no place
    with pytest.raises(core.UsageError, match=r"huge\.json may be at most 1000000 bytes"):
        af.build_hybrid(tmp_path / "huge.json")
