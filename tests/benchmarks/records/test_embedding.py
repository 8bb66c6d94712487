"""The same function in another shape."""

import pytest
import torch
from torch import nn

import compresslab as cl
from benchmarks.records.embedding import busiest_first, embed, unrolled


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def images(*shape):
    return torch.rand(5, *shape, dtype=torch.float64)


def lenet(first, second, hidden, kernel=5):
    return nn.Sequential(
        *(nn.Conv2d(1, first, kernel), nn.MaxPool2d(2), nn.Conv2d(first, second, 5, bias=False), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * second, hidden), nn.ReLU(), nn.Linear(hidden, 10)),
    )


def convolutions(stride=2, padding=0, bias=True):
    return nn.Sequential(
        *(nn.Conv2d(2, 3, 3, stride, padding, bias=bias), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU()),
        *(nn.Flatten(), nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 3)),
    )


def test_a_narrow_net_in_a_wide_one():
    small = lenet(3, 4, 6)
    large = embed(small, cl.models.lenet_5(0))
    assert torch.allclose(large.double()(images(1, 28, 28)), small.double()(images(1, 28, 28)), atol=0) is False
    x = images(1, 28, 28)
    assert torch.allclose(large(x), small(x), atol=1e-12)
    assert cl.layers.count_nonzeros(large) == cl.layers.count_nonzeros(small)
    assert cl.storage.file_bytes(large.float()) < 1.15 * cl.storage.file_bytes(small.float()) + 100


@pytest.mark.parametrize("settings", [{}, {"stride": 1}, {"padding": 1}, {"bias": False}], ids=str)
def test_convolutions_as_matrices(settings):
    small, x = convolutions(**settings).double(), images(2, 9, 9)
    expected = small(x)
    flat = unrolled(small, (2, 9, 9))
    assert not any(isinstance(one, nn.Conv2d) for one in flat)
    assert torch.allclose(flat(x), expected, atol=1e-12)
    kernel = set(small[0].weight.flatten().tolist()) | {0.0}
    assert set(flat[1].weight.flatten().tolist()) <= kernel  # the same numbers, to the bit


def test_units_in_the_order_of_their_weights():
    small = cl.zero_pruning.prune(lenet(6, 8, 10), sparsity=0.7)
    x, sorted_ = images(1, 28, 28), busiest_first(small).double()
    assert torch.allclose(sorted_(x), small.double()(x), atol=1e-12)
    counts = (sorted_[5].weight != 0).sum(1) + (sorted_[7].weight != 0).sum(0)
    assert (counts.diff() <= 0).all()


@pytest.mark.parametrize(
    "small, told",
    [
        (lambda: lenet(3, 4, 501), "'fc1' is"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), "1 weight layers and large has 4"),
        (lambda: lenet(3, 4, 6, kernel=3), "large has Conv2d.*kernel_size=.5, 5.*small has Conv2d.*kernel_size=.3, 3"),
    ],
)
def test_what_does_not_fit(small, told):
    with pytest.raises(ValueError, match=told):
        embed(small(), cl.models.lenet_5(0))


@pytest.mark.parametrize(
    "between", [nn.Tanh, lambda: nn.LeakyReLU(0.3), lambda: nn.Sequential(nn.ReLU(), nn.Dropout())]
)
@pytest.mark.parametrize("nested", [False, True])
def test_any_activations_nested_or_not(between, nested):
    def net(units, more):
        first, last = [nn.Linear(4, units), between()], [nn.Linear(units, more)]
        return nn.Sequential(nn.Sequential(*first), nn.Sequential(*last)) if nested else nn.Sequential(*first, *last)

    small, large, x = net(5, 3).eval(), net(9, 4).eval(), torch.randn(6, 4)
    outputs = embed(small, large)(x)
    assert torch.allclose(outputs[:, :3], small(x), atol=1e-6) and not outputs[:, 3:].any()
    assert torch.allclose(busiest_first(small)(x), small(x), atol=1e-6)


def test_one_activation_in_two_places():
    relu, x = nn.ReLU(), images(1, 6, 6)
    small = nn.Sequential(nn.Conv2d(1, 3, 3), relu, nn.Conv2d(3, 2, 2), relu, nn.Flatten(), nn.Linear(18, 4)).double()
    assert torch.allclose(unrolled(small, (1, 6, 6))(x), small(x), atol=1e-12)


def test_a_net_that_ends_in_maps_is_flat():
    small, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()).double(), images(2, 6, 6)
    assert torch.allclose(unrolled(small, (2, 6, 6))(x), small(x).flatten(1), atol=1e-12)


def conv_net(*between, units=4, seen=36, **settings):
    return nn.Sequential(nn.Conv2d(2, units, 3, **settings), *between, nn.Flatten(), nn.Linear(seen * units, 3))


def through(*between, units=5):
    return nn.Sequential(nn.Linear(4, units), *between, nn.Linear(units, 3))


MIXED = {
    "batch norm": lambda: conv_net(nn.BatchNorm2d(4)),
    "PReLU": lambda: through(nn.PReLU(5)),
    "layer norm": lambda: through(nn.LayerNorm(5)),
    "softmax": lambda: through(nn.Softmax(1)),
    "a pool over units": lambda: through(nn.MaxPool1d(3, 1, 1)),
    "a pool behind Flatten": lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.MaxPool1d(2), nn.Linear(8, 3)),
    "a pool over maps": lambda: conv_net(nn.AvgPool3d((3, 1, 1), 1, (1, 0, 0))),
    "Flatten of places only": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(2), nn.Linear(16, 3)),
    "no Flatten": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(4, 3)),
    "units laid last": lambda: nn.Sequential(nn.Linear(4, 5), nn.Flatten(), nn.Linear(15, 3)),
    "groups": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2)),
    "a transposed convolution": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 4, 3)),
    "a layer used twice": lambda: nn.Sequential(*[nn.Linear(4, 4)] * 2),
    "a class of its own": lambda: type("Residual", (nn.Sequential,), {"forward": lambda self, x: x + self[0](x)})(
        nn.Linear(4, 4)
    ),
}


@pytest.mark.parametrize("make", MIXED.values(), ids=MIXED.keys())
def test_chains_that_mix_units_are_refused(make):
    for work in (lambda net: embed(net, net), busiest_first):
        with pytest.raises(ValueError, match="model has .* as layer|model uses a weight in two places"):
            work(make())


@pytest.mark.parametrize(
    "small, large",
    [
        (through(nn.Tanh()), through(nn.ReLU(), units=9)),
        (through(nn.LeakyReLU(0.1)), through(nn.LeakyReLU(0.2), units=9)),
        (through(nn.ReLU()), through(units=9)),
        (conv_net(nn.MaxPool2d(3, 1, 1)), conv_net(nn.AvgPool2d(3, 1, 1), units=9)),
        (conv_net(nn.AvgPool2d(3, 1, 1)), conv_net(nn.AvgPool2d(3, 1, 1, count_include_pad=False), units=9)),
        (conv_net(padding=1, stride=2), conv_net(padding=0, stride=2, units=9)),
        (conv_net(padding=1), conv_net(padding=1, padding_mode="circular", units=9)),
        (conv_net(seen=36), conv_net(seen=49, units=9)),
    ],
)
def test_networks_that_differ_in_more_than_sizes(small, large):
    with pytest.raises(ValueError, match="only sizes may differ|numbers of each unit"):
        embed(small, large)


@pytest.mark.parametrize(
    "model, told",
    [
        (nn.Linear(3, 3), "Linear"),
        (nn.Sequential(nn.Linear(9, 3)), "Linear"),
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1)), "BatchNorm2d"),
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.MaxPool2d(2)), "MaxPool2d"),
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(2)), "Flatten"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")), "padding_mode=circular"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")), "padding_mode=reflect"),
    ],
    ids=str,
)
def test_what_cannot_be_unrolled(model, told):
    with pytest.raises(ValueError, match=told):
        unrolled(model, (1, 9, 9))
