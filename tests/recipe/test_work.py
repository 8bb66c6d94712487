"""Running recipes: every order of steps, the journal's beginnings, errors, cancelling."""

import itertools

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab.layers import effective_state

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
    path.unlink()
    recipe.apply(net, data, journal=journal, bar=False)
    assert path.exists() and len(fits) == 3
    lost = cl.Recipe([PRUNE, ("save", {"path": str(tmp_path / "no" / "x.clab")})])
    with pytest.raises(OSError, match="no"):
        lost.apply(net, data, journal=journal, bar=False)


def test_teacher_is_the_model_given(net, data, monkeypatch):
    seen, loss = [], cl.recipe.work.knowledge.loss
    monkeypatch.setattr(cl.recipe.work.knowledge, "loss", lambda *given, **named: seen.append((given, named)) or loss(*given, **named))  # fmt: skip # noqa: E501
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
        ({"model": 3}, "model is a int"),
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
