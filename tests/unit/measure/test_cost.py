"""Costs equal closed formulas worked out by hand, on shapes alone, and leave the model as it was."""

import copy
import math

import pytest
import torch
from torch import nn
from torch._higher_order_ops.scan import scan
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry, register_flop_formula

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
    assert not counted.uncounted
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


def test_convolutions_in_groups_and_other_dimensions():
    for rank, layer in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), start=1):
        grouped, depthwise = layer(4, 8, 3, groups=2), layer(4, 4, 3, groups=4, padding=1)
        assert cost(grouped, (2, 4, *[10] * rank)).macs == 2 * 8**rank * 8 * 2 * 3**rank
        assert cost(depthwise, (2, 4, *[10] * rank)).macs == 2 * 10**rank * 4 * 3**rank
    for rank, layer in enumerate((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), start=1):
        assert cost(layer(4, 6, 3, groups=2, stride=2), (2, 4, *[5] * rank)).macs == 2 * 5**rank * 4 * 3 * 3**rank


def test_grouped_keys_save_no_arithmetic():
    grouped = Call(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
    assert cost(grouped, (2, 6, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)).macs == 2 * 6 * 5 * 7 * (8 + 8)


def test_attention_by_hand_equals_the_fused_one():
    by_hand = Call(lambda q, k, v: (q @ k.mT).softmax(-1) @ v)
    fused = Call(F.scaled_dot_product_attention)
    sizes = (2, 6, 5, 8), (2, 6, 7, 8), (2, 6, 7, 8)
    assert cost(by_hand, *sizes).macs == cost(fused, *sizes).macs == 2 * 6 * 5 * 7 * 16


@pytest.mark.parametrize(
    ("transform", "size", "points", "kind"),
    [
        (torch.fft.ifft, (3, 8), 8, "real"),  # of real numbers
        (lambda x: torch.fft.fft(torch.complex(x, x)), (3, 8), 8, "complex"),
        (torch.fft.rfft, (3, 16), 16, "real"),
        (torch.fft.irfft, (3, 9), 16, "real"),
        (lambda x: torch.fft.fft2(torch.complex(x, x)), (3, 4, 8), 32, "complex"),
        (torch.fft.rfft2, (3, 4, 8), 32, "real"),
        (torch.fft.irfft2, (3, 4, 5), 32, "real"),
        (torch.fft.rfft, (3, 1), 1, "real"),
    ],
)
def test_fourier_transforms(transform, size, points, kind):
    operations = 3 * 5 * points * math.log2(points)
    assert macs(transform, size) == operations / (2 if kind == "complex" else 4)


def test_cumulative_operations_are_half_a_multiply_add_an_element():
    for name in ("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin"):
        assert macs(lambda x, name=name: getattr(torch, name)(x, 1), (3, 8)) == 3 * 8 / 2


def test_a_recurrence_in_a_loop_shows_as_elementwise():
    def scan(x, decay):
        state = torch.zeros_like(x[:, 0])
        for step in x.unbind(1):
            state = decay * state + step
        return state

    counted = cost(Call(scan, (6,)), (2, 9, 6))
    assert counted.macs == 0
    assert not counted.uncounted
    assert counted.elementwise == 2 * 9 * (2 * 6)


def test_recurrent_layers():
    for layer, gates in ((nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)):
        assert cost(layer(4, 6), (5, 2, 4)).macs == 5 * 2 * gates * 6 * (4 + 6)


def test_sampling_between_points():
    image, volume = (2, 3, 8, 8), (2, 3, 8, 8, 8)
    for mode, values in (("bilinear", 4), ("nearest", 0), ("bicubic", 16)):

        def sample(x, grid, mode=mode):
            return F.grid_sample(x, grid, mode=mode, align_corners=False)

        assert cost(Call(sample), image, (2, 5, 6, 2)).macs == 2 * 3 * 5 * 6 * values
        assert macs(lambda x, mode=mode: F.interpolate(x, scale_factor=2, mode=mode), image) == 6 * 256 * values
    sample = Call(lambda x, grid: F.grid_sample(x, grid, align_corners=False))
    assert cost(sample, volume, (2, 4, 5, 6, 3)).macs == 2 * 3 * 4 * 5 * 6 * 8
    assert macs(lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), volume) == 6 * 16**3 * 8
    assert macs(lambda x: F.interpolate(x, scale_factor=2, mode="linear"), (2, 3, 8)) == 6 * 16 * 2


def test_other_products():
    assert macs(torch.vdot, (7,), (7,)) == 7
    assert macs(torch.addr, (5, 7), (5,), (7,)) == 35
    assert macs(lambda x, y: torch.cdist(x, y, p=1), (2, 5, 3), (2, 7, 3)) == 2 * 5 * 7 * 3
    assert macs(torch.baddbmm, (2, 3, 4), (2, 3, 5), (2, 5, 4)) == 2 * 3 * 5 * 4
    assert macs(lambda x, y: torch.tensordot(x, y, 2), (2, 3, 4), (3, 4, 5)) == 2 * 12 * 5
    whole = torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 8, dtype=torch.int8)
    assert cost(Call(torch._int_mm), *whole).macs == 32 * 16 * 8
    weight = torch.ones(8, 16, dtype=torch.int8), torch.ones(8, dtype=torch.bfloat16)
    assert cost(Call(torch._weight_int8pack_mm), torch.ones(4, 16, dtype=torch.bfloat16), *weight).macs == 4 * 8 * 16


def test_passes_over_the_elements_are_free():
    layers = nn.Sequential(
        *(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.AvgPool2d(2), nn.MaxPool2d(2), nn.Hardswish(), nn.GELU()),
        *(
            nn.PixelShuffle(2),
            nn.ReflectionPad2d(1),
            nn.Dropout(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Softmax(-1),
        ),
        *(nn.LayerNorm(4), nn.PReLU(), nn.GLU(), nn.LogSigmoid()),
    )
    counted = cost(layers, (2, 4, 16, 16))
    assert counted.macs == 0
    assert not counted.uncounted


def test_what_is_not_counted_is_named_with_its_calls():
    counted = cost(Call(lambda x: torch.linalg.qr(x).Q + torch.linalg.qr(x.flip(0)).Q + x.kthvalue(2).values), (8, 8))
    assert counted.uncounted == {"aten::linalg_qr": 2, "aten::kthvalue": 1}
    assert counted.macs == 0


def test_an_unknown_operator_is_named_until_it_has_a_formula():
    with torch.library._scoped_library("anyformer_test", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
        library.impl("twice", torch.empty_like, "Meta")
        twice = torch.ops.anyformer_test.twice
        model = nn.Sequential(nn.Linear(8, 8), Call(twice), Call(twice))
        assert cost(model, (2, 8)).uncounted == {"anyformer_test::twice": 2}
        register_flop_formula(twice)(lambda shape, out_shape: 10 * math.prod(shape))
        try:
            counted = cost(model, (2, 8))
        finally:
            del flop_registry[twice]
        assert counted.macs == 2 * 8 * 8 + 2 * 5 * 16
        assert not counted.uncounted


def test_an_operator_on_functions_is_refused():
    def running(x):
        return scan(lambda carry, y: (carry + y, carry + y), x[0], x)[1]

    with pytest.raises(AnyformerError, match="the cost of scan cannot be counted"):
        cost(Call(running), (8, 3))


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
    assert not counted.uncounted
