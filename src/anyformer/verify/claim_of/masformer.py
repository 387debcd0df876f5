"""MASFormer: full attention in few layers keeps what windows lose."""

from anyformer.data.recall import Copying
from anyformer.verify.claim import Claim
from anyformer.verify.experiments import Budget, decoder, recalled

TASK, BUDGET = Copying(size=32, length=32, symbols=26), Budget(steps=300, learning_rate=5e-3)
# Four windows of 8 reach 28 tokens back. A first rule had windows of 16, which reach the 33 tokens hop by hop, and copied.
NEAR = "grouped_query_attention(kv_heads=2, window=8, position=rotary())"
FULL = "grouped_query_attention(kv_heads=2, position=rotary())"


def run(seed: int) -> tuple[float, float]:
    """The share of symbols copied from beyond the windows: one of four layers full, and all of them near."""
    mixed, near = (decoder(dim=64, layers=layers) for layers in (f"1 x {FULL}, 3 x {NEAR}", f"4 x {NEAR}"))
    return recalled(mixed, TASK, BUDGET, seed), recalled(near, TASK, BUDGET, seed)


CLAIM = Claim(
    statement="full attention in few layers, with attention to what is near in the others, keeps long-range dependencies",
    measure="share of 32 random symbols that are copied right from 33 tokens before, one full layer of four against none",
    run=run,
)
