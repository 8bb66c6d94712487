"""Exact coding of a weight on an integer grid (compresslab.grids.Grid): step sizes, zero points, and the codes.

The step sizes and the zero points come first, two tensors (see `tensors`) of the shape that the header says. Then, from
version 3 on, the frame (`frames`), and the codes. A level is a code less its zero point rounded down. A number says
which codes there are
0 all     every weight
1 sparse  the kept ones: their positions (`positions`), then they alone. A masked weight keeps what its mask keeps,
          though a kept level may be 0, and the rest has the value 0; any other keeps what is not of level 0
and another how they are written
0 packed  code - low in so many bits as the grid has, the highest first, eight to a byte
1 levels  the smallest level (a zigzagged varint), a histogram of level - smallest (below 4096), and those in the range
          coder: of channels whose zero points differ, the numbers near 0 have the same level
2 codes   a histogram of code - low (below 4096), and those in the range coder
3 contexts  (from version 3 on) the levels as int32 words (`values`, contexts)

Shannon 1948: what is frequent is cheap. Weights crowd around 0, so 4 bits a weight cost 2 to 3.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from compresslab import grids
from compresslab.storage import frames, positions, tensors, values
from compresslab.storage.container import CorruptFileError
from compresslab.storage.streams import CHUNK, CODED, affordable, coded_bits, frequencies

ALL, SPARSE = range(2)
PACKED, LEVELS, CODES, CONTEXTS = range(4)
SPAN = 4096  # levels that a histogram may have
FARTHEST = 2**24  # most that low, high and a zero point may be away from 0: whole numbers that float32 tells apart
WORTH = 16  # weights for each code of each row from which on a table of all codes' values is worth it
FEW = 1 / 8  # share of weights of level 0 from which sparse is tried, and all of them by contexts no more


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
    if type(learned) is not bool and learned != "frozen" or dtype not in ("float32", "float64"):
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
    counts = writer.counts
    with writer.all_as("codebook"):
        tensors.write(writer, grid.scale)
        tensors.write(writer, grid.zero_point)
    before, writer.counts = writer.enter("values"), counts
    floors = np.broadcast_to(_floors(grid), codes.shape).reshape(-1)
    levels = codes.contiguous().numpy().reshape(-1) - floors
    kept = levels != 0 if mask is None else mask.detach().cpu().contiguous().numpy().reshape(-1)
    zeros = len(levels) - int(np.count_nonzero(kept))
    few = len(levels) <= tensors.SMALL
    some = mask is not None or 0 < zeros < len(levels) and (few or zeros > FEW * len(levels))
    shape = tuple(codes.shape)
    frame, places = positions.cheapest(kept, shape, writer) if some else (frames.choose(levels > 0, shape), None)
    where = values.Where(shape, kept=kept, frame=frame, credit=writer.credit)
    plans = [_plan_sparse(where, places, levels, floors, grid)] if some else []
    if mask is None:
        plans.append(_plan_all(replace(where, kept=None), levels, floors, grid, contexts=few or not some))
    frames.write(writer, where.frame, where.shape)
    min(plans, key=lambda one: one.bits).write(writer)
    writer.enter(before)


def read(reader, form, shape, dtype, masked):
    """The weight that was written, a chunk at a time: nothing else of it takes as much memory.

    form     Form;  shape, dtype  of the weight;  masked  whether it is to have a mask
    returns  Grid, weight (tensor), and its mask (bool tensor, or None)
    raises   CorruptFileError
    """
    counts, kept = reader.counts, None
    grid = _checked(form, *(tensors.read(reader, form.dtype, form.shape)[0] for _ in range(2)))
    reader.counts = counts
    weight, frame = torch.empty(shape, dtype=dtype), tensors.read_frame(reader, tuple(shape))
    if reader.uint(SPARSE) == SPARSE:
        kept = positions.read(reader, weight.numel(), frame)
    elif masked:
        raise CorruptFileError("a masked weight is stored without its mask")
    tensors.note(reader, kept, shape)
    how, flat = reader.uint(CONTEXTS if reader.version >= CODED else CODES), weight.view(-1)
    count, where = len(flat) if kept is None else int(np.count_nonzero(kept)), values.Where(shape, 1, kept, frame)
    numbers, table = _Numbers(_read_numbers(reader, how, count, form, where)), _table(grid, shape, dtype)
    for start in range(0, len(flat), CHUNK):
        stop = min(start + CHUNK, len(flat))
        inside = None if kept is None else kept[start:stop]
        some = numbers.take(stop - start if inside is None else int(np.count_nonzero(inside)))
        part = _part(grid, shape, start, stop)
        codes = _codes(part, some, inside, how in (LEVELS, CONTEXTS))
        codes = torch.from_numpy(codes if inside is None or not masked else np.where(inside, codes, grid.low))
        if ((codes < grid.low) | (codes > grid.high)).any():
            raise CorruptFileError(f"a code lies outside its grid, {grid.low} to {grid.high}")
        found, right = _computed(part, codes, dtype) if table is None else table(codes, start)
        flat[start:stop] = _checked_values(found, right, inside if masked else None)
    return grid, weight, torch.from_numpy(kept).reshape(shape) if masked else None


def _checked(form, scale, zero_point):
    """The Grid of a Form with these tensors; raises CorruptFileError for tensors that no file may have."""
    if not scale.isfinite().all() or (scale < 0).any() or not (zero_point.abs() <= FARTHEST).all():
        raise CorruptFileError("a grid has a scale that is negative or not finite, or a zero point out of reach")
    return form.grid(scale, zero_point)


def _part(grid, shape, start, stop):
    """The grid of the weights from `start` to `stop` of a flattened tensor, which its scale broadcasts to `shape`."""
    sides, size = (grid.scale, grid.zero_point), _run(grid, shape)
    if size is None:
        wide = (np.broadcast_to(one.numpy(), shape) for one in sides)
        return _sized(grid, *(torch.from_numpy(one.flat[start:stop]) for one in wide))
    steps = [0] if grid.scale.numel() == 1 else _steps(grid, size, start, stop)
    return _sized(grid, *(one.reshape(-1)[steps] for one in sides))


def _run(grid, shape):
    """How many weights one after another share a step size; None where step sizes lie along several dimensions.

    The next run has the next step size, and the first one comes again after the last.
    """
    sizes = (*[1] * (len(shape) - grid.scale.dim()), *grid.scale.shape)
    several = [axis for axis, size in enumerate(sizes) if size != 1]
    return math.prod(shape[several[0] + 1 :] if several else shape) if len(several) < 2 else None


def _steps(grid, size, start, stop):
    """Which step size each weight from `start` to `stop` has; `size` as from _run."""
    runs = torch.arange(start // size, -(-stop // size))
    counts = ((runs + 1) * size).clamp(max=stop) - (runs * size).clamp(min=start)
    return (runs % grid.scale.numel()).repeat_interleave(counts)


def _sized(grid, scale, zero_point):
    """A grid that computes as another one does, with step sizes and zero points of its own, checked before."""
    part = grids.Grid(torch.ones(1), torch.zeros(1), grid.low, grid.high, grid.bits)
    part.scale, part.zero_point = scale, zero_point
    part._whole, part._tiny, part._empty = grid._whole, grid._tiny, grid._empty  # it is to compute in the same way
    return part


def _codes(grid, numbers, inside, levels):
    """Codes of a chunk: `numbers` (codes, or levels) where `inside`, and level 0 in the rest; int32.

    inside  bool array, or None for everywhere
    """
    floors = _floors(grid)
    if inside is None:
        return numbers + floors if levels else numbers
    codes = np.broadcast_to(floors, len(inside)).copy()
    codes[inside] = numbers + (codes[inside] if levels else 0)
    return codes


def _computed(grid, codes, dtype):
    """Values of codes (int32), and whether the grid gives each of them its code back."""
    weight = grid.values(codes).to(dtype)
    return weight, grid.codes(weight) == codes


def _table(grid, shape, dtype):
    """The same as a function of a chunk's codes and where it starts, for many weights: all codes are computed once.

    None where that would be more than one value for WORTH weights, or where step sizes lie along several dimensions.
    """
    rows, count, size = grid.scale.numel(), grid.high - grid.low + 1, _run(grid, shape)
    if size is None or rows * count * WORTH >= math.prod(shape):
        return None
    part = _sized(grid, grid.scale.reshape(rows, 1), grid.zero_point.reshape(rows, 1))
    values, right = _computed(part, torch.arange(grid.low, grid.high + 1, dtype=torch.int32).expand(rows, count), dtype)
    values, right = values.reshape(-1), right.reshape(-1)

    def look_up(codes, start):
        at = codes.long() - grid.low
        if rows > 1:
            at += _steps(grid, size, start, start + len(codes)).mul_(count)
        return values[at], right[at]

    return look_up


def _checked_values(weight, right, kept):
    """Values of a chunk, 0 where they are not `kept` (bool array, or None for all); `right` as from _computed."""
    if not (right if kept is None else right | ~torch.from_numpy(kept)).all():
        raise CorruptFileError("weights do not lie on their grid")
    return weight if kept is None else weight.masked_fill_(~torch.from_numpy(kept), 0.0)


def _floors(grid):
    """Code of level 0, the zero point rounded down, as an int32 array of the zero point's shape."""
    return grid.zero_point.floor().to(torch.int32).numpy()


def _plan_all(where, levels, floors, grid, contexts):
    numbers = _plan_numbers(where, levels, grid, lambda: levels + floors, contexts)

    def write(writer):
        writer.uint(ALL)
        tensors.note(writer, None, where.shape)
        numbers.write(writer)

    return values.Plan(8 + numbers.bits, write)


def _plan_sparse(where, places, levels, floors, grid):
    few = levels[where.kept]
    numbers = _plan_numbers(where, few, grid, lambda: few + floors[where.kept])

    def write(writer):
        before = writer.enter("positions")
        writer.uint(SPARSE)
        places.write(writer)
        tensors.note(writer, where.kept, where.shape)
        writer.enter(before)
        numbers.write(writer)

    return values.Plan(8 + places.bits + numbers.bits, write)


def _plan_numbers(where, levels, grid, codes, contexts=True):
    """The cheapest form of some weights, by contexts or not; `codes()` makes their codes, where they are wanted."""
    bits = 8 + grid.bits * len(levels)
    plans = [values.Plan(bits, lambda writer: _write_packed(writer, codes() - grid.low, grid.bits))]
    if len(levels) and contexts:
        plans += values.plan_contexts(levels.astype("<i4").view("<u4"), "signed", where, lead=CONTEXTS)
    if len(levels) and len(plans) == 1:  # contexts know all that a histogram knows
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


class _Numbers:
    """Hands out, so many at a time as are asked for, what an iterator of arrays yields."""

    def __init__(self, arrays):
        self._arrays, self._left = arrays, np.zeros(0, dtype=np.int32)

    def take(self, count):
        found = [self._left]
        while sum(map(len, found)) < count:
            found.append(next(self._arrays))
        every = np.concatenate(found)
        self._left = every[count:]
        return every[:count]


def _read_numbers(reader, how, count, form, where):
    """Yields `count` codes, or levels, in int32 arrays."""
    if how == CONTEXTS:
        words = np.empty(count, dtype="<u4")
        values.read_contexts(reader, words, "signed", where)
        yield words.view("<i4")
        return
    if how == PACKED:
        yield from _read_packed(reader, count, form)
        return
    first = form.low
    if how == LEVELS:
        zigzagged = reader.uint(4 * FARTHEST)
        first = zigzagged // 2 if zigzagged % 2 == 0 else -(zigzagged // 2) - 1
    for symbols in reader.symbols(count, reader.frequencies(SPAN)):
        yield symbols + np.int32(first)


def _read_packed(reader, count, form):
    worths = 1 << np.arange(form.bits - 1, -1, -1, dtype=np.int32)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        packed = np.frombuffer(reader.raw(-(-size * form.bits // 8)), dtype=np.uint8)
        digits = np.unpackbits(packed, count=size * form.bits).reshape(size, form.bits)
        yield digits.astype(np.int32) @ worths + np.int32(form.low)
