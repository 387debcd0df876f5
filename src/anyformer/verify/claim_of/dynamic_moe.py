"""Dynamic routing: as good as two experts for every token, with fewer of them."""

from anyformer.verify.claim import Claim
from anyformer.verify.experiments import Budget, bits, decoder

BUDGET = Budget(steps=300, learning_rate=5e-3)
ROUTERS = ("top_p(p=0.4)", "top_k(k=2)")


def run(seed: int) -> tuple[float, float]:
    """The bits per byte of two layers with eight experts, routed by a threshold and by a number."""
    dynamic, fixed = (
        decoder(dim=64, layers="2 x mamba", channel_mixer=f"experts(count=8, ratio=2, balance=0.01, router={router})")
        for router in ROUTERS
    )
    return bits(dynamic, BUDGET, seed), bits(fixed, BUDGET, seed)


CLAIM = Claim(
    statement="as many experts as a token needs are better than two for every token",
    measure="bits per byte of the standard library's sources, top-p against top-2 routing of eight experts",
    run=run,
    more=False,
)
