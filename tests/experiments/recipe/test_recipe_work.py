"""Running recipes: every order of steps, the journal's beginnings, errors, cancelling."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab.techniques import distillation_losses
from compresslab.weights.layers import effective_state

pytestmark = pytest.mark.slow

PRUNE, SHARE, SHORT = ("zero_pruning", {"sparsity": 0.5}), ("quantization", {"bits": 3}), ("retrain", {"steps": 3})
STEPS = [PRUNE, SHORT, SHARE, ("retrain", {"steps": 2, "teacher": True})]


def state(model):
    return {name: tensor.detach() for name, tensor in effective_state(model).items()}


def same(one, other):
    return all(map(torch.equal, state(one).values(), state(other).values()))


def test_it_is_what_one_would_do_by_hand(net, data):
    """With no rounding in between, what goes through the file is what was there."""
    with cl.train.threads(1):
        pruned = cl.zero_pruning.prune(net, sparsity=0.5)
        trained = cl.train.finetune(pruned, data.train, steps=3, seed=7, precision="fp32", bar=False)
        by_hand = cl.quantization.quantize(trained, bits=3)
    recipe = cl.Recipe([PRUNE, ("retrain", {"steps": 3, "precision": "fp32"}), SHARE])
    assert same(recipe.apply(net, data, seed=7, journal=False, bar=False), by_hand)


@pytest.mark.parametrize("steps", list(itertools.permutations([PRUNE, SHARE, SHORT])), ids=str)
def test_any_order(steps, net, data):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    small = cl.Recipe(steps).apply(net, data, journal=False, bar=False)
    assert small is not net and all(torch.equal(before[name], one) for name, one in net.state_dict().items())
    assert cl.layers.count_nonzeros(small) < cl.layers.count_nonzeros(net)
    loaded = cl.storage.loads(cl.storage.dumps(small))
    assert torch.equal(loaded(data.validation.images), small(data.validation.images))


def test_a_beginning_is_computed_once(net, data, journal, fits):
    recipe = cl.Recipe(STEPS)
    first = recipe.apply(net, data, journal=journal, bar=False)
    assert [named["steps"] for named in fits] == [3, 2]
    again = recipe.apply(net, data, journal=journal, bar=False)
    assert len(fits) == 2 and same(first, again)
    other = recipe.changed(2, bits=2).apply(net, data, journal=journal, bar=False)
    assert [named["steps"] for named in fits] == [3, 2, 2]
    assert same(other, recipe.changed(2, bits=2).apply(net, data, journal=False, bar=False))
    recipe.changed(0, sparsity=0.6).apply(net, data, journal=journal, bar=False)
    recipe.apply(net, data, seed=1, journal=journal, bar=False)
    assert len(fits) == 2 + 1 + 2 + 2 + 2
    with torch.no_grad():
        net[1].weight[0, 0] += 0.01
    recipe.apply(net, data, journal=journal, bar=False)
    assert len(fits) == 9 + 2


def test_neurons_that_go_and_the_journal(net, data, journal, fits):
    recipe = cl.Recipe([("activation_pruning", {"sparsity": 0.5}), SHORT, SHARE, SHORT])
    first = recipe.apply(net, data, journal=journal, bar=False)
    again = recipe.changed(2, bits=3).apply(net, data, journal=journal, bar=False)
    assert len(fits) == 2 and same(first, again) and first[1].out_features == again[1].out_features == 6


class OwnNet(nn.Module):
    """A class that no file knows; its forward cannot be traced, so a file holds its tensors alone."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 2)

    def forward(self, images):
        return self.fc(images.flatten(1)) if images.sum() > -1 else None


def test_a_class_of_ones_own(data, journal, fits):
    recipe = cl.Recipe([PRUNE, SHORT, SHARE])
    first = recipe.apply(net := OwnNet(), data, journal=journal, bar=False)
    again = recipe.apply(net, data, journal=journal, bar=False)
    assert type(first) is type(again) is OwnNet and same(first, again) and len(fits) == 1


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 12)

    def forward(self, images):
        return self.fc(images).relu()


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(16, 12), nn.Linear(12, 10), nn.Linear(10, 2)

    def forward(self, images):
        return self.last(self.middle(self.first(images.flatten(1)).relu()).relu())


def with_a_block():
    layers = [nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), Block(), nn.Linear(12, 2)]
    return nn.Sequential(nn.Flatten(), *layers)


def kinds(model):
    return [type(module).__name__ for module in model.modules()]


@pytest.mark.filterwarnings("ignore:low_rank leaves alone")
@pytest.mark.parametrize("make", [Deep, with_a_block])
@pytest.mark.parametrize(
    "step", [("activation_pruning", {"sparsity": 0.5}), ("low_rank", {"rank": 2}), ("distillation", {"width": 0.5})]
)
def test_a_class_of_ones_own_whose_shapes_change(make, step, data, journal, fits):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    recipe = cl.Recipe([step, SHORT, SHARE])
    recipe.apply(model, data, journal=journal, bar=False)
    other = recipe.changed(2, bits=2)
    cached = other.apply(model, data, journal=journal, bar=False)
    assert len(fits) == 1
    fresh = other.apply(model, data, journal=False, bar=False)
    assert same(cached, fresh) and kinds(cached) == kinds(fresh)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_norms_are_baked_in(norm, net, data, journal, fits):
    norm(net[1])
    recipe = cl.Recipe([PRUNE, SHORT, SHARE])
    first = recipe.apply(net, data, journal=journal, bar=False)
    assert same(first, recipe.apply(net, data, journal=journal, bar=False)) and len(fits) == 1
    assert list(cl.sweep.run(recipe, net, data, [{}], steps=2, journal=journal, bar=False))


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.filterwarnings("ignore:low_rank leaves alone")
@pytest.mark.parametrize("step", [PRUNE, ("low_rank", {"rank": 2})])
def test_modes_are_those_of_the_model_given(step, net, data, journal):
    recipe = cl.Recipe([step, SHORT, SHARE])
    recipe.apply(net.train(), data, journal=journal, bar=False)
    net.eval()
    net[1].train()
    cached, fresh = (recipe.apply(net, data, journal=one, bar=False) for one in (journal, False))
    assert modes(cached) == modes(fresh) and not fresh.training and fresh[1].training


class Counting(nn.Module):
    """Training changes a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 2)
        self.register_buffer("steps", torch.zeros(()), persistent=False)

    def forward(self, images):
        if self.training:
            self.steps += 1
        return self.fc(images.flatten(1)) * self.steps.cos()


def test_what_is_not_saved_is_as_it_was(data, journal):
    model, recipe = Counting(), cl.Recipe([PRUNE, SHORT])
    first, cached = (recipe.apply(model, data, journal=journal, bar=False) for _ in range(2))
    assert first.steps == cached.steps == model.steps == 0


def test_a_seed_of_numpy(net, data, journal, fits):
    for seed in (3, np.int64(3)):
        cl.Recipe(STEPS).apply(net, data, seed=seed, journal=journal, bar=False)
    assert len(fits) == 2


def test_events_and_results(net, data, journal):
    events = list(cl.Recipe(STEPS).stages(net, data, journal=journal))
    stages = [stage for stage, _ in itertools.groupby(event.stage for event in events)]
    assert stages == ["compressed", "one-shot", "training", "retrained"] * 2
    measured = [event for event in events if event.result]
    assert [event.result for event in measured] == journal.results()
    assert [len(event.result.setting["steps"]) for event in measured] == [1, 2, 3, 4]
    assert measured[-1].note == "retrain(steps=2, teacher=True)" and measured[-1].result.seconds > 0
    assert all(event.result.file_bytes == cl.storage.file_bytes(event.model) for event in measured[-1:])
    again = list(cl.Recipe(STEPS).stages(net, data, journal=journal))
    assert [event.result for event in again] == [event.result for event in measured]
    assert cl.Recipe(STEPS).apply(net, data, journal=False, bar=False).training is net.training


def test_stopping_loses_nothing(net, data, journal, fits):
    for event in cl.Recipe(STEPS).stages(net, data, journal=journal):
        if event.stage == "training" and "teacher" in event.note:
            break
    assert len(journal) == 3 and len(fits) == 2
    cl.Recipe(STEPS).apply(net, data, journal=journal, bar=False)
    assert len(fits) == 3


def test_table(net, data, journal):
    table = cl.Recipe(STEPS).table(net, data, journal=journal, bar=False)
    assert list(table) == ["step", "accuracy", "points", "file_bytes", "saved", "ratio"]
    assert list(table["step"])[:2] == ["dense", "zero_pruning(sparsity=0.5)"] and len(table) == 5
    assert table["file_bytes"][0] - table["saved"].sum() == table["file_bytes"].iloc[-1]
    assert table["points"].iloc[-1] == pytest.approx(100 * (table["accuracy"].iloc[-1] - table["accuracy"][0]))


def test_save_writes_the_file_each_time(net, data, journal, tmp_path, fits):
    path = tmp_path / "small.clab"
    recipe = cl.Recipe([PRUNE, SHORT, ("save", {"path": str(path)}), SHARE, SHORT])
    recipe.apply(net, data, journal=journal, bar=False)
    middle = cl.load(path)
    pruned = cl.zero_pruning.prune(net, sparsity=0.5)
    assert 0 < cl.layers.count_nonzeros(middle) <= cl.layers.count_nonzeros(pruned)  # dead units are left out
    content = path.read_bytes()
    path.unlink()
    recipe.apply(net, data, journal=journal, bar=False)
    assert path.read_bytes() == content and len(fits) == 2


@pytest.mark.parametrize("place", range(5))
def test_a_save_anywhere_leaves_the_cache_in_use(place, net, data, journal, tmp_path, fits):
    path, steps = tmp_path / "small.clab", [SHORT, PRUNE, SHARE, SHORT]
    recipe = cl.Recipe([*steps[:place], ("save", {"path": path}), *steps[place:], SHARE])
    first = recipe.apply(net, data, journal=journal, bar=False)
    content, told = path.read_bytes(), [event.stage for event in recipe.stages(net, data, journal=False)]
    path.unlink()
    fits.clear()
    events = list(recipe.stages(net, data, journal=journal))
    assert fits == [] and path.read_bytes() == content and same(first, events[-1].model)
    assert [event.stage for event in events if event.stage == "saved" or event.result] == [
        stage for stage in told if stage not in ("compressed", "training")
    ]
    lost = cl.Recipe([PRUNE, ("save", {"path": str(tmp_path / "no" / "x.clab")})])
    with pytest.raises(OSError, match="no"):
        lost.apply(net, data, journal=journal, bar=False)


def test_teacher_is_the_model_given(net, data, monkeypatch):
    seen, loss = [], distillation_losses.loss
    monkeypatch.setattr(distillation_losses, "loss", lambda *given, **named: seen.append((given, named)) or loss(*given, **named))  # fmt: skip # noqa: E501
    recipe = cl.Recipe([PRUNE, ("retrain", {"steps": 1, "teacher": True, "alpha": 0.5, "temperature": 2})])
    recipe.apply(net, data, journal=False, bar=False)
    (((teacher,), named),) = seen
    assert teacher is net and (named["alpha"], named["temperature"]) == (0.5, 2)


def test_distillation_learns_in_its_own_way(net, data):
    recipe = cl.Recipe([("distillation", {"width": 0.5, "alpha": 1.0}), ("retrain", {"steps": 2})])
    assert recipe.apply(net, data, journal=False, bar=False)[1].out_features == 6


@pytest.mark.parametrize(
    "change, told",
    [
        ({"model": 3}, "model is 3; give a torch.nn.Module"),
        ({"data": torch.zeros(3)}, "data is a Tensor"),
        ({"seed": -1}, "seed is -1"),
        ({"data": "imagenet"}, "imagenet"),
        ({"model": "vgg"}, "vgg"),
    ],
)
def test_bad_arguments(net, data, change, told):
    given = {"model": net, "data": data, "seed": 0} | change
    with pytest.raises(ValueError, match=told):
        cl.Recipe(STEPS).apply(**given, journal=False, bar=False)


@pytest.mark.parametrize(
    "step, told",
    [
        (("zero_pruning", {"sparsity": 1.5}), r"zero_pruning\(sparsity=1.5\): sparsity is 1.5"),
        (("retrain", {"lr": -1.0, "steps": 1}), r"retrain\(.*\): lr is -1"),
        (("retrain", {"precision": "fp8", "steps": 1}), r"retrain\(.*\): precision"),
        (("retrain", {"steps": 1, "teacher": True, "temperature": 0}), r"retrain\(.*\): temperature"),
    ],
)
def test_an_error_names_its_step(step, told, net, data):
    with pytest.raises(ValueError, match=told):
        cl.Recipe([PRUNE, step]).apply(net, data, journal=False, bar=False)


def test_a_training_that_fails_names_its_step(net, data):
    with pytest.raises(ArithmeticError, match=r"retrain\(steps=3, lr=1e\+30\): the loss is nan"):
        cl.Recipe([PRUNE, ("retrain", {"steps": 3, "lr": 1e30})]).apply(net, data, journal=False, bar=False)
    with torch.no_grad():
        net[1].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"retrain\(steps=3\): model has weights that are nan"):
        cl.Recipe([SHORT]).apply(net, data, journal=False, bar=False)
