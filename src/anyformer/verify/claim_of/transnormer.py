"""TransNormer: without the denominator, and with a norm behind the sums, gradients stay bounded."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.data.seeds import derive_seed
from anyformer.verify.claim import Claim

TOKENS, WIDTH, DRAWS = 128, 16, 4
SCALES = tuple(
    10.0**-power for power in range(9)
)  # of the scores; kernels are above 0 and may come as near to it as they like
EPS = 1e-6


def scaled(scores: Tensor, v: Tensor) -> Tensor:
    """Causal linear attention over its denominator."""
    weights = scores.tril()
    return weights / weights.sum(-1, keepdim=True) @ v


def normed(scores: Tensor, v: Tensor) -> Tensor:
    """The same without the denominator, its output over its root mean square."""
    return F.rms_norm(scores.tril() @ v, (WIDTH,), eps=EPS)


def largest_gradient(attention: Callable[[Tensor, Tensor], Tensor], seed: int) -> float:
    """The logarithm to base 10 of the largest derivative of an output by a score, over draws and scales."""
    generator, largest = torch.Generator().manual_seed(derive_seed(seed, "gradients")), 0.0
    for scale in SCALES * DRAWS:
        scores = (scale * torch.rand(TOKENS, TOKENS, generator=generator, dtype=torch.float64)).requires_grad_()
        v = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
        weight = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((attention(scores, v) * weight).sum(), scores)
        largest = max(largest, float(gradient.abs().max()))
    return float(torch.tensor(largest).log10())


def run(seed: int) -> tuple[float, float]:
    """With the norm, and with the denominator."""
    return largest_gradient(normed, seed), largest_gradient(scaled, seed)


CLAIM = Claim(
    statement="the denominator of linear attention makes gradients unbounded; a norm in its place bounds them",
    measure=f"log10 of the largest derivative by a score, scores down to {SCALES[-1]:g}, norm with {EPS:g} against denominator",
    run=run,
    more=False,
    source="section 3.1",
)
