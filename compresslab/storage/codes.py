"""Exact coding of a weight on an integer grid (compresslab.grids.Grid): step sizes, zero points, and the codes.

The step sizes and the zero points come first, two tensors (see `tensors`) of the shape that the header says. Then the
codes. A level is a code less its zero point rounded down. A varint says which codes there are
0 all     every weight
1 sparse  the kept ones: their positions (`positions`), then they alone. A masked weight keeps what its mask keeps,
          though a kept level may be 0, and the rest has the value 0; any other keeps what is not of level 0
and another how they are written
0 packed  code - low in so many bits as the grid has, the highest first, eight to a byte
1 levels  the smallest level (a zigzagged varint), a histogram of level - smallest (below 4096), and those in the range
          coder: of channels whose zero points differ, the numbers near 0 have the same level
2 codes   a histogram of code - low (below 4096), and those in the range coder

Shannon 1948: what is frequent is cheap. Weights crowd around 0, so 4 bits a weight cost 2 to 3.
"""

from dataclasses import dataclass

import numpy as np
import torch

from compresslab import grids
from compresslab.storage import positions, tensors, values
from compresslab.storage.container import CorruptFileError
from compresslab.storage.streams import CHUNK, affordable, coded_bits, frequencies

ALL, SPARSE = range(2)
PACKED, LEVELS, CODES = range(3)
SPAN = 4096  # levels that a histogram may have
FARTHEST = 2**24  # most that low, high and a zero point may be away from 0: whole numbers that float32 tells apart
FEW = 1 / 16  # share of weights of level 0 from which sparse is tried


@dataclass(frozen=True)
class Form:
    """What the header says of a grid: its `bits`, `low` and `high`, `shape` and `dtype` of its scale.

    learned  whether its step size is a parameter: False, True, or "frozen" for one that takes no gradient
    """

    bits: int
    low: int
    high: int
    shape: tuple = ()
    learned: object = False
    dtype: str = "float32"

    def listed(self):
        """As a list of JSON values; defaults at its end are left out."""
        items = [list(self.shape), self.learned, self.dtype]
        while items and items[-1] in ([], False, "float32"):
            items.pop()
        return [self.bits, self.low, self.high, *items]

    def grid(self, scale, zero_point):
        """The Grid itself; raises ValueError for tensors that no grid has."""
        grid = grids.Grid(scale, zero_point, self.low, self.high, self.bits, learned=bool(self.learned))
        if self.learned:
            grid.growth.requires_grad_(self.learned is True)
        return grid


def form_of(grid):
    """The Form of a Grid."""
    learned = grid.growth is not None and (grid.growth.requires_grad or "frozen")
    return Form(grid.bits, grid.low, grid.high, tuple(grid.scale.shape), learned, tensors.NAMES[grid.scale.dtype])


def read_form(items, shape):
    """The Form that `items`, a list from a header, stands for; `shape` is that of the weight; CorruptFileError."""
    if not isinstance(items, list) or not 3 <= len(items) <= 6 or any(type(one) is not int for one in items[:3]):
        raise CorruptFileError(f"a grid is listed as {str(items)[:200]}")
    bits, low, high, scale, learned, dtype = [*items, *([], False, "float32")[len(items) - 3 :]]
    if not 1 <= bits <= grids.MOST_BITS or not -FARTHEST <= low <= high <= FARTHEST or high - low >= 2**bits:
        raise CorruptFileError(f"a grid has {bits} bits and codes from {low} to {high}")
    sizes = isinstance(scale, list) and len(scale) <= len(shape) and all(type(size) is int for size in scale)
    if not sizes or any(one not in (1, size) for one, size in zip(reversed(scale), reversed(shape), strict=False)):
        raise CorruptFileError(f"scales of shape {str(scale)[:100]} do not fit a weight of shape {str(shape)[:100]}")
    if learned not in (False, True, "frozen") or type(learned) is int or dtype not in ("float32", "float64"):
        raise CorruptFileError(f"a grid is learned: {str(learned)[:50]}, of dtype {str(dtype)[:50]}")
    return Form(bits, low, high, tuple(scale), learned, dtype)


def settled(grid, weight, mask=None):
    """A grid on the CPU whose step sizes are plain scales, and the codes (int32) of a weight that lies on it.

    weight   effective tensor;  mask  bool tensor of its shape, or None: what it does not keep needs no code
    returns  (Grid, codes), or None if the grid, put on what the codes stand for, would not give exactly this weight
    """
    weight, form = weight.detach().cpu(), form_of(grid)
    scale, zero_point = (one.detach().cpu() for one in (grid.step_size, grid.zero_point))
    try:
        read_form(form.listed(), tuple(weight.shape))
        plain = _checked(form, scale, zero_point)
    except ValueError:  # beyond the format's limits
        return None
    codes = plain.codes(weight)
    same = plain.values(codes).to(weight.dtype) == weight
    return (plain, codes) if (same if mask is None else same | ~mask.cpu()).all() else None


def write(writer, grid, codes, mask=None):
    """Write a weight on a grid in its cheapest form; `grid` and `codes` as from `settled`."""
    tensors.write(writer, grid.scale)
    tensors.write(writer, grid.zero_point)
    floors, codes, rows = _floors(grid, codes.shape), codes.contiguous().numpy(), tensors.rows(codes.shape)
    levels = codes.reshape(-1) - floors
    if mask is not None:
        kept = mask.detach().cpu().contiguous().numpy().reshape(-1)
        _plan_sparse(kept, rows, levels, floors, grid).write(writer)
        return
    plans, kept = [_plan_all(levels, floors, grid)], levels != 0
    zeros = len(levels) - int(np.count_nonzero(kept))
    if 0 < zeros < len(levels) and (len(levels) <= tensors.SMALL or zeros > FEW * len(levels)):
        plans.append(_plan_sparse(kept, rows, levels, floors, grid))
    min(plans, key=lambda one: one.bits).write(writer)


def read(reader, form, shape, dtype, masked):
    """The weight that was written.

    form     Form;  shape, dtype  of the weight;  masked  whether it is to have a mask
    returns  Grid, weight (tensor), and its mask (bool tensor, or None)
    raises   CorruptFileError
    """
    grid = _checked(form, *(tensors.read(reader, form.dtype, form.shape)[0] for _ in range(2)))
    floors, kept = _floors(grid, shape), None
    if reader.uint(SPARSE) == SPARSE:
        kept = positions.read(reader, len(floors), tensors.rows(shape))
        codes = np.full(len(floors), form.low, dtype=np.int32) if masked else floors
        codes[kept] = _read_codes(reader, floors[kept], form)
    else:
        codes = _read_codes(reader, floors, form)
    if masked and kept is None:
        raise CorruptFileError("a masked weight is stored without its mask")
    if len(codes) and not form.low <= int(codes.min()) <= int(codes.max()) <= form.high:
        raise CorruptFileError(f"a code lies outside its grid, {form.low} to {form.high}")
    return _weight(grid, torch.from_numpy(codes).reshape(shape), dtype, kept if masked else None)


def _checked(form, scale, zero_point):
    """The Grid of a Form with these tensors; raises CorruptFileError for tensors that no file may have."""
    if not scale.isfinite().all() or (scale < 0).any() or not (zero_point.abs() <= FARTHEST).all():
        raise CorruptFileError("a grid has a scale that is negative or not finite, or a zero point out of reach")
    return form.grid(scale, zero_point)


def _weight(grid, codes, dtype, kept):
    """What codes stand for, 0 where they are not kept (bool array, or None); grid, weight, and kept as a tensor."""
    mask, weight = None, grid.values(codes).to(dtype)
    off_grid = grid.codes(weight) != codes
    if kept is not None:
        mask = torch.from_numpy(kept).reshape(codes.shape)
        weight.masked_fill_(~mask, 0.0)
        off_grid &= mask
    if off_grid.any():
        raise CorruptFileError("weights do not lie on their grid")
    return grid, weight, mask


def _floors(grid, shape):
    """Code of level 0 for each weight: flat int32 array, of its own memory."""
    floors = grid.zero_point.floor().to(torch.int32).numpy()
    return np.broadcast_to(floors, shape).reshape(-1).copy()


def _plan_all(levels, floors, grid):
    numbers = _plan_numbers(levels, grid, lambda: levels + floors)

    def write(writer):
        writer.uint(ALL)
        numbers.write(writer)

    return values.Plan(8 + numbers.bits, write)


def _plan_sparse(kept, rows, levels, floors, grid):
    where = positions.plan(kept, rows)
    few = levels[kept]
    numbers = _plan_numbers(few, grid, lambda: few + floors[kept])

    def write(writer):
        writer.uint(SPARSE)
        where.write(writer)
        numbers.write(writer)

    return values.Plan(8 + where.bits + numbers.bits, write)


def _plan_numbers(levels, grid, codes):
    """The cheaper of the two forms of some weights; `codes()` makes their codes, where they are wanted."""
    bits = 8 + grid.bits * len(levels)
    plans = [values.Plan(bits, lambda writer: _write_packed(writer, codes() - grid.low, grid.bits))]
    if len(levels):
        smallest = int(levels.min())
        plans += _plan_histogram(levels - smallest, LEVELS, 2 * smallest if smallest >= 0 else -2 * smallest - 1)
        if grid.zero_point.numel() > 1 and not (grid.zero_point == grid.zero_point.reshape(-1)[0]).all():
            plans += _plan_histogram(codes() - grid.low, CODES)
    return min(plans, key=lambda one: one.bits)


def _write_packed(writer, numbers, bits):
    writer.uint(PACKED)
    for start in range(0, len(numbers), CHUNK):
        some = numbers[start : start + CHUNK, None] >> np.arange(bits - 1, -1, -1)  # (numbers, bits)
        writer.raw(np.packbits((some & 1).astype(np.uint8).reshape(-1)).tobytes())


def _plan_histogram(symbols, form, *first):
    """A plan for whole numbers from 0 on in the range coder, after the varints `first`; none if they are too many."""
    if int(symbols.max()) >= SPAN:
        return []
    counts = np.bincount(symbols)
    table = frequencies(counts)
    bits = 8 + 8 * len(first) + coded_bits(counts, table)
    if np.count_nonzero(table) > 1 and not affordable(len(symbols), bits):
        return []
    return [values.Plan(bits, lambda writer: _write_histogram(writer, symbols, table, form, *first))]


def _write_histogram(writer, symbols, table, form, *first):
    for number in (form, *first):
        writer.uint(number)
    writer.frequencies(table)
    writer.symbols(symbols, table)


def _read_codes(reader, floors, form):
    """Codes of so many weights as `floors`, the codes of their level 0, has; int32."""
    how = reader.uint(CODES)
    if how == PACKED:
        return _read_packed(reader, len(floors), form)
    codes, at = np.full(len(floors), form.low, dtype=np.int32), 0
    if how == LEVELS:
        zigzagged = reader.uint(4 * FARTHEST)
        codes = floors + np.int32(zigzagged // 2 if zigzagged % 2 == 0 else -(zigzagged // 2) - 1)
    for symbols in reader.symbols(len(codes), reader.frequencies(SPAN)):
        codes[at : at + len(symbols)] += symbols
        at += len(symbols)
    return codes


def _read_packed(reader, count, form):
    codes = np.empty(count, dtype=np.int32)
    weights = 1 << np.arange(form.bits - 1, -1, -1, dtype=np.int32)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        packed = np.frombuffer(reader.raw(-(-size * form.bits // 8)), dtype=np.uint8)
        digits = np.unpackbits(packed, count=size * form.bits).reshape(size, form.bits)
        codes[start : start + size] = digits.astype(np.int32) @ weights
    return codes + np.int32(form.low)
