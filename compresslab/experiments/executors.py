"""Trials computed by other processes or machines, through any executor with the interface of concurrent.futures.

What travels is a parcel of bytes: the technique pickled, the network as a .clab file (pickled where that format does
not know its layers), the data by name where a worker can load the same. What comes back are the measured Results.
"""

import functools
import pickle
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import replace

from torch import nn

from compresslab import data as datasets
from compresslab import storage
from compresslab.experiments import fingerprints
from compresslab.experiments.journal import Result
from compresslab.experiments.trial import Trial
from compresslab.techniques import Technique
from compresslab.weights import layers

try:
    import cloudpickle as pickler  # Dask brings it along; it pickles functions with their code
except ImportError:
    pickler = pickle

IN_FLIGHT = 2**31  # bytes handed to an executor and not yet answered, at most
UNLIMITED = 2**62  # bytes that a model may have: it is our own


def compute_all(
    executor: futures.Executor, compute: Callable, trials: Mapping[str, Trial], model: nn.Module,
    data: datasets.Data, names: Mapping,
) -> Iterator[tuple[str, list[Result]]]:  # fmt: skip
    """Yield (key, Results) of `trials` (key -> Trial), as an executor finishes them.

    compute  compute(trial, model, data, names) -> list of Result; a function that the workers can import
    raises   what `compute` raised, after handing over all that is finished; ValueError for what cannot be sent

    Closing the generator cancels what has not begun; what has begun finishes unheard.
    """
    if not trials:
        return
    parcel = pack(next(iter(trials.values())).technique, model, data, names)
    most = max(4, IN_FLIGHT // len(parcel))
    waiting, begun = list(reversed(trials.items())), {}
    try:
        while waiting or begun:
            while waiting and len(begun) < most:
                key, trial = waiting.pop()
                task = executor.submit(_compute_remotely, compute, replace(trial, technique=None), parcel)
                begun[task] = key, trial
            done, _ = futures.wait(begun, return_when=futures.FIRST_COMPLETED)
            finished = {future: begun.pop(future) for future in done}
            failed = [future for future in finished if future.cancelled() or future.exception()]
            yield from ((key, future.result()) for future, (key, _) in finished.items() if future not in failed)
            for future in failed:
                raise _explain_failure(future, finished[future][1])
    finally:
        for future in begun:
            future.cancel()


def pack(technique: Technique, model: nn.Module, data: datasets.Data, names: Mapping) -> bytes:
    """Pickle what all trials of a sweep share; raises ValueError for what cannot be sent."""
    sent = data.name if _is_loadable(data) else data
    shared = _pickle(technique, f"technique {technique.name!r}"), *_pack_model(model)
    return pickle.dumps((*shared, sent, data.fingerprint, dict(names)))


def _pack_model(model):
    """Return a model as bytes, and their kind: "clab" or "pickle"."""
    try:
        content = storage.dumps(model, fold=False)
        if fingerprints.of_model(storage.loads(content, max_bytes=UNLIMITED)) == fingerprints.of_model(model):
            return content, "clab"
    except (ValueError, TypeError, RuntimeError):
        pass  # layers of the user's own: the format keeps them only together with `into=`
    return _pickle(layers.duplicate(model).cpu(), f"model, a {type(model).__name__},"), "pickle"


def _pickle(thing, name):
    try:
        return pickler.dumps(thing)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        hint = "put your own functions and classes at the top of a module, or leave executor=None"
        raise ValueError(f"{name} cannot be sent to another process ({error}); {hint}") from error


def _is_loadable(data):
    """Tell whether the data are those that `data.load` gives under their name."""
    try:
        return data.name in datasets.names() and datasets.load(data.name).fingerprint == data.fingerprint
    except (OSError, ValueError):
        return False


def _compute_remotely(compute, trial, parcel):
    """Unpack and compute, in a worker."""
    technique, model, data, names = unpack(parcel)
    return compute(replace(trial, technique=technique), model, data, names)


@functools.lru_cache(maxsize=1)
def unpack(parcel: bytes) -> tuple[Technique, nn.Module, datasets.Data, dict]:
    """Unpack technique, model, data and names; raises ValueError for anything missing."""
    technique, model, kind, data, fingerprint, names = pickle.loads(parcel)  # made by `pack`, not from a file
    try:
        technique = pickle.loads(technique)
        model = storage.loads(model, max_bytes=UNLIMITED) if kind == "clab" else pickle.loads(model)
    except (AttributeError, ImportError) as error:
        hint = "put your own techniques and model classes in a module that the workers can import"
        raise ValueError(f"a worker lacks what the sweep needs ({error}); {hint}") from error
    name, data = (data, datasets.load(data)) if isinstance(data, str) else (data.name, data)
    if data.fingerprint != fingerprint:
        raise ValueError(f"data {name!r} is not the same in a worker; give both the same COMPRESSLAB_DATA")
    return technique, model, data, names


def _explain_failure(future, trial):
    """Return the error to raise for a task, with its setting named."""
    error = futures.CancelledError("cancelled") if future.cancelled() else future.exception()
    if str(trial) in str(error):
        return error
    hint = ""
    if isinstance(error, (futures.BrokenExecutor, futures.CancelledError)):
        hint = "; a worker process ended: start the pool under `if __name__ == '__main__':`, and see its memory"
    text = f"{trial}: {type(error).__name__}: {error}{hint}"
    return ValueError(text) if isinstance(error, ValueError) else RuntimeError(text)
