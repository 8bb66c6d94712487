"""Redundancy pruning: planted twins recovered exactly, NumPy as the oracle of the correlation, the greedy choice held
against going through neurons one by one, networks of many makes, what the lab is told."""

import copy
import math
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

import compresslab as cl
from compresslab.numerics import correlation
from compresslab.techniques import redundancy_pruning
from compresslab.techniques.redundancy_pruning import clusters, prune, similarities
from compresslab.weights.layers import Mask

pytestmark = pytest.mark.slow

TWINS = 3  # planted in a layer


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outputs(model, images):
    with torch.no_grad():
        return model.eval()(images)


def error(one, other, images):
    return (outputs(one, images) - outputs(other, images)).abs().max().item()


def widths(model):
    return {name: module.weight.shape[0] for name, module in cl.layers.weight_layers(model).items()}


def quiet(*arguments, **options):
    """`prune` without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return prune(*arguments, **options)


# Networks with planted twins: built once narrow and once wide, so that the narrow widths are what has to come back.


def wider(model, producer, consumer, scales, spread=1):
    """Append twins of the first neurons of a layer, in place: their incoming weights times `scales`; own outgoing ones.

    spread  inputs of the consumer that belong to one neuron (above 1 behind a Flatten)
    """
    one, other, count = model.get_submodule(producer), model.get_submodule(consumer), len(scales)
    scales = torch.tensor(scales, dtype=one.weight.dtype)
    rows = one.weight.data[:count] * scales.reshape(-1, *[1] * (one.weight.dim() - 1))
    one.weight = nn.Parameter(torch.cat([one.weight.data, rows]))
    one.bias = nn.Parameter(torch.cat([one.bias.data, one.bias.data[:count] * scales]))
    outgoing = 0.1 * drawn(len(other.weight), count * spread, *other.weight.shape[2:], seed=7)
    other.weight = nn.Parameter(torch.cat([other.weight.data, outgoing.to(other.weight.dtype)], 1))
    for module in (one, other):
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        else:
            module.out_channels, module.in_channels = module.weight.shape[:2]


def renewed(module, width):
    """A BatchNorm of another width, with statistics and weights of its own for every channel."""
    fresh = type(module)(width)
    fresh.running_mean.copy_(0.3 * drawn(width, seed=2))
    fresh.running_var.copy_(0.5 + drawn(width, seed=3).abs())
    fresh.weight.data.copy_(drawn(width, seed=4))
    fresh.bias.data.copy_(drawn(width, seed=5))
    return fresh


def perceptron(activation=nn.ReLU, scales=(2.0, 0.5, 3.0)):
    torch.manual_seed(1)  # no neuron is silent
    model = nn.Sequential(nn.Linear(20, 12), activation(), nn.Linear(12, 9), activation(), nn.Linear(9, 4))
    wider(model, "0", "2", scales)
    wider(model, "2", "4", scales[::-1])
    return model, drawn(300, 20), {"0": 12, "2": 9, "4": 4}


def normalised():
    """A BatchNorm behind the ReLU makes affine twins of neurons that are only scaled."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.BatchNorm1d(12), nn.Dropout(), nn.Linear(12, 4))
    wider(model, "0", "4", (2.0, 1.0, 0.3))
    model[2] = renewed(model[2], 15)
    return model, drawn(300, 20), {"0": 12, "4": 4}


def convolutional():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(6), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.Sigmoid(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 4, 5)),
    )
    wider(model, "0", "4", (2.0, 1.0, 0.3))
    wider(model, "4", "9", (-1.0, -1.0, 1.0), spread=4)
    model[2] = renewed(model[2], 9)
    model[2].weight.data.abs_()  # a maximum commutes with rising maps alone
    model[5].running_mean.zero_()
    model[5] = nn.BatchNorm2d(11)
    return model, drawn(60, 1, 12, 12), {"0": 6, "4": 8, "9": 5}


def padded():
    """Scaled twins stay exact where the next convolution pads with zeros."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding="same"), nn.ReLU(), nn.Conv2d(6, 5, 3, 2, padding=1, bias=False), nn.Flatten()
    )
    wider(model, "0", "2", (2.0, 0.25, 1.0))
    return nn.Sequential(OrderedDict(body=model, head=nn.Linear(80, 3))), drawn(40, 2, 8, 8), {"body.0": 6, "body.2": 5}


PLANTED = {
    "relu": perceptron,
    "tanh, negative": lambda: perceptron(nn.Tanh, (-1.0, 1.0, -1.0)),
    "sigmoid, negative, offset 1": lambda: perceptron(nn.Sigmoid, (-1.0, 1.0, -1.0)),
    "no nonlinearity": lambda: perceptron(nn.Identity, (-2.0, 0.5, 7.0)),
    "batch norm behind": normalised,
    "convolutions": convolutional,
    "zero padding": padded,
}


@pytest.mark.parametrize("similarity", [0.9999, 1])
@pytest.mark.parametrize("make", PLANTED.values(), ids=PLANTED.keys())
def test_planted_twins_go_and_the_network_computes_the_same(make, similarity):
    model, images, narrow = make()
    pruned = prune(model.eval(), images, similarity=similarity)
    assert {name: width for name, width in widths(pruned).items() if name in narrow} == narrow
    assert error(pruned, model, torch.cat([images, drawn(*images.shape, seed=9)])) < 1e-5


@pytest.mark.parametrize("make", PLANTED.values(), ids=PLANTED.keys())
def test_deleting_planted_twins_changes_the_network(make):
    model, images, narrow = make()
    deleted = prune(model.eval(), images, similarity=0.9999, merge=False)
    assert widths(deleted) == widths(prune(model, images, similarity=0.9999))
    assert error(deleted, model, images) > 1e-3


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet_5"])
def test_twins_planted_in_a_trained_network_go_and_nothing_else(name):
    data, model = cl.data.load("mnist"), cl.models.pretrained(name, "mnist")
    chain = list(cl.layers.weight_layers(model))
    narrow, spread = widths(model), {"fc1": 16} if name == "lenet_5" else {}
    for one, other in zip(chain, chain[1:], strict=False):
        wider(model, one, other, (1.0, 2.0, 0.5), spread.get(other, 1))
    pruned = prune(model, data.train.images[:500], similarity=0.999)
    assert widths(pruned) == narrow
    assert (
        error(pruned, model, data.validation.images[:500])
        < 1e-5 * outputs(model, data.validation.images[:500]).abs().max()
    )


class Residual(nn.Module):
    """Two layers whose outputs are added, read by two layers behind different nonlinearities, one of them with norm."""

    def __init__(self, width=10):
        super().__init__()
        self.one, self.two = nn.Linear(6, width), nn.Linear(6, width)
        self.norm = renewed(nn.BatchNorm1d(width), width)
        self.left, self.right, self.head = nn.Linear(width, 5), nn.Linear(width, 5), nn.Linear(5, 3)

    def forward(self, images):
        total = self.one(images) + self.two(images)
        return self.head(self.left(total.relu()) + self.right(self.norm(total.tanh())))


def twins_at(model, pairs, sign=1.0):
    with torch.no_grad():
        for new, old in pairs:
            for layer in (model.one, model.two):
                layer.weight[new], layer.bias[new] = sign * layer.weight[old], sign * layer.bias[old]
    return model


def test_coupled_layers_lose_the_same_neurons_with_a_fit_for_every_reader():
    torch.manual_seed(0)
    model, images = twins_at(Residual(), [(8, 1), (9, 1)]).eval(), drawn(400, 6)
    pruned = prune(model, images, similarity=0.999)
    assert (pruned.one.out_features, pruned.two.out_features, pruned.norm.num_features) == (8, 8, 8)
    assert (pruned.left.in_features, pruned.right.in_features) == (8, 8)
    assert error(pruned, model, images) < 1e-5


def test_twins_for_one_reader_alone_stay():
    """Behind tanh the negative is a twin, behind ReLU it is not."""
    torch.manual_seed(0)
    model, images = twins_at(Residual(), [(9, 1)], sign=-1.0).eval(), drawn(400, 6)
    assert prune(model, images, similarity=0.99).one.out_features == 10
    model.left.weight.data.zero_()
    seen = similarities(model, images, layers=["one"])["one"]
    assert -1 < seen[1, 9] < 0.999


def test_correlation_is_numpys_where_the_next_layers_read():
    model, images, _ = convolutional()
    seen = similarities(model.eval(), images)
    second, last = outputs(model[:4], images), outputs(model[:9], images)
    rows = [second.movedim(1, -1).reshape(-1, 9), last.reshape(60, 11, 4).movedim(1, -1).reshape(-1, 11)]
    for found, expected in zip(seen.values(), rows, strict=True):
        assert np.allclose(found, np.corrcoef(expected.double().numpy().T), atol=1e-6)
        assert torch.equal(found, found.T) and (found.diagonal() == 1).all() and found.dtype == torch.float32
    assert list(seen) == ["0", "4"]


def test_the_zeros_of_padding_are_read_too():
    model, images, _ = padded()
    seen = similarities(model, images)["body.0"]
    read = functional.pad(outputs(model.body[:2], images), (1, 1, 1, 1)).movedim(1, -1).reshape(-1, 9)
    assert np.allclose(seen, np.corrcoef(read.double().numpy().T), atol=1e-6)


def test_large_maps_are_sampled(monkeypatch):
    model, images, _ = convolutional()
    exact = similarities(model.eval(), images)
    monkeypatch.setattr(correlation, "ROWS_LIMIT", 4000)
    sampled = similarities(model, images)
    for name, matrix in exact.items():
        assert (sampled[name] - matrix).abs().max() < 0.2
    assert not torch.equal(sampled["0"], exact["0"])
    assert torch.equal(sampled["0"], similarities(model, images)["0"])


def test_layers_that_do_not_fit_into_memory_together_are_measured_in_turn(monkeypatch):
    model, images, _ = convolutional()
    together = similarities(model.eval(), images)
    monkeypatch.setattr(correlation, "MOMENTS_LIMIT", 1)
    monkeypatch.setattr(correlation, "BATCH", 7)
    apart = similarities(model, images)
    assert all(torch.allclose(apart[name], matrix, atol=1e-6) for name, matrix in together.items())


@pytest.mark.parametrize("numbers, positions", [(10, 9), (2**22, 1), (2**22 + 1, 784), (2**24, 3136), (2**27, 197)])
def test_the_stride_keeps_to_the_limit_and_shares_no_factor_with_an_image(numbers, positions):
    stride = correlation._stride(numbers, positions)
    assert numbers / stride <= 2**22 and (stride == 1 or math.gcd(stride, positions) == 1)


def one_by_one(matrix, similarity, importance, constant):
    """What `clusters` promises, neuron by neuron."""
    still = [matrix[i, i] == 0 for i in range(len(matrix))]
    order = sorted(range(len(matrix)), key=lambda i: (still[i], -importance[i], i))
    stays = []
    for i in order:
        if not any(abs(matrix[i, j]) >= similarity or constant and (still[i] or still[j]) for j in stays):
            stays.append(i)
    return [i if i in stays else max(sorted(stays), key=lambda j: abs(matrix[i, j])) for i in range(len(matrix))]


@example(size=2, seed=13, similarity=1.0, silent={0, 1}, constant=True)  # the more important of two silent ones stays
@settings(max_examples=80, deadline=None)
@given(
    size=st.integers(1, 12),
    seed=st.integers(0, 10_000),
    similarity=st.floats(0.05, 1),
    silent=st.sets(st.integers(0, 11), max_size=3),
    constant=st.booleans(),
)
def test_clusters_are_those_of_one_by_one(size, seed, similarity, silent, constant):
    samples = np.random.default_rng(seed).normal(size=(4, size))
    matrix = np.eye(1) if size == 1 else np.corrcoef(samples.T)
    for neuron in (one for one in silent if one < size):
        matrix[neuron], matrix[:, neuron] = 0, 0
    importance = torch.tensor(np.random.default_rng(seed + 1).integers(0, 5, size) / 4)  # with ties
    matrix = torch.from_numpy(matrix).float()
    found = clusters(matrix, similarity, importance, constant)
    assert found.tolist() == one_by_one(
        matrix.numpy(), np.float32(similarity * (1 - 1e-6)), importance.tolist(), constant
    )
    assert torch.equal(found[found], found)


CHAIN = torch.tensor([[1, 0.96, 0.8], [0.96, 1, -0.97], [0.8, -0.97, 1]])  # 0 ~ 1 ~ 2, 0 and 2 unlike


@pytest.mark.parametrize(
    "importance, expected",
    [((1, 3, 2), [1, 1, 1]), ((3, 1, 2), [0, 2, 2]), ((3, 2, 1), [0, 2, 2]), ((1, 1, 1), [0, 2, 2])],
)
def test_a_chain_is_merged_into_neurons_that_stay(importance, expected):
    assert clusters(CHAIN, 0.95, torch.tensor(importance)).tolist() == expected


def tiny():
    """Two inputs, three neurons without nonlinearity: 1 is -2 times 0 plus 3, and 2 is another."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].weight.data = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0]])
    model[0].bias.data = torch.tensor([0.0, 3.0, 0.0])
    model[1].weight.data, model[1].bias.data = torch.tensor([[5.0, 0.5, 1.0]]), torch.tensor([0.25])
    return model, torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 0.0], [3.0, -1.0], [4.0, 4.0]])


def test_merging_by_hand():
    model, images = tiny()
    merged = quiet(model, images, similarity=0.99)
    assert torch.equal(merged[0].weight, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert torch.allclose(merged[1].weight, torch.tensor([[5 + 0.5 * -2, 1.0]]))
    assert torch.allclose(merged[1].bias, torch.tensor([0.25 + 0.5 * 3]))
    deleted = quiet(model, images, similarity=0.99, merge=False)
    assert torch.equal(deleted[1].weight, torch.tensor([[5.0, 1.0]])) and deleted[1].bias == 0.25


def test_the_twin_with_the_smaller_outgoing_norm_goes():
    model, images = tiny()
    model[1].weight.data[0, 1] = -8.0
    merged = quiet(model, images, similarity=0.99)
    assert torch.equal(merged[0].weight, torch.tensor([[-2.0, 0.0], [0.0, 1.0]]))
    assert torch.allclose(merged[1].weight, torch.tensor([[-8 + 5 * -0.5, 1.0]]))
    assert torch.allclose(merged[1].bias, torch.tensor([0.25 + 5 * 1.5]))


def test_an_inexact_twin_is_fitted_by_least_squares():
    model, images = nn.Sequential(nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 3)), drawn(200, 20)
    wider(model, "0", "2", (1.3,))
    read = outputs(model[:2], images).double().numpy()
    merged = prune(model, images, similarity=0.9)
    assert merged[0].out_features == 8
    gone, stand = (8, 0) if model[2].weight[:, 0].norm() > model[2].weight[:, 8].norm() else (0, 8)
    slope, offset = np.polyfit(read[:, stand], read[:, gone], 1)
    with torch.no_grad():
        expected = model[2].weight[:, stand] + slope * model[2].weight[:, gone]
        assert torch.allclose(merged[2].weight[:, 0 if stand == 0 else 7], expected, atol=1e-6)
        assert torch.allclose(merged[2].bias, model[2].bias + offset * model[2].weight[:, gone], atol=1e-6)


def silent():
    """Neurons 0 and 1 are silent on the images, neuron 2 gives 1.5 always."""
    model, images, _ = perceptron()
    with torch.no_grad():
        model[0].bias[:2], model[0].weight[2], model[0].bias[2] = -1000.0, 0.0, 1.5
        model[0].weight[12:14], model[0].bias[12:14] = drawn(2, 20), 0.0
        model[0].weight[14], model[0].bias[14] = drawn(20, seed=3), 0.0
    return model, images


def test_neurons_that_never_vary_stay_unless_asked_for():
    model, images = silent()
    seen = similarities(model, images)["0"]
    assert (seen[:3] == 0).all() and (seen[:, :3] == 0).all() and (seen.diagonal()[3:] == 1).all()
    assert prune(model, images, similarity=0.999, layers=["0"])[0].out_features == 15
    folded = prune(model, images, similarity=0.999, layers=["0"], constant=True)
    assert folded[0].out_features == 12 and torch.equal(folded[0].weight, model[0].weight[3:])
    assert error(folded, model, images) < 1e-5


def test_one_neuron_stays_where_all_are_silent():
    model, images, _ = perceptron()
    model[0].bias.data.fill_(-1000.0)
    pruned = prune(model, images, similarity=0.5, constant=True)
    assert widths(pruned) == {"0": 1, "2": 1, "4": 4} and error(pruned, model, images) < 1e-5


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("sparsity", [0, 0.01, 0.1, 1 / 3, 0.5, 0.9, 1])
def test_a_sparsity_takes_exactly_as_many(sparsity, constant):
    model, images = silent()
    pruned = prune(model, images, sparsity=sparsity, constant=constant)
    expected = min(round(sparsity * 27), 25)
    assert 27 - sum(widths(pruned).values()) + 4 == expected
    if not sparsity:
        assert error(pruned, model, images) == 0


def test_a_sparsity_takes_planted_twins_first():
    model, images, narrow = perceptron()
    pruned = prune(model, images, sparsity=6 / 27)
    assert widths(pruned) == narrow and error(pruned, model, images) < 1e-5


def test_without_a_setting_similarity_is_095():
    model, images, _ = perceptron()
    assert widths(prune(model, images)) == widths(prune(model, images, similarity=0.95))


def test_random_neurons_are_as_many_and_merged_as_well():
    model, images, narrow = perceptron()
    one, same, other = (prune(model, images, similarity=0.999, criterion="random", seed=seed) for seed in (0, 0, 1))
    assert widths(one) == narrow == widths(other)
    assert torch.equal(one[0].weight, same[0].weight) and not torch.equal(one[0].weight, other[0].weight)
    assert error(one, model, images) > 1e-3
    deleted = prune(model, images, similarity=0.999, criterion="random", merge=False)
    assert torch.equal(deleted[0].weight, one[0].weight) and not torch.equal(deleted[2].weight, one[2].weight)


def test_from_scratch_has_the_shape_and_none_of_the_weights():
    model, images, narrow = perceptron()
    fresh, again, other = (prune(model, images, similarity=0.999, fresh=True, seed=seed) for seed in (0, 0, 1))
    assert widths(fresh) == narrow and torch.equal(fresh[0].weight, again[0].weight)
    assert not torch.equal(fresh[0].weight, other[0].weight)
    assert not torch.isin(fresh[0].weight, model[0].weight).any()


def test_only_named_layers_lose_neurons():
    model, images, narrow = perceptron()
    pruned = prune(model, images, similarity=0.999, layers=["2"])
    assert widths(pruned) == {"0": 15, "2": 9, "4": 4} and error(pruned, model, images) < 1e-5
    assert list(similarities(model, images, layers=["2"])) == ["2"]
    with pytest.warns(UserWarning, match="leaves alone 4 .*model's outputs"):
        assert widths(prune(model, images, similarity=0.999, layers=["2", "4"])) == widths(pruned)
    with pytest.raises(ValueError, match="no neuron can be removed .*'4': its outputs are the model's"):
        prune(model, images, layers=["4"])


def test_calibration_size_is_how_many_images_count():
    model, images, _ = perceptron()
    few = similarities(model, images, calibration_size=50)["0"]
    assert torch.equal(few, similarities(model, images[:50])["0"])
    assert torch.equal(similarities(model, images, calibration_size=5000)["0"], similarities(model, images)["0"])
    assert torch.equal(
        similarities(model, cl.data.Split(images, torch.zeros(300).long()), calibration_size=50)["0"], few
    )


@pytest.mark.parametrize("merge", [True, False])
def test_the_model_is_left_as_it_was(merge):
    model, images, _ = convolutional()
    model.train()
    model[0].weight.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    pruned = prune(model, images, similarity=0.9, merge=merge, criterion="random")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(part.training for part in [*model.modules(), *pruned.modules()])
    assert not model[0].weight.requires_grad and not pruned[0].weight.requires_grad and pruned[4].weight.requires_grad
    assert not any(part._forward_hooks for part in [*model.modules(), *pruned.modules()])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_other_precisions(dtype, tolerance):
    model, images, narrow = perceptron(scales=(2.0, 0.5, 4.0))
    pruned = prune(model.to(dtype), images, similarity=0.999)
    assert widths(pruned) == narrow and {weight.dtype for weight in pruned.parameters()} == {dtype}
    assert error(pruned, model, images.to(dtype)) <= tolerance


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_on_cuda():
    model, images, narrow = convolutional()
    pruned = prune(model.cuda(), images, similarity=0.999)
    assert all(weight.is_cuda for weight in pruned.parameters()) and widths(pruned) == narrow
    assert error(pruned.cpu(), model.cpu(), images) < 1e-5


def test_masked_weights_take_what_is_merged_and_keep_their_other_zeros():
    model, images, narrow = perceptron()
    masked = cl.zero_pruning.prune(model, 0.5, layers=["4"])
    twins = prune(masked, images, similarity=0.999)
    assert widths(twins) == narrow and error(twins, masked, images) < 1e-5
    assert isinstance(twins[4].parametrizations.weight[0], Mask)
    assert cl.layers.count_nonzeros(twins) <= cl.layers.count_nonzeros(masked)
    tuned = cl.train.finetune(twins, (images, torch.arange(300) % 4), steps=3, precision="fp32", bar=False)
    assert torch.equal(tuned[4].weight == 0, twins[4].weight == 0) and (twins[4].weight == 0).any()


def test_weights_pruned_by_torch_are_masked_ones():
    model, images, narrow = perceptron()
    torch_prune.l1_unstructured(model[2], "weight", 0.4)
    twins = prune(model, images, similarity=0.9999, layers=["0"])
    assert twins[0].out_features == 12 and error(twins, model, images) < 1e-5


def test_weights_of_16_bits_take_what_is_merged():
    model, images, narrow = perceptron(scales=(2.0, 0.5, 4.0))
    for layer in (model[2], model[4]):
        parametrize.register_parametrization(layer, "weight", cl.grids.Half(torch.float16))
    twins = prune(model, images, similarity=0.9999, layers=["0"])
    assert twins[0].out_features == 12 and 0 < error(twins, model, images) < 1e-2
    assert torch.equal(twins[2].weight, twins[2].weight.half().float())


def test_weights_on_a_grid_are_left_alone_but_for_deleting():
    model, images, _ = perceptron()
    model = cl.quantization.quantize(model, bits=8)
    with pytest.warns(UserWarning, match="the weights of 2, which reads it, keep to few values"):
        assert widths(prune(model, images, similarity=0.99)) == widths(model)
    assert widths(prune(model, images, similarity=0.99, merge=False))["0"] < 15


class Sentences(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.memory = nn.Embedding(30, 8), nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens):
        return self.head(self.memory(self.words(tokens))[0][:, -1])


def test_a_network_without_such_neurons_is_reported_and_stays():
    model, tokens = Sentences(), torch.randint(30, (40, 6), generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="head .*outputs.*words .*Embedding.*memory .*LSTM") as caught:
        pruned = prune(model, tokens)
    assert caught[0].filename == __file__
    assert pruned is not model and error(pruned, model, tokens) == 0


def test_a_transposed_convolution_reads_no_merged_channels():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 1, 3), nn.Flatten(), nn.Linear(64, 2))
    model[0].weight.data[3], model[0].bias.data[3] = model[0].weight.data[0], model[0].bias.data[0]
    images = drawn(30, 1, 8, 8)
    with pytest.warns(UserWarning, match="0 .2, a transposed convolution, reads it"):
        assert prune(model, images, similarity=0.999)[0].out_channels == 4
    assert prune(model, images, similarity=0.999, merge=False)[0].out_channels == 3


def test_it_trains_on_is_saved_loaded_and_measured():
    model, images, narrow = convolutional()
    pruned = prune(model, images, similarity=0.999)
    again = cl.storage.loads(cl.storage.dumps(pruned))
    assert torch.equal(outputs(again, images), outputs(pruned, images))
    tuned = cl.train.finetune(pruned, (images, torch.arange(60) % 5), steps=2, precision="fp32", bar=False)
    assert widths(tuned) == narrow and cl.measure.sizes(tuned).parameters < cl.layers.count_parameters(model)


def test_few_samples_are_warned_about():
    model, images, _ = perceptron()
    with pytest.warns(UserWarning, match="layer '0' is judged by 20 samples") as caught:
        prune(model, images[:20])
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(model, images)


BAD = {
    "zero": ({"similarity": 0}, "similarity is 0; give a number above 0, up to 1"),
    "negative": ({"similarity": -0.5}, "similarity is -0.5"),
    "percent": ({"similarity": 95}, "similarity is 95; give a number from 0 to 1"),
    "nan": ({"similarity": math.nan}, "similarity is nan"),
    "bool": ({"similarity": True}, "similarity is True"),
    "text": ({"similarity": "0.9"}, "similarity is '0.9'"),
    "both": ({"similarity": 0.9, "sparsity": 0.5}, "similarity or sparsity, one of them; got 0.9 and 0.5"),
    "sparsity": ({"sparsity": 90}, r"sparsity is 90; .*0\.9, not 90"),
    "merge": ({"merge": "yes"}, "merge is 'yes'; give True or False"),
    "constant": ({"constant": 2}, "constant is 2"),
    "fresh": ({"fresh": None}, "fresh is None"),
    "criterion": ({"criterion": "norm"}, "criterion is 'norm'; choose one of 'correlation', 'random'"),
    "layer": ({"layers": ["fc1"]}, "layers has 'fc1'; choose from 0, 2, 4"),
    "layer name alone": ({"layers": "0"}, "list of layer names"),
    "calibration_size": ({"calibration_size": 1}, "calibration_size is 1; give a whole number 2 or more"),
    "seed": ({"seed": -1}, "seed is -1"),
}


@pytest.mark.parametrize("options, said", BAD.values(), ids=BAD.keys())
def test_a_bad_setting_is_named(options, said):
    model, images, _ = perceptron()
    with pytest.raises(ValueError, match=said):
        prune(model, images, **options)


BAD_IMAGES = {
    "none": (None, "images is None; give calibration images"),
    "empty": (torch.empty(0, 20), "images is empty"),
    "one": (torch.rand(1, 20), "images holds 1 image; a correlation takes 2"),
    "list": ([[0.0]], "images is list"),
    "shape": (torch.rand(40, 21), r"does not take images of shape"),
    "nan": (torch.full((40, 20), math.nan), "not finite"),
    "nan later": (torch.cat([torch.rand(40, 20), torch.full((1, 20), math.nan)]), "not finite"),
}


@pytest.mark.parametrize("images, said", BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_bad_images_are_named(images, said):
    with pytest.raises(ValueError, match=said):
        prune(perceptron()[0], images)


def test_a_model_that_cannot_be_pruned_is_refused():
    with pytest.raises(ValueError, match="model is 'lenet_5'"):
        prune("lenet_5", torch.rand(40, 20))
    with pytest.raises(ValueError, match="no layer to remove neurons of"):
        prune(nn.Sequential(nn.ReLU()), torch.rand(40, 20))
    model, images, _ = perceptron()
    model[0].weight.data[3] = math.nan
    with pytest.raises(ValueError, match="'0.weight' has weights that are not finite"):
        prune(model, images)
    model, images, _ = perceptron()
    model[0].weight.data.mul_(1e38)
    with pytest.raises(ValueError, match="layer '.' give activations that are not finite"):
        prune(model, images)


def pictures(model, images, **setting):
    data = cl.data.from_tensors(images, torch.arange(len(images)) % 4, seed=0)
    pruned = prune(model, data.train.images, **setting)
    return {picture.name: picture for picture in redundancy_pruning.anatomy(model, pruned, setting, data)}


def test_the_matrix_puts_twins_side_by_side():
    model, images, _ = perceptron()
    drawn = pictures(model, images, similarity=0.999)["correlation"]
    assert (drawn.kind, drawn.values.shape) == ("matrix", (15, 15))
    assert np.abs(drawn.values).max() <= 1 and (drawn.values.diagonal() == 1).all()
    lower = np.argwhere(np.tril(drawn.values, -1))
    assert len(lower) == TWINS and all(row == column + 1 for row, column in lower)
    assert np.count_nonzero(np.triu(drawn.values, 1)) > 50
    assert "0" in drawn.title and drawn.caption


def test_the_histogram_is_cut_where_twins_begin():
    model, images, _ = perceptron()
    drawn = pictures(model, images, similarity=0.999)["likeness"]
    assert drawn.kind == "histogram" and drawn.cut == 0.999 and len(drawn.values) == 27
    assert (drawn.values >= 0.999).sum() == 4 * TWINS
    assert 0.99 < pictures(model, images, sparsity=6 / 27)["likeness"].cut <= 1
    assert pictures(model, images, similarity=0.999, criterion="random")["likeness"].cut is None
    assert pictures(model, images)["likeness"].cut == 0.95


def test_the_bars_are_what_is_left_of_each_layer():
    model, images, _ = perceptron()
    drawn = pictures(model, images, similarity=0.999)["layers"]
    assert drawn.labels == ("0", "2") and drawn.values == pytest.approx([12 / 15, 9 / 12])


def test_wide_layers_are_drawn_in_part():
    model = nn.Sequential(nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, 4))
    drawn = pictures(model, drawn_images := torch.rand(200, 20), similarity=0.9)["correlation"]
    assert len(drawn_images) and drawn.values.shape == (128, 128) and "128 likest" in drawn.caption


def test_a_network_without_such_neurons_has_no_pictures():
    assert (
        redundancy_pruning.anatomy(*2 * [nn.Linear(20, 4)], {}, cl.data.from_tensors(drawn(60, 20), [0, 1] * 30)) == []
    )


@pytest.mark.parametrize("name", cl.models.names())
def test_both_ends_of_every_control_work(name):
    technique, data = cl.techniques.get("redundancy_pruning"), cl.data.load("mnist")
    model, images = cl.models.pretrained(name, "mnist"), data.train.images[:100]
    for control in technique.controls:
        ends = (False, True) if isinstance(control.default, bool) else (control.low, control.high)
        for value in control.choices or ends:
            setting = {control.name: value} if control.alternative else {"similarity": 0.8, control.name: value}
            pruned = quiet(model, images, **setting)
            assert outputs(pruned, images).isfinite().all()
            assert len(technique.anatomy(model, pruned, setting, data)) == 3
    for laid_over in technique.fair_controls.values():
        assert widths(prune(model, images, similarity=0.8, **laid_over)) == widths(prune(model, images, similarity=0.8))
