"""Low-rank factorization: torch's SVD as the oracle, real layers, what is left alone and said, models of many makes."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import compresslab as cl
from compresslab.techniques import low_rank
from compresslab.techniques.low_rank import break_even, factorize, singular_values
from tests.numerics.samples import input_rows

pytestmark = pytest.mark.slow


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def convolutional(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 10, (3, 2), padding=(2, 1), dilation=(2, 1), padding_mode="circular"),
        nn.ReLU(),
        nn.Conv2d(10, 12, 3, padding="same", bias=False),
        nn.Flatten(2),
        nn.Conv1d(12, 14, 3, padding=1),
        nn.Unflatten(2, (1, 4, 6)),
        nn.Conv3d(14, 6, (1, 3, 3)),
        nn.Flatten(),
        nn.Linear(48, 9),
    )


def quiet(*arguments, **options):
    """`factorize` without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return factorize(*arguments, **options)


def product(pair):
    """The factors of a layer multiplied, as a matrix."""
    return pair[1].weight.detach().flatten(1) @ pair[0].weight.detach().flatten(1)


def tiny_data(seed=0, count=120):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 20, generator=generator)
    return cl.data.from_tensors(images, (images @ torch.randn(20, 3, generator=generator)).argmax(1), seed=0)


def test_a_layer_becomes_two_of_its_rank():
    pair = quiet(small(), rank=4)[0]
    assert type(pair) is nn.Sequential and [type(one) for one in pair] == [nn.Linear, nn.Linear]
    assert (pair[0].in_features, pair[0].out_features, pair[0].bias) == (20, 4, None)
    assert (pair[1].in_features, pair[1].out_features) == (4, 16) and pair[1].bias is not None
    assert cl.layers.count_parameters(pair) == 4 * (20 + 16) + 16
    assert all(one.is_contiguous() for one in pair.parameters())


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_product_is_the_truncated_svd(rank):
    model = small()
    found = quiet(model, rank=rank)
    for place in (0, 2):
        left, values, right = torch.linalg.svd(model[place].weight.detach(), full_matrices=False)
        assert torch.allclose(product(found[place]), (left[:, :rank] * values[:rank]) @ right[:rank], atol=1e-5)
        assert torch.equal(found[place][1].bias, model[place].bias)
        assert torch.allclose(found[place][0].weight.norm(dim=1), found[place][1].weight.norm(dim=0), rtol=1e-4)


def test_a_convolution_keeps_its_form():
    model = convolutional()
    found, rank = quiet(model, rank=3), 3
    for place in (0, 2, 4, 6, 8):
        old, (first, second) = model[place], found[place]
        for name in ("stride", "padding", "dilation", "kernel_size", "padding_mode", "in_channels"):
            assert getattr(first, name) == getattr(old, name), name
        assert type(first) is type(second) is type(old)
        assert (first.out_channels, first.bias) == (rank, None)
        assert (second.in_channels, second.out_channels) == (rank, old.out_channels)
        assert set(second.kernel_size) == {1} and (second.bias is None) == (old.bias is None)
        left, values, right = torch.linalg.svd(old.weight.detach().flatten(1), full_matrices=False)
        assert torch.allclose(product(found[place]), (left[:, :rank] * values[:rank]) @ right[:rank], atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"method": "activation"}], ids=["svd", "activation"])
def test_full_rank_leaves_the_outputs_equal(options):
    model, images = convolutional().eval(), torch.rand(6, 3, 7, 9)
    full = {name: min(len(one.weight), one.weight[0].numel()) for name, one in cl.layers.weight_layers(model).items()}
    with pytest.warns(UserWarning, match=r"makes no smaller, as asked for: 0 \(rank 8, break-even rank 6.171\), 2 "):
        found = factorize(model, images, rank=full, **options)
    assert torch.allclose(found(images), model(images), atol=1e-5)
    by_energy = quiet(model, images, energy=dict.fromkeys(full, 1), **options)
    assert torch.allclose(by_energy(images), model(images), atol=1e-5)
    assert all(isinstance(by_energy[place], nn.Sequential) for place in (0, 2, 4, 6, 8, 10))


def test_energy_one_for_all_leaves_everything_alone():
    model = small()
    with pytest.warns(UserWarning, match="leaves alone 0 .*rank 16 would not make it smaller, its break-even rank"):
        assert [type(one) for one in factorize(model, energy=1.0)] == [type(one) for one in model]


@pytest.mark.parametrize("energy", [0.05, 0.4, 0.7, 0.85])
def test_energy_is_the_share_of_the_squared_singular_values(energy):
    model = small()
    found = quiet(model, energy=energy)
    for place in (0, 2):
        squares = torch.linalg.svdvals(model[place].weight.detach().double()).square()
        rank = int((squares.cumsum(0) / squares.sum() < energy).sum()) + 1
        if rank < break_even(*model[place].weight.shape):
            assert found[place][0].out_features == rank
        else:
            assert type(found[place]) is nn.Linear


def test_layers_that_would_grow_are_left_alone_and_named():
    with pytest.warns(UserWarning, match=r"low_rank leaves alone 2 \(rank 7 .*6.857\); 4 \(.*2.4\)$") as caught:
        found = factorize(small(), rank=7)
    assert isinstance(found[0], nn.Sequential) and type(found[2]) is type(found[4]) is nn.Linear
    assert len(caught) == 1 and caught[0].filename == __file__
    with pytest.warns(UserWarning, match="leaves alone 0 .*8.889"):
        unchanged = factorize(small(), rank=9)
    assert cl.layers.count_parameters(unchanged) == cl.layers.count_parameters(small())


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 20), columns=st.integers(1, 20), rank=st.integers(1, 20), bias=st.booleans())
def test_a_model_never_grows_unless_a_dict_asks_for_it(rows, columns, rank, bias):
    model = nn.Sequential(nn.Linear(columns, rows, bias=bias))
    if rank > min(rows, columns):
        with pytest.raises(ValueError, match=f"rank is {rank}; the largest full rank of a layer is"):
            factorize(model, rank=rank)
        return
    count, before = cl.layers.count_parameters(quiet(model, rank=rank)), cl.layers.count_parameters(model)
    pays = rank * (rows + columns) < rows * columns
    assert (count < before) == pays and (count == before) == (not pays)
    explicit = cl.layers.count_parameters(quiet(model, rank={"0": rank}))
    assert explicit == rank * (rows + columns) + bias * rows


def test_a_dict_factorizes_the_layers_it_names():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = factorize(small(), rank={"2": 2, "0": 5})
    assert [found[0][0].out_features, found[2][0].out_features] == [5, 2] and type(found[4]) is nn.Linear
    found = quiet(small(), energy={"2": 0.3})
    assert type(found[0]) is nn.Linear and isinstance(found[2], nn.Sequential)


def test_only_the_named_layers_are_factorized_and_spoken_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = factorize(small(), rank=4, layers=["2"])
    assert type(found[0]) is nn.Linear and isinstance(found[2], nn.Sequential)


def test_weighted_is_nearer_to_the_outputs():
    """Against the optimum: the principal components of the layer's outputs."""
    data, model, rank = cl.data.load("mnist"), cl.models.pretrained("lenet_300_100", "mnist"), 8
    images = data.train.images[:400]
    plain, weighted = (quiet(model, images, rank={"fc1": rank}, method=method) for method in low_rank.METHODS)
    outputs = [net[:2](images).detach() for net in (model, plain, weighted)]
    errors = [float((outputs[0] - one).square().sum(1).mean()) for one in outputs[1:]]
    best = float(torch.linalg.svdvals((outputs[0] - outputs[0].mean(0)).double())[rank:].square().sum()) / len(images)
    assert best <= errors[1] < 1.001 * best < errors[0] / 1.5
    accuracies = [
        cl.measure.accuracy(quiet(model, images, rank=8, method=one), data.validation) for one in low_rank.METHODS
    ]
    assert accuracies[1] > accuracies[0] + 0.1


def test_weighted_convolutions_too():
    model, images = convolutional().eval(), torch.rand(40, 3, 7, 9)
    model[0].bias.data.fill_(0.3)
    for place in (0, 2, 4, 6, 8, 10):
        name, given_to = str(place), model[:place](images).detach() if place else images
        plain, weighted = (quiet(model, images, rank={name: 2}, method=method) for method in low_rank.METHODS)
        outputs = [net[place](given_to).detach() for net in (model, plain, weighted)]
        errors = [float((outputs[0] - one).square().mean()) for one in outputs[1:]]
        assert errors[1] < errors[0], place
        assert (model[place].bias is None) == (weighted[place][1].bias is None)


def test_the_mean_of_what_is_lost_goes_into_the_bias():
    model, images = convolutional().eval(), torch.rand(50, 3, 7, 9)
    found = quiet(model, images, rank={"0": 2}, method="activation")
    rows = input_rows(model[0], images)
    lost = rows.mean(0) @ (model[0].weight.detach().flatten(1) - product(found[0])).T
    assert torch.allclose(found[0][1].bias - model[0].bias, lost, atol=1e-5)


def test_one_image_or_blank_images_are_enough():
    model = small()
    for images in (torch.rand(1, 20), torch.zeros(5, 20)):
        found = quiet(model, images, rank=4, method="activation")
        assert torch.allclose(found[0](images[:1]), model[0](images[:1]), atol=1e-4)
        assert all(one.isfinite().all() for one in found.state_dict().values())


def test_images_are_not_looked_at_without_need():
    model, images = small(), torch.rand(10, 20)
    assert torch.equal(product(quiet(model, images, rank=4)[0]), product(quiet(model, rank=4)[0]))


def test_singular_values():
    model = convolutional().eval()
    found = singular_values(model)
    assert list(found) == ["0", "2", "4", "6", "8", "10"]
    for name, values in found.items():
        assert torch.allclose(
            values, torch.linalg.svdvals(model[int(name)].weight.detach().flatten(1).double()), atol=1e-6
        )
    images = torch.rand(60, 3, 7, 9)
    (weighted,) = singular_values(model, images, ["10"]).values()
    outputs = model(images).detach()
    assert float(weighted.square().sum()) == pytest.approx(float(outputs.var(0, correction=0).sum()), rel=0.1)
    with pytest.raises(ValueError, match="layers has 'x'"):
        singular_values(model, layers=["x"])


def test_the_model_is_left_as_it_was():
    model, images = small().train(), torch.rand(30, 20)
    model[2].eval()
    model[0].weight.requires_grad_(False)
    handle = model[0].register_forward_hook(lambda *_: None)
    model(torch.randn(4, 20)).sum().backward()
    state, grads = copy.deepcopy(model.state_dict()), [w.grad for w in model.parameters()]
    identities, modes = [id(w) for w in model.parameters()], [module.training for module in model.modules()]
    random = torch.get_rng_state()
    for options in ({}, {"method": "activation"}, {"fresh": True}):
        found = quiet(model, images, rank=4, **options)
        assert {one.training for one in found[2].modules()} == {False} and found[0][1].training is True
        assert [one.requires_grad for one in found[0].parameters()] == [False, False, True]
        assert handle.id in found[0]._forward_hooks
        shared = {id(w) for w in model.parameters()} & {id(w) for w in found.parameters()}
        assert not shared
    assert torch.equal(torch.get_rng_state(), random)
    assert [id(w) for w in model.parameters()] == identities
    assert [module.training for module in model.modules()] == modes
    assert all(one is other for one, other in zip((w.grad for w in model.parameters()), grads, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert list(model[0]._forward_hooks) == [handle.id] and not model[2]._forward_hooks


def test_results_do_not_share_memory():
    model = small()
    one, other = quiet(model, rank=4), quiet(model, rank=4)
    one[0][0].weight.data.zero_()
    one[0][1].weight.data.zero_()
    again = quiet(model, rank=4)
    assert torch.equal(other[0][0].weight, again[0][0].weight) and again[0][0].weight.any()


def test_changed_weights_are_factorized_anew():
    model = small()
    quiet(model, rank=4)
    model[0].weight.data.mul_(2)  # unseen by the tensor's version counter
    left, values, right = torch.linalg.svd(model[0].weight.detach(), full_matrices=False)
    assert torch.allclose(product(quiet(model, rank=4)[0]), (left[:, :4] * values[:4]) @ right[:4], atol=1e-5)


def test_a_layer_in_two_places_is_replaced_in_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
            self.block = nn.Sequential(self.one, nn.ReLU())

        def forward(self, images):
            return self.last(self.block(self.one(images)))

    model, images = Twice(), torch.rand(5, 8)
    found = quiet(model, rank=2)
    assert found.block[0] is found.one and isinstance(found.one, nn.Sequential)
    assert found(images).shape == (5, 3)
    assert isinstance(quiet(model, rank={"block.0": 2}).one, nn.Sequential)
    assert isinstance(quiet(model, images, rank={"block.0": 2}, method="activation").one, nn.Sequential)
    with pytest.raises(ValueError, match="'one' and 'block.0', which are one layer"):
        factorize(model, rank={"one": 2, "block.0": 3})
    assert cl.layers.count_parameters(found) == (2 * 16 + 8) + (2 * 11 + 3)


class Odd(nn.Module):
    """One layer that can be factorized, among those that cannot."""

    def __init__(self):
        super().__init__()
        self.embedding, self.memory = nn.Embedding(11, 8), nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.grouped, self.transposed = nn.Conv1d(8, 8, 1, groups=2), nn.ConvTranspose1d(8, 8, 1)
        self.free = nn.Linear(8, 8)
        self.output = nn.Linear(8, 11)
        self.output.weight = self.embedding.weight
        self.own = Scaled(8, 8)

    def forward(self, tokens):
        states, _ = self.memory(self.embedding(tokens))
        states, _ = self.attention(states, states, states)
        states = self.transposed(self.grouped(states.transpose(1, 2))).transpose(1, 2)
        return self.output(self.own(self.free(states)))[:, -1]


class Scaled(nn.Linear):
    def forward(self, images):
        return 0.5 * super().forward(images)


LEFT_ALONE = {
    "attention.out_proj": "MultiheadAttention reads its weight",
    "grouped": "a grouped convolution",
    "transposed": "a transposed convolution",
    "output": "its weight is shared",
    "own": "Scaled has a forward of its own",
}


def test_what_cannot_be_factorized_is_left_alone_and_named():
    torch.manual_seed(0)
    model, tokens = Odd().eval(), torch.randint(0, 11, (4, 6))
    with pytest.warns(UserWarning, match="low_rank leaves alone") as caught:
        found = factorize(model, rank=3)
    said = " ".join(str(one.message) for one in caught)
    assert len(caught) == 1
    for name, reason in (LEFT_ALONE | {"memory": "of type LSTM", "attention": "of type MultiheadAttention"}).items():
        assert f"{name} ({reason}" in said, name
    assert isinstance(found.free, nn.Sequential) and found.output.weight is found.embedding.weight
    assert found(tokens).shape == (4, 11) and torch.equal(
        quiet(model, tokens, rank=3, method="activation")(tokens) * 0, found(tokens) * 0
    )
    functional.cross_entropy(found(tokens), torch.arange(4)).backward()
    assert all(one.weight.grad.any() for one in (found.embedding, *found.free))


@pytest.mark.parametrize("name, reason", LEFT_ALONE.items(), ids=LEFT_ALONE.keys())
def test_a_dict_that_names_such_a_layer_is_refused(name, reason):
    with pytest.raises(ValueError, match=f"rank has '{name}', which cannot be factorized: {reason}"):
        factorize(Odd(), rank={name: 2})
    with pytest.raises(ValueError, match=f"model has no layer to factorize.*{name} is left alone.*{reason}"):
        factorize(Odd(), rank=2, layers=[name])


def test_a_model_that_reads_a_weight_itself_is_refused_where_images_show_it():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.called = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, images):
            return self.called(functional.linear(images, self.read.weight))

    model, images = Reads(), torch.rand(5, 8)
    with pytest.raises(ValueError, match="does not run with two layers in the place of one; .*layers=.*AttributeError"):
        factorize(model, images, rank=2)
    assert factorize(model, images, rank=2, layers=["called"])(images).shape == (5, 8)


def test_a_transformer_runs_factorized():
    """Also on the fast path of evaluation, which reads linear1 and linear2 itself."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(nn.Linear(8, 8), stack).eval()
    with pytest.warns(UserWarning, match="linear1"):
        found = factorize(model, rank=2)
    with torch.no_grad():
        assert found(torch.randn(2, 5, 8)).shape == (2, 5, 8)
    decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True).eval()
    assert quiet(decoder, rank=3)(torch.randn(2, 5, 8), torch.randn(2, 3, 8)).shape == (2, 5, 8)


def test_a_layer_that_images_do_not_reach_is_named():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, images):
            return self.used(images)

    with pytest.warns(UserWarning, match=r"spare \(the calibration images do not run it\)"):
        found = factorize(Branch(), torch.rand(4, 6), rank=2, method="activation")
    assert type(found.spare) is nn.Linear


PARAMETRIZED = {
    "masked": (lambda model: cl.zero_pruning.prune(model, 0.5), "Mask"),
    "weight norm": (lambda model: parametrizations.weight_norm(model[0]) and model, "_WeightNorm"),
    "spectral norm": (lambda model: parametrizations.spectral_norm(model[0]) and model, "_SpectralNorm"),
    "pruned by torch": (lambda model: torch_prune.l1_unstructured(model[0], "weight", 0.5) and model, "Mask"),
}


@pytest.mark.parametrize("make, kind", PARAMETRIZED.values(), ids=PARAMETRIZED.keys())
def test_weights_are_taken_as_they_act(make, kind):
    model = make(small().eval())
    weight = model[0].weight.detach().clone()
    with pytest.warns(UserWarning, match=rf"weights of 0.*free of {kind}"):
        found = factorize(model, rank={"0": 16})
    assert torch.allclose(product(found[0]), weight, atol=1e-5)
    assert found[0][0].weight.requires_grad and type(found[0][1].bias) is nn.Parameter
    assert type(found[2]) is type(model[2]) or kind == "Mask"


def test_a_masked_layer_that_is_left_alone_keeps_its_mask():
    found = quiet(cl.zero_pruning.prune(small(), 0.5), rank={"0": 4})
    assert cl.layers.get_mask(found[2]) is not None


def test_factorized_again():
    first = quiet(small(), rank=6)
    again = quiet(first, rank={"0.0": 2})
    assert type(again[0][0]) is nn.Sequential and again[0][0][0].out_features == 2
    assert again(torch.rand(2, 20)).shape == (2, 3)
    assert [type(one) for one in quiet(first, rank=6)[0]] == [nn.Linear, nn.Linear]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("method", low_rank.METHODS)
def test_other_precisions(dtype, method):
    model, images = small(), torch.rand(50, 20)
    found = quiet(copy.deepcopy(model).to(dtype), images.to(dtype), rank=6, method=method)
    assert {one.dtype for one in found.parameters()} == {dtype}
    wanted, tolerance = quiet(model, images, rank=6, method=method), 4 * torch.finfo(dtype).eps ** 0.75
    assert torch.allclose(product(found[0]).float(), product(wanted[0]), atol=max(tolerance, 1e-5))


def test_complex_weights_are_left_alone():
    with pytest.warns(UserWarning, match="complex"):
        found = factorize(nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64), nn.Linear(4, 4)), rank=1)
    assert type(found[0]) is nn.Linear


def test_a_layer_alone():
    layer = nn.Linear(9, 8).eval()
    found = factorize(layer, rank=2)
    assert type(found) is nn.Sequential and not found.training and type(layer) is nn.Linear
    assert type(factorize(layer, rank={"": 2})) is nn.Sequential


def test_a_large_layer_repeats_with_its_seed():
    model = nn.Sequential(nn.Linear(700, 600))
    one, same, other = (factorize(model, rank=5, seed=seed)[0][0].weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_fresh_is_the_same_shape_drawn_anew():
    model = convolutional()
    model[1].running_mean.fill_(3)
    one, same, other = (quiet(model, rank=3, fresh=True, seed=seed) for seed in (0, 0, 1))
    chosen = quiet(model, rank=3)
    assert [tuple(w.shape) for w in one.parameters()] == [tuple(w.shape) for w in chosen.parameters()]
    for name, value in one.named_parameters():
        assert torch.equal(value, dict(same.named_parameters())[name])
        if name not in ("1.weight", "1.bias"):
            assert not torch.equal(value, dict(other.named_parameters())[name])
            assert not torch.equal(value, dict(chosen.named_parameters())[name])
    assert not one[1].running_mean.any()


def test_fresh_keeps_masks():
    found = quiet(cl.zero_pruning.prune(small(), 0.5), rank={"0": 4}, fresh=True)
    mask = cl.layers.get_mask(found[2])
    assert not found[2].weight[~mask].any() and found[2].weight[mask].all()
    assert not torch.equal(found[2].weight, cl.zero_pruning.prune(small(), 0.5)[2].weight)


BAD = {
    "zero": ({"rank": 0}, "rank is 0; give a whole number 1 or more"),
    "negative": ({"rank": -3}, "rank is -3"),
    "fraction": ({"rank": 2.5}, "rank is 2.5"),
    "text": ({"rank": "4"}, "rank is '4'"),
    "bool": ({"rank": True}, "rank is True"),
    "above every layer's": ({"rank": 17}, r"rank is 17; the largest full rank of a layer is 16 \('0'\)"),
    "above the layer's": ({"rank": {"2": 13}}, r"rank\['2'\] is 13; the full rank of this layer is 12"),
    "zero in a dict": ({"rank": {"0": 0}}, r"rank\['0'\] is 0"),
    "unknown name": ({"rank": {"fc1": 4}}, "rank has 'fc1'; choose from 0, 2, 4"),
    "no layer": ({"rank": {"1": 4}}, "rank has '1'; choose from 0, 2, 4"),
    "empty dict": ({"rank": {}}, "rank is {}; name at least one layer"),
    "list": ({"rank": [4]}, r"rank is \[4\]"),
    "both": ({"rank": 4, "energy": 0.5}, "either rank .* or energy"),
    "neither": ({}, "either rank .* or energy.* neither"),
    "energy above 1": ({"energy": 1.2}, "energy is 1.2; give a fraction from 0 to 1"),
    "energy 0": ({"energy": 0}, "energy is 0; give a fraction above 0"),
    "energy in percent": ({"energy": 90}, r"energy is 90; .*0\.9, not 90"),
    "energy nan": ({"energy": math.nan}, "energy is nan"),
    "energy in a dict": ({"energy": {"0": 1.2}}, r"energy\['0'\] is 1.2"),
    "method": ({"rank": 4, "method": "SVD"}, "method is 'SVD'; choose one of 'svd', 'activation'"),
    "no images": ({"rank": 4, "method": "activation"}, "images is None; give calibration images"),
    "empty images": ({"rank": 4, "method": "activation", "images": torch.rand(0, 20)}, "images is empty"),
    "other images": ({"rank": 4, "method": "activation", "images": torch.rand(3, 19)}, r"images of shape \(3, 19\)"),
    "images in the rank's place": ({"rank": 4, "images": 16}, "images is int"),
    "layers": ({"rank": 4, "layers": ["fc1"]}, "layers has 'fc1'"),
    "layers and dict": ({"rank": {"0": 4}, "layers": ["0"]}, "layers is .* and rank is a dict"),
    "fresh": ({"rank": 4, "fresh": "yes"}, "fresh is 'yes'"),
    "seed": ({"rank": 4, "seed": -1}, "seed is -1"),
}


@pytest.mark.parametrize("options, said", BAD.values(), ids=BAD.keys())
def test_a_bad_setting_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        factorize(small(), **options)


BAD_MODELS = {
    "nothing to factorize": (lambda: nn.Sequential(nn.ReLU(), nn.Embedding(3, 2)), "no layer to factorize.*Embedding"),
    "without weights": (lambda: nn.ReLU(), "no layer to factorize, such as Linear or Conv2d$"),
    "not a model": (lambda: "lenet_5", "model is 'lenet_5'; give a torch.nn.Module"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(3, 3)), "lazy"),
    "meta": (lambda: nn.Sequential(nn.Linear(3, 2, device="meta")), "meta device"),
}


@pytest.mark.parametrize("make, said", BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_a_model_that_cannot_be_factorized_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        factorize(make(), rank={"0": 1} if "meta" in said else 1)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_weights_that_are_not_finite_are_refused_by_name(value):
    model = small()
    model[2].weight.data[0, 0] = value
    with pytest.raises(ValueError, match="layer '2' has weights that are not finite"):
        factorize(model, rank=2)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_layer_without_weights_and_one_of_one_weight():
    with pytest.warns(UserWarning, match=r"0 \(it has no weights\); 1 \(rank 1 would not make it smaller"):
        found = factorize(nn.Sequential(nn.Linear(0, 1), nn.Linear(1, 1)), rank=1)
    assert [type(one) for one in found] == [nn.Linear, nn.Linear]


def test_finetuning_trains_both_factors_and_keeps_them_two():
    model = quiet(small(), rank=4)
    tuned = cl.train.finetune(model, tiny_data().train, steps=5, seed=0, precision="fp32", bar=False)
    assert [tuple(w.shape) for w in tuned.parameters()] == [tuple(w.shape) for w in model.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(tuned.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    "make, shape", [(small, (4, 20)), (convolutional, (4, 3, 7, 9))], ids=["linear", "convolutional"]
)
def test_saved_and_loaded(make, shape):
    model, images = quiet(make().eval(), rank=2), torch.rand(shape)
    assert torch.equal(cl.storage.loads(cl.storage.dumps(model))(images), model(images))
    assert cl.measure.sizes(model).parameters == sum(one.numel() for one in model.parameters())


def test_vit_b_16():
    with torch.random.fork_rng(devices=[]):
        model = torchvision.models.vit_b_16(weights=None).eval()
    found = quiet(model, rank=4)
    assert found.conv_proj[0].stride == (16, 16) and isinstance(found.heads.head, nn.Sequential)
    left = {name for name, one in cl.layers.weight_layers(found).items() if min(one.weight.shape[:2]) > 4}
    assert left == {f"encoder.layers.encoder_layer_{number}.self_attention.out_proj" for number in range(12)}
    with torch.no_grad():
        assert found(torch.rand(1, 3, 224, 224)).shape == (1, 1000)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("method", low_rank.METHODS)
def test_on_cuda(method):
    images = torch.rand(30, 3, 7, 9)
    found, wanted = (
        quiet(convolutional().cuda(), images, rank=3, method=method),
        quiet(convolutional(), images, rank=3, method=method),
    )
    assert {one.device.type for one in found.parameters()} == {"cuda"}
    assert torch.allclose(product(found[0]).cpu(), product(wanted[0]), atol=1e-4)


class Digits:
    """As much of a data set as the pictures need."""

    train = cl.data.Split(torch.rand(600, 1, 28, 28), torch.zeros(600, dtype=torch.int64))


def pictures(model, **setting):
    compressed = quiet(model, Digits.train.images[:500], **setting)
    return {one.name: one for one in low_rank.anatomy(model, compressed, setting, Digits)}


def test_the_spectrum_is_cut_at_the_rank():
    model = cl.models.lenet_300_100(seed=0)
    drawn = pictures(model, rank=20)["spectrum"]
    values = torch.linalg.svdvals(model.fc1.weight.detach().double())
    assert drawn.kind == "spectrum" and drawn.cut == 20 and np.allclose(drawn.values, values, atol=1e-5)
    assert "fc1" in drawn.title and "217.0" in drawn.title and "217.0" in drawn.caption
    energy = pictures(model, energy=0.3)["spectrum"]
    squares = values.square()
    assert squares[: int(energy.cut)].sum() >= 0.3 * squares.sum() > squares[: int(energy.cut) - 1].sum()
    assert pictures(model, energy=0.99)["spectrum"].cut is None
    weighted = pictures(model, rank=20, method="activation")["spectrum"]
    assert not np.allclose(weighted.values, values, rtol=0.1)


def test_the_bars_are_ranks_as_shares_of_break_even():
    model = cl.models.lenet_300_100(seed=0)
    compressed, drawn = quiet(model, rank=20), pictures(model, rank=20)["layers"]
    assert drawn.labels == ("fc1", "fc2", "fc3") and drawn.cut == 1
    counts = [cl.layers.weight_layers(compressed, [f"{name}.0", f"{name}.1"]) for name in ("fc1", "fc2")]
    counts = [sum(one.weight.numel() for one in pair.values()) for pair in counts]
    shares = [counts[0] / model.fc1.weight.numel(), counts[1] / model.fc2.weight.numel(), 1]
    assert drawn.values == pytest.approx(shares)


@pytest.mark.parametrize("setting", [{"rank": 1}, {"rank": 100}, {"energy": 0.1}, {"energy": 0.99}], ids=str)
@pytest.mark.parametrize("name", cl.models.names())
def test_pictures_of_the_reference_networks(name, setting):
    drawn = pictures(cl.models.build(name, seed=0), **setting)
    assert [one.kind for one in drawn.values()] == ["spectrum", "bars", "images"]
    assert drawn["weights"].values.shape == ((25, 5, 5) if name == "lenet_5" else (25, 28, 28))
    assert all(np.isfinite(one.values).all() and one.title and one.caption for one in drawn.values())


def test_at_rank_one_all_neurons_are_one_pattern():
    images = pictures(cl.models.lenet_300_100(seed=0), rank=1)["weights"].values.reshape(25, -1)
    assert np.linalg.matrix_rank(images, tol=1e-5) == 1
    assert pictures(nn.Sequential(nn.Linear(783, 8)), rank={"0": 2})["weights"].kind == "matrix"


def test_the_technique_reads_controls_and_images():
    technique = cl.techniques.get("low_rank")
    assert [control.name for control in technique.controls] == ["rank", "energy", "method"]
    assert technique.calibration and technique.fair_controls == {"from scratch": {"fresh": True}}
    data = cl.data.from_tensors(torch.rand(300, 20), torch.arange(300) % 3, seed=0)
    runs = cl.sweep.run(
        "low_rank", small(), data, {"rank": [2, 4], "method": ["svd", "activation"]}, steps=2, journal=False, bar=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        sizes = {(run.setting["rank"], run.setting["method"]): run.parameters for run in runs}
    assert sizes[2, "svd"] == sizes[2, "activation"] < sizes[4, "svd"]
