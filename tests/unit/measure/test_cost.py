"""Costs equal closed formulas worked out by hand, on shapes alone, and leave the model as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anyformer.core.errors import AnyformerError
from anyformer.measure.cost import cost
from anyformer.ops.attention import attention
from anyformer.ops.convolution import image_patch_convolution
from anyformer.ops.linear import linear


class Call(nn.Module):
    """A function with parameters as a module."""

    def __init__(self, function, *sizes):
        super().__init__()
        self.function = function
        self.tensors = nn.ParameterList(nn.Parameter(torch.ones(size)) for size in sizes)

    def forward(self, *inputs, **keywords):
        return self.function(*inputs, *self.tensors, **keywords)


def macs(function, *sizes):
    counted = cost(Call(function), *sizes)
    assert counted.uncounted == ()
    return counted.macs


def test_linear_layers():
    for layer in (nn.Linear(50, 70), Call(linear, (70, 50), (70,))):
        assert cost(layer, (3, 11, 50)).macs == 3 * 11 * 50 * 70
        assert cost(layer, (3, 11, 50)).params == 50 * 70 + 70
    assert cost(Call(lambda x, w, b: linear(x, w, b, "gelu", x), (512, 512), (512,)), (8, 512)).macs == 8 * 512 * 512


def test_convolutions():
    assert cost(nn.Conv2d(6, 8, 3, padding=1, groups=2), (2, 6, 10, 12)).macs == 2 * 10 * 12 * 8 * 3 * 9
    assert cost(nn.ConvTranspose2d(6, 8, 2, stride=2), (2, 6, 10, 12)).macs == 2 * 10 * 12 * 6 * 8 * 4
    for patch in (4, 16):
        embed = Call(image_patch_convolution, (24, 3, patch, patch), (24,))
        assert cost(embed, (2, 3, 64, 32)).macs == 2 * 64 * 32 * 3 * 24


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [None, (5, 7), (2, 6, 5, 7)])
def test_attention_through_every_kernel(causal, bias):
    """Grouped keys, other values, learned and fixed biases: torch takes another kernel for each."""
    expected = 2 * 6 * 5 * 7 * (8 + 4), 2 * 6 * 5 * 7 * (8 + 8)
    for values, count in zip((4, 8), expected, strict=True):

        def attend(q, k, v, *learned):
            return attention(q, k, v, scale=0.3, causal=causal, bias=learned[0] if learned else None)

        sizes = (2, 6, 5, 8), (2, 3, 7, 8), (2, 3, 7, values)
        learned = () if bias is None else (bias,)
        assert cost(Call(attend, *learned), *sizes).macs == count
        with torch.device("meta"):
            model = Call(attend, *learned)
        assert cost(model, *(torch.empty(size, device="meta") for size in sizes)).macs == count


def test_square_causal_attention():
    attend = Call(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True))
    assert cost(attend, (2, 3, 16, 8)).macs == 2 * 3 * 16 * 16 * 16


def test_matrices_and_vectors():
    assert macs(torch.mv, (5, 7), (7,)) == 35
    assert macs(torch.dot, (7,), (7,)) == 7
    assert macs(torch.addmv, (5,), (5, 7), (7,)) == 35
    assert macs(torch.bmm, (3, 4, 5), (3, 5, 6)) == 3 * 4 * 5 * 6
    assert macs(lambda x, y: torch.einsum("bij,bkj->bik", x, y), (3, 4, 5), (3, 6, 5)) == 3 * 4 * 5 * 6


def test_a_shared_parameter_counts_once():
    tied = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    tied[1].weight = tied[0].weight
    assert cost(tied, (1, 8)).params == 64
    assert cost(tied, (1, 8)).macs == 128


def test_what_is_not_counted_is_named():
    counted = cost(Call(lambda x: torch.fft.rfft(x).real.cumsum(-1) + x.sort().values[..., :5]), (2, 8))
    assert counted.uncounted == ("aten::_fft_r2c", "aten::cumsum", "aten::sort")
    assert counted.macs == 0
    with torch.library._scoped_library("anyformer_test", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
        library.impl("twice", torch.empty_like, "Meta")
        assert cost(Call(torch.ops.anyformer_test.twice), (2, 8)).uncounted == ("anyformer_test::twice",)


def test_inputs_by_name_and_of_other_types():
    embedding = Call(lambda tokens, table, times: table[tokens].repeat(times, 1) @ table.T, (10, 4))
    assert cost(embedding, torch.tensor([1, 2, 3]), times=2).macs == 6 * 4 * 10


def test_the_model_neither_runs_nor_changes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 2))
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    tensors = dict(model.named_parameters())
    assert cost(model, (2, 3, 6, 6)).macs == 2 * (4 * 4 * 4 * 27 + 128)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert type(tensor) is torch.Tensor
    assert all(parameter is tensors[name] for name, parameter in model.named_parameters())


def test_nothing_is_allocated():
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(100_000, 100_000, bias=False) for _ in range(10)))
    counted = cost(model, (10_000, 100_000))
    assert counted.params == 10**11
    assert counted.macs == 10**15


def test_a_plain_tensor_kept_by_a_module_is_taken_along():
    model = nn.Linear(4, 4)
    scale = torch.ones(4)
    model.forward = lambda x: F.linear(x * scale, model.weight)
    assert cost(model, (2, 4)).macs == 32


def test_a_cost_that_depends_on_the_data_is_refused():
    with pytest.raises(AnyformerError, match=r"cost of Call cannot be counted from shapes: aten.nonzero"):
        cost(Call(lambda x: x[x > 0].sum()), (4,))


@pytest.fixture(scope="module")
def timm():
    """Also where torchvision, which it imports, was built for another torch and lacks its operators."""
    with torch.library._scoped_library("torchvision", "FRAGMENT") as library:
        try:
            import timm
        except RuntimeError:
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
            import timm
        yield timm


def test_vit_tiny_from_timm(timm):
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224")
    counted = cost(model, (1, 3, 224, 224))
    assert counted.params == 5_717_416
    assert counted.macs == pytest.approx(1.2535e9, rel=1e-3)
    tokens, dim, layers = 197, 192, 12
    attended = 2 * tokens * tokens * dim
    assert counted.macs == 196 * 768 * dim + layers * (tokens * 12 * dim * dim + attended) + dim * 1000
    assert counted.uncounted == ()
