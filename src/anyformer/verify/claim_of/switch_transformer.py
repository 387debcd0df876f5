"""Switch Transformers: more experts are better at the same cost a token."""

from anyformer.verify.claim import Claim
from anyformer.verify.experiments import Budget, bits, decoder

BUDGET = Budget(steps=300, learning_rate=5e-3)
EXPERTS = "capped_experts(count=8, capacity=32, balance=0.01)"


def run(seed: int) -> tuple[float, float]:
    """The bits per byte of two layers with eight experts of which a byte sees one, and with one perceptron of their size."""
    sparse, dense = (
        decoder(dim=64, layers="2 x mamba", channel_mixer=mixer) for mixer in (EXPERTS, "mlp(activation=relu)")
    )
    return bits(sparse, BUDGET, seed), bits(dense, BUDGET, seed)


CLAIM = Claim(
    statement="experts of which each token sees one learn more at the same computation",
    measure="bits per byte of the standard library's sources, eight experts of 32 tokens in 128 against one perceptron",
    run=run,
    more=False,
)
