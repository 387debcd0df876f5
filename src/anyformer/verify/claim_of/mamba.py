"""Mamba: as good as Transformers of its size, or better."""

from anyformer.verify.claim import Claim
from anyformer.verify.experiments import Budget, bits, decoder

BUDGET = Budget(steps=300, learning_rate=5e-3)
PERCEPTRON = "gated_mlp(hidden=176)"


def run(seed: int) -> tuple[float, float]:
    """The bits per byte of three Mamba layers, and of two layers of attention and perceptrons, of about as many parameters."""
    mamba = decoder(dim=64, layers="3 x mamba", channel_mixer="none")
    attention = "grouped_query_attention(kv_heads=4, position=rotary())"
    transformer = decoder(dim=64, layers=f"2 x {attention}", channel_mixer=PERCEPTRON)
    return bits(mamba, BUDGET, seed), bits(transformer, BUDGET, seed)


CLAIM = Claim(
    statement="Mamba outperforms Transformers of the same size in language modelling",
    measure="bits per byte of the standard library's sources, three Mamba layers against two Transformer layers",
    run=run,
    more=False,
)
