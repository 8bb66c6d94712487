"""Context-mixed coding of a matrix: which entries are kept (a field), and which of few values each has (ranks).

The first dimension of a tensor times the rest is a matrix; it is gone through line by line, a line being a column, so
that the weights of all units for one input stand together, or a row: `frames` says how, and `contexts` has the
probabilities. Each call of the range coder takes a block of entries, whose probabilities depend on
all blocks before it.
"""

import math
from dataclasses import dataclass

import numpy as np

from compresslab.storage import contexts
from compresslab.storage.container import CorruptFileError
from compresslab.storage.frames import Frame

LARGEST, MOST = 2**24, 2**21  # entries of a field; ranks, which take more memory
BLOCKS = 1024  # blocks that a matrix is cut into, about: what decoding costs
VALUES = 256  # most values that ranks may have
PRIORS, PRIOR = 16, 8
BLOCK_COST = 32  # symbols whose decoding takes as long as what there is to do for a block
FIELD_SCALE = 9_000  # weights of the mixer at first, over 2**16
RANK_SCALE = 9_800


@dataclass(frozen=True)
class Coded:
    """Bits and their probabilities, ready for the range coder, and what they will cost there (bits)."""

    bits: np.ndarray
    probabilities: np.ndarray
    cost: float

    def write(self, writer):
        writer.bits(self.bits, self.probabilities)


def plan_field(kept, frame, prior):
    """How to write which entries of a matrix are kept.

    kept   bool array, flat;  frame  Frame;  prior  as from `priors`, for the columns, or None
    returns  cost in bits, symbols (as a reader's budget counts them), and a function of a writer
    """
    turned = frame.turned(kept)
    line_prior, place_prior = _sides(frame, prior)
    live = turned.any(axis=1), turned.any(axis=0)
    flags = [not one.all() for one in live]
    parts = [
        _coded_vector(one, lag, own)
        for one, lag, own, some in zip(live, (frame.lag, 0), (line_prior, place_prior), flags, strict=True)
        if some
    ]
    field = Field(frame, tuple(map(np.flatnonzero, live)), (line_prior, place_prior))
    parts.append(field.encode(turned[live[0]][:, live[1]].reshape(-1)))

    def write(writer):
        writer.uint(flags[0] + 2 * flags[1])
        for part in parts:
            part.write(writer)

    return 3 + sum(one.cost for one in parts), sum(symbols(len(one.bits)) for one in parts), write


def read_field(reader, frame, prior):
    """Flat bool array of the entries that are kept, as `plan_field` wrote them."""
    _check(frame.rows * frame.columns, LARGEST)
    flags, sides, live = reader.uint(3), _sides(frame, prior), []
    for number, (count, lag) in enumerate(((frame.lines, frame.lag), (frame.places, 0))):
        some = _read_vector(reader, count, lag, sides[number]) if flags >> number & 1 else np.ones(count, dtype=bool)
        live.append(np.flatnonzero(some))
    field = Field(frame, tuple(live), sides)
    field.decode(reader)
    return frame.flat(field.known).view(bool)


def symbols(count):
    """What a field of so many entries costs a reader's budget."""
    return count + BLOCK_COST * -(-count // block(count))


def block(count):
    """Entries in a block of a field of `count`."""
    return 1 << max(0, math.ceil(count / BLOCKS) - 1).bit_length()


def priors(counts, columns):
    """What the weights kept in each unit of the layer before say about the inputs of this one: 0 to 15, uint8.

    counts   weights kept for each unit, int64, or None;  columns  inputs; each unit makes the same number of them
    returns  array of so many columns, or None where the layers do not fit: 0 where a unit keeps nothing, else
             8 + 2 * log2(count / mean), rounded down
    """
    if counts is None or not len(counts) or columns % len(counts):
        return None
    total = int(counts.sum())
    limits = [total * total << 64 + one for one in range(1 - PRIOR, PRIORS - PRIOR)]
    squares = [(int(one) * len(counts)) ** 2 << 64 for one in counts]
    found = [1 + sum(square >= limit for limit in limits[1:]) if square else 0 for square in squares]
    return np.repeat(np.array(found, dtype=np.uint8), columns // len(counts))


class Field:
    """The state of coding which entries of a matrix are kept.

    live    indices of the lines and the places that keep anything;  priors  of lines and of places
    known   uint8, (lines, places): the entries coded so far
    """

    def __init__(self, frame, live, priors):
        used, self._count = len(contexts.FIELD_CONTEXTS), len(live[0]) * len(live[1])
        self._block, self.known = block(self._count), np.zeros((frame.lines, frame.places), dtype=np.uint8)
        of_lines, of_places = np.zeros((frame.lines, 3), np.int64), np.zeros((frame.places, 5), np.int64)
        of_lines[:, 2], of_places[:, 4] = priors
        parts = [np.array([frame.lag, frame.group, 1, 8]), of_lines, of_places, *live]
        parts += [np.zeros(2 * contexts.FIELD_COUNTERS, np.int64), np.full(used + 1, FIELD_SCALE)]
        sizes = np.array([frame.lines, frame.places, *map(len, live), self._block, used])
        self._state = self.known, _pool(parts, self._block * (2 * used + 1)), sizes, contexts.LOOKUP

    def encode(self, kept):
        bits, out = kept.astype(np.int32), np.empty(self._count)
        contexts.field_all(bits, *self._state, out)
        return coded(bits, out)

    def decode(self, reader):
        reader.spend(symbols(self._count))
        out, bits, first = np.empty(self._block), np.zeros(0, dtype=np.int32), 0
        for start in range(0, self._count, self._block):
            stop = min(self._count, start + self._block)
            contexts.field_block(first, start, stop, bits, *self._state, out)
            bits, first = reader.block(out[: stop - start]), start
        contexts.field_block(first, self._count, self._count, bits, *self._state, out)


def plan_ranks(ranks, values, negatives, kept, frame):
    """How to write which of few values each kept entry has.

    ranks   whole numbers from 0 to values - 1, in the order of the flat matrix, larger for larger values
    negatives  how many of the values are below zero;  kept  flat bool array, or None for all
    returns  cost in bits, symbols, and a function of a writer
    """
    matrix = np.zeros(frame.rows * frame.columns, dtype=np.int32)
    matrix[slice(None) if kept is None else kept] = ranks
    state = Ranks(frame, kept, values, negatives)
    found = state.encode(frame.turned(matrix)[tuple(state.at)])
    return found.cost, rank_symbols(len(ranks), values), found.write


def read_ranks(reader, values, negatives, kept, frame):
    """The ranks that were written, int32, in the order of the flat matrix's kept entries."""
    _check(frame.rows * frame.columns, LARGEST)
    _check(frame.rows * frame.columns if kept is None else np.count_nonzero(kept), MOST)
    state = Ranks(frame, kept, values, negatives)
    state.decode(reader)
    matrix = np.zeros((frame.lines, frame.places), dtype=np.int32)
    matrix[tuple(state.at)] = state.found
    flat = frame.flat(matrix)
    return flat if kept is None else flat[kept]


def rank_symbols(count, values):
    """What so many ranks cost a reader's budget."""
    depth = max(1, (values - 1).bit_length() + 1) if values > 1 else 0
    return depth * symbols(count)


class Ranks:
    """The state of coding which value each kept entry of a matrix has.

    at  int32, (2, entries): lines and places of the kept entries, in the order of coding;  found  their ranks
    """

    def __init__(self, frame, kept, values, negatives):
        turned = np.ones((frame.lines, frame.places), bool) if kept is None else frame.turned(kept)
        self.at = np.stack([one.astype(np.int32) for one in np.nonzero(turned)])
        self._count, self._values, vector = self.at.shape[1], values, frame.rows == 1
        self.found, self._block = np.zeros(self._count, dtype=np.int32), block(self._count)
        kinds = [*contexts.RANK_CONTEXTS, *([values + 1] if vector else [])]
        used, known = len(kinds), np.zeros(turned.shape, dtype=np.int8)
        ranks = np.zeros(turned.shape if vector else (0, 0), dtype=np.int16)
        weights = np.full((2, used + 1), RANK_SCALE)
        weights[:, used] = 0
        parts = [np.array([frame.lag, frame.group, negatives, values, 0, 0])]
        parts += [np.zeros(3 * (frame.lines + frame.places), np.int64), np.cumsum([0, *kinds[:-1]])]
        parts += [np.zeros(2 * sum(kinds) * values, np.int64), weights]
        pool = _pool(parts, self._block * (3 * used + 5))
        sizes = np.array([frame.lines, frame.places, self._block, used, values, sum(kinds)])
        self._inner = pool, sizes, contexts.LOOKUP
        self._outer = self.at, self.found, known, ranks, *self._inner

    def encode(self, wanted):
        most = len(wanted) * max(1, self._values.bit_length() + 1)
        bits, out = np.empty(most, dtype=np.int32), np.empty(most)
        count = contexts.ranks_all(wanted, *self._outer, bits, out)
        return coded(bits[:count], out[:count])

    def decode(self, reader):
        reader.spend(rank_symbols(self._count, self._values))
        out, first = np.empty(self._block), 0
        for start in range(0, self._count, self._block):
            stop = min(self._count, start + self._block)
            count = contexts.ranks_open(first, start, stop, *self._outer, out)
            while count:
                bits = reader.block(out[:count])
                count = contexts.ranks_level(count, bits, *self._inner, out)
            first = start
        contexts.ranks_open(first, self._count, self._count, *self._outer, out)


def coded(bits, probabilities):
    """A Coded of bits (int32) and their probabilities (float64)."""
    share = np.where(bits, probabilities, 1 - probabilities)
    return Coded(bits, probabilities, -float(np.log2(share).sum()))


def _pool(parts, more):
    """Arrays of whole numbers one behind the other, and so many zeros."""
    return np.concatenate([*(one.reshape(-1).astype(np.int64) for one in parts), np.zeros(more, np.int64)])


def _sides(frame, prior):
    """Priors of lines and of places."""
    found = np.zeros(frame.columns, dtype=np.uint8) if prior is None else prior
    none = np.zeros(frame.rows, dtype=np.uint8)
    return (none, found) if frame.transposed else (found, none)


def _vector(count, lag, prior):
    frame = Frame(1, count, lag=lag)
    every = np.arange(count), np.zeros(1, dtype=np.int64)
    return Field(frame, every, (prior, np.zeros(1, dtype=np.uint8)))


def _coded_vector(flags, lag, prior):
    return _vector(len(flags), lag, prior).encode(flags)


def _read_vector(reader, count, lag, prior):
    field = _vector(count, lag, prior)
    field.decode(reader)
    return field.known.reshape(-1).view(bool)


def _check(count, largest):
    """Refuse more entries than the memory that their coding takes allows."""
    if count > largest:
        raise CorruptFileError(f"{count} entries are more than the {largest} that are coded by contexts")
