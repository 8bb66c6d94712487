"""What a file holds of rounded weights: codes of a grid, assignments to a codebook, 2-byte words of 16 bits.

In the header (see `content`), `grids`, `codebooks` and `halves` say which tensors they are. Of a weight with any other
rounding the file holds its values alone.
"""

import warnings

import torch
from torch import nn

from compresslab import codebooks, grids, layers
from compresslab.storage import books, codes, tensors
from compresslab.storage.container import CorruptFileError

DTYPES = {"grids": books.KINDS, "codebooks": books.KINDS, "halves": ("float64", "float32")}


def find(model, state, masks):
    """The rounded tensors of a model: name -> (Grid, codes), Codebook, or a dtype of 16 bits; shared tensors once.

    state  name -> Parameter or buffer of plain(model);  masks  name -> mask

    A tensor that its rounding would not give back to the bit is not there, and a UserWarning says so.
    """
    seen, found = set(), {}
    for name, tensor in state.items():
        path, _, own = name.rpartition(".")
        rounding = layers.get_rounding(model.get_submodule(path), own)
        if rounding is not None and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = _stored(rounding, tensor, masks.get(name))
    if lost := [name for name, one in found.items() if one is None]:
        told = f"{', '.join(lost[:5])}{', …' if len(lost) > 5 else ''}"
        warnings.warn(f"the rounding of {told} cannot be saved exactly; the file has its values alone", stacklevel=4)
    return {name: one for name, one in found.items() if one is not None}


def listed(rounded):
    """The lists of a header; `rounded` is index -> what `find` says of that tensor."""
    forms = {index: codes.form_of(one[0]) for index, one in sorted(rounded.items()) if isinstance(one, tuple)}
    shared = {index: one for index, one in sorted(rounded.items()) if isinstance(one, codebooks.Codebook)}
    halves = {index: one for index, one in sorted(rounded.items()) if isinstance(one, torch.dtype)}
    return {
        "grids": [[index, *form.listed()] for index, form in forms.items()],
        "codebooks": [[index, *books.form_of(one).listed()] for index, one in shared.items()],
        "halves": [[index, tensors.NAMES[dtype]] for index, dtype in halves.items()],
    }


def read_lists(header, entries):
    """Index -> codes.Form, books.Form, or name of a dtype of 16 bits, of the rounded ones of `entries`.

    raises  CorruptFileError
    """
    found = {}
    for key, dtypes in DTYPES.items():
        for index, *rest in (one or [None] for one in header.get(key, ())):
            if type(index) is not int or not 0 <= index < len(entries) or index in found:
                raise CorruptFileError(f"{key} has {str(index)[:50]}, which is no tensor, or stands twice")
            entry = entries[index]
            if entry.tied is not None or entry.dtype not in dtypes:
                raise CorruptFileError(f"{key} has tensor {entry.name!r}, which is {entry.dtype}, or tied")
            found[index] = _read_form(key, rest, entry)
    return found


def _read_form(key, items, entry):
    if key == "grids":
        return codes.read_form(items, entry.shape)
    return books.read_form(items) if key == "codebooks" else _half(items)


def write(writer, tensor, mask=None, rounded=None):
    """Write one tensor of the payload; `mask` bool tensor or None, `rounded` what `find` says of it or None."""
    if isinstance(rounded, tuple):
        codes.write(writer, *rounded, mask)
    elif isinstance(rounded, codebooks.Codebook):
        books.write(writer, rounded, mask)
    else:
        tensors.write(writer, tensor if rounded is None else tensor.to(rounded), mask)


def read(reader, entry, form, masked):
    """Rounding, value, and kept positions of one tensor; each None where it has none.

    form  what `read_lists` says of it, or None;  masked  whether it is to have a mask
    """
    dtype = tensors.TYPES[entry.dtype].dtype
    if isinstance(form, codes.Form):
        return codes.read(reader, form, entry.shape, dtype, masked)
    if isinstance(form, books.Form):
        return books.read(reader, form, entry.shape, entry.dtype)
    value, kept = tensors.read(reader, form or entry.dtype, entry.shape)
    return (None, value, kept) if form is None else (grids.Half(value.dtype), value.to(dtype), kept)


def _stored(rounding, tensor, mask):
    """What is stored of a rounded tensor, or None if that would not give it back."""
    name = tensors.NAMES[tensor.dtype]
    if isinstance(tensor, nn.Parameter) and isinstance(rounding, grids.Grid) and name in DTYPES["grids"]:
        return codes.settled(rounding, tensor, mask)
    if isinstance(tensor, nn.Parameter) and isinstance(rounding, codebooks.Codebook):
        return books.settled(rounding, tensor, mask)
    if isinstance(tensor, nn.Parameter) and isinstance(rounding, grids.Half) and name in DTYPES["halves"]:
        return rounding.dtype if torch.equal(tensor.to(rounding.dtype).to(tensor.dtype), tensor) else None
    return None


def _half(items):
    if items not in (["float16"], ["bfloat16"]):
        raise CorruptFileError(f"a tensor of 16 bits is of dtype {str(items)[:50]}")
    return items[0]
