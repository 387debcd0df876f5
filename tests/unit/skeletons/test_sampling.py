"""What may be chosen, how probable it is, and what is."""

import pytest
import torch

from anyformer.core.errors import UsageError
from anyformer.skeletons.sampling import check_choice, draw, greedy, ranked


def dense(scores, **options):
    """The distribution by token instead of by rank."""
    chances, tokens = ranked(scores, **options)
    return torch.zeros(scores.shape, dtype=torch.float64).scatter(-1, tokens, chances)


def test_nothing_cut_is_the_softmax():
    scores = torch.randn(7, 40)
    torch.testing.assert_close(dense(scores), scores.double().softmax(-1))
    torch.testing.assert_close(dense(scores, temperature=0.3), (scores.double() / 0.3).softmax(-1))


@pytest.mark.parametrize("top_k", [1, 3, 39, 40, 100])
def test_top_k_keeps_the_likeliest(top_k):
    scores = torch.randn(7, 40, dtype=torch.float64)
    chances = dense(scores, top_k=top_k)
    for row, likely in zip(scores, chances, strict=True):
        kept = sorted(range(40), key=lambda token: -row[token])[:top_k]
        wanted = torch.zeros(40, dtype=torch.float64)
        wanted[kept] = row[kept].softmax(0)
        torch.testing.assert_close(likely, wanted)


@pytest.mark.parametrize("top_p", [1e-9, 0.2, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("top_k", [None, 10])
def test_top_p_keeps_the_fewest_that_reach_it(top_p, top_k):
    scores = torch.randn(7, 40, dtype=torch.float64) * 2
    chances = dense(scores, top_p=top_p, top_k=top_k)
    for row, likely in zip(scores, chances, strict=True):
        order = sorted(range(40), key=lambda token: -row[token])[: top_k or 40]
        shares, kept, total = row[order].softmax(0), [], 0.0
        for token, share in zip(order, shares.tolist(), strict=True):
            if total >= top_p:
                break
            kept.append(token)
            total += share
        assert sorted(likely.nonzero().flatten().tolist()) == sorted(kept)
        torch.testing.assert_close(likely[kept], row[kept].softmax(0))


def test_equal_scores_count_as_so_many():
    assert (dense(torch.zeros(1, 8), top_k=3) > 0).sum() == 3
    assert (dense(torch.zeros(1, 8), top_p=0.5) > 0).sum() == 4


def test_draws_follow_the_distribution():
    scores = torch.tensor([[2.0, -1.0, 0.5, float("-inf"), 1.0]])
    count = 10_000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    chances, tokens = ranked(scores)
    drawn = draw(chances.expand(count, -1), tokens.expand(count, -1), uniform)
    shares = drawn.bincount(minlength=5) / count
    torch.testing.assert_close(shares.double(), scores[0].double().softmax(0), atol=2 / count, rtol=0)
    assert shares[3] == 0


def test_a_row_draws_by_its_own_number_alone():
    scores, uniform = torch.randn(9, 30), torch.rand(9, dtype=torch.float64)
    together = draw(*ranked(scores, top_p=0.9), uniform)
    alone = [draw(*ranked(scores[i : i + 1], top_p=0.9), uniform[i : i + 1]) for i in range(9)]
    assert together.tolist() == torch.cat(alone).tolist()


def test_the_ends_of_the_range_draw_what_has_probability():
    chances = torch.tensor([[0.1] * 10 + [0.0] * 3], dtype=torch.float64)  # adds up to a little less than 1
    tokens = torch.arange(13)[None]
    highest = torch.tensor([1.0 - 2**-53], dtype=torch.float64)
    assert draw(chances, tokens, highest).tolist() == [9]
    assert draw(chances, tokens, torch.zeros(1, dtype=torch.float64)).tolist() == [0]


def test_a_low_temperature_is_greedy_and_stays_finite():
    scores = torch.randn(5, 40) * 1e4
    for temperature in (1e-3, 1e-300):
        chances, tokens = ranked(scores, temperature=temperature)
        assert chances.isfinite().all()
        likeliest = greedy(scores)[:, None]
        assert tokens.gather(1, chances.argmax(1, keepdim=True)).tolist() == likeliest.tolist()
        assert (chances.amax(1) > 0.999).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((-1.0, None, None), "temperature=-1.0: give 0"),
        ((float("nan"), None, None), "temperature=nan"),
        ((float("inf"), None, None), "temperature=inf"),
        ((1.0, 0, None), "top_k=0"),
        ((1.0, None, 0.0), "top_p=0.0"),
        ((1.0, None, 1.5), "top_p=1.5"),
        ((1.0, None, float("nan")), "top_p=nan"),
    ],
)
def test_impossible_choices_are_refused(options, says):
    with pytest.raises(UsageError, match=says):
        check_choice(*options)
