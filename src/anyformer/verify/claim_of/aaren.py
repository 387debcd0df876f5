"""Aaren: as good as a Transformer, with a state that does not grow."""

from anyformer.verify.claim import Claim
from anyformer.verify.experiments import Budget, bits, decoder

BUDGET = Budget(steps=300, learning_rate=5e-3)
ATTENTION = "grouped_query_attention(kv_heads=4, position=rotary())"


def run(seed: int) -> tuple[float, float]:
    """The bits per byte of two layers whose query does not depend on the text, and of two layers of attention."""
    aaren, attention = (decoder(dim=64, layers=f"2 x {mixer}") for mixer in ("aaren(heads=4)", ATTENTION))
    return bits(aaren, BUDGET, seed), bits(attention, BUDGET, seed)


CLAIM = Claim(
    statement="Aarens are comparable to Transformers at a memory that does not grow with the tokens",
    measure="bits per byte of the standard library's sources, attention of a learned query against attention of the tokens'; "
    "above 0 is better than the Transformer, which is more than the paper says",
    run=run,
    more=False,
)
