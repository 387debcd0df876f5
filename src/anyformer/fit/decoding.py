"""What going on from a text costs: a token's time at batch 1, a stream's state, multiply-adds."""

import statistics
import time
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from anyformer.core.errors import AnyformerError
from anyformer.measure.cost import cost
from anyformer.measure.formulas import FORMULAS

TIMED = 32  # tokens in a run from the end of the context, so that caches are as long as was asked for
WARMUP = 4  # of them that are not timed


@torch.inference_mode()
def time_token(model: Any, ids: Tensor, seconds: float) -> dict[str, float]:
    """Median, 10th and 90th percentile in milliseconds of the likeliest next token, at batch 1, after a context.

    Args:
        model: a decoder, in evaluation mode, on the CPU.
        ids: ``(1, context)``.
        seconds: how long to measure; one run at least.
    """
    _, context = model.stream(ids, model.init_state(1, ids.shape[1] + TIMED), last=True)
    times: list[float] = []
    begun = time.perf_counter()
    while not times or time.perf_counter() - begun < seconds:
        state, token = context.clone(), ids[:, -1:]
        for place in range(TIMED):
            started = time.perf_counter()
            scores, state = model.stream(token, state, last=True)
            token = scores.argmax(-1)
            if place >= WARMUP:
                times.append(1000 * (time.perf_counter() - started))
    tenths = statistics.quantiles(times, n=10)
    return {"median": statistics.median(times), "p10": tenths[0], "p90": tenths[-1]}


@torch.inference_mode()
def state_bytes(model: Any, ids: Tensor) -> int:
    """The bytes of a stream's state after tokens ``(1, context)``, made for no more."""
    _, state = model.stream(ids, model.init_state(*ids.shape), last=True)
    return sum(leaf.numel() * leaf.element_size() for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor))


def multiply_adds(model: Any, ids: Tensor) -> int:
    """The multiply-adds of a pass over tokens ``(1, context)``; of models that route them, those of just these tokens."""
    try:
        return cost(model, ids).macs
    except AnyformerError:  # how much is computed depends on the numbers, not on shapes alone
        counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        with torch.inference_mode(), counter:
            model(ids)
        return counter.get_total_flops() // 2
