"""Cut models and masked models: the two sides that every proof about axes compares.

The cut model is made by the declared axes alone: a smaller spec, sliced tensors. The masked model keeps its size; every
tensor is multiplied by a mask, and where a norm or a softmax runs over a cut axis, it runs over the live channels only.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial, reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.core.axes import Axis, Expression, Product, Sum
from anyformer.core.binding import AxisTable, axis_table, slice_spec, slice_state
from anyformer.core.model import Model
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.systems.vision.edgenext import CrossCovarianceAttention

from .axes_parts import GroupedGatedNorm, RMSNorm

Keep = Mapping[str, Tensor]
TOLERANCE = 1e-12  # of the largest score, in float64
VISIBLE = 1e-4  # what a mistake makes, at the least


def filled(pattern: core.Config, seed: int = 0) -> Model:
    """A float64 model whose every tensor is random and large enough to matter."""
    model = core.build(pattern).double().eval()
    assert isinstance(model, Model)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 and len(parameter) > 1 else 1
        torch.nn.init.normal_(parameter, std=fan_in**-0.5, generator=generator)
    return model


def random_keep(table: AxisTable, names: Iterable[str], seed: int) -> dict[str, Tensor]:
    """For each axis some of its indices in any order, at least one fewer than there are."""
    generator = torch.Generator().manual_seed(seed)
    keep: dict[str, Tensor] = {}
    for name in names:
        count = int(torch.randint(1, max(table.sizes[name], 2), (), generator=generator))
        keep[name] = torch.randperm(table.sizes[name], generator=generator)[:count]
    return keep


def cut(model: Model, keep: Keep) -> Model:
    """The smaller model, by its axes alone."""
    smaller = core.build(slice_spec(model.spec, keep)).double()
    smaller.load_state_dict(slice_state(model.spec, model.state_dict(), keep))
    assert isinstance(smaller, Model)
    return smaller.eval()


def live(table: AxisTable, expression: Expression, keep: Keep) -> Tensor:
    """1 where an index of a dimension stays, 0 where it goes; written on its own, as Kronecker products of masks."""
    match table.expand(expression):
        case Axis(name):
            size = int(name) if name.isdigit() else table.sizes[name]
            kept = keep.get(name, torch.arange(size))
            return torch.zeros(size, dtype=torch.float64).index_fill(0, kept, 1.0)
        case Product(factors):
            return reduce(torch.kron, [live(table, factor, keep) for factor in factors])
        case Sum(terms):
            return torch.cat([live(table, term, keep) for term in terms])


@torch.no_grad()
def silenced(model: Model, keep: Keep, only: Iterable[str] | None = None) -> Model:
    """The model with zeros in place of what goes: in all tensors, or in some of them; nothing else changes."""
    model, table = copy.deepcopy(model), axis_table(model.spec)
    state = model.state_dict()
    for name in state if only is None else only:
        if not state[name].is_floating_point():
            continue  # the numbers of what is there, which no zero silences
        for dimension, expression in enumerate(table.tensors[name]):
            shape = [-1 if d == dimension else 1 for d in range(state[name].dim())]
            state[name].mul_(live(table, expression, keep).view(shape))
    return model


def masked(model: Model, keep: Keep) -> Model:
    """The silenced model in which every part that ``reduces`` over a cut axis reduces over its live channels only."""
    table, model = axis_table(model.spec), silenced(model, keep)
    for path, part in model.named_modules():
        if not isinstance(part, core.Part):
            continue
        masks = {axis: live(table, table.local[path][axis], keep) for axis in part.reduces}
        if not all(mask.all() for mask in masks.values()):
            part.forward = partial(LIVE[type(part)], part, masks)
    return model


def live_layer_norm(part: LayerNorm, masks: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Mean and variance over the live channels."""
    mask = masks["dim"]
    centred = (x - (x * mask).sum(-1, keepdim=True) / mask.sum()) * mask
    variance = centred.square().sum(-1, keepdim=True) / mask.sum()
    return centred * (variance + part.config.eps).rsqrt() * part.weight + part.bias


def live_cross_covariance_attention(
    part: CrossCovarianceAttention, masks: Mapping[str, Tensor], x: Tensor, ctx: core.Context
) -> Tensor:
    """The softmax over the live channels."""
    heads, width = part.config.heads, part.config.head_dim
    q, k, v = part.qkv(x.flatten(1, -2)).mT.unflatten(1, (3, heads, width)).unbind(1)
    logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * part.temperature
    weights = logits.masked_fill(masks["head_dim"] == 0, -torch.inf).softmax(dim=-1)
    return part.proj((weights @ v).flatten(1, 2).mT).view(x.shape)


def live_rms_norm(part: RMSNorm, masks: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The mean square over the live channels."""
    mask = masks["dim"]
    mean = (x * mask).square().sum(-1, keepdim=True) / mask.sum()
    return x * (mean + part.config.eps).rsqrt() * part.weight


def live_gated_norm(part: GroupedGatedNorm, masks: Mapping[str, Tensor], y: Tensor, z: Tensor) -> Tensor:
    """The mean square over the live channels of the live heads of each group."""
    mask = torch.kron(masks["heads_per_group"], masks["p"])
    grouped = (y * F.silu(z)).unflatten(-1, (-1, len(mask)))
    mean = (grouped * mask).square().sum(-1, keepdim=True) / mask.sum()
    return (grouped * (mean + part.config.eps).rsqrt()).flatten(-2) * part.weight


LIVE: dict[type[core.Part], Callable[..., Tensor]] = {
    LayerNorm: live_layer_norm,
    CrossCovarianceAttention: live_cross_covariance_attention,
    RMSNorm: live_rms_norm,
    GroupedGatedNorm: live_gated_norm,
}


@torch.no_grad()
def difference(smaller: Model, larger: Model, raw: Tensor, keep: Keep) -> float:
    """How far the cut model's scores are from those that the larger one gives for the same live inputs and outputs."""
    wide, narrow, shown = raw, raw, slice(None)
    for name, index in keep.items():
        if name in ("embed.channels", "embed.patch.channels"):
            narrow = raw.index_select(1, index)
        if name == "vocabulary":  # only tokens that are left, which have new numbers
            narrow = raw % len(index)
            wide = index[narrow]
        if name in ("vocabulary", "head.num_classes"):
            shown = index
    expected = larger(wide)[..., shown]
    return float((smaller(narrow) - expected).abs().max() / expected.abs().max())
