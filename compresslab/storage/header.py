"""The header of a file: its architecture, its tensors by name, and what else is known of them.

    entry   what the header says of a tensor: name, dtype, shape; or which earlier tensor it is (tied)
    index   number of an entry
    node    of the architecture (see `architecture`)
    implied (of the list of tensors) what the model has as it is built: then the file leaves it out

Its keys and values are in docs/format.md, section 2. What is empty or usual is left out.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from compresslab import bars, checks
from compresslab.storage import rounded, tensors
from compresslab.storage.coder import Allowance, Reader
from compresslab.storage.container import CorruptFileError, Parts
from compresslab.weights import layers

_INDICES = ("frozen", "masked", "extra")
_LISTS = {
    **dict.fromkeys(_INDICES, int),
    "flipped": str,
    "inputs": list,
}
TENSOR = 3_000  # symbols that take as long as any tensor
PAIR = 200  # symbols, for a tensor with a mask or rounding and each module and other such tensor beside it
KEPT = 2_000  # bytes of memory for each tensor, beside its own
_DIMENSIONS = 64  # most that torch has


@dataclass(frozen=True)
class Entry:
    """A name and its tensor: `dtype` (a key of tensors.TYPES) and `shape`; `tied` is the index of an earlier entry.

    order  of its dimensions in memory, as from tensors.find_memory_order
    """

    name: str
    dtype: str
    shape: tuple
    tied: int | None = None
    order: list | None = None

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        stored = tensors.TYPES[self.dtype]
        return math.prod(self.shape) * stored.size


@dataclass(frozen=True)
class Content:
    """A decoded file: of each entry its `values` (tensor) and `keeps` (bool tensor or None); sets of indices; modes.

    roundings  index -> layers.Rounding, of entries that are not tied
    """

    entries: list
    values: list
    keeps: list
    roundings: dict
    frozen: set
    masked: set
    extra: set
    training: bool
    flipped: set


def check_model(model: nn.Module) -> None:
    """Raise ValueError for a model that cannot be saved: not a module, not ready, or with state that is not tensors."""
    checks.module("model", model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"module {name!r} is compiled by torch.jit; save the module that it was made from")
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ValueError(f"module {name!r} has extra state, which is not tensors; a .clab file cannot hold it")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(f"tensor {name!r} is lazy and has no values yet; run one batch through the model first")
        odd = tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested
        if odd or tensor.dtype not in tensors.NAMES:
            raise ValueError(f"tensor {name!r} is {tensor.dtype}, {tensor.layout}, on {tensor.device}; it has no bytes")


def get_state(model: nn.Module) -> dict:
    """Return name -> Parameter or buffer: what model.state_dict() holds, the tensors being the model's own."""
    state = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        hidden = module._non_persistent_buffers_set
        buffers = {name: buffer for name, buffer in module._buffers.items() if name not in hidden}
        for name, tensor in {**module._parameters, **buffers}.items():
            if tensor is not None:
                state[f"{prefix}.{name}" if prefix else name] = tensor
    return state


def get_masks(model: nn.Module, flat: nn.Module) -> dict:
    """Return name -> mask of the masked tensors; flat  plain(model). Tied names share the first one's mask."""
    first, masks = {}, {}
    for name, tensor in get_state(flat).items():
        path, _, attribute = name.rpartition(".")
        mask = layers.get_mask(model.get_submodule(path), attribute)
        if mask is not None:
            mask = first.setdefault(id(tensor), mask)
            if not (tensors.find_nonzeros(tensor) > mask.cpu().numpy()).any():
                masks[name] = mask
    return masks


def write(
    model: nn.Module, state: dict, node: object, *, masks: Iterable = (), extra: Iterable = (), inputs: Iterable = ()
) -> dict:
    """Return the header of a file.

    state   name -> tensor, extras last;  node  of the architecture, or None;  masks, extra  collections of names
    inputs  [path, node] of each input grid, where the architecture does not tell
    """
    at = {name: index for index, name in enumerate(state)}
    lists = {
        "flipped": [name for name, module in model.named_modules() if module.training != model.training],
        "frozen": [at[name] for name, parameter in model.named_parameters() if _is_frozen(parameter)],
        "masked": [index for name, index in at.items() if name in masks],
        "extra": [index for name, index in at.items() if name in extra],
        "inputs": list(inputs),
    }
    used = {key: listed for key, listed in lists.items() if listed}
    return {"model": node, "training": model.training, **used, "tensors": list_tensors(state)}


def list_tensors(state: dict) -> list:
    """Return a header's list of tensors; state  name -> tensor."""
    first, listed = {}, []
    for index, (name, tensor) in enumerate(state.items()):
        tied = first.setdefault(id(tensor), index)
        order = tensors.find_memory_order(tensor)
        item = [name, tensors.NAMES[tensor.dtype], list(tensor.shape), *([] if order is None else [order])]
        listed.append(item if tied == index else [name, tied])
    return listed


def check(header: dict) -> None:
    """Raise CorruptFileError unless a header has the keys and types above."""
    implied = header.get("model") is not None and "tensors" not in header
    kinds = {"model": (list, type(None)), "training": bool, **({} if implied else {"tensors": list})}
    lists = [key for key in _LISTS if key in header]
    if set(header) != {*kinds, *lists} or not all(isinstance(header[key], kind) for key, kind in kinds.items()):
        raise CorruptFileError(f"header has {sorted(header)[:10]}, or values of other types than it should")
    for key in lists:
        if not isinstance(header[key], list) or not all(type(item) is _LISTS[key] for item in header[key]):
            raise CorruptFileError(f"{key} is not a list of {_LISTS[key].__name__}")


def read_entries(header: dict, allowance: Allowance) -> list[Entry]:
    """Return the entries of a header; raises CorruptFileError for a double, odd or dangling one."""
    entries = []
    allowance.spend(TENSOR * len(header["tensors"]))
    allowance.take(KEPT * len(header["tensors"]))
    for item in header["tensors"]:
        entries.append(_read_entry(item, entries))
    if len({entry.name for entry in entries}) != len(entries):
        raise CorruptFileError("a tensor's name stands twice")
    for key in _INDICES:
        if not all(0 <= index < len(entries) for index in header.get(key, ())):
            raise CorruptFileError(f"{key} points outside the list of tensors")
    return entries


def check_size(entries: list[Entry], limit: float) -> None:
    """Raise CorruptFileError if the tensors of a file would take more than `limit` bytes."""
    total = sum(entry.size for entry in entries if entry.tied is None)
    if total > limit:
        raise CorruptFileError(
            f"tensors are {total} bytes, more than max_bytes, {limit}; give more if you trust the file"
        )


def read_content(parts: Parts, entries: list[Entry], allowance: Allowance, model: nn.Module | None) -> Content:
    """Read the Content of an unpacked file with these entries; model  that its tensors are to be put in, or None."""
    sets = {key: set(parts.header.get(key, ())) for key in (*_INDICES, "flipped")}
    masked = {index if (tied := entries[index].tied) is None else tied for index in sets["masked"]}
    _charge(entries, masked, allowance)
    reader, values, keeps, roundings = Reader(parts.data, parts.coded, allowance), [], [], {}
    for index, entry in enumerate(bars.over(entries, "reading tensors")):
        if entry.tied is None:
            rounding, value, keep = rounded.read(reader, entry, index in masked)
            roundings |= {index: rounding} if rounding is not None else {}
            if entry.order is not None:
                value = tensors.reorder_memory(value, entry.order)
                keep = None if keep is None else tensors.reorder_memory(keep, entry.order)
        else:
            value, keep = values[entry.tied], keeps[entry.tied]
        values.append(value)
        keeps.append(keep if index in masked or entry.tied is not None else None)
        value = keep = None  # while the next is read, this takes no memory twice
    reader.close()
    _charge_parametrizations(allowance, [entries[index].name for index in {*sets["masked"], *roundings}], model)
    if dense := [entries[index].name for index in sets["masked"] if keeps[index] is None]:
        raise CorruptFileError(f"tensor {dense[0]!r} is to have a mask, but is stored without one")
    return Content(entries, values, keeps, roundings, training=parts.header["training"], **sets)


def _charge(entries, masked, allowance):
    """Take what tensors may cost beside their decoding, before any is read: time, memory for good and for a while."""
    largest = 0
    for index, entry in enumerate(entries):
        if entry.tied is None:
            count = math.prod(entry.shape)
            allowance.spend((entry.size + count) // 4 + count * (index in masked))
            allowance.take(count * (index in masked))
            # Positions while they are read; a copy of what is not in order; masking, which computes the weight.
            passing = 3 * count + entry.size * (entry.order is not None)
            largest = max(largest, passing, 2 * entry.size * (index in masked))
    allowance.take(largest)


def _charge_parametrizations(allowance, names: Iterable, model):
    """Take the time of putting masks and roundings on: torch goes through all modules of the one that has them."""
    for path, count in Counter(name.rpartition(".")[0] for name in names).items():
        inside = 0 if model is None else sum(1 for _ in model.get_submodule(path).modules())
        allowance.spend(PAIR * count * (count + inside))


def _read_entry(item, earlier):
    if not isinstance(item, list) or len(item) not in (2, 3, 4) or not isinstance(item[0], str):
        raise CorruptFileError(f"a tensor is listed as {str(item)[:200]}")
    if len(item) == 2:
        tied = item[1]
        if type(tied) is not int or not 0 <= tied < len(earlier) or earlier[tied].tied is not None:
            raise CorruptFileError(f"tensor {item[0]!r} is tied to {str(tied)[:50]}, which is not an earlier tensor")
        return Entry(item[0], earlier[tied].dtype, earlier[tied].shape, tied)
    name, dtype, shape, order = *item, *([None] * (4 - len(item)))
    if not isinstance(dtype, str) or dtype not in tensors.TYPES:
        raise CorruptFileError(f"tensor {name!r} has the unknown dtype {str(dtype)[:50]!r}")
    sizes = isinstance(shape, list) and len(shape) <= _DIMENSIONS and all(type(size) is int for size in shape)
    if not sizes or not all(0 <= size < 2**62 for size in shape):
        raise CorruptFileError(f"tensor {name!r} has the shape {str(shape)[:200]}")
    dimensions = sorted(map(repr, range(len(shape))))
    if len(item) == 4 and not (isinstance(order, list) and sorted(map(repr, order)) == dimensions):
        raise CorruptFileError(f"tensor {name!r} has its dimensions in the order {str(order)[:200]}")
    return Entry(name, dtype, tuple(shape), order=order)


def _is_frozen(parameter):
    return not parameter.requires_grad and (parameter.is_floating_point() or parameter.is_complex())
