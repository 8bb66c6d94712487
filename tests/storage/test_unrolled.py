"""Convolutions written as matrices: found, stored as kernels, given back to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import compresslab as cl
from benchmarks.records.embedding import embed
from benchmarks.records.embedding import unrolled as as_matrix
from compresslab.storage import unrolled

SHAPES = [
    unrolled.Convolution(3, 2, 9, 3, 2),
    unrolled.Convolution(8, 1, 28, 8, 4),
    unrolled.Convolution(4, 5, 4, 2, 1),
]


def a_kernel(shape, seed=0):
    generator = np.random.default_rng(seed)
    kernel = generator.integers(1, 2**32, size=shape.kernel_shape, dtype=np.uint32)
    return np.where(generator.random(shape.kernel_shape) < 0.4, 0, kernel).astype(np.uint32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("more", [(0, 0), (7, 9)])
def test_what_is_built_is_found(shape, more):
    kernel = a_kernel(shape)
    rows, columns = shape.maps * shape.out**2 + more[0], shape.channels * shape.width**2 + more[1]
    words = unrolled.build(shape, kernel, rows, columns)
    found, again = unrolled.find(words)
    assert found is not None and np.array_equal(unrolled.build(found, again, rows, columns), words)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(3, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 9))
def test_any_network_comes_back(maps, channels, width, kernel, stride, seed):
    kernel = min(kernel, width - 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = nn.Conv2d(channels, maps, kernel, stride)
        with torch.no_grad():
            conv.weight.copy_((8 * conv.weight).round() / 4)
        matrix = as_matrix(nn.Sequential(conv), (channels, width, width))
        large = embed(
            matrix, nn.Sequential(nn.Flatten(), nn.Linear(channels * width**2 + 3, matrix[1].out_features + 9))
        )
    back = cl.storage.loads(cl.storage.dumps(large))
    assert all(map(torch.equal, back.state_dict().values(), large.state_dict().values()))


def test_it_costs_what_its_kernel_costs():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 8, 4), nn.ReLU(), nn.Conv2d(8, 11, 4), nn.ReLU(), nn.Flatten(), nn.Linear(99, 10)
        )
    large = embed(as_matrix(net, (1, 28, 28)), cl.models.lenet_300_100(0))
    assert cl.storage.file_bytes(large) < 1.1 * cl.storage.file_bytes(net) + 1200  # biases repeat, too
    assert torch.equal(cl.storage.loads(cl.storage.dumps(large)).fc1.weight, large.fc1.weight)


@pytest.mark.parametrize(
    "words", [np.zeros((40, 40)), np.ones((40, 40)), np.eye(40), np.eye(40, k=1), np.zeros((40, 0))]
)
def test_what_is_no_convolution(words):
    words = words.astype(np.uint32)
    found, kernel = unrolled.find(words)
    assert found is None or np.array_equal(unrolled.build(found, kernel, *words.shape), words)


def test_one_changed_weight_is_no_convolution_any_more():
    words = unrolled.build(SHAPES[0], a_kernel(SHAPES[0]), 48, 162)
    words[20, 5] += 1
    assert unrolled.find(words) == (None, None)
