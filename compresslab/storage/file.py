"""A model as the bytes of a .clab file and back: save, load, dumps, loads; and what the bytes are spent on.

saving   model -> its architecture and its tensors (`tracing`, `header`) -> each tensor in its cheapest exact form
         (`rounded`) -> the file (`container`)
loading  the same steps backwards; then the tensors are put into the model (`filling`)
"""

import functools
import json
import os
import warnings
from dataclasses import dataclass

from torch import nn

from compresslab import bars, checks
from compresslab.storage import (
    architecture,
    container,
    filling,
    folding,
    graph,
    header,
    rounded,
    rounded_inputs,
    tracing,
)
from compresslab.storage.arguments import NotPlainError
from compresslab.storage.coder import Allowance, Writer
from compresslab.storage.container import CorruptFileError
from compresslab.weights import layers

KINDS = ("positions", "values", "codebook", "header")
_PARTS = 1024  # of a byte: whole numbers of them add up exactly


@dataclass(frozen=True)
class Share:
    """What a part of a tensor takes of a file.

    tensor  its name in the state dict; "" for what belongs to none
    kind    "positions" (of what is kept), "values", "codebook" (distinct values; steps and zero points of grids), or
            "header": architecture, names, shapes, checksum
    bytes   float: entropy coding gives each its share of the last byte
    """

    tensor: str
    kind: str
    bytes: float


def save(model: nn.Module, path: str | os.PathLike, fold: bool = True) -> int:
    """Write a model to a .clab file, whole or not at all.

    model    any nn.Module. One built of layers of torch.nn, or whose forward torch.fx can trace into them, comes back
             without its class; of any other, the file holds the tensors, for load(path, into=module)
    path     str or Path, in a folder that exists
    fold     leave out the weights of units that no prediction depends on (see `folding`): they come back as zeros, and
             the outputs are the same to the bit. False keeps every weight
    returns  bytes written
    warns    UserWarning that the file holds tensors only, and why; of tensors that a parametrization makes (spectral
             norm, weight norm): the file has their values as they are now, without it
    raises   ValueError for a model with tensors that have no values yet, or state that is not tensors;
             OSError naming `path` if it cannot be written; what was there before stays as it was
    """
    container.check_path(path)
    blob, _, missing = _encode(model, fold)
    if missing is not None:
        warnings.warn(
            f"the file holds tensors only, to be loaded with load(path, into=module): {missing}", stacklevel=2
        )
    if made := layers.made_tensors(model):
        listed = ", ".join(f"{name!r} (made by {kinds})" for name, kinds in list(made.items())[:6])
        hint = "what is loaded trains without it; put it on again before training"
        warnings.warn(f"the file holds the values of {listed} as they are now: {hint}", stacklevel=2)
    container.write_file(path, blob)
    return len(blob)


def load(path: str | os.PathLike, into: nn.Module | None = None, max_bytes: int | None = None) -> nn.Module:
    """Load the model in a .clab file, on the CPU, as it was saved: values, masks, roundings, ties, modes.

    path       str or Path
    into       a module with the tensors that the file has (its class is the user's own); it is filled in place. Masks,
               roundings and grids on the inputs of layers are put on it
    max_bytes  most bytes of tensors that the file may declare; 64 MiB + 1024 × the file's length by default. Reading
               takes 64 MiB beside them and 2 s at most, in proportion for files beyond 1 MiB; for one that is trusted
               with max_bytes as much memory as that, and time for it
    returns    the model, or `into`
    raises     FileNotFoundError; CorruptFileError if the file is damaged, hostile or too new; ValueError if it holds
               tensors only and `into` is missing, or if `into` has other tensors (nothing is changed then)
    """
    return loads(container.read_file(path), into, max_bytes)


def dumps(model: nn.Module, fold: bool = True) -> bytes:
    """Return the bytes that `save` writes; the same model gives the same bytes."""
    return _encode(model, fold)[0]


def file_bytes(model: nn.Module, fold: bool = True) -> int:
    """Return the length in bytes of the .clab file of a model."""
    return len(dumps(model, fold))


def breakdown(model: nn.Module, fold: bool = True) -> list[Share]:
    """Tell what the .clab file of a model spends its bytes on.

    returns  list of Share, those of a tensor one after another, the header last; they add up to the file's length
    """
    blob, spent, _ = _encode(model, fold)
    kinds = [(name, kind, bits.get(kind, 0.0)) for name, bits in spent.items() for kind in KINDS[:-1]]
    shares = [Share(name, kind, round(bits * _PARTS / 8) / _PARTS) for name, kind, bits in kinds if bits]
    return [*shares, Share("", "header", len(blob) - sum(share.bytes for share in shares))]


def loads(blob: bytes, into: nn.Module | None = None, max_bytes: int | None = None) -> nn.Module:
    """Load the model in the bytes of a file; as `load`."""
    if into is not None:
        checks.module("into", into, also=" with the tensors of the file")
    if not isinstance(blob, (bytes, bytearray, memoryview)):
        raise ValueError(f"blob is a {type(blob).__name__}; give the bytes of a .clab file")
    limit = 2**26 + 1024 * len(blob) if max_bytes is None else checks.integer("max_bytes", max_bytes, 0)
    content, model, grids = _guard(_decode, blob, limit, Allowance(len(blob), max_bytes), into is None)
    if into is not None:
        return filling.fill(into, content, grids)
    if model is None:
        raise ValueError(
            "the file holds tensors only, for its model is of a class of its own; make a module of that class and give "
            "it to load: load(path, into=module)"
        )
    return _guard(filling.put_in, model, content)


def _encode(model, fold):
    """Return the bytes of a file, bits spent by name and kind, and why it holds tensors only (None if it does not)."""
    header.check_model(model)
    flat = layers.plain(model)
    rounded_inputs.settle(flat)
    masks = header.get_masks(model, flat)
    if fold:
        masks = folding.fold(model, flat, masks)
    roundings = rounded.find_roundings(model, header.get_state(flat), masks)
    try:
        node, extra = tracing.describe(flat)
        blob, spent = _pack(flat, masks, roundings, node, extra)
        _guard(_build, container.unpack(blob), Allowance(len(blob)))
    except (NotPlainError, CorruptFileError) as error:  # no words for its architecture, or not what they stand for
        return *_pack(flat, masks, roundings, None, {}), str(error)
    return blob, spent, None


def _pack(flat, masks, roundings, node, extra):
    """Return the bytes of a file, and the bits spent by name and kind.

    flat   model without parametrizations;  masks  name -> mask;  roundings  as from rounded.find_roundings
    node   its architecture, or None;  extra  name -> tensor of what the architecture needs beside the state dict
    """
    state, writer, spent = header.get_state(flat) | extra, Writer(), {}
    inputs = rounded_inputs.describe(flat) if node is None else ()
    head = header.write(flat, state, node, masks=masks, extra=extra, inputs=inputs)
    for name, dtype_or_tied, *_ in bars.over(head["tensors"], "encoding tensors"):
        if isinstance(dtype_or_tied, str):
            writer.spent = spent[name] = {}
            rounded.write(writer, state[name], masks.get(name), roundings.get(name))
    if node is not None and head["tensors"] == _imply_tensors(json.dumps(node)):
        del head["tensors"]
    head["model"] = architecture.shorten(node)
    return container.pack(head, writer.data(), writer.coded()), spent


@functools.lru_cache(maxsize=16)
def _imply_tensors(node):
    """Return the list of tensors that a reader takes a file with this architecture (JSON) to have, if it has none."""
    try:
        return header.list_tensors(header.get_state(_guard(graph.build, json.loads(node), [], Allowance(2**32))))
    except CorruptFileError:  # a custom module has tensors that only the list tells
        return None


def _build(parts, allowance):
    """Return the entries of an unpacked file, and its model on the meta device, or None if it holds tensors only."""
    allowance.take(parts.cost)
    head, model = parts.header, None
    header.check(head)
    head["model"] = node = architecture.lengthen(head["model"])
    if "tensors" not in head:
        model = graph.build(node, [], allowance)
        head["tensors"] = header.list_tensors(header.get_state(model))
    entries = header.read_entries(head, allowance)
    if model is None and node is not None:
        model = graph.build(node, entries, allowance)
    if model is not None:
        filling.check_same(model, entries)
    return entries, model


def _decode(blob, limit, allowance, wants_model):
    """Return what the bytes of a file hold, their model (None if it holds tensors only), and path -> InputGrid.

    limit  most bytes of tensors;  wants_model  whether the model is wanted; if not, the input grids are
    """
    parts = container.unpack(blob)
    entries, model = _build(parts, allowance)
    header.check_size(entries, limit)
    if wants_model and model is None:
        return None, None, {}
    content = header.read_content(parts, entries, allowance, model if wants_model else None)
    if wants_model:
        return content, model, {}
    return content, model, rounded_inputs.build(parts.header.get("inputs", []), content, model, allowance)


def _guard(step, *arguments):
    """Call step(*arguments), any error in it being the file's fault: nothing but CorruptFileError comes out."""
    try:
        return step(*arguments)
    except CorruptFileError:
        raise
    except Exception as error:  # torch, numpy and json have many words for values that no writer makes
        raise CorruptFileError(f"file is damaged: {type(error).__name__}: {str(error)[:500]}") from error
