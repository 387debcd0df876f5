"""FastViT whole: training against the reference with batch norms at work, costs, grey images, cutting channels."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import anyformer as af
from anyformer import core
from anyformer.core import registry
from anyformer.core.binding import axis_table, slice_spec, slice_state
from anyformer.core.store import key_map
from anyformer.measure.cost import cost
from anyformer.parts.norms.batch_norm import BatchNorm
from anyformer.passes.reparameterize import reparameterize
from anyformer.verify.equal import relative_error
from anyformer.verify.filling import fill, uniform
from anyformer.verify.sensitivity import stages_and_scores

PUBLISHED = registry.system("fastvit").published


def test_two_steps_of_training_are_those_of_the_reference(oracle):
    """Scores, gradients, moments and their count, then scores with the moments kept: all in float64."""
    model = af.create_model("fastvit_sa12", num_classes=5).double()
    fill(model)
    theirs = oracle("fastvit_sa12", num_classes=5).double()
    theirs.load_state_dict(af.dump_weights(model, format="timm"))
    with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention keeps part of its sums in float32, even for float64
        for step in range(2):
            images = uniform(f"images {step}", (2, 3, 64, 64)).double()
            given, expected = model.train()(images), theirs.train()(images)
            assert relative_error(given, expected) < 1e-9
            given.square().sum().backward(), expected.square().sum().backward()
    gradients = key_map(model, "timm").dump({name: tensor.grad for name, tensor in model.named_parameters()})
    # A depth-wise 1 x 1 convolution before a batch norm scales what is normalised at once, so its gradient is next to
    # nothing; what is left of it is rounding, and errors are held against the largest of all gradients.
    largest = max(tensor.abs().max() for tensor in gradients.values())
    for name, tensor in theirs.named_parameters():
        assert (gradients[name] - tensor.grad).abs().max() < 1e-8 * largest, name
    moments = af.dump_weights(model, format="timm")
    for name, tensor in theirs.named_buffers():
        torch.testing.assert_close(moments[name], tensor, rtol=1e-9, atol=1e-12, msg=name)
    assert int(model.head.convolution.convolution.branches[0].norm.num_batches_tracked) == 2
    with torch.no_grad():
        assert relative_error(model.eval()(images), theirs.eval()(images)) < 1e-9


@pytest.mark.parametrize("name", ["fastvit_t8", "fastvit_sa12", "fastvit_sa24"])
def test_multiply_adds_are_those_of_the_paper(name):
    with torch.device("meta"):
        model = af.create_model(name).eval()
    count = cost(model, (1, 3, 256, 256))
    assert abs(count.macs / PUBLISHED[name].macs - 1) < 0.03
    assert not count.uncounted
    deployed = reparameterize(model)  # what explains the difference in parameters is that there is one
    params = sum(parameter.numel() for parameter in deployed.parameters())
    assert PUBLISHED[name].params * 1.02 < params < PUBLISHED[name].params * 1.12


@pytest.mark.parametrize("name", ["fastvit_micro", "fastvit_mini"])
@pytest.mark.parametrize(("patch", "halvings"), [(1, 0), (2, 1), (4, 2), (8, 3)])
def test_the_stem_halves_as_often_as_its_patch_says(name, patch, halvings):
    model = af.create_model(name, img_size=16, patch_size=patch, in_chans=1, num_classes=10).eval()
    features = model.stages_of(torch.randn(2, 1, 16, 16))[0]
    assert features[0].shape[1:3] == (16 >> halvings, 16 >> halvings)
    assert len(model.embed.layers) == max(3, halvings + 1)


def test_a_patch_that_is_no_power_of_two_is_refused():
    with pytest.raises(core.UsageError, match="patch_size=6: the stem halves the grid"):
        af.create_model("fastvit_micro", patch_size=6)


def test_grey_images_and_other_classes():
    model = af.create_model("fastvit_micro").eval()
    grey = torch.randn(2, 1, 32, 32)
    adapted = af.adapt(model, in_chans=1, num_classes=7)
    ours, theirs = (stages_and_scores(m, x) for m, x in ((adapted, grey), (model, grey.expand(-1, 3, -1, -1))))
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert ours[-1].shape == (2, 7)


@torch.no_grad()
def test_every_axis_can_be_cut():
    """The cut model gives what the whole one gives with zeros in the place of what goes, batch norms and all."""
    model = af.create_model("fastvit_mini", img_size=8, patch_size=1, num_classes=10).double().eval()
    fill(model)
    generator = torch.Generator().manual_seed(0)
    for part in model.modules():
        if isinstance(part, BatchNorm):
            part.running_mean.normal_(generator=generator), part.running_var.uniform_(0.5, 2, generator=generator)
    table = axis_table(model.spec)
    names = [name for name in table.atoms() if name not in ("embed.channels", "head.num_classes")]
    assert {"stages.0.dim", "stages.2.blocks.3.mixer.heads", "head.convolution.squeeze.hidden"} <= set(names)
    sizes = {name: table.sizes[name] for name in names}
    keep = {name: torch.randperm(size, generator=generator)[: (size + 1) // 2] for name, size in sizes.items()}
    state = model.state_dict()
    smaller = core.build(slice_spec(model.spec, keep)).double().eval()
    smaller.load_state_dict(slice_state(model.spec, state, keep))
    places = {name: torch.arange(tensor.numel()).view(tensor.shape) for name, tensor in state.items()}
    for name, kept in slice_state(model.spec, places, keep).items():
        mask = torch.zeros(state[name].numel(), dtype=torch.bool)
        mask[kept.flatten()] = True
        state[name].mul_(mask.view(state[name].shape))
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=generator)
    assert relative_error(smaller(images), model(images)) < 1e-12
