"""Trials computed by other processes or machines, through any executor with the interface of concurrent.futures.

What travels: the network as .clab bytes (pickled where that format does not know its layers), the data by name where
a worker can load the same, the technique pickled. What comes back: the measured Results.

PEP 3148, "futures - execute computations asynchronously"; Dask's is `distributed.Client.get_executor`.
"""

import functools
import pickle
import threading
from concurrent import futures
from dataclasses import dataclass, replace

import torch
from torch import nn

from compresslab import data as datasets
from compresslab import fingerprints, layers, storage

try:
    import cloudpickle as pickler
except ImportError:
    pickler = pickle

IN_FLIGHT = 2**31  # bytes handed to an executor and not yet answered, at most
ANY = 2**62  # bytes that a model may have: it is our own


@dataclass(frozen=True, eq=False)
class Parcel:
    """What all tasks of a sweep share, ready to travel.

    technique    pickled
    model, kind  bytes, and what they are: "clab" or "pickle"
    data         name of the data set;  data_fingerprint  of its tensors
    arrays       images and labels of train, then of validation; None where the worker loads the data by its name
    names        how the Results call model and data
    """

    technique: bytes
    model: bytes
    kind: str
    data: str
    data_fingerprint: str
    arrays: tuple | None
    names: dict

    @property
    def size(self):
        """Bytes, about."""
        return len(self.model) + sum(array.nbytes for array in self.arrays or ())


@dataclass(frozen=True, eq=False)
class Parts:
    """Stands in for a `data.Data` in a worker: the two splits that a Trial needs."""

    name: str
    fingerprint: str
    train: datasets.Split
    validation: datasets.Split


def spread(executor, compute, trials, model, data, names):
    """Lists of (key, Results), as they are finished, of `trials` (key -> Trial) computed by an executor.

    compute  compute(trial, model, data, names, stop=…) -> list of Result; a function that the workers can import
    raises   what `compute` raised, after handing over all that is finished; ValueError for what cannot be sent

    Closing the generator cancels what has not begun; threads stop at their next step, other workers finish unheard.
    """
    if not trials:
        return
    stop, most = threading.Event(), len(trials)
    if isinstance(executor, futures.ThreadPoolExecutor):
        begin = functools.partial(executor.submit, compute, model=model, data=data, names=names, stop=stop)
    else:
        parcel = pack(next(iter(trials.values())).technique, model, data, names)
        begin = functools.partial(_begin, executor, compute, parcel)
        most = max(4, IN_FLIGHT // max(1, parcel.size))
    waiting, begun = list(reversed(trials.items())), {}
    try:
        while waiting or begun:
            while waiting and len(begun) < most:
                key, trial = waiting.pop()
                begun[begin(trial)] = key, trial
            done, _ = futures.wait(begun, return_when=futures.FIRST_COMPLETED)
            done = {future: begun.pop(future) for future in done}
            failed = {future: trial for future, (_, trial) in done.items() if _error(future)}
            yield [(key, future.result()) for future, (key, _) in done.items() if future not in failed]
            for future, trial in failed.items():
                raise _explained(_error(future), trial)
    finally:
        stop.set()
        for future in begun:
            future.cancel()


def pack(technique, model, data, names):
    """The Parcel of a sweep; raises ValueError for a technique or a model that cannot be sent to another process."""
    reference = _pickled(technique, f"technique {technique.name!r}")
    content, kind = _pack_model(model)
    arrays = None if _shipped(data) else tuple(map(_array, _tensors(data)))
    return Parcel(reference, content, kind, data.name, data.fingerprint, arrays, names)


def _pack_model(model):
    """A model as bytes and their kind: a .clab file if it comes back from one as the same model, else a pickle."""
    try:
        content = storage.dumps(model, fold=False)
        if fingerprints.of_model(storage.loads(content, max_bytes=ANY)) == fingerprints.of_model(model):
            return content, "clab"
    except (ValueError, TypeError, RuntimeError):
        pass  # layers of the user's own: the format keeps them only together with `into=`
    return _pickled(model, f"model, a {type(model).__name__},"), "pickle"


def _pickled(thing, name):
    """A pickle of `thing`: by reference, or with its code where cloudpickle (which Dask brings along) is installed."""
    try:
        return pickler.dumps(layers.duplicate(thing).cpu() if isinstance(thing, nn.Module) else thing)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        hint = "put your own functions and classes at the top of a module, or leave executor=None"
        raise ValueError(f"{name} cannot be sent to another process ({error}); {hint}") from error


def _shipped(data):
    """Whether the data are those that `data.load` gives under their name."""
    if data.name not in datasets.names():
        return False
    try:
        return datasets.load(data.name).fingerprint == data.fingerprint
    except (OSError, ValueError):
        return False


def _tensors(data):
    return data.train.images, data.train.labels, data.validation.images, data.validation.labels


def _array(tensor):
    """A tensor as an array: pickled whole, where torch would hand over shared memory that another machine lacks."""
    return tensor.cpu().contiguous().numpy()


def _begin(executor, compute, parcel, trial):
    return executor.submit(_remote, compute, replace(trial, technique=None), parcel)


def _remote(compute, trial, parcel):
    """Unpack and compute, in a worker."""
    try:
        technique = pickle.loads(parcel.technique)  # bytes of this very program, not from a file
        model = _unpack_model(parcel.model, parcel.kind)
    except (AttributeError, ImportError) as error:
        hint = "put your own techniques and model classes in a module that the workers can import"
        raise ValueError(f"a worker lacks what the sweep needs ({error}); {hint}") from error
    return compute(replace(trial, technique=technique), model, _unpack_data(parcel), parcel.names)


@functools.lru_cache(maxsize=2)
def _unpack_model(content, kind):
    if kind == "clab":
        return storage.loads(content, max_bytes=ANY)
    return pickle.loads(content)


def _unpack_data(parcel):
    """The data of a parcel; loaded by name, they must be the ones that the sweep was asked for."""
    if parcel.arrays is None:
        data = datasets.load(parcel.data)
        if data.fingerprint != parcel.data_fingerprint:
            raise ValueError(f"data {parcel.data!r} is not the same in a worker; give both the same COMPRESSLAB_DATA")
        return data
    train_images, train_labels, images, labels = map(torch.tensor, parcel.arrays)
    parts = datasets.Split(train_images, train_labels), datasets.Split(images, labels)
    return Parts(parcel.data, parcel.data_fingerprint, *parts)


def _error(future):
    """What a finished task raised, or None."""
    return futures.CancelledError("cancelled") if future.cancelled() else future.exception()


def _explained(error, trial):
    """The error to raise for a task: its own, which names the setting, or one for a worker that is gone."""
    if str(trial) in str(error):
        return error
    kind, lost = type(error), isinstance(error, (futures.BrokenExecutor, futures.CancelledError))
    hint = (
        "; a worker process ended: start the pool under `if __name__ == '__main__':`, and see its memory"
        if lost
        else ""
    )
    text = f"{trial}: {kind.__name__}: {error}{hint}"
    return ValueError(text) if isinstance(error, ValueError) else RuntimeError(text)
