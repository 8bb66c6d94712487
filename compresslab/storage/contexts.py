"""Context-mixed coding of a matrix: which entries are kept (a field), and which of few values each has (ranks).

    field   a bool for each entry of a matrix
    rank    the number of a value among a palette's, which is in the order of the values
    dead    (of a line or place) keeping nothing
    prior   what the weights of the layer before say about an input: 0 none, 8 as many as the mean, +2 for each doubling
    block   entries that are predicted together, then coded, then learned from

The matrix is gone through line by line (`layouts`); `mixing` has the probabilities, and says what they depend on.
"""

import bisect
import functools
import math
from dataclasses import dataclass

import numpy as np

from compresslab.storage import mixing
from compresslab.storage.coder import Plan, Reader, Writer
from compresslab.storage.container import CorruptFileError
from compresslab.storage.layouts import Layout

LARGEST, MOST_RANKS, SIDES = 2**24, 2**20, 2**18  # entries of a field, ranks, lines and places: they take memory
BLOCKS = 2048  # blocks that a matrix is cut into, about: what decoding costs
MOST_VALUES = 256
PRIORS, PRIOR = 16, 8
BIT_COST, BLOCK_COST = 8, 100  # symbols that take as long as a bit, and as a block
FIELD_SCALE = 9_000  # weights of the mixer at first, over 2**16
RANK_SCALE = 14_000
DEPTH = 4  # how many times fewer blocks there are of sizes, which take several decisions
QUICK, SLOW = 2**17, 1.25  # decisions about ranks that are tried: so many, or for each entry of the tensor
REMEMBERED = 2**20  # bits that are remembered of a matrix at most; they take 3 bytes each
_LOG2 = np.log2(np.arange(1, mixing.ONE) / mixing.ONE)


@dataclass(frozen=True)
class Coded:
    """Bits (bool), their probabilities over 2**16 (uint16), and what they will take in the range coder (bits)."""

    bits: np.ndarray
    probabilities: np.ndarray
    cost: float

    def write(self, writer):
        writer.bits(self.bits, self.probabilities / mixing.ONE)


def plan_field(writer: Writer, kept: np.ndarray, layout: Layout, prior: np.ndarray | None) -> Plan | None:
    """Plan which entries of a matrix are kept; None where reading it would take too much.

    kept  bool array, flat;  prior  as from `find_priors`, for the columns, or None
    """
    if not fits(layout) or len(kept) > writer.context_entries:
        return None
    code = _code_field if len(kept) <= REMEMBERED else _code_field.__wrapped__
    flags, parts = code(np.packbits(kept).tobytes(), layout, None if prior is None else prior.tobytes())
    cost, symbols = 3 + sum(part.cost for part in parts), sum(count_symbols(len(part.bits)) for part in parts)

    def write(writer):
        writer.uint(flags[0] + 2 * flags[1])
        for part in parts:
            part.write(writer)
        writer.charge(symbols)
        writer.context_entries -= len(kept)

    return Plan(cost, write) if writer.affords(symbols, cost) else None


@functools.lru_cache(maxsize=16)  # a retrained model's positions are those of the one-shot model
def _code_field(packed, layout, prior):
    """Return whether there are dead lines and dead places, and the list of Coded of a field; arguments as bytes."""
    kept = np.unpackbits(np.frombuffer(packed, np.uint8), count=layout.rows * layout.columns).view(bool)
    by_lines = layout.by_lines(kept)
    priors = _priors_of_sides(layout, None if prior is None else np.frombuffer(prior, np.uint8))
    live, parts = (by_lines.any(axis=1), by_lines.any(axis=0)), []
    flags = [not side.all() for side in live]
    for side, lag, own_priors, has_dead in zip(live, (layout.lag, 0), priors, flags, strict=True):
        if has_dead:
            parts.append(_vector_field(len(side), lag, own_priors).encode(side))
    field = Field(layout, tuple(map(np.flatnonzero, live)), priors)
    parts.append(field.encode(by_lines[live[0]][:, live[1]].reshape(-1)))
    return flags, parts


def read_field(reader: Reader, layout: Layout, prior: np.ndarray | None) -> np.ndarray:
    """Read which entries are kept, as `plan_field` wrote them: a flat bool array."""
    check(fits(layout))
    flags, priors, live = reader.uint(3), _priors_of_sides(layout, prior), []
    for number, (count, lag) in enumerate(((layout.columns, layout.lag), (layout.rows, 0))):
        side = np.ones(count, dtype=bool)
        if flags >> number & 1:
            vector = _vector_field(count, lag, priors[number])
            vector.decode(reader)
            side = vector.known.reshape(-1).view(bool)
        live.append(np.flatnonzero(side))
    field = Field(layout, tuple(live), priors)
    field.decode(reader)
    return layout.flat(field.known).view(bool)


def count_symbols(entries: int) -> int:
    """Count the symbols that take as long as a field of so many entries."""
    return BIT_COST * entries + BLOCK_COST * -(-entries // block_size(entries))


def fits(layout: Layout, most: int = LARGEST) -> bool:
    """Tell whether a matrix, with the lines around it, is not too large for what its coding takes beside it."""
    return (layout.columns + 2 * layout.pad) * layout.rows <= most and layout.columns + layout.rows <= SIDES


def block_size(entries: int) -> int:
    """Entries in a block of a field of so many."""
    return 1 << max(0, math.ceil(entries / BLOCKS) - 1).bit_length()


def find_priors(counts: np.ndarray | None, columns: int) -> np.ndarray | None:
    """Find what the weights kept in each unit of the layer before say about the inputs of this one.

    counts   weights kept for each unit, int64, or None;  columns  inputs; each unit makes the same number of them
    returns  uint8 array of so many columns, or None where the layers do not fit: 0 where a unit keeps nothing, else
             8 + 2 * log2(count / mean), rounded down, 1 to 15; by whole numbers alone, the same on every machine
    """
    if counts is None or not len(counts) or columns % len(counts):
        return None
    total, (distinct, which) = int(counts.sum()), np.unique(counts, return_inverse=True)
    # 2 * log2(count / mean) >= step  is the same as  (count * units)**2 >= total**2 * 2**step.
    limits = [total * total << 64 + step for step in range(1 - PRIOR, PRIORS - PRIOR)]
    squares = [(count * len(counts)) ** 2 << 64 for count in distinct.tolist()]
    priors = [bisect.bisect_right(limits, square, lo=1) if square else 0 for square in squares]
    return np.repeat(np.array(priors, dtype=np.uint8)[which.reshape(-1)], columns // len(counts))


class Field:
    """The state of coding which entries of a matrix are kept.

    live  indices of the lines and of the places that are not dead;  priors  of all lines and of all places
    """

    def __init__(self, layout, live, priors):
        self._layout, self._known, self._count = layout, _padded(layout, np.uint8), len(live[0]) * len(live[1])
        basic = [1, 8, layout.pad, 0, 0, 0, 0, 0]
        size, scale = block_size(self._count), FIELD_SCALE
        self._state = _make_state(layout, basic, mixing.FIELD_CONTEXTS, 1, size, scale, scale, live, priors)

    @property
    def known(self):
        """uint8, (lines, places): the entries coded so far."""
        return self._layout.inside(self._known)

    def encode(self, kept):
        bits, out = kept.astype(np.int32), np.empty(self._count)
        mixing.field_run(bits, 1, self._known, self._state, out)
        return _estimate(bits, out)

    def decode(self, reader):
        reader.allowance.spend(count_symbols(self._count))
        bits, out = np.zeros(0, dtype=np.int32), np.empty(block_size(self._count))
        while count := mixing.field_run(bits, 0, self._known, self._state, out):
            bits = reader.bits(out[:count])


def plan_ranks(writer: Writer, ranks, values: int, negatives: int, kept, layout: Layout) -> Plan | None:
    """Plan which of few values each kept entry has; None where that would take too long.

    ranks   whole numbers from 0 to values - 1, in the order of the flat matrix, larger for larger values
    negatives  how many of the values are below zero;  kept  flat bool array, or None for all
    """
    entries, decisions = layout.rows * layout.columns, len(ranks) * (values - 1).bit_length()
    quick = decisions <= max(QUICK, SLOW * entries) and entries <= writer.context_entries
    if not quick or not _fits_ranks(layout, len(ranks), values):
        return None
    code = _code_ranks if decisions <= REMEMBERED else _code_ranks.__wrapped__
    packed = None if kept is None else np.packbits(kept).tobytes()
    parts = code(ranks.astype(np.uint8).tobytes(), values, negatives, packed, layout)
    cost, symbols = sum(part.cost for part in parts), count_rank_symbols(len(ranks), values)

    def write(writer):
        for part in parts:
            part.write(writer)
        writer.charge(symbols)
        writer.context_entries -= decisions

    return Plan(cost, write) if writer.affords(symbols, cost) else None


@functools.lru_cache(maxsize=8)  # a retrained model with a codebook has the assignments of the one-shot model
def _code_ranks(ranks, values, negatives, packed, layout):
    """Return the list of Coded of ranks; `ranks` and what is kept as bytes."""
    count, kept = layout.rows * layout.columns, None
    if packed is not None:
        kept = np.unpackbits(np.frombuffer(packed, np.uint8), count=count).view(bool)
    matrix = np.zeros(count, dtype=np.int32)
    matrix[slice(None) if kept is None else kept] = np.frombuffer(ranks, np.uint8)
    state = Ranks(layout, kept, values, negatives)
    return state.encode(layout.by_lines(matrix)[tuple(state.at)])


def read_ranks(reader: Reader, values: int, negatives: int, kept, layout: Layout) -> np.ndarray:
    """Read the ranks that were written, int16, in the order of the flat matrix's kept entries."""
    count = layout.rows * layout.columns if kept is None else int(np.count_nonzero(kept))
    check(_fits_ranks(layout, count, values))
    state = Ranks(layout, kept, values, negatives)
    matrix = np.zeros((layout.columns, layout.rows), dtype=np.int16)
    matrix[tuple(state.at)] = state.decode(reader)
    flat = layout.flat(matrix)
    return flat if kept is None else flat[kept]


def count_rank_symbols(count: int, values: int) -> int:
    """Count the symbols that take as long as so many ranks."""
    depth, blocks = (values - 1).bit_length(), -(-count // block_size(count * DEPTH))
    return count_symbols(count) + depth * (BIT_COST * count + BLOCK_COST * blocks)


class Ranks:
    """The state of coding which value each kept entry of a matrix has: first all signs, then all sizes.

    at  int32, (2, entries): lines and places of the kept entries, in the order of coding
    """

    def __init__(self, layout, kept, values, negatives):
        by_lines = np.ones((layout.columns, layout.rows), bool) if kept is None else layout.by_lines(kept)
        self.at = np.stack([numbers.astype(np.int32) for numbers in np.nonzero(by_lines)])
        self._layout, self._negatives, self._sides = layout, negatives, (values - negatives, negatives)
        self._count, self._known = self.at.shape[1], _padded(layout, np.int16)

    def encode(self, ranks):
        """Return the ranks, in the order of `at`, as a list of Coded."""
        parts, positive = [], ranks >= self._negatives
        if all(self._sides):
            bits, out = positive.astype(np.int32), np.empty(self._count)
            mixing.signs_run(bits, 1, *self._sign_state(), out)
            parts.append(_estimate(bits, out))
        self._note_signs(positive)
        if max(self._sides) > 1:
            sizes = np.where(positive, ranks - self._negatives, self._negatives - 1 - ranks).astype(np.int32)
            most = self._count * (max(self._sides) - 1).bit_length()
            bits, out = np.empty(most, dtype=np.int32), np.empty(most)
            count = mixing.sizes_run(bits, sizes, *self._size_state(), out)
            parts.append(_estimate(bits[:count], out[:count]))
        return parts

    def decode(self, reader):
        """Read the ranks, in the order of `at`."""
        reader.allowance.spend(count_rank_symbols(self._count, sum(self._sides)))
        positive = self._decode_signs(reader) if all(self._sides) else np.full(self._count, self._negatives == 0)
        self._note_signs(positive)
        sizes = self._decode_sizes(reader) if max(self._sides) > 1 else np.zeros(self._count, dtype=np.int32)
        return np.where(positive, self._negatives + sizes, self._negatives - 1 - sizes)

    def _note_signs(self, positive):
        self._layout.inside(self._known)[tuple(self.at)] = np.where(positive, 1, -1)

    def _decode_signs(self, reader):
        state, bits, blocks = self._sign_state(), np.zeros(0, dtype=np.int32), []
        out = np.empty(block_size(self._count))
        while count := mixing.signs_run(bits, 0, *state, out):
            bits = reader.bits(out[:count])
            blocks.append(bits > 0)
        return np.concatenate([np.zeros(0, dtype=bool), *blocks])

    def _decode_sizes(self, reader):
        state, bits = self._size_state(), np.zeros(0, dtype=np.int32)
        out, none = np.empty(block_size(self._count * DEPTH)), np.zeros(0, dtype=np.int32)
        while count := mixing.sizes_run(bits, none, *state, out):
            bits = reader.bits(out[:count])
        return state[1]

    def _sign_state(self):
        basic = [0, 0, self._layout.pad, 0, 0, 0, 0, 0]
        state = _make_state(self._layout, basic, mixing.SIGN_CONTEXTS, 1, block_size(self._count), RANK_SCALE)
        return self.at, self._known, state

    def _size_state(self):
        basic, values = [0, 0, self._layout.pad, 0, *self._sides, 0, 0], sum(self._sides)
        size = block_size(self._count * DEPTH)
        state = _make_state(self._layout, basic, mixing.SIZE_CONTEXTS, values, size, RANK_SCALE)
        return self.at, np.zeros(self._count, dtype=np.int32), self._known, state


def check(possible: bool) -> None:
    """Refuse what takes more memory than its coding may."""
    if not possible:
        raise CorruptFileError("a matrix is too large to be coded by contexts")


def _fits_ranks(layout, count, values):
    return fits(layout, LARGEST // 4) and count <= MOST_RANKS and values <= MOST_VALUES


def _estimate(bits, probabilities):
    """Return a Coded of bits (int32) and their probabilities (float64)."""
    bits, probabilities = bits.astype(bool), (probabilities * mixing.ONE).astype(np.uint16)
    shares = np.where(bits, probabilities, -probabilities)  # 2**16 less the probability, in 16 bits
    return Coded(bits, probabilities, -float(_LOG2[shares - 1].sum()))


def _make_state(layout, basic, kinds, nodes, size, scale, last=0, live=((), ()), priors=(0, 0)):
    """Make the arrays that `mixing` keeps of a matrix.

    kinds  number of contexts of each kind, for each of so many nodes;  size  of a block
    scale  weights of counters at first;  last  that of the input behind them
    """
    of_lines, of_places = np.zeros((layout.columns, 4)), np.zeros((layout.rows, 5))
    of_lines[:, 2], of_places[:, 4] = priors
    of_lines[:, 3] = np.arange(layout.columns) // layout.group
    counters, weights = np.zeros((sum(kinds) * nodes, 2)), [*[scale] * len(kinds), last, 0]
    arrays = [np.reshape(basic, (-1, 2)), layout.near, of_lines, of_places, *live, np.cumsum([0, *kinds[:-1]])]
    arrays += [counters, weights, *(np.zeros((size, width)) for width in (4, *[len(kinds)] * 2, len(kinds) + 1))]
    return *(np.asarray(array, dtype=np.int64) for array in arrays), mixing.LOOKUP


def _padded(layout, dtype):
    """Return zeros for a matrix with lines around it, where its neighbours' neighbours are looked for."""
    return np.zeros((layout.columns + 2 * layout.pad, layout.rows), dtype=dtype)


def _priors_of_sides(layout, prior):
    """Return the priors of lines and of places."""
    of_columns = np.zeros(layout.columns, dtype=np.uint8) if prior is None else prior
    return of_columns, np.zeros(layout.rows, dtype=np.uint8)


def _vector_field(count, lag, prior):
    """Return the Field of a vector: which lines, or places, of a matrix are not dead."""
    every = np.arange(count), np.zeros(1, dtype=np.int64)
    return Field(Layout(1, count, lag=lag), every, (prior, np.zeros(1, dtype=np.uint8)))
