"""Compress, measure, retrain, measure again: one Trial at a time, or a grid on as many machines as there are.

`stages` computes one Trial and hands over after every training step; the lab drives it. `run` yields a Result for each
setting of a grid, from the journal where it can. A Trial is computed on one torch thread, in an arithmetic that is
named, so that notebook, lab, process pool and cluster get the same numbers.
"""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from torch import nn
from tqdm.auto import tqdm

from compresslab import bars, checks, measure, storage, train
from compresslab.data import Data, Split
from compresslab.experiments import executors
from compresslab.experiments import journal as journals
from compresslab.experiments.journal import Journal, Result, training_of
from compresslab.experiments.trial import Trial, blank_results, check_trial, load_subject, resolved, takes_seed
from compresslab.models import seed_global
from compresslab.techniques import Technique
from compresslab.weights import layers

__all__ = ["Event", "Result", "Trial", "run", "stages"]


@dataclass(frozen=True)
class Event:
    """Describe where a Trial stands."""

    stage: str  # "compressed", "one-shot", "training" (after every step), "retrained"; "preparing" in a Recipe
    model: nn.Module  # the compressed model, one object in all events: it is trained in place between them
    result: Result | None = None  # what was measured, at "one-shot" and "retrained"
    progress: train.Progress | None = None  # at each step of training
    start: nn.Module | None = None  # at "compressed" the model that the technique was applied to
    note: str = ""  # in a Recipe the step, in words


def stages(
    trial: Trial, model: nn.Module, data: Data, journal: Journal | str | bool | None = None,
    names: Mapping | None = None,
) -> Iterator[Event]:  # fmt: skip
    """Compute a Trial, yielding an Event after each stage and each training step.

    Stop iterating to cancel.
    model    any nn.Module; it is left as it is
    data     data.Data: trained on .train, measured on .validation
    journal  a Journal, a path, None for the default one, False for none; both Results are recorded in it
    names    {"model": …, "data": …}: how the Results call them, instead of their own names
    raises   ValueError for a setting that the technique does not have or take
    """
    checks.module("model", model)
    journal = open_journal(journal)
    return drive(_compute_stages(trial, model, data, names or {}, journal), journal)


def drive(events: Generator[Event], journal: Journal | None) -> Iterator[Event]:
    """Run a generator of Events in turns; time and record its Results."""
    seconds = 0.0
    with contextlib.closing(events):
        while True:
            with take_turn():
                start = time.perf_counter()
                event = next(events, None)
                seconds += time.perf_counter() - start
            if event is None:
                return
            if event.result is not None:
                result = replace(event.result, seconds=seconds, created=datetime.now(UTC).isoformat())
                event = replace(event, result=result if journal is None else journal.record(result))
            yield event


def run(
    technique: Technique | str, model: nn.Module | str, data: Data | str, grid: Mapping | Iterable[Mapping], *,
    epochs: float | None = None, steps: int | None = None, seed: int | Iterable[int] = 0,
    executor: Executor | None = None, journal: Journal | str | bool | None = None, names: Mapping | None = None,
    bar: bool = True, **training,
) -> Iterator[Result]:  # fmt: skip
    """Measure a technique over a grid of settings, yielding Results as they finish.

    technique      a technique's name, or a Technique of your own
    model, data    an nn.Module and a data.Data, or the names of a pretrained network and of a data set
    grid           {"sparsity": [0.5, 0.9], "scope": ["global", "layer"]}: every combination; or a list of settings,
                   [{"sparsity": 0.9}, {"threshold": 0.03}], for parameters that exclude one another
    epochs, steps  length of the retraining: one of the two, or neither for one epoch; 0 measures without retraining
    seed           a whole number, or a list of them: every setting with every seed
    executor       None computes here, one after the other; or anything with the interface of concurrent.futures: a
                   ProcessPoolExecutor, `dask.distributed.Client(...).get_executor()`. Workers must be able to import
                   a technique or a model class of your own. Threads share one torch, take turns, and gain nothing
    journal        a Journal, a path, None for the default one, False for none; what it holds comes at once
    names          {"model": …, "data": …}: how the Results call them, instead of their own names
    training       precision, lr, batch_size: as in `train.fit`;  bar  show a tqdm bar
    returns        for each setting and seed the Result at its end: "retrained", or "one-shot" without retraining
    raises         ValueError, before anything is computed, for a name or a combination that the technique does not
                   have; later ValueError, or RuntimeError, that names the setting which failed

    Stop iterating to cancel what has not begun. What is finished is in the journal.
    """
    model, data, names = load_subject(model, data, names)
    if executor is not None and not hasattr(executor, "submit"):
        hint = "give None, an executor of concurrent.futures, or Dask's get_executor()"
        raise ValueError(f"executor is {checks.words(executor)}; {hint}")
    seeds = _list_values("seed", seed)
    trials = [
        check_trial(Trial(technique, setting, steps, epochs, number, **training), data)
        for setting in settings(grid)
        for number in seeds
    ]
    return _run_all(trials, model, data, names, executor, open_journal(journal), bar)


def settings(grid: Mapping | Iterable[Mapping]) -> list[dict]:
    """List the settings of a grid: every combination of its values."""
    if not isinstance(grid, Mapping):
        listed = list(grid) if isinstance(grid, Iterable) else []
        if not listed or not all(isinstance(setting, Mapping) for setting in listed):
            raise ValueError(f"grid is {checks.words(grid)}; give a dict of lists, or a list of settings (dicts)")
        return [dict(setting) for setting in listed]
    values = [_list_values(name, chosen) for name, chosen in grid.items()]
    return [dict(zip(grid, combination, strict=True)) for combination in itertools.product(*values)]


def _list_values(name, value):
    """Turn the values of a parameter, a list or a single value, into a list."""
    value = value.tolist() if hasattr(value, "tolist") else value
    single = isinstance(value, (str, Mapping)) or not isinstance(value, Iterable)
    if not (values := [value] if single else list(value)):
        raise ValueError(f"{name} is {value!r}; give at least one value")
    return values


def _run_all(trials, model, data, names, executor, journal, bar):
    """Yield the journal's Results, then the computed ones; equal Trials are computed once."""
    with take_turn():
        first = resolved(trials[0], model, data)
        blank = blank_results(first, model, data, names)[first.steps > 0]
    trials = [replace(trial, precision=first.precision) for trial in trials]
    keys = [replace(blank, setting=trial.setting, seed=trial.seed).key for trial in trials]
    results = _find_or_compute(dict(zip(keys, trials, strict=True)), model, data, names, executor, journal)
    with bars.quiet(), tqdm(total=len(trials), desc=blank.technique, disable=not bar) as shown:
        with contextlib.closing(results):
            for key, result in results:
                for _ in range(keys.count(key)):
                    shown.update()
                    yield result


def _find_or_compute(trials, model, data, names, executor, journal):
    """Yield (key, last Result) of `trials` (key -> Trial), the journal's first."""
    for key in () if journal is None else list(trials):
        if result := journal.find(key):
            del trials[key]
            yield key, result
    if executor is None:
        for key, trial in trials.items():
            yield key, compute(trial, model, data, names, journal=False if journal is None else journal)[-1]
        return
    with contextlib.closing(executors.compute_all(executor, compute, trials, model, data, names)) as finished:
        for key, results in finished:
            yield key, (results if journal is None else list(map(journal.record, results)))[-1]


def compute(
    trial: Trial, model: nn.Module, data: Data, names: Mapping, journal: Journal | bool = False
) -> list[Result]:
    """Compute both Results of a Trial; raises ValueError or RuntimeError that names the setting."""
    try:
        return [event.result for event in stages(trial, model, data, journal, names) if event.result]
    except ValueError as error:
        raise ValueError(f"{trial}: {error}") from error
    except Exception as error:
        raise RuntimeError(f"{trial}: {checks.reason(error)}") from error


def _compute_stages(trial, model, data, names, journal):
    """Yield the Events of `stages`; their Results lack the time they took."""
    trial = resolved(trial, model, data)
    one_shot, retrained = blank_results(trial, model, data, names)
    technique, start = trial.technique, model
    if technique.before is not None:
        start = yield from technique.before(model, data, trial.setting, trial.seed, journal)
    compressed = compress(trial, start, data)
    yield Event("compressed", compressed, start=start)
    yield Event("one-shot", compressed, measure_result(one_shot, compressed, data))
    if not trial.steps:
        return
    split, loss = prepare_training(technique, trial.setting, model, compressed, data.train, trial.seed)
    yield from retrain(trial, compressed, split, loss)
    yield Event("retrained", compressed, measure_result(retrained, compressed, data))


def prepare_training(
    technique: Technique, setting: Mapping, model: nn.Module, compressed: nn.Module, split: Split, seed: int
) -> tuple:
    """Return (split, loss) of a retraining, the technique's own where it has one."""
    if technique.training is None:
        return split, None
    with seed_global(seed):
        return technique.training(model, compressed, split, dict(setting), seed)


def retrain(
    trial: Trial, model: nn.Module, split: Split, loss: Callable, note: str = "", bar: bool = False
) -> Iterator[Event]:
    """Train a model in place as a Trial says, yielding an Event after each step."""
    options = training_of(trial) | {"seed": trial.seed}
    with contextlib.closing(train.fit(model, split, loss=loss, bar=bar, **options)) as training:
        for progress in training:
            yield Event("training", model, progress=progress, note=note)


def compress(trial: Trial, model: nn.Module, data: Data) -> nn.Module:
    """Apply a checked Trial's technique to a model, with torch's global generator seeded."""
    technique, setting = trial.technique, dict(trial.setting)
    if takes_seed(technique):
        setting = {"seed": trial.seed} | setting
    images = [data.train.images[: technique.calibration]] if technique.calibration else []
    with seed_global(trial.seed):
        compressed = technique.apply(model, *images, **setting)
    if not isinstance(compressed, nn.Module) or compressed is model:
        got = "the model itself" if compressed is model else f"a {type(compressed).__name__}"
        raise ValueError(f"{technique.name} returned {got}; a technique returns a new nn.Module")
    return compressed


def measure_result(result: Result, model: nn.Module, data: Data) -> Result:
    """Measure a model on the validation images, and its file; fill in the Result."""
    with ThreadPoolExecutor(1) if train.may_share(model) else contextlib.nullcontext() as pool:
        twin = layers.duplicate(model) if pool else model  # evaluating switches the model's mode
        size = pool.submit(storage.file_bytes, twin) if pool else None
        accuracy = measure.accuracy(model, data.validation)
        file_bytes = size.result() if size else storage.file_bytes(model)
    counts = {"parameters": layers.count_parameters(model), "nonzeros": layers.count_nonzeros(model)}
    return replace(result, accuracy=accuracy, file_bytes=file_bytes, **counts)


def open_journal(journal: Journal | str | bool | None) -> Journal | None:
    """Return the Journal of an argument: None for False."""
    if journal is False:
        return None
    return journal if isinstance(journal, Journal) else journals.open(journal)


@contextlib.contextmanager
def take_turn() -> Iterator[None]:
    """Let a single Trial compute at a time, on a single thread."""
    with _turn, train.threads(1):
        yield


def _renew_turn():
    """Make the lock anew: a forked process would wait for ever for a taken lock."""
    global _turn
    _turn = threading.RLock()


_renew_turn()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_turn)
