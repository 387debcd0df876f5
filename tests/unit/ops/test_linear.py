"""``ops.linear``: raw kernels give the plain result, and step aside wherever anything else is wanted of the call."""

import copy
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from anyformer.core.errors import UsageError
from anyformer.ops import kernels
from anyformer.ops import linear as module
from anyformer.ops.linear import linear

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.skipif(not module._HAS_ONEDNN, reason="torch was built without oneDNN"),
]

ROWS, IN, OUT = 8, 512, 512


@pytest.fixture
def raw(monkeypatch):
    """Forces the raw kernel and lists its calls; an empty list means that the call was plain."""
    calls = []
    compute = module._onednn
    monkeypatch.setattr(module, "_onednn", lambda *args: calls.append(args) or compute(*args))
    with kernels.force("onednn"):
        yield calls


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return torch.randn(ROWS, IN), torch.randn(OUT, IN) / IN**0.5, torch.randn(OUT), torch.randn(ROWS, OUT)


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(OUT, IN) / IN**0.5)
        self.bias = nn.Parameter(torch.randn(OUT))

    def forward(self, x):
        return linear(x, self.weight, self.bias, "gelu", x)

    def plain(self, x):
        return F.gelu(F.linear(x, self.weight, self.bias)) + x


def close(ours, theirs, tolerance=1e-5):
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@given(
    leading=st.sampled_from([(1,), (7,), (2, 33), (3, 5, 13), (67,)]),
    sizes=st.sampled_from([(513, 511), (64, 4001), (777, 333)]),
    act=st.sampled_from([None, "gelu", "relu"]),
    bias=st.booleans(),
    add=st.booleans(),
    kernel=st.sampled_from(kernels.KERNELS),
    seed=st.integers(0, 99),
)
def test_each_kernel_gives_the_plain_result(leading, sizes, act, bias, add, kernel, seed):
    generator = torch.Generator().manual_seed(seed)
    features_in, features_out = sizes
    x = torch.randn(*leading, features_in, generator=generator)
    weight = torch.randn(features_out, features_in, generator=generator) / features_in**0.5
    b = torch.randn(features_out, generator=generator) if bias else None
    residual = torch.randn(*leading, features_out, generator=generator) if add else None
    with kernels.force(kernel):
        assert module._size_class(x, weight)
        assert module._unwatched(x, weight, b, residual)
        ours = linear(x, weight, b, act, residual)
    exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
    exact = {None: lambda y: y, "gelu": F.gelu, "relu": F.relu}[act](exact) + (0 if residual is None else residual)
    close(ours, exact.float())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_parameters_use_the_raw_kernel_in_inference(raw, tensors, mode):
    product = Product()
    with mode():
        close(product(tensors[0]), product.plain(tensors[0]))
    assert raw


def test_an_unknown_activation_is_refused():
    with pytest.raises(UsageError, match=r"no activation 'geluu'.*did you mean gelu"):
        linear(torch.ones(1, 1), torch.ones(1, 1), act="geluu")


def test_each_call_takes_the_kernel_of_the_table(monkeypatch, tensors):
    x, weight, bias, add = tensors
    taken = []
    for name in kernels.KERNELS:
        compute = getattr(module, f"_{name}")
        monkeypatch.setattr(module, f"_{name}", lambda *args, n=name, f=compute: taken.append(n) or f(*args))
    for kernel, expected in (("mkl", ["mkl", "mkl"]), ("onednn", ["onednn"] * 3)):
        with kernels.force(kernel):
            for act, residual in ((None, None), ("gelu", None), (None, add)):
                linear(x, weight, bias, act, residual)
        assert taken == expected  # a product alone needs nothing but torch's own function
        taken.clear()


# nothing is remembered between calls


def test_a_weight_changed_by_any_means_is_seen(raw, tensors):
    x, product = tensors[0], Product()

    def check():
        with torch.no_grad():
            close(product(x), product.plain(x))

    check()
    product(x).square().mean().backward()
    torch.optim.AdamW(product.parameters(), lr=0.1, fused=True).step()
    check()
    product.weight.data.mul_(3)
    check()
    product.weight.detach().numpy()[:] *= -1
    check()
    product.load_state_dict({key: value + 1 for key, value in product.state_dict().items()}, assign=True)
    check()
    other = copy.deepcopy(product)
    other.weight.data.zero_()
    check()
    product = pickle.loads(pickle.dumps(product))
    check()
    assert len(raw) == 7


def test_tied_and_parametrized_weights(raw, tensors):
    x, product, tied = tensors[0], Product(), Product()
    tied.weight = product.weight
    with torch.no_grad():
        product.weight.mul_(2)
        close(tied(x), tied.plain(x))
        parametrize.register_parametrization(product, "weight", nn.Tanh())
        close(product(x), product.plain(x))
    assert len(raw) == 2


# autograd


@pytest.mark.parametrize("which", range(4), ids=["x", "weight", "bias", "add"])
def test_a_gradient_wanted_by_one_tensor_alone(raw, tensors, which):
    """Training the biases only, as BitFit does, trains nothing where the bias is not asked."""
    tensors[which].requires_grad_()
    x, weight, bias, add = tensors
    gradient = torch.autograd.grad(linear(x, weight, bias, "gelu", add).square().sum(), tensors[which])[0]
    expected = torch.autograd.grad((F.gelu(F.linear(x, weight, bias)) + add).square().sum(), tensors[which])[0]
    close(gradient, expected)
    assert not raw


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_gradients(tensors, reentrant):
    x, product = tensors[0].requires_grad_(), Product()
    checkpoint(product, x, use_reentrant=reentrant).sum().backward()
    close(x.grad, torch.autograd.grad(product.plain(x).sum(), x)[0])


# functorch and forward derivatives


def test_vmap(raw, tensors):
    x, weight, bias, _ = tensors
    stacked = torch.stack([weight, -weight])
    ours = torch.func.vmap(linear, in_dims=(None, 0, None))(x, stacked, bias)
    close(ours, torch.stack([F.linear(x, w, bias) for w in stacked]))
    assert not raw


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own forward derivatives call it
def test_functional_transforms(raw, tensors):
    x, weight, bias, _ = tensors
    close(torch.func.grad(lambda w: linear(x, w).sum())(weight), x.sum(0).expand(OUT, IN))
    value, tangent = torch.func.jvp(lambda b: linear(x, weight, b), (bias,), (torch.ones(OUT),))
    close(value, F.linear(x, weight, bias))
    close(tangent, torch.ones(ROWS, OUT))
    assert not raw
    with torch.no_grad():
        product = Product()
        state = {"weight": weight, "bias": bias}
        close(torch.func.functional_call(product, state, (x,)), F.gelu(F.linear(x, weight, bias)) + x)
    assert raw


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_dual_numbers(raw, tensors):
    x, weight, bias, _ = tensors
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        _, tangent = torch.autograd.forward_ad.unpack_dual(linear(dual, weight, bias))
        close(tangent, weight.sum(1).expand(ROWS, OUT))
    assert not raw


# what intercepts or records a call


def test_autocast(raw, tensors):
    x, weight, bias, _ = tensors
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, plain = linear(x, weight, bias), F.linear(x, weight, bias)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, plain)
    assert not raw


def test_flop_counter(raw, tensors):
    x, weight, bias, _ = tensors
    with FlopCounterMode(display=False) as counter:
        linear(x, weight, bias)
    assert counter.get_total_flops() == 2 * ROWS * IN * OUT
    assert not raw


def test_dispatch_and_function_modes(raw, tensors):
    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    class Functions(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen = []
    with Operators():
        linear(*tensors[:3])
    assert torch.ops.aten.addmm in seen
    with Functions():
        linear(*tensors[:3])
    assert F.linear in seen
    assert not raw


def test_subclasses_see_the_plain_function(raw, tensors):
    class Watching(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs)

    for which in range(4):
        seen, changed = [], list(tensors)
        changed[which] = changed[which].as_subclass(Watching)
        linear(*changed[:3], None, changed[3])
        assert F.linear in seen or which == 3
    assert not raw


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tracing(raw, tensors):
    x, product = tensors[0], Product()
    with torch.no_grad():
        traced = torch.jit.trace(product, x, check_trace=False)
        assert "aten::linear" in str(traced.graph)
        longer = torch.cat([x, x])
        close(traced(longer), product.plain(longer))
    assert not raw


def test_symbolic_tracing(raw, tensors):
    traced = torch.fx.symbolic_trace(Product())
    assert F.linear in [node.target for node in traced.graph.nodes]
    close(traced(tensors[0]), Product().plain(tensors[0]))
    assert not raw


def test_compilation_and_export(raw, tensors):
    x, product = tensors[0], Product()
    with torch.no_grad():
        close(torch.compile(product, fullgraph=True, backend="eager")(x), product.plain(x))
        program = torch.export.export(product, (x,))
        assert torch.ops.aten.linear.default in [node.target for node in program.graph.nodes]
        close(program.module()(x), product.plain(x))
    assert not raw


# unusual tensors


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(raw, tensors, dtype):
    x, weight, bias, add = (tensor.to(dtype) for tensor in tensors)
    assert torch.equal(linear(x, weight, bias, "relu", add), F.linear(x, weight, bias).relu() + add)
    assert linear(*tensors[:3], None, add).dtype == torch.promote_types(dtype, torch.float32)
    assert not raw


def test_other_devices_and_mixtures(raw, tensors):
    x, weight, bias, _ = tensors
    for mixture in ((x, weight.double()), (x.double(), weight)):
        with pytest.raises(RuntimeError, match="same dtype"):
            linear(*mixture, bias)
    assert linear(x.to("meta"), weight.to("meta")).is_meta
    assert not raw


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_other_layouts(raw, tensors):
    x, weight, bias, _ = tensors
    plain = F.linear(x, weight, bias)
    close(linear(x, weight.to_sparse_csr(), bias), plain)
    close(linear(x.to_sparse(), weight, bias), plain)
    close(linear(x.to_mkldnn(), weight.to_mkldnn(), bias.to_mkldnn()).to_dense(), plain)
    assert not raw


def test_strided_and_broadcast_operands(raw, tensors):
    x, weight, bias, add = tensors
    wide = torch.randn(ROWS, 2 * IN)
    image = torch.randn(2, IN, 3, 5).movedim(1, -1)
    for inputs in (wide[:, ::2], x[:1].expand(ROWS, IN), torch.randn(IN, ROWS).T, wide[1:, 1 : IN + 1], image):
        close(linear(inputs, weight, bias), F.linear(inputs, weight, bias))
    close(linear(x, weight, bias, None, torch.randn(OUT, ROWS).T.copy_(add)), F.linear(x, weight, bias) + add)
    assert len(raw) == 6
    for strided in (torch.randn(OUT, 2)[:, 0], torch.randn(1).expand(OUT), torch.randn(1)):
        close(linear(x, weight, strided), F.linear(x, weight, strided))
    for strided in (weight.T.contiguous().T, torch.randn(1, IN).expand(OUT, IN)):
        close(linear(x, strided, bias), F.linear(x, strided, bias))
    close(linear(x, weight, bias, None, add[0]), F.linear(x, weight, bias) + add[0])
    assert len(raw) == 6


def test_the_residual_is_not_overwritten(raw, tensors):
    x, weight, bias, add = tensors
    for act in (None, "relu"):
        before = add.clone()
        linear(x, weight, bias, act, add)
        assert torch.equal(add, before)
    assert raw


def test_vectors_and_empty_batches(raw, tensors):
    x, weight, bias, _ = tensors
    close(linear(x[0], weight, bias), F.linear(x[0], weight, bias))
    assert linear(x[:0], weight, bias).shape == (0, OUT)
    assert linear(torch.ones(4, 0), torch.ones(3, 0), torch.ones(3)).tolist() == [[1.0, 1.0, 1.0]] * 4
    assert len(raw) == 1


@pytest.mark.filterwarnings("ignore:.*prototype:UserWarning")
def test_nested_tensors(raw, tensors):
    x, weight, bias, _ = tensors
    nested = torch.nested.nested_tensor([x, x[:3]])
    for ours, part in zip(linear(nested, weight, bias).unbind(), nested.unbind(), strict=True):
        close(ours, F.linear(part, weight, bias))
    assert not raw


def test_wrong_shapes_fail_as_plain_ones_do(raw, tensors):
    x, weight, bias, _ = tensors
    for wrong in ((x[:, 1:], weight, bias), (x, weight, bias[1:]), (x.repeat(9, 1), torch.ones(OUT, 0), bias)):
        with pytest.raises(RuntimeError) as plain:
            F.linear(*wrong)
        with pytest.raises(RuntimeError) as ours:
            linear(*wrong)
        assert str(ours.value) == str(plain.value)
    close(linear(x, weight[0]), F.linear(x, weight[0]))
    assert not raw
