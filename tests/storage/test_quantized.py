"""Models with rounded weights and inputs come back rounded: same predictions, same bytes; and they train on."""

import copy
import subprocess
import sys
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab.data import Split
from compresslab.techniques import quantization
from compresslab.weights import codebooks, grids, layers

pytestmark = pytest.mark.slow


class Own(nn.Module):
    """A forward that can be traced."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x.flatten(1)))))


class Untraceable(Own):
    def forward(self, x):
        return super().forward(x) if float(x.sum()) != 0 else x


def batch(count=16, width=6, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def network(kind=Own):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind()
    return model.eval()


def sequence():
    return nn.Sequential(OrderedDict(a=nn.Linear(6, 9), b=nn.ReLU(), c=nn.Linear(9, 3))).eval()


def masked(model):
    for layer in layers.weight_layers(model).values():
        layers.set_mask(layer, layer.weight.detach().abs() > 0.15)
    return model


def quantized(model=None, images=None, **setting):
    model = network() if model is None else model
    return quantization.quantize(model, images, **setting)


def roundings(model):
    """Name -> what tells the rounding of each weight from others."""
    kept = {name: layers.get_rounding(layer) for name, layer in layers.weight_layers(model).items()}
    return {name: None if one is None else (type(one), one.extra_repr()) for name, one in kept.items()}


def came_back(model, inputs, **keywords):
    """The loaded model, after checking that it is the saved one."""
    blob = cl.storage.dumps(model)
    same = cl.storage.loads(blob, **keywords)
    assert cl.storage.dumps(same) == blob
    with torch.no_grad():
        assert torch.equal(same(inputs), model(inputs))
    assert roundings(same) == roundings(model)
    return same


SETTINGS = {
    "8 bits": dict(bits=8),
    "4 bits per tensor": dict(bits=4, per_channel=False),
    "3 bits affine": dict(bits=3, symmetric=False),
    "1 bit": dict(bits=1),
    "1 bit affine": dict(bits=1, symmetric=False, per_channel=False),
    "12 bits": dict(bits=12),
    "learned": dict(bits=4, learned=True),
    "fp16": dict(dtype="fp16"),
    "bf16": dict(dtype="bf16"),
    "inputs": dict(bits=4, activations=5, images=batch(100)),
    "inputs learned": dict(bits=4, images=batch(100), learned=True),
    "inputs alone": dict(bits=32, activations=8, images=batch(100)),
    "inputs of bf16": dict(dtype="bf16", activations=8, images=batch(100)),
}


@pytest.mark.parametrize("make", [sequence, network], ids=["standard", "traced"])
@pytest.mark.parametrize("name", SETTINGS)
def test_what_was_quantized_comes_back_quantized(name, make):
    model = quantized(make(), **SETTINGS[name])
    same = came_back(model, batch())
    assert list(same.state_dict()) == list(model.state_dict())
    assert [key for key, _ in same.named_parameters()] == [key for key, _ in model.named_parameters()]
    kinds = [[type(one).__name__ for one in layers.plain(each).children()] for each in (same, model)]
    assert kinds[0] == kinds[1] or make is network
    assert not any(one.training for one in same.modules())
    came_back(model.train(), batch())


def test_a_fresh_process_needs_no_class(tmp_path):
    model = quantized(masked(network()), batch(50), bits=3, learned=True)
    cl.save(model, tmp_path / "net.clab")
    with torch.no_grad():
        torch.save((batch(), model(batch())), tmp_path / "images.pt")
    code = """
import sys, torch, compresslab as cl
folder = sys.argv[1] + "/"
images, wanted = torch.load(folder + "images.pt")
same = cl.load(folder + "net.clab")
with torch.no_grad():
    assert torch.equal(same(images), wanted)
assert cl.storage.dumps(same) == open(folder + "net.clab", "rb").read()
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


@pytest.mark.parametrize("name", ["4 bits per tensor", "1 bit", "learned", "bf16", "inputs learned"])
def test_a_loaded_model_trains_on_and_stays_on_its_grid(name):
    model = quantized(masked(network()), **SETTINGS[name])
    same = came_back(model, batch())
    split = Split(batch(64), torch.arange(64) % 3)
    tuned = cl.train.finetune(same, split, epochs=2, seed=0, lr=0.01)
    for path, layer in layers.weight_layers(tuned).items():
        rounding, mask = layers.get_rounding(layer), layers.get_mask(layer)
        weight, before = layer.weight.detach(), layers.weight_layers(same)[path]
        trained = [one.parametrizations.weight.original for one in (layer, before)]
        assert not torch.equal(*trained) and torch.equal(mask, layers.get_mask(before))
        assert torch.equal(rounding(weight)[mask], weight[mask]) and not weight[~mask].any()
    came_back(tuned, batch())


@pytest.mark.parametrize("width", [0, 4])
@pytest.mark.parametrize(
    "rounding",
    [
        lambda weight: None,
        lambda weight: grids.Grid(torch.tensor(0.1), torch.tensor(0.0), -8, 7, 4),
        lambda weight: grids.Grid(torch.ones(len(weight), 1), torch.zeros(len(weight), 1), -8, 7, 4),
        lambda weight: grids.Half(torch.float16),
        lambda weight: codebooks.Codebook(torch.tensor([0.0, 1.0]), torch.zeros(weight.shape, dtype=torch.int64)),
    ],
    ids=["plain", "grid", "grid of rows", "half", "codebook"],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_weights_without_entries_come_back_masked(rounding, width):
    model = nn.Linear(width, 4 - width)
    layers.set_rounding(model, rounding(model.weight))
    layers.set_mask(model, torch.ones_like(model.weight, dtype=torch.bool))
    same = cl.storage.loads(cl.storage.dumps(model))
    assert layers.get_mask(same).shape == model.weight.shape
    assert type(layers.get_rounding(same)) is type(layers.get_rounding(model))


def test_a_mask_and_a_grid_come_back_as_both_and_pay_for_what_is_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 200))
    layers.set_mask(model[0], torch.rand(200, 200) < 0.1)
    sparse = quantized(model, bits=4)
    same = came_back(sparse, batch(3, 200))
    assert torch.equal(layers.get_mask(same[0]), layers.get_mask(model[0]))
    assert [type(one) for one in same[0].parametrizations.weight] == [grids.Grid, layers.Mask]
    assert cl.storage.file_bytes(sparse) < 200 * 200 * (0.1 * 4 + 0.48) / 8 + 200 * 9 + 200


def test_a_grid_without_zero_may_be_masked():
    model = quantized(masked(sequence()), bits=1)
    same = cl.storage.loads(cl.storage.dumps(model, fold=False))
    assert torch.equal(same(batch()), model(batch()))
    assert all(torch.equal(layers.get_mask(a), layers.get_mask(b)) for a, b in zip(same[::2], model[::2], strict=True))


@pytest.mark.parametrize("name", ["8 bits", "learned", "fp16"])
def test_tied_weights_share_their_rounding(name):
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False))
    model[2].weight = model[0].weight
    tokens = torch.tensor([[1, 5, 8]])
    same = came_back(quantized(model, **SETTINGS[name]), tokens)
    assert same[0].parametrizations.weight.original is same[2].parametrizations.weight.original
    assert same[0].parametrizations.weight[0] is same[2].parametrizations.weight[0]
    free = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False))
    cl.storage.loads(cl.storage.dumps(same), into=free)
    assert free[0].parametrizations.weight[0] is not free[2].parametrizations.weight[0]
    assert torch.equal(free(tokens), same(tokens))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_transposed_convolutions_with_as_many_channels_in_as_out(kind, symmetric):
    model = quantization.quantize(nn.Sequential(kind(8, 8, 3)), bits=4, symmetric=symmetric)
    same = cl.storage.loads(cl.storage.dumps(model))
    assert torch.equal(same[0].weight, model[0].weight)


def test_halves_cost_two_bytes_at_most():
    model = nn.Sequential(nn.Linear(100, 100))
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        same = came_back(quantized(model, dtype=name), batch(2, 100))
        assert layers.get_rounding(same[0]).dtype == dtype and same[0].weight.dtype == torch.float32
        assert cl.storage.file_bytes(same) < 2 * 100 * 100 + 4 * 100 + 200


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_models_of_other_dtypes_come_back(dtype, bits):
    came_back(quantized(sequence().to(dtype), bits=bits), batch().to(dtype))


def test_frozen_parameters_stay_frozen():
    model = quantized(bits=4, images=batch(50), learned=True)
    model.first.layer.parametrizations.weight.original.requires_grad_(False)
    model.first.layer.parametrizations.weight[0].growth.requires_grad_(False)
    model.last.input.growth.requires_grad_(False)
    same = came_back(model, batch())
    assert {name: one.requires_grad for name, one in same.named_parameters()} == {
        name: one.requires_grad for name, one in model.named_parameters()
    }


def test_learned_step_sizes_come_back_as_scales():
    model = quantized(bits=4, images=batch(50), learned=True)
    split = Split(batch(64), torch.arange(64) % 3)
    tuned = cl.train.finetune(model, split, epochs=3, seed=0, lr=0.02)
    assert all(grid.growth.any() for grid in tuned.modules() if isinstance(grid, grids.Grid | grids.InputGrid))
    same = came_back(tuned, batch())
    steps = [[one.step_size for one in each.modules() if hasattr(one, "step_size")] for each in (same, tuned)]
    assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))
    assert all(not grid.growth.any() for grid in same.modules() if isinstance(grid, grids.Grid | grids.InputGrid))


def test_a_rounding_that_would_not_come_back_is_reported_and_its_values_kept():
    class Thirds(layers.Rounding):
        def forward(self, weight):
            return (weight * 3).round() / 3

    far = grids.Grid(torch.tensor(0.5), torch.tensor(2.0**28), 0, 15, 4)
    for rounding in (Thirds(), far):
        model = sequence()
        layers.set_rounding(model.a, rounding)
        with pytest.warns(UserWarning, match=r"rounding of a\.weight cannot be saved"):
            blob = cl.storage.dumps(model)
        same = cl.storage.loads(blob)
        assert torch.equal(same(batch()), model(batch())) and layers.get_rounding(same.a) is None


@pytest.mark.parametrize("kind", [Own, Untraceable], ids=["traced", "tensors only"])
@pytest.mark.parametrize("name", SETTINGS)
def test_into_puts_grids_masks_and_input_grids_on_a_plain_module(name, kind):
    model = quantized(masked(network(kind)), **SETTINGS[name])
    blob, target = cl.storage.dumps(model), kind()
    weights = {id(layer.weight) for layer in layers.weight_layers(target).values()}
    same = cl.storage.loads(blob, into=target)
    assert same is target and torch.equal(same(batch()), model(batch())) and cl.storage.dumps(same) == blob
    originals = {id(layer.parametrizations.weight.original) for layer in layers.weight_layers(same).values()}
    assert originals == weights and list(same.state_dict()) == list(model.state_dict())
    again = cl.storage.loads(blob, into=same)  # which has all that the file has
    assert torch.equal(again(batch()), model(batch())) and cl.storage.dumps(again) == blob


def test_into_replaces_other_roundings_and_input_grids():
    first = quantized(bits=2, activations=3, images=batch(50, seed=3))
    second = quantized(masked(network()), bits=8, activations=8, images=batch(50))
    cl.storage.loads(cl.storage.dumps(second), into=first)
    assert torch.equal(first(batch()), second(batch())) and roundings(first) == roundings(second)
    assert first.last.input.bits == 8
    plain = network()
    third = quantized(bits=2, dtype=None)
    cl.storage.loads(cl.storage.dumps(plain), into=third)
    assert torch.equal(third(batch()), plain(batch())) and not layers.get_rounding(third.last)


def test_into_wraps_a_shared_layer_once():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(6, 6)
            self.two = self.one

        def forward(self, x):
            return self.two(torch.relu(self.one(x)))

    model = quantized(Shared(), bits=4, images=batch(50))
    assert model.one is model.two
    same = came_back(model, batch(), into=Shared())
    assert same.one is same.two and isinstance(same.one.input, grids.InputGrid)
    assert cl.storage.loads(cl.storage.dumps(model)).one is not None


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (sequence, r"inputs of 'first'.*no layer there"),
        (lambda: nn.Module(), r"inputs of 'first'.*no layer there"),
        (
            lambda: nn.ModuleDict({"first": nn.Linear(6, 7), "norm": nn.BatchNorm1d(8), "last": nn.Linear(8, 3)}),
            "shape",
        ),
        (lambda: nn.ModuleDict({"first": nn.Linear(6, 8), "last": nn.Linear(8, 3)}), "lacks 5.*norm"),
    ],
    ids=["other names", "empty", "other shapes", "without norm"],
)
def test_into_without_a_place_for_an_input_grid_is_refused_and_unchanged(target, message):
    model = target()
    before = copy.deepcopy(model.state_dict())
    blob = cl.storage.dumps(quantized(bits=4, images=batch(50)))
    with pytest.raises(ValueError, match=message) as caught:
        cl.storage.loads(blob, into=model)
    assert not isinstance(caught.value, cl.storage.CorruptFileError)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_the_root_of_a_module_cannot_be_wrapped_in_place():
    model = quantized(nn.Linear(6, 3), bits=4, images=batch(50))
    came_back(model, batch())
    with pytest.raises(ValueError, match="no layer there"):
        cl.storage.loads(cl.storage.dumps(model), into=nn.Linear(6, 3))


def test_a_model_that_has_input_grids_of_its_own_is_filled():
    class Gated(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.gate, self.out = grids.InputGrid(torch.tensor(scale), torch.tensor(7.0), 0, 15, 4), nn.Linear(6, 3)

        def forward(self, x):
            return self.out(self.gate(x))

    model = Gated(0.125)
    assert came_back(model, batch()).gate.bits == 4
    assert torch.equal(came_back(model, batch(), into=Gated(1.0)).gate.scale, torch.tensor(0.125))
    hooked = copy.deepcopy(model)
    hooked.gate.register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(ValueError, match="tensors only"):
        cl.storage.loads(cl.storage.dumps(hooked))
    same = cl.storage.loads(cl.storage.dumps(hooked), into=Gated(1.0))
    assert torch.equal(same(batch()), model(batch()))


def test_saving_leaves_the_model_alone():
    model = quantized(masked(network()), bits=4, images=batch(50), learned=True)
    with torch.no_grad():
        model.first.input.growth.fill_(0.5)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert cl.storage.dumps(model) == cl.storage.dumps(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


class Reader(nn.Module):
    """Integer inputs, an embedding, an LSTM, a linear layer."""

    def __init__(self):
        super().__init__()
        self.words, self.lstm, self.out = nn.Embedding(20, 8), nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, tokens):
        return self.out(self.lstm(self.words(tokens))[0][:, -1])


def foreign(name):
    """A model that the package has not made, and inputs for it."""
    import torchvision

    torch.manual_seed(0)
    if name == "reader":
        return Reader().eval(), torch.randint(0, 20, (3, 5))
    images, sizes = torch.randn(2, 3, 32, 32), dict(num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=48)
    if name == "vit":
        return torchvision.models.VisionTransformer(32, 8, **sizes, num_classes=7).eval(), images
    return getattr(torchvision.models, name)(num_classes=7).eval(), images


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("mobilenet_v3_small", dict(bits=4, activations=8, clipping="none", calibration="minmax")),
        ("vit", dict(bits=4, symmetric=False, activations=8, calibration="minmax")),
        ("reader", dict(dtype="fp16")),
        ("reader", dict(bits=3)),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_foreign_models_come_back_quantized(name, setting):
    model, inputs = foreign(name)
    with warnings.catch_warnings(action="ignore"):
        changed = quantized(model, inputs if "activations" in setting else None, **setting)
    came_back(changed, inputs)
    came_back(changed, inputs, into=model)
