"""Mixed labels keep their mass, and say how much of each picture there is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.core.errors import UsageError
from anyformer.data.batches import Batches, data_config
from anyformer.data.mixing import CutMix, Mixup, OneOf

mixings = st.sampled_from([Mixup, CutMix])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def flat(labels, classes, side=16):
    """Pictures whose channel k is one where the label is k, so that a mixed picture shows its own label."""
    return torch.nn.functional.one_hot(labels, classes).float()[:, :, None, None].expand(-1, -1, side, side).clone()


@settings(max_examples=60, deadline=None)
@given(
    mixings,
    st.integers(0, 2**32),
    st.integers(1, 9),
    st.integers(2, 5),
    st.sampled_from([1, 3, 16, 31]),
    st.sampled_from([0.01, 0.2, 1.0, 8.0]),
)
def test_labels_are_the_shares_of_the_pictures(mixing, seed, batch, classes, side, alpha):
    labels = torch.randint(classes, (batch,), generator=generator(seed))
    images = flat(labels, classes, side)
    mixed, soft = mixing(classes=classes, alpha=alpha)(images, labels, generator(seed))
    assert mixed.shape == images.shape
    assert soft.dtype == torch.float32
    assert soft.min() >= 0
    torch.testing.assert_close(soft.sum(1), torch.ones(batch))
    torch.testing.assert_close(mixed.mean((2, 3)), soft, atol=1e-5, rtol=0)
    assert torch.equal(images, flat(labels, classes, side))  # what was given is left alone


@settings(max_examples=20, deadline=None)
@given(mixings, st.integers(0, 2**32))
def test_the_generator_alone_decides(mixing, seed):
    labels = torch.arange(6) % 3
    images = torch.rand(6, 1, 8, 8, generator=generator(seed))
    first = mixing(classes=3)(images, labels, generator(seed))
    torch.rand(7)
    again = mixing(classes=3)(images, labels, generator(seed))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, mixing(classes=3)(images, labels, generator(seed + 1)).images)


@pytest.mark.parametrize("mixing", [Mixup(), CutMix()])
def test_numbers_and_several_labels_are_mixed_as_they_are(mixing):
    labels = torch.rand(8, 2, generator=generator())
    images = labels[:, :, None, None].expand(-1, -1, 32, 32)
    mixed, soft = mixing(images, labels, generator(3))
    torch.testing.assert_close(mixed.mean((2, 3)), soft, atol=1e-5, rtol=0)
    assert not torch.equal(soft, labels)


def test_weights_of_mixup_are_those_of_beta():
    labels = torch.arange(4000) % 2
    for alpha in (0.2, 1.0, 5.0):
        _, soft = Mixup(classes=2, alpha=alpha)(flat(labels, 2, 1), labels, generator(1))
        own = soft[torch.arange(4000), labels]
        weight = own[(own < 1) & (own > 0)]  # those whose partner is of the other class
        expected = 1 / (4 * (2 * alpha + 1))
        assert abs(weight.mean() - 0.5) < 0.04
        assert abs(weight.var() - expected) < 0.15 * expected


def test_cutmix_pastes_one_rectangle_of_its_partner():
    images = torch.arange(12.0)[:, None, None, None].expand(-1, 1, 16, 16)
    mixed, soft = CutMix(classes=12)(images, torch.arange(12), generator(5))
    partial = 0
    for index, (picture, label) in enumerate(zip(mixed[:, 0], soft, strict=True)):
        other = picture != index
        partial += bool(other.any())
        rows, columns = other.any(1), other.any(0)
        assert torch.equal(other, rows[:, None] & columns[None, :])
        for inside in (rows, columns):
            assert inside.diff().sum() <= 2  # without a gap
        torch.testing.assert_close(label[index], 1 - other.float().mean())
    assert partial > 4


def test_one_of_two_is_drawn_for_a_batch():
    labels = torch.arange(8) % 4
    images = flat(labels, 4)
    both = OneOf(first=Mixup(classes=4), second=CutMix(classes=4), share=0.5)
    seen = set()
    for seed in range(60):
        mixed, soft = both(images, labels, generator(seed))
        torch.testing.assert_close(soft.sum(1), torch.ones(8))
        plain = torch.equal(mixed, images)
        seen.add("none" if plain else "cut" if set(mixed.unique().tolist()) <= {0.0, 1.0} else "mixed")
    assert seen == {"none", "cut", "mixed"}


@pytest.mark.parametrize("mixing", [Mixup, CutMix])
def test_alpha_has_to_be_positive(mixing):
    for alpha in (0, -1):
        with pytest.raises(UsageError, match="alpha of mixup and cutmix is a positive number"):
            mixing(alpha=alpha)


def test_mixed_batches_are_a_function_of_seed_and_step():
    images = torch.randint(0, 256, (20, 1, 8, 8), generator=generator()).to(torch.uint8)
    labels = torch.arange(20) % 5

    def batches(seed=1):
        mixing = OneOf(first=Mixup(classes=5), second=CutMix(classes=5))
        return Batches(images, labels, data_config(images), size=8, seed=seed, mixing=mixing)

    forward, backward = batches(), batches()
    first = [forward(step) for step in range(5)]
    for step in reversed(range(5)):
        again = backward(step)
        assert torch.equal(first[step].images, again.images)
        assert torch.equal(first[step].labels, again.labels)
        torch.testing.assert_close(again.labels.sum(1), torch.ones(8))
    assert not torch.equal(batches(2)(0).images, first[0].images)
    loss = torch.nn.functional.cross_entropy(torch.zeros(8, 5), first[0].labels, label_smoothing=0.1)
    torch.testing.assert_close(loss, torch.tensor(5.0).log())
