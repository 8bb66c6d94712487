"""Exact coding of one tensor: its numbers as words of bits, dense or with the kept positions apart.

    0 dense          every word, in the cheapest form of `values`
    1 sparse         the kept positions (`positions`), then the kept words alone. A masked tensor keeps what its mask
                     keeps, though a kept weight may be 0; any other keeps what is not zero. The rest is +0
    2 signed sparse  as sparse, then the share of -0 in the rest (a varint, over 2**16), then a bit each, 1 for -0
    3 unrolled       a convolution written as a matrix (`unrolled`); since version 3
A number before says which. From version 3 on a sparse tensor's frame (`frames`) comes next.
"""

import sys
from dataclasses import dataclass

import numpy as np
import torch

from compresslab.storage import adaptive, frames, positions, unrolled, values
from compresslab.storage.container import CorruptFileError
from compresslab.storage.streams import CHUNK, CODED, affordable

DENSE, SPARSE, SIGNED_SPARSE, UNROLLED = range(4)
SMALL = 4096  # words up to which both forms are tried; above, the share of zeros decides what is worth the time
FEW, MANY = 1 / 256, 1 / 8
GRID = 2**16  # share of -0 among the zeros is a whole number over this


@dataclass(frozen=True)
class Type:
    """How a dtype is stored: `size` bytes a word, `parts` words an element (complex: 2), `kind` as in `values`."""

    dtype: torch.dtype
    size: int
    parts: int
    kind: str


def _types():
    floats = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz".split()
    known = {name: Type(getattr(torch, name), getattr(torch, name).itemsize, 1, "float") for name in floats}
    for bits in (8, 16, 32, 64):
        known[f"int{bits}"] = Type(getattr(torch, f"int{bits}"), bits // 8, 1, "signed")
        known[f"uint{bits}"] = Type(getattr(torch, f"uint{bits}"), bits // 8, 1, "unsigned")
    known["bool"] = Type(torch.bool, 1, 1, "unsigned")
    for name, size in (("complex32", 2), ("complex64", 4), ("complex128", 8)):
        known[name] = Type(getattr(torch, name), size, 2, "float")
    return known


TYPES = _types()
NAMES = {one.dtype: name for name, one in TYPES.items()}


def write(writer, tensor, mask=None):
    """Write a tensor in its cheapest form.

    tensor  dense, of a dtype in TYPES;  mask  bool tensor of its shape: what it keeps, the rest being zero, or None
    raises  ValueError for a tensor whose values cannot be read (sparse, quantized, on the meta device)
    """
    stored, shape = TYPES[NAMES[tensor.dtype]], tuple(tensor.shape)
    words, before = words_of(tensor, stored), writer.enter("values")
    found, kernel = unrolled.find(words.reshape(shape)) if _may_repeat(shape, stored, mask) else (None, None)
    if found is not None:
        _write_unrolled(writer, found, tensor_of(kernel.reshape(-1), stored, found.of_kernel), words, shape)
        writer.enter(before)
        return
    if mask is None:
        kept = _are_nonzero(words, stored)
        plans = _plans(writer, words, kept, shape, stored)
    else:
        kept = np.repeat(mask.detach().cpu().contiguous().numpy().reshape(-1), stored.parts)
        plans = [_plan_sparse(writer, words, kept, shape, stored, signed=False)]
    min(plans, key=lambda one: one.bits).write(writer)
    writer.enter(before)


def _may_repeat(shape, stored, mask):
    """Whether it is worth looking for a convolution in a tensor."""
    return len(shape) == 2 and stored.parts == 1 and mask is None


def _write_unrolled(writer, found, kernel, words, shape):
    writer.uint(UNROLLED)
    unrolled.write(writer, found)
    write(writer, kernel)
    note(writer, words != 0, shape)


def _read_unrolled(reader, name, shape, stored):
    if len(shape) != 2 or stored.parts != 1 or reader.version < CODED:
        raise CorruptFileError(f"a tensor of shape {shape} is stored as a convolution's matrix")
    found = unrolled.read(reader, *shape)
    kernel = words_of(read(reader, name, found.of_kernel)[0], stored).reshape(found.of_kernel)
    words = unrolled.built(found, kernel, *shape).reshape(-1)
    note(reader, words != 0, shape)
    return tensor_of(words, stored, shape), None


def note(coder, kept, shape):
    """Note in a Writer or Reader how much of each unit's weights is kept; kept  flat bool array, or None for all.

    More units than a matrix coded by contexts may have inputs tell nothing, and are not counted.
    """
    if len(shape) > 1 and all(shape):
        known = kept is not None and shape[0] <= adaptive.SIDES
        coder.counts = np.count_nonzero(kept.reshape(shape[0], -1), axis=1) if known else None


def _plans(writer, words, kept, shape, stored):
    """What is worth trying for the words of a tensor without a mask."""
    zeros, plans = len(words) - int(np.count_nonzero(kept)), []
    if len(words) <= SMALL or zeros < MANY * len(words):
        plans.append(_plan_dense(writer, words, stored, shape))
    if 0 < zeros <= len(words) and (len(words) <= SMALL or zeros > FEW * len(words)):
        plans.append(_plan_sparse(writer, words, kept, shape, stored))
    plans = [one for one in plans if one is not None and one.bits <= 16 + 8 * words.nbytes]
    return plans or [_plan_dense(writer, words, stored, shape)]


def read(reader, name, shape):
    """The tensor that was written, and a bool tensor of what it keeps (None if it is dense).

    name  a key of TYPES;  shape  list of whole numbers, 0 or more
    """
    stored, shape = TYPES[name], tuple(shape)
    count = int(np.prod(shape, dtype=object)) * stored.parts if shape else stored.parts
    words = np.empty(count, dtype=f"<u{stored.size}")
    form = reader.uint(UNROLLED)
    if form == UNROLLED:
        return _read_unrolled(reader, name, shape, stored)
    if form == DENSE:
        values.read(reader, words, stored.kind, values.Where(shape, stored.parts))
        note(reader, None, shape)
        return tensor_of(words, stored, shape), None
    frame = read_frame(reader, shape, stored.parts)
    kept = positions.read(reader, count, frame)
    tail = words[count - int(np.count_nonzero(kept)) :]
    values.read(reader, tail, stored.kind, values.Where(shape, stored.parts, kept, frame))
    _spread(words, tail, kept)
    if form == SIGNED_SPARSE:
        _read_signs(reader, words, kept)
    note(reader, kept, shape)
    if stored.parts > 1:
        kept = kept.reshape(-1, stored.parts).any(axis=1)
    return tensor_of(words, stored, shape), torch.from_numpy(kept).reshape(shape)


def order_of(tensor):
    """Dimensions of a tensor from the one with the widest strides to the narrowest; None where that is their order.

    Layers compute in other ways, and round otherwise, where their weights lie otherwise in memory (channels last, a
    transposed factor). A tensor that is not dense is taken for one in order.
    """
    order = sorted(range(tensor.dim()), key=lambda one: (-tensor.stride(one), tensor.shape[one] == 1))
    plain = order == list(range(tensor.dim())) or tensor.stride() != _strides(tensor.shape, order)
    return None if plain or not tensor.numel() else order


def laid_out(tensor, order):
    """A tensor equal to this one, in memory as `order_of` says."""
    return torch.empty_strided(tensor.shape, _strides(tensor.shape, order), dtype=tensor.dtype).copy_(tensor)


def _strides(shape, order):
    strides, below = [0] * len(shape), 1
    for one in reversed(order):
        strides[one], below = below, below * max(1, shape[one])
    return tuple(strides)


def _plan_dense(writer, words, stored, shape):
    numbers = values.plan(words, stored.kind, values.Where(shape, stored.parts, credit=writer.credit))

    def write(writer):
        writer.uint(DENSE)
        numbers.write(writer)
        note(writer, None, shape)

    return values.Plan(1 + numbers.bits, write)


def _plan_sparse(writer, words, kept, shape, stored, signed=True):
    """A plan that keeps the words of `kept`; None if the signs of the zeros are more symbols than a reader allows."""
    signs = words[~kept] != 0 if signed else np.zeros(0, dtype=bool)
    bits, share = 0.0, min(max(1, round(signs.mean() * GRID)), GRID - 1) / GRID if signs.any() else 0
    if signs.any():
        bits = 24 - float(np.where(signs, np.log2(share), np.log2(1 - share)).sum())
        if not affordable(len(signs), bits):
            return None
    frame, places = positions.cheapest(kept, shape, writer, stored.parts)
    where = values.Where(shape, stored.parts, kept, frame, writer.credit)
    numbers = values.plan(words[kept], stored.kind, where)
    parts = places, numbers, signs, share
    return values.Plan(4 + bits + places.bits + numbers.bits, lambda one: _write_sparse(one, where, *parts))


def _write_sparse(writer, where, places, numbers, signs, share):
    before = writer.enter("positions")
    writer.uint(SIGNED_SPARSE if signs.any() else SPARSE)
    frames.write(writer, where.frame, where.shape, where.parts)
    places.write(writer)
    writer.enter("values")
    numbers.write(writer)
    if signs.any():
        writer.uint(round(share * GRID))
        for start in range(0, len(signs), CHUNK):
            some = signs[start : start + CHUNK]
            writer.bits(some, np.full(len(some), share))
    writer.enter(before)
    note(writer, where.kept, where.shape)


def read_frame(reader, shape, parts=1):
    """The frame of a tensor: from the file, or, before version 3, from its shape."""
    return frames.read(reader, shape, parts) if reader.version >= CODED else frames.plain(shape, parts)


def _read_signs(reader, words, kept):
    """Turn the zeros that are negative into -0, a chunk at a time."""
    share = reader.uint(GRID - 1)
    if not share:
        raise CorruptFileError("the share of negative zeros is 0")
    sign = words.dtype.type(1 << (8 * words.itemsize - 1))
    for start in range(0, len(words), CHUNK):
        at = start + np.flatnonzero(~kept[start : start + CHUNK])
        words[at[reader.bits(np.full(len(at), share / GRID))]] = sign


def _spread(words, tail, kept):
    """Move the kept words from the end of `words` to their places and zero the rest, in the same memory.

    Going forward never overwrites a word that is still to be moved: what is left of the tail fits behind.
    """
    used = 0
    for start in range(0, len(words), CHUNK):
        some = kept[start : start + CHUNK]
        count = int(np.count_nonzero(some))
        block = np.zeros(len(some), dtype=words.dtype)
        block[some] = tail[used : used + count]
        words[start : start + CHUNK] = block
        used += count


def find_nonzeros(tensor):
    """Tell which numbers of a tensor are not zero, as a bool array of its shape (torch takes ten times as long)."""
    stored = TYPES[NAMES[tensor.dtype]]
    return _are_nonzero(words_of(tensor, stored), stored).reshape(*tensor.shape, stored.parts).any(axis=-1)


def _are_nonzero(words, stored):
    return (words << 1 if stored.kind == "float" else words) != 0


def words_of(tensor, stored):
    """The bits of a tensor as a flat unsigned little-endian array."""
    if sys.byteorder != "little":
        raise ValueError("this machine is big-endian; .clab files are written on little-endian ones")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ValueError(f"tensor is {tensor.layout} on {tensor.device}; only dense tensors with values can be saved")
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().view(f"<u{stored.size}")


def tensor_of(words, stored, shape):
    """The tensor that has these words."""
    flat = torch.from_numpy(words.view(np.uint8))
    return flat.view(stored.dtype).reshape(shape)
