"""Distorted copies of images."""

import pytest
import torch

import compresslab as cl
from benchmarks.records.augmentation import augmented

STILL = {"shift": 0, "degrees": 0, "scale": 0, "shear": 0, "elastic": 0}


@pytest.fixture
def split():
    images = torch.rand(30, 2, 8, 10, generator=torch.Generator().manual_seed(0))
    return cl.data.Split(images, torch.arange(30) % 3)


def test_originals_first_then_copies_with_their_labels(split):
    more = augmented(split, copies=2, seed=1)
    assert len(more) == 90 and torch.equal(more.images[:30], split.images)
    assert torch.equal(more.labels, split.labels.repeat(3))
    assert not torch.equal(more.images[30:60], split.images) and not torch.equal(more.images[30:60], more.images[60:])


def test_no_distortion_and_no_copies(split):
    assert torch.allclose(augmented(split, 1, **STILL).images[30:], split.images, atol=1e-5)
    assert torch.equal(augmented(split, 0).images, split.images)


def test_a_seed_repeats_and_torchs_own_generator_is_left_alone(split):
    state = torch.get_rng_state()
    one, same, other = (augmented(split, 1, seed=seed).images for seed in (4, 4, 5))
    assert torch.equal(one, same) and not torch.equal(one, other) and torch.equal(state, torch.get_rng_state())


def test_shifts_stay_within_their_limit():
    images = torch.zeros(200, 1, 21, 21)
    images[:, :, 10, 10] = 1
    moved = augmented((images, torch.zeros(200, dtype=torch.int64)), 1, **STILL | {"shift": 3.0}).images[200:, 0]
    lines = torch.arange(21.0)
    where = torch.stack([(moved.sum(2) * lines).sum(1), (moved.sum(1) * lines).sum(1)]) - 10
    assert 2.5 < where.abs().max() <= 3.01


@pytest.mark.parametrize("shape", [(40, 80), (80, 40), (61, 61)], ids=str)
@pytest.mark.parametrize("settings", [{"degrees": 90}, {"shear": 0.8}], ids=str)
def test_turned_and_sheared_in_pixels_whatever_the_shape(shape, settings):
    images, middle = torch.zeros(1, 1, *shape), [side // 2 for side in shape]
    images[0, 0, middle[0] - 5 : middle[0] + 5, middle[1] - 5 : middle[1] + 5] = 1
    copies = augmented((images, torch.zeros(1, dtype=torch.int64)), 200, **STILL | settings).images[1:, 0] > 0.5
    height, width = (int(copies.any(axis).sum(1).max()) for axis in (2, 1))
    if "shear" in settings:
        assert height == 10 and 16 <= width <= 18  # 10 rows, each up to 0.8 beyond the one before
    else:
        assert 13 <= height <= 15 and 13 <= width <= 15  # the diagonal of a square of 10


def test_mirror(split):
    turned = augmented(split, 1, mirror=True, **STILL).images[30:]
    same = [torch.allclose(one, other, atol=1e-5) for one, other in zip(turned, split.images, strict=True)]
    mirrored = [torch.allclose(one, other.flip(2), atol=1e-5) for one, other in zip(turned, split.images, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True)) and 5 < sum(mirrored) < 25


@pytest.mark.parametrize("settings, told", [({"copies": -1}, "copies is -1"), ({"degrees": 200}, "degrees is 200"),
                                            ({"shift": -1}, "shift is -1"), ({"seed": "a"}, "seed is 'a'"),
                                            ({"seed": -1}, "seed is -1")])  # fmt: skip
def test_bad_settings(split, settings, told):
    with pytest.raises(ValueError, match=told):
        augmented(split, **settings)


def test_images_that_are_none():
    with pytest.raises(ValueError, match="images have shape"):
        augmented((torch.zeros(4, 9), torch.zeros(4, dtype=torch.int64)))
