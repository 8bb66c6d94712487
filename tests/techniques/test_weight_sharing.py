"""Weight sharing: scikit-learn as the oracle, zeros and masks, models of many makes, training, pictures."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn

import compresslab as cl
from compresslab.numerics import rounding_noise
from compresslab.numerics.clustering import INITS
from compresslab.techniques import weight_sharing
from compresslab.techniques.weight_sharing import anatomy, share
from compresslab.weights.codebooks import Codebook
from compresslab.weights.grids import Grid
from compresslab.weights.layers import distinct_weights, get_mask, get_rounding, weight_layers

ALL = list(range(1, 9))


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3)).eval()


def convolutional(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ConvTranspose2d(3, 2, 2),
        nn.Flatten(2),
        nn.Conv1d(2, 4, 3),
        nn.Unflatten(2, (1, 7, 4)),
        nn.Conv3d(4, 2, (1, 3, 3)),
        nn.ConvTranspose3d(2, 2, 1),
        nn.Flatten(2),
        nn.ConvTranspose1d(2, 1, 2),
        nn.Flatten(),
        nn.Linear(11, 3),
    ).eval()


def linear(rows):
    """A model of one layer with these weights."""
    model = nn.Sequential(nn.Linear(len(rows[0]), len(rows)))
    model[0].weight.data = torch.tensor(rows, dtype=torch.float32)
    return model


def pruned(sparsity=0.8):
    return cl.zero_pruning.prune(small(), sparsity=sparsity)


def tiny_data():
    inputs = torch.randn(120, 40, generator=torch.Generator().manual_seed(0))
    return cl.data.from_tensors(inputs, inputs[:, :3].argmax(1), seed=0)


def values_of(tensor):
    """The distinct values of a tensor, without zero."""
    values = tensor.detach().unique()
    return values[values != 0]


def trained(model, steps=15, **options):
    return cl.train.finetune(model, tiny_data().train, steps=steps, precision="fp32", bar=False, **options)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("bits", ALL)
@pytest.mark.parametrize("make", [small, convolutional], ids=["linear", "convolutional"])
def test_weights_are_few_values_and_each_the_nearest(make, bits, init):
    model = make()
    shared = share(model, bits=bits, init=init)
    for name, layer in weight_layers(shared).items():
        codebook, before = get_rounding(layer), weight_layers(model)[name].weight.detach()
        values = codebook.centroids.detach()
        assert torch.equal(layer.weight, values[codebook.assignments.long()])
        assert len(values) == len(values.unique()) == min(2**bits, before.numel()) and not codebook.zero
        assert torch.equal((layer.weight - before).abs(), (before[..., None] - values).abs().min(-1).values)
        assert torch.equal(layer.bias, weight_layers(model)[name].bias)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("init", ["linear", "density"])
def test_the_error_is_scikit_learns(bits, init):
    weight = cl.models.pretrained("lenet_300_100", "mnist").fc2.weight.detach()
    numbers = weight.double().numpy().reshape(-1, 1)
    start = np.linspace(numbers.min(), numbers.max(), 2**bits)
    if init == "density":
        start = np.quantile(numbers, (np.arange(2**bits) + 0.5) / 2**bits)
    theirs = KMeans(2**bits, init=start.reshape(-1, 1), n_init=1).fit(numbers).inertia_
    model = nn.Sequential(nn.Linear(300, 100))
    model[0].weight.data = weight
    ours = (share(model, bits=bits, init=init)[0].weight - weight).double().square().sum().item()
    assert ours <= theirs * 1.003


@pytest.mark.parametrize("unit", [1.0, 0.0], ids=["beside 1", "least of all"])
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("bits", [3, 4])
def test_neighbouring_floats_are_kept_exactly(bits, init, unit):
    step = 2.0**-23 if unit else 2.0**-149
    values = [[unit + step * (4 * row + column + 1) for column in range(4)] for row in range(2)]
    model = linear(values)
    assert model[0].weight.unique().numel() == 8
    assert torch.equal(share(model, bits=bits, init=init)[0].weight, model[0].weight)


def test_centroids_are_the_means_of_their_weights():
    shared = share(model := small(), bits=3)
    codebook, before = get_rounding(shared[0]), model[0].weight.detach()
    means = [before[codebook.assignments == code].mean() for code in range(8)]
    assert torch.allclose(codebook.centroids, torch.stack(means), atol=1e-6)


def test_sharing_by_hand():
    shared = share(linear([[0.0, 1, 2], [10, 11, 30]]), bits=1)
    assert shared[0].weight.tolist() == [[0, 6, 6], [6, 6, 30]]  # the zero has a code of its own
    shared = share(linear([[-2.0, -1, 1], [2, 8, 10]]), bits=2)
    assert shared[0].weight.tolist() == [[-1.5, -1.5, 1.5], [1.5, 8, 10]]
    even = share(linear([[-2.0, -1, 1], [2, 8, 10]]), bits=2, iterations=0)
    assert even[0].weight.tolist() == [[-2, -2, 2], [2, 6, 10]]  # of -2, 2, 6, 10


@pytest.mark.parametrize("bits", ALL)
@pytest.mark.parametrize("biases", [False, True, 3])
def test_zeros_stay_zeros_and_masks_stay(bits, biases):
    model = pruned()
    shared = share(model, bits=bits, biases=biases)
    for name, layer in weight_layers(shared).items():
        before = weight_layers(model)[name]
        assert torch.equal(layer.weight == 0, before.weight == 0)
        assert torch.equal(get_mask(layer), get_mask(before))
        assert get_rounding(layer).zero and get_rounding(layer).centroids[0] == 0
        assert len(values_of(layer.weight)) <= 2**bits
    assert cl.layers.count_nonzeros(shared) == cl.layers.count_nonzeros(model)


def test_zeros_without_a_mask_have_their_own_code_too():
    model = cl.layers.plain(pruned())
    shared = trained(share(model, bits=2))
    for name, layer in weight_layers(shared).items():
        assert get_mask(layer) is None
        assert torch.equal(layer.weight == 0, weight_layers(model)[name].weight == 0)


def test_a_layer_that_is_all_zeros():
    model = small()
    model[2].weight.data.zero_()
    shared = share(model, bits=4, biases=True)
    assert torch.equal(shared[2].weight, model[2].weight)
    assert trained(shared)[2].weight.count_nonzero() == 0
    emptied = cl.zero_pruning.prune(small(), sparsity=1.0)
    assert weight_layers(share(emptied))["0"].weight.count_nonzero() == 0


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=3, max_size=3), min_size=1, max_size=9),
    bits=st.integers(1, 8),
    init=st.sampled_from(INITS),
    iterations=st.sampled_from([0, 1, 300]),
)
def test_whatever_the_weights_are(rows, bits, init, iterations):
    model = linear(rows)
    before, after = model[0].weight.detach(), share(model, bits=bits, init=init, iterations=iterations)[0].weight
    assert after.isfinite().all() and len(values_of(after)) <= 2**bits
    assert (after[before == 0] == 0).all()
    if len(values_of(before)) <= 2**bits:
        assert torch.equal(after, before + 0.0)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.3, 1e-45, 1e30], ids=str)
def test_equal_weights_are_kept_exactly(value):
    for bits in (1, 8):
        assert torch.equal(share(linear([[value] * 3] * 2), bits=bits)[0].weight, torch.full((2, 3), value))


@pytest.mark.parametrize("init", INITS)
def test_few_values_are_kept_exactly(init):
    once = share(small(), bits=3, init=init)
    for again in (share(once, bits=3, init=init), share(once, bits=8, init="random", seed=4)):
        assert all(
            torch.equal(one.value, other.value)
            for one, other in zip(distinct_weights(once), distinct_weights(again), strict=True)
        )


def test_sharing_again_begins_from_the_values_there_are():
    quantized = cl.quantization.quantize(small(), bits=3, per_channel=False)
    shared = share(quantized, bits=3)
    assert torch.equal(shared[0].weight, quantized[0].weight)
    assert isinstance(get_rounding(shared[0]), Codebook)
    back = cl.quantization.quantize(shared, bits=8)
    assert isinstance(get_rounding(back[0]), Grid) and torch.allclose(back[0].weight, shared[0].weight, atol=1e-2)


def test_codes_that_no_weight_takes_are_left_out():
    weights = [[*torch.linspace(-1e-3, 1e-3, 60).tolist(), 1.0]]
    shared = share(linear(weights), bits=4, iterations=0)
    assert get_rounding(shared[0]).centroids.numel() == len(shared[0].weight.unique()) == 2


class TestBiases:
    def test_as_many_bits_as_the_weights(self):
        shared = share(small(), bits={"0": 2, "2": 3}, biases=True)
        assert len(shared[0].bias.unique()) == 4 and len(shared[2].bias.unique()) == 8
        assert get_rounding(shared[4], "bias") is None

    def test_bits_of_their_own(self):
        shared = share(small(), bits=1, biases=4)
        assert len(shared[0].weight.unique()) == 2 and len(shared[0].bias.unique()) == 16
        assert torch.equal(shared[4].bias, small()[4].bias)  # three biases have three values

    def test_none_there_are_no_matter(self):
        model = nn.Sequential(nn.Linear(4, 3, bias=False))
        assert share(model, biases=True)[0].bias is None

    def test_they_train_on_and_stay_few(self):
        shared = trained(share(small(), bits=2, biases=True))
        assert len(shared[0].bias.unique()) == 4
        assert not torch.equal(shared[0].bias, share(small(), bits=2, biases=True)[0].bias)


def test_bits_by_layer():
    shared = share(small(), bits={"2": 3, "0": 1})
    assert [len(weight.value.unique()) for weight in distinct_weights(shared)] == [2, 8, 60]
    assert get_rounding(shared[4]) is None
    only = share(small(), bits=2, layers=["2"])
    assert get_rounding(only[0]) is None and len(only[2].weight.unique()) == 4


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.first, self.output = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
        self.second, self.again = nn.Linear(4, 4), self.first
        self.second.weight, self.output.weight = self.first.weight, self.embedding.weight
        self.second.bias = self.first.bias

    def forward(self, tokens):
        return self.output(self.second(self.first(self.embedding(tokens.long()).mean(1)).relu()))


def test_tied_weights_stay_tied():
    model = Tied()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the embedding is shared along with the layer
        shared = share(model, bits=2, biases=True)
    assert get_rounding(shared.first) is get_rounding(shared.second)
    assert get_rounding(shared.embedding) is get_rounding(shared.output)
    assert get_rounding(shared.first, "bias") is get_rounding(shared.second, "bias") is not None
    assert cl.layers.count_parameters(shared) == cl.layers.count_parameters(model)
    shared = cl.train.finetune(
        shared, (torch.randint(0, 7, (64, 3)), torch.randint(0, 7, (64,))), steps=3, precision="fp32", bar=False
    )
    assert torch.equal(shared.first.weight, shared.second.weight) and len(shared.first.weight.unique()) == 4
    with pytest.raises(ValueError, match="bits has 'first': 2, 'second': 3, but these layers share their weight"):
        share(model, bits={"first": 2, "second": 3})
    with pytest.raises(ValueError, match="bits has 'first' and 'again', which are one layer"):
        share(model, bits={"first": 2, "again": 3})
    assert len(share(model, bits={"again": 2, "second": 2}).first.weight.unique()) == 4


def test_what_is_left_alone_is_named():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.memory, self.head = nn.Embedding(9, 4), nn.LSTM(4, 4), nn.Linear(4, 3)

    with pytest.warns(UserWarning, match=r"leaves alone table \(weights of Embedding\)$"):
        share(Reader())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        share(Reader(), layers=["head"])
        share(Reader(), bits={"head": 2})


def test_the_model_is_left_as_it_was():
    model = pruned()
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    shared = share(model, bits=2, init="random", biases=True)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), state) and shared.training and model.training
    own = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    assert own.isdisjoint(tensor.data_ptr() for tensor in [*shared.parameters(), *shared.buffers()])


def test_frozen_weights_stay_frozen():
    model = small()
    model[0].weight.requires_grad_(False)
    shared = share(model, bits=3)
    assert not get_rounding(shared[0]).centroids.requires_grad and get_rounding(shared[2]).centroids.requires_grad
    tuned = trained(shared)
    assert torch.equal(tuned[0].weight, shared[0].weight) and not torch.equal(tuned[2].weight, shared[2].weight)


def test_a_weight_behind_a_norm_is_shared_as_it_acts():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(40, 30)))
    shared = share(model, bits=2)
    assert len(shared[0].weight.unique()) == 4
    assert torch.allclose(shared[0].weight, model[0].weight, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    model = small().to(dtype)
    shared = share(model, bits=3, biases=True)
    assert shared[0].weight.dtype == dtype and len(shared[0].weight.unique()) == 8
    assert shared(torch.randn(2, 40, dtype=dtype)).isfinite().all()


def test_the_seed_is_that_of_the_random_start():
    one, same, other = (share(small(), bits=3, init="random", seed=seed)[0].weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(*(share(small(), bits=3, seed=seed)[0].weight for seed in (0, 1)))


@pytest.mark.parametrize("biases", [False, True])
def test_training_moves_centroids_and_leaves_codes(biases):
    shared = share(pruned(0.5), bits=2, biases=biases)
    tuned = trained(shared, lr=0.02)
    for name, layer in weight_layers(tuned).items():
        before = weight_layers(shared)[name]
        assert torch.equal(get_rounding(layer).assignments, get_rounding(before).assignments)
        assert torch.equal(layer.weight == 0, before.weight == 0)
        assert not torch.equal(layer.weight, before.weight)
        assert 3 <= len(layer.weight.unique()) <= 5
    data = tiny_data()
    assert cl.measure.accuracy(tuned, data.train) > cl.measure.accuracy(shared, data.train)


def test_training_brings_back_what_two_bits_cost():
    data = cl.data.load("mnist")
    part = cl.data.Split(data.validation.images[:2000], data.validation.labels[:2000])
    model = cl.models.pretrained("lenet_300_100", "mnist")
    shared = share(model, bits=2)
    tuned = cl.train.finetune(shared, data.train, steps=60, precision="fp32", bar=False)
    dense, before, after = (cl.measure.accuracy(one, part) for one in (model, shared, tuned))
    assert before < dense - 0.01 and after > before + 0.008
    assert cl.measure.accuracy(share(model, bits=4), part) > dense - 0.004
    even = cl.measure.accuracy(share(model, bits=2, iterations=0), part)
    assert even < before - 0.2


def test_what_is_shared_is_saved_and_loaded():
    for model in (share(small(), bits=3, biases=True), share(pruned(), bits=1), trained(share(pruned(), bits=2))):
        again = cl.storage.loads(cl.storage.dumps(model))
        images = torch.randn(9, 40)
        assert torch.equal(again(images), model(images))


def test_pruning_after_sharing():
    shared = share(small(), bits=3, biases=True)
    sparse = cl.zero_pruning.prune(shared, sparsity=0.6)
    kept = get_mask(sparse[0])
    assert torch.equal(sparse[0].weight[kept], shared[0].weight[kept])
    tuned = trained(sparse)
    assert (tuned[0].weight[~kept] == 0).all() and len(values_of(tuned[0].weight)) <= 8
    images = torch.randn(64, 40)
    for removed in (
        cl.activation_pruning.prune(shared, images, sparsity=0.4),
        cl.redundancy_pruning.prune(shared, images, sparsity=0.4, merge=False),
    ):
        assert removed[0].weight.shape[0] < 30 and len(removed[0].weight.unique()) <= 8
        assert cl.train.evaluate(trained(removed), images).isfinite().all()


def test_factors_are_shared():
    shared = share(cl.low_rank.factorize(small(), rank=4), bits=2)
    assert all(len(weight.value.unique()) == 4 for weight in distinct_weights(shared))


BAD = {
    "bits": ({"bits": 0}, "bits is 0; give a whole number from 1 to 8"),
    "too many bits": ({"bits": 9}, "bits is 9"),
    "half a bit": ({"bits": 2.5}, "bits is 2.5"),
    "bits by layer": ({"bits": {"0": 0}}, r"bits\['0'\] is 0"),
    "no layer": ({"bits": {}}, "bits is {}; name at least one layer"),
    "unknown layer": ({"bits": {"fc9": 3}}, "bits has 'fc9'; choose from 0, 2, 4"),
    "no weight layer": ({"bits": {"1": 3}}, "bits has '1'"),
    "both": ({"bits": {"0": 3}, "layers": ["0"]}, "bits is a dict, which names the layers"),
    "layers": ({"layers": ["nine"]}, "layers has 'nine'"),
    "init": ({"init": "best"}, "init is 'best'; choose one of 'linear', 'density', 'random'"),
    "biases": ({"biases": 9}, "biases is 9; give a whole number from 1 to 8"),
    "no bits of biases": ({"biases": "all"}, "biases is 'all'"),
    "iterations": ({"iterations": -1}, "iterations is -1"),
    "seed": ({"seed": -1}, "seed is -1"),
}


@pytest.mark.parametrize("setting, words", BAD.values(), ids=BAD.keys())
def test_what_is_no_setting_is_named(setting, words):
    with pytest.raises(ValueError, match=words):
        share(small(), **setting)


def test_models_that_cannot_be_shared_are_named():
    with pytest.raises(ValueError, match="model is 3; give a torch.nn.Module"):
        share(3)
    with pytest.raises(ValueError, match="no layer to share the weights of"):
        share(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="layer '0' is on the meta device"):
        share(nn.Sequential(nn.Linear(3, 2, device="meta")))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="layer '0' has weights that are not finite"):
            share(linear([[1.0, bad]]))
    with pytest.raises(ValueError, match="layer '0' has weights of torch.complex64"):
        share(nn.Sequential(nn.Linear(3, 2, dtype=torch.complex64)))


class TestAnatomy:
    def test_pictures_of_the_largest_layer(self):
        model = small()
        shared = share(model, bits=3)
        weights, use, noise = anatomy(model, shared, {"bits": 3})
        assert weights.kind == "histogram" and weights.values.size == 1200 and weights.title == "Weights of 0 before"
        assert np.array_equal(weights.marks, get_rounding(shared[0]).centroids.detach())
        assert use.values.sum() == 1200 and len(use.labels) == 8
        assert np.array_equal(np.array(use.labels, float), np.sort(np.array(use.labels, float)))
        assert noise.labels == ("0", "2", "4") and (noise.values > 5).all()

    def test_zeros_are_left_out(self):
        model = pruned()
        weights, use, _ = anatomy(model, share(model, bits=2), {"bits": 2})
        assert (weights.values != 0).all() and 0 not in weights.marks and len(weights.marks) == 4
        assert use.values.sum() == get_mask(model[0]).sum() and len(use.labels) == 4

    def test_entropy_by_hand(self):
        model = linear([[1.0, 1, 2, 3]])
        assert "these 3 codes carry 1.50 bits" in anatomy(model, share(model), {})[1].caption

    def test_a_layer_of_zeros_has_no_bars(self):
        model = linear([[0.0, 0, 0]])
        weights, use, _ = anatomy(model, share(model), {})
        assert weights.values.size == use.values.size == 0 and "0 codes carry 0.00 bits" in use.caption

    def test_only_the_layers_that_were_asked_for(self):
        model = small()
        for setting in ({"bits": {"2": 2}}, {"bits": 2, "layers": ["2"]}):
            weights, _, noise = anatomy(model, share(model, **setting), setting)
            assert weights.title == "Weights of 2 before" and noise.labels == ("2",)

    def test_what_is_exact_has_no_noise(self):
        model = linear([[1.0, 1, 2, 3]])
        assert anatomy(model, share(model), {})[2].values.tolist() == [rounding_noise.CLEAR]

    def test_a_layer_without_weights_is_not_drawn(self):
        model = nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 4))
        weights, _, noise = anatomy(model, share(model, bits=2), {"bits": 2})
        assert weights.title == "Weights of 1 before" and noise.labels == ("1",)

    def test_a_model_without_weights_has_no_pictures(self):
        model = nn.Sequential(nn.Linear(0, 5))
        assert anatomy(model, share(model), {}) == []


def test_a_sweep_over_bits_and_starts():
    options = {"journal": False, "bar": False, "precision": "fp32"}
    found = list(cl.sweep.run("weight_sharing", small(), tiny_data(), {"bits": [1, 3]}, steps=5, **options))
    assert [one.setting["bits"] for one in found] == [1, 3] and all(one.stage == "retrained" for one in found)
    assert found[0].setting == {"bits": 1, "init": "linear", "biases": False}
    even = weight_sharing.TECHNIQUE.fair_controls["evenly spaced values"]
    (result,) = cl.sweep.run("weight_sharing", small(), tiny_data(), {"bits": 2, **even}, steps=0, **options)
    assert result.setting["iterations"] == 0 and result.stage == "one-shot"
