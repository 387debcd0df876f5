"""Batches are a pure function of seed and step, and normalised by the training part's own numbers."""

import pytest
import torch

from anyformer.core.errors import UsageError
from anyformer.data.augment import Augmentation
from anyformer.data.batches import Batches, data_config, normalize

IMAGES = torch.randint(0, 256, (50, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
LABELS = torch.arange(50)


def batches(**changes):
    arguments = {"size": 16, "seed": 4, "augmentation": Augmentation()} | changes
    return Batches(IMAGES, LABELS, data_config(IMAGES), **arguments)


def test_a_step_gives_the_same_bits_in_any_order_of_asking():
    forward, backward = batches(), batches()
    first = [forward(step) for step in range(7)]
    for step in reversed(range(7)):
        again = backward(step)
        assert torch.equal(first[step].images, again.images)
        assert torch.equal(first[step].labels, again.labels)


def test_epochs_shuffle_anew_and_take_no_picture_twice():
    made = batches()
    assert made.epoch_steps == 3
    epochs = [torch.cat([made(3 * epoch + step).labels for step in range(3)]).tolist() for epoch in range(2)]
    assert all(len(set(epoch)) == 48 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert sorted(made.order(0).tolist()) == list(range(50))
    assert batches(seed=5).order(0).tolist() != made.order(0).tolist()


def test_images_go_with_their_labels():
    made = batches(augmentation=None)
    batch = made(4)
    assert torch.equal(batch.images, normalize(IMAGES[batch.labels], made.data_config))
    assert not torch.equal(batches()(4).images, batch.images)


def test_augmentation_differs_between_steps():
    alike = IMAGES[:1].expand(50, -1, -1, -1)
    made = Batches(alike, LABELS, data_config(IMAGES), size=16, seed=4, augmentation=Augmentation())
    assert not torch.equal(made(0).images, made(1).images)
    assert not torch.equal(made(0).images[0], made(0).images[1])


def test_small_sets_make_one_whole_batch():
    assert len(batches(size=500)(3).labels) == 50
    for size, images in ((0, IMAGES), (4, IMAGES[:0])):
        with pytest.raises(UsageError, match="both must be positive"):
            Batches(images, LABELS, {}, size=size, seed=0)


def test_configuration_is_measured_and_normalises():
    config = data_config(IMAGES)
    pixels = IMAGES.double() / 255
    torch.testing.assert_close(torch.tensor(config["mean"]).double(), pixels.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(config["std"]).double(), pixels.std((0, 2, 3), correction=0))
    assert (config["size"], config["channels"], config["crop"]) == ([8, 8], 3, 1.0)
    normal = normalize(IMAGES, config)
    assert normal.dtype == torch.float32
    assert normal.mean((0, 2, 3)).abs().max() < 1e-5
    assert (normal.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_pictures_of_one_colour_stay_finite():
    flat = torch.full((4, 1, 8, 8), 7, dtype=torch.uint8)
    assert (normalize(flat, data_config(flat)) == 0).all()
