"""Softmax attention: every query takes a mean of the values, weighted by how well their keys match it.

Source: Vaswani et al. 2017, "Attention is all you need", equation 1; key heads shared by groups of query heads: Ainslie
et al. 2023, "GQA", section 2.2.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None, causal: bool = False
) -> Tensor:
    """``softmax(scale * q @ k.T + bias) @ v`` in the fused kernel of the device.

    A query that may attend to nothing (no keys, or all of them masked) gives zeros and passes no gradient. Costs
    batch * heads * queries * keys * (head_dim + values) multiply-adds; memory is linear in the tokens where no bias
    needs a gradient.

    Args:
        q: (batch, heads, queries, head_dim).
        k: (batch, kv_heads, keys, head_dim); kv_heads divides heads, each serving heads / kv_heads neighbouring ones.
        v: (batch, kv_heads, keys, values).
        scale: Factor of the products, usually head_dim ** -0.5.
        bias: Of at least two dimensions, broadcastable to (batch, heads, queries, keys): of q's dtype, added to the
            scaled products, or boolean, True where a query may attend to a key.
        causal: Let a query see no later key. The last query stands at the last key, as in decoding with a cache.

    Returns:
        (batch, heads, queries, values).
    """
    (heads, queries), (kv_heads, keys) = q.shape[1:3], k.shape[1:3]
    if causal and queries > 1:
        if bias is None and queries == keys:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=kv_heads != heads)
        seen = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
        if bias is not None:
            seen = bias & seen if bias.dtype == torch.bool else bias.masked_fill(~seen, -torch.inf)
        bias = seen
    if kv_heads == heads:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    # the queries of a group stand as rows before their one key head, which is then read once
    rows = q.unflatten(1, (kv_heads, -1)).flatten(2, 3)
    if bias is not None:
        bias = _bias_of_rows(bias, heads // kv_heads, queries)
    mixed = F.scaled_dot_product_attention(rows, k, v, attn_mask=bias, scale=scale)
    return mixed.unflatten(2, (heads // kv_heads, queries)).flatten(1, 2)


def _bias_of_rows(bias: Tensor, group: int, queries: int) -> Tensor:
    """Of ``(batch, heads, queries, keys)``, ones where it broadcasts, ``(batch, kv_heads, group * queries, keys)``."""
    bias = bias[(None,) * (4 - bias.ndim)]
    batch, heads, rows, keys = bias.shape
    if heads == rows == 1:
        return bias
    bias = bias.expand(batch, max(heads, group), queries, keys)
    return bias.reshape(batch, max(heads // group, 1), group * queries, keys)


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None, causal: bool = False
) -> Tensor:
    """The same, written out term by term; memory quadratic in the tokens. See ``attention`` for the shapes."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = scale * torch.einsum("bhqd,bhkd->bhqk", q, k)
    if bias is not None:
        scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias
    if causal:
        key = torch.arange(k.shape[2])
        query = torch.arange(q.shape[2]) + k.shape[2] - q.shape[2]
        scores = scores.masked_fill(key > query[:, None], -torch.inf)
    sees_something = (scores > -torch.inf).any(dim=-1, keepdim=True)
    weights = scores.masked_fill(~sees_something, 0.0).softmax(dim=-1) * sees_something
    return torch.einsum("bhqk,bhkv->bhqv", weights, v)
