"""A weight with a codebook comes back with the same codebook, in no more than its codes, its positions, its values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab import storage
from compresslab.storage import rounded, tensors
from compresslab.storage.coder import Allowance, Reader, Writer
from compresslab.storage.container import CorruptFileError
from compresslab.storage.header import Entry
from compresslab.weights import codebooks, layers


def layer(centroids, assignments, zero=False, mask=None, dtype=torch.float32):
    """A linear layer whose weight has a codebook."""
    made = nn.Linear(*reversed(assignments.shape), bias=False, dtype=dtype)
    layers.set_rounding(made, codebooks.Codebook(torch.tensor(centroids, dtype=dtype), assignments, zero))
    if mask is not None:
        layers.set_mask(made, mask)
    return made


def came_back(model):
    blob = storage.dumps(model)
    same = storage.loads(blob)
    one, other = layers.get_rounding(model), layers.get_rounding(same)
    assert type(other) is codebooks.Codebook and other.zero == one.zero
    assert torch.equal(other.centroids, one.centroids) and other.centroids.dtype == one.centroids.dtype
    assert other.centroids.requires_grad == one.centroids.requires_grad
    mask = layers.get_mask(model)
    kept = slice(None) if mask is None else mask
    assert torch.equal(other.assignments[kept], one.assignments[kept])
    assert other.assignments.dtype == one.assignments.dtype and torch.equal(same.weight, model.weight)
    assert (layers.get_mask(same) is None) == (mask is None) and (
        mask is None or torch.equal(layers.get_mask(same), mask)
    )
    assert storage.dumps(same) == blob
    return same, len(blob)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 30)),
    st.integers(1, 300),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    st.booleans(),
    st.one_of(st.none(), st.floats(0, 1)),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_any_codebook_comes_back(shape, count, dtype, zero, density, sort, seed):
    chance = np.random.default_rng(seed)
    centroids = chance.normal(0, 1, count).round(chance.integers(1, 6))  # some may be equal, or zero
    centroids = np.sort(centroids) if sort else centroids
    if zero:
        centroids[0] = 0
    chosen = torch.from_numpy(chance.integers(0, count, shape))
    mask = None if density is None else torch.from_numpy(chance.random(shape) < density)
    came_back(layer(centroids.tolist(), chosen, zero, mask, dtype))


def test_it_costs_the_entropy_of_positions_and_codes_and_two_bytes_a_value():
    chance = np.random.default_rng(0)
    chosen = torch.from_numpy(chance.integers(1, 9, (300, 784)) * (chance.random((300, 784)) < 0.02))
    centroids = [0.0, *torch.linspace(-1, 1, 8).to(torch.bfloat16).tolist()]
    kept = int((chosen > 0).sum())
    positions = chosen.numel() * -(0.02 * math.log2(0.02) + 0.98 * math.log2(0.98))
    assert came_back(layer(centroids, chosen, True))[1] < (positions + 3 * kept) / 8 * 1.03 + 9 * 2 + 120
    assert came_back(layer(centroids, chosen, True, chosen > 0))[1] < (positions + 3 * kept) / 8 * 1.03 + 9 * 2 + 120


def test_it_can_be_trained_on_and_stays_frozen_if_it_was():
    model = layer([0.0, 0.5, -1.0], torch.randint(0, 3, (6, 5)), True)
    same, _ = came_back(model)
    same(torch.randn(3, 5)).square().sum().backward()
    assert layers.get_rounding(same).centroids.grad.abs().sum() > 0
    layers.get_rounding(model).centroids.requires_grad_(False)
    assert not layers.get_rounding(came_back(model)[0]).centroids.requires_grad


def test_shared_weights_share_it():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False))
    model[2].weight = model[0].weight
    book = codebooks.Codebook(torch.tensor([0.1, 0.5, -1.0]), torch.randint(0, 3, (6, 6)))
    for one in model[::2]:
        layers.set_rounding(one, book)
    same = storage.loads(storage.dumps(model))
    assert layers.get_rounding(same[0]) is layers.get_rounding(same[2])
    assert torch.equal(same[0].weight, model[0].weight)


def test_a_codebook_that_does_not_give_the_weight_is_dropped_with_a_warning():
    model = layer([0.1, 0.5, -1.0], torch.randint(0, 3, (6, 6)))
    book = layers.get_rounding(model)
    assert rounded.settle_book(book, model.weight) is not None
    assert (
        rounded.settle_book(book, model.weight + 1) is None and rounded.settle_book(book, model.weight.double()) is None
    )


@pytest.mark.parametrize(("centroids", "level"), [([1.0, 2.0, 3.0], 4), ([1.0, 2.0, 3.0], -1), ([-1.0, 0.0, 3.0], 2)])
def test_levels_that_no_centroid_has_are_refused(centroids, level):
    writer = Writer()
    writer.uint(rounded.BOOK)
    writer.number(0, 2)
    writer.number(0, 2)
    writer.uint(2)
    writer.number(rounded.ANY_ORDER, 2)
    tensors.write(writer, torch.tensor(centroids))
    writer.number(0, 2)
    tensors.write(writer, torch.tensor([[1, 1], [1, level]], dtype=torch.int16))
    reader = Reader(writer.data(), writer.coded(), Allowance(1000))
    with pytest.raises(CorruptFileError, match="a weight has a level of none"):
        rounded.read(reader, Entry("weight", "float32", (2, 2)), False)
