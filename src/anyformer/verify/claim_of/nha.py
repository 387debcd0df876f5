"""Native hybrid attention: the window is the dial from linear to full attention."""

from anyformer.data.recall import Copying
from anyformer.verify.claim import Claim
from anyformer.verify.experiments import Budget, decoder, recalled

TASK, BUDGET = Copying(size=32, length=32, symbols=26), Budget(steps=300, learning_rate=5e-3)


def run(seed: int) -> tuple[float, float]:
    """The share of symbols copied with a window that reaches them, and with one that does not."""
    wide, narrow = (
        decoder(dim=64, layers=f"2 x native_hybrid_attention(heads=2, slots=16, window={window})") for window in (48, 8)
    )
    return recalled(wide, TASK, BUDGET, seed), recalled(narrow, TASK, BUDGET, seed)


CLAIM = Claim(
    statement="the width of the window alone turns the layer from linear to full attention",
    measure="share of 32 random symbols that are copied right from 33 tokens before, a window of 48 against one of 8",
    run=run,
)
