"""Rounded weights: codes of an integer grid, assignments to a codebook, floats of 16 bits.

    rounding  what compresslab.weights puts on a parameter: Grid, Codebook, or Half
    code      the number of a value on a grid;  rank  a centroid's place by value
    level     what is stored of a weight, a whole number, 0 for the value 0: the code less the zero point, or the rank
              counted from zero

Levels are a tensor like any other, so that zeros, positions and few values cost what they cost there. A number says
which rounding a tensor has, and what else is not in its tensors follows: docs/format.md, sections 9 and 10.
"""

import math
import warnings

import numpy as np
import torch
from torch import nn

from compresslab.storage import palettes, tensors
from compresslab.storage.coder import CHUNK, Reader, Writer
from compresslab.storage.container import CorruptFileError
from compresslab.weights import codebooks, grids, layers

RISING, ANY_ORDER = range(2)
FLOATS = ("float64", "float32", "float16", "bfloat16")
NONE, GRID, BOOK, HALF = range(4)
DTYPES = {GRID: FLOATS, BOOK: FLOATS, HALF: ("float64", "float32")}
COST = 30_000  # symbols that take as long as a rounding
FARTHEST = 2**24  # most that codes and a zero point may be away from 0: whole numbers that float32 tells apart


def find_roundings(model: nn.Module, state: dict, masks: dict) -> dict:
    """Find the rounded tensors of a model: name -> (Grid, codes), Codebook, or a dtype of 16 bits; shared ones once.

    state  name -> Parameter or buffer of plain(model);  masks  name -> mask

    A tensor that its rounding would not give back to the bit is not there, and a UserWarning says so.
    """
    seen, roundings = set(), {}
    for name, tensor in state.items():
        path, _, attribute = name.rpartition(".")
        rounding = layers.get_rounding(model.get_submodule(path), attribute)
        if rounding is not None and id(tensor) not in seen:
            seen.add(id(tensor))
            roundings[name] = _settle(rounding, tensor, masks.get(name))
    if lost := [name for name, rounding in roundings.items() if rounding is None]:
        listed = f"{', '.join(lost[:5])}{', …' if len(lost) > 5 else ''}"
        warnings.warn(f"the rounding of {listed} cannot be saved exactly; the file has its values alone", stacklevel=4)
    return {name: rounding for name, rounding in roundings.items() if rounding is not None}


def write(writer: Writer, tensor: torch.Tensor, mask: torch.Tensor | None = None, rounding: object = None) -> None:
    """Write one tensor of the payload; rounding  what `find_roundings` says of it, or None."""
    how = GRID if isinstance(rounding, tuple) else BOOK if isinstance(rounding, codebooks.Codebook) else HALF
    writer.uint(NONE if rounding is None else how)
    if rounding is None:
        tensors.write(writer, tensor, mask)
    elif how == HALF:
        writer.number(grids.HALVES.index(rounding), 2)
        tensors.write(writer, tensor.to(rounding), mask)
    else:
        (_write_grid if how == GRID else _write_book)(writer, rounding, mask)


def read(reader: Reader, entry: object, masked: bool) -> tuple:
    """Read the rounding, the value, and the kept positions of one tensor; each None where it has none.

    entry  header.Entry;  masked  whether it is to have a mask
    """
    how, count = reader.uint(None, HALF), math.prod(entry.shape)
    if how == NONE:
        return None, *tensors.read(reader, entry.dtype, entry.shape)
    if entry.dtype not in DTYPES[how]:
        raise CorruptFileError(f"tensor {entry.name!r} is rounded, which is {entry.dtype}")
    reader.charge(COST + 4 * count)
    if how == HALF:
        reader.allowance.check(2 * count)
        value, keep = tensors.read(reader, tensors.NAMES[grids.HALVES[reader.number(None, 2)]], entry.shape)
        return grids.Half(value.dtype), value.to(tensors.TYPES[entry.dtype].dtype), keep
    return (_read_grid if how == GRID else _read_book)(reader, entry, masked)


# A weight on a grid.


def _write_grid(writer, rounding, mask):
    (grid, codes), counts = rounding, writer.row_counts
    with writer.counting("codebook"):
        _code_range(writer, grid, codes.shape)
        tensors.write(writer, grid.scale)
        tensors.write(writer, grid.zero_point)
    writer.row_counts = counts  # those of the layer before are what matters to the weight
    _write_levels(writer, codes - grid.zero_point.floor().to(torch.int32), mask)


def _read_grid(reader, entry, masked):
    counts, row = reader.row_counts, math.prod(entry.shape[1:])
    *limits, wide, shape = _code_range(reader, None, entry.shape)
    reader.allowance.take(4 * tensors.TYPES[wide].size * math.prod(shape))
    reader.allowance.check(2 * math.prod(entry.shape) + 40 * max(row, CHUNK))
    sides = [tensors.read(reader, wide, shape)[0] for _ in range(2)]
    reader.row_counts = counts
    grid = _make_grid(*sides, *limits)
    levels, keep = _read_levels(reader, entry, masked)
    weight = torch.empty(entry.shape, dtype=tensors.TYPES[entry.dtype].dtype)
    sides = [side.expand(entry.shape) for side in (grid.scale, grid.zero_point)]
    for rows in _slices(entry.shape):
        part = _slice_grid(grid, *(side[rows] for side in sides))
        codes = levels[rows].to(torch.int32) + part.zero_point.floor().to(torch.int32)
        if masked:
            codes.masked_fill_(~keep[rows], grid.low)
        if ((codes < grid.low) | (codes > grid.high)).any():
            raise CorruptFileError(f"a code lies outside its grid, {grid.low} to {grid.high}")
        values = part.values(codes).to(weight.dtype)
        right = part.codes(values) == codes
        if not (right | ~keep[rows] if masked else right).all():
            raise CorruptFileError("weights do not lie on their grid")
        weight[rows] = values.masked_fill_(~keep[rows], 0.0) if masked else values
    return grid, weight, keep


def _code_range(coder, grid, shape):
    """Code what a grid has beside its tensors: low, high, bits, how it learns, the type and the shape of its scale."""
    bits = low = width = learned = wide = dimensions = None
    sizes = iter([None] * len(shape))
    if grid is not None:
        bits, low, width = grid.bits - 1, 2 * grid.low if grid.low >= 0 else -2 * grid.low - 1, grid.high - grid.low
        learned = 0 if grid.growth is None else 1 if grid.growth.requires_grad else 2
        wide, dimensions = int(grid.scale.dtype == torch.float64), grid.scale.dim()
        sizes = iter([int(size != 1) for size in grid.scale.shape])
    bits = coder.number(bits, grids.MOST_BITS) + 1
    low = coder.uint(low, 2 * FARTHEST)
    low = -(low + 1) // 2 if low % 2 else low // 2
    high = low + coder.uint(width, 2**bits - 1)
    learned, wide = coder.number(learned, 3), "float64" if coder.number(wide, 2) else "float32"
    behind = shape[len(shape) - coder.uint(dimensions, len(shape)) :]
    return low, high, bits, learned, wide, tuple(size if coder.number(next(sizes), 2) else 1 for size in behind)


def _write_levels(writer, levels, mask):
    wide = bool(levels.numel()) and max(map(abs, torch.aminmax(levels))) >= 2**15
    with writer.counting("values"):
        writer.number(int(wide), 2)
    tensors.write(writer, levels.to(torch.int32 if wide else torch.int16), mask)


def _read_levels(reader, entry, masked):
    """Read levels, and what a mask keeps of them or None."""
    levels, keep = tensors.read(reader, "int32" if reader.number(None, 2) else "int16", entry.shape)
    if masked and keep is None:
        raise CorruptFileError(f"tensor {entry.name!r} is to have a mask, but is stored without one")
    return levels, keep if masked else None


def _make_grid(scale, zero_point, low, high, bits, learned):
    """Make the Grid with these tensors; learned  as it is written. Raises CorruptFileError for what no file has."""
    near = -FARTHEST <= low <= high <= FARTHEST and (zero_point.abs() <= FARTHEST).all()
    if not near or not scale.isfinite().all() or (scale < 0).any():
        raise CorruptFileError(
            "a grid has a scale that is negative or not finite, or a code or zero point out of reach"
        )
    grid = grids.Grid(scale, zero_point, low, high, bits, learned=learned > 0)
    if learned:
        grid.growth.requires_grad_(learned == 1)
    return grid


def _slices(shape):
    """Cut the first dimension of a tensor so that the parts are about CHUNK entries each."""
    if not shape:
        return [...]
    step = max(1, CHUNK * shape[0] // max(1, int(np.prod(shape, dtype=object))))
    return [slice(start, start + step) for start in range(0, shape[0], step)]


def _slice_grid(grid, scale, zero_point):
    """Return a grid that computes as another does, with step sizes and zero points of a part of its weight."""
    part = grids.Grid(torch.ones(1), torch.zeros(1), grid.low, grid.high, grid.bits)
    part.scale, part.zero_point = scale, zero_point
    part._whole, part._tiny, part._empty = grid._whole, grid._tiny, grid._empty
    return part


# A weight with a codebook.


def _write_book(writer, codebook, mask):
    centroids, counts = codebook.centroids.detach(), writer.row_counts
    with writer.counting("codebook"):
        writer.number(int(codebook.zero), 2)
        writer.number(int(not codebook.centroids.requires_grad), 2)
        writer.uint(len(centroids) - 1)
        _write_centroids(writer, centroids, codebook.zero)
    writer.row_counts = counts
    order, first, gap = _sort_centroids(centroids)
    levels = torch.argsort(order) - first
    levels[levels >= 0] += gap
    _write_levels(writer, levels.to(torch.int32)[codebook.assignments.cpu().long()], mask)


def _read_book(reader, entry, masked):
    counts, stored, size = reader.row_counts, tensors.TYPES[entry.dtype], math.prod(entry.shape)
    reader.allowance.take(2 * size)
    reader.allowance.check(2 * size)
    zero_stays, frozen = reader.number(None, 2) == 1, reader.number(None, 2) == 1
    count = reader.uint(None, codebooks.MOST_CENTROIDS - 1) + 1
    if reader.number(None, 2) == RISING:
        words = np.zeros(count, dtype=f"<u{stored.size}")
        words[int(zero_stays) :] = palettes.code(reader, None, count - zero_stays, stored.size, "float")
        centroids = tensors.make_tensor(words, stored, (count,))
    else:
        centroids = tensors.read(reader, entry.dtype, (count,))[0]
    reader.row_counts = counts
    levels, keep = _read_levels(reader, entry, masked)
    order, first, gap = _sort_centroids(centroids)
    chosen = torch.empty(entry.shape, dtype=torch.uint8 if count <= 256 else torch.int16)
    weight = torch.empty(entry.shape, dtype=stored.dtype)
    for rows in _slices(entry.shape):
        ranks = levels[rows].to(torch.int64)
        ranks += first - gap * (ranks > 0)
        if masked:
            ranks.masked_fill_(~keep[rows], min(first, count - 1))
        if ranks.numel() and not 0 <= int(ranks.min()) <= int(ranks.max()) < count:
            raise CorruptFileError(f"a weight has a level of none of the {count} centroids")
        part = order[ranks]
        chosen[rows], weight[rows] = part.to(chosen.dtype), centroids[part]
        if masked:
            weight[rows] = weight[rows].masked_fill(~keep[rows], 0.0)
    codebook = codebooks.Codebook(centroids, chosen, zero_stays)
    codebook.centroids.requires_grad_(not frozen)
    return codebook, weight, keep


def _write_centroids(writer, centroids, zero):
    """Write centroids as a palette if they rise, but for a zero in front that stays; else as a tensor."""
    words = tensors.get_words(centroids, tensors.TYPES[tensors.NAMES[centroids.dtype]])
    rising, stays = words[int(zero) :], not zero or words[0] == 0
    if stays and len(rising) and np.array_equal(palettes.sort_words(np.unique(rising), "float"), rising):
        writer.number(RISING, 2)
        palettes.code(writer, rising, len(rising), rising.itemsize, "float")
    else:
        writer.number(ANY_ORDER, 2)
        tensors.write(writer, centroids)


def _sort_centroids(centroids):
    """Return the order of centroids by value, how many are negative, and 1 if none is zero: then no level is 0."""
    values = centroids.double()
    first = int((values < 0).sum())
    return torch.argsort(values, stable=True), first, int(not (values == 0).any())


# Is a rounding what it says?


def _settle(rounding, tensor, mask):
    """Return what is stored of a rounded tensor, or None if that would not give it back."""
    name = tensors.NAMES[tensor.dtype]
    if not isinstance(tensor, nn.Parameter):
        return None
    if isinstance(rounding, grids.Grid) and name in DTYPES[GRID]:
        return settle_grid(rounding, tensor, mask)
    if isinstance(rounding, codebooks.Codebook):
        return settle_book(rounding, tensor, mask)
    if isinstance(rounding, grids.Half) and name in DTYPES[HALF]:
        return rounding.dtype if torch.equal(tensor.to(rounding.dtype).to(tensor.dtype), tensor) else None
    return None


def settle_grid(grid: grids.Grid, weight: torch.Tensor, mask: torch.Tensor | None = None) -> tuple | None:
    """Return a grid on the CPU whose step sizes are plain scales, and the codes (int32) of a weight that lies on it.

    weight   effective tensor;  mask  bool tensor of its shape, or None: what it does not keep needs no code
    returns  (Grid, codes), or None if the grid, put on what the codes stand for, would not give exactly this weight
    """
    weight, learned = weight.detach().cpu(), grid.growth is not None
    scale, zero_point = (side.detach().cpu() for side in (grid.step_size, grid.zero_point))
    sizes = zip(reversed(scale.shape), reversed(weight.shape), strict=False)
    if scale.dim() > weight.dim() or any(size not in (1, full) for size, full in sizes):
        return None
    try:
        learned += learned and not grid.growth.requires_grad
        plain = _make_grid(scale, zero_point, grid.low, grid.high, grid.bits, learned)
    except ValueError:  # beyond the format's limits
        return None
    codes = plain.codes(weight)
    same = plain.values(codes).to(weight.dtype) == weight
    return (plain, codes) if (same if mask is None else same | ~mask.cpu()).all() else None


def settle_book(codebook: codebooks.Codebook, weight: torch.Tensor, mask: torch.Tensor | None = None) -> tuple | None:
    """Return a codebook with its assignments on the CPU; None where they do not stand for exactly this weight."""
    centroids, chosen = codebook.centroids.detach().cpu(), codebook.assignments.detach().cpu()
    weight = weight.detach().cpu()
    if centroids.dtype != weight.dtype or chosen.shape != weight.shape:
        return None
    zeros = (centroids == 0).nonzero()
    if len(zeros) == 1:  # what was folded away is assigned to the centroid that is 0
        folded = (weight == 0) & (centroids[chosen.long()] != 0)
        chosen = chosen.masked_fill(folded, zeros.item())
    same = _bits(centroids[chosen.long()]) == _bits(weight)
    if not (same if mask is None else same | ~mask.cpu()).all():
        return None
    settled = codebooks.Codebook(centroids, chosen, codebook.zero)
    settled.centroids.requires_grad_(codebook.centroids.requires_grad)
    return settled


def _bits(tensor):
    """Return the bits of floats, as integers of their shape."""
    return tensor.contiguous().view(getattr(torch, f"int{8 * tensor.itemsize}"))
