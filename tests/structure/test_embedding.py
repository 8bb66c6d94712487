"""The same function in another shape."""

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab.structure.embedding import busiest_first, embed, unrolled


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def images(*shape):
    return torch.rand(5, *shape, dtype=torch.float64)


def lenet(first, second, hidden):
    return nn.Sequential(
        *(nn.Conv2d(1, first, 5), nn.MaxPool2d(2), nn.Conv2d(first, second, 5, bias=False), nn.MaxPool2d(2)),
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
        (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 5), nn.Linear(8, 4), nn.Linear(4, 10)), "kernels"),
    ],
)
def test_what_does_not_fit(small, told):
    with pytest.raises(ValueError, match=told):
        embed(small(), cl.models.lenet_5(0))


@pytest.mark.parametrize("model", [nn.Linear(3, 3), nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1))])
def test_what_cannot_be_unrolled(model):
    with pytest.raises(ValueError, match="Linear|BatchNorm2d"):
        unrolled(model, (1, 9, 9))
