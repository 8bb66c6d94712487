"""Codebooks: torch's own indexing as the oracle, values and gradients; zeros, masks, shared weights, training."""

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

import compresslab as cl
from compresslab.weights.codebooks import Codebook, nearest
from compresslab.weights.layers import distinct_weights, get_mask, get_rounding, set_mask, set_rounding
from tests.weights.samples import Tied


def tensor(*values):
    return torch.tensor(values, dtype=torch.float32)


def coded(layer, count=4, zero=False, seed=0):
    """Give a layer a codebook of random centroids and assignments; returns it."""
    generator = torch.Generator().manual_seed(seed)
    centroids = torch.randn(count, generator=generator).to(layer.weight.dtype)
    if zero:
        centroids[0] = 0.0
    codebook = Codebook(centroids, torch.randint(0, count, layer.weight.shape, generator=generator), zero)
    set_rounding(layer, codebook)
    return codebook


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.sampled_from([1, 2, 5, 16, 256, 257, 1000]),
    shape=st.sampled_from([(7,), (3, 4), (2, 3, 2, 2), (1,), (0, 4)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_same_values_and_gradients_as_torchs_indexing(seed, count, shape, dtype):
    generator = torch.Generator().manual_seed(seed)
    centroids = torch.randn(count, generator=generator, dtype=dtype)
    assignments = torch.randint(0, count, shape, generator=generator)
    ours, theirs = Codebook(centroids, assignments), centroids.clone().requires_grad_()
    direction = torch.randn(shape, generator=generator, dtype=dtype)
    out, expected = ours(torch.empty(shape)), theirs[assignments]
    assert torch.equal(out, expected) and out.dtype == dtype
    (one,), (other,) = (
        torch.autograd.grad(value, weight, direction) for value, weight in ((out, ours.centroids), (expected, theirs))
    )
    assert torch.allclose(one, other, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(ours(torch.empty(shape)), expected)
    assert ours.assignments.dtype == (torch.uint8 if count <= 256 else torch.int16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_gpu_trains_to_the_same_bits():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(600, 500), nn.ReLU(), nn.Linear(500, 3))
    coded(model[0], count=16)
    batch = (torch.randn(64, 600), torch.randint(0, 3, (64,)))
    one, other = (cl.train.finetune(model, batch, steps=20, precision="fp32", bar=False) for _ in range(2))
    assert torch.equal(one[0].weight, other[0].weight)


def test_a_codebook_by_hand():
    ours = Codebook(tensor(0, -1, 2), torch.tensor([[0, 1, 2], [2, 2, 0]]), zero=True)
    out = ours(torch.zeros(2, 3))
    assert out.tolist() == [[0, -1, 2], [2, 2, 0]]
    out.backward(tensor(1, 2, 3, 4, 5, 6).reshape(2, 3))
    assert ours.centroids.grad.tolist() == [0, 2, 12]  # 3 + 4 + 5, and the zero has none


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 20))
def test_nearest_is_nearest(seed, count):
    generator = torch.Generator().manual_seed(seed)
    centroids, numbers = torch.randn(count, generator=generator), torch.randn(6, 5, generator=generator)
    distances = (numbers[..., None] - centroids).abs()
    chosen = distances.gather(-1, nearest(numbers, centroids)[..., None]).squeeze(-1)
    assert torch.allclose(chosen, distances.min(-1).values)


def test_nearest_at_the_ends_of_float32():
    largest, least = torch.finfo(torch.float32).max, 2.0**-149
    assert nearest(tensor(3e38, -1, 0, least), tensor(largest, 1e38, -1, least, 0)).tolist() == [0, 2, 4, 3]
    assert nearest(tensor(0.5, 0.6), tensor(1, 0)).tolist() == [1, 0]  # the lesser of two


FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("start", [1.0, -1.0, 0.0, "largest", "least"])
def test_neighbouring_floats_are_told_apart(start, dtype):
    kind = torch.finfo(dtype)
    values = [torch.tensor({"largest": kind.max, "least": kind.min}.get(start, start), dtype=dtype)]
    toward = torch.tensor(-1.0 if start == "largest" else 2.0, dtype=dtype)
    while len(values) < 9:
        values.append(values[-1].nextafter(toward))
    values = torch.stack(values)
    assert len(values.unique()) == 9
    assert torch.equal(nearest(values, values), torch.arange(9))


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    steps=st.lists(st.integers(-9, 9), min_size=1, max_size=20),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_a_number_that_is_a_centroid_takes_it(numbers, steps, dtype):
    beside_one = 1 + np.array(steps, dtype) * dtype(2.0**-23)
    values = torch.from_numpy(np.unique(np.array([*numbers, *beside_one], dtype))).flip(0)
    assert torch.equal(nearest(values, values), torch.arange(len(values)))


def test_the_middle_of_very_large_numbers():
    numbers = torch.tensor([1e308, 1.2e308, 1.4e308, 1.6e308], dtype=torch.float64)
    assert nearest(numbers, numbers[[0, 3]]).tolist() == [0, 0, 1, 1]


def test_what_is_assigned_to_a_weight_takes_the_nearest_centroids():
    layer = nn.Linear(3, 1)
    set_rounding(layer, Codebook(tensor(1, -1), torch.tensor([[0, 1, 0]])))
    assert layer.weight.tolist() == [[1, -1, 1]]
    layer.weight = tensor(-3, 0.1, 9).reshape(1, 3)
    assert layer.weight.tolist() == [[-1, 1, 1]]


def test_a_layer_trains_its_centroids_and_nothing_behind_them():
    layer = nn.Linear(6, 5)
    codebook = coded(layer)
    layer(torch.randn(3, 6)).square().sum().backward()
    assert layer.parametrizations.weight.original.grad is None
    assert codebook.centroids.grad.abs().min() > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_moves_centroids_and_keeps_assignments_zeros_and_masks(precision):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    coded(model[0], zero=True)
    coded(model[2], count=3)
    set_mask(model[2], torch.arange(24).reshape(3, 8) % 2 == 0)
    before = copy.deepcopy(model.state_dict())
    batch = (torch.randn(64, 6), torch.randint(0, 3, (64,)))
    tuned = cl.train.finetune(model, batch, steps=20, lr=0.05, precision=precision, bar=False)
    after = [get_rounding(tuned[index]) for index in (0, 2)]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    for old, new in zip((get_rounding(model[0]), get_rounding(model[2])), after, strict=True):
        assert torch.equal(old.assignments, new.assignments) and not torch.equal(old.centroids, new.centroids)
    assert after[0].centroids[0] == 0 and (after[0].centroids[1:] != get_rounding(model[0]).centroids[1:]).all()
    zeros = get_rounding(model[0]).assignments == 0
    assert (tuned[0].weight[zeros] == 0).all() and (tuned[0].weight[~zeros] != 0).all()
    assert (tuned[2].weight[~get_mask(tuned[2])] == 0).all()
    assert len(tuned[0].weight.unique()) == 4


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_zero_stays_zero_with_any_optimizer(kind):
    layer = nn.Linear(6, 5)
    codebook = coded(layer, zero=True)
    optimizer = kind(layer.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.randn(3, 6)).square().sum().backward()
        optimizer.step()
    assert codebook.centroids[0] == 0


def test_masked_weights_pull_at_no_centroid():
    layer = nn.Linear(2, 1, bias=False)
    set_rounding(layer, Codebook(tensor(1, 2), torch.tensor([[0, 1]])))
    set_mask(layer, torch.tensor([[True, False]]))
    layer(torch.ones(1, 2)).sum().backward()
    assert get_rounding(layer).centroids.grad.tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_codebook_goes_with_its_model_to_another_dtype(dtype):
    model = nn.Linear(4, 2)
    codebook = coded(model)
    assignments = codebook.assignments.clone()
    model.to(dtype)
    assert model.weight.dtype == codebook.centroids.dtype == dtype
    assert codebook.assignments.dtype == torch.uint8 and torch.equal(codebook.assignments, assignments)
    model(torch.randn(3, 4).to(dtype)).sum().backward()
    assert codebook.centroids.grad.dtype == dtype
    assert torch.equal(nearest(model.weight, codebook.centroids), assignments)


def test_channels_last_is_the_same_convolution():
    model = nn.Conv2d(4, 6, 3)
    coded(model)
    images = torch.randn(2, 4, 8, 8)
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    assert torch.allclose(model(images.contiguous(memory_format=torch.channels_last)), expected, atol=1e-5)


def test_layers_that_share_a_weight_share_the_codebook():
    model = Tied()
    (weight,) = distinct_weights(model)
    codebook = Codebook(tensor(-1, 0.5, 2), torch.randint(0, 3, (7, 4)))
    for module, name in weight.holders:
        set_rounding(module, codebook, name)
    (weight,) = distinct_weights(model)
    assert weight.names == ("output",) and len(weight.holders) == 2
    assert cl.layers.count_parameters(model) == 7 * 4 + 7
    model(torch.randint(0, 7, (3, 5))).sum().backward()
    assert codebook.centroids.grad.abs().sum() > 0
    twin = cl.layers.duplicate(model)
    assert get_rounding(twin.embedding) is get_rounding(twin.output) is not codebook
    bare = cl.layers.plain(model)
    assert bare.embedding.weight is bare.output.weight and not parametrize.is_parametrized(bare.output)


def test_taking_a_codebook_away_leaves_its_values():
    layer = nn.Linear(6, 5)
    coded(layer)
    values = layer.weight.detach().clone()
    set_rounding(layer, None)
    assert not parametrize.is_parametrized(layer) and torch.equal(layer.weight, values) and layer.weight.requires_grad


def test_a_state_goes_into_another_model_of_the_kind():
    one, other = nn.Linear(6, 5), nn.Linear(6, 5)
    coded(one)
    coded(other, seed=1)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(one.weight, other.weight)


def test_training_draws_no_numbers_and_computes_alike_for_codebooks():
    plain = nn.Sequential(nn.Linear(4, 3))
    shared = copy.deepcopy(plain)
    coded(shared[0])
    assert cl.train.choose_precision(plain) == cl.train.choose_precision(shared)
    assert not any(map(cl.train._draws, shared.modules()))


def test_a_codebook_is_exported_with_its_model():
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    coded(model[0])
    images = torch.randn(2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(model, (images,)).module()
    assert torch.allclose(exported(images), model(images))


ONE = torch.zeros(1, dtype=torch.int64)
BAD = {
    "no tensor": (lambda: Codebook([1.0], ONE), r"centroids is \[1.0\]; give a tensor of floats"),
    "integers": (lambda: Codebook(ONE, ONE), "centroids is torch.int64 of shape"),
    "a matrix": (lambda: Codebook(torch.ones(2, 2), ONE), r"of shape \(2, 2\); give"),
    "none": (lambda: Codebook(torch.ones(0), ONE), "centroids has 0 values"),
    "too many": (lambda: Codebook(torch.ones(2**15 + 1), ONE), "give 1 to 32768"),
    "nan": (lambda: Codebook(tensor(float("nan")), ONE), "not finite"),
    "floats": (lambda: Codebook(tensor(1), tensor(0)), "assignments is torch.float32"),
    "bools": (lambda: Codebook(tensor(1), tensor(0).bool()), "assignments is torch.bool"),
    "no such centroid": (lambda: Codebook(tensor(1), ONE + 1), "assignments has 1 to 1; give 0 to 0"),
    "negative": (lambda: Codebook(tensor(1), ONE - 1), "assignments has -1"),
    "no zero": (lambda: Codebook(tensor(1), ONE, zero=True), "zero is True, but centroid 0 is 1"),
}


@pytest.mark.parametrize("make, words", BAD.values(), ids=BAD.keys())
def test_what_is_no_codebook_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
