"""Exercises of notebook 04: right answers pass, plausible wrong ones do not, and hints fit the mistake."""

import functools

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab.classroom import redundancy_pruning as exercises

pytestmark = pytest.mark.slow


def plant(weight, bias, outgoing, neurons, scale, share=0.5, bias_scale=None, divide=True, twin_scale=None):
    """Right as it is; each option but the first four makes one mistake."""
    twin = scale if twin_scale is None else twin_scale
    rows = torch.cat([weight, twin * weight[neurons]])
    biases = torch.cat([bias, (twin if bias_scale is None else bias_scale) * bias[neurons]])
    columns = outgoing.clone()
    columns[:, neurons] *= share
    word = outgoing[:, neurons] * (1 - share) / (twin if divide else 1)
    return rows, biases, torch.cat([columns, word], 1)


def planted_first(weight, bias, outgoing, neurons, scale):
    rows, biases, columns = plant(weight, bias, outgoing, neurons, scale)
    order = torch.arange(len(rows)).flip(0)
    return rows[order], biases[order], columns[:, order]


def unshared(weight, bias, outgoing, neurons, scale):
    rows, biases, _ = plant(weight, bias, outgoing, neurons, scale)
    return rows, biases, torch.cat([outgoing, outgoing[:, neurons]], 1)


def noisy_neurons(weight, bias, outgoing, neurons, scale):
    """As many more neurons, but none of them is a twin."""
    rows = torch.cat([weight, torch.randn(len(neurons), weight.shape[1])])
    return rows, torch.cat([bias, bias[neurons]]), torch.cat([outgoing, 0 * outgoing[:, neurons]], 1)


def merge(activations, weight, bias, stays, goes, fit=None, use_offset=True, column=None, keep_shape=False):
    """Right as it is; each option makes one mistake."""
    slope, offset = (least_squares if fit is None else fit)(activations[:, stays], activations[:, goes])
    bias = bias + offset * weight[:, goes] if use_offset else bias
    weight = weight.clone()
    weight[:, stays] += slope * weight[:, goes]
    keep = torch.arange(weight.shape[1]) != (goes if column is None else column(stays, goes))
    return (weight if keep_shape else weight[:, keep]), bias


def least_squares(a, b):
    slope = ((a - a.mean()) * (b - b.mean())).mean() / a.var(correction=0)
    return slope, b.mean() - slope * a.mean()


def solved(activations, weight, bias, stays, goes):
    known = torch.stack([activations[:, stays], torch.ones(len(activations))], 1)
    slope, offset = torch.linalg.lstsq(known, activations[:, [goes]]).solution.flatten().tolist()
    return merge(activations, weight, bias, stays, goes, lambda a, b: (slope, offset))


def inverse(a, b):
    slope, _ = least_squares(b, a)
    return 1 / slope, b.mean() - a.mean() / slope


def spreads(a, b):
    return b.std() / a.std(), b.mean() - b.std() / a.std() * a.mean()


def signed_spreads(a, b):
    slope = least_squares(a, b)[0].sign() * b.std() / a.std()
    return slope, b.mean() - slope * a.mean()


def unbiased(a, b):
    slope = ((a - a.mean()) * (b - b.mean())).mean() / a.var()
    return slope, b.mean() - slope * a.mean()


RIGHT = {
    "04.plant": [plant, functools.partial(plant, share=0.9), functools.partial(plant, share=-1.0), planted_first],
    "04.merge": [merge, solved],
}
WRONG = {
    "04.plant": [
        (lambda weight, bias, outgoing, neurons, scale: (weight, bias, outgoing), "they should be 10 × 6"),
        (lambda *given: None, "not answered yet"),
        (lambda *given: plant(*given)[:2], "three things, (weight, bias, outgoing)"),
        (unshared, "say together"),
        (functools.partial(plant, divide=False), "twin's word"),
        (functools.partial(plant, bias_scale=1.0), "scale its weights and its bias"),
        (functools.partial(plant, twin_scale=1.0), "no neuron is 2 times"),
        (functools.partial(plant, share=1.0), "no outgoing weights"),
        (functools.partial(plant, share=0.0), "no outgoing weights"),
        (noisy_neurons, "no neuron is 2 times"),
        (lambda w, b, o, n, s: plant(w, b, o, [0] * len(n), s), "neuron 3"),
        (lambda w, b, o, n, s: plant(w, b, o, n, 0.0), "not finite"),
        (lambda w, b, o, n, s: (plant(w, b, o, n, s)[0], b, o), "they should be"),
        (lambda w, b, o, n, s: (3, 4, 5), "should return tensors"),
        (plant(*exercises._hidden(3, 4, 2), [1], 2.0), "the function itself"),
    ],
    "04.merge": [
        (functools.partial(merge, use_offset=False), "where does the offset go"),
        (functools.partial(merge, fit=lambda a, b: (1.0, 0.0)), "which slope"),
        (functools.partial(merge, fit=lambda a, b: (0.0, b.mean())), "which slope"),
        (functools.partial(merge, fit=lambda a, b: (0.0, 0.0)), "which slope"),
        (functools.partial(merge, fit=lambda a, b: (b.mean() / a.mean(), 0.0)), "which slope"),
        (functools.partial(merge, fit=spreads), "sign included"),
        (functools.partial(merge, fit=signed_spreads), "least squares"),
        (functools.partial(merge, fit=inverse), "least squares"),
        (functools.partial(merge, fit=unbiased), ""),
        (functools.partial(merge, fit=lambda a, b: least_squares(b, a)), "which slope"),
        (functools.partial(merge, column=lambda stays, goes: stays), "Which column goes"),
        (functools.partial(merge, column=lambda stays, goes: goes - 1), "Which column goes"),
        (functools.partial(merge, keep_shape=True), "they should be 4 × 5, 4"),
        (lambda activations, weight, bias, stays, goes: weight, "two things, (weight, bias)"),
        (lambda *given: None, "not answered yet"),
        (lambda activations, weight, bias, stays, goes: merge(activations, weight, bias, goes, stays), "which slope"),
        (0.5, "the function itself"),
    ],
}


@pytest.mark.parametrize("name, answer", [(name, answer) for name in RIGHT for answer in RIGHT[name]])
def test_right_answers_pass(name, answer):
    result = cl.classroom.check(name, answer)
    assert result, result.message
    assert "right." in result.message and len(result.message) < 320


@pytest.mark.parametrize("name, answer, hint", [(name, *one) for name in WRONG for one in WRONG[name]])
def test_wrong_answers_fail_with_a_hint_that_fits(name, answer, hint):
    result = cl.classroom.check(name, answer)
    assert not result
    assert hint in result.message


def test_the_neurons_of_the_planting_exercise_all_speak_and_have_no_twins():
    for inputs, size, outputs in ((6, 8, 4), (20, 30, 10), (5, 7, 3)):
        network = exercises._network(*exercises._hidden(inputs, size, outputs))
        matrix = cl.redundancy_pruning.similarities(network, exercises._rand(400, inputs))["0"]
        assert (matrix.diagonal() == 1).all()
        assert matrix.fill_diagonal_(0).abs().max() < 0.999


@pytest.mark.parametrize("slope, offset, noise", [(2.0, 1.0, 0.0), (-2.0, 6.0, 1.0)])
def test_the_twins_of_the_merging_exercise_are_affine_images(slope, offset, noise):
    activations, *_ = exercises._affine(slope, offset, 3, 1, noise)
    found = least_squares(activations[:, 3], activations[:, 1])
    assert found[0] == pytest.approx(slope, abs=1e-5 + noise / 4)
    assert found[1] == pytest.approx(offset, abs=1e-5 + noise / 4)


REDUNDANT, ACTIVE, ACTIVE_FC1 = 0.5877, 0.4295, 0.64  # sparsities that leave 227,000 parameters, to within 1%


def retrained(network, steps=6):
    options = {"steps": steps, "precision": "fp32", "bar": False}
    return [cl.train.finetune(network, cl.data.load("mnist").train, seed=seed, **options) for seed in range(3)]


@functools.cache
def raced():
    """Networks by redundancy and by activation, not retrained and retrained with three seeds."""
    dense, images = cl.models.pretrained("article_mlp", "mnist"), cl.data.load("mnist").train.images[:1000]
    redundant = cl.redundancy_pruning.prune(dense, images, sparsity=REDUNDANT)
    active = cl.activation_pruning.prune(dense, images, sparsity=ACTIVE)
    return redundant, active, retrained(redundant), retrained(active)


@pytest.mark.parametrize("kind", [tuple, list])
def test_the_contest_passes_and_tells_by_how_much(kind):
    *_, by_redundancy, by_activation = raced()
    result = cl.classroom.check("04.contest", kind((by_redundancy, kind(by_activation), "activation is better")))
    assert result, result.message
    for team in (by_redundancy, by_activation):
        accuracies = [cl.measure.accuracy(network, cl.data.load("mnist").validation) for network in team]
        assert f"{sum(accuracies) / 3:.2%}" in result.message


def test_any_statistic_and_any_layers_are_an_answer():
    dense, images = cl.models.pretrained("article_mlp", "mnist"), cl.data.load("mnist").train.images[:1000]
    setting = {"sparsity": ACTIVE_FC1, "statistic": "variance", "layers": ["fc1"]}
    team = retrained(cl.activation_pruning.prune(dense, images, **setting), 3)
    result = cl.classroom.check("04.contest", (raced()[2], team, "activation is better"))
    assert result, result.message


def test_a_verdict_is_for_all_seeds():
    *_, by_redundancy, by_activation = raced()
    split = cl.data.load("mnist").validation
    assert exercises._contest_verdict(by_activation, by_redundancy, split) == "redundancy is better"
    mixed = [by_redundancy[0], *by_activation[1:]]
    assert exercises._contest_verdict(mixed, by_activation, split) == "can't tell"
    assert exercises._contest_verdict(by_activation, by_activation, split) == "can't tell"


def test_wrong_networks_or_a_wrong_verdict_fail_with_a_hint_that_fits():
    redundant, active, by_redundancy, by_activation = raced()
    dense, images = cl.models.pretrained("article_mlp", "mnist"), cl.data.load("mnist").train.images[:1000]
    larger = cl.redundancy_pruning.prune(dense, images, sparsity=0.2)
    drawn = retrained(cl.redundancy_pruning.prune(dense, images, sparsity=REDUNDANT, criterion="random"), 2)
    foreign = retrained(cl.activation_pruning.prune(active, images, sparsity=0.0, fresh=True), 2)
    right = "activation is better"
    wrong = {
        "look exchanged": [(by_activation, by_redundancy, "redundancy is better")],
        "twins; was it pruned by similarity": [
            (by_activation, by_activation, "can't tell"),
            (drawn, by_activation, right),
        ],
        "quiet neurons": [(by_redundancy, by_redundancy, "can't tell"), (by_redundancy, drawn, right)],
        "not been retrained": [([redundant] * 3, by_activation, right), (by_redundancy, [active] * 3, right)],
        "are the same": [(by_redundancy[:1] * 3, by_activation, right)],
        "parameters; all should have 227,000": [
            ([larger] * 3, by_activation, right),
            (by_redundancy, [dense] * 3, right),
        ],
        "keep the same neurons": [([*by_redundancy[:2], by_activation[0]], by_activation, right)],
        "not made from the pretrained": [(by_redundancy, foreign, right)],
        "list of 3 networks": [
            (by_redundancy[0], by_activation, right),
            by_redundancy,
            (by_redundancy, by_activation[:2], right),
            (0.97, 0.98, right),
        ],
        "not article_mlp": [([nn.Linear(784, 10)] * 3, by_activation, right), ([0.9] * 3, by_activation, right)],
        "Give three things": [(by_redundancy, by_activation), 0.98],
        "one of each": [([*by_redundancy, *retrained(redundant, 7)[:1]], by_activation, right)],
        "does not hold": [
            (by_redundancy, by_activation, other)
            for other in ("redundancy is better", "can't tell", "a is better", None, 1, torch.ones(2))
        ],
    }
    for hint, answers in wrong.items():
        for answer in answers:
            result = cl.classroom.check("04.contest", answer)
            assert not result
            assert hint in result.message
