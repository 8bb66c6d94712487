"""Compress, measure, retrain, measure again: one Trial at a time, or a whole grid on as many machines as there are.

`stages` computes one Trial and hands over after every training step; the lab drives it. `run` takes a grid of settings
and yields one Result for each, from the journal where it has been measured before. Either way a Trial is computed on
one torch thread, in an arithmetic that is named, so that notebook, lab, process pool and cluster get the same numbers.
"""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import torch
from torch import nn
from tqdm.auto import tqdm

from compresslab import bars, checks, layers, measure, models, storage, train, workers
from compresslab import data as datasets
from compresslab import journal as journals
from compresslab.journal import Journal, Result
from compresslab.trial import Trial, blank_results, checked, resolved, takes_seed

__all__ = ["Event", "Trial", "Result", "run", "stages"]


@dataclass(frozen=True)
class Event:
    """Where a Trial stands.

    stage     "compressed", "one-shot", "training" (after every step), "retrained"; "preparing" for the same within what
              a Recipe does before its last technique
    model     the compressed model, one object in all events: it is trained in place between them
    result    what was measured, at "one-shot" and "retrained"; else None
    progress  train.Progress at "training" and at the training steps of "preparing"; else None
    start     at "compressed" the model that the technique was given
    note      at "preparing" what is being done, in words
    """

    stage: str
    model: nn.Module
    result: Result | None = None
    progress: train.Progress | None = None
    start: nn.Module | None = None
    note: str = ""


def stages(trial, model, data, journal=None, names=None):
    """Compute one Trial, yielding an Event after each stage and each training step; stop iterating to cancel.

    model    any nn.Module; it is left as it is
    data     data.Data: trained on .train, measured on .validation
    journal  a Journal, a path, None for the default one, False for none; both Results are recorded in it
    names    {"model": …, "data": …}: how the Results call them, instead of their own names
    raises   ValueError for a setting that the technique does not have or take
    """
    checks.module("model", model)
    journal = open_journal(journal)
    return driven(_work(trial, model, data, names or {}, journal), journal)


def driven(work, journal):
    """The Events of a generator that computes, a step at a time, alone; its Results with their time, and recorded."""
    seconds = 0.0
    with contextlib.closing(work):
        while True:
            with alone():
                start = time.perf_counter()
                event = next(work, None)
                seconds += time.perf_counter() - start
            if event is None:
                return
            if event.result is not None:
                result = replace(event.result, seconds=seconds, created=datetime.now(UTC).isoformat())
                event = replace(event, result=result if journal is None else journal.record(result))
            yield event


def run(
    technique,
    model,
    data,
    grid,
    *,
    epochs=None,
    steps=None,
    seed=0,
    executor=None,
    journal=None,
    names=None,
    bar=True,
    **training,
):
    """Measure a technique over a grid of settings: a generator of Results, in the order in which they finish.

    technique      a technique's name, or a Technique of your own
    model          an nn.Module, or the name of a pretrained network
    data           data.Data, or the name of a data set
    grid           {"sparsity": [0.5, 0.9], "scope": ["global", "layer"]}: every combination; or a list of settings,
                   [{"sparsity": 0.9}, {"threshold": 0.03}], for parameters that exclude one another
    epochs, steps  length of the retraining: one of the two, or neither for one epoch; 0 measures without retraining
    seed           a whole number, or a list of them: every setting with every seed
    executor       None computes here, one after the other; or anything with the interface of concurrent.futures: a
                   ProcessPoolExecutor, `dask.distributed.Client(...).get_executor()`. Workers must be able to import
                   a technique or a model class of your own. Threads share one torch, take turns, and gain nothing
    journal        a Journal, a path, None for the default one, False for none; what it holds comes at once
    names          {"model": …, "data": …}: how the Results call them, instead of their own names
    bar            show a tqdm bar
    training       precision, lr, batch_size: as in `train.fit`
    returns        for each setting and seed the Result at its end: "retrained", or "one-shot" without retraining
    raises         ValueError, before anything is computed, for a name or a combination that the technique does not
                   have; later ValueError, or RuntimeError, that names the setting which failed

    Stop iterating to cancel what has not begun. What is finished is in the journal.
    """
    data = datasets.load(data) if isinstance(data, str) else data
    if not hasattr(data, "train") or not hasattr(data, "validation"):
        raise ValueError(f"data is a {type(data).__name__}; give a whole data set, as cl.data.load returns")
    if isinstance(model, str):
        names, model = {"model": model} | (names or {}), models.pretrained(model, data.name)
    checks.module("model", model, also=" or the name of a pretrained network")
    if executor is not None and not hasattr(executor, "submit"):
        raise ValueError(
            f"executor is {checks.words(executor)}; "
            "give None, an executor of concurrent.futures, or Dask's get_executor()"
        )
    seeds = _values("seed", seed)
    trials = [
        checked(Trial(technique, setting, steps, epochs, one, **training), data)
        for setting in settings(grid)
        for one in seeds
    ]
    return _run(trials, model, data, names or {}, executor, open_journal(journal), bar)


def settings(grid):
    """The settings of a grid, as a list of dicts: every combination of a dict of lists; a list of dicts as it is."""
    if not isinstance(grid, Mapping):
        listed = list(grid) if isinstance(grid, Iterable) else []
        if not listed or not all(isinstance(one, Mapping) for one in listed):
            raise ValueError(f"grid is {checks.words(grid)}; give a dict of lists, or a list of settings (dicts)")
        return [dict(one) for one in listed]
    values = [_values(name, given) for name, given in grid.items()]
    return [dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*values)]


def _values(name, given):
    """The values of one parameter: a list or array as a list, anything single as a list of one."""
    given = given.tolist() if hasattr(given, "tolist") else given
    single = isinstance(given, (str, Mapping)) or not isinstance(given, Iterable)
    if not (values := [given] if single else list(given)):
        raise ValueError(f"{name} is {given!r}; give at least one value")
    return values


def _run(trials, model, data, names, executor, journal, bar):
    """The generator behind `run`: first what the journal holds, then what has to be computed, each once."""
    with alone():
        trial = resolved(trials[0], model, data)
        blank = blank_results(trial, model, data, names)[trial.steps > 0]
    trials = [replace(one, precision=trial.precision) for one in trials]
    keys = [replace(blank, setting=one.setting, seed=one.seed).key for one in trials]
    missing = dict(zip(keys, trials, strict=True))
    with bars.quiet(), tqdm(total=len(trials), desc=blank.technique, disable=not bar) as shown:
        for key in () if journal is None else list(missing):
            if found := journal.find(key):
                del missing[key]
                yield from _counted(found, keys.count(key), shown)
        with contextlib.closing(_computed(missing, model, data, names, executor, journal)) as finished:
            for key, result in finished:
                yield from _counted(result, keys.count(key), shown)


def _counted(result, times, shown):
    """A Result as often as it was asked for, on the bar too."""
    for _ in range(times):
        shown.update()
        yield result


def _computed(trials, model, data, names, executor, journal):
    """Pairs of key and last Result, as they are finished, of `trials` (key -> Trial); all Results recorded."""
    if executor is None:
        for key, trial in trials.items():
            yield key, compute(trial, model, data, names, journal=False if journal is None else journal)[-1]
        return
    with contextlib.closing(workers.spread(executor, compute, trials, model, data, names)) as finished:
        for batch in finished:
            kept = [(key, results if journal is None else list(map(journal.record, results))) for key, results in batch]
            yield from ((key, results[-1]) for key, results in kept)


def compute(trial, model, data, names, journal=False, stop=None):
    """Both Results of a Trial as a list; given up between two steps when the event `stop` is set.

    raises  ValueError or RuntimeError that names the setting
    """
    try:
        events = itertools.takewhile(
            lambda event: stop is None or not stop.is_set(), stages(trial, model, data, journal, names)
        )
        return [event.result for event in events if event.result]
    except ValueError as error:
        raise ValueError(f"{trial}: {error}") from error
    except Exception as error:
        raise RuntimeError(f"{trial}: {checks.reason(error)}") from error


def _work(trial, model, data, names, journal):
    """The computation behind `stages`; its Results lack the time they took."""
    trial = resolved(trial, model, data)
    one_shot, retrained = blank_results(trial, model, data, names)
    start = model
    if trial.technique.before is not None:
        start = yield from trial.technique.before(model, data, trial.setting, trial.seed, journal)
    compressed = compress(trial, start, data)
    yield Event("compressed", compressed, start=start)
    yield Event("one-shot", compressed, measured(one_shot, compressed, data))
    if not trial.steps:
        return
    options = {name: getattr(trial, name) for name in ("steps", "seed", "lr", "batch_size", "precision")}
    split, loss = _training(trial, model, compressed, data)
    with contextlib.closing(train.fit(compressed, split, loss=loss, bar=False, **options)) as training:
        for progress in training:
            yield Event("training", compressed, progress=progress)
    yield Event("retrained", compressed, measured(retrained, compressed, data))


def compress(trial, model, data):
    """What the technique makes of the model; one that draws from torch's global generator finds it seeded."""
    technique, setting = trial.technique, dict(trial.setting)
    if takes_seed(technique):
        setting = {"seed": trial.seed} | setting
    images = [data.train.images[: technique.calibration]] if technique.calibration else []
    with seeded(trial.seed):
        compressed = technique.apply(model, *images, **setting)
    if not isinstance(compressed, nn.Module) or compressed is model:
        got = "the model itself" if compressed is model else f"a {type(compressed).__name__}"
        raise ValueError(f"{technique.name} returned {got}; a technique returns a new nn.Module")
    return compressed


def _training(trial, model, compressed, data):
    """On what, and with which loss, the compressed model is trained."""
    if trial.technique.training is None:
        return data.train, train.cross_entropy
    with seeded(trial.seed):
        return trial.technique.training(model, compressed, data.train, dict(trial.setting), trial.seed)


@contextlib.contextmanager
def seeded(seed):
    """torch's global generator seeded, for code that draws from it; as it was, afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def measured(result, model, data):
    """The Result with what is measured of a model, on the validation images; its file is written meanwhile."""
    if train.may_share(model):
        with ThreadPoolExecutor(1) as pool:
            size = pool.submit(storage.file_bytes, layers.duplicate(model))  # evaluating switches the model's mode
            accuracy, file_bytes = measure.accuracy(model, data.validation), size.result()
    else:
        accuracy, file_bytes = measure.accuracy(model, data.validation), storage.file_bytes(model)
    return replace(
        result,
        accuracy=accuracy,
        file_bytes=file_bytes,
        parameters=layers.count_parameters(model),
        nonzeros=layers.count_nonzeros(model),
    )


def open_journal(journal):
    """The Journal of an argument: None for none."""
    if journal is False:
        return None
    return journal if isinstance(journal, Journal) else journals.open(journal)


@contextlib.contextmanager
def alone():
    """One step of one Trial at a time, on one thread: torch's precision and random numbers are the whole process's."""
    with _turn, train.threads(1):
        yield


def _renew_turn():
    """A process forked while another thread had its turn would wait for it for ever."""
    global _turn
    _turn = threading.RLock()


_renew_turn()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_turn)
