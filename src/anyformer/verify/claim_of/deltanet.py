"""DeltaNet: the delta rule recalls more than sums do."""

from anyformer.data.recall import MultiQueryRecall
from anyformer.verify.claim import Claim
from anyformer.verify.experiments import Budget, decoder, recalled

TASK = MultiQueryRecall(size=64, tokens=32, pairs=4, symbols=32)
BUDGET = Budget(steps=400, learning_rate=5e-3)


def run(seed: int) -> tuple[float, float]:
    """The share of values recalled by two layers of DeltaNet, and of gated linear attention with states of equal size."""
    delta, gated = (
        decoder(dim=64, layers=f"2 x {mixer}") for mixer in ("delta_net(heads=2)", "gated_linear_attention(heads=2)")
    )
    return recalled(delta, TASK, BUDGET, seed), recalled(gated, TASK, BUDGET, seed)


CLAIM = Claim(
    statement="DeltaNet outperforms linear-time baselines such as GLA where associations have to be recalled",
    measure="share of values recalled (MQAR, 4 pairs among 32 tokens), DeltaNet with its convolutions against GLA",
    run=run,
)
