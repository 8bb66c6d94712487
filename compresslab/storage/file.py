"""A model as the bytes of a .clab file and back: save, load, dumps, loads; and what the bytes are spent on."""

import functools
import json
import warnings
from dataclasses import dataclass

from compresslab import bars, checks, layers
from compresslab.storage import (
    architecture,
    container,
    content,
    filling,
    folding,
    graph,
    inputs,
    roundings,
    streams,
    tracing,
)
from compresslab.storage.container import CorruptFileError
from compresslab.storage.plain import NotPlainError

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


def save(model, path, fold=True):
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
    blob, _, lacking = _dumped(model, fold)
    if lacking is not None:
        told = f"the file holds tensors only, to be loaded with load(path, into=module): {lacking}"
        warnings.warn(told, stacklevel=2)
    if made := layers.made_tensors(model):
        told = ", ".join(f"{name!r} (made by {kinds})" for name, kinds in list(made.items())[:6])
        hint = "what is loaded trains without it; put it on again before training"
        warnings.warn(f"the file holds the values of {told} as they are now: {hint}", stacklevel=2)
    container.write_file(path, blob)
    return len(blob)


def load(path, into=None, max_bytes=None):
    """The model in a .clab file, on the CPU, as it was saved: values, masks, roundings, ties, modes, requires_grad.

    path       str or Path
    into       a module with the tensors that the file has (its class is the user's own); it is filled in place. Masks,
               roundings and grids on the inputs of layers are put on it
    max_bytes  most bytes of tensors that the file may declare; 64 MiB + 1024 × the file's length if not given. Reading
               takes 64 MiB beside them and 2 s at most, in proportion for files beyond 1 MiB; for one that is trusted
               with max_bytes as much memory as that, and time for it
    returns    the model, or `into`
    raises     FileNotFoundError; CorruptFileError if the file is damaged, hostile or too new; ValueError if it holds
               tensors only and `into` is missing, or if `into` has other tensors (nothing is changed then)
    """
    return loads(container.read_file(path), into, max_bytes)


def dumps(model, fold=True):
    """The bytes that `save` writes; the same model gives the same bytes."""
    return _dumped(model, fold)[0]


def breakdown(model, fold=True):
    """What the .clab file of a model spends its bytes on.

    returns  list of Share, those of a tensor one after another, the header last; they add up to the file's length
    """
    return _dumped(model, fold)[1]


def _dumped(model, fold):
    """The bytes of a file, its breakdown, and why it holds tensors only (None if it does not)."""
    content.check_model(model)
    flat = layers.plain(model)
    inputs.settle(flat)
    masks = content.masks(model, flat)
    if fold:
        masks = folding.fold(model, flat, masks)
    rounded = roundings.find(model, content.state_of(flat), masks)
    try:
        node, extra = tracing.describe(flat)
        packed = _packed(flat, masks, rounded, node, extra)
        _guarded(_decode, packed[0], float("inf"))
    except (NotPlainError, CorruptFileError) as error:  # no words for its architecture, or not what they stand for
        return *_packed(flat, masks, rounded, None, {}), str(error)
    return *packed, None


def loads(blob, into=None, max_bytes=None):
    """The model in the bytes of a file; as `load`."""
    if into is not None:
        checks.module("into", into, also=" with the tensors of the file")
    if not isinstance(blob, (bytes, bytearray, memoryview)):
        raise ValueError(f"blob is a {type(blob).__name__}; give the bytes of a .clab file")
    limit = 2**26 + 1024 * len(blob) if max_bytes is None else checks.integer("max_bytes", max_bytes, 0)
    allowance = streams.Allowance(len(blob), max_bytes)
    found, model, input_grids = _guarded(_decode, blob, limit, into is None, allowance)
    if into is not None:
        return filling.fill(into, found, input_grids)
    if model is None:
        raise ValueError(
            "the file holds tensors only, for its model is of a class of its own; make a module of that class and give "
            "it to load: load(path, into=module)"
        )
    return _guarded(filling.put_in, model, found)


def file_bytes(model, fold=True):
    """Length in bytes of the .clab file of a model."""
    return len(dumps(model, fold))


def _packed(flat, masks, rounded, node, extra):
    """The bytes of a file, and their breakdown.

    flat   model without parametrizations;  masks  name -> mask;  rounded  as from roundings.find
    node   its architecture, or None;  extra  name -> tensor of what the architecture needs beside the state dict
    """
    state, found, writer, spent = content.state_of(flat) | extra, inputs.describe(flat), streams.Writer(), {}
    described = {"masked": masks, "extra": extra, "rounded": rounded, "inputs": found if node is None else ()}
    header = content.header(flat, state, node, **described)
    for name, dtype_or_tied, *_ in bars.over(header["tensors"], "encoding tensors"):
        if isinstance(dtype_or_tied, str):
            roundings.write(writer, state[name], masks.get(name), rounded.get(name))
            spent[name] = writer.spending()
    if node is not None and header["tensors"] == _implied(json.dumps(node), len(header["tensors"])):
        del header["tensors"]
    blob = container.pack(header, bytes(writer.data), writer.coded())
    return blob, _shares(len(blob), spent)


def _shares(length, spent):
    """The breakdown of a file; spent  name -> bits by kind."""
    kinds = [(name, kind, bits.get(kind, 0.0)) for name, bits in spent.items() for kind in KINDS[:-1]]
    shares = [Share(name, kind, round(bits * _PARTS / 8) / _PARTS) for name, kind, bits in kinds if bits]
    return [*shares, Share("", "header", length - sum(one.bytes for one in shares))]


@functools.lru_cache(maxsize=16)
def _implied(node, count):
    """The list of tensors that a reader takes a file with this architecture (JSON) to have, if it has none."""
    try:
        model = _guarded(graph.build, json.loads(node), [], architecture.Budget(2**32, count))
        return content.listed(content.state_of(model))
    except CorruptFileError:  # a module of its own class has tensors that only the list tells
        return None


def _decode(blob, limit, model=True, allowance=None):
    """What the bytes of a file hold, and their model on the meta device.

    limit    most bytes of tensors;  model  whether the model is wanted
    allowance  streams.Allowance for the tensors; None where those of a file that has a model are not wanted
    returns  Content (None if not wanted), model (None if not wanted, or if the file holds tensors only), and path ->
             InputGrid (where no model is wanted)
    """
    parts = container.unpack(blob)
    content.check_header(parts.header, parts)
    built, header, budget = None, parts.header, architecture.Budget(parts.length, content.most_tensors(parts.length))
    if "tensors" not in header:
        built = graph.build(header["model"], [], budget)
        header["tensors"] = content.listed(content.state_of(built))
    content.check_lists(header, parts.length)
    entries = content.entries(header["tensors"])
    content.check_size(entries, limit)
    if model and built is None and header["model"] is not None:
        budget = architecture.Budget(parts.length, len(entries))
        built = graph.build(header["model"], entries, budget)
        filling.check_same(built, entries)
    wanted = allowance is not None and not (model and built is None)
    if wanted:
        allowance.keep(parts.cost)
        budget.charge(allowance)
    read = content.read(parts, entries, allowance, built) if wanted else None
    return read, built if model else None, {} if model else inputs.build(header, read, parts.length)


def _guarded(step, *arguments):
    """step(*arguments), any error in it being the file's fault: nothing but CorruptFileError comes out."""
    try:
        return step(*arguments)
    except CorruptFileError:
        raise
    except Exception as error:  # torch, numpy and json have many words for values that no writer makes
        raise CorruptFileError(f"file is damaged: {type(error).__name__}: {str(error)[:500]}") from error
