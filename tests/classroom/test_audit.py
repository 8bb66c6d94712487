"""Exercises of notebook 10: right answers pass, plausible wrong ones score nothing, and hints fit the mistake."""

import functools
import math
import statistics

import pytest
import torch
from scipy import stats
from torch import nn

import compresslab as cl
from compresslab.classroom import audit as exercises

pytestmark = pytest.mark.slow


@functools.cache
def dense():
    return cl.models.pretrained("article_mlp", "mnist")


@functools.cache
def compressed(technique, steps, **setting):
    """What a technique and a retraining make of the article's network."""
    steps = [(technique, setting), ("retrain", {"steps": steps})]
    return cl.Recipe(steps).apply(dense(), "mnist", journal=False, bar=False)


def find_losses(dense, small):
    losses = [100 * (before - after) for before, after in zip(dense, small, strict=True)]
    return statistics.mean(losses), min(losses), max(losses)


def subtract_means(dense, small):
    losses = [100 * (statistics.mean(dense) - after) for after in small]
    return statistics.mean(losses), min(losses), max(losses)


def subtract_ends(dense, small):
    mean = 100 * (statistics.mean(dense) - statistics.mean(small))
    return mean, 100 * (min(dense) - max(small)), 100 * (max(dense) - min(small))


def test_losses_right():
    for answer in (find_losses, lambda *pair: [torch.tensor(value) for value in find_losses(*pair)]):
        result = cl.classroom.check("10.losses", answer)
        assert result and result.points == 1 and "right." in result.message


@pytest.mark.parametrize(
    "answer, hint",
    [
        (subtract_means, "not from the mean"),
        (subtract_ends, "subtract first"),
        (lambda *pair: tuple(value / 100 for value in find_losses(*pair)), "these are fractions"),
        (lambda dense, small: find_losses(small, dense), "above 0 where the compressed network is worse"),
        (lambda *pair: (find_losses(*pair)[0], *find_losses(*pair)[:0:-1]), "mean first"),
        (lambda *pair: find_losses(*pair)[0], "give three things"),
        (lambda *pair: (0, 0, 0), "which pairs"),
        (0.6, "the function itself"),
    ],
)
def test_losses_wrong(answer, hint):
    result = cl.classroom.check("10.losses", answer)
    assert not result and result.points == 0 and hint.lower() in result.message.lower(), result.message


def test_turned_right():
    result = cl.classroom.check(
        "10.turned", (compressed("low_rank", 100, rank=40), compressed("quantization", 0, bits=4))
    )
    assert result and result.points == 2, result.message
    assert "KiB" in result.message and len(result.message) < 320


def test_turned_wrong():
    factors, grid = compressed("low_rank", 100, rank=40), compressed("quantization", 0, bits=4)
    wrong = {
        "twice as many parameters": [(grid, factors), (grid, grid), (factors, factors)],
        "70% of the bytes": [(factors, dense())],
        "loses": [(compressed("low_rank", 0, rank=3), grid), (factors, cl.quantization.quantize(dense(), bits=1))],
        "give the network itself": [(factors, 0.98), (0.98, grid)],
        "apply the recipe": [(factors, cl.Recipe([("quantization", {"bits": 4})]))],
        "no file that answers to images": [(nn.Linear(3, 10), grid)],
        "give two things": [factors, (factors, grid, grid)],
    }
    for hint, answers in wrong.items():
        for answer in answers:
            result = cl.classroom.check("10.turned", answer)
            assert not result and result.points == 0 and hint.lower() in result.message.lower(), result.message


def settle(measure_loss, bound, fewest=3, most=30, quantile=None, of_mean=True):
    losses = [measure_loss(seed) for seed in range(fewest - 1)]
    while len(losses) < most:
        losses.append(measure_loss(len(losses)))
        count = len(losses)
        spread = statistics.stdev(losses) if count > 1 else 0.0
        half = (quantile or stats.t.ppf(0.975, count - 1)) * spread / (math.sqrt(count) if of_mean else 1)
        if abs(statistics.mean(losses) - bound) > half:
            return ("holds" if statistics.mean(losses) < bound else "does not hold"), count
    return "cannot tell", most


def test_seeds_right():
    result = cl.classroom.check("10.seeds", settle)
    assert result and result.points == 3, result.message
    assert "reach a verdict" in result.message and len(result.message) < 320


@pytest.mark.parametrize(
    "answer, hint",
    [
        (functools.partial(settle, fewest=1, quantile=1.96), "begin with three"),
        (functools.partial(settle, fewest=2), "begin with three"),
        (functools.partial(settle, of_mean=False), "root of their number"),
        (functools.partial(settle, quantile=1.96), "Student"),
        (functools.partial(settle, fewest=10), "after every seed"),
        (lambda *case: (settle(*case)[0] == "holds", settle(*case)[1]), "the verdicts are"),
        (lambda loss, bound: ("holds" if loss(0) <= bound else "does not hold", 1), "begin with three"),
        (lambda loss, bound: ("cannot tell", 30), ""),
        (lambda loss, bound: "holds", "give two things"),
        (lambda loss: None, "stopped with TypeError"),
        ("holds", "the function itself"),
    ],
)
def test_seeds_wrong(answer, hint):
    result = cl.classroom.check("10.seeds", answer)
    assert not result and result.points == 0 and hint.lower() in result.message.lower(), result.message


@functools.cache
def fitting():
    """A network for each constraint."""
    flash = compressed("quantization", 200, bits=2)
    return (
        flash,
        compressed("low_rank", 300, rank=30),
        compressed("activation_pruning", 300, sparsity=0.65, statistic="variance"),
    )


def test_constraints_right():
    result = cl.classroom.check("10.constraints", fitting())
    assert result and result.points == 3, result.message
    assert len(result.message) < 320


def test_constraints_wrong():
    flash, memory, battery = fitting()
    zeros = compressed("zero_pruning", 60, sparsity=0.95)
    wrong = {
        "flash: ": [(dense(), memory, battery), (cl.quantization.quantize(dense(), bits=1), memory, battery)],
        "memory: ": [(flash, flash, battery), (flash, zeros, battery)],
        "battery: ": [(flash, memory, dense()), (flash, memory, zeros)],
        "points are lost": [(flash, compressed("low_rank", 0, rank=3), battery)],
        "give three things": [flash, (flash, memory)],
        "give the network itself": [(flash, memory, "small.clab")],
    }
    for hint, answers in wrong.items():
        for answer in answers:
            result = cl.classroom.check("10.constraints", answer)
            assert not result and result.points == 0 and hint.lower() in result.message.lower(), result.message


def test_every_exercise_is_there():
    names = {name for name in cl.classroom.exercises() if name.startswith("10.")}
    assert names == {"10.losses", "10.turned", "10.seeds", "10.constraints"}
    assert exercises._FEWEST == 3
