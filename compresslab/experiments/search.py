"""Finding a recipe that meets limits, with Optuna; every measured recipe is kept in the journal.

    result = cl.search(net, data, max_bytes=50_000, min_accuracy=0.97, trials=20, seed=0)
    print(result.why)

A recipe of the space removes neurons, prunes weights, then puts the rest on a grid or into a codebook, each with a
retraining after it; each of the three may be left out. The sampler is seeded, and what has been measured before comes
from the journal: a search that was interrupted is repeated up to where it was, in no time, and goes on.

Akiba et al. 2019, arXiv:1907.10902 (Optuna). Its sampler fits a Gaussian process to what has been measured and asks
for the recipe that promises the largest gain: Jones et al. 1998, doi:10.1023/A:1008306431147.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass

import pandas as pd
from torch import nn
from tqdm.auto import tqdm

from compresslab import bars, checks, measure
from compresslab.data import Data
from compresslab.experiments import executors, sweep
from compresslab.experiments.journal import Journal
from compresslab.experiments.recipe import Recipe
from compresslab.experiments.recipe_work import Work
from compresslab.experiments.trial import load_subject
from compresslab.export.runtime import import_optional
from compresslab.techniques import get

STARTUP = 3  # one in so many trials, the first ones, is drawn evenly
AT_ONCE = 4  # trials in the hands of an executor
OUTSIDE = 1.0  # what breaking a limit costs, in halvings of the file or points of accuracy,
MISS = 2.0  # and what each doubling of 1 + the halvings or points costs by which it is missed


@dataclass(frozen=True)
class SearchResult:
    """Hold what a search chose, and all it tried.

    model       the compressed model;  recipe  the Recipe that makes it
    accuracy    fraction of the validation images, 0 to 1
    file_bytes  of its .clab file;  milliseconds  at batch 1 in torch, None without `max_ms`
    trials      a row for each recipe: recipe, accuracy, file_bytes, milliseconds, meets_limits, error
    why         what was tried and why this one was chosen, in sentences
    """

    model: nn.Module
    recipe: Recipe
    accuracy: float
    file_bytes: int
    milliseconds: float | None
    trials: pd.DataFrame
    why: str


class NothingFitsError(ValueError):
    """Say that no recipe meets the limits. Its text says what came nearest; `trials` is the table of all."""

    def __init__(self, text: str, trials: pd.DataFrame):
        super().__init__(text)
        self.trials = trials


@dataclass(frozen=True)
class _Limits:
    """Hold what a recipe must meet; None for no limit."""

    max_bytes: float | None
    max_ms: float | None
    min_accuracy: float | None

    def list_misses(self, point: dict) -> list[float]:
        """Return by how much a point misses each limit: in halvings of bytes or time, and in points of accuracy."""
        misses = []
        if self.max_bytes is not None:
            misses.append(math.log2(point["file_bytes"] / self.max_bytes))
        if self.max_ms is not None:
            misses.append(math.log2(point["milliseconds"] / self.max_ms))
        if self.min_accuracy is not None:
            misses.append(100 * (self.min_accuracy - point["accuracy"]))
        return [miss for miss in misses if miss > 0]

    def score(self, point: dict) -> float:
        """Return what the search makes small: the file where an accuracy is asked for, else the points lost."""
        aim = math.log2(point["file_bytes"]) if self.min_accuracy is not None else -100 * point["accuracy"]
        misses = self.list_misses(point)
        return aim + (OUTSIDE + MISS * math.log2(1 + sum(misses)) if misses else 0)

    def __str__(self):
        parts = [] if self.max_bytes is None else [f"max_bytes={self.max_bytes:,.0f}"]
        parts += [] if self.max_ms is None else [f"max_ms={self.max_ms:g}"]
        return ", ".join(parts + ([] if self.min_accuracy is None else [f"min_accuracy={self.min_accuracy:g}"]))


@bars.quiet()
def search(
    model: nn.Module | str, data: Data | str, *, max_bytes: float | None = None, max_ms: float | None = None,
    min_accuracy: float | None = None, trials: int = 20, seed: int = 0, epochs: float | None = None,
    steps: int | None = None, executor: futures.Executor | None = None,
    journal: Journal | str | bool | None = None, bar: bool = True,
) -> SearchResult:  # fmt: skip
    """Search for a recipe that meets limits: the smallest file if an accuracy is asked for, else the best accuracy.

    model          an nn.Module, or the name of a pretrained network; it is not changed
    data           data.Data, or the name of a data set: trained on .train, judged on .validation
    max_bytes      of the .clab file;  max_ms  of one image in torch on one thread, the median
    min_accuracy   fraction of the validation images, or of the data's metric; give one of the three limits at least
    trials         recipes to measure, 1 or more;  seed  of the sampler and of every training
    epochs, steps  length of each retraining: one of the two, or neither for one epoch
    executor       None measures here; or an executor of concurrent.futures, which gets a few trials at a time
    journal        a Journal, a path, None for the default one, False for none
    bar            show a tqdm bar over the trials
    raises         NothingFitsError, a ValueError, if no recipe meets the limits; ValueError for bad limits;
                   ImportError without Optuna
    """
    model, data, _ = load_subject(model, data)
    limits = _check_limits(max_bytes, max_ms, min_accuracy, data.validation.metric)
    trials, seed = checks.integer("trials", trials, 1), checks.integer("seed", seed, 0)
    if epochs is not None and steps is not None:
        raise ValueError(f"epochs is {checks.words(epochs)} and steps is {checks.words(steps)}; give one of them")
    training = {"steps": steps} if steps is not None else {"epochs": 1 if epochs is None else epochs}
    journal = sweep.open_journal(journal)
    study, points = _make_study(trials, seed), []
    parcel = None if executor is None else executors.pack(get("zero_pruning"), model, data, {})
    with tqdm(total=trials, desc="searching", disable=not bar) as shown:
        while len(points) < trials:
            asked = [study.ask() for _ in range(min(1 if executor is None else AT_ONCE, trials - len(points)))]
            recipes = [_suggest(trial, training) for trial in asked]
            measured = _measure_all(recipes, model, data, seed, journal, max_ms is not None, executor, parcel)
            for trial, point in zip(asked, measured, strict=True):
                points.append(point)
                study.tell(trial, limits.score(point) if not point["error"] else math.nan)  # nan: the trial failed
                shown.set_postfix_str(_describe(next(iter(_sort(points, limits)), point)))
                shown.update()
    return _choose(points, limits, model, data, seed, journal)


def _check_limits(max_bytes, max_ms, min_accuracy, metric):
    if max_bytes is None and max_ms is None and min_accuracy is None:
        raise ValueError("max_bytes, max_ms and min_accuracy are None; give a limit, such as min_accuracy=0.97")
    for name, value in (("max_bytes", max_bytes), ("max_ms", max_ms)):
        if value is not None and checks.real(name, value, 0, math.inf) == 0:
            raise ValueError(f"{name} is 0; give a number above 0")
    if min_accuracy is not None:
        checks.real("min_accuracy", min_accuracy, *((0, 1) if metric is None else (-math.inf, math.inf)))
    return _Limits(max_bytes, max_ms, min_accuracy)


def _make_study(trials, seed):
    """Return an Optuna study in memory, which minimizes."""
    optuna = import_optional("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls this sampler experimental
        startup = max(2, trials // STARTUP)
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=True)
    return optuna.create_study(sampler=sampler)


def _suggest(trial, training):
    """Return the Recipe of an Optuna trial."""
    neurons = trial.suggest_float("neurons", 0, 0.8, step=0.1)
    density = trial.suggest_float("density", 0.02, 1, log=True)
    values = trial.suggest_categorical("values", ["fp32", "grid", "codebook"])
    bits = trial.suggest_int("bits", 2, 8)
    chosen = [("activation_pruning", {"sparsity": round(neurons, 1), "statistic": "variance"})] if neurons else []
    chosen += [("zero_pruning", {"sparsity": round(1 - density, 3)})] if density < 0.9 else []
    if values != "fp32":
        chosen.append(("quantization" if values == "grid" else "weight_sharing", {"bits": bits}))
    retrain = ("retrain", training)
    return Recipe([step for technique in chosen for step in (technique, retrain)] or [retrain])


def _measure_all(recipes, model, data, seed, journal, timed, executor, parcel) -> Iterator[dict]:
    """Yield the point of each recipe; those that the journal lacks are measured by the executor, if there is one."""
    points = [
        None if executor is None or timed else _find_point(recipe, model, data, seed, journal) for recipe in recipes
    ]
    missing = [] if executor is None else [position for position, point in enumerate(points) if point is None]
    tasks = {
        position: executor.submit(_measure_remotely, recipes[position].to_json(), parcel, seed, timed)
        for position in missing
    }
    for position, recipe in enumerate(recipes):
        point = points[position]
        if position in tasks:
            point, results = tasks[position].result()
            for result in results if journal is not None else ():
                journal.record(result)
        yield point or _measure(recipe, model, data, seed, journal, timed)[0]


def _find_point(recipe, model, data, seed, journal):
    """Return the point of a recipe that the journal holds, or None."""
    if journal is None:
        return None
    try:
        result = journal.find(Work(recipe.steps, model, data, seed, journal).blanks[-1].key)
    except (ValueError, ArithmeticError):
        return None
    return result and _make_point(recipe, result.accuracy, result.file_bytes)


def _measure(recipe, model, data, seed, journal, timed):
    """Return the point of a recipe, and its Results; a recipe that the model does not take has an error."""
    results, compressed = [], None
    try:
        with contextlib.closing(recipe.stages(model, data, seed, journal)) as events:
            for event in events:
                results += [event.result] if event.result else []
                compressed = event.model
    except (ValueError, ArithmeticError) as error:
        return _make_point(recipe, error=checks.reason(error)), results
    last, time = results[-1], None
    if timed:
        shape = tuple(data.train.images.shape[1:])
        time = 1000 * measure.latency(compressed, batch_size=1, shape=shape).median
    return _make_point(recipe, last.accuracy, last.file_bytes, time), results


def _make_point(recipe, accuracy=math.nan, file_bytes=0, milliseconds=None, error=""):
    return {
        "recipe": recipe, "accuracy": accuracy, "file_bytes": file_bytes, "milliseconds": milliseconds, "error": error,
    }  # fmt: skip


def _measure_remotely(steps, parcel, seed, timed):
    """Measure a recipe in a worker."""
    _, model, data, _ = executors.unpack(parcel)
    return _measure(Recipe.from_json(steps), model, data, seed, False, timed)


def _sort(points, limits):
    """Return the points without an error, the best first: those that meet the limits before all others."""
    return sorted((point for point in points if not point["error"]), key=limits.score)


def _describe(point):
    time = "" if point["milliseconds"] is None else f", {point['milliseconds']:.3g} ms"
    accuracy = point["accuracy"]  # of a metric of the user's own it may be any number
    words = format(accuracy, ".2%" if 0 <= accuracy <= 1 else ".4g")
    return f"{point['error'] or words} with {point['file_bytes']:,} bytes{time}"


def _choose(points, limits, model, data, seed, journal):
    """Make the SearchResult of the best point; raises NothingFitsError if none meets the limits."""
    ranked = _sort(points, limits)
    frame = pd.DataFrame(points)
    frame.insert(4, "meets_limits", [not point["error"] and not limits.list_misses(point) for point in points])
    failed = f" {len(points) - len(ranked)} could not be applied to this model." if len(ranked) < len(points) else ""
    count = int(frame["meets_limits"].sum())
    verb = "meets" if count < 2 else "meet"
    tried = f"Tried {len(points)} recipes; {count or 'none'} of them {verb} {limits}.{failed}"
    if not count:
        near = f" Nearest came {_describe(ranked[0])}: {ranked[0]['recipe']}." if ranked else ""
        reason = "" if ranked else f" The last said: {points[-1]['error']}"
        raise NothingFitsError(f"{tried}{near}{reason} Loosen a limit, or give more trials or epochs.", frame)
    best = ranked[0]
    aim = "smallest file" if limits.min_accuracy is not None else "best accuracy"
    second = f" Next came {_describe(ranked[1])}: {ranked[1]['recipe']}." if count > 1 else ""
    chosen = f"Chosen is the {aim} of these, {_describe(best)}: {best['recipe']}."
    why = f"{tried} {chosen}{second} Accuracy is of the validation images."
    compressed = best["recipe"].apply(model, data, seed, journal, bar=False)
    figures = best["accuracy"], best["file_bytes"], best["milliseconds"]
    return SearchResult(compressed, best["recipe"], *figures, frame, why)
