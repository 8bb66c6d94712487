"""Groups of channels and their removal: sliced by hand, equal to the masked network, networks of many makes."""

import copy

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

import compresslab as cl
from compresslab import channels
from compresslab.weights.codebooks import Codebook
from compresslab.weights.grids import Grid
from compresslab.weights.layers import BATCH_NORMS, TRANSPOSED, get_mask, get_rounding, set_mask, set_rounding

pytestmark = pytest.mark.slow


def mlp():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


class Residual(nn.Module):
    """A block whose result is added to its input, a gate that multiplies, a depthwise convolution between."""

    def __init__(self, groups=6):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.first, self.wide = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=groups)
        self.squeeze, self.excite = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1)
        self.second, self.relu, self.head = nn.Conv2d(6, 6, 1), nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, images):
        x = self.relu(self.norm(self.stem(images)))
        y = self.relu(self.wide(self.relu(self.first(x))))
        y = y * self.excite(self.relu(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head((x + self.second(y)).mean((2, 3)))


class Dense(nn.Module):
    """Outputs of two layers side by side; a layer whose halves multiply each other, which go in pairs."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.both, self.head = nn.Linear(8, 4), nn.Linear(8, 5), nn.Linear(9, 12), nn.Linear(6, 3)

    def forward(self, x):
        value, gate = self.both(torch.cat([self.a(x).relu(), self.b(x).tanh()], 1)).chunk(2, 1)
        return self.head(value * gate.sigmoid())


class Parts(nn.Module):
    """One layer whose outputs are read in parts by two others; the number 4 in the code must stay true."""

    def __init__(self):
        super().__init__()
        self.one, self.left, self.right = nn.Linear(8, 10), nn.Linear(4, 3), nn.Linear(6, 3)

    def forward(self, x):
        both = self.one(x).relu()
        return self.left(both[:, :4]) + self.right(both[:, 4:])


class Reader(nn.Module):
    """Whole numbers in, an LSTM between."""

    def __init__(self):
        super().__init__()
        self.embed, self.memory = nn.Embedding(20, 8), nn.LSTM(8, 12, batch_first=True)
        self.hidden, self.head = nn.Linear(12, 9), nn.Linear(9, 3)

    def forward(self, x):
        return self.head(self.hidden(self.memory(self.embed(x))[0][:, -1]).relu())


def conv_1d():
    return nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.PReLU(6), nn.AvgPool1d(2), nn.Flatten(), nn.BatchNorm1d(18),
        nn.Linear(18, 7), nn.GELU(), nn.BatchNorm1d(7), nn.Linear(7, 3),
    )  # fmt: skip


def conv_3d():
    return nn.Sequential(
        nn.Sequential(nn.Conv3d(1, 4, 2), nn.BatchNorm3d(4, affine=False), nn.ReLU()),
        nn.Sequential(nn.ConvTranspose3d(4, 5, 2), nn.MaxPool3d(2), nn.Flatten(2), nn.Flatten(), nn.Linear(40, 3)),
    )


def transposed():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, stride=2, bias=False), nn.Hardswish(),
        nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def grouped():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.Conv2d(6, 9, 3, groups=3), nn.ReLU(), nn.ConvTranspose2d(9, 6, 2, groups=3),
        nn.BatchNorm2d(6), nn.Conv2d(6, 12, 1, groups=6), nn.Flatten(), nn.Linear(12 * 25, 3),
    )  # fmt: skip


def tokens():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.Flatten(), nn.Linear(20, 3))


MODELS = {  # name: (model, shape of an image, sizes of the groups)
    "mlp": (mlp, (8,), {"0": 6, "2": 5}),
    "tokens": (tokens, (4, 8), {"0": 6}),
    "conv_1d": (conv_1d, (2, 8), {"0": 6, "6": 7}),
    "conv_3d": (conv_3d, (1, 4, 4, 4), {"0.0": 4, "1.0": 5}),
    "transposed": (transposed, (2, 8, 8), {"0": 6, "2": 4}),
    "grouped": (grouped, (2, 8, 8), {"0": 3}),
    "residual": (Residual, (2, 8, 8), {"stem": 6, "first": 6, "squeeze": 4}),
    "residual in groups": (lambda: Residual(3), (2, 8, 8), {"stem": 6, "first": 3, "squeeze": 4}),
    "dense": (Dense, (8,), {"a": 4, "b": 5, "both": 6}),
    "parts": (Parts, (8,), {"one[4:10]": 6}),
    "lstm": (Reader, None, {"hidden": 9}),
    "lenet_5": (cl.models.lenet_5, (1, 28, 28), {"conv1": 20, "conv2": 50, "fc1": 500}),
}


def made(name, seed=0):
    """A model in evaluation mode with weights and BatchNorm statistics of its own, images, and its groups' sizes."""
    build, shape, sizes = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().eval()
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        return model, torch.randint(0, 20, (3, 7)) if shape is None else torch.randn(3, *shape), sizes


def masked(model, groups, removed):
    """A copy whose consumers do not look at the removed channels."""
    twin = cl.layers.duplicate(model)
    for group in groups:
        for one in group.consumers:
            layer = twin.get_submodule(one.name)
            transposed = isinstance(layer, TRANSPOSED)
            layer.weight.data.movedim(0 if transposed else 1, 0)[one.inputs[removed[group.name]].flatten()] = 0
    return twin


def without(model, groups, removed):
    twin = cl.layers.duplicate(model)
    channels.remove(twin, groups, removed)
    return twin


def some(groups, seed=0, share=0.5):
    """For each group a random choice that leaves at least one channel."""
    generator, removed = torch.Generator().manual_seed(seed), {}
    for group in groups:
        removed[group.name] = torch.rand(group.size, generator=generator) < share
        removed[group.name][torch.randint(group.size, (1,), generator=generator)] = False
    return removed


@pytest.mark.parametrize("name", MODELS)
def test_the_groups_that_there_are(name):
    model, images, sizes = made(name)
    groups, reasons = channels.find_groups(model, images)
    assert {group.name: group.size for group in groups} == sizes
    inside = {producer for group in groups for producer in group.producers}
    assert inside | set(reasons) == set(cl.layers.weight_layers(model)) and not inside & set(reasons)


@pytest.mark.parametrize("name", MODELS)
def test_removed_is_masked(name):
    model, images, _ = made(name)
    groups, _ = channels.find_groups(model, images)
    for seed in range(3):
        removed = some(groups, seed)
        small, expected = without(model, groups, removed), masked(model, groups, removed)(images)
        assert torch.allclose(small(images), expected, atol=1e-5)
        assert cl.layers.count_parameters(small) < cl.layers.count_parameters(model)


@pytest.mark.parametrize("name", MODELS)
def test_a_single_channel_is_left_and_the_rest_is_found_again(name):
    model, images, _ = made(name)
    groups, _ = channels.find_groups(model, images)
    removed = {group.name: torch.arange(group.size) > 0 for group in groups}
    small = without(model, groups, removed)
    assert torch.allclose(small(images), masked(model, groups, removed)(images), atol=1e-5)
    again, _ = channels.find_groups(small, images)
    assert {group.size for group in again} <= {1, *range(1, 10)} and again


@pytest.mark.parametrize("name", MODELS)
def test_what_is_left_trains_saves_and_loads(name):
    model, images, _ = made(name)
    groups, _ = channels.find_groups(model, images)
    small = without(model, groups, some(groups))
    if images.is_floating_point():  # cl.train takes whole numbers too, as numbers
        tuned = cl.train.finetune(small, (images, torch.arange(3)), steps=2, precision="fp32", bar=False)
        assert not torch.equal(tuned(images), small(images))
        again = cl.storage.loads(cl.storage.dumps(small))
        assert torch.equal(again(images), small(images))


def test_attributes_and_shapes_are_right():
    model, images, _ = made("residual in groups")
    groups, _ = channels.find_groups(model, images)
    small = without(model, groups, {"first": torch.tensor([True, False, False]), "stem": torch.arange(6) < 2})
    assert (small.first.out_channels, small.wide.in_channels, small.wide.out_channels, small.wide.groups) == (
        4,
        4,
        4,
        2,
    )
    assert small.wide.weight.shape == (4, 2, 3, 3) and small.squeeze.in_channels == small.excite.out_channels == 4
    assert (small.norm.num_features, small.norm.running_var.shape, small.second.out_channels) == (4, (4,), 4)
    assert (small.head.in_features, small.first.in_channels, small.stem.out_channels) == (4, 4, 4)


def test_sliced_by_hand():
    model, images, _ = made("mlp")
    groups, _ = channels.find_groups(model, images)
    gone = torch.tensor([False, True, False, True, False, False])
    small = without(model, groups, {"0": gone})
    assert torch.equal(small[0].weight, model[0].weight[~gone]) and torch.equal(small[0].bias, model[0].bias[~gone])
    assert torch.equal(small[2].weight, model[2].weight[:, ~gone]) and torch.equal(small[2].bias, model[2].bias)
    assert (small[0].out_features, small[2].in_features, small[2].out_features) == (4, 4, 5)


def test_a_channel_behind_a_flatten_is_a_block_of_features():
    model, images, _ = made("conv_1d")
    (conv, linear), reasons = channels.find_groups(model, images)
    assert conv.consumers[0].name == "6" and torch.equal(conv.consumers[0].inputs, torch.arange(18).view(6, 3))
    assert torch.equal(linear.consumers[0].inputs, torch.arange(7).view(7, 1))
    assert (conv.producers, linear.producers, reasons) == (("0",), ("6",), {"9": channels.OUTPUT})


def test_members_of_a_residual_group():
    model, images, _ = made("residual")
    groups = {group.name: group for group in channels.find_groups(model, images)[0]}
    assert groups["stem"].producers == ("stem", "second")
    assert [one.name for one in groups["stem"].consumers] == ["first", "head"]
    assert groups["first"].producers == ("first", "wide", "excite")
    assert [one.name for one in groups["first"].consumers] == ["squeeze", "second"]


@given(seed=st.integers(0, 2**20), share=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_removed_is_masked_for_any_choice(seed, share):
    model, images, _ = made("grouped", seed % 5)
    groups, _ = channels.find_groups(model, images)
    removed = some(groups, seed, share)
    expected = masked(model, groups, removed)(images)
    assert torch.allclose(without(model, groups, removed)(images), expected, atol=1e-4)


FOREIGN = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), 12),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(num_classes=5), 27),
    "squeezenet1_1": (lambda: torchvision.models.squeezenet1_1(num_classes=5), 25),
    "vision_transformer": (
        lambda: torchvision.models.VisionTransformer(64, 32, 2, 2, 32, 48, num_classes=5),
        2,
    ),
    "densenet": (lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=5), 10),
    "swin": (
        lambda: torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=5),
        2,
    ),
}


@pytest.mark.parametrize("make, count", FOREIGN.values(), ids=FOREIGN.keys())
def test_networks_of_others(make, count):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, images = make().eval(), torch.randn(2, 3, 64, 64)
    nn.init.normal_([*cl.layers.weight_layers(model).values()][-1].weight)  # torchvision begins with zeros in some
    groups, reasons = channels.find_groups(model, images)
    removed = some(groups)
    small, expected = without(model, groups, removed), masked(model, groups, removed)(images)
    assert len(groups) == count and channels.OUTPUT in reasons.values()
    assert (small(images) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_transformer_keeps_its_embedding():
    model = torchvision.models.VisionTransformer(32, 16, 1, 2, 32, 48, num_classes=5).eval()
    _, reasons = channels.find_groups(model, torch.randn(1, 3, 32, 32))
    assert "LayerNorm" in reasons["conv_proj"] and "LayerNorm" in reasons["encoder.layers.encoder_layer_0.mlp.3"]
    assert "MultiheadAttention" in reasons["encoder.layers.encoder_layer_0.self_attention.out_proj"]


def norms():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 4, 3), nn.Softmax(1), nn.Conv2d(4, 5, 1), nn.ReLU(),
        nn.Conv2d(5, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def test_channels_that_are_mixed_stay():
    groups, reasons = channels.find_groups(norms().eval(), torch.randn(1, 2, 8, 8))
    assert [group.name for group in groups] == ["4"]
    assert "GroupNorm" in reasons["0"] and "mixed" in reasons["2"] and reasons["6"] == channels.OUTPUT


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.fourth, self.unused, self.head = nn.Linear(8, 6), nn.Linear(4, 4), nn.Linear(6, 3)

    def forward(self, x):
        x = self.second(self.second(self.first(x).relu()).relu())
        x = self.third(x.view(len(x), 8).relu())
        return self.head(self.fourth(x.relu()).relu())


def test_layers_used_twice_tied_or_not_at_all_stay():
    groups, reasons = channels.find_groups(Odd(), torch.randn(2, 8))
    assert [group.name for group in groups] == ["third", "fourth"] or [group.name for group in groups] == ["fourth"]
    assert "'second' is used more than once" in reasons["first"] and "more than once" in reasons["second"]
    assert reasons["unused"].startswith("nothing is known") and reasons["head"] == channels.OUTPUT
    model = mlp()
    model[2] = nn.Linear(6, 6)
    model.insert(3, nn.Linear(6, 6))
    model.insert(4, nn.Linear(6, 5))
    model[3].weight = model[2].weight
    groups, reasons = channels.find_groups(model, torch.randn(2, 8))
    assert [group.name for group in groups] == ["4"]
    assert "shares its weight" in reasons["0"] and "shares its weight" in reasons["2"]


def test_a_model_that_gives_more_than_logits_keeps_what_it_gives():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            features = self.two(self.one(x).relu())
            return {"logits": self.head(features.relu()), "features": features}

    groups, reasons = channels.find_groups(Two(), torch.randn(2, 8))
    assert [group.name for group in groups] == ["one"] and {"two", "head"} == set(reasons)


def test_a_network_that_counts_on_its_width_is_left_alone():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.three(self.two(self.one(x).relu().view(-1, 4 * 36)).relu())

    groups, reasons = channels.find_groups(Fixed(), torch.randn(2, 1, 8, 8))
    assert [group.name for group in groups] == ["two"] and "does not run" in reasons["one"]


def test_a_network_that_cannot_be_traced_is_left_alone():
    class Numpy(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.two(torch.from_numpy(self.one(x).detach().numpy()))

    groups, reasons = channels.find_groups(Numpy(), torch.randn(2, 8))
    assert groups == [] and set(reasons) == {"one", "two"}


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_weight_made_in_another_way_stays(wrap):
    model = mlp()
    wrap(model[2])
    groups, reasons = channels.find_groups(model, torch.randn(2, 8))
    assert groups == [] and "'2' has a weight made by" in reasons["0"]


def test_masks_and_grids_are_sliced_along():
    model, images, _ = made("mlp")
    set_mask(model[0], torch.rand(6, 8) < 0.5)
    set_mask(model[2], torch.rand(5, 6) < 0.5)
    scale = torch.linspace(0.1, 0.5, 5).view(5, 1)
    nn.utils.parametrize.register_parametrization(model[2], "weight", Grid(scale, torch.zeros(5, 1), -7, 7, 4))
    groups, _ = channels.find_groups(model, images)
    removed = {"0": torch.arange(6) % 3 == 0, "2": torch.arange(5) % 2 == 0}
    small = without(model, groups, removed)
    assert torch.equal(get_mask(small[0]), get_mask(model[0])[~removed["0"]])
    assert torch.equal(get_mask(small[2]), get_mask(model[2])[~removed["2"]][:, ~removed["0"]])
    assert torch.equal(small[2].weight, model[2].weight[~removed["2"]][:, ~removed["0"]])
    assert torch.equal(small[2].parametrizations.weight[1].scale, scale[~removed["2"]])
    tuned = cl.train.finetune(small, (images, torch.arange(3)), steps=3, precision="fp32", bar=False)
    assert torch.equal(get_mask(tuned[0]), get_mask(small[0])) and (tuned[0].weight[~get_mask(tuned[0])] == 0).all()


def test_codebooks_are_sliced_along():
    model, images, _ = made("mlp")
    for layer, own in ((model[0], "weight"), (model[2], "weight"), (model[2], "bias")):
        shape = getattr(layer, own).shape
        count = shape[0]  # as many centroids as outputs: they are no outputs
        set_rounding(layer, Codebook(torch.randn(count), torch.arange(shape.numel()).reshape(shape) % count), own)
    groups, _ = channels.find_groups(model, images)
    removed = {"0": torch.arange(6) % 3 == 0, "2": torch.arange(5) % 2 == 0}
    small = without(model, groups, removed)
    assert torch.equal(small[2].weight, model[2].weight[~removed["2"]][:, ~removed["0"]])
    assert torch.equal(small[2].bias, model[2].bias[~removed["2"]])
    assert torch.equal(get_rounding(small[2]).centroids, get_rounding(model[2]).centroids)
    bias, amount = small[2].bias.detach().clone(), torch.tensor([0.5, -1.0])
    channels.add_to_bias(small, "2", amount)
    assert torch.equal(small[2].bias, bias + amount) and get_rounding(small[2], "bias") is None
    values = set(get_rounding(small[0]).centroids.tolist())
    before = small[0].weight.detach().clone()
    channels.reset(small)
    assert not torch.equal(small[0].weight, before) and set(small[0].weight.flatten().tolist()) <= values


def test_the_model_is_left_as_it_was():
    model, images, _ = made("residual")
    model.train()
    model.norm.eval()
    model.stem.weight.requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    before, given, state = copy.deepcopy(model.state_dict()), images.clone(), torch.get_rng_state()
    groups, _ = channels.find_groups(model, images)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert torch.equal(images, given) and torch.equal(torch.get_rng_state(), state)
    assert model.training and not model.norm.training and model.head.training
    assert [name for name, one in model.named_parameters() if not one.requires_grad] == ["stem.weight"]
    assert all(one.grad is None and one.grad_fn is None for one in model.parameters())
    assert len(model._forward_hooks) == 1 and not any(len(one._forward_hooks) for one in model.children())
    small = without(model, groups, some(groups))
    assert [name for name, one in small.named_parameters() if not one.requires_grad] == ["stem.weight"]
    assert small.training and not small.norm.training


def test_an_inplace_network_does_not_write_to_the_images():
    images = torch.randn(2, 8)
    given = images.clone()
    channels.find_groups(nn.Sequential(nn.ReLU(inplace=True), *mlp()), images)
    assert torch.equal(images, given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_precisions_stay_what_they_are(dtype):
    model, images, _ = made("conv_1d")
    model = model.to(dtype)
    groups, _ = channels.find_groups(model, images)
    small = without(model, groups, some(groups))
    assert {one.dtype for one in small.parameters()} == {dtype}


def test_batch_norm_without_statistics_needs_two_images():
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU(), nn.Linear(6, 3))
    groups, _ = channels.find_groups(model.eval(), torch.randn(4, 8))
    assert [group.name for group in groups] == ["0"]
    without(model, groups, some(groups))(torch.randn(4, 8))


@pytest.mark.parametrize(
    "removed, said",
    [
        ({"9": torch.zeros(6, dtype=torch.bool)}, "removed has '9'; choose from 0, 2"),
        (
            {"0": torch.zeros(5, dtype=torch.bool)},
            r"torch.bool of shape \(5,\); give a torch.bool tensor of shape \(6,\)",
        ),
        ({"0": torch.zeros(6)}, "removed.*float32"),
        ({"0": [True] * 6}, "removed.*True"),
        ({"0": torch.ones(6, dtype=torch.bool)}, "takes all 6 channels; at least one must stay"),
    ],
)
def test_a_bad_removal_is_named(removed, said):
    model, images, _ = made("mlp")
    groups, _ = channels.find_groups(model, images)
    with pytest.raises(ValueError, match=said):
        channels.remove(model, groups, removed)


@pytest.mark.parametrize(
    "images", [None, torch.empty(0, 8), torch.randn(2, 7), "images"], ids=["none", "no", "shape", "text"]
)
def test_images_that_do_not_fit_are_refused(images):
    with pytest.raises(ValueError, match="images"):
        channels.find_groups(mlp(), images)


def test_add_to_bias():
    model = mlp()
    expected = model[0].bias.detach() + 1
    channels.add_to_bias(model, "0", torch.ones(6, dtype=torch.float64))
    assert torch.equal(model[0].bias, expected)
    layer = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False))
    layer[0].weight.requires_grad_(False)
    channels.add_to_bias(layer, "0", torch.tensor([1.0, 2.0]))
    assert torch.equal(layer[0].bias, torch.tensor([1.0, 2.0])) and not layer[0].bias.requires_grad
    set_mask(model[2], torch.tensor([True, False, False, True, True]), "bias")
    before = model[2].bias.detach().clone()
    channels.add_to_bias(model, "2", torch.tensor([1.0, 2.0, 0.0, 0.0, 3.0]))
    assert torch.allclose(model[2].bias, before + torch.tensor([1.0, 2.0, 0.0, 0.0, 3.0]))
    assert get_mask(model[2], "bias").tolist() == [True, True, False, True, True]
    with pytest.raises(ValueError, match=r"amount has shape \(3,\); layer '0' takes \(6,\)"):
        channels.add_to_bias(model, "0", torch.ones(3))


@pytest.mark.parametrize("name", MODELS)
def test_fresh_weights_depend_on_the_seed_alone(name):
    state = torch.get_rng_state()
    models = []
    for weights, seed in ((0, 1), (5, 1), (0, 2)):
        model, images, _ = made(name, weights)
        channels.reset(model, seed)
        models.append(model)
    one, other, third = ([*model.state_dict().values()] for model in models)
    assert all(map(torch.equal, one, other)) and not all(map(torch.equal, one, third))
    assert torch.equal(torch.get_rng_state(), state)


def test_fresh_weights_are_those_of_torch_and_keep_masks_and_frozen_ones():
    model, images, _ = made("mlp")
    mask = torch.rand(6, 8) < 0.5
    set_mask(model[0], mask)
    model[2].bias.requires_grad_(False)
    channels.reset(model, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = mlp()
    assert torch.equal(model[0].weight, expected[0].weight * mask) and torch.equal(model[4].weight, expected[4].weight)
    assert not model[2].bias.requires_grad


def test_parameters_of_own_modules_are_drawn_alike():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.layer = nn.Parameter(torch.randn(4000) * 2 + 3), nn.Linear(2, 2)

    model = Own()
    before = model.scale.detach().clone()
    channels.reset(model, 0)
    assert not torch.equal(model.scale, before)
    assert model.scale.mean().item() == pytest.approx(3, abs=0.2) and model.scale.std().item() == pytest.approx(
        2, abs=0.2
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float64, torch.float16])
def test_images_of_any_type_are_taken_as_training_takes_them(dtype):
    groups, left = channels.find_groups(mlp(), torch.ones(3, 8, dtype=dtype))
    assert [group.name for group in groups] == ["0", "2"] and left == {"4": channels.OUTPUT}
