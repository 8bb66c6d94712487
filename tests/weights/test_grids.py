"""Grids: torch's fake quantization as the oracle, values and gradients; masks, shared weights, dtypes, training."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import compresslab as cl
from compresslab.weights.grids import Grid, Half, InputGrid
from compresslab.weights.layers import Mask, distinct_weights, get_mask, get_rounding, set_mask, set_rounding
from tests.weights.samples import Tied

SIZES = st.floats(2**-20, 2**10, width=32)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float32)


def grid(scale=0.25, zero_point=0.0, low=-8, high=7, bits=4, **options):
    return Grid(torch.tensor(scale), torch.tensor(zero_point), low, high, bits, **options)


def numbers(seed, shape, scale, far=2.0):
    """Numbers around a grid, many of them at or next to the ties between two values."""
    generator = torch.Generator().manual_seed(seed)
    ties = (torch.randint(-12, 12, shape, generator=generator) + 0.5) * scale
    near = ties * (1 + torch.randn(shape, generator=generator) * 1e-7)
    other = torch.randn(shape, generator=generator) * scale * 8 * far
    return torch.where(torch.rand(shape, generator=generator) < 0.5, near, other)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), scale=SIZES, bits=st.integers(1, 8), signed=st.booleans(), data=st.data())
def test_the_same_values_and_gradients_as_torch_for_a_tensor(seed, scale, bits, signed, data):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    point = data.draw(st.integers(low, high))
    weight = numbers(seed, (5, 7), scale).requires_grad_()
    ours = Grid(torch.tensor(scale), torch.tensor(float(point)), low, high, bits)
    expected = torch.fake_quantize_per_tensor_affine(weight, scale, point, low, high)
    assert torch.equal(ours(weight), expected)
    assert torch.equal(ours(weight.detach()), expected)
    assert torch.equal(ours.values(ours.codes(weight)), expected)
    direction = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))
    (one,), (other,) = (torch.autograd.grad(out, weight, direction) for out in (ours(weight), expected))
    assert torch.equal(one, other)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), scales=st.lists(SIZES, min_size=3, max_size=3), bits=st.integers(1, 8))
@pytest.mark.parametrize("axis, shape", [(0, (3, 4)), (0, (3, 2, 2, 2)), (1, (2, 3, 4))], ids=str)
def test_the_same_values_and_gradients_as_torch_for_channels(seed, scales, bits, axis, shape):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(0, 2**bits, (3,), generator=generator)
    wide = [1] * len(shape)
    wide[axis] = 3
    scale = tensor(*scales)
    weight = numbers(seed, shape, scale.reshape(wide)).requires_grad_()
    ours = Grid(scale.reshape(wide), points.float().reshape(wide), 0, 2**bits - 1, bits)
    expected = torch.fake_quantize_per_channel_affine(weight, scale, points.int(), axis, 0, 2**bits - 1)
    assert torch.equal(ours(weight), expected)
    assert torch.equal(ours.values(ours.codes(weight)), expected)
    (one,), (other,) = (torch.autograd.grad(out.sum(), weight) for out in (ours(weight), expected))
    assert torch.equal(one, other)


@pytest.mark.parametrize("make", [Grid, InputGrid])
def test_a_grid_by_hand(make):
    ours = make(torch.tensor(0.5), torch.tensor(1.0), 0, 3, 2)
    given = tensor(-9, -0.6, -0.25, 0, 0.25, 0.3, 0.75, 0.8, 9)
    assert ours.codes(given).tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 3]  # ties to even: -0.5, 0.5, 1.5 become 0, 0, 2
    assert ours(given).tolist() == [-0.5, -0.5, 0, 0, 0, 0.5, 1.0, 1.0, 1.0]
    assert ours.codes(given).dtype == torch.int32 and ours(given).dtype == torch.float32


def test_one_bit_has_two_values_about_zero_and_zero_takes_the_upper():
    ours = Grid(torch.tensor(2.0), torch.tensor(0.5), 0, 1, 1)
    assert ours(tensor(-3, -1e-30, -0.0, 0, 1e-30, 3)).tolist() == [-1, -1, 1, 1, 1, 1]
    assert ours.codes(tensor(-1e-30, 1e-30)).tolist() == [0, 1]


def test_a_grid_without_a_zero_may_have_more_values_and_any_middle():
    ours = Grid(torch.tensor(1.0), torch.tensor(1.5), 0, 3, 2)
    assert ours(tensor(-9, -0.9, -0.1, 0.1, 0.9, 1.1, 9)).tolist() == [-1.5, -0.5, -0.5, 0.5, 0.5, 1.5, 1.5]
    shifted = Grid(torch.tensor(2.0), torch.tensor(-1.0 + 0.25), 0, 1, 1)
    assert shifted(tensor(-9, 2.4, 2.6, 9)).tolist() == [1.5, 1.5, 3.5, 3.5]
    assert torch.equal(shifted.values(shifted.codes(tensor(-9, 9))), shifted(tensor(-9, 9)))


def test_a_channel_of_zeros_on_a_grid_without_a_zero():
    ours = Grid(tensor(0, 2)[:, None], tensor(0.5, 0.5)[:, None], 0, 1, 1)
    weight = tensor(0, 0, -3, 3).reshape(2, 2).requires_grad_()
    assert ours(weight).tolist() == [[0, 0], [-1, 1]]
    ours(weight).sum().backward()
    assert weight.grad.isfinite().all()


def test_no_value_is_a_negative_zero():
    for one in (ours := grid())(tensor(-0.0, -0.01)), ours(tensor(-0.0, -0.01).requires_grad_()).detach():
        assert one.tolist() == [0, 0] and not one.signbit().any()


@pytest.mark.parametrize("scale", [1e-45, 1e-41, 1e-38, 1e-20, 1e20, 1e37])
def test_scales_at_the_ends_of_float32(scale):
    ours = grid(torch.tensor(scale).item())
    expected = torch.tensor([-8, -1, 0, 1, 7]) * torch.tensor(scale)
    assert torch.equal(ours(expected), expected)
    assert ours(tensor(-3e38, 3e38)).tolist() == (torch.tensor([-8, 7]) * torch.tensor(scale)).tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_come_back_as_they_are(dtype):
    weight = (torch.randn(50) * 2).to(dtype)
    for one in (weight, weight.clone().requires_grad_()):
        out = grid()(one)
        assert out.dtype == dtype and torch.equal(out.detach().double(), grid()(weight.float()).double())
    assert Half(torch.bfloat16)(weight).dtype == dtype


def test_a_grid_stays_single_when_its_model_becomes_half():
    model = nn.Linear(4, 2)
    set_rounding(model, Grid(tensor(1e-9, 3)[:, None], tensor(0, 0)[:, None], -128, 127, 8))
    model.half()
    rounding = get_rounding(model)
    assert model.weight.dtype == torch.float16 and rounding.scale.dtype == torch.float32
    assert rounding.scale.flatten().tolist() == tensor(1e-9, 3).tolist()
    model.double()
    assert model.weight.dtype == rounding.scale.dtype == torch.float64
    assert model(torch.randn(3, 4).double()).shape == (3, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_rounds_as_a_cast_and_passes_gradients_on_unrounded(dtype):
    weight = torch.randn(40).requires_grad_()
    out = Half(dtype)(weight)
    assert torch.equal(out, weight.to(dtype).float()) and torch.equal(Half(dtype)(weight.detach()), out)
    small = torch.full((40,), 1e-12)
    (gradient,) = torch.autograd.grad(out, weight, small)
    assert torch.equal(gradient, small)


class TestLearned:
    def test_it_begins_as_the_grid_it_was(self):
        weight = torch.randn(6, 5)
        scale, point = torch.rand(6, 1) + 0.1, torch.zeros(6, 1)
        learned, fixed = (Grid(scale, point, -2, 1, 2, learned=one) for one in (True, False))
        assert torch.equal(learned(weight), fixed(weight))
        assert [name for name, _ in learned.named_parameters()] == ["growth"] and not list(fixed.parameters())

    @pytest.mark.parametrize("low, high, point", [(-4, 3, 0.0), (0, 7, 3.0)])
    def test_the_gradient_by_hand(self, low, high, point):
        """Of the weight as torch has it; of the step as in Esser et al., equation 3 and section 2.2."""
        weight, scale = (torch.randn(30, 4) * 2).requires_grad_(), 0.4
        ours = Grid(torch.tensor(scale), torch.tensor(point), low, high, 3, learned=True)
        theirs = torch.fake_quantize_per_tensor_affine(weight, scale, int(point), low, high)
        direction = torch.randn(30, 4)
        assert torch.allclose(ours(weight), theirs)
        mine = torch.autograd.grad(ours(weight), [weight, ours.growth], direction)
        assert torch.equal(mine[0], torch.autograd.grad(theirs, weight, direction)[0])
        ratio = weight.detach() / scale
        code = (ratio.round() + point).clamp(low, high)
        inside = code == ratio.round() + point
        slope = (direction * torch.where(inside, code - point - ratio, code - point)).sum()
        slope *= (120 * max(high - point, point - low)) ** -0.5
        assert mine[1].item() == pytest.approx(slope.item() * scale, rel=1e-4)  # d step / d growth is the step

    def test_the_gradient_of_one_bit_by_hand(self):
        ours = Grid(torch.tensor(2.0), torch.tensor(0.5), 0, 1, 1, learned=True)
        out = ours(tensor(0.5, -3).requires_grad_())
        (slope,) = torch.autograd.grad(out.sum(), ours.growth)
        inside, outside = 0.5 - 0.25, -0.5  # (code - number / step), code
        assert slope.item() == pytest.approx((inside + outside) * 2 / (2 * 1) ** 0.5)

    def test_images_do_not_count_for_an_inputs_factor(self):
        ours = InputGrid(torch.tensor(0.5), torch.tensor(0.0), 0, 15, 4, learned=True)
        few, many = torch.rand(1, 10), torch.rand(1, 10).repeat(9, 1)
        assert ours.share(few) == ours.share(many) == 10

    def test_training_moves_the_steps_and_they_stay_above_zero(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        for layer in (model[0], model[2]):
            set_rounding(
                layer, Grid(torch.full((len(layer.weight), 1), 0.2), torch.zeros(len(layer.weight), 1), -2, 1, 2, True)
            )
        tuned = cl.train.finetune(
            model, (torch.randn(64, 6), torch.randint(0, 3, (64,))), steps=30, lr=0.05, precision="fp32", bar=False
        )
        steps = get_rounding(tuned[0]).step_size
        assert (steps > 0).all() and not torch.equal(steps, get_rounding(model[0]).step_size)
        assert torch.equal(get_rounding(model[0]).growth, torch.zeros(8, 1))
        codes = tuned[0].weight / steps
        assert torch.allclose(codes, codes.round(), atol=1e-5)


BAD = {
    "bits": (lambda: grid(bits=0), "bits is 0; give a whole number from 1 to 16"),
    "too many bits": (lambda: grid(bits=17), "bits is 17"),
    "codes": (lambda: grid(bits=3), "low is -8 and high is 7; 3 bits have room for 8 codes"),
    "high below low": (lambda: grid(low=3, high=2), "high is 2; give a whole number from 3"),
    "negative scale": (lambda: grid(-1.0), "scale has values"),
    "nan": (lambda: grid(float("nan")), "scale has values that are not finite"),
    "infinite point": (lambda: grid(zero_point=float("inf")), "zero_point has values that are not finite"),
    "no tensor": (lambda: Grid(0.5, torch.tensor(0.0), 0, 1, 1), "scale is 0.5; give a float32 tensor"),
    "half": (lambda: Grid(torch.tensor(0.5).half(), torch.tensor(0.0), 0, 1, 1), "scale is torch.float16"),
    "shapes": (lambda: Grid(torch.ones(3, 1), torch.zeros(2, 1), 0, 1, 1), r"zero_point has shape \(2, 1\) and scale"),
    "dtype": (lambda: Half(torch.float32), "dtype is torch.float32; choose one of torch.float16"),
    "no rounding": (lambda: set_rounding(nn.Linear(2, 2), nn.ReLU()), "rounding is ReLU; give a Rounding"),
    "no such tensor": (lambda: set_rounding(nn.Linear(2, 2), grid(), "w"), "name is 'w'; Linear has weight, bias"),
}


@pytest.mark.parametrize("make, said", BAD.values(), ids=BAD.keys())
def test_what_makes_no_grid_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()


class TestOnALayer:
    """Roundings among other parametrizations, in every order."""

    def kinds(self, layer):
        return [type(one) for one in layer.parametrizations.weight]

    def test_a_mask_comes_after_a_rounding_whichever_is_set_first(self):
        mask = torch.rand(3, 4) > 0.5
        one, other = nn.Linear(4, 3), nn.Linear(4, 3)
        for layer, steps in ((one, (set_mask, set_rounding)), (other, (set_rounding, set_mask))):
            for step in steps:
                step(layer, mask if step is set_mask else grid(0.1, 0.5, 0, 1, 1))
            assert self.kinds(layer) == [Grid, Mask]
            assert torch.equal(layer.weight != 0, mask) and torch.equal(get_mask(layer), mask)
            assert (layer.parametrizations.weight.original[~mask] == 0).all()

    def test_another_rounding_replaces_it_and_begins_with_its_values(self):
        layer = nn.Linear(4, 3)
        parameter = layer.weight
        set_rounding(layer, grid(0.5, bits=4))
        coarse = layer.weight.detach()
        set_rounding(layer, grid(1e-4, 0.0, -(2**15), 2**15 - 1, 16))
        assert self.kinds(layer) == [Grid] and torch.allclose(layer.weight, coarse, atol=1e-4)
        assert layer.parametrizations.weight.original is parameter
        set_rounding(layer, Half(torch.bfloat16))
        assert self.kinds(layer) == [Half]
        set_rounding(layer, None)
        assert (
            type(layer) is nn.Linear and layer.weight is parameter and torch.allclose(layer.weight, coarse, atol=1e-4)
        )

    def test_taking_none_away_leaves_a_layer_as_it_is(self):
        layer = nn.Linear(4, 3)
        set_rounding(layer, None)
        assert type(layer) is nn.Linear and get_rounding(layer) is None
        set_mask(layer, torch.ones(3, 4, dtype=torch.bool))
        set_rounding(layer, None)
        assert self.kinds(layer) == [Mask]

    def test_a_layer_pruned_by_torch_keeps_its_zeros(self):
        layer = nn.Linear(4, 3)
        nn.utils.prune.l1_unstructured(layer, "weight", 0.5)
        zero = layer.weight == 0
        set_rounding(layer, grid(0.1, 0.5, 0, 1, 1))
        assert self.kinds(layer) == [Grid, Mask] and torch.equal(layer.weight == 0, zero)

    def test_it_follows_a_weight_norm(self):
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
        before = layer.weight.detach()
        set_rounding(layer, grid(0.05))
        assert torch.equal(layer.weight, grid(0.05)(before)) and self.kinds(layer)[-1] is Grid
        layer(torch.randn(2, 4)).sum().backward()
        assert layer.parametrizations.weight.original0.grad is not None

    def test_assigning_a_weight_rounds_it(self):
        layer = nn.Linear(2, 1)
        set_rounding(layer, grid(0.5))
        layer.weight = torch.tensor([[0.6, -0.9]])
        assert layer.weight.tolist() == [[0.5, -1.0]]

    def test_a_copy_has_a_grid_of_its_own(self):
        layer = nn.Sequential(nn.Linear(4, 3))
        set_rounding(layer[0], grid(0.1))
        twin = cl.layers.duplicate(layer)
        get_rounding(twin[0]).scale.fill_(0.2)
        assert get_rounding(layer[0]).scale == torch.tensor(0.1)
        assert not torch.equal(twin[0].weight, layer[0].weight)

    def test_it_comes_back_with_the_state_dict(self):
        one, other = nn.Linear(4, 3), nn.Linear(4, 3)
        set_rounding(one, Grid(torch.full((3, 1), 0.1), torch.full((3, 1), 2.0), 0, 7, 3))
        set_rounding(other, Grid(torch.full((3, 1), 1e-42), torch.full((3, 1), 1.5), 0, 7, 3))
        other.load_state_dict(one.state_dict())
        assert torch.equal(other.weight, one.weight)

    def test_plain_and_effective_state_hold_the_rounded_weights(self):
        model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        set_rounding(model[0], grid(0.1))
        images, bare = torch.randn(5, 4), cl.layers.plain(model)
        assert type(bare[0]) is nn.Linear and torch.equal(bare(images), model(images))
        assert all(
            torch.equal(value, bare.state_dict()[name]) for name, value in cl.layers.effective_state(model).items()
        )
        assert cl.layers.count_parameters(model) == 4 * 3 + 3 + 3 * 2 + 2
        assert cl.layers.count_nonzeros(model) == cl.layers.count_nonzeros(bare)


def test_layers_that_share_a_weight_share_the_grid():
    model = Tied()
    (weight,) = distinct_weights(model)
    rounding = grid(0.1, learned=True)
    for module, name in weight.holders:
        set_rounding(module, rounding, name)
    (weight,) = distinct_weights(model)
    assert weight.names == ("output",) and len(weight.holders) == 2
    assert torch.equal(model.embedding.weight, model.output.weight)
    assert cl.layers.count_parameters(model) == 7 * 4 + 7
    for module, name in weight.holders:
        set_mask(module, torch.arange(28).reshape(7, 4) % 2 == 0, name)
    assert len(distinct_weights(model)) == 1 and cl.layers.count_parameters(model) == 7 * 4 + 7
    twin = cl.layers.duplicate(model)
    assert get_rounding(twin.embedding) is get_rounding(twin.output) is not rounding
    bare = cl.layers.plain(model)
    assert bare.embedding.weight is bare.output.weight
    tokens = torch.randint(0, 7, (3, 5))
    assert torch.equal(bare(tokens), model(tokens))


def test_training_draws_no_numbers_and_computes_alike_for_grids():
    plain = nn.Sequential(nn.Linear(4, 3))
    rounded = copy.deepcopy(plain)
    set_rounding(rounded[0], grid(0.1))
    assert cl.train.choose_precision(plain) == cl.train.choose_precision(rounded)
    assert not any(map(cl.train._draws, rounded.modules()))


def test_a_grid_is_exported_with_its_model():
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    set_rounding(model[0], grid(0.1))
    images = torch.randn(2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(model, (images,)).module()
    assert torch.allclose(exported(images), model(images))
