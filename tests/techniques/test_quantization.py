"""Quantization: torch as the oracle, constants and extremes, masks, activations, models of many makes, training."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import compresslab as cl
from compresslab.numerics import ranges, rounding_noise
from compresslab.techniques import quantization
from compresslab.techniques.quantization import anatomy, quantize
from compresslab.weights.grids import Grid, Half, InputGrid
from compresslab.weights.layers import distinct_weights, get_mask, get_rounding, weight_layers
from tests.techniques.samples import NarrowResNet, narrow_mobilenet

pytestmark = pytest.mark.slow

FINITE = st.floats(-(2.0**60), 2.0**60, width=32)


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).eval()


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


def images(count=64, seed=0):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def tiny_data():
    inputs = images(120)
    return cl.data.from_tensors(inputs, inputs[:, :3].argmax(1), seed=0)


def linear(rows):
    """A model of one layer with these weights."""
    model = nn.Sequential(nn.Linear(len(rows[0]), len(rows)))
    model[0].weight.data = torch.tensor(rows, dtype=torch.float32)
    return model


def weights_of(model):
    return [weight.value for weight in distinct_weights(model)]


def levels(layer, per_channel=True):
    """How many values the weights of each channel, or of the layer, take at most."""
    rows = layer.weight.detach().reshape(len(layer.weight) if per_channel else 1, -1)
    return max(len(row.unique()) for row in rows)


BITS = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16]
FORMS = [(symmetric, per_channel) for symmetric in (True, False) for per_channel in (True, False)]


@pytest.mark.parametrize("symmetric, per_channel", FORMS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("make", [small, convolutional], ids=["linear", "convolutional"])
def test_weights_are_codes_times_scale(make, bits, symmetric, per_channel):
    quantized = quantize(make(), bits=bits, symmetric=symmetric, per_channel=per_channel)
    for layer in weight_layers(quantized).values():
        grid, weight = get_rounding(layer), layer.weight.detach()
        codes = grid.codes(layer.parametrizations.weight.original)
        assert torch.equal(weight, grid.values(codes))
        assert codes.min() >= grid.low and codes.max() <= grid.high and grid.high - grid.low == 2**bits - 1
        transposed = isinstance(layer, cl.layers.TRANSPOSED)
        assert grid.scale.numel() == (weight.shape[int(transposed)] if per_channel else 1)
        if symmetric and bits > 1:
            assert (grid.zero_point == 0).all()
        elif bits > 1:
            assert torch.equal(grid.zero_point, grid.zero_point.round())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clipping", quantization.CLIPPINGS)
def test_the_same_weights_as_torch_given_scale_and_zero_point(bits, symmetric, clipping):
    model = small()
    for per_channel in (True, False):
        quantized = quantize(model, bits=bits, symmetric=symmetric, per_channel=per_channel, clipping=clipping)
        for name, layer in weight_layers(quantized).items():
            grid, weight = get_rounding(layer), weight_layers(model)[name].weight.detach()
            ends = grid.low, grid.high
            if per_channel:
                scale, point = grid.scale.flatten(), grid.zero_point.flatten().int()
                expected = torch.fake_quantize_per_channel_affine(weight, scale, point, 0, *ends)
            else:
                expected = torch.fake_quantize_per_tensor_affine(weight, grid.scale, grid.zero_point.int(), *ends)
            assert torch.equal(layer.weight.detach(), expected)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(FINITE, min_size=3, max_size=3), min_size=1, max_size=3),
    bits=st.integers(1, 8),
    symmetric=st.booleans(),
    per_channel=st.booleans(),
    clipping=st.sampled_from(quantization.CLIPPINGS),
)
def test_whatever_the_weights_are(rows, bits, symmetric, per_channel, clipping):
    model = linear(rows)
    quantized = quantize(model, bits=bits, symmetric=symmetric, per_channel=per_channel, clipping=clipping)
    weight, before = quantized[0].weight.detach(), model[0].weight.detach()
    assert weight.isfinite().all() and levels(quantized[0], per_channel) <= 2**bits
    if clipping == "none" and bits > 1:
        assert ((weight - before).abs() <= get_rounding(quantized[0]).scale * 0.5001).all()


CONSTANTS = [0.0, -0.0, 1.0, -1.0, 0.3, -1e-3, 1e-45, -1e-40, 3e-39, 1e30, -1e37]


@pytest.mark.parametrize("symmetric, per_channel", FORMS)
@pytest.mark.parametrize("bits", [1, 2, 8, 16])
@pytest.mark.parametrize("value", CONSTANTS, ids=str)
def test_equal_weights_are_kept_exactly(value, bits, symmetric, per_channel):
    model = linear([[value] * 3] * 2)
    for clipping in quantization.CLIPPINGS:
        quantized = quantize(model, bits=bits, symmetric=symmetric, per_channel=per_channel, clipping=clipping)
        assert torch.equal(quantized[0].weight, model[0].weight)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_channel_of_zeros_and_one_of_equal_weights_among_others(bits, symmetric):
    model = linear([[0.0, 0.0, 0.0], [0.7, 0.7, 0.7], [-0.1, 0.5, 0.3]])
    weight = quantize(model, bits=bits, symmetric=symmetric)[0].weight
    assert torch.equal(weight[:2], model[0].weight[:2])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_ranges_that_miss_zero(bits):
    """An affine range with a zero point of its own, without 0 in it, would put the point outside of the codes."""
    for rows in ([[1.0, 1.5, 2.0]], [[-2.0, -1.5, -1.0]], [[100.0, 100.5, 101.0]]):
        quantized = quantize(linear(rows), bits=bits, symmetric=False, clipping="none")
        grid = get_rounding(quantized[0])
        assert ((quantized[0].weight - torch.tensor(rows)).abs() <= grid.scale / 2 * 1.0001).all()
        assert grid.low <= grid.zero_point.item() <= grid.high
        largest = max(map(abs, rows[0]))
        assert quantized[0].weight.detach().abs().max().item() == pytest.approx(largest, rel=1e-6)


def test_one_bit_is_plus_and_minus_the_mean_size():
    model = linear([[0.1, -0.2, 0.6], [1.0, -1.0, -4.0]])
    assert torch.allclose(quantize(model, bits=1)[0].weight, torch.tensor([[0.3, -0.3, 0.3], [2.0, -2.0, -2.0]]))
    whole = quantize(model, bits=1, per_channel=False)[0].weight
    assert torch.allclose(whole.abs(), torch.full((2, 3), 6.9 / 6))


def test_32_bits_leave_the_outputs_equal_and_take_a_grid_away():
    model, inputs = small(), images()
    assert torch.equal(quantize(model, bits=32)(inputs), model(inputs))
    assert torch.equal(quantize(model, inputs, bits=32)(inputs), model(inputs))
    coarse = quantize(model, bits=2)
    bare = quantize(coarse, bits=32)
    assert type(bare[0]) is nn.Linear and torch.equal(bare(inputs), coarse(inputs))


def test_16_bits_change_next_to_nothing_and_8_little():
    model, inputs = small(), images()
    assert torch.allclose(quantize(model, bits=16)(inputs), model(inputs), atol=1e-4)
    assert (quantize(model)(inputs) - model(inputs)).abs().max() < 0.05
    assert get_rounding(quantize(model)[0]).bits == 8


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_16_bit_floats_are_torchs_own(dtype):
    model = small()
    quantized = quantize(model, dtype=dtype)
    for one, other in zip(weights_of(quantized), weights_of(model), strict=True):
        assert torch.equal(one, other.to(quantization.DTYPES[dtype]).float())
    assert isinstance(get_rounding(quantized[0]), Half)
    assert torch.equal(quantized[0].bias, model[0].bias)


def noise(model, **setting):
    """Squared error of the weights."""
    pairs = zip(weights_of(model), weights_of(quantize(model, **setting)), strict=True)
    return sum(float((one - other).square().sum()) for one, other in pairs)


@pytest.mark.parametrize("symmetric, per_channel", FORMS)
def test_more_bits_mean_less_noise_and_the_search_beats_the_largest(symmetric, per_channel):
    form = {"symmetric": symmetric, "per_channel": per_channel}
    model = nn.Sequential(nn.Linear(60, 30))
    errors = [noise(model, bits=bits, clipping="mse", **form) for bits in range(1, 9)]
    assert errors == sorted(errors, reverse=True)
    for bits in range(2, 9):
        assert noise(model, bits=bits, clipping="mse", **form) <= noise(model, bits=bits, clipping="none", **form)


def test_an_outlier_is_rescued_by_channel_scales_or_by_clipping():
    model = nn.Sequential(nn.Linear(100, 50))
    model[0].weight.data[3, 4] = 3.0  # the others are below 0.1
    before = model[0].weight.detach()

    def error(**setting):
        after = quantize(model, bits=4, **setting)[0].weight.detach()
        return float((after - before)[:3].square().mean())  # of channels without the outlier

    naive = error(per_channel=False, clipping="none")
    assert error(per_channel=True, clipping="none") < naive / 100
    assert error(per_channel=False, clipping="percentile") < naive / 50
    assert error(per_channel=False, clipping="mse") < naive / 2


def test_the_model_is_left_as_it_was():
    model = small().train()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    handle = model[0].register_forward_hook(lambda *_: None)
    model(images()).sum().backward()
    state, grads = copy.deepcopy(model.state_dict()), [weight.grad for weight in model.parameters()]
    random, identities = torch.get_rng_state(), [id(weight) for weight in model.parameters()]
    modes = [module.training for module in model.modules()]
    for setting in ({"bits": 3}, {"dtype": "bf16"}, {"bits": 4, "images": images(), "learned": True}):
        quantized = quantize(model, **setting)
        layers = list(weight_layers(quantized).values())
        assert [layer.training for layer in layers] == [True, False, True] and quantized.training
        assert layers[0].parametrizations.weight.original.requires_grad is False
    assert torch.equal(torch.get_rng_state(), random)
    assert [id(weight) for weight in model.parameters()] == identities
    assert [module.training for module in model.modules()] == modes
    assert all(one is other for one, other in zip((w.grad for w in model.parameters()), grads, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert handle.id in model[0]._forward_hooks and type(model[0]) is nn.Linear


def test_only_the_named_layers():
    quantized = quantize(small(), images(), bits=2, layers=["2"])
    assert [get_rounding(layer) is not None for layer in weight_layers(quantized).values()] == [False, True, False]
    assert isinstance(quantized[2].input, InputGrid) and isinstance(quantized[0], nn.Linear)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_masked_model_keeps_its_zeros(bits, symmetric):
    model = cl.zero_pruning.prune(small(), 0.6)
    quantized = quantize(model, bits=bits, symmetric=symmetric)
    for one, other in zip(weight_layers(quantized).values(), weight_layers(model).values(), strict=True):
        assert torch.equal(get_mask(one), get_mask(other)) and (one.weight[~get_mask(one)] == 0).all()
    tuned = cl.train.finetune(quantized, tiny_data().train, steps=3, precision="fp32", bar=False)
    assert all((layer.weight[~get_mask(layer)] == 0).all() for layer in weight_layers(tuned).values())
    again = cl.zero_pruning.prune(quantized, 0.7)
    assert all(isinstance(get_rounding(layer), Grid) for layer in weight_layers(again).values())
    assert sum(int((weight == 0).sum()) for weight in weights_of(again)) == round(0.7 * 138)


def test_zeros_do_not_count_for_the_grid_of_a_masked_layer():
    model = linear([[0.5, -0.5, 0.5, -0.5]])
    cl.layers.set_mask(model[0], torch.tensor([[True, True, False, False]]))
    assert quantize(model, bits=1)[0].weight.tolist() == [[0.5, -0.5, 0.0, 0.0]]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantizing_again_replaces_the_grid(bits, symmetric):
    model = small()
    once = quantize(model, bits=bits, symmetric=symmetric)
    again = quantize(once, bits=bits, symmetric=symmetric)
    for one, other in zip(weights_of(once), weights_of(again), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7 if symmetric else 2.0**-bits)
    coarse = quantize(quantize(model, bits=8), bits=1)
    assert len(coarse[0].parametrizations.weight) == 1 and levels(coarse[0]) <= 2
    fine = quantize(quantize(model, bits=2), bits=8)
    assert levels(fine[0]) <= 4  # what was lost does not come back
    halved = quantize(once, dtype="bf16")
    assert isinstance(get_rounding(halved[0]), Half) and len(halved[0].parametrizations.weight) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_precision(dtype):
    model = small().to(dtype)
    for setting in ({"bits": 4}, {"bits": 4, "symmetric": False}, {"dtype": "bf16"}, {"bits": 8, "images": images()}):
        quantized = quantize(model, **setting)
        out, expected = quantized(images().to(dtype)), model(images().to(dtype))
        assert out.dtype == dtype and (out - expected).abs().max() < 0.5
        assert all(weight.dtype == dtype for weight in weights_of(quantized))


class TestActivations:
    def test_images_quantize_the_activations_too(self):
        model, inputs = small(), images()
        quantized = quantize(model, inputs, bits=8)
        assert [name for name, _ in quantized.named_children()] == ["0", "1", "2", "3", "4"]
        assert [list(quantized[place]._modules) for place in (0, 2, 4)] == [["input", "layer"]] * 3
        assert all(grid.bits == 8 for grid in quantized.modules() if isinstance(grid, InputGrid))
        assert (quantized(inputs) - model(inputs)).abs().max() < 0.05
        assert len(quantized[0].input(inputs).unique()) <= 256

    def test_bits_of_activations_are_chosen_apart(self):
        quantized = quantize(small(), images(), bits=8, activations=2)
        assert quantized[0].input.bits == 2 and get_rounding(quantized[0].layer).bits == 8
        assert not any(isinstance(one, InputGrid) for one in quantize(small(), images(), activations="fp32").modules())
        assert not any(isinstance(one, InputGrid) for one in quantize(small(), images(), dtype="fp16").modules())
        assert quantize(small(), images(), dtype="fp16", activations=8)[0].input.bits == 8

    def test_min_max_by_hand(self):
        model, inputs = small(), images()
        seen = [inputs, model[1](model[0](inputs))]
        quantized = quantize(model, inputs, bits=32, activations=8, calibration="minmax")
        for place, one in zip((0, 2), seen, strict=True):
            low, high = min(0, one.min().item()), max(0, one.max().item())
            gate = quantized[place].input
            assert gate.scale.item() == pytest.approx((high - low) / 255, rel=1e-6)
            assert gate.zero_point.item() == round(-low / (high - low) * 255)

    @pytest.mark.parametrize("calibration", quantization.CALIBRATIONS)
    @pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
    def test_values_of_torch(self, calibration, bits):
        quantized = quantize(small(), images(), activations=bits, calibration=calibration)
        grid, numbers = quantized[2].input, torch.randn(50, 6)
        if bits > 1:
            expected = torch.fake_quantize_per_tensor_affine(numbers, grid.scale, grid.zero_point.int(), 0, 2**bits - 1)
            assert torch.equal(grid(numbers), expected)
        assert len(grid(numbers).unique()) <= 2**bits

    def test_an_outlying_activation_is_cut_off(self):
        model, inputs = small(), images(400)
        inputs[3, 3] = 60.0
        scales = {
            calibration: quantize(model, inputs, bits=4, calibration=calibration)[0].input.scale.item()
            for calibration in quantization.CALIBRATIONS
        }
        assert scales["percentile"] < scales["minmax"] / 5 and scales["mse"] < scales["minmax"] / 1.2

    def test_counting_is_as_good_as_keeping_every_activation(self):
        """Ranges from the histogram of 8 significant bits beside those from the numbers themselves."""
        inputs = images(500)
        for calibration in ("percentile", "mse"):
            grid = quantize(small(), inputs, bits=4, calibration=calibration)[0].input
            scale, point = ranges.fit(inputs.reshape(1, -1), 4, False, calibration)
            assert grid.scale.item() == pytest.approx(scale.item(), rel=0.02)
            assert abs(grid.zero_point.item() - point.item()) <= 1

    def test_batches_of_any_size_see_the_same(self, monkeypatch):
        inputs = images(90)
        expected = quantize(small(), inputs, bits=4)
        monkeypatch.setattr(cl.calibration, "choose_batch_size", lambda images, most: 7)
        found = quantize(small(), inputs, bits=4)
        assert all(torch.allclose(one, other) for one, other in zip(expected.buffers(), found.buffers(), strict=True))

    def test_calibration_size(self):
        inputs = images(60)
        inputs[10:] *= 100
        few = quantize(small(), inputs, bits=8, calibration="minmax", calibration_size=10)[0].input.scale
        assert few * 20 < quantize(small(), inputs, bits=8, calibration="minmax")[0].input.scale
        assert torch.equal(
            few, quantize(small(), inputs[:10], calibration="minmax", calibration_size=99)[0].input.scale
        )

    def test_inputs_that_are_always_the_same_are_kept(self):
        inputs = torch.full((5, 8), 0.7)
        for bits in (1, 2, 8):
            grid = quantize(small(), inputs, activations=bits)[0].input
            assert torch.equal(grid(inputs), inputs) and (grid(torch.zeros(1)) == 0).all() or bits == 1

    def test_quantizing_again_replaces_them_and_fp32_takes_them_away(self):
        model, inputs = small(), images()
        once = quantize(model, inputs, bits=8)
        again = quantize(once, inputs, bits=4)
        assert list(again[0]._modules) == ["input", "layer"] and again[0].input.bits == 4 and once[0].input.bits == 8
        assert type(again[0].layer).__name__ == "ParametrizedLinear"
        fresh = quantize(quantize(model, bits=8), inputs, bits=4)
        assert torch.equal(again[0].input.scale, fresh[0].input.scale)
        weights_only = quantize(once, bits=4)
        assert weights_only[0].input.bits == 8 and get_rounding(weights_only[0].layer).bits == 4
        bare = quantize(once, bits=8, activations="fp32")
        assert not any(isinstance(one, InputGrid) for one in bare.modules()) and bare[0].in_features == 8
        assert quantize(once, inputs, bits=4, layers=["2.layer"])[2].input.bits == 4

    def test_a_model_that_is_a_layer_itself(self):
        model = nn.Linear(8, 3).eval()
        quantized = quantize(model, images(), bits=8)
        assert list(quantized._modules) == ["input", "layer"] and quantized.training is False
        assert (quantized(images()) - model(images())).abs().max() < 0.1
        assert isinstance(quantize(quantized, activations="fp32"), nn.Linear)

    def test_a_layer_used_twice_is_given_one_grid(self):
        shared = nn.Linear(8, 8)
        model = nn.Sequential(shared, nn.ReLU(), shared)
        quantized = quantize(model, images(), bits=8)
        assert quantized[0] is quantized[2]
        assert (quantized(images()) - model(images())).abs().max() < 0.1

    def test_learned_steps_are_parameters(self):
        quantized = quantize(small(), images(), bits=4, learned=True)
        growths = [name for name, _ in quantized.named_parameters() if name.endswith("growth")]
        assert len(growths) == 6
        tuned = cl.train.finetune(quantized, tiny_data().train, steps=3, precision="fp32", bar=False)
        moved = dict(tuned.named_parameters())
        assert all(moved[name].abs().max() > 0 for name in growths)
        assert cl.layers.count_parameters(quantized) == cl.layers.count_parameters(small())


class Reader(nn.Module):
    """Calls one layer, and reads another's weight."""

    def __init__(self):
        super().__init__()
        self.called, self.read, self.both = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, inputs):
        return nn.functional.linear(self.both(self.called(inputs)), self.read.weight + self.both.weight)


def test_layers_that_are_read_instead_of_called_keep_their_inputs():
    with pytest.warns(
        UserWarning, match="quantization leaves alone read .*not reach.*; both .*read elsewhere"
    ) as caught:
        quantized = quantize(Reader(), images(), bits=8)
    assert caught[0].filename == __file__
    assert isinstance(quantized.called, nn.Sequential) and isinstance(quantized.both, nn.Linear)
    assert all(get_rounding(layer) is not None for layer in weight_layers(quantized).values())
    assert quantized(images()).isfinite().all()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(30, 8), nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, tokens):
        return self.head(self.lstm(self.embedding(tokens.long()))[0][:, -1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.mix, self.output = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11)
        self.output.weight = self.embedding.weight

    def forward(self, tokens):
        return self.output(self.mix(self.embedding(tokens.long())).mean(1))


def test_what_is_left_alone_is_said():
    tokens = torch.randint(0, 30, (6, 5))
    with pytest.warns(UserWarning, match=r"alone embedding \(weights of Embedding\)$"):
        quantized = quantize(Recurrent(), tokens, bits=8)
    assert isinstance(quantized.head.input, InputGrid) and quantized(tokens).shape == (6, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(Recurrent(), bits=8, layers=["head"])
        quantize(Recurrent(), bits=32)


def test_tied_weights_stay_tied_on_one_grid():
    model, tokens = Tied(), torch.randint(0, 11, (6, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the embedding is quantized with the layer it shares its weight with
        quantized = quantize(model, bits=3)
    assert get_rounding(quantized.embedding) is get_rounding(quantized.output) is not None
    tuned = cl.train.finetune(quantized, (tokens.float(), torch.zeros(6).long()), steps=2, precision="fp32", bar=False)
    assert torch.equal(tuned.embedding.weight, tuned.output.weight) and levels(tuned.output) <= 8
    assert len(distinct_weights(tuned)) == 2


def foreign():
    image = torch.randn(2, 3, 32, 32)
    return {
        "resnet": lambda: (NarrowResNet(), image),
        "mobilenet_v3": lambda: (narrow_mobilenet(), image),
        "lstm": lambda: (Recurrent(), torch.randint(0, 30, (4, 6)).float()),
        "tied": lambda: (Tied(), torch.randint(0, 11, (4, 6)).float()),
        "transformer": lambda: (
            nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Flatten(), nn.Linear(40, 3)),
            torch.randn(4, 5, 8),
        ),
    }


@pytest.mark.filterwarnings("ignore:quantization leaves alone")
@pytest.mark.parametrize("name", ["resnet", "mobilenet_v3", "lstm", "tied", "transformer"])
def test_models_of_many_makes(name):
    torch.manual_seed(0)
    model, inputs = foreign()[name]()
    model.eval()
    expected = model(inputs)
    quantized = quantize(model, inputs, bits=8, calibration="minmax")
    assert (quantized(inputs) - expected).norm() < 0.2 * expected.norm()
    tuned = cl.train.finetune(
        quantized, (inputs, torch.zeros(len(inputs)).long()), steps=1, precision="fp32", bar=False
    )
    assert all(get_rounding(layer) is not None for layer in weight_layers(tuned).values())
    if name not in ("lstm", "tied"):  # token numbers become whole by a call that no file names
        again = cl.storage.loads(cl.storage.dumps(tuned))
        assert torch.equal(again.eval()(inputs), tuned.eval()(inputs))
        assert all(isinstance(get_rounding(layer), Grid) for layer in weight_layers(again).values())


def test_a_vision_transformer_by_its_block():
    """The inputs of attention's output projection stay as they are and are named; the rest of a block is quantized."""
    block = pytest.importorskip("torchvision.models.vision_transformer").EncoderBlock(2, 16, 32, 0.0, 0.0, nn.LayerNorm)
    model, inputs = nn.Sequential(block, nn.Flatten(), nn.Linear(80, 3)).eval(), torch.randn(4, 5, 16)
    with pytest.warns(UserWarning, match=r"out_proj \(input that"):
        quantized = quantize(model, inputs, bits=8)
    assert (quantized(inputs) - model(inputs)).norm() < 0.1 * model(inputs).norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_on_cuda():
    model = small()
    for setting in ({"bits": 4}, {"bits": 4, "symmetric": False}, {"bits": 4, "images": images()}):
        quantized, expected = quantize(small().cuda(), **setting), quantize(model, **setting)
        for one, other in zip(quantized.buffers(), expected.buffers(), strict=True):
            assert one.is_cuda and torch.allclose(one.cpu(), other, rtol=1e-4)


def test_frozen_layers_stay_frozen_and_biases_as_they_are():
    model = small()
    model[0].requires_grad_(False)
    quantized = quantize(model, bits=2)
    frozen = [name for name, one in quantized.named_parameters() if not one.requires_grad]
    learned = quantize(model, images(), bits=2, learned=True)
    growths = [(name, one.requires_grad) for name, one in learned.named_parameters() if name.endswith("growth")]
    assert [trained for name, trained in sorted(growths)] == [False] * 2 + [True] * 4
    assert len(frozen) == 2 and all(torch.equal(one.bias, other.bias) for one, other in ((quantized[0], model[0]),))


@pytest.mark.parametrize(
    "setting", [{"bits": 2}, {"bits": 4, "learned": True}, {"dtype": "bf16"}, {"bits": 1}], ids=str
)
def test_training_keeps_the_weights_on_their_grid(setting):
    quantized = quantize(small(), **setting)
    tuned = cl.train.finetune(quantized, tiny_data().train, steps=20, lr=0.01, precision="fp32", bar=False)
    for one, other in zip(weight_layers(tuned).values(), weight_layers(quantized).values(), strict=True):
        if "dtype" in setting:
            assert torch.equal(one.weight, one.weight.to(torch.bfloat16).float())
        else:
            grid = get_rounding(one)
            assert (
                torch.allclose(one.weight, grid.values(grid.codes(one.weight)), rtol=1e-6)
                and levels(one) <= 2**grid.bits
            )
        assert not torch.equal(one.weight, other.weight)


def test_training_through_a_coarse_grid_learns():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 8, generator=generator)
    labels = (inputs @ torch.randn(8, 3, generator=generator)).argmax(1)
    torch.manual_seed(0)
    rounded = quantize(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), bits=2)
    tuned = cl.train.finetune(rounded, (inputs, labels), steps=60, lr=0.02, precision="fp32", bar=False)
    before, after = (cl.measure.accuracy(one, (inputs, labels)) for one in (rounded, tuned))
    assert after > 0.75 > 0.6 > before


SAVED = {
    "4 bits": {"bits": 4},
    "1 bit, a layer": {"bits": 1, "per_channel": False},
    "affine": {"bits": 3, "symmetric": False},
    "bf16": {"dtype": "bf16"},
    "activations": {"bits": 4, "activations": 8},
    "learned": {"bits": 2, "activations": 4, "learned": True},
}


@pytest.mark.parametrize("setting", SAVED.values(), ids=SAVED.keys())
def test_saved_and_loaded_it_predicts_and_trains_alike(setting):
    setting = setting | ({"images": images()} if "activations" in setting else {})
    quantized = quantize(cl.zero_pruning.prune(small(), 0.3), **setting)
    again = cl.storage.loads(cl.storage.dumps(quantized))
    assert torch.equal(again(images()), quantized(images()))
    tuned = cl.train.finetune(again, tiny_data().train, steps=3, precision="fp32", bar=False)
    kinds = [type(get_rounding(layer)) for layer in weight_layers(tuned).values()]
    assert kinds == [type(get_rounding(layer)) for layer in weight_layers(quantized).values()]


def test_fewer_bits_make_smaller_files():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 150))
    sizes = [cl.storage.file_bytes(quantize(model, bits=bits)) for bits in (1, 2, 3, 4, 6, 8)]
    assert sizes == sorted(sizes)
    assert all(
        size < 200 * 150 * bits / 8 + 150 * 4 + 1500 for size, bits in zip(sizes, (1, 2, 3, 4, 6, 8), strict=True)
    )
    assert cl.storage.file_bytes(quantize(model, dtype="bf16")) < 200 * 150 * 2 + 2500


BAD = {
    "no bits": ({"bits": 0}, "bits is 0; give a whole number from 1 to 16, or 32"),
    "many bits": ({"bits": 33}, "bits is 33"),
    "between": ({"bits": 17}, "bits is 17"),
    "part of a bit": ({"bits": 4.0}, "bits is 4.0"),
    "bool": ({"bits": True}, "bits is True"),
    "text": ({"bits": "4"}, "bits is '4'"),
    "both": ({"bits": 4, "dtype": "fp16"}, "bits is 4 and dtype is 'fp16'; give one"),
    "dtype": ({"dtype": "fp8"}, "dtype is 'fp8'; choose one of 'fp16', 'bf16'"),
    "symmetric": ({"symmetric": "yes"}, "symmetric is 'yes'; give True or False"),
    "per_channel": ({"per_channel": 1}, "per_channel is 1"),
    "learned": ({"learned": None}, "learned is None"),
    "clipping": ({"clipping": "max"}, "clipping is 'max'; choose one of 'auto', 'none', 'percentile', 'mse'"),
    "percentile": ({"percentile": 99.9}, r"percentile is 99.9; .*0\.999, not 99.9"),
    "no percentile": ({"percentile": 0}, "percentile is 0; give a fraction above 0"),
    "calibration": ({"calibration": "max"}, "calibration is 'max'; choose one of 'minmax'"),
    "no images": ({"activations": 8}, "activations is 8 and images is None.*images=data.train.images"),
    "activations": ({"activations": 0, "images": images()}, "activations is 0; give a whole number from 1 to 16"),
    "activations as text": ({"activations": "int8"}, "activations is 'int8'.*'fp32'"),
    "shape of images": ({"images": torch.zeros(4, 5)}, r"does not take images of shape \(4, 5\)"),
    "flat images": ({"images": torch.zeros(8)}, r"images is \(8,\)"),
    "empty": ({"images": torch.zeros(0, 8)}, "images is empty"),
    "images as a list": ({"images": [[0.0] * 8]}, "images is list"),
    "nan images": ({"images": torch.full((2, 8), math.nan)}, "not finite"),
    "calibration size": (
        {"images": images(), "calibration_size": 0},
        "calibration_size is 0; give a whole number 1 or more",
    ),
    "layers": ({"layers": ["fc1"]}, "layers has 'fc1'; choose from 0, 2, 4"),
    "no layers": ({"layers": []}, "layers is empty"),
}


@pytest.mark.parametrize("options, said", BAD.values(), ids=BAD.keys())
def test_a_bad_setting_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        quantize(small(), **options)


BAD_MODELS = {
    "nothing to quantize": (lambda: nn.Sequential(nn.ReLU(), nn.Embedding(3, 2)), "those are Linear.*Embedding"),
    "not a model": (lambda: "lenet_5", "model is 'lenet_5'; give a torch.nn.Module"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), "lazy"),
    "meta": (lambda: nn.Sequential(nn.Linear(3, 2, device="meta")), "meta device"),
    "complex": (lambda: nn.Sequential(nn.Linear(3, 2, dtype=torch.complex64)), "weights of torch.complex64"),
    "nan": (lambda: linear([[math.nan, 1.0]]), "layer '0' has weights that are not finite"),
    "infinite": (lambda: linear([[math.inf, 1.0]]), "layer '0' has weights that are not finite"),
}


@pytest.mark.parametrize(
    "setting", [{"bits": 1}, {"bits": 4}, {"bits": 4, "symmetric": False}, {"dtype": "fp16"}], ids=str
)
@pytest.mark.parametrize("make, said", BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_a_model_that_cannot_be_quantized_is_refused(make, said, setting):
    with pytest.raises(ValueError, match=said):
        quantize(make(), **setting)


def test_weights_too_large_for_a_format():
    with pytest.raises(ValueError, match="layer '0' has a weight of size 70000; .*float16 ends at 65504, use 'bf16'"):
        quantize(linear([[70000.0, 1.0]]), dtype="fp16")
    for bits in (1, 2, 8):
        for clipping in quantization.CLIPPINGS:
            try:
                weight = quantize(linear([[3.4e38, -3.4e38, 1e38]]), bits=bits, clipping=clipping)[0].weight
            except ValueError as error:
                assert "too large for a grid" in str(error)
            else:
                assert weight.isfinite().all()


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_layer_without_weights():
    assert quantize(nn.Linear(0, 3), bits=4)(torch.ones(2, 0)).shape == (2, 3)


class TestDeclaration:
    technique = quantization.TECHNIQUE

    def test_pictures(self):
        model = cl.models.lenet_300_100(seed=0)
        for setting in ({"bits": 2}, {"bits": 4, "symmetric": False, "per_channel": False}, {"dtype": "fp16"}):
            weights, values, bars = anatomy(model, quantize(model, **setting), setting)
            assert (weights.kind, values.kind, bars.kind) == ("histogram", "images", "bars")
            assert len(weights.values) == 784 * 300 and values.values.shape == (25, 28, 28)
            assert bars.labels == ("fc1", "fc2", "fc3") and (bars.values > 0).all()
            assert all(picture.title and picture.caption for picture in (weights, values, bars))
            assert (weights.cut is None) == ("dtype" in setting)

    def test_the_cut_is_the_largest_value(self):
        model = linear([[-4.0, 3.0, 1.0]])
        setting = {"bits": 3, "clipping": "none"}
        assert anatomy(model, quantize(model, **setting), setting)[0].cut == 4.0

    def test_noise_in_decibels(self):
        model = linear([[4.0, 3.0, -4.0, 0.4]])
        setting = {"bits": 3, "clipping": "none"}
        (ratio,) = anatomy(model, quantize(model, **setting), setting)[2].values
        assert ratio == pytest.approx(10 * math.log10((16 + 9 + 16 + 0.16) / (1 / 9 + 0.16)), abs=3)
        (ratio,) = anatomy(model, quantize(model, bits=32), {"bits": 32})[2].values
        assert ratio == rounding_noise.CLEAR

    @pytest.mark.parametrize("loud", ["output", "input"])
    @pytest.mark.parametrize("side", [8, 28], ids=["other images than the data's", "the data's images"])
    def test_the_lowest_bar_is_the_layer_that_changes_the_answers_most(self, loud, side):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(side**2, 16), nn.Linear(16, 16), nn.Linear(16, 16))
        with torch.no_grad():
            before, after = (
                (model[2].weight[0], model[3].weight[:, 0])
                if loud == "output"
                else (model[2].weight[:, 0], model[1].weight[0])
            )
            before *= 1000
            after /= 1000
        data = cl.data.from_tensors(torch.rand(60, 1, 28, 28), torch.arange(60) % 10)
        setting = {"bits": 8, "per_channel": False}
        inputs = data.train.images if side == 28 else torch.rand(50, 1, 8, 8)
        errors = [
            float((quantize(model, layers=[name], **setting)(inputs) - model(inputs)).square().mean())
            for name in ("1", "2", "3")
        ]
        bars = cl.techniques.pictures(self.technique, model, quantize(model, **setting), setting, data)[2]
        assert bars.values.argmin() == np.argmax(errors) == 1
        assert bars.values.argsort().tolist() == np.argsort(errors)[::-1].tolist()

    def test_pictures_of_layers_behind_grids_and_of_some_layers(self):
        model = small()
        quantized = quantize(model, images(), bits=4)
        assert anatomy(model, quantized, {"bits": 4})[2].labels == ("0", "2", "4")
        some = quantize(model, images(), bits=4, layers=["2"])
        assert anatomy(model, some, {"bits": 4, "layers": ["2"]})[2].labels == ("2",)

    def test_both_ends_of_every_control(self):
        model, inputs = small(), images(20)
        for control in self.technique.controls:
            ends = (True, False) if isinstance(control.default, bool) else (control.low, control.high)
            for value in control.choices or ends:
                setting = {"bits": 4} | {control.name: value}
                if control.alternative and control.name != "bits":
                    del setting["bits"]
                for laid_over in ({}, *self.technique.fair_controls.values()):
                    full = {"activations": "fp32"} | setting | laid_over
                    quantized = quantize(model, inputs, **full)
                    assert quantized(inputs).isfinite().all()
                    assert len(anatomy(model, quantized, full)) == 3

    def test_a_sweep_quantizes_weights_alone_unless_told_otherwise(self, tmp_path):
        data = tiny_data()
        grid = [{"bits": 4}, {"dtype": "fp16"}, {"bits": 4, "activations": 4}]
        results = list(
            cl.sweep.run("quantization", small(), data, grid, steps=0, journal=tmp_path / "j.sqlite", bar=False)
        )
        settings = [result.setting for result in results]
        assert [one["activations"] for one in settings] == ["fp32", "fp32", 4]
        assert settings[0]["clipping"] == "auto" and "dtype" not in settings[0] and "bits" not in settings[1]
        assert results[0].accuracy == cl.measure.accuracy(quantize(small(), bits=4), data.validation)
        expected = quantize(small(), data.train.images[: quantization.IMAGES], bits=4, calibration_size=200)
        assert results[2].accuracy == cl.measure.accuracy(expected, data.validation)

    def test_numpy_numbers(self):
        assert get_rounding(quantize(small(), bits=np.int64(4), symmetric=np.bool_(True))[0]).bits == 4


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_four_bits_cost_next_to_nothing_on_the_reference_network(dataset):
    data, model = cl.data.load(dataset), cl.models.pretrained("lenet_300_100", dataset)
    dense = cl.measure.accuracy(model, data.validation)
    assert cl.measure.accuracy(quantize(model, bits=4), data.validation) > dense - 0.006
    assert cl.measure.accuracy(quantize(model, bits=8), data.validation) > dense - 0.001
