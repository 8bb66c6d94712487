"""What every technique must hold to, on networks that it has never seen: the plain calls of a person's own project."""

import copy
import inspect
import warnings

import pytest
import torch
import torchvision
from torch import nn

import compresslab as cl
from compresslab import techniques
from tests.techniques.samples import NarrowResNet, narrow_mobilenet

pytestmark = pytest.mark.slow

CHAINS = ["article_mlp", "lenet_300_100", "lenet_5"]


class Rows(nn.Module):
    """An LSTM that reads an image row by row, and two Linear layers that decide."""

    def __init__(self):
        super().__init__()
        self.memory = nn.LSTM(16, 64, batch_first=True)
        self.hidden, self.relu, self.head = nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 5)

    def forward(self, images):
        states, _ = self.memory(images.squeeze(1))  # (N, rows, 64)
        return self.head(self.relu(self.hidden(states[:, -1])))


class Words(nn.Module):
    """An LSTM that reads words, and two Linear layers that decide."""

    def __init__(self):
        super().__init__()
        self.table, self.memory = nn.Embedding(20, 16), nn.LSTM(16, 64, batch_first=True)
        self.hidden, self.relu, self.head = nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 5)

    def forward(self, words):
        states, _ = self.memory(self.table(words))  # (N, words, 64)
        return self.head(self.relu(self.hidden(states[:, -1])))


class Tied(nn.Module):
    """Two layers that share their weight, between layers that do not."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(256, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.fourth, self.head = nn.Linear(64, 96), nn.Linear(96, 5)
        self.third.weight = self.second.weight

    def forward(self, images):
        hidden = self.first(images.flatten(1)).relu()
        hidden = self.third(self.second(hidden).relu()).relu()
        return self.head(self.fourth(hidden).relu())


def vision_transformer():
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=128, num_classes=5
    )


FOREIGN = {  # name: (network, shape of an image)
    "resnet": (NarrowResNet, (3, 32, 32)),
    "mobilenet_v3": (narrow_mobilenet, (3, 32, 32)),
    "vision_transformer": (vision_transformer, (3, 32, 32)),
    "lstm": (Rows, (1, 16, 16)),
    "words": (Words, (9,)),
    "tied": (Tied, (1, 16, 16)),
}


@pytest.fixture(scope="module", params=FOREIGN)
def foreign(request):
    """An untrained network and images for it."""
    build, shape = FOREIGN[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.rand(24, *shape, generator=torch.Generator().manual_seed(1))
        return build().eval(), (20 * images).long() if request.param == "words" else images


def first_setting(technique):
    """The setting that a lab begins with."""
    setting, seen = {}, set()
    for control in technique.controls:
        if control.alternative not in seen:
            setting[control.name] = control.default
            seen.update([control.alternative] if control.alternative else [])
    return setting


def ends(technique):
    """The first setting with each control in turn at both of its ends."""
    for control in technique.controls:
        values = [control.low, control.high]
        if control.choices:
            values = [control.choices[0], control.choices[-1]]
        elif isinstance(control.default, bool):
            values = [False, True]
        for value in values:
            rivals = {
                one.name for one in technique.controls if control.alternative and one.alternative == control.alternative
            }
            rest = {name: one for name, one in first_setting(technique).items() if name not in rivals}
            yield {**rest, control.name: value}


def apply(technique, model, images, setting):
    """The technique as the sweep calls it; what it says in warnings is not this test's matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return technique.apply(model, *([images] if technique.calibration else []), **setting)


@pytest.fixture(params=techniques.names(), scope="module")
def technique(request):
    return techniques.get(request.param)


@pytest.fixture(scope="module")
def small(technique, foreign):
    """The foreign network, compressed as a lab begins; not to be written to."""
    model, images = foreign
    return apply(technique, model, images, first_setting(technique))


def same_state(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_foreign_network_is_compressed_and_left_as_it_was(technique, foreign):
    model, images = foreign
    before, modes = copy.deepcopy(model.state_dict()), [part.training for part in model.modules()]
    state = torch.get_rng_state()
    small = apply(technique, model, images, first_setting(technique))
    assert small is not model
    assert same_state(model.state_dict(), before) and [part.training for part in model.modules()] == modes
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert not small.training
    logits = cl.train.evaluate(small, images)
    assert logits.shape == (24, 5) and logits.isfinite().all()


def test_what_comes_of_a_foreign_network_trains_on_and_keeps_its_shape(small, foreign):
    _, images = foreign
    count = cl.layers.count_parameters(small)
    trained = cl.train.finetune(small, (images, torch.arange(24) % 5), steps=2, precision="fp32", bar=False)
    assert cl.layers.count_parameters(trained) == count
    assert not torch.equal(cl.train.evaluate(trained, images), cl.train.evaluate(small, images))
    assert cl.layers.count_nonzeros(trained) <= count


def test_what_comes_of_a_foreign_network_is_saved_loaded_and_measured(small, foreign):
    _, images = foreign
    again = cl.storage.loads(cl.storage.dumps(small))
    assert torch.equal(cl.train.evaluate(again, images), cl.train.evaluate(small, images))
    sizes = cl.measure.sizes(small)
    assert 0 < sizes.file_bytes and 0 < sizes.parameters
    assert cl.measure.macs(small, images) > 0


def test_both_ends_of_every_control_give_a_network(technique):
    for name in CHAINS[1:]:
        model = cl.models.build(name, seed=0)
        images = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        for setting in ends(technique):
            logits = cl.train.evaluate(apply(technique, model, images, setting), images)
            assert logits.shape == (40, 10) and logits.isfinite().all(), (name, setting)


def test_the_same_call_gives_the_same_network(technique):
    model, images = cl.models.build("lenet_300_100", seed=0), torch.rand(40, 1, 28, 28)
    one, other = (apply(technique, model, images, first_setting(technique)) for _ in range(2))
    assert same_state(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_stays_as_it_was(technique, training):
    model, images = cl.models.build("lenet_5", seed=0).train(training), torch.rand(8, 1, 28, 28)
    small = apply(technique, model, images, first_setting(technique))
    assert {part.training for part in small.modules()} == {training} == {part.training for part in model.modules()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compressed_or_refused_in_words(technique, dtype):
    model, images = cl.models.build("lenet_300_100", seed=0).to(dtype), torch.rand(40, 1, 28, 28)
    try:
        small = apply(technique, model, images, first_setting(technique))
    except ValueError as error:
        assert str(dtype).removeprefix("torch.") in str(error)
        return
    fresh = {torch.float32} if technique.name == "distillation" else {dtype}  # a student has weights of its own
    assert {weight.dtype for weight in small.parameters() if weight.is_floating_point()} == fresh
    assert cl.train.evaluate(small, images).isfinite().all()


@pytest.mark.parametrize(
    "images", [None, torch.rand(0, 1, 28, 28), torch.rand(4, 1, 20, 20)], ids=["none", "no", "shape"]
)
def test_calibration_images_that_do_not_fit_are_named(technique, images):
    if not technique.calibration:
        assert "images" not in inspect.signature(technique.apply).parameters
        return
    optional = inspect.signature(technique.apply).parameters["images"].default is None
    if optional and images is None:
        return  # the technique's own tests say where it needs them
    setting = first_setting(technique)
    if optional:
        setting |= NEEDS_IMAGES[technique.name]
    with pytest.raises(ValueError, match="images"):
        apply(technique, cl.models.build("lenet_300_100", seed=0), images, setting)


NEEDS_IMAGES = {"low_rank": {"method": "activation"}, "quantization": {"activations": 8}}
