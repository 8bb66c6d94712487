"""Zero pruning: exact counts, torch as the oracle, models of many makes, the gradual run, what the lab is told."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import compresslab as cl
from compresslab.techniques import zero_pruning
from compresslab.techniques.zero_pruning import cubic_sparsity, gradual, prune


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))


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
    )


def weights_of(model):
    return {name: module.weight.detach() for name, module in cl.layers.weight_layers(model).items()}


def zeros(model):
    return sum(int((weight == 0).sum()) for weight in weights_of(model).values())


def total(model):
    return sum(weight.numel() for weight in weights_of(model).values())


def masks(model):
    """Whether each weight is not zero, all layers end to end."""
    return torch.cat([(weight != 0).flatten() for weight in weights_of(model).values()])


def mask_of(layer):
    mask = cl.layers.get_mask(layer)
    return torch.ones_like(layer.weight, dtype=torch.bool) if mask is None else mask


def quiet(*arguments, **options):
    """`prune` without the warnings about emptied layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return prune(*arguments, **options)


def tiny_data(seed=0, count=120):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 8, generator=generator)
    return cl.data.from_tensors(images, (images @ torch.randn(8, 3, generator=generator)).argmax(1), seed=0)


SPARSITIES = [0, 1e-9, 0.1, 0.25, 1 / 3, 0.5, 0.77, 0.9, 0.99, 1]


@pytest.mark.parametrize("criterion", zero_pruning.CRITERIA)
@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("make", [small, convolutional], ids=["linear", "convolutional"])
def test_exactly_as_many_are_zero_as_asked_for(make, sparsity, criterion):
    model = make()
    assert zeros(quiet(model, sparsity, criterion=criterion)) == round(sparsity * total(model))
    by_layer = weights_of(quiet(model, sparsity, scope="layer", criterion=criterion))
    assert all(int((weight == 0).sum()) == round(sparsity * weight.numel()) for weight in by_layer.values())


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("make", [small, convolutional], ids=["linear", "convolutional"])
def test_the_same_masks_as_torch(make, sparsity):
    model, reference = make(), make()
    modules = [(module, "weight") for module in cl.layers.weight_layers(reference).values()]
    torch_prune.global_unstructured(modules, torch_prune.L1Unstructured, amount=float(sparsity))
    expected = torch.cat([module.weight_mask.flatten().bool() for module, _ in modules])
    assert torch.equal(masks(quiet(model, sparsity)), expected)


def test_the_same_masks_as_torch_layer_by_layer():
    model, reference = small(), small()
    for module in cl.layers.weight_layers(reference).values():
        torch_prune.l1_unstructured(module, "weight", 0.45)
    pruned = weights_of(prune(model, 0.45, scope="layer"))
    assert all(torch.equal(pruned[name], weight) for name, weight in weights_of(reference).items())


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(
        st.integers(-3, 3) | st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40
    ),
    dtypes=st.lists(
        st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]), min_size=1, max_size=3
    ),
    sparsity=st.floats(0, 1),
)
def test_ties_and_any_precision(numbers, dtypes, sparsity):
    """Exact whatever the weights, with the sorted copy of a stable sort as the oracle."""
    layers = [nn.Linear(len(numbers), 1, dtype=dtype) for dtype in dtypes]
    for layer in layers:
        limit = torch.finfo(layer.weight.dtype).max
        layer.weight.data.copy_(torch.tensor([numbers], dtype=torch.float64).clamp(-limit, limit))
    model = nn.ModuleList(layers)
    values = torch.cat([layer.weight.detach().double().flatten() for layer in layers])
    expected = torch.ones(len(values), dtype=torch.bool)
    expected[values.abs().sort(stable=True).indices[: round(sparsity * len(values))]] = False
    pruned = quiet(model, sparsity)
    kept = [mask_of(layer).flatten() for layer in pruned]
    assert torch.equal(torch.cat(kept), expected)


@pytest.mark.parametrize("value", [0.0, 0.5, -2.0], ids=str)
def test_constant_weights_go_in_the_order_of_their_indices(value):
    model = small()
    for weight in weights_of(model).values():
        weight.fill_(value)
    mask = torch.cat([cl.layers.get_mask(module).flatten() for module in list(quiet(model, 0.99))[::2]])
    count = round(0.99 * total(model))
    assert not mask[:count].any() and mask[count:].all()


def test_a_layer_larger_than_a_chunk_matches_a_sort():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(700, 800, bias=False), nn.Linear(900, 500, bias=False).double())
    model[0].weight.data.mul_(100).round_().div_(100)  # thousands of ties at every value
    values = torch.cat([weight.double().flatten() for weight in weights_of(model).values()])
    expected = torch.ones(len(values), dtype=torch.bool)
    expected[values.abs().sort(stable=True).indices[: round(0.7 * len(values))]] = False
    assert torch.equal(torch.cat([cl.layers.get_mask(layer).flatten() for layer in prune(model, 0.7)]), expected)


def test_infinite_weights_are_the_largest_and_still_go_at_the_end():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight.data.copy_(torch.tensor([[math.inf, 1.0], [-math.inf, 2.0]]))
    assert prune(model, 0.5)[0].weight.tolist() == [[math.inf, 0], [-math.inf, 0]]
    assert quiet(model, 1)[0].weight.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    "options", [{"sparsity": 0}, {"threshold": 0}, {"sparsity": 0, "criterion": "random"}], ids=str
)
@pytest.mark.parametrize("scope", zero_pruning.SCOPES)
def test_nothing_asked_for_leaves_the_outputs_equal(options, scope):
    model, images = convolutional().eval(), torch.randn(2, 1, 7, 6)
    model[0].weight.data[0] = 0
    assert torch.equal(prune(model, scope=scope, **options)(images), model(images))


@pytest.mark.parametrize("kind", [np.float32, np.float64, float])
def test_numpy_numbers_are_numbers(kind):
    assert zeros(prune(small(), kind(0.5))) == round(0.5 * total(small()))
    assert zeros(prune(small(), threshold=kind(0.25))) > 0


def test_the_model_is_left_as_it_was():
    model = small().train()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    handle = model[0].register_forward_hook(lambda *_: None)
    model(torch.randn(4, 8)).sum().backward()
    state, grads = copy.deepcopy(model.state_dict()), [w.grad for w in model.parameters()]
    identities, modes = [id(w) for w in model.parameters()], [module.training for module in model.modules()]
    random = torch.get_rng_state()
    for criterion in zero_pruning.CRITERIA:
        pruned = quiet(model, 1, criterion=criterion)
        assert pruned[2].training is False and pruned[0].training is True
        assert pruned[0].parametrizations.weight.original.requires_grad is False
    assert torch.equal(torch.get_rng_state(), random)
    assert [id(w) for w in model.parameters()] == identities
    assert [module.training for module in model.modules()] == modes
    assert all(one is other for one, other in zip((w.grad for w in model.parameters()), grads, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert handle.id in model[0]._forward_hooks


def test_biases_and_norms_are_never_pruned():
    model = convolutional()
    pruned = dict(cl.layers.effective_state(quiet(model, 1)))
    assert all(torch.equal(pruned[name], value) for name, value in model.state_dict().items() if "bias" in name)
    assert torch.equal(pruned["1.weight"], model[1].weight)


def test_only_the_named_layers_are_pruned_and_counted():
    model = small()
    pruned = prune(model, 0.5, layers=["2"])
    assert zeros(pruned) == round(0.5 * model[2].weight.numel()) == int((pruned[2].weight == 0).sum())
    assert type(pruned[0]) is nn.Linear


@pytest.mark.parametrize("scope", zero_pruning.SCOPES)
def test_random_removes_as_many_and_repeats_with_its_seed(scope):
    model = small()
    one, same, other = (prune(model, 0.5, scope=scope, criterion="random", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(masks(one), masks(same)) and not torch.equal(masks(one), masks(other))
    assert not torch.equal(masks(one), masks(prune(model, 0.5, scope=scope)))


def test_random_is_uniform():
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 5, bias=False))
    kept = torch.stack([masks(prune(model, 0.5, criterion="random", seed=seed)).float() for seed in range(200)])
    assert (kept.mean(0) - 0.5).abs().max() < 0.17  # 4.8 standard deviations of 200 coin flips
    layer = kept[:, :100].mean(1)
    assert layer.std() > 0.01  # the scope is global: the share of a layer is left to chance too


def test_random_counts_the_zeros_there_are():
    bare = cl.layers.plain(prune(small(), 0.5))
    assert zeros(prune(bare, 0.75, criterion="random")) == round(0.75 * total(bare))


@pytest.mark.parametrize("threshold", [0, 1e-4, 0.05, 0.2, 5])
def test_threshold_removes_what_is_strictly_smaller(threshold):
    model = convolutional()
    pruned = weights_of(quiet(model, threshold=threshold))
    for name, weight in weights_of(model).items():
        assert torch.equal(pruned[name], weight * (weight.abs() >= threshold))


def test_a_weight_equal_to_the_threshold_stays():
    model = nn.Sequential(nn.Linear(4, 1))
    model[0].weight.data.copy_(torch.tensor([[0.25, -0.25, 0.125, -0.5]]))
    assert prune(model, threshold=0.25)[0].weight.tolist() == [[0.25, -0.25, 0, -0.5]]


def test_threshold_by_layer_is_in_proportion_to_the_spread():
    model = small()
    model[2].weight.data.mul_(10)
    weights = weights_of(model)
    spread = torch.cat([weight.flatten() for weight in weights.values()]).std(correction=0)
    pruned = weights_of(prune(model, threshold=0.5, scope="layer"))
    for name, weight in weights.items():
        assert torch.equal(pruned[name] != 0, weight.abs() >= 0.5 * weight.std(correction=0) / spread)


def test_threshold_by_layer_is_the_threshold_where_there_is_one_layer():
    model = nn.Sequential(nn.Linear(20, 20))
    assert torch.equal(masks(prune(model, threshold=0.1, scope="layer")), masks(prune(model, threshold=0.1)))


def test_threshold_by_layer_with_no_spread_at_all():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for weight in weights_of(model).values():
        weight.fill_(0.5)
    assert zeros(prune(model, threshold=0.5, scope="layer")) == 0
    assert zeros(quiet(model, threshold=0.6, scope="layer")) == 8


@pytest.mark.parametrize("scope", zero_pruning.SCOPES)
def test_random_with_a_threshold_removes_as_many_as_magnitude(scope):
    model = small()
    chosen = prune(model, threshold=0.15, scope=scope)
    control = prune(model, threshold=0.15, scope=scope, criterion="random")
    assert zeros(control) == zeros(chosen) and not torch.equal(masks(control), masks(chosen))
    if scope == "layer":
        pairs = zip(weights_of(chosen).values(), weights_of(control).values(), strict=True)
        assert all(one.count_nonzero() == other.count_nonzero() for one, other in pairs)


@pytest.mark.parametrize("scope", zero_pruning.SCOPES)
@pytest.mark.parametrize("criterion", zero_pruning.CRITERIA)
def test_pruning_again_counts_from_what_is_there(scope, criterion):
    first = prune(small(), 0.5, scope=scope)
    again = prune(first, 0.75, scope=scope, criterion=criterion)
    assert (masks(again) <= masks(first)).all()
    expected = prune(small(), 0.75, scope=scope)
    assert zeros(again) == zeros(expected)
    if criterion == "magnitude":
        assert torch.equal(masks(again), masks(expected))


def test_asking_for_less_than_is_pruned_keeps_it_and_says_so():
    first = quiet(small(), 0.9)
    with pytest.warns(UserWarning, match=r"sparsity is 0\.5, but the model is pruned to 0\.8986 "):
        again = prune(first, 0.5)
    assert torch.equal(masks(again), masks(first))
    with pytest.warns(UserWarning, match=r"layer '\d' is pruned to"):
        prune(first, 0.5, scope="layer")


def test_a_pruned_layer_stays_pruned_when_another_is_chosen():
    again = prune(prune(small(), 0.5, layers=["0"]), 0.5, layers=["2"])
    assert [int((weight == 0).sum()) for weight in weights_of(again).values()] == [24, 30, 0]


def test_a_threshold_below_an_earlier_one_changes_nothing():
    first = prune(small(), threshold=0.2)
    for threshold in (0, 0.1):
        assert torch.equal(masks(prune(first, threshold=threshold)), masks(first))


def test_masked_weights_go_before_weights_that_happen_to_be_zero():
    model = nn.Sequential(nn.Linear(4, 1), nn.Linear(4, 1))
    for weight in weights_of(model).values():
        weight.fill_(1)
    model[0].weight.data[0, 1:] = 0
    model[1].weight.data[0, 3] = 0.5
    first = prune(model, 0.25, layers=["1"])
    again = prune(first, 0.25)
    assert [cl.layers.get_mask(layer).tolist() for layer in again] == [[[1, 0, 1, 1]], [[1, 1, 1, 0]]]


def test_a_model_pruned_by_torch_goes_on_from_there():
    model = small()
    modules = [(module, "weight") for module in cl.layers.weight_layers(model).values()]
    torch_prune.global_unstructured(modules, torch_prune.L1Unstructured, amount=0.5)
    model(torch.randn(2, 8))  # leaves tensors with a history, which deepcopy refuses
    again = prune(model, 0.75)
    assert torch.equal(masks(again), masks(prune(small(), 0.75)))
    assert hasattr(model[0], "weight_orig") and not hasattr(again[0], "weight_orig")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.block = nn.LSTM(8, 8, batch_first=True)
        self.output = nn.Linear(8, 11)
        self.output.weight = self.embedding.weight

    def forward(self, tokens):
        return self.output(self.block(self.embedding(tokens))[0]).flatten(0, 1)


class SharedLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.two.weight = self.one.weight
        self.same = self.one

    def forward(self, images):
        return self.three(self.same(self.two(self.one(images))))


def test_a_weight_tied_to_an_embedding_is_pruned_in_both_and_stays_tied():
    torch.manual_seed(0)
    model, tokens = Tied(), torch.randint(0, 11, (2, 5))
    pruned = copy.deepcopy(prune(model, 0.5, layers=["output"]))
    for _ in range(2):
        optimizer = torch.optim.Adam(pruned.parameters(), lr=0.1)
        pruned(tokens).square().sum().backward()
        optimizer.step()
        assert zeros(pruned) == 44
        assert torch.equal(pruned.embedding.weight, pruned.output.weight)
        originals = [layer.parametrizations.weight.original for layer in (pruned.embedding, pruned.output)]
        assert originals[0] is originals[1]
    assert cl.layers.count_parameters(pruned) == sum(weight.numel() for weight in model.parameters())


def test_shared_weights_count_once():
    torch.manual_seed(0)
    model = SharedLayers()
    pruned = prune(model, 0.5)
    assert int((pruned.one.weight == 0).sum() + (pruned.three.weight == 0).sum()) == round(0.5 * (16 + 8))
    assert torch.equal(pruned.one.weight, pruned.two.weight) and pruned.same is pruned.one
    by_name = prune(model, 0.5, layers=["two"])
    assert int((by_name.one.weight == 0).sum()) == 8 and type(by_name.three) is nn.Linear
    again = prune(pruned, 0.75)
    assert int((again.one.weight == 0).sum() + (again.three.weight == 0).sum()) == 18


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_transformer_runs_pruned(training):
    """Also on the fast path of evaluation, which reads the weights itself."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = prune(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), 0.6).train(training)
    assert {name.split(".", 2)[2] for name in weights_of(model)} == {"self_attn.out_proj", "linear1", "linear2"}
    prunable = sum(weight.value.numel() for weight in cl.layers.distinct_weights(model))
    assert prunable == total(model) + 2 * 3 * 8 * 8  # and the input projections
    assert sum(int((weight.value == 0).sum()) for weight in cl.layers.distinct_weights(model)) == round(0.6 * prunable)
    images = torch.randn(2, 5, 8)
    with torch.no_grad():
        assert torch.allclose(model(images), cl.layers.plain(model).train()(images), atol=1e-6)


@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, parametrizations.spectral_norm], ids=["weight", "spectral"]
)
def test_normalised_weights_are_ranked_as_they_act(norm):
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Linear(8, 6)), norm(nn.Linear(6, 5))).eval()
    values = torch.cat([weight.abs().flatten() for weight in weights_of(model).values()])
    assert torch.equal(masks(prune(model, 0.5)), values > values.kthvalue(39).values)


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64], ids=str)
def test_other_precisions(dtype):
    model = small().to(dtype)
    pruned = prune(model, 0.5)
    assert zeros(pruned) == round(0.5 * total(model)) and pruned[0].weight.dtype == dtype
    values = torch.cat([weight.abs().double().flatten() for weight in weights_of(model).values()])
    assert values[masks(pruned)].min() >= values[~masks(pruned)].max()


def test_channels_last_weights_keep_their_layout_and_their_order():
    model = convolutional()[:1].to(memory_format=torch.channels_last)
    pruned = prune(model, 0.5)
    assert torch.equal(pruned[0].weight, prune(convolutional()[:1], 0.5)[0].weight)
    assert pruned[0].parametrizations.weight.original.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_on_cuda():
    model = small()
    for options in ({"sparsity": 0.7}, {"sparsity": 0.7, "criterion": "random"}, {"threshold": 0.1, "scope": "layer"}):
        pruned = prune(small().cuda(), **options)
        assert pruned[0].weight.is_cuda and torch.equal(masks(pruned).cpu(), masks(prune(model, **options)))


def test_an_emptied_layer_is_named():
    model = small()
    model[2].weight.data.mul_(1e-6)
    with pytest.warns(UserWarning, match="no weight in layer '2'") as caught:
        pruned = prune(model, 0.6)
    assert caught[0].filename == __file__ and "'0'" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(pruned, 0.7)
        prune(model, 0.5, layers=["0", "4"])


def test_every_emptied_layer_is_named():
    with pytest.warns(UserWarning, match="'0', '2', '4'"):
        prune(small(), 1)


BAD = {
    "percent": ({"sparsity": 90}, r"sparsity is 90; .*0\.9, not 90"),
    "negative": ({"sparsity": -0.1}, "sparsity is -0.1"),
    "nan": ({"sparsity": math.nan}, "sparsity is nan"),
    "text": ({"sparsity": "0.9"}, "sparsity is '0.9'"),
    "bool": ({"sparsity": True}, "sparsity is True"),
    "above 1": ({"sparsity": 1.0000001}, "sparsity is 1.0000001"),
    "both": ({"sparsity": 0.9, "threshold": 0.1}, "either sparsity .* or threshold"),
    "neither": ({}, "either sparsity .* or threshold"),
    "negative threshold": ({"threshold": -0.1}, "threshold is -0.1"),
    "nan threshold": ({"threshold": math.nan}, "threshold is nan"),
    "infinite threshold": ({"threshold": math.inf}, "threshold is inf"),
    "text threshold": ({"threshold": "0.1"}, "threshold is '0.1'"),
    "scope": ({"sparsity": 0.5, "scope": "Global"}, "scope is 'Global'; choose one of 'global', 'layer'"),
    "criterion": ({"sparsity": 0.5, "criterion": "l1"}, "criterion is 'l1'; choose one of 'magnitude', 'random'"),
    "layers": ({"sparsity": 0.5, "layers": ["fc1"]}, "layers has 'fc1'; choose from 0, 2, 4"),
    "layer name alone": ({"sparsity": 0.5, "layers": "0"}, "list of layer names"),
    "no layers": ({"sparsity": 0.5, "layers": []}, "layers is empty; give names from 0, 2, 4"),
    "seed": ({"sparsity": 0.5, "seed": -1}, "seed is -1"),
    "list": ({"sparsity": [0.5]}, r"sparsity is \[0.5\]"),
}


@pytest.mark.parametrize("options, said", BAD.values(), ids=BAD.keys())
def test_a_bad_setting_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        prune(small(), **options)


BAD_MODELS = {
    "nothing to prune": (lambda: nn.Sequential(nn.ReLU(), nn.Embedding(3, 2)), "those are Linear.*Embedding"),
    "not a model": (lambda: "lenet_5", "model is 'lenet_5'; give a torch.nn.Module"),
    "a class": (lambda: nn.Linear, "give a torch.nn.Module"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(3, 3)), "lazy"),
    "meta": (lambda: nn.Sequential(nn.Linear(3, 2, device="meta")), "meta device"),
}


@pytest.mark.parametrize("make, said", BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_a_model_that_cannot_be_pruned_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        prune(make(), 0.5)


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"threshold": 0.1}, {"sparsity": 0.5, "criterion": "random"}])
def test_nan_weights_are_refused_by_name(options):
    model = small()
    model[2].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="layer '2' has weights that are nan"):
        prune(model, **options)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_one_weight_and_none_at_all():
    assert zeros(prune(nn.Linear(1, 1), 0.5)) == 0  # round(0.5) is 0
    assert zeros(quiet(nn.Linear(1, 1), 0.51)) == 1
    assert prune(nn.Linear(0, 3), 0.5)(torch.ones(2, 0)).shape == (2, 3)


def test_finetuning_keeps_the_zeros():
    model = prune(small(), 0.8)
    tuned = cl.train.finetune(model, tiny_data().train, steps=5, seed=0, precision="fp32", bar=False)
    assert torch.equal(masks(tuned), masks(model))
    assert not torch.equal(tuned[0].weight, model[0].weight)


def test_cubic_sparsity_matches_the_paper():
    assert [cubic_sparsity(t, 0.9) for t in (0, 1)] == [0, 0.9]
    assert cubic_sparsity(0.5, 0.8) == pytest.approx(0.8 - 0.8 / 8)
    assert cubic_sparsity(0.5, 0.8, initial=0.4) == pytest.approx(0.8 - 0.4 / 8)
    with pytest.raises(ValueError, match="progress is 1.5"):
        cubic_sparsity(1.5, 0.9)


GRADUAL = {"precision": "fp32", "bar": False}


@pytest.mark.filterwarnings("ignore:pruning leaves no weight")
def test_gradual_yields_every_level_measured():
    model, data, levels = small(), tiny_data(), (0, 0.3, 0.6, 0.9)
    before = copy.deepcopy(model.state_dict())
    snapshots = list(gradual(model, data, levels, steps=40, interval=4, **GRADUAL))
    assert tuple(snapshot.sparsity for snapshot in snapshots) == levels
    assert [zeros(snapshot.model) for snapshot in snapshots] == [round(s * total(model)) for s in levels]
    assert [snapshot.step for snapshot in snapshots] == sorted(snapshot.step for snapshot in snapshots)
    assert (snapshots[0].step, snapshots[-1].step, snapshots[-1].steps) == (0, 40, 40)
    assert all(
        s.accuracy == cl.train.accuracy_of(cl.train.evaluate(s.model, data.validation), data.validation.labels)
        for s in snapshots
    )
    assert torch.equal(snapshots[0].model[0].weight, model[0].weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradual_prunes_little_by_little_on_the_way_to_a_single_level():
    plan = zero_pruning._plan((0.9,), 0.0, 100, 10)
    sparsities, steps, is_level = zip(*plan, strict=True)
    assert sparsities == pytest.approx([cubic_sparsity(part / 10, 0.9) for part in range(1, 11)])
    assert steps == (10,) * 10 and is_level == (False,) * 9 + (True,)


def test_momentum_from_before_a_cut_hides_nothing_under_the_mask_of_a_snapshot():
    *_, last = gradual(small(), tiny_data(), (0.3, 0.8), steps=12, interval=3, **GRADUAL)
    for layer in (last.model[0], last.model[2]):
        original = layer.parametrizations.weight.original
        assert (original[~cl.layers.get_mask(layer)] == 0).all()


def test_gradual_passes_its_options_on():
    options = {"scope": "layer", "criterion": "random", "layers": ["0", "2"], "seed": 5}
    (last,) = gradual(small(), tiny_data(), (0.5,), steps=4, interval=2, lr=0.0, **options, **GRADUAL)
    assert torch.equal(
        masks(last.model), masks(prune(prune(small(), cubic_sparsity(0.5, 0.5), **options), 0.5, **options))
    )


def test_gradual_prunes_and_measures_on_a_model_pruned_enough():
    (only,) = gradual(prune(small(), 0.5), tiny_data(), (0.5,), steps=4, **GRADUAL)
    assert (only.sparsity, only.step, zeros(only.model)) == (0.5, 4, 69)


def test_gradual_repeats_with_its_seed_and_leaves_the_random_state():
    runs, random = [], torch.get_rng_state()
    for seed in (0, 0, 1):
        *_, last = gradual(small(), tiny_data(), (0.5, 0.8), steps=12, interval=3, seed=seed, **GRADUAL)
        runs.append(last.model[0].weight)
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert torch.equal(torch.get_rng_state(), random)


def test_snapshots_are_independent_and_closing_cancels():
    run = gradual(small().eval(), tiny_data(), (0.2, 0.5, 0.8), steps=12, interval=3, **GRADUAL)
    first = next(run)
    weight = first.model[0].weight.detach().clone()
    second = next(run)
    assert torch.equal(first.model[0].weight, weight) and second.model is not first.model
    assert not second.model.training
    run.close()
    assert list(run) == []


@pytest.mark.filterwarnings("ignore:pruning leaves no weight")
def test_gradual_goes_on_from_a_pruned_model():
    model = prune(small(), 0.5)
    levels = [snapshot.sparsity for snapshot in gradual(model, tiny_data(), steps=9, interval=3, **GRADUAL)]
    assert levels == [level for level in zero_pruning.LEVELS if level > 0.5]
    with pytest.raises(ValueError, match="levels starts at 0.2.*pruned to 0.5"):
        gradual(model, tiny_data(), (0.2, 0.9))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"levels": (0.9, 0.5)}, "rising"),
        ({"levels": (0.5, 0.5)}, "rising"),
        ({"levels": ()}, "one or more"),
        ({"levels": (50, 90)}, "levels is 50"),
        ({"steps": 0}, "steps is 0"),
        ({"interval": 0}, "interval is 0"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"scope": "all"}, "scope is 'all'"),
    ],
)
def test_gradual_refuses_at_once(options, said):
    with pytest.raises(ValueError, match=said):
        gradual(small(), tiny_data(), **options)


def pictures(model, **setting):
    return {picture.name: picture for picture in zero_pruning.anatomy(model, quiet(model, **setting), setting)}


def test_the_histogram_is_cut_between_what_went_and_what_stayed():
    model = small()
    values = torch.cat([weight.abs().flatten() for weight in weights_of(model).values()])
    drawn = pictures(model, sparsity=0.7)["weights"]
    assert drawn.kind == "histogram" and np.array_equal(drawn.values, values.numpy())
    assert drawn.cut == values[~masks(prune(model, 0.7))].max()
    assert pictures(model, threshold=0.2)["weights"].cut == 0.2
    assert pictures(model, sparsity=0.7, criterion="random")["weights"].cut is None
    assert pictures(model, sparsity=0.7, scope="layer")["weights"].cut is None
    assert pictures(model, sparsity=0)["weights"].cut is None


def test_the_bars_are_the_sparsity_of_each_layer():
    drawn = pictures(small(), sparsity=0.5, scope="layer")["layers"]
    assert drawn.labels == ("0", "2", "4") and drawn.values == pytest.approx([0.5] * 3)
    assert pictures(small(), sparsity=0.5, layers=["2"])["layers"].labels == ("2",)


FIRST_LAYERS = {
    "pixels": (lambda: nn.Linear(784, 30), "images", (25, 28, 28)),
    "few neurons": (lambda: nn.Linear(16, 3), "images", (3, 4, 4)),
    "not square": (lambda: nn.Linear(8, 3), "matrix", (3, 8)),
    "conv1d": (lambda: nn.Conv1d(2, 5, 3), "matrix", (5, 6)),
    "conv2d": (lambda: nn.Conv2d(3, 5, 3), "images", (5, 3, 3)),
    "one by one": (lambda: nn.Conv2d(3, 5, 1), "matrix", (5, 3)),
    "many filters": (lambda: nn.Conv2d(3, 96, 5), "images", (64, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 5, (2, 3, 4)), "images", (5, 3, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 7, 4), "images", (7, 4, 4)),
}


@pytest.mark.parametrize("make, kind, shape", FIRST_LAYERS.values(), ids=FIRST_LAYERS.keys())
@pytest.mark.parametrize("sparsity", [0, 0.5, 1])
def test_the_first_mask_is_drawn_as_what_it_looks_at(make, kind, shape, sparsity):
    drawn = pictures(nn.Sequential(make()), sparsity=sparsity)["mask"]
    assert (drawn.kind, drawn.values.shape) == (kind, shape)
    assert drawn.values.min() >= 0 and drawn.values.max() <= 1
    if sparsity != 0.5:
        assert (drawn.values == 1 - sparsity).all()
    assert drawn.title and drawn.caption


def test_a_large_model_is_drawn_from_a_sample():
    drawn = pictures(nn.Sequential(nn.Linear(2000, 1200)), sparsity=0.5)["weights"]
    assert 400_000 < len(drawn.values) <= 1_000_000 and 0 < drawn.cut < 0.03


def test_both_ends_of_every_control_work():
    model, technique = small(), cl.techniques.get("zero_pruning")
    for control in technique.controls:
        for value in control.choices or (control.low, control.high, control.default):
            setting = {control.name: value} if control.alternative else {"sparsity": 0.5, control.name: value}
            for laid_over in ({}, *technique.fair_controls.values()):
                assert zeros(quiet(model, **{**setting, **laid_over})) >= 0
                assert len(technique.anatomy(model, quiet(model, **setting), setting)) == 3


def test_what_is_left_alone_is_reported():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    with pytest.warns(UserWarning, match=r"zero_pruning leaves alone 0 \(Embedding weights\)"):
        cl.zero_pruning.prune(model, sparsity=0.5)
