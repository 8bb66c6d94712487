"""Shrinking: so many weights, of so few values, and the network still learns."""

import pytest
import torch
from torch import nn

import compresslab as cl
from benchmarks.records.shrinking import shrink

pytestmark = pytest.mark.slow


def shrunk(net, data, **settings):
    settings = {
        "kept": 60,
        "codes": 4,
        "steps": 300,
        "lr": 1e-2,
        "batch_size": 100,
        "precision": "fp32",
        "bar": False,
    } | settings
    progress = list(shrink(net, data, **settings))
    assert len(progress) == settings["steps"]
    return net


def test_so_many_weights_of_so_few_values(net, data):
    shrunk(net, data)
    weights = [layer.weight.detach() for layer in (net[0], net[3], net[5])]
    assert sum(int((weight != 0).sum()) for weight in weights) == 60
    assert all(len(weight[weight != 0].unique()) <= 4 for weight in weights)
    assert not any(torch.signbit(weight[weight == 0]).any() for weight in weights)
    assert all(type(module) in (nn.Conv2d, nn.Linear, nn.ReLU, nn.Flatten, nn.Sequential) for module in net.modules())
    for layer in (net[0], net[3], net[5]):
        coarse = layer.bias[layer.bias != 0].abs()
        if len(coarse):
            assert ((coarse / coarse.min()) % 1 < 1).all() and len(coarse.unique()) <= 8
    assert cl.train.accuracy_of(cl.train.evaluate(net, data), data[1]) > 0.75


def test_few_values_are_exact_in_few_bits(net, data):
    shrunk(net, data)
    values = net[3].weight.detach().unique().double()
    fraction, _ = torch.frexp(values)
    assert (fraction * 2**5 == (fraction * 2**5).round()).all()


def test_units_without_weights_have_no_bias(net, data):
    shrunk(net, data, kept=20)
    dead = (net[3].weight == 0).all(1)
    assert dead.any() and (net[3].bias[dead] == 0).all()


def test_the_rate_gathers_weights_in_few_rows(data):
    def rows(rate):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            wide = nn.Sequential(nn.Flatten(), nn.Linear(36, 60), nn.ReLU(), nn.Linear(60, 2))
        shrunk(wide, data, kept=120, rate=rate)
        return int((wide[1].weight != 0).any(1).sum())

    assert rows(3.0) < rows(0.0)


def test_the_same_seed_gives_the_same_model_in_any_layout(net, data):
    first, again = (shrunk(cl.layers.duplicate(net), data, seed=3, steps=60) for _ in range(2))
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))
    last = shrunk(net, data, steps=60, precision="fp32+channels_last")
    assert sum(int((layer.weight != 0).sum()) for layer in (last[0], last[3], last[5])) == 60


def test_all_weights_may_stay_and_stopping_leaves_an_ordinary_model(net, data):
    every = sum(layer.weight.numel() for layer in (net[0], net[3], net[5]))
    shrunk(cl.layers.duplicate(net), data, kept=every, steps=40)
    run = shrink(net, data, kept=10, steps=40, bar=False)
    for _ in range(30):
        next(run)
    run.close()
    assert cl.storage.loads(cl.storage.dumps(net)) is not None and not hasattr(net[3], "parametrizations")


@pytest.mark.parametrize(
    "settings",
    [
        *[{"steps": steps} for steps in (2, 3, 5, 20)],
        *[{"steps": 20, "parts": parts} for parts in ((0.1, 0.5, 0.52), (0.5, 0.52, 0.9), (0.99, 0.995, 1))],
        {"steps": 2, "parts": (0, 1e-9, 2e-9)},
    ],
    ids=str,
)
def test_parts_of_few_steps(net, data, settings):
    shrunk(net, data, **settings)
    weights = [layer.weight.detach() for layer in (net[0], net[3], net[5])]
    assert sum(int((weight != 0).sum()) for weight in weights) == 60
    assert all(len(weight[weight != 0].unique()) <= 4 for weight in weights)


def test_what_is_frozen_stays_and_is_not_counted(net, data):
    net[0].weight.requires_grad_(False)
    net[3].bias.requires_grad_(False)
    before = cl.layers.duplicate(net)
    shrunk(net, data, kept=20, steps=40)
    assert torch.equal(net[0].weight, before[0].weight) and torch.equal(net[3].bias, before[3].bias)
    assert sum(int((net[place].weight != 0).sum()) for place in (3, 5)) == 20
    with pytest.raises(ValueError, match="kept is 529"):
        shrink(net, data, kept=64 * 8 + 16 + 1)
    with pytest.raises(ValueError, match="frozen"):
        shrink(net.requires_grad_(False), data, kept=10)


def test_a_layer_that_is_not_used(net, data):
    net.unused = nn.Linear(3, 3)
    net.forward = lambda images: nn.Sequential(*list(net)[:6])(images)
    shrunk(net, data, steps=40)
    assert sum(int((layer.weight != 0).sum()) for layer in (net[0], net[3], net[5], net.unused)) == 60


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_weights_of_other_types(net, data, dtype):
    shrunk(net.to(dtype), data, steps=60)
    weights = [layer.weight.detach() for layer in (net[0], net[3], net[5])]
    assert 55 < sum(int((weight != 0).sum()) for weight in weights) <= 60
    assert all(weight.dtype == dtype and len(weight[weight != 0].unique()) <= 4 for weight in weights)


@pytest.mark.parametrize("outputs, groups", [(4, 1), (6, 1), (9, 1), (6, 2), (9, 3), (6, 6)])
def test_units_of_transposed_convolutions(data, outputs, groups):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.ConvTranspose2d(6, outputs, 3, groups=groups)
        net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), conv, nn.Flatten(), nn.Linear(36 * outputs, 2))
    with torch.no_grad():
        conv.weight[:, 1 % conv.weight.shape[1]] *= 1e-6  # unit 1, and those in its place in other groups
        conv.weight[-6 // groups :, -1] *= 1e-6  # the last unit
        conv.bias.fill_(0.7)
    shrunk(net, data, kept=200, steps=20, lr=1e-9)
    with torch.no_grad():
        answers = nn.functional.conv_transpose2d(torch.eye(6)[..., None, None], conv.weight, groups=groups)
    live = answers.abs().sum((0, 2, 3)) > 0  # (units,)
    assert not live.all() and torch.equal(conv.bias != 0, live)


@pytest.mark.parametrize(
    "settings",
    [{"epochs": -1}, {"steps": 2, "epochs": 1}, {"steps": 1}, {"epochs": 0}, {"epochs": 1e-9}, {"lr": -1}],
    ids=str,
)
def test_what_cannot_be_trained_stays_as_it_was(net, data, settings):
    before = cl.layers.duplicate(net).state_dict()
    with pytest.raises(ValueError):
        next(shrink(net, data, kept=10, bar=False, **settings))
    assert list(before) == list(net.state_dict())
    assert all(map(torch.equal, before.values(), net.state_dict().values()))


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"kept": 0}, "kept is 0"),
        ({"kept": 10**6}, "kept is 1000000"),
        ({"codes": 1}, "codes is 1"),
        ({"codes": 257}, "codes is 257"),
        ({"rate": -1.0}, "rate is -1"),
        ({"parts": (0.5, 0.4, 0.9)}, "three rising shares"),
        ({"parts": (0.5, 0.9)}, "three rising shares"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 1}, "steps is 1"),
        ({"steps": None, "epochs": 0.01}, "steps is 1"),
    ],
)
def test_bad_settings(net, data, settings, told):
    with pytest.raises(ValueError, match=told):
        next(shrink(net, data, **{"kept": 10, "steps": 5, "bar": False} | settings))


@pytest.mark.parametrize("make", [lambda net: nn.ReLU(), lambda net: cl.zero_pruning.prune(net, sparsity=0.5)])
def test_models_that_cannot_shrink(net, data, make):
    with pytest.raises(ValueError, match="nothing to shrink|has a mask"):
        next(shrink(make(net), data, kept=10, steps=5, bar=False))
