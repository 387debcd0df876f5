"""Jamba: attention beside Mamba does in context what Mamba alone does not."""

from anyformer.data.recall import Copying
from anyformer.verify.claim import Claim
from anyformer.verify.experiments import Budget, decoder, recalled

TASK, BUDGET = Copying(size=32, length=32, symbols=26), Budget(steps=300, learning_rate=5e-3)
ATTENTION = "grouped_query_attention(kv_heads=2)"


def run(seed: int) -> tuple[float, float]:
    """The share of symbols copied by a hybrid without positions, and by Mamba alone."""
    hybrid, pure = (
        decoder(dim=64, layers=layers) for layers in (f"1 x mamba, 1 x {ATTENTION}, 1 x mamba", "3 x mamba")
    )
    return recalled(hybrid, TASK, BUDGET, seed), recalled(pure, TASK, BUDGET, seed)


CLAIM = Claim(
    statement="a hybrid of Mamba and attention layers learns in context what Mamba layers alone do not",
    measure="share of 32 random symbols that are copied right, two Mamba layers and one of attention against three of Mamba",
    run=run,
    source="section 6.2",
)
