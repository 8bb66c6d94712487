"""Looking into a model, and masks that keep zeros zero, on every kind of module that holds a weight."""

import collections
import contextlib
import copy
import functools
import math
import threading
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune

import compresslab as cl
from compresslab.weights import masks
from compresslab.weights.masks import Mask


def small(seed=0):
    """Two dense layers on 6 inputs."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))


def some_mask(weight, keep=0.5, seed=0):
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < keep


def masked(model=None, keep=0.5):
    model = small() if model is None else model
    for module in cl.layers.weight_layers(model).values():
        cl.layers.set_mask(module, some_mask(module.weight, keep))
    return model


class Tied(nn.Module):
    """A language model whose embedding and output layer share one weight."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4)
        self.output = nn.Linear(4, 7)
        self.output.weight = self.embedding.weight

    def forward(self, tokens):
        return self.output(self.inner(self.embedding(tokens)))


class Twice(nn.Module):
    """One layer under two names, and a third that shares its weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first
        self.other = nn.Linear(3, 3)
        self.other.weight = self.first.weight

    def forward(self, images):
        return self.other(self.again(self.first(images)))


def train_steps(model, images, optimizer=None, steps=3):
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()


KINDS = {
    "Linear": lambda: nn.Linear(3, 2),
    "Conv1d": lambda: nn.Conv1d(2, 3, 3),
    "Conv2d": lambda: nn.Conv2d(2, 3, 3),
    "Conv3d": lambda: nn.Conv3d(2, 3, 3),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(2, 3, 3),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(2, 3, 3),
    "ConvTranspose3d": lambda: nn.ConvTranspose3d(2, 3, 3),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
def test_weight_layers_finds_each_kind(make):
    model = nn.Sequential(nn.ReLU(), nn.Sequential(make()), nn.BatchNorm1d(3))
    assert list(cl.layers.weight_layers(model)) == ["1.0"]
    assert list(cl.layers.weight_layers(make())) == [""]


def test_weight_layers_come_in_module_order_whatever_order_is_asked_for():
    model = small()
    assert list(cl.layers.weight_layers(model, ["3", "0"])) == ["0", "3"]
    assert cl.layers.weight_layers(model)["3"] is model[3]


def test_a_module_used_twice_is_one_layer_found_by_either_name():
    model = Twice()
    assert list(cl.layers.weight_layers(model)) == ["first", "other"]
    assert list(cl.layers.weight_layers(model, ["again"])) == ["first"]


def test_parametrizations_are_not_layers():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, weight):
            return self.inner(weight)

    model = small()
    parametrize.register_parametrization(model[0], "weight", Learned())
    assert list(cl.layers.weight_layers(model)) == ["0", "3"]
    assert cl.layers.count_parameters(model) == cl.layers.count_parameters(small())


@pytest.mark.parametrize(
    "layers, said",
    [
        (["fc9"], "layers has 'fc9'; choose from 0, 3"),
        (["1"], "a BatchNorm1d"),
        ("0", "list of layer names"),
        ([3], "3"),
    ],
)
def test_an_unknown_layer_is_named(layers, said):
    with pytest.raises(ValueError, match=said):
        cl.layers.weight_layers(small(), layers)


def test_a_lazy_layer_says_what_to_do():
    with pytest.raises(ValueError, match="layer '0' is lazy.*one batch"):
        cl.layers.weight_layers(nn.Sequential(nn.LazyLinear(3)))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_weight_made_by_a_hook_says_what_works():
    with pytest.raises(ValueError, match="layer '0'.*parametrizations"):
        cl.layers.weight_layers(nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2))))


def test_a_mask_zeroes_and_the_next_one_replaces_it():
    layer = nn.Linear(6, 5)
    before, mask = layer.weight.detach().clone(), some_mask(layer.weight)
    cl.layers.set_mask(layer, mask)
    assert torch.equal(layer.weight, before * mask)
    assert torch.equal(cl.layers.get_mask(layer), mask)
    other = some_mask(layer.weight, seed=1)
    cl.layers.set_mask(layer, other)
    assert [type(one) for one in layer.parametrizations.weight] == [Mask]
    assert torch.equal(layer.weight, before * mask * other)
    assert torch.equal(cl.layers.get_mask(layer), other)


def test_an_unmasked_layer_has_no_mask():
    assert cl.layers.get_mask(nn.Linear(2, 2)) is None
    assert cl.layers.get_mask(nn.ReLU()) is None
    assert cl.layers.get_mask(parametrizations.weight_norm(nn.Linear(2, 2))) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, -0.0], ids=str)
def test_masked_weights_are_positive_zero_whatever_was_there(value):
    layer = nn.Linear(3, 1)
    with torch.no_grad():
        layer.weight[0, 0] = value
    cl.layers.set_mask(layer, torch.tensor([[False, True, True]]))
    for weight in (layer.weight, layer.parametrizations.weight.original, layer.eval().weight):
        assert weight[0, 0] == 0 and not weight[0, 0].signbit()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.complex64], ids=str)
def test_weights_of_any_float_can_be_masked(dtype):
    layer, mask = nn.Linear(3, 4), torch.arange(12).reshape(4, 3) % 2 == 0
    layer.weight = nn.Parameter(torch.full((4, 3), -2.0).to(dtype))
    cl.layers.set_mask(layer, mask)
    for weight in (layer.weight, layer.parametrizations.weight.original):
        assert weight.dtype == dtype and torch.equal(
            weight.detach().to(torch.complex64), -2.0 * mask.to(torch.complex64)
        )


def test_one_of_many_parameters_is_found_without_going_through_all(monkeypatch):
    """A model may hold thousands in one module, and each is asked for its mask and its rounding."""
    model = nn.ParameterDict({f"p{index}": nn.Parameter(torch.ones(2)) for index in range(5)})
    cl.layers.set_mask(model, torch.tensor([True, False]), "p3")
    torch_prune.identity(model, "p4")
    monkeypatch.setattr(masks, "find_sources", None)
    assert cl.layers.get_mask(model, "p3").tolist() == [True, False] and cl.layers.get_mask(model, "p4").all()
    assert cl.layers.get_mask(model, "p2") is None and cl.layers.get_rounding(model, "p2") is None
    assert cl.layers.get_mask(model, "p4_orig") is None and cl.layers.get_mask(model, "other") is None


def test_an_assigned_weight_is_masked_and_not_written_to():
    layer, value = nn.Linear(3, 1, bias=False), torch.tensor([[-math.inf, 2.0, 3.0]])
    cl.layers.set_mask(layer, torch.tensor([[False, True, True]]))
    layer.weight = value
    assert layer.weight.tolist() == [[0, 2, 3]]
    assert layer.parametrizations.weight.original.tolist() == [[0, 2, 3]]
    assert value[0, 0] == -math.inf


@pytest.mark.parametrize(
    "mask, said",
    [
        (torch.ones(2, 3, dtype=torch.bool), "shape"),
        (torch.ones(3, 2), "torch.float32"),
        ([[True]], "torch.bool"),
    ],
    ids=["shape", "dtype", "list"],
)
def test_a_mask_that_does_not_fit_is_refused(mask, said):
    layer = nn.Linear(2, 3)
    with pytest.raises(ValueError, match=said):
        cl.layers.set_mask(layer, mask)
    assert cl.layers.get_mask(layer) is None


def test_a_tensor_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="name is 'kernel'; Linear has weight, bias"):
        cl.layers.set_mask(nn.Linear(2, 3), torch.ones(3, 2, dtype=torch.bool), "kernel")


OPTIMIZERS = {
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.1, weight_decay=0.5),
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.01, momentum=0.9, weight_decay=0.5, nesterov=True),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, lr=0.1, momentum=0.5),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_training_keeps_zeros_zero_and_moves_the_rest(make):
    model = masked()
    start = [model[index].weight.detach().clone() for index in (0, 3)]
    train_steps(model, torch.randn(8, 6), make(model.parameters()))
    for layer, before in zip((model[0], model[3]), start, strict=True):
        mask = cl.layers.get_mask(layer)
        assert (layer.weight[~mask] == 0).all() and (layer.parametrizations.weight.original[~mask] == 0).all()
        assert (layer.weight != before)[mask].all()


def test_an_optimizer_with_momentum_from_before_cannot_move_a_zero():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    train_steps(model, torch.randn(8, 6), optimizer)
    masked(model)
    train_steps(model, torch.randn(8, 6), optimizer)
    assert all((model[index].weight[~cl.layers.get_mask(model[index])] == 0).all() for index in (0, 3))


def test_the_mask_follows_a_changed_buffer_and_dtype_while_training():
    layer = masked(nn.Linear(6, 5))
    layer.weight.sum().backward()
    state = masked(nn.Linear(6, 5), keep=0.1).state_dict()
    layer.load_state_dict(state)
    assert torch.equal(layer.weight != 0, state["parametrizations.weight.0.mask"])
    cl.layers.get_mask(layer).fill_(False)
    assert not layer.weight.any()
    assert layer.double().weight.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_half_and_double_precision(dtype):
    model = masked(small().to(dtype)).eval()
    assert model(torch.ones(2, 6, dtype=dtype)).dtype == dtype
    assert all(value.dtype == dtype for name, value in cl.layers.effective_state(model).items() if "weight" in name)
    other = masked().to(dtype)
    assert cl.layers.get_mask(other[0]).dtype == torch.bool and other[0].weight.dtype == dtype


def test_frozen_weights_stay_frozen():
    model = small().requires_grad_(False)
    masked(model)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not any(weight.requires_grad for weight in cl.layers.plain(model).parameters())


def test_state_dict_goes_into_another_masked_model():
    one, other = masked().eval(), masked(small(seed=1), keep=0.2).eval()
    other.load_state_dict(one.state_dict())
    images = torch.randn(3, 6)
    assert torch.equal(one(images), other(images))
    assert torch.equal(cl.layers.get_mask(other[0]), cl.layers.get_mask(one[0]))


@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, parametrizations.spectral_norm], ids=["weight", "spectral"]
)
def test_a_mask_goes_after_other_parametrizations(norm):
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Linear(6, 5)))
    mask = some_mask(model[0].weight)
    cl.layers.set_mask(model[0], mask)
    cl.layers.set_mask(model[0], mask)
    assert [isinstance(one, Mask) for one in model[0].parametrizations.weight] == [False, True]
    train_steps(model, torch.randn(8, 6))
    assert (model[0].weight[~mask] == 0).all()
    images = torch.randn(3, 6)
    assert torch.allclose(cl.layers.plain(model)(images), model.eval()(images))


def test_reading_a_spectral_norm_takes_no_step():
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 5)))
    before = copy.deepcopy(model.state_dict())
    cl.layers.effective_state(model)
    cl.layers.count_nonzeros(model)
    cl.layers.plain(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_a_mask_moves_behind_a_parametrization_that_came_later():
    class Negative(nn.Module):
        def forward(self, weight):
            return 1 - weight

    layer = nn.Linear(4, 3)
    cl.layers.set_mask(layer, some_mask(layer.weight))
    parametrize.register_parametrization(layer, "weight", Negative())
    mask = some_mask(layer.weight, seed=1)
    cl.layers.set_mask(layer, mask)
    assert torch.equal(layer.weight != 0, mask)


def test_deepcopy_is_independent():
    model = masked()
    twin = copy.deepcopy(model)
    before = model[0].weight.detach().clone()
    train_steps(twin, torch.randn(8, 6))
    cl.layers.set_mask(twin[0], torch.zeros(5, 6, dtype=torch.bool))
    assert torch.equal(model[0].weight, before)
    assert cl.layers.count_nonzeros(model) > cl.layers.count_nonzeros(twin)


COPIES = {"duplicate": cl.layers.duplicate, "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("twin_of", COPIES.values(), ids=COPIES.keys())
def test_what_is_done_to_a_copy_leaves_the_original_whole(twin_of):
    """torch's parametrizations live in the class, and deepcopy shares the class."""
    model = masked()
    before, bias = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    twin = twin_of(model)
    cl.layers.set_mask(twin[0], torch.zeros(5, dtype=torch.bool), "bias")
    cl.layers.plain(twin)
    if twin_of is cl.layers.duplicate:
        parametrize.remove_parametrizations(twin[0], "weight")
    assert torch.equal(model[0].weight, before) and torch.equal(model[0].bias, bias)
    assert not twin[0].bias.any()


def test_duplicate_copes_with_what_a_forward_pass_left_behind():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, images):
            self.last = self.inner(images)
            return self.last

    model = Remembers()
    output = model(torch.randn(2, 3))
    assert torch.equal(cl.layers.duplicate(model).last, output)
    assert model.last is output


class Kept(nn.Module):
    """Remembers its outputs in `seen`."""

    def __init__(self, keep):
        super().__init__()
        self.inner, self.seen, self.keep = nn.Linear(6, 3), [], keep

    def forward(self, images):
        output = self.inner(images)
        self.keep(self, output)
        return output


class Slotted:
    __slots__ = ("value",)


def keep_in_object(model, output):
    model.seen = Slotted()
    model.seen.value = output


KEEPS = {
    "list": lambda model, output: model.seen.append(output),
    "dict": lambda model, output: setattr(model, "seen", {"output": [output]}),
    "deque": lambda model, output: setattr(model, "seen", collections.deque([(output,)], 2)),
    "object": lambda model, output: setattr(model, "seen", types.SimpleNamespace(output=output)),
    "slots": keep_in_object,
    "bound method": lambda model, output: setattr(model, "seen", [output].append),
    "partial": lambda model, output: setattr(model, "seen", functools.partial(print, output)),
    "hook": lambda model, output: setattr(model, "seen", []),
}


@pytest.mark.parametrize("name", KEEPS)
def test_models_that_remember_activations_are_copied_trained_and_measured(name):
    model, images, labels = Kept(KEEPS[name]), torch.rand(40, 6), torch.arange(40) % 3
    if name == "hook":
        model.inner.register_forward_hook(functools.partial(lambda seen, *_: seen.append(_[-1]), []))
    model(images)
    trained = cl.train.finetune(model, (images, labels), steps=3, bar=False)
    copy.deepcopy(trained)
    assert cl.measure.accuracy(cl.zero_pruning.prune(model, 0.5), (images, labels)) >= 0
    assert torch.equal(cl.train.evaluate(cl.layers.duplicate(model), images), cl.train.evaluate(model, images))


def test_tensors_of_an_earlier_step_are_named_where_they_stop_a_training():
    def add_up(model, output):
        model.seen = [*model.seen, output.mean()]
        output += sum(model.seen)

    with pytest.raises(ValueError, match="the loss has no gradient: .*earlier steps in 'seen': detach them"):
        cl.train.finetune(Kept(add_up), (torch.rand(40, 6), torch.arange(40) % 3), steps=3, bar=False)


def test_what_cannot_be_copied_is_named():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].lock = threading.Lock()
    with pytest.raises(ValueError, match="cannot be copied in attribute '?0.lock'?: TypeError"):
        cl.zero_pruning.prune(model, 0.5)


class Sequence(nn.Module):
    def __init__(self, part):
        super().__init__()
        torch.manual_seed(0)
        self.part, self.head = part, nn.Linear(8, 3)

    def forward(self, images):
        sequence = images[:, None].expand(-1, 3, -1)
        attends = isinstance(self.part, nn.MultiheadAttention)
        return self.head(self.part(*[sequence] * (3 if attends else 1))[0].mean(1))


class Twins(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.part, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.part.weight = self.first.weight

    def forward(self, images):
        return self.head(self.part(self.first(images).relu()))


PRUNED_PARTS = {
    "LSTM": (lambda: Sequence(nn.LSTM(8, 8, batch_first=True)), "weight_hh_l0"),
    "two-way LSTM": (lambda: Sequence(nn.LSTM(8, 4, 2, batch_first=True, bidirectional=True)), "weight_ih_l1_reverse"),
    "GRU": (lambda: Sequence(nn.GRU(8, 8, batch_first=True)), "weight_ih_l0"),
    "attention": (lambda: Sequence(nn.MultiheadAttention(8, 2, batch_first=True)), "in_proj_weight"),
    "tied": (Twins, "weight"),
}


@pytest.mark.parametrize("make, name", PRUNED_PARTS.values(), ids=PRUNED_PARTS.keys())
def test_what_torch_pruned_trains_and_keeps_its_zeros_wherever_it_goes(make, name, tmp_path):
    model, images, labels = make(), torch.rand(40, 8), torch.arange(40) % 3
    torch_prune.l1_unstructured(model.part, name, 0.5)
    model(images)
    zeros, before = getattr(model.part, name) == 0, getattr(model.part, name).clone()
    assert torch.equal(cl.train.evaluate(cl.layers.duplicate(model), images), cl.train.evaluate(model, images))
    trained = cl.train.finetune(model, (images, labels), steps=3, bar=False)
    again = cl.train.finetune(copy.deepcopy(trained), (images, labels), steps=3, bar=False)
    cl.save(again, tmp_path / "net.clab")
    loaded = cl.load(tmp_path / "net.clab")
    assert torch.equal(cl.train.evaluate(loaded, images), cl.train.evaluate(again, images))
    for one in (trained, again, loaded, cl.train.finetune(loaded, (images, labels), steps=3, bar=False)):
        weight = getattr(one.part, name)
        assert not weight[zeros].any() and not torch.equal(weight, before)


def test_plain_has_the_names_and_outputs_of_an_ordinary_model():
    model = masked().eval()
    bare = cl.layers.plain(model)
    images = torch.randn(3, 6)
    assert torch.equal(bare(images), model(images))
    assert list(bare.state_dict()) == list(small().state_dict())
    assert [type(module) for module in bare.modules()] == [type(module) for module in small().modules()]
    assert [tuple(weight.shape) for weight in bare.parameters()] == [tuple(w.shape) for w in small().parameters()]
    assert parametrize.is_parametrized(model[0]) and not bare.training
    small().load_state_dict(bare.state_dict())


def pruned_by_torch():
    model = small()
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    torch_prune.random_unstructured(model[3], "weight", 0.25)
    torch_prune.l1_unstructured(model[3], "weight", 0.5)
    torch_prune.l1_unstructured(model[3], "bias", 2)
    return model


MODELS = {
    "dense": small,
    "masked": masked,
    "tied": Tied,
    "tied, masked": lambda: cl.zero_pruning.prune(Tied(), 0.5),
    "twice": lambda: cl.zero_pruning.prune(Twice(), 0.5),
    "weight norm": lambda: masked(nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))),
    "spectral norm": lambda: masked(nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)))),
    "orthogonal": lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4))),
    "pruned by torch": pruned_by_torch,
    "frozen": lambda: masked(small().requires_grad_(False)),
    "no bias": lambda: masked(nn.Sequential(nn.Linear(4, 3, bias=False))),
    "bare layer": lambda: masked(nn.Linear(4, 3)),
    "recurrent": lambda: nn.Sequential(nn.LSTM(3, 2), nn.Linear(2, 2)),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_effective_state_is_the_state_of_the_plain_model(make):
    model = make()
    state, expected = cl.layers.effective_state(model), cl.layers.plain(model).state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert not any(value.requires_grad for value in state.values())


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_counts_are_those_of_the_plain_model(make):
    model = make()
    weights = list(cl.layers.plain(model).parameters())
    assert cl.layers.count_parameters(model) == sum(weight.numel() for weight in weights)
    assert cl.layers.count_nonzeros(model) == sum(int(weight.count_nonzero()) for weight in weights)


def test_effective_state_keeps_order_when_a_bias_is_masked_too():
    model = masked()
    cl.layers.set_mask(model[0], torch.tensor([True, False, True, True, False]), "bias")
    assert list(cl.layers.effective_state(model)) == list(small().state_dict())
    assert cl.layers.effective_state(model)["0.bias"][1] == 0


def test_effective_state_and_counts_of_a_parametrized_buffer():
    class Halved(nn.Module):
        def forward(self, value):
            return value / 2

    model = nn.BatchNorm1d(3)
    parametrize.register_parametrization(model, "running_var", Halved())
    assert cl.layers.effective_state(model)["running_var"].tolist() == [0.5] * 3
    assert cl.layers.plain(model).running_var.tolist() == [0.5] * 3
    assert "running_var" in dict(cl.layers.plain(model).named_buffers())
    assert cl.layers.count_parameters(model) == 6


def test_tied_weights_stay_tied_when_baked():
    bare = cl.layers.plain(cl.zero_pruning.prune(Tied(), 0.5))
    assert bare.output.weight is bare.embedding.weight
    state = cl.layers.effective_state(cl.zero_pruning.prune(Tied(), 0.5))
    assert state["output.weight"].data_ptr() == state["embedding.weight"].data_ptr()


def test_counts_leave_buffers_out_and_zeros_in():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert cl.layers.count_parameters(model) == 6 + 2 + 4
    cl.layers.set_mask(model[0], torch.zeros(2, 3, dtype=torch.bool))
    nn.init.ones_(model[0].bias)
    assert cl.layers.count_parameters(model) == 12 and cl.layers.count_nonzeros(model) == 2 + 2


def test_a_model_pruned_by_torch_reads_as_masked():
    model = pruned_by_torch()
    mask = model[0].weight_mask.bool()
    assert torch.equal(cl.layers.get_mask(model[0]), mask)
    twin = cl.layers.duplicate(model)
    images = torch.randn(3, 6)
    assert torch.equal(cl.layers.get_mask(twin[0]), mask)
    assert cl.layers.get_mask(twin[3], "bias").sum() == 2
    assert torch.equal(twin.eval()(images), model.eval()(images))
    assert [name for name, _ in model.named_parameters()][:2] == ["0.bias", "0.weight_orig"]


def test_distinct_weights_lists_a_shared_weight_once_with_all_its_users():
    model = Tied()
    weights = cl.layers.distinct_weights(model)
    assert [weight.names for weight in weights] == [("inner",), ("output",)]
    assert {module for module, _ in weights[1].holders} == {model.embedding, model.output}
    assert [weight.names for weight in cl.layers.distinct_weights(Twice())] == [("first", "other")]


def test_an_entry_masked_under_one_of_its_names_is_masked():
    model = Twice()
    cl.layers.set_mask(model.first, torch.eye(3, dtype=torch.bool))
    assert torch.equal(cl.layers.distinct_weights(model)[0].mask, torch.eye(3, dtype=torch.bool))


class Sentences(nn.Module):
    """Embedding, LSTM, attention and a head that shares the embedding's weight."""

    def __init__(self, tied):
        super().__init__()
        self.words, self.memory = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True)
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.head = nn.Linear(8, 20, bias=False)
        if tied:
            self.head.weight = self.words.weight


@pytest.mark.parametrize("tied", [False, True])
def test_unsupported_are_the_parts_whose_weights_are_no_weight_layers(tied):
    found = cl.layers.unsupported(Sentences(tied))
    expected = {"words": "Embedding", "memory": "LSTM", "attention": "MultiheadAttention"}
    assert found == {name: kind for name, kind in expected.items() if not (tied and name == "words")}


def test_unsupported_knows_masked_layers_and_normalisations_as_what_they_are():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 4))
    assert cl.layers.unsupported(cl.zero_pruning.prune(model, sparsity=0.5)) == {}
    assert cl.layers.unsupported(nn.Embedding(3, 4)) == {"": "Embedding"}


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_kept(training):
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout().train(not training)).train(training)
    model[1].train(not training)
    with cl.layers.modes_kept(model):
        model.eval() if training else model.train()
    assert [model.training, model[1].training] == [training, not training]


class Reader(nn.Module):
    """Words in, classes out."""

    def __init__(self):
        super().__init__()
        self.words, self.memory, self.head = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, words):
        return self.head(self.memory(self.words(words))[0][:, -1])


def test_inputs_are_whole_numbers_for_a_model_that_begins_with_an_embedding():
    floats, whole = torch.tensor([[1.0, 2.0]]), torch.tensor([[1, 2]])
    assert cl.layers.as_inputs(Reader(), floats).equal(whole)
    assert cl.layers.as_inputs(Reader(), whole) is whole
    assert cl.layers.as_inputs(nn.Linear(2, 2).half(), whole).equal(floats.half())
    assert cl.layers.as_inputs(nn.Linear(2, 2), floats) is floats


class Placed(Reader):
    """A reader that holds the places of the words itself."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.zeros(6, 8))

    def forward(self, words):
        return self.head(self.memory(self.words(words) + self.places[: words.shape[1]])[0][:, -1])


def tied_reader():
    model = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 20, bias=False))
    model[3].weight = model[0].weight
    return cl.quantization.quantize(model, bits=4)


@pytest.mark.parametrize("make", [Placed, tied_reader], ids=["a parameter of its own", "quantized tied table"])
def test_an_embedding_is_found_behind_parameters_and_below_a_parametrization(make):
    floats, whole = torch.tensor([[1.0, 2.0]]), torch.tensor([[1, 2]])
    assert cl.layers.as_inputs(make(), floats).equal(whole)
    words = torch.arange(60).reshape(30, 2) % 20
    tuned = cl.train.finetune(make(), (words, words[:, 0] % 3), steps=2, bar=False)
    assert len(cl.train.evaluate(tuned, words)) == 30


def test_a_model_of_words_is_trained_evaluated_and_measured():
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 20, (120, 6), generator=generator)
    labels = words[:, -1] % 3
    torch.manual_seed(0)
    model = Reader()
    trained = cl.train.finetune(model, (words, labels), epochs=30, lr=0.02, bar=False)
    assert cl.measure.accuracy(trained, (words, labels)) > 0.9
    assert torch.equal(cl.train.evaluate(trained, words), cl.train.evaluate(trained, words.float()))
    measured = cl.measure.measure(trained, (words, labels))
    assert measured.latency.median > 0 and measured.macs > 0


def test_masks_on_gradients_train_the_same_model_to_the_bit():
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    images, labels = torch.randn(20, 6), torch.arange(20) % 3
    cl.layers.set_mask(start[0], torch.rand(5, 6) < 0.5)
    trained = []
    for context in (contextlib.nullcontext, cl.layers.masks_on_gradients):
        model = cl.layers.duplicate(start)
        with context(model):
            optimizer = torch.optim.Adam(model.parameters(), 0.1, weight_decay=0.01)
            for _ in range(5):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
        trained.append(cl.layers.effective_state(model))
    assert all(torch.equal(*pair) for pair in zip(*map(dict.values, trained), strict=True))
    assert not trained[1]["0.weight"][~cl.layers.get_mask(start[0])].any()


def test_masks_on_gradients_hold_whatever_happens_on_the_way():
    """A copy masks its weight by itself; a new mask, or one that was changed, counts at once."""
    layer, mask = nn.Linear(4, 4), torch.eye(4).bool()
    cl.layers.set_mask(layer, mask)
    with cl.layers.masks_on_gradients(layer):
        assert layer.weight is layer.parametrizations.weight.original
        twin = cl.layers.duplicate(layer)
        twin.parametrizations.weight.original.data.fill_(1.0)
        assert torch.equal(twin.weight, torch.eye(4))
        cl.layers.get_mask(layer)[0, 0] = False
        assert layer.weight[0, 0] == 0
        cl.layers.set_mask(layer, torch.ones(4, 4).bool())
        layer.weight.sum().backward()
        assert layer.parametrizations.weight.original.grad.all()
    layer.parametrizations.weight.original.data.fill_(1.0)
    cl.layers.set_mask(layer, mask)
    assert torch.equal(layer.weight, mask.float())


def test_a_weight_that_is_used_elsewhere_too_keeps_its_mask_on_the_weight():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    cl.layers.set_mask(first, torch.eye(4).bool())
    with cl.layers.masks_on_gradients(nn.Sequential(first, second)):
        assert first.weight is not first.parametrizations.weight.original


def test_what_the_package_uses_of_torch_beside_its_documented_names():
    """If a new torch breaks this, look for these names in the package: nothing documented gives the same."""
    norm, chain = nn.BatchNorm1d(3), nn.Sequential(nn.Linear(2, 2), None, nn.ReLU())
    assert list(norm._parameters) == ["weight", "bias"] and "running_mean" in norm._buffers
    assert norm._parameters["weight"] is norm.weight and list(chain._modules) == ["0", "1", "2"]
    norm.register_buffer("hidden", torch.zeros(1), persistent=False)
    assert norm._non_persistent_buffers_set == {"hidden"}
    handles = [norm.register_forward_hook(print), norm.register_forward_pre_hook(print)]
    assert [list(norm._forward_hooks), list(norm._forward_pre_hooks)] == [[handle.id] for handle in handles]
    torch_prune.l1_unstructured(chain[0], "weight", 0.5)
    assert [hook._tensor_name for hook in chain[0]._forward_pre_hooks.values()] == ["weight"]
    tensor = torch.zeros(2)
    before = tensor._version
    assert tensor.add_(1)._version > before
