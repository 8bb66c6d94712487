"""Exercises of notebook 02: right answers pass, plausible wrong ones do not, and hints fit the mistake."""

import functools

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab.classroom import zero_pruning as exercises

pytestmark = pytest.mark.slow


def weights(model):
    return {name: layer.weight.detach() for name, layer in cl.layers.weight_layers(model).items()}


def magnitudes(model):
    return torch.cat([weight.abs().flatten() for weight in weights(model).values()])


def threshold_for(model, sparsity):
    return magnitudes(model).quantile(sparsity)


def sorted_threshold(model, sparsity):
    ranked = magnitudes(model).sort().values
    return ranked[round(sparsity * len(ranked))].item()


def with_biases(model, sparsity):
    return torch.cat([parameter.detach().abs().flatten() for parameter in model.parameters()]).quantile(sparsity)


def mean_of_layers(model, sparsity):
    return torch.stack([weight.abs().quantile(sparsity) for weight in weights(model).values()]).mean()


def signed(model, sparsity):
    return torch.cat([weight.flatten() for weight in weights(model).values()]).quantile(sparsity)


def smallest(score):
    return lambda model: min(weights(model), key=lambda name: float(score(weights(model)[name])))


def break_even(rows, columns, index_bytes):
    return 1 - (4 * rows * columns - 4 * (rows + 1)) / ((4 + index_bytes) * rows * columns)


RIGHT = {
    "02.threshold_for": [threshold_for, sorted_threshold],
    "02.dies_first": [smallest(lambda weight: weight.abs().max()), smallest(lambda weight: weight.norm(float("inf")))],
    "02.csr_break_even": [break_even, lambda m, n, k: (k * m * n + 4 * (m + 1)) / ((4 + k) * m * n)],
}
WRONG = {
    "02.threshold_for": [
        (lambda model, sparsity: sparsity, ""),
        (lambda model, sparsity: threshold_for(model, 1 - sparsity), "share that stays"),
        (with_biases, "weights only"),
        (mean_of_layers, "all layers together"),
        (signed, "magnitude"),
        (lambda model, sparsity: threshold_for(model, 0.9), ""),
        (lambda model, sparsity: next(iter(weights(model).values())).abs().quantile(sparsity), "all layers together"),
        (lambda model, sparsity: -1.0, "compared with |w|"),
    ],
    "02.dies_first": [
        (smallest(lambda weight: weight.abs().mean()), ""),
        (smallest(lambda weight: weight.std()), ""),
        (smallest(lambda weight: weight.max()), ""),
        (smallest(lambda weight: weight.numel()), ""),
        (smallest(lambda weight: -weight.numel()), ""),
        (smallest(lambda weight: weight.abs().min()), ""),
        (smallest(lambda weight: -weight.abs().max()), "which weight goes last"),
        (lambda model: list(weights(model))[0], ""),
        (lambda model: list(weights(model))[-1], ""),
        (lambda model: "fc9", "give the name of a layer"),
        (lambda model: 0, "give the name of a layer"),
    ],
    "02.csr_break_even": [
        (lambda m, n, k: 0.5, ""),
        (lambda m, n, k: k / (4 + k), "third array"),
        (lambda m, n, k: 1 - break_even(m, n, k), "density"),
        (lambda m, n, k: 1 - (4 * m * n - k * (m + 1)) / ((4 + k) * m * n), "third array"),
        (lambda m, n, k: 1 - (4 * m * n - 4 * (n + 1)) / ((4 + k) * m * n), "CSR is"),
        (lambda m, n, k: 8 * k / (32 + k), ""),
        (lambda m, n, k: break_even(m, n, 2), "CSR is"),
        (lambda m, n, k: 100 * break_even(m, n, k), "give a fraction"),
        (1 / 3, "the function itself"),
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


@pytest.mark.parametrize("index_bytes, near", [(2, 1 / 3), (4, 1 / 2)])
def test_the_break_even_is_measured_on_real_arrays(index_bytes, near):
    measured = exercises._measured_break_even(300, 784, index_bytes)
    assert near < measured < near + 0.002


def test_the_layer_that_dies_first_is_the_one_that_pruning_empties():
    for model in exercises._mortals().values():
        peaks = {name: float(weight.abs().max()) for name, weight in weights(model).items()}
        name = min(peaks, key=peaks.get)
        with pytest.warns(UserWarning, match=f"'{name}'"):
            pruned = cl.zero_pruning.prune(model, threshold=peaks[name] * 1.0001)
        empty = [other for other, weight in weights(pruned).items() if not weight.any()]
        assert empty == [name]


@functools.cache
def raced():
    """LeNet-300-100 at 95% sparsity, 20 training steps each: (pruned at once, pruned gradually, verdict)."""
    data, dense = cl.data.load("mnist"), cl.models.pretrained("lenet_300_100", "mnist")
    options = {"steps": 20, "seed": 0, "precision": "fp32", "bar": False}
    at_once = cl.train.finetune(cl.zero_pruning.prune(dense, sparsity=0.95), data.train, **options)
    (last,) = cl.zero_pruning.gradual(dense, data, levels=[0.95], interval=5, **options)
    return at_once, last.model, cl.measure.mcnemar(at_once, last.model, data.validation).verdict


@pytest.mark.parametrize("kind", [tuple, list])
def test_gradual_pruning_passes_and_tells_by_how_much(kind):
    result = cl.classroom.check("02.gradual", kind(raced()))
    assert result, result.message
    for model in raced()[:2]:
        assert f"{cl.measure.accuracy(model, cl.data.load('mnist').validation):.2%}" in result.message


def test_a_wrong_pair_of_networks_or_verdict_fails_with_a_hint_that_fits():
    at_once, gradually, verdict = raced()
    dense = cl.models.pretrained("lenet_300_100", "mnist")
    cut = cl.zero_pruning.prune(dense, sparsity=0.95)
    others = {"a is better", "b is better", "can't tell"} - {verdict}
    wrong = {
        "look exchanged": [(gradually, at_once, verdict)],
        "Both kept": [(at_once, at_once, "can't tell")],
        "Neither kept": [(gradually, gradually, "can't tell")],
        "not been retrained": [(cut, gradually, verdict), (at_once, cut, verdict)],
        "% sparse; both should be 95%": [(dense, gradually, verdict)],
        "98.0% sparse": [(at_once, cl.zero_pruning.prune(gradually, sparsity=0.98), verdict)],
        "no LeNet-300-100": [(nn.Linear(784, 10), gradually, verdict), (at_once, 0.97, verdict)],
        "Give three things": [at_once, (at_once, gradually), [0.95, 0.96], (at_once, gradually, 1, 2)],
        "verdict does not hold": [
            (at_once, gradually, other) for other in (*others, "gradual", 3, None, torch.ones(2))
        ],
    }
    for hint, answers in wrong.items():
        for answer in answers:
            result = cl.classroom.check("02.gradual", answer)
            assert not result
            assert hint in result.message
