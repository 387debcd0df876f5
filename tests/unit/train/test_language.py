"""Learning the next token, and the measures of what was learnt."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from anyformer import core
from anyformer.core.errors import UsageError
from anyformer.data.recall import Copying, InductionHeads
from anyformer.data.text import IGNORED, EncodedArray, TextBatch, TextBatches
from anyformer.skeletons.decoder import Decoder
from anyformer.train.checkpoint import Checkpoints
from anyformer.train.language import NextToken, accuracy, likelihood, token_accuracy
from anyformer.train.loop import Role, Trainer
from anyformer.train.schedule import adamw

LAYERS = "2 x grouped_query_attention(kv_heads=2, position=rotary())"


def decoder(vocabulary=16, dim=32, layers=LAYERS):
    torch.manual_seed(0)
    return core.build(Decoder.pattern(dim=dim, layers=layers, vocabulary=vocabulary, tie=False))


def test_the_loss_is_the_mean_over_scored_tokens():
    model = decoder().double()
    batch = Copying(size=3, length=5, symbols=15)(0)
    loss = NextToken().losses("student", {"student": model}, batch, 0)
    logs = model(batch.ids).log_softmax(-1)
    wanted = -torch.stack([logs[row, place, batch.targets[row, place]] for row in range(3) for place in range(5, 10)])
    torch.testing.assert_close(loss.double(), wanted.mean(), rtol=1e-6, atol=0)
    assert loss.dtype == torch.float32


def test_pads_change_nothing():
    model = decoder()
    batch = Copying(size=3, length=5, symbols=15)(0)
    wanted = NextToken().losses("student", {"student": model}, batch, 0)
    ids, targets = F.pad(batch.ids, (4, 0), value=7), F.pad(batch.targets, (4, 0), value=IGNORED)
    keep = F.pad(torch.ones_like(batch.ids, dtype=torch.bool), (4, 0), value=False)
    padded = NextToken().losses("student", {"student": model}, TextBatch(ids, targets, keep), 0)
    torch.testing.assert_close(padded, wanted)


def test_nothing_scored_is_no_loss():
    batch = TextBatch(torch.ones(2, 3, dtype=torch.int64), torch.full((2, 3), IGNORED))
    assert NextToken().losses("student", {"student": decoder()}, batch, 0).item() == 0


class Collecting(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, raw, collect=None):
        scores = self.model(raw, collect)
        collect["balance_loss"] = [scores.sum() * 0 + 2.0, torch.tensor(0.5)]
        collect["router_loss"] = [torch.tensor(1.0)]
        collect["routing"] = [torch.tensor(100.0)]
        return scores


def test_auxiliary_losses_are_added():
    model, batch = decoder(), Copying(size=3, length=5, symbols=15)(0)
    plain = NextToken().losses("student", {"student": model}, batch, 0)
    more = NextToken().losses("student", {"student": Collecting(model)}, batch, 0)
    torch.testing.assert_close(more, plain + 3.5)


def test_accuracy_counts_scored_tokens():
    scores = torch.eye(4)[torch.tensor([[0, 1, 2, 3]])]
    assert accuracy(scores, torch.tensor([[0, 3, IGNORED, 3]])) == pytest.approx(2 / 3)
    task = InductionHeads(size=8, tokens=8)
    model = decoder().eval()
    with torch.no_grad():
        shares = [accuracy(model(task(step).ids), task(step).targets) for step in range(3)]
    assert token_accuracy(model, task, 3) == pytest.approx(sum(shares) / 3)


@pytest.mark.parametrize("layers", [LAYERS, "1 x retention(heads=2), 1 x grouped_query_attention(kv_heads=1, group=2)"])
@pytest.mark.parametrize(("context", "chunk", "batch"), [(20, 7, 2), (20, 50, 3), (100, 16, 1), (1, 1, 8), (20, 1, 8)])
def test_likelihood_in_chunks_is_that_of_whole_pieces(layers, context, chunk, batch):
    model = decoder(layers=layers).double().eval()
    tokens = np.random.default_rng(0).integers(0, 16, 75).astype(np.uint8)
    found = likelihood(model, EncodedArray(tokens, 150), context=context, chunk=chunk, batch=batch)
    total = 0.0
    for start in range(0, 74, context):
        piece = torch.from_numpy(tokens[start : start + context + 1].astype(np.int64))
        with torch.no_grad():
            total += F.cross_entropy(model(piece[None, :-1])[0].double(), piece[1:], reduction="sum").item()
    assert found.tokens == 74
    assert found.nats == pytest.approx(total / 74, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(total / 74), rel=1e-6)
    assert found.bits_per_byte == pytest.approx(total / 74 / math.log(2) / 2, rel=1e-6)


def test_likelihood_of_a_beginning():
    model = decoder()
    tokens = np.random.default_rng(0).integers(0, 16, 500).astype(np.uint8)
    text = EncodedArray(tokens, 500)
    assert likelihood(model, text, context=20, limit=85).tokens == 80
    assert likelihood(model, text, context=20, limit=3).tokens == 20
    assert likelihood(model, text, context=20, limit=10**9).tokens == 499
    part = likelihood(model, EncodedArray(tokens[:81], 81), context=20)
    assert likelihood(model, text, context=20, limit=85).nats == pytest.approx(part.nats)
    assert not model.training


def test_what_has_no_likelihood_is_refused():
    with pytest.raises(UsageError, match="the text has 1 tokens"):
        likelihood(decoder(), EncodedArray(np.zeros(1, np.uint8), 1), context=5)
    with pytest.raises(UsageError, match="chunk=0"):
        likelihood(decoder(), EncodedArray(np.zeros(9, np.uint8), 9), context=5, chunk=0)


def trainer(folder: Path | None = None) -> Trainer:
    text = np.frombuffer(b"the cat sat on the mat. " * 40, np.uint8) % 16
    model = decoder()
    return Trainer(
        {"student": Role(model, adamw(model, 0.01))},
        NextToken(),
        TextBatches(EncodedArray(text, len(text)), context=12, size=8, seed=1),
        every=10,
        save_every=7,
        store=Checkpoints(folder, {"model": "decoder"}) if folder else None,
    )


def test_a_run_learns_and_resumes_to_the_same_bits_inside_an_epoch(tmp_path):
    whole = trainer()
    first: list[float] = []
    whole.run(30, progress=lambda step, losses: first.append(losses["student"]))
    assert first[-1] < 0.3 * first[0]
    assert 30 % whole.batches.epoch_steps  # it stops within an epoch
    begun = trainer(tmp_path)
    begun.run(13)
    assert begun.store is not None
    begun.store.close()
    resumed = trainer(tmp_path)
    assert resumed.step == 13
    resumed.run(30)
    for name, tensor in whole.weights("student").items():
        assert torch.equal(tensor, resumed.weights("student")[name])


def test_gradients_accumulate_over_parts_of_a_batch():
    whole, parts = trainer(), trainer()
    parts.accumulate = 4
    whole.run(1)
    parts.run(1)
    for name, tensor in whole.weights("student").items():
        torch.testing.assert_close(parts.weights("student")[name], tensor, rtol=1e-3, atol=1e-5)
