"""What a .clab file holds beside the architecture: the tensors by name, and the header that lists them.

The header has
    tensors   one entry a name of the state dict, in its order: [name, dtype, shape], or [name, index] for a tensor that
              is the very same one as an earlier entry. The payload holds the tensors in this order (see `tensors`). For
              one whose dimensions lie in another order in memory, [name, dtype, shape, order], the outermost first:
              layers add up in another order then, and round otherwise
    model     the architecture (see `architecture`, `graph`), or null: then the file holds tensors only
    training  whether the model was in training mode;  flipped  names of the modules that were in the other mode
    frozen    indices of tensors that take no gradient though they could: frozen parameters
    masked    indices of tensors that carry a mask;  extra  indices of tensors that are not in the state dict
    grids     [index, bits, low, high, shape, learned, dtype] of each weight on an integer grid (see `codes`): range of
              its codes, shape and dtype of its scale, whether its step size is a parameter (true, false, "frozen")
    codebooks  [index, zero, frozen] of each weight with a codebook (see `books`), from version 3 on
    halves    [index, dtype] of each weight that is rounded to 16 bits: it is stored in that dtype
    inputs    [path, node] of each module that rounds what passes through it (see `architecture`); only where `model`,
              which has them otherwise, is null
What is empty is left out, and so are the last items of a grid or codebook where they are [], false, "float32". From
version 3 on `tensors` is left out where it is what the model, as built, has: names, ties, shapes, and "float32" for its
parameters.
"""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from compresslab import bars, checks, layers
from compresslab.storage import architecture, books, codes, roundings, streams, tensors
from compresslab.storage.container import CorruptFileError

_INDICES = ("frozen", "masked", "extra")
_LISTS = {
    **dict.fromkeys(_INDICES, int),
    "flipped": str,
    "grids": list,
    "codebooks": list,
    "halves": list,
    "inputs": list,
}
TENSORS = 24_000  # most that a file of a MiB may have
TENSOR, ROUNDED = (
    3_000,
    30_000,
)  # symbols whose decoding takes as long as what any tensor, and one with a rounding, takes
PAIR = 200  # symbols, for a tensor with a mask or rounding and each module and other such tensor beside it
KEPT = 2_000  # bytes of memory for each tensor, beside its own
_DIMENSIONS = 64  # most that torch has


@dataclass(frozen=True)
class Entry:
    """A name and its tensor: `dtype` (a key of tensors.TYPES) and `shape`; `tied` is the index of an earlier entry.

    order  of its dimensions in memory, as from tensors.order_of
    """

    name: str
    dtype: str
    shape: tuple
    tied: int | None = None
    order: list | None = None


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


def check_model(model):
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


def state_of(model):
    """Name -> Parameter or buffer: what model.state_dict() holds, the tensors being the model's own."""
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        kept = {name: one for name, one in module._buffers.items() if name not in module._non_persistent_buffers_set}
        for name, tensor in {**module._parameters, **kept}.items():
            if tensor is not None:
                found[f"{prefix}.{name}" if prefix else name] = tensor
    return found


def masks(model, flat):
    """Name -> mask of the masked tensors of `model`; `flat` is plain(model). Tied names share the first one's mask."""
    first, found = {}, {}
    for name, tensor in state_of(flat).items():
        path, _, own = name.rpartition(".")
        mask = layers.get_mask(model.get_submodule(path), own)
        if mask is not None:
            mask = first.setdefault(id(tensor), mask)
            if not (tensors.find_nonzeros(tensor) > mask.cpu().numpy()).any():
                found[name] = mask
    return found


def header(model, state, described, *, masked=(), extra=(), rounded=None, inputs=()):
    """The header of a file.

    state    name -> tensor, extras last;  described  node of the architecture, or None
    masked, extra  collections of names;  rounded  as from roundings.find;  inputs  as in the module's docstring
    """
    entries = listed(state)
    at = {name: index for index, name in enumerate(state)}
    lists = {
        "flipped": [name for name, module in model.named_modules() if module.training != model.training],
        "frozen": [at[name] for name, one in model.named_parameters() if _could_learn(one)],
        "masked": [index for name, index in at.items() if name in masked],
        "extra": [index for name, index in at.items() if name in extra],
        **roundings.listed({at[name]: one for name, one in (rounded or {}).items()}),
        "inputs": list(inputs),
    }
    used = {key: value for key, value in lists.items() if value}
    return {"model": described, "training": model.training, **used, "tensors": entries}


def listed(state):
    """A header's list of tensors; state  name -> tensor. That of a model as it is built may be left out of the file."""
    first, found = {}, []
    for index, (name, tensor) in enumerate(state.items()):
        tied = first.setdefault(id(tensor), index)
        order = tensors.order_of(tensor)
        whole = [name, tensors.NAMES[tensor.dtype], list(tensor.shape), *([] if order is None else [order])]
        found.append(whole if tied == index else [name, tied])
    return found


def most_tensors(length):
    """How many tensors a file of that length may have."""
    return architecture.allowed(length, TENSORS)


def check_header(found, parts):
    """Raise CorruptFileError unless a header has the keys and types above; found  its keys, parts  container.Parts."""
    implied = parts.version >= streams.CODED and found.get("model") is not None and "tensors" not in found
    kinds = {"model": (list, type(None)), "training": bool, **({} if implied else {"tensors": list})}
    lists = [key for key in _LISTS if key in found]
    if set(found) != {*kinds, *lists} or not all(isinstance(found[key], kind) for key, kind in kinds.items()):
        raise CorruptFileError(f"header has {sorted(found)[:10]}, or values of other types than it should")


def check_lists(found, length):
    """Raise CorruptFileError unless a header, its tensors listed, has no more than its length pays for."""
    if len(found["tensors"]) > most_tensors(length):
        raise CorruptFileError(f"{len(found['tensors'])} tensors are more than a file of {length} bytes holds")
    for key in (key for key in _LISTS if key in found):
        wanted = _LISTS[key]
        if not isinstance(found[key], list) or not all(type(one) is wanted for one in found[key]):
            raise CorruptFileError(f"{key} is not a list of {wanted.__name__}")
        if wanted is int and not all(0 <= one < len(found["tensors"]) for one in found[key]):
            raise CorruptFileError(f"{key} points outside the list of tensors")


def entries(listed):
    """The entries of a header's list of tensors; raises CorruptFileError for a double, odd or dangling one."""
    found = []
    for one in listed:
        found.append(_entry(one, found))
    if len({entry.name for entry in found}) != len(found):
        raise CorruptFileError("a tensor's name stands twice")
    return found


def check_size(listed, limit):
    """Raise CorruptFileError if the tensors of a file would take more than `limit` bytes."""
    total = sum(_bytes(entry) for entry in listed if entry.tied is None)
    if total > limit:
        raise CorruptFileError(
            f"tensors are {total} bytes, more than max_bytes, {limit}; give more if you trust the file"
        )


def read(parts, listed, allowance, model=None):
    """The Content of an unpacked file (container.Parts) with these checked entries.

    allowance  streams.Allowance;  model  that its tensors are to be put in, or None
    """
    reader, values, keeps = streams.Reader(parts.data, parts.words, parts.length, parts.version, allowance), [], []
    sets = {key: set(parts.header.get(key, ())) for key in (*_INDICES, "flipped")}
    masked = {index if (tied := listed[index].tied) is None else tied for index in sets["masked"]}
    forms, found = roundings.read_lists(parts.header, listed), {}
    _pay_parametrizations(allowance, [listed[index].name for index in {*sets["masked"], *forms}], model)
    for index, entry in enumerate(bars.over(listed, "reading tensors")):
        allowance.spend(TENSOR)
        allowance.keep(KEPT)
        if entry.tied is None:
            _pay(allowance, entry, forms.get(index), index in masked)
            rounding, value, kept = roundings.read(reader, entry, forms.get(index), index in masked)
            found |= {index: rounding} if rounding is not None else {}
            if entry.order is not None:
                value, kept = (one if one is None else tensors.laid_out(one, entry.order) for one in (value, kept))
        else:
            value, kept = values[entry.tied], keeps[entry.tied]
        values.append(value)
        keeps.append(kept if index in masked or entry.tied is not None else None)
        value = kept = None  # while the next is read, this takes no memory twice
    reader.close()
    if dense := [listed[index].name for index in sets["masked"] if keeps[index] is None]:
        raise CorruptFileError(f"tensor {dense[0]!r} is to have a mask, but is stored without one")
    return Content(listed, values, keeps, found, training=parts.header["training"], **sets)


def _pay_parametrizations(allowance, names, model):
    """Pay for putting masks and roundings on: torch goes through all modules of the one that has them for each."""
    for path, count in Counter(name.rpartition(".")[0] for name in names).items():
        inside = 0 if model is None else sum(1 for _ in model.get_submodule(path).modules())
        allowance.spend(PAIR * count * (count + inside))


def _pay(allowance, entry, form, masked):
    """Pay for what a tensor takes beside itself, and for the time beyond that of a dense one."""
    count, size = math.prod(entry.shape), tensors.TYPES[entry.dtype].size
    allowance.spend(_bytes(entry) // 4)  # memory that is new takes time, too
    if entry.order is not None:
        allowance.hold(_bytes(entry))  # it is copied
    if masked:
        allowance.spend(count)
        allowance.keep(count)
        allowance.hold(2 * size * count)  # masking computes the weight
    if isinstance(form, codes.Form):
        scales = math.prod(form.shape)
        each = 1 if scales == 1 else 2 if entry.shape and scales == entry.shape[0] else 4
        allowance.spend(ROUNDED + each * count)
        allowance.keep(2 * tensors.TYPES[form.dtype].size * scales)
        allowance.hold(12 * scales)
    elif isinstance(form, books.Form):
        allowance.spend(ROUNDED + count)
        allowance.keep(2 * count)
        allowance.hold(5 * count)
    elif form is not None:
        allowance.hold(2 * count)


def _entry(one, earlier):
    if not isinstance(one, list) or len(one) not in (2, 3, 4) or not isinstance(one[0], str):
        raise CorruptFileError(f"a tensor is listed as {str(one)[:200]}")
    if len(one) == 2:
        tied = one[1]
        if type(tied) is not int or not 0 <= tied < len(earlier) or earlier[tied].tied is not None:
            raise CorruptFileError(f"tensor {one[0]!r} is tied to {str(tied)[:50]}, which is not an earlier tensor")
        return Entry(one[0], earlier[tied].dtype, earlier[tied].shape, tied)
    name, dtype, shape, order = *one, *([None] * (4 - len(one)))
    if not isinstance(dtype, str) or dtype not in tensors.TYPES:
        raise CorruptFileError(f"tensor {name!r} has the unknown dtype {str(dtype)[:50]!r}")
    sizes = isinstance(shape, list) and len(shape) <= _DIMENSIONS and all(type(size) is int for size in shape)
    if not sizes or not all(0 <= size < 2**62 for size in shape):
        raise CorruptFileError(f"tensor {name!r} has the shape {str(shape)[:200]}")
    dimensions = sorted(map(repr, range(len(shape))))
    if len(one) == 4 and not (isinstance(order, list) and sorted(map(repr, order)) == dimensions):
        raise CorruptFileError(f"tensor {name!r} has its dimensions in the order {str(order)[:200]}")
    return Entry(name, dtype, tuple(shape), order=order)


def _bytes(entry):
    stored, count = tensors.TYPES[entry.dtype], 1
    for size in entry.shape:
        count *= size
    return count * stored.size * stored.parts


def _could_learn(parameter):
    return not parameter.requires_grad and (parameter.is_floating_point() or parameter.is_complex())
