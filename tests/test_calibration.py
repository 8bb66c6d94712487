"""Looking at what layers get and give: every batch once, nothing changed, bad images named."""

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab import calibration


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(6, 3))


@pytest.fixture
def images():
    return torch.rand(10, 1, 3, 4, generator=torch.Generator().manual_seed(1))


def collect(model, images, name, **options):
    seen = []
    calibration.watch(model, images, {name: lambda given, made: seen.append((given.clone(), made.clone()))}, **options)
    return torch.cat([given for given, _ in seen]), torch.cat([made for _, made in seen]), len(seen)


@pytest.mark.parametrize("batch_size, times", [(None, 1), (4, 3), (10, 1), (1, 10)])
def test_a_watcher_sees_what_the_layer_gets_and_gives(model, images, batch_size, times):
    given, made, calls = collect(model, images, "4", batch_size=batch_size)
    hidden = model[1](images.flatten(1)).relu().detach()
    assert calls == times
    assert torch.allclose(given, hidden, atol=1e-6)
    assert torch.allclose(made, model[4](hidden).detach(), atol=1e-6)


def test_the_empty_name_is_the_model_itself(model, images):
    given, made, _ = collect(model, cl.data.Split(images, torch.zeros(10, dtype=torch.int64)), "")
    assert torch.equal(given, images)
    assert torch.allclose(made, cl.train.evaluate(model, images), atol=1e-6)


def test_model_images_and_chance_are_left_as_they_were(images):
    model = nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(12, 3))
    model.train()[3].eval()
    before, state = {name: one.clone() for name, one in model.state_dict().items()}, torch.get_rng_state()
    shifted = images - 0.5
    kept = shifted.clone()
    calibration.watch(model, shifted, {"1": lambda given, made: None})
    assert torch.equal(shifted, kept)  # though the first layer writes into its input
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert [part.training for part in model] == [True, True, True, False]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(part._forward_hooks for part in model.modules())


def test_an_error_of_a_watcher_leaves_no_hook(model, images):
    def fail(given, made):
        raise KeyError("mine")

    with pytest.raises(KeyError):
        calibration.watch(model, images, {"1": fail})
    assert not any(part._forward_hooks for part in model.modules())


def test_whole_numbers_stay_whole():
    words = torch.randint(0, 9, (5, 4))
    given, _, _ = collect(nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(8, 3)), words, "0")
    assert torch.equal(given, words)


def test_half_precision_models_are_given_images_of_their_type(images):
    given, _, _ = collect(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).half(), images, "1")
    assert given.dtype == torch.float16


@pytest.mark.parametrize(
    "images, message",
    [
        (None, "images is None; give calibration images"),
        (torch.rand(0, 1, 3, 4), "images is empty"),
        ([1.0, 2.0], "images is list"),
        (torch.rand(4), r"images is \(4,\)"),
        (torch.full((2, 1, 3, 4), torch.nan), "not finite"),
        (torch.rand(2, 1, 5, 5), r"the model does not take images of shape \(2, 1, 5, 5\)"),
    ],
)
def test_bad_images_are_named(model, images, message):
    with pytest.raises(ValueError, match=message):
        calibration.watch(model, images, {"1": lambda given, made: None})


def test_an_unknown_layer_is_named(model, images):
    with pytest.raises(ValueError, match="watchers is 'fc1'"):
        calibration.watch(model, images, {"fc1": lambda given, made: None})


def test_a_limit_takes_the_first_images(images):
    assert torch.equal(calibration.checked_images(images, 3), images[:3])
    assert len(calibration.checked_images(images, 99)) == 10
    with pytest.raises(ValueError, match="limit is 0"):
        calibration.checked_images(images, 0)
