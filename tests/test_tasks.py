"""Losses, metrics and outputs of one's own: regression, several labels, next tokens, models of several outputs."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional

import compresslab as cl


def negative_error(outputs, targets):
    return -functional.mse_loss(outputs, targets).item()


def all_right(outputs, targets):
    return ((outputs > 0) == (targets > 0.5)).double().mean().item()


def next_token(outputs, targets):
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def token_accuracy(outputs, targets):
    return (outputs.argmax(-1) == targets).double().mean().item()


class Reader(nn.Module):
    """Predicts the next token of each place."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(11, 16), nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 11))

    def forward(self, tokens):
        return self.head(self.words(tokens))


def make_task(kind):
    """Return a model, its data, and the metric that a trained model reaches."""
    torch.manual_seed(0)
    inputs = torch.rand(1200, 8)
    if kind == "regression":
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
        data = cl.data.from_tensors(inputs, inputs.sum(1, keepdim=True), loss=nn.MSELoss(), metric=negative_error)
        return model, data, -0.1
    if kind == "labels":
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
        targets = (inputs[:, :3] > 0.5).float()
        loss = nn.BCEWithLogitsLoss()
        return model, cl.data.from_tensors(inputs, targets, loss=loss, metric=all_right), 0.9
    tokens = torch.arange(6) * torch.randint(1, 5, (1200, 1)) % 11
    data = cl.data.from_tensors(tokens, (tokens * 2 + 1) % 11, loss=next_token, metric=token_accuracy)
    return Reader(), data, 0.95


@pytest.mark.parametrize("kind", ["regression", "labels", "tokens"])
def test_training_measuring_recipes_and_sweeps(kind, tmp_path):
    model, data, reached = make_task(kind)
    trained = cl.train.finetune(model, data.train, steps=300, seed=0)
    value = cl.measure.accuracy(trained, data.validation)
    assert value > reached > cl.measure.accuracy(model, data.validation)
    row = cl.measure.measure(trained, data.test)
    assert row.accuracy == data.test.metric(
        cl.train.evaluate(trained, data.test.images, any_outputs=True), data.test.labels
    )
    recipe = cl.Recipe(
        [("zero_pruning", {"sparsity": 0.5}), ("retrain", {"steps": 100}), ("quantization", {"bits": 6})]
    )
    table = recipe.table(trained, data, journal=tmp_path / "journal.db", bar=False)
    assert table["accuracy"].iloc[2] > reached - 0.1
    (result,) = cl.sweep.run("quantization", trained, data, {"bits": [8]}, steps=0, journal=False, bar=False)
    assert result.accuracy == pytest.approx(value, abs=0.02)
    found = cl.search(trained, data, min_accuracy=reached - 10, trials=2, steps=5, journal=False, bar=False)
    assert found.accuracy > reached - 10


def test_the_lab_takes_them(tmp_path):
    model, data, _ = make_task("labels")
    trained = cl.train.finetune(model, data.train, steps=100, seed=0)
    lab = cl.lab.explore("zero_pruning", model=trained, data=data, journal=tmp_path / "journal.db")
    try:
        lab.controls["sparsity"].value = 0.6
        assert lab.wait(timeout=60) and lab.error is None
        assert len(lab.results)
    finally:
        lab.close()


def test_a_metric_may_be_given_where_it_is_measured():
    model, data, _ = make_task("regression")
    pair = data.test.images, data.test.labels
    expected = negative_error(cl.train.evaluate(model, pair[0], any_outputs=True), pair[1])
    assert cl.measure.measure(model, pair, metric=negative_error).accuracy == expected


def test_a_loss_is_called_with_outputs_or_with_the_model():
    model, data, _ = make_task("regression")
    pair = data.train.images, data.train.labels
    with_model = lambda model, images, targets: functional.mse_loss(model(images), targets)  # noqa: E731
    trained = [
        cl.train.finetune(model, pair, steps=20, loss=loss) for loss in (nn.MSELoss(), functional.mse_loss, with_model)
    ]
    states = [model.state_dict()["0.weight"] for model in trained]
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor


class Several(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.hidden, self.head, self.kind = nn.Linear(36, 16), nn.Linear(16, 2), kind

    def forward(self, images):
        hidden = self.hidden(images.flatten(1)).relu()
        logits = self.head(hidden)
        if self.kind == "dict":
            return {"logits": logits, "hidden": hidden}
        return (hidden, logits) if self.kind == "tuple" else Answer(logits, hidden)


@pytest.mark.parametrize(("kind", "output"), [("dict", "logits"), ("tuple", 1), ("dataclass", "logits")])
def test_a_model_of_several_outputs_says_which_counts(kind, output, data, tmp_path):
    trained = cl.train.finetune(Several(kind), data, epochs=25, seed=0, output=output)
    assert cl.measure.measure(trained, data, output=output).accuracy > 0.75
    model = cl.models.choose_output(trained, output)
    assert cl.measure.accuracy(model, data) == cl.measure.measure(trained, data, output=output).accuracy
    small = cl.zero_pruning.prune(model, sparsity=0.5)
    again = cl.train.finetune(small, data, steps=10, seed=0)
    assert cl.measure.accuracy(again, data) > 0.7


@pytest.mark.parametrize("kind", ["dict", "tuple", "dataclass"])
@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss()])
def test_without_output_it_is_refused_before_the_first_step(kind, loss, data):
    model = Several(kind)
    with pytest.raises(ValueError, match=r"the model returned .*; say which element counts, by output="):
        next(cl.train.fit(model, data, steps=3, loss=loss))
    with pytest.raises(ValueError, match="by output="):
        cl.measure.accuracy(model, data)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (lambda outputs, targets: float("nan"), "metric returned nan"),
        (lambda outputs, targets: "good", "metric does not take outputs of shape"),
        (lambda outputs, targets: outputs @ targets, "metric does not take outputs of shape"),
        ("accuracy", "metric is 'accuracy'"),
    ],
)
def test_a_bad_metric_is_refused(metric, words):
    model, data, _ = make_task("regression")
    with pytest.raises(ValueError, match=words):
        cl.measure.accuracy(model, data.test, metric)


def test_classes_are_not_asked_of_other_targets():
    model, data, _ = make_task("regression")
    with pytest.raises(ValueError, match="metric of their own"):
        cl.measure.per_class(model, data.test)


@pytest.mark.parametrize("kind", ["regression", "labels"])
def test_distillation_refuses_targets_that_are_no_classes(kind):
    model, data, _ = make_task(kind)
    with pytest.raises(ValueError, match="distillation needs class numbers"):
        cl.distillation.distill(model, model, data.train, epochs=1)
