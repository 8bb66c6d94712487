"""Activation pruning: statistics by hand, exact counts, masking is removing, means folded, what the lab is told."""

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

import compresslab as cl
from compresslab import channels
from compresslab.techniques import activation_pruning
from compresslab.techniques.activation_pruning import STATISTICS, prune, statistics
from compresslab.weights.layers import count_parameters, get_mask

pytestmark = pytest.mark.slow


def mlp(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).eval()


def convolutional(seed=0):
    """BatchNorm, pooling and Flatten between the layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 7), nn.ReLU(), nn.Linear(7, 3),
        )  # fmt: skip
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
        return model.eval()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(5, 6)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(self.norm(x + self.second(self.first(x).tanh())).relu())


def residual(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Residual().eval()


def images_for(model, count=200, seed=0):
    shape = (1, 8, 8) if isinstance(next(model.modules()), nn.Sequential) and len(model) > 5 else (8,)
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def quiet(*arguments, **options):
    """`prune` without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return prune(*arguments, **options)


def left(model, pruned, images):
    """Neurons left in each group."""
    groups, _ = channels.find_groups(model, images)
    sizes = [pruned.get_submodule(group.name).weight.shape[0] for group in groups]
    return dict(zip([group.name for group in groups], sizes, strict=True))


MODELS = {"mlp": mlp, "convolutional": convolutional, "residual": residual}
SPARSITIES = [0, 1e-9, 0.1, 1 / 3, 0.5, 0.77, 0.9]


def activations(model, images):
    """Inputs of the Linear layers of `mlp`, by the names of the layers that make them."""
    hidden = model[:2](images)
    return {"0": hidden, "2": model[2:4](hidden)}


def test_statistics_by_hand():
    model = mlp()
    images = images_for(model)
    for name, seen in activations(model, images).items():
        seen, outgoing = seen.detach().double(), model[int(name) + 2].weight.detach().double()
        expected = {
            "mean": seen.mean(0),
            "apoz": (seen != 0).double().mean(0),
            "std": seen.std(0, correction=0),
            "variance": seen.var(0, correction=0) * outgoing.square().sum(0),
        }
        for statistic, value in expected.items():
            found = statistics(model, images, statistic)[name]
            assert found.dtype == torch.float32 and torch.allclose(found.double(), value, rtol=1e-5, atol=1e-7)


def test_mean_is_of_the_size_where_signs_differ():
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    images = images_for(model)
    seen = model[:2](images)
    assert torch.allclose(statistics(model, images, "mean")["0"], seen.abs().mean(0), rtol=1e-5)
    assert (statistics(model, images, "apoz")["0"] == 1).all()


def test_channels_are_measured_over_images_and_positions():
    model = convolutional()
    images = images_for(model)
    first, second = model[:3](images).double(), model[:6](images).double()  # (N, 5, 6, 6), (N, 6, 2, 2)
    found = {statistic: statistics(model, images, statistic) for statistic in STATISTICS}
    assert list(found["mean"]) == ["0", "3", "7"]
    assert torch.allclose(found["mean"]["0"].double(), first.mean((0, 2, 3)), rtol=1e-5)
    assert torch.allclose(found["std"]["0"].double(), first.std((0, 2, 3), correction=0), rtol=1e-5)
    assert torch.allclose(found["mean"]["3"].double(), second.mean((0, 2, 3)), rtol=1e-5)
    assert torch.allclose(found["std"]["3"].double(), second.std((0, 2, 3), correction=0), rtol=1e-5)
    assert torch.allclose(found["apoz"]["3"].double(), (second != 0).double().mean((0, 2, 3)), rtol=1e-5)
    squared = model[7].weight.double().square().sum(0).view(6, 4)
    by_feature = second.flatten(2).var(0, correction=0)  # (6, 4)
    assert torch.allclose(found["variance"]["3"].double(), (by_feature * squared).sum(1), rtol=1e-5)


def test_variance_is_the_squared_change_of_the_next_layer():
    model = mlp()
    images = images_for(model)
    score = statistics(model, images, "variance")["2"]
    for neuron in (0, 4):
        removed = quiet(model, images, sparsity=0.0)
        groups, _ = channels.find_groups(model, images)
        hidden = activations(model, images)["2"]
        replaced = hidden.clone()
        replaced[:, neuron] = hidden[:, neuron].mean()
        change = (removed[4](hidden) - removed[4](replaced)).square().sum(1).mean()
        assert change.item() == pytest.approx(score[neuron].item(), rel=1e-4)


def test_several_readers_count_the_largest_or_the_sum():
    model = residual()
    images = images_for(model)
    x = model.stem(images).relu()
    y = model.norm(x + model.second(model.first(x).tanh())).relu()
    assert torch.allclose(statistics(model, images)["stem"], torch.maximum(x.abs().mean(0), y.abs().mean(0)), rtol=1e-5)
    variances = x.var(0, correction=0) * model.first.weight.square().sum(0)
    variances = variances + y.var(0, correction=0) * model.head.weight.square().sum(0)
    assert torch.allclose(statistics(model, images, "variance")["stem"], variances, rtol=1e-4)


def test_batches_make_no_difference():
    model = convolutional()
    images = images_for(model, 700) + 100
    for statistic in ("mean", "std", "apoz"):
        large = statistics(model, images, statistic)
        parts = [statistics(model, part, statistic) for part in images.split(350)]
        if statistic != "std":
            assert all(torch.allclose(one, (parts[0][n] + parts[1][n]) / 2, rtol=1e-4) for n, one in large.items())
    seen = model[:3](images).double()
    assert torch.allclose(statistics(model, images, "std")["0"].double(), seen.std((0, 2, 3), correction=0), rtol=1e-4)


def test_rescaling_a_layer_moves_the_mean_and_not_the_variance_score():
    model, images = mlp(), images_for(mlp())
    scaled = copy.deepcopy(model)
    scaled[0].weight.data.mul_(3)
    scaled[0].bias.data.mul_(3)
    scaled[2].weight.data.div_(3)
    assert torch.allclose(scaled(images), model(images), atol=1e-5)
    assert torch.allclose(statistics(scaled, images)["0"], 3 * statistics(model, images)["0"], rtol=1e-4)
    assert torch.allclose(statistics(scaled, images, "variance")["0"], statistics(model, images, "variance")["0"])


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_exactly_as_many_go_as_asked_for(make, sparsity, statistic):
    model = make()
    images = images_for(model)
    sizes = left(model, model, images)
    after = left(model, quiet(model, images, sparsity=sparsity, statistic=statistic), images)
    most = sum(sizes.values()) - len(sizes)
    assert sum(sizes.values()) - sum(after.values()) == min(round(sparsity * sum(sizes.values())), most)
    after = left(model, quiet(model, images, sparsity=sparsity, statistic=statistic, scope="layer"), images)
    assert all(size - after[name] == min(round(sparsity * size), size - 1) for name, size in sizes.items())


@settings(max_examples=25, deadline=None)
@given(sparsity=st.floats(0, 1), seed=st.integers(0, 1000), scope=st.sampled_from(activation_pruning.SCOPES))
def test_what_stays_scores_at_least_what_goes(sparsity, seed, scope):
    model = mlp(seed % 7)
    images = images_for(model, seed=seed)
    pruned, scores = quiet(model, images, sparsity=sparsity, scope=scope), statistics(model, images)
    after = left(model, pruned, images)
    for name, score in scores.items():
        kept = score.topk(after[name]).indices.sort().values  # the scores differ from each other
        assert torch.equal(pruned.get_submodule(name).bias, pruned.get_submodule(name).bias)
        wanted = model.get_submodule(name).weight[kept]
        assert pruned.get_submodule(name).weight.shape[0] == after[name] >= 1
        if name == "0":
            assert torch.equal(pruned[0].weight, wanted)


@pytest.mark.parametrize("statistic", [one for one in STATISTICS if one != "random"])
def test_a_threshold_is_a_value_of_the_statistic(statistic):
    model = mlp()
    images = images_for(model)
    scores = statistics(model, images, statistic)
    cut = float(torch.cat([*scores.values()]).median())
    after = left(model, quiet(model, images, threshold=cut, statistic=statistic), images)
    assert after == {name: max(1, int((score >= cut).sum())) for name, score in scores.items()}


def test_a_neuron_at_the_threshold_stays():
    model, images = mlp(), images_for(mlp())
    cut = statistics(model, images)["2"].sort().values[3].item()
    assert left(model, prune(model, images, threshold=cut, layers=["2"]), images)["2"] == 7


def test_threshold_by_layer_is_in_proportion():
    model, images = mlp(), images_for(mlp())
    scores = statistics(model, images)
    average = torch.cat([*scores.values()]).mean()
    after = left(model, quiet(model, images, threshold=0.3, scope="layer"), images)
    cuts = {name: 0.3 * score.mean() / average for name, score in scores.items()}
    assert after == {name: max(1, int((score >= cuts[name]).sum())) for name, score in scores.items()}
    scaled = copy.deepcopy(model)
    scaled[0].weight.data.mul_(100)
    scaled[0].bias.data.mul_(100)
    scaled[2].weight.data.div_(100)
    by_layer = [left(one, quiet(one, images, sparsity=0.5, scope="layer"), images) for one in (model, scaled)]
    assert by_layer[0] == by_layer[1]


def test_random_neurons_are_as_many_and_others():
    model, images = mlp(), images_for(mlp())
    by_mean, at_random = (quiet(model, images, threshold=0.3, statistic=one) for one in ("mean", "random"))
    assert left(model, by_mean, images) == left(model, at_random, images)
    runs = [prune(model, images, sparsity=0.5, statistic="random", seed=seed)[0].weight for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and (runs[0].shape != runs[2].shape or not torch.equal(runs[0], runs[2]))


def masked(model, images, fold, **setting):
    """The network with all its neurons, in which nothing reads those that `prune` removes."""
    removal, _ = activation_pruning._choose(model, images, **setting)
    twin = copy.deepcopy(model)
    for group in removal.groups:
        for one in group.consumers:
            layer = twin.get_submodule(one.name)
            places = one.inputs[removal.removed[group.name]].flatten()
            taken = layer.weight.data[:, places].clone()
            layer.weight.data[:, places] = 0
            if fold:
                layer.bias.data += (
                    taken.flatten(2).sum(2) @ removal.means[one.name][places].float()
                    if (taken.dim() > 2)
                    else taken @ removal.means[one.name][places].float()
                )
    return twin


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("setting", [{"sparsity": 0.5}, {"threshold": 0.4}, {"sparsity": 1.0}], ids=str)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_masking_is_removing(make, setting, fold):
    model = make()
    images = images_for(model)
    expected = masked(model, images, fold, **setting)(images)
    assert torch.allclose(quiet(model, images, fold=fold, **setting)(images), expected, atol=1e-5)


def constant(model, names):
    """Make every second neuron of some layers constant, each at a value of its own."""
    for name in names:
        layer = model.get_submodule(name)
        layer.weight.data[::2] = 0
        layer.bias.data[::2] = torch.linspace(0.5, 2, len(layer.bias[::2]))
    return model


def test_constant_neurons_go_without_a_trace():
    model = constant(mlp(), ["0", "2"])
    images = images_for(model)
    pruned = prune(model, images, sparsity=0.5, statistic="std")
    assert left(model, pruned, images) == {"0": 3, "2": 5}
    assert torch.allclose(pruned(images), model(images), atol=1e-6)
    assert not torch.allclose(prune(model, images, sparsity=0.5, statistic="std", fold=False)(images), model(images))


def test_constant_channels_go_through_batch_norm_pooling_and_flatten():
    model = convolutional()
    model[0] = nn.Conv2d(1, 5, 3)
    constant(model, ["0", "3", "7"])
    model[1].running_var.fill_(1)
    images = images_for(model)
    for statistic in ("std", "variance"):
        pruned = prune(model, images, sparsity=0.5, statistic=statistic, scope="layer")
        assert left(model, pruned, images) == {"0": 3, "3": 3, "7": 3}  # round(2.5) is 2, round(3.5) is 4
        assert torch.allclose(pruned(images), model(images), atol=1e-5)


def test_folding_gives_a_bias_where_there_is_none():
    model = nn.Sequential(nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 3, bias=False))
    constant(model, ["0"])
    images = images_for(model)
    pruned = prune(model, images, sparsity=0.5, statistic="std")
    assert pruned[2].bias.requires_grad and torch.allclose(pruned(images), model(images), atol=1e-6)
    assert prune(model, images, sparsity=0.5, fold=False)[2].bias is None
    assert prune(model, images, sparsity=0.0)[2].bias is None


@pytest.mark.parametrize("stride, kernel", [(1, 3), (2, 2), (2, 3)])
def test_a_mean_is_folded_into_a_transposed_convolution(stride, kernel):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 3, kernel, stride), nn.Conv2d(3, 2, 1))
    constant(model, ["0"])
    images = torch.randn(20, 1, 8, 8)
    pruned = prune(model, images, sparsity=0.5, statistic="std", layers=["0"])
    inside = (slice(None), slice(None), slice(2, 6), slice(2, 6))  # the outermost pixels see fewer taps
    expected, found = model(images)[inside], pruned(images)[inside]
    assert torch.allclose(found.mean((2, 3)), expected.mean((2, 3)), atol=1e-5)
    assert torch.allclose(found, expected, atol=1e-5) == (stride == 1)


def test_a_mean_is_folded_into_every_reader_of_a_residual_stream():
    model = residual()
    for layer, value in ((model.stem, 0.7), (model.second, 0.2)):
        layer.weight.data[1] = 0
        layer.bias.data[1] = value
    images = images_for(model)
    scores = statistics(model, images, "std")["stem"]
    assert scores.argmin() == 1
    pruned = prune(model, images, sparsity=1 / 6, statistic="std", layers=["stem"])
    assert (pruned.stem.out_features, pruned.second.out_features, pruned.norm.num_features) == (5, 5, 5)
    assert torch.allclose(pruned(images), model(images), atol=1e-5)


def test_zero_padding_folds_exactly_but_for_the_border():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    constant(model, ["0"])
    images = torch.randn(20, 1, 8, 8)
    change = (prune(model, images, sparsity=0.5, statistic="std")(images) - model(images)).abs()
    assert change[:, :, 1:-1, 1:-1].max() < 1e-5 < change.max()


def test_a_layer_keeps_its_best_neuron_and_is_named():
    model, images = mlp(), images_for(mlp())
    model[0].weight.data.mul_(1e-3)
    model[0].bias.data.mul_(1e-3)
    model[2].bias.data.abs_().add_(1)
    with pytest.warns(UserWarning, match="no neuron in layer '0'; the one with the highest") as caught:
        pruned = prune(model, images, sparsity=0.5)
    assert caught[0].filename == __file__ and left(model, pruned, images) == {"0": 1, "2": 7}
    best = statistics(model, images)["0"].argmax()
    assert torch.equal(pruned[0].weight, model[0].weight[best].unsqueeze(0))
    with pytest.warns(UserWarning, match="layer '0', '2'"):
        assert left(model, prune(model, images, threshold=1e9), images) == {"0": 1, "2": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(model, images, sparsity=0.3)
        prune(model, images, sparsity=0.5, scope="layer")


def test_only_the_layers_named_lose_neurons():
    model, images = mlp(), images_for(mlp())
    assert left(model, prune(model, images, sparsity=0.5, layers=["2"]), images) == {"0": 6, "2": 5}
    assert list(statistics(model, images, layers=["2"])) == ["2"]
    together = residual()
    pruned = prune(together, images_for(together), sparsity=0.5, layers=["second"])
    assert (pruned.stem.out_features, pruned.first.out_features) == (3, 5)


def test_fewer_images_are_fewer():
    model, images = mlp(), images_for(mlp())
    few = statistics(model, images, calibration_size=10)
    assert torch.equal(few["0"], statistics(model, images[:10])["0"])
    assert not torch.equal(few["0"], statistics(model, images)["0"])
    assert torch.equal(statistics(model, images, calibration_size=10_000)["0"], statistics(model, images)["0"])
    split = cl.data.Split(images, torch.zeros(len(images), dtype=torch.long))
    one, other = (prune(model, given, sparsity=0.5, calibration_size=20)[0].weight for given in (split, images[:20]))
    assert torch.equal(one, other)


def test_fresh_weights_keep_the_shape():
    model, images = mlp(), images_for(mlp())
    old, new, again, other = (
        prune(model, images, sparsity=0.5, fresh=fresh, seed=seed)
        for fresh, seed in ((False, 0), (True, 0), (True, 0), (True, 1))
    )
    assert [one.shape for one in old.parameters()] == [one.shape for one in new.parameters()]
    assert torch.equal(new[0].weight, again[0].weight) and not torch.equal(new[0].weight, other[0].weight)
    assert not torch.equal(new[0].weight, old[0].weight)


def test_the_model_is_left_as_it_was():
    model, images = convolutional(), images_for(convolutional())
    model.train()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    before, given, state = copy.deepcopy(model.state_dict()), images.clone(), torch.get_rng_state()
    for statistic in STATISTICS:
        pruned = quiet(model, images, sparsity=0.6, statistic=statistic, fresh=statistic == "random")
        assert pruned.training and not pruned[1].training and not pruned[3].weight.requires_grad
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert torch.equal(images, given) and torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in [*model.modules(), *pruned.modules()])
    assert all(one.grad is None for one in model.parameters())


def test_twice_is_further():
    model, images = mlp(), images_for(mlp())
    twice = prune(prune(model, images, sparsity=0.5), images, sparsity=0.5)
    assert sum(left(twice, twice, images).values()) == 4


def test_what_is_left_trains_measures_saves_and_loads():
    model, images = convolutional(), images_for(convolutional())
    pruned = prune(model, images, sparsity=0.5)
    labels = torch.arange(len(images)) % 3
    tuned = cl.train.finetune(pruned, (images, labels), steps=5, precision="fp32", bar=False)
    assert [one.shape for one in tuned.parameters()] == [one.shape for one in pruned.parameters()]
    assert not torch.equal(tuned[3].weight, pruned[3].weight)
    again = cl.storage.loads(cl.storage.dumps(tuned))
    assert torch.equal(again(images), tuned(images))
    measured = cl.measure.sizes(pruned)
    assert measured.parameters == count_parameters(pruned) < count_parameters(model)
    assert cl.measure.macs(pruned, images) < cl.measure.macs(model, images)


def test_masked_and_quantized_models_are_pruned_as_they_are():
    model, images = mlp(), images_for(mlp())
    sparse = cl.zero_pruning.prune(model, sparsity=0.5)
    pruned = prune(sparse, images, sparsity=0.3)
    assert get_mask(pruned[0]).shape == pruned[0].weight.shape and (pruned[0].weight == 0).any()
    assert torch.allclose(pruned(images), masked_plain(sparse, images)(images), atol=1e-5)
    rounded = cl.quantization.quantize(model, bits=4)
    small = prune(rounded, images, sparsity=0.3)
    assert set(small[2].weight.unique().tolist()) <= set(rounded[2].weight.unique().tolist())
    tuned = cl.train.finetune(pruned, (images, torch.arange(200) % 3), steps=3, precision="fp32", bar=False)
    assert torch.equal(get_mask(tuned[0]), get_mask(pruned[0])) and (tuned[0].weight[~get_mask(tuned[0])] == 0).all()


def masked_plain(model, images):
    return masked(cl.layers.plain(model), images, True, sparsity=0.3)


def test_a_network_pruned_by_torch():
    model, images = mlp(), images_for(mlp())
    torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    pruned = prune(model, images, sparsity=0.5)
    assert torch.allclose(pruned(images), masked(cl.layers.plain(model), images, True, sparsity=0.5)(images), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_precisions(dtype):
    model, images = mlp(), images_for(mlp())
    pruned = prune(model.to(dtype), images, sparsity=0.5)
    assert {one.dtype for one in pruned.parameters()} == {dtype}
    expected = prune(model.float(), images, sparsity=0.5)
    assert torch.allclose(pruned(images.to(dtype)).float(), expected(images), atol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_on_cuda():
    model, images = convolutional(), images_for(convolutional())
    for options in ({"sparsity": 0.5}, {"threshold": 0.3, "statistic": "random"}, {"sparsity": 0.5, "fresh": True}):
        pruned, expected = quiet(copy.deepcopy(model).cuda(), images, **options), quiet(model, images, **options)
        assert all(one.is_cuda for one in pruned.parameters())
        pairs = zip(pruned.parameters(), expected.parameters(), strict=True)
        assert all(torch.allclose(one.cpu(), other, atol=1e-4) for one, other in pairs)


def reader():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.memory = nn.Embedding(20, 8), nn.LSTM(8, 12, batch_first=True)
            self.hidden, self.head = nn.Linear(12, 9), nn.Linear(9, 3)

        def forward(self, x):
            return self.head(self.hidden(self.memory(self.embed(x))[0][:, -1]).relu())

    return Reader().eval()


FOREIGN = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5).eval(), None),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(num_classes=5).eval(), None),
    "vit": (
        lambda: torchvision.models.VisionTransformer(64, 32, 2, 2, 32, 48, num_classes=5).eval(),
        "conv_proj, .*LayerNorm.*self_attention",
    ),
    "lstm": (reader, "embed .*a Embedding.*memory .*a LSTM"),
}


@pytest.mark.parametrize("make, said", FOREIGN.values(), ids=FOREIGN.keys())
def test_networks_of_others(make, said):
    model = make()
    integers = isinstance(next(model.children()), nn.Embedding)
    images = torch.randint(0, 20, (8, 7)) if integers else torch.randn(8, 3, 64, 64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pruned = prune(model, images, sparsity=0.4, statistic="std", scope="layer")
    told = " ".join(str(one.message) for one in caught)
    assert pruned(images).isfinite().all() and count_parameters(pruned) < count_parameters(model)
    assert ("leaves alone" in told) == (said is not None)
    if said:
        assert all(part in told for part in ("activation_pruning leaves alone", said.split(" ")[0].rstrip(",")))
    assert "the model's outputs" not in told


def test_tied_layers_are_left_alone_and_reported():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
    model.extend([nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)])
    model[4].weight = model[2].weight
    images = images_for(mlp())
    with pytest.warns(UserWarning, match="leaves alone .*'2' shares its weight"):
        pruned = prune(model, images, sparsity=0.4)
    assert pruned[4].weight is pruned[2].weight and pruned[6].out_features == 3


BAD = {
    "both": ({"threshold": 0.1, "sparsity": 0.5}, "either threshold .* or sparsity .* got threshold 0.1"),
    "neither": ({}, "either threshold .* got neither"),
    "percent": ({"sparsity": 50}, r"sparsity is 50; .*0\.5, not 50"),
    "negative": ({"sparsity": -0.1}, "sparsity is -0.1"),
    "nan": ({"sparsity": math.nan}, "sparsity is nan"),
    "negative threshold": ({"threshold": -0.1}, "threshold is -0.1"),
    "infinite threshold": ({"threshold": math.inf}, "threshold is inf"),
    "text threshold": ({"threshold": "0.4"}, "threshold is '0.4'"),
    "statistic": ({"sparsity": 0.5, "statistic": "median"}, "statistic is 'median'; choose one of 'mean', 'apoz'"),
    "scope": ({"sparsity": 0.5, "scope": "all"}, "scope is 'all'"),
    "layers": ({"sparsity": 0.5, "layers": ["fc1"]}, "layers has 'fc1'; choose from 0, 2, 4"),
    "output": ({"sparsity": 0.5, "layers": ["4"]}, "'4', whose neurons cannot go: its outputs are the model's"),
    "calibration": ({"sparsity": 0.5, "calibration_size": 0}, "calibration_size is 0"),
    "fold": ({"sparsity": 0.5, "fold": "yes"}, "fold is 'yes'; give True or False"),
    "fresh": ({"sparsity": 0.5, "fresh": 1}, "fresh is 1; give True or False"),
    "seed": ({"sparsity": 0.5, "seed": -1}, "seed is -1"),
}


@pytest.mark.parametrize("options, said", BAD.values(), ids=BAD.keys())
def test_a_bad_setting_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        prune(mlp(), images_for(mlp()), **options)


BAD_IMAGES = {
    "none": (None, "images is None"),
    "no": (torch.empty(0, 8), "images is empty"),
    "shape": (torch.randn(4, 9), r"does not take images of shape \(4, 9\)|does not take images of shape"),
    "nan": (torch.full((4, 8), math.nan), "not finite"),
    "later nan": (torch.cat([torch.randn(3, 8), torch.full((1, 8), math.nan)]), "not finite"),
    "text": ("images", "images is str"),
}


@pytest.mark.parametrize("images, said", BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_bad_images_are_named(images, said):
    with pytest.raises(ValueError, match=said):
        prune(mlp(), images, sparsity=0.5)
    with pytest.raises(ValueError, match=said):
        statistics(mlp(), images)


BAD_MODELS = {
    "no layer": (lambda: nn.ReLU(), "no Linear or convolution layer"),
    "not a model": (lambda: "mlp", "model is 'mlp'; give a torch.nn.Module"),
    "meta": (lambda: nn.Sequential(nn.Linear(8, 3, device="meta")), "meta device"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), "lazy"),
}


@pytest.mark.parametrize("make, said", BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_a_model_that_cannot_be_pruned_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        prune(make(), torch.randn(4, 8), sparsity=0.5)


def test_a_model_whose_neurons_all_stay_is_copied_and_that_is_said():
    model, words = reader(), torch.randint(0, 20, (8, 7))
    model.hidden, model.head = nn.Identity(), nn.Linear(12, 3)
    with pytest.warns(UserWarning, match=r"activation_pruning leaves alone head \(.*\).*memory \(a LSTM\)"):
        small = prune(model, words, sparsity=0.5)
    assert small is not model and torch.equal(small(words), model(words))
    assert statistics(model, words) == {}


def test_nan_weights_are_refused_by_name():
    model = mlp()
    model[0].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="layer '0' has activations or weights that are not finite"):
        prune(model, images_for(model), sparsity=0.5)


def pixels(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def data_of(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return cl.data.from_tensors(torch.rand(120, *shape, generator=generator), torch.arange(120) % 3)


def drawn(model, data, **setting):
    pruned = quiet(model, data.train.images[:1000], **setting)
    return {one.name: one for one in activation_pruning.anatomy(model, pruned, setting, data)}, pruned


def test_the_anatomy_shows_what_was_measured():
    model, data = pixels(), data_of((1, 4, 4))
    scores = statistics(model, data.train.images)["1"]
    pictures, pruned = drawn(model, data, sparsity=0.5)
    assert list(pictures) == ["neurons", "layers", "gone", "kept"]
    assert np.array_equal(pictures["neurons"].values, scores.numpy())
    assert pictures["neurons"].cut == scores.sort().values[2] and pictures["neurons"].axis == "mean |activation|"
    assert pictures["layers"].labels == ("1",) and pictures["layers"].values == pytest.approx([0.5])
    order = scores.argsort()
    assert np.array_equal(pictures["gone"].values, model[1].weight.detach()[order[:3]].view(3, 4, 4).numpy())
    assert np.array_equal(pictures["kept"].values, model[1].weight.detach()[order[3:].flip(0)].view(3, 4, 4).numpy())
    assert all(one.title and one.caption for one in pictures.values())
    again = activation_pruning.anatomy(model, cl.layers.duplicate(pruned), {"sparsity": 0.5}, data)  # measured anew
    for one, other in zip(again, pictures.values(), strict=True):
        assert np.array_equal(one.values, other.values) and (one.cut, one.labels) == (other.cut, other.labels)


def test_the_cut_is_shown_where_there_is_one():
    model, data = pixels(), data_of((1, 4, 4))
    cuts = {"threshold": 0.2}, {"sparsity": 0}, {"sparsity": 0.5, "scope": "layer"}
    cuts += ({"sparsity": 0.5, "statistic": "random"}, {"threshold": 0.2, "statistic": "random"})
    assert [drawn(model, data, **one)[0]["neurons"].cut for one in cuts] == [0.2, None, None, None, None]


def test_first_layers_that_see_no_pixels_are_not_drawn_as_such():
    model, data = mlp(), data_of((8,))
    assert list(drawn(model, data, sparsity=0.5)[0]) == ["neurons", "layers"]
    model, data = convolutional(), data_of((1, 8, 8))
    pictures, _ = drawn(model, data, sparsity=0.5)
    assert pictures["gone"].values.shape[1:] == pictures["kept"].values.shape[1:] == (3, 3)
    assert list(drawn(model, data, sparsity=0.5, layers=["7"])[0]) == ["neurons", "layers"]


def test_both_ends_of_every_control_work():
    model, data, technique = pixels(), data_of((1, 4, 4)), cl.techniques.get("activation_pruning")
    assert technique.calibration == 1000
    for control in technique.controls:
        for value in control.choices or (control.low, control.high, control.default):
            value = bool(value) if control.name == "fold" else value
            setting = {control.name: value} if control.alternative else {"threshold": 0.4, control.name: value}
            for laid_over in ({}, *technique.fair_controls.values()):
                assert drawn(model, data, **{**setting, **laid_over})[1](data.test.images).isfinite().all()


def test_a_sweep_reaches_it():
    model, data = pixels(), data_of((1, 4, 4))
    grid = [{"threshold": 0.2}, {"sparsity": 0.5, "statistic": "variance"}, {"sparsity": 0.5, "fresh": True}]
    runs = list(cl.sweep.run("activation_pruning", model, data, grid, steps=2, journal=False, bar=False))
    assert [run.stage for run in runs] == ["retrained"] * 3 and runs[1].parameters == count_parameters(
        prune(model, data.train.images, sparsity=0.5)
    )
