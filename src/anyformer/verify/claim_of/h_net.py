"""H-Net: the borders that are learnt from bytes fall where words begin."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.core import registry, serial
from anyformer.core.config import resolve
from anyformer.data.text import TextBatches, encode
from anyformer.data.tokenizers import ByteTokenizer
from anyformer.parts.down.dynamic_chunks import DynamicChunks
from anyformer.verify.claim import Claim
from anyformer.verify.experiments import Budget, trained
from anyformer.verify.tasks import SOURCES

NAME, BUDGET, CONTEXT, ROWS = "h_net_micro", Budget(steps=400, learning_rate=3e-3), 128, 256
WORD = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"


def word_starts(ids: Tensor) -> Tensor:
    """Whether a byte of a word stands behind one that is none; ``(rows, bytes)``, the first byte left out."""
    inside = torch.isin(ids, torch.tensor(list(WORD)))
    return inside[:, 1:] & ~inside[:, :-1]


def run(seed: int) -> tuple[float, float]:
    """The share of learnt borders where a word begins, and the share of all bytes where one does."""
    train, _, test = (encode(part, ByteTokenizer()) for part in SOURCES.text().divide(seed))
    pattern = serial.to_data(resolve(registry.system("h_net").pattern(NAME)))
    model = trained(pattern, TextBatches(train, context=CONTEXT, size=8, seed=seed), BUDGET, seed)
    ids = torch.from_numpy(test.read(0, ROWS * CONTEXT).astype(np.int64)).view(ROWS, CONTEXT)
    noted: list[Tensor] = []
    (router,) = (part for part in model.modules() if isinstance(part, DynamicChunks))

    def note(part: Any, given: Any, made: Any) -> None:
        noted.append(made[2].starts[:, 1:])  # the first byte of a row starts a chunk whatever it is

    with torch.no_grad():
        handle = router.register_forward_hook(note)
        model(ids)
        handle.remove()
    begins = word_starts(ids)
    return begins[noted[0]].double().mean().item(), begins.double().mean().item()


CLAIM = Claim(
    statement="borders of chunks that are learnt with the model fall where units of meaning begin",
    measure="share of learnt borders at the first byte of a word of the standard library's sources, against that of all bytes",
    run=run,
    source="section 3.2; number from memory",
)
