"""Exercises of notebook 10: losses by seed, a claim that turns round, enough seeds, a technique for each constraint."""

import functools
import math
import statistics

import numpy as np
from scipy import stats

from compresslab import data as datasets
from compresslab import measure, models, storage
from compresslab.classroom import feedback
from compresslab.classroom.feedback import NotYet, call, describe, exercise, read_number, split_answer
from compresslab.weights import layers

_KIB = 1024
_TURNED_POINTS = 1.0  # that either network of the second exercise may lose, on the validation images
_MORE_PARAMETERS, _SMALLER_FILE = 2.0, 0.7  # of the second network, against the first
_FEWEST, _MOST, _LEVEL = 3, 30, 0.975  # seeds, and the quantile of a 95% interval
_CONSTRAINTS = {  # name: (what is limited, limit, unit, points that may be lost)
    "flash": ("file", 72 * _KIB, "bytes of file", 0.5),
    "memory": ("memory", 400 * _KIB, "bytes of tensors", 0.6),
    "battery": ("macs", 120_000, "multiplications", 0.6),
}


@exercise("10.losses", points=1)
def check_losses(find_losses: object) -> str:
    """Write a function that returns mean, smallest and largest loss in points, paired by seed."""
    for dense, small in _paired_accuracies():
        answer = split_answer(call(find_losses, dense, small), "mean, smallest, largest")
        answer = [read_number(value) for value in answer]
        losses = [100 * (before - after) for before, after in zip(dense, small, strict=True)]
        if np.allclose(answer, [statistics.mean(losses), min(losses), max(losses)], atol=1e-6):
            continue
        mean = 100 * (statistics.mean(dense) - statistics.mean(small))
        unpaired = [mean, 100 * (min(dense) - max(small)), 100 * (max(dense) - min(small))]
        against_mean = [100 * (statistics.mean(dense) - accuracy) for accuracy in (max(small), min(small))]
        mistakes = {
            "a loss is above 0 where the compressed network is worse": [-mean, -max(losses), -min(losses)],
            "these are fractions; points are percent": [value / 100 for value in (mean, min(losses), max(losses))],
            "seed 3 of one network belongs to seed 3 of the other; subtract first, then look for the ends": unpaired,
            "subtract seed by seed, not from the mean of the dense network": [mean, *against_mean],
            "mean first, then the smallest, then the largest": [mean, max(losses), min(losses)],
        }
        close = (hint for hint, wrong in mistakes.items() if np.allclose(answer, wrong, atol=1e-6))
        text = ", ".join(f"{value:.3g}" for value in answer)
        raise NotYet(f"for {dense} and {small} you return {text}; {next(close, 'which pairs did you subtract?')}")
    return "A mean without its ends hides how far one more seed would move it."


def _paired_accuracies():
    """List pairs of accuracies, dense and compressed, by seed."""
    return [([0.986, 0.987, 0.985], [0.981, 0.985, 0.976]), ([0.98, 0.97], [0.99, 0.95]), ([0.9], [0.85])]


@exercise("10.turned", points=2)
def check_turned(answer: object) -> str:
    """Give two networks: the first has far fewer parameters, the second the far smaller file."""
    networks = split_answer(answer, "(fewer_parameters, smaller_file)")
    losses = [_points_lost(network) for network in networks]
    counts = [layers.count_parameters(network) for network in networks]
    sizes = [storage.file_bytes(network) for network in networks]
    for name, loss in zip(("first", "second"), losses, strict=True):
        if loss > _TURNED_POINTS:
            raise NotYet(f"the {name} network loses {loss:.2f} points; {_TURNED_POINTS:g} is allowed. Retrain it?")
    sizes_text = (
        f"parameters {counts[0]:,} and {counts[1]:,}, files {sizes[0] / _KIB:.0f} and {sizes[1] / _KIB:.0f} KiB"
    )
    if counts[1] < _MORE_PARAMETERS * counts[0]:
        raise NotYet(
            f"{sizes_text}: the second should have at least twice as many parameters. Which technique removes none?"
        )
    if sizes[1] > _SMALLER_FILE * sizes[0]:
        raise NotYet(
            f"{sizes_text}: the second file should have at most 70% of the bytes. What does it spend on a number?"
        )
    return f"{sizes_text}. By count the first is the smaller network, by file the second: a claim must name its size."


def _points_lost(network):
    """Return the points of validation accuracy that an answer loses against article_mlp."""
    validation = datasets.load("mnist").validation
    _, loaded = feedback.pass_through_file(network, validation)
    return 100 * (_dense_accuracy() - measure.accuracy(loaded, validation))


@functools.cache
def _dense_accuracy():
    return measure.accuracy(models.pretrained("article_mlp", "mnist"), datasets.load("mnist").validation)


@exercise("10.seeds", points=3)
def check_seeds(settle: object) -> str:
    """Write a function that adds seeds until a 95% interval leaves the bound, and gives the verdict."""
    for case, center, spread, first in _LOSSES:
        loss = _make_measurement(center, spread, first)
        answer = split_answer(call(settle, loss, 0.62), "verdict, number of seeds")
        verdict, count = answer[0], read_number(answer[1], "the number of seeds")
        expected = _settle(loss, 0.62)
        if (verdict, count) == expected:
            continue
        variants = {
            "a single seed has no spread; begin with three": _settle(loss, 0.62, fewest=1),
            "two seeds are too few; begin with three": _settle(loss, 0.62, fewest=2),
            "that is the spread of single seeds; the mean's is smaller, by the root of their number": _settle(
                loss, 0.62, of_mean=False
            ),
            "with few seeds 1.96 is too small: take the quantile of Student's t": _settle(loss, 0.62, normal=True),
        }
        hint = next((slip for slip, wrong in variants.items() if wrong == (verdict, count)), "")
        if not hint and verdict not in ("holds", "does not hold", "cannot tell"):
            hint = "the verdicts are 'holds', 'does not hold' and 'cannot tell'"
        elif not hint and verdict == expected[0]:
            hint = "look at the interval after every seed, and stop at the first that leaves the bound"
        hint = hint or "a mean plus its half-width at most the bound holds; a mean minus it above the bound does not"
        raise NotYet(f"{case}: you say {describe(verdict)} after {count:g} seeds; {hint}")
    hits = [_settle(_make_measurement(0.62, 0.1, 1000 * draw), 0.62)[0] != "cannot tell" for draw in range(200)]
    return (
        "But looking after every seed has a price: where the true loss is exactly the bound, "
        f"{statistics.mean(hits):.0%} of 200 such audits reach a verdict, not 5%. "
        "Fix the number of seeds beforehand where you can."
    )


_LOSSES = (  # case, true points lost, standard deviation over seeds, first seed of the random numbers
    ("a loss far below the bound", 0.3, 0.05, 0),
    ("a loss far above the bound", 1.1, 0.1, 50),
    ("a loss a little below the bound", 0.55, 0.1, 100),
    ("a loss a little above the bound, with much spread", 0.8, 0.3, 150),
    ("a loss at the bound", 0.62, 0.05, 200),
)


def _make_measurement(center, spread, first):
    """Return a function of a seed that draws the points lost with it."""

    def measure_loss(seed):
        return float(np.random.default_rng(first + seed).normal(center, spread))

    return measure_loss


def _settle(measure_loss, bound, fewest=_FEWEST, of_mean=True, normal=False):
    """Return (verdict, seeds): add seeds until the interval of the mean lies on one side of the bound."""
    losses = []
    for seed in range(_MOST):
        losses.append(measure_loss(seed))
        count = len(losses)
        if count < fewest:
            continue
        spread = statistics.stdev(losses) if count > 1 else 0.0
        quantile = 1.96 if normal or count == 1 else stats.t.ppf(_LEVEL, count - 1)
        half, mean = quantile * spread / (math.sqrt(count) if of_mean else 1), statistics.mean(losses)
        if mean + half <= bound:
            return "holds", count
        if mean - half > bound:
            return "does not hold", count
    return "cannot tell", _MOST


@exercise("10.constraints", points=3)
def check_constraints(answer: object) -> str:
    """Give three networks: one that fits a small file, one a small memory, one few multiplications."""
    networks = split_answer(answer, "(flash, memory, battery)")
    results = []
    for (name, (kind, limit, unit, allowed)), network in zip(_CONSTRAINTS.items(), networks, strict=True):
        loss = _points_lost(network)
        size = _COSTS[kind](network)
        if size > limit:
            raise NotYet(f"{name}: {size:,} {unit}; {limit:,} are the limit. {_HINTS[kind]}")
        if loss > allowed:
            hint = "retrain longer, or take less away"
            raise NotYet(
                f"{name}: {size:,} {unit} are few enough, but {loss:.2f} points are lost, not {allowed:g}; {hint}"
            )
        results.append(f"{name} {size:,} {unit}, {loss:+.2f} points")
    return f"{'; '.join(results)}. A constraint chooses the technique, not its name."


def _count_memory(network):
    """Count the bytes of the tensors that a network has when it runs."""
    return sum(tensor.nbytes for tensor in layers.plain(network).state_dict().values())


_COSTS = {
    "file": storage.file_bytes,
    "memory": _count_memory,
    "macs": functools.partial(measure.macs, images=(1, 28, 28)),
}
_HINTS = {
    "file": "What makes zeros, or few values, that the file can code?",
    "memory": "Zeros and grids are unpacked when the network runs; which techniques make matrices smaller?",
    "macs": "Which techniques leave fewer rows and columns, or thin factors?",
}
