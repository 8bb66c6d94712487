"""Exercises of notebook 00: right answers pass, plausible wrong ones do not, and hints fit the mistake."""

import math
import statistics

import numpy as np
import pytest
import torch

import compresslab as cl
from compresslab.classroom import honest_meter


def count(shapes):
    return sum(math.prod(shape) for shape in shapes)


def halving(times):
    return min((size for size in times if times[size] / size <= times[1] / 2), default=None)


def first_halving(times):
    return next((size for size in times if times[size] / size <= times[1] / 2), None)


def told_apart(a, b):
    low, high = np.quantile(np.asarray(a) / np.asarray(b), [0.25, 0.75])
    return low > 1 or high < 1


def separate_spreads(a, b):
    return np.quantile(a, 0.25) > np.quantile(b, 0.75) or np.quantile(a, 0.75) < np.quantile(b, 0.25)


def beats(one, other):
    return one != other and one[0] <= other[0] and one[1] >= other[1]


def pareto(points):
    return [point for point in points if not any(beats(other, point) for other in points)]


SHAPES = [(300, 784), (300,), (100, 300), (100,), (10, 100), (10,)]  # LeNet-300-100
RIGHT = {
    "00.file_bytes": [
        lambda shapes: 4 * count(shapes),
        lambda shapes: 4 * count(shapes) + 1500,
        lambda shapes: torch.tensor(4 * sum(torch.zeros(shape).numel() for shape in shapes)),
        lambda shapes: np.float64(4 * sum(np.prod(shape) for shape in shapes)),
    ],
    "00.halving_batch_size": [halving, lambda times: halving(dict(sorted(times.items())))],
    "00.told_apart": [
        told_apart,
        lambda a, b: bool(told_apart(b, a)),
        lambda a, b: max((torch.tensor(a / b) > 1).float().mean(), (torch.tensor(a / b) < 1).float().mean()) > 0.75,
    ],
    "00.pareto": [pareto, lambda points: set(pareto(points)), lambda points: np.array(pareto(points)).reshape(-1, 2)],
}
WRONG = {
    "00.file_bytes": [
        (count, "how many bytes"),
        (lambda shapes: 4 * count(shape for shape in shapes if len(shape) > 1), "left out"),
        (lambda shapes: 32 * count(shapes), "bits"),
        (lambda shapes: 8 * count(shapes), "double"),
        (lambda shapes: 2 * count(shapes), "half precision"),
        (lambda shapes: 4 * count(shapes) / 1024, "KiB"),
        (lambda shapes: 4 * sum(sum(shape) for shape in shapes), "how many numbers has a tensor"),
        (lambda shapes: 4 * 266_610, ""),
        (lambda shapes: 4.2 * count(shapes), ""),
        (lambda shapes: -4 * count(shapes), "more than that"),
        (lambda shapes: 4 * sum(shape[0] * shape[-1] for shape in shapes), ""),
        (1_066_440, "the function itself"),
        (lambda shapes: str(4 * count(shapes)), "should be a number"),
    ],
    "00.halving_batch_size": [
        (first_halving, "a smaller one does too"),
        (lambda times: min((size for size in times if times[size] <= times[1] / 2), default=None), ""),
        (lambda times: min((size for size in times if times[size] / size < times[1] / 2), default=None), ""),
        (lambda times: min(times, key=lambda size: times[size] / size), "a smaller one"),
        (lambda times: min(times, key=lambda size: abs(times[size] / size - times[1] / 2)), ""),
        (lambda times: halving(times) or 1, "return None"),
        (lambda times: 4, ""),
        (lambda times: 1, "100%"),
        (lambda times: 3, "not one of its batch sizes"),
        (4, "the function itself"),
    ],
    "00.told_apart": [
        (lambda a, b: bool(np.median(a) != np.median(b)), "cannot be told apart"),
        (lambda a, b: False, "can be told apart"),
        (lambda a, b: True, "cannot be told apart"),
        (lambda a, b: bool(np.median(a / b) > 1.05), "either way"),
        (lambda a, b: bool(abs(np.mean(a) / np.mean(b) - 1) > 0.05), "mean"),
        (lambda a, b: bool(separate_spreads(a, b)), "neighbour"),
        (lambda a, b: bool(np.min(a / b) > 1 or np.max(a / b) < 1), ""),
        (lambda a, b: a[0] > b[0], ""),
        (lambda a, b: np.asarray(a) > np.asarray(b), "True or False"),
        (lambda a, b: statistics.median(a) / statistics.median(b), "True or False"),
    ],
    "00.pareto": [
        (lambda points: points, "is kept"),
        (lambda points: [], "is missing"),
        (lambda points: [max(points, key=lambda point: point[1])] if points else [], ""),
        (lambda points: [p for p in points if not any(o[0] < p[0] and o[1] > p[1] for o in points)], "is kept"),
        (lambda points: [p for p in points if not any(o[0] <= p[0] and o[1] >= p[1] for o in points)], "is missing"),
        (lambda points: pareto([(size, -accuracy) for size, accuracy in points]), ""),
        (lambda points: [accuracy for _, accuracy in pareto(points)], "pairs"),
        (lambda points: [*pareto(points), (1, 1.0)], "not one of the points"),
    ],
}


@pytest.mark.parametrize("name, answer", [(name, answer) for name in RIGHT for answer in RIGHT[name]])
def test_right_answers_pass(name, answer):
    result = cl.classroom.check(name, answer)
    assert result, result.message
    assert "right." in result.message and len(result.message) < 300


@pytest.mark.parametrize("name, answer, hint", [(name, *one) for name in WRONG for one in WRONG[name]])
def test_wrong_answers_fail_with_a_hint_that_fits(name, answer, hint):
    result = cl.classroom.check(name, answer)
    assert not result
    assert hint in result.message


def test_hints_on_bytes_do_not_give_the_length_of_the_file_away():
    for answer in [
        wrong for wrong, _ in WRONG["00.file_bytes"] if callable(wrong) and not isinstance(wrong(SHAPES), str)
    ]:
        assert "1066440" not in cl.classroom.check("00.file_bytes", answer).message.replace(",", "").replace("_", "")


def test_the_lengths_compared_with_are_those_of_the_meter():
    model = cl.models.lenet_300_100(seed=0)
    assert [tuple(weight.shape) for weight in model.parameters()] == SHAPES
    assert honest_meter._saved_bytes(SHAPES) == pytest.approx(cl.measure.sizes(model).torch_save_bytes, rel=0.005)
