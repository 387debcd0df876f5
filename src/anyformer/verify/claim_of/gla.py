"""Gated linear attention: a gate that depends on the data makes linear attention a better model of text."""

from anyformer.verify.claim import Claim
from anyformer.verify.experiments import Budget, bits, decoder

BUDGET = Budget(steps=300, learning_rate=5e-3)


def run(seed: int) -> tuple[float, float]:
    """The bits per byte of two layers of gated linear attention, and of linear attention without gates."""
    gated, plain = (
        decoder(dim=64, layers=f"2 x {mixer}")
        for mixer in ("gated_linear_attention(heads=2)", "norm_attention(heads=2)")
    )
    return bits(gated, BUDGET, seed), bits(plain, BUDGET, seed)


CLAIM = Claim(
    statement="data-dependent gates make linear attention a better language model",
    measure="bits per byte of the standard library's sources, GLA against normalised linear attention without decay",
    run=run,
    more=False,
)
