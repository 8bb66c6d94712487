"""Training charged for the bits of the file."""

import math

import pytest
import torch
from torch import nn

import compresslab as cl
from benchmarks.records import rate

pytestmark = pytest.mark.slow


def charged(net, data, **settings):
    settings = {"price": 5.0, "steps": 200, "lr": 1e-2, "batch_size": 100, "precision": "fp32", "bar": False} | settings
    assert len(list(rate.charge(net, data, **settings))) == settings["steps"]
    return net


def test_a_higher_price_makes_a_smaller_file(net, data):
    free, cheap, dear = (charged(cl.layers.duplicate(net), data, price=price) for price in (0.0, 5.0, 50.0))
    sizes = [cl.storage.file_bytes(one) for one in (free, cheap, dear)]
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < 0.7 * sizes[0]
    assert cl.train.accuracy_of(cl.train.evaluate(cheap, data), data[1]) > 0.7


def test_weights_and_biases_are_multiples_of_their_layers_step(net, data):
    charged(net, data, top=3)
    for layer in (net[0], net[3], net[5]):
        values = torch.cat([layer.weight.flatten(), layer.bias]).detach().unique()
        step = values.diff().min()  # of a layer that uses two neighbouring multiples
        codes = torch.cat([layer.weight.flatten(), layer.bias]) / step
        assert torch.allclose(codes, codes.round(), atol=1e-3) and len(layer.weight.unique()) <= 7
        assert not torch.signbit(layer.weight[layer.weight == 0]).any()
        assert not hasattr(layer, "parametrizations")


def test_the_table_by_hand():
    codes = torch.tensor([[0, 1, 0, 0], [0, -2, 0, 0.0]])
    bits = rate.table(codes, 3)
    assert bits.shape == (4, 2, 4)
    share = 2.5 / 9
    row, column = (1 + 2 * share) / 6, (2 + 2 * share) / 4  # of the first row, of the second column

    def odds(chance):
        return math.log(chance / (1 - chance))

    likely = 1 / (1 + math.exp(-(odds(row) + odds(column) - odds(share))))
    likely = min(max(likely, rate.RAREST), rate.FULLEST)
    more = 1 - 3 / 4  # (kept + 1) of (magnitudes + 1)
    assert bits[0, 0, 1].item() == pytest.approx(-math.log2(1 - likely), rel=1e-5)
    assert bits[2, 0, 1].item() == pytest.approx(
        1 - math.log2(likely) - math.log2(more) - math.log2(1 - more), rel=1e-5
    )
    assert (bits.diff(dim=0) > 0).all() and bits[0, 0, 0] < bits[0, 0, 1]


def test_costs_run_straight_between_two_codes():
    rounding, costs = rate._Steps(0.5, 3), torch.tensor([0.1, 4.0, 5.0, 7.0])[:, None]
    for number, bits in ((0.0, 0.1), (0.25, 2.05), (-0.5, 4.0), (1.25, 6.0)):
        assert rate._bits(torch.tensor([number]), rounding, costs).item() == pytest.approx(bits, rel=1e-4)


def test_what_is_zero_stays_zero_once_it_has_settled(net, data):
    seen = []
    for progress in rate.charge(net, data, price=20.0, steps=100, settle=0.5, lr=1e-2, precision="fp32", bar=False):
        seen.append((net[3].weight == 0).clone() if progress.step > 52 else None)
    late = [one for one in seen if one is not None]
    assert all((before <= after).all() for before, after in zip(late, late[1:], strict=False))


def test_the_same_seed_gives_the_same_model_and_stopping_leaves_an_ordinary_one(net, data):
    first, again = (charged(cl.layers.duplicate(net), data, steps=30, seed=2) for _ in range(2))
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))
    run = rate.charge(net, data, price=1.0, steps=30, bar=False)
    next(run)
    run.close()
    assert not hasattr(net[3], "parametrizations")


@pytest.mark.parametrize(
    "settings",
    [{"epochs": -1}, {"steps": 1, "epochs": 1}, {"lr": -1}, {"batch_size": 0}, {"precision": "none"}],
    ids=str,
)
def test_what_the_training_refuses_leaves_the_model_as_it_was(net, data, settings):
    before = cl.layers.duplicate(net).state_dict()
    with pytest.raises(ValueError):
        next(rate.charge(net, data, price=1.0, bar=False, **settings))
    assert list(before) == list(net.state_dict())
    assert all(map(torch.equal, before.values(), net.state_dict().values()))


@pytest.mark.parametrize(
    "numbers", [torch.full((8, 64), 0.1), 0.1 + 1e-4 * torch.rand(8, 64), -torch.rand(8, 1)], ids=len
)
def test_weights_far_from_zero_stay_where_they_are(data, numbers):
    inputs = numbers.shape[1]
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, inputs), nn.ReLU(), nn.Linear(inputs, 8))
    with torch.no_grad():
        net[3].weight.copy_(numbers)
    charged(net, data, price=0.0, steps=2, lr=1e-6)
    assert torch.allclose(net[3].weight, numbers, atol=0.51 * float(numbers.abs().mean()))
    assert net[3].weight.abs().max() > 0.02


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
def test_a_single_weight(data, value):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 1), nn.Linear(1, 1), nn.Linear(1, 2))
    with torch.no_grad():
        net[2].weight.fill_(value)
    charged(net, data, price=0.0, steps=1, lr=1e-6)
    assert net[2].weight.item() == pytest.approx(value, rel=1e-3)


def test_a_layer_of_zeros_learns(net, data):
    with torch.no_grad():
        net[5].weight.fill_(0)
    assert charged(net, data, price=0.0, steps=60)[5].weight.abs().max() > 0.05


def test_frozen_tensors_stay(net, data):
    net[0].weight.requires_grad_(False)
    net[3].bias.requires_grad_(False)
    before = cl.layers.duplicate(net)
    charged(net, data, steps=20)
    assert torch.equal(net[0].weight, before[0].weight) and torch.equal(net[3].bias, before[3].bias)
    assert not torch.equal(net[0].bias, before[0].bias) and len(net[3].weight.unique()) <= 15
    with pytest.raises(ValueError, match="frozen"):
        rate.charge(net.requires_grad_(False), data, price=1.0)


@pytest.mark.parametrize("settings, told", [({"price": -1}, "price is -1"), ({"top": 0}, "top is 0"),
                                            ({"width": 0}, "width is 0"), ({"settle": 2}, "settle is 2")])  # fmt: skip
def test_bad_settings(net, data, settings, told):
    with pytest.raises(ValueError, match=told):
        next(rate.charge(net, data, **{"price": 1.0, "steps": 3} | settings))


def test_a_model_with_a_mask(net, data):
    with pytest.raises(ValueError, match="has a mask"):
        next(rate.charge(cl.zero_pruning.prune(net, sparsity=0.5), data, price=1.0, steps=3))
