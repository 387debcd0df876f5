"""EfficientFormer: what its file says beyond what every system must show."""

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.core.binding import slice_spec, slice_state
from anyformer.parts.heads.distilled import DistilledScores
from anyformer.parts.norms.batch_norm import BatchNorm
from anyformer.parts.residuals.residual import ScaledResidual
from anyformer.passes.reparameterize import reparameterize
from anyformer.systems.vision.efficientformer import DistanceBiasedAttention, NormFreeBlock, distances, pattern
from anyformer.verify.filling import fill, settle


@pytest.mark.parametrize(("name", "attending", "depth"), [("l1", 1, 15), ("l3", 4, 26), ("l7", 8, 38)])
def test_the_published_numbers(name, attending, depth):
    spec = core.resolve(pattern(f"efficientformer_{name}"))
    blocks = [block for stage in spec.stages for block in stage.blocks]
    assert len(blocks) == depth
    assert [block.part is NormFreeBlock for block in blocks] == [True] * (depth - attending) + [False] * attending
    mixer = blocks[-1].mixer
    assert (mixer.heads, mixer.key_dim, mixer.value_dim, mixer.rows, mixer.columns) == (8, 32, 128, 7, 7)


def test_distances_have_no_sign():
    index = distances(2, 3)
    assert index[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(index, index.T)
    assert index[4].tolist() == [4, 3, 4, 1, 0, 1]


def attention(**options):
    part = core.build(DistanceBiasedAttention.Config(dim=6, heads=3, key_dim=4, rows=2, columns=3, **options)).double()
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter)
    return part.eval()


def test_attention_pair_by_pair():
    part, x = attention(), torch.randn(1, 2, 3, 6, dtype=torch.float64)
    given = part(x, core.Context(layout=core.Layout(grid=(2, 3)))).flatten(1, 2)[0]
    tokens, mixed = x.flatten(1, 2)[0], torch.zeros(6, 3, 16, dtype=torch.float64)
    for head in range(3):
        weight, bias = part.qkv.weight[24 * head : 24 * (head + 1)], part.qkv.bias[24 * head : 24 * (head + 1)]
        q, k, v = (tokens @ weight.T + bias).split((4, 4, 16), dim=1)
        for i in range(6):
            logits = torch.stack(
                [q[i] @ k[j] / 2 + part.table[head, abs(i // 3 - j // 3) * 3 + abs(i % 3 - j % 3)] for j in range(6)]
            )
            mixed[i, head] = logits.softmax(0) @ v
    assert torch.allclose(given, mixed.flatten(1) @ part.proj.weight.T + part.proj.bias, rtol=1e-10)


@pytest.mark.parametrize(("axis", "size"), [("heads", 3), ("key_dim", 4), ("value_dim", 16)])
def test_heads_keys_and_values_are_cut(axis, size):
    """Cutting is silencing: of a head what goes out, of keys what they are compared by, of values what is read."""
    part, x = attention(), torch.randn(2, 2, 3, 6, dtype=torch.float64)
    context, keep = core.Context(layout=core.Layout(grid=(2, 3))), torch.randperm(size)[: size // 2]
    smaller = core.build(slice_spec(part.config, {axis: keep})).double()
    smaller.load_state_dict(slice_state(part.config, part.state_dict(), {axis: keep}))
    live = torch.zeros(size, dtype=torch.float64).index_fill(0, keep, 1.0)
    with torch.no_grad():
        if axis == "key_dim":
            for tensor in (part.qkv.weight, part.qkv.bias):
                tensor.view(3, 24, -1)[:, :4].mul_(live[:, None])
        else:
            dimension = 1 if axis == "heads" else 2
            part.proj.weight.view(6, 3, 16).mul_(live.view([-1 if d == dimension else 1 for d in range(3)]))
    assert torch.allclose(smaller(x, context), part(x, context), rtol=1e-10)


def test_biases_are_adapted_and_another_grid_is_refused():
    model = af.create_model("efficientformer_micro", num_classes=5, img_size=32).double().eval()
    wide = torch.zeros(1, 3, 32, 64, dtype=torch.float64)
    with pytest.raises(core.UsageError, match=r"grid of \(2, 4\), the attention biases are for \(2, 2\); create"):
        model(wide)
    adapted = af.adapt(model, img_size=(32, 64), num_classes=3)
    assert adapted(wide).shape == (1, 3)
    assert adapted.stages[2].blocks[1].mixer.table.shape == (8, 8)
    with pytest.raises(core.UsageError, match="cannot be adapted"):
        adapted.stages[2].blocks[1].mixer.adapted("index", wide, model.stages[2].blocks[1].mixer.config)


def test_batch_norms_and_scales_of_perceptrons_fold():
    model = af.create_model("efficientformer_micro", num_classes=5).double()
    fill(model)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    settle(model, images)
    deployed = reparameterize(model)
    assert not any(isinstance(part, BatchNorm) for part in deployed.modules())
    # a pooling has no weights that could take a scale in
    scaled = [path for path, part in deployed.named_modules() if isinstance(part, ScaledResidual)]
    assert scaled == [f"stages.{i}.blocks.{j}.residual1" for i, j in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0))]
    assert torch.allclose(deployed(images), model(images), rtol=1e-10)


def test_two_heads_are_averaged_after_training_and_reset_together():
    model = af.create_model("efficientformer_l1", num_classes=4, img_size=32)
    images = torch.randn(2, 3, 32, 32)
    scores = model.train()(images)
    assert isinstance(scores, DistilledScores)
    assert [tuple(tensor.shape) for tensor in scores] == [(2, 4)] * 2
    features, context = model.eval().forward_features(images)
    pooled = features.mean((1, 2))
    both = (model.head.label(pooled) + model.head.teacher(pooled)) / 2
    assert torch.allclose(model.head(features, context), both, rtol=1e-6)
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    assert torch.allclose(af.adapt(model, num_classes=0)(images), model.forward_features(images)[0].mean((1, 2)))


def test_a_stride_that_does_not_halve_is_refused():
    with pytest.raises(core.UsageError, match="patch_size=6: the stem halves the grid, so give a power of two"):
        pattern("efficientformer_l1", patch_size=6)
