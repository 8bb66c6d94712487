"""Context-mixed coding of a matrix: which entries are kept (a field), and which of few values each has (ranks).

The first dimension of a tensor times the rest is a matrix; it is gone through line by line, a line being a column, so
that the weights of all units for one input stand together, or a row: `frames` says how, and `contexts` has the
probabilities. Each call of the range coder takes a block of entries, whose probabilities depend on
all blocks before it.
"""

import bisect
import functools
import math
from dataclasses import dataclass

import numpy as np

from compresslab.storage import contexts, streams
from compresslab.storage.container import CorruptFileError
from compresslab.storage.frames import Frame

LARGEST, MOST, SIDES = 2**24, 2**20, 2**18  # entries of a field, ranks, lines and places: they take memory
BLOCKS = 2048  # blocks that a matrix is cut into, about: what decoding costs
VALUES = 256  # most values that ranks may have
PRIORS, PRIOR = 16, 8
BIT_COST, BLOCK_COST = 8, 100  # plain symbols whose decoding takes as long as that of a bit, and of a block
FIELD_SCALE = 9_000  # weights of the mixer at first, over 2**16
RANK_SCALE = 14_000
DEPTH = 4  # how many times fewer blocks there are of sizes, which take several decisions


REMEMBERED = 2**20  # bits that are remembered of a matrix at most; they take 3 bytes each
_LOG2 = np.log2(np.arange(1, contexts.ONE) / contexts.ONE)


@dataclass(frozen=True)
class Coded:
    """Bits (bool) and their probabilities over 2**16 (uint16), and what they will cost in the range coder (bits)."""

    bits: np.ndarray
    probabilities: np.ndarray
    cost: float

    def write(self, writer):
        writer.bits(self.bits, self.probabilities / contexts.ONE)


def plan_field(kept, frame, prior):
    """How to write which entries of a matrix are kept.

    kept   bool array, flat;  frame  Frame;  prior  as from `priors`, for the columns, or None
    returns  cost in bits, symbols (as a reader's budget counts them), and a function of a writer
    """
    code = _code_field if len(kept) <= REMEMBERED else _code_field.__wrapped__
    flags, parts = code(np.packbits(kept).tobytes(), frame, None if prior is None else prior.tobytes())
    cost, count = 3 + sum(one.cost for one in parts), sum(symbols(len(one.bits)) for one in parts)

    def write(writer):
        writer.uint(flags[0] + 2 * flags[1])
        for part in parts:
            part.write(writer)
        writer.owe(count, cost)

    return cost, count, write


@functools.lru_cache(maxsize=16)  # a retrained model's positions are those of the one-shot model
def _code_field(packed, frame, prior):
    """Return whether dead lines and dead places are told, and the list of Coded of a field; arguments as bytes."""
    kept = np.unpackbits(np.frombuffer(packed, np.uint8), count=frame.rows * frame.columns).view(bool)
    turned = frame.turned(kept)
    sides = _sides(frame, None if prior is None else np.frombuffer(prior, np.uint8))
    live = turned.any(axis=1), turned.any(axis=0)
    flags = [not one.all() for one in live]
    parts = [
        _coded_vector(one, lag, own)
        for one, lag, own, some in zip(live, (frame.lag, 0), sides, flags, strict=True)
        if some
    ]
    field = Field(frame, tuple(map(np.flatnonzero, live)), sides)
    parts.append(field.encode(turned[live[0]][:, live[1]].reshape(-1)))
    return flags, parts


def read_field(reader, frame, prior):
    """Flat bool array of the entries that are kept, as `plan_field` wrote them."""
    flags, sides, live = reader.uint(3), _sides(frame, prior), []
    for number, (count, lag) in enumerate(((frame.lines, frame.lag), (frame.places, 0))):
        some = _read_vector(reader, count, lag, sides[number]) if flags >> number & 1 else np.ones(count, dtype=bool)
        live.append(np.flatnonzero(some))
    field = Field(frame, tuple(live), sides)
    field.decode(reader)
    return frame.flat(field.known).view(bool)


def symbols(count):
    """What a field of so many entries costs a reader's budget."""
    return BIT_COST * count + BLOCK_COST * -(-count // block(count))


def fits(frame, most=LARGEST):
    """Whether a matrix, with the lines around it, is not too large for what its coding takes beside it."""
    return (frame.lines + 2 * frame.pad) * frame.places <= most and frame.lines + frame.places <= SIDES


def affordable(symbols, bits, credit):
    """Whether a reader's budget allows so many symbols in about so many bits, with a share of a writer's credit."""
    return symbols <= min(credit / 2 + streams.PAYS * bits, max(streams.AT_ONCE, streams.STEADY * bits))


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
    total, (kinds, which) = int(counts.sum()), np.unique(counts, return_inverse=True)
    limits = [total * total << 64 + one for one in range(1 - PRIOR, PRIORS - PRIOR)]
    squares = [(one * len(counts)) ** 2 << 64 for one in kinds.tolist()]
    found = [bisect.bisect_right(limits, square, lo=1) if square else 0 for square in squares]
    return np.repeat(np.array(found, dtype=np.uint8)[which.reshape(-1)], columns // len(counts))


class Field:
    """The state of coding which entries of a matrix are kept.

    live    indices of the lines and the places that keep anything;  priors  of lines and of places
    """

    def __init__(self, frame, live, priors):
        self._frame, self._known, self._count = frame, _padded(frame, np.uint8), len(live[0]) * len(live[1])
        basic = [1, 8, frame.pad, 0, 0, 0, 0, 0]
        size, scale = block(self._count), FIELD_SCALE
        self._state = _state(frame, basic, contexts.FIELD_CONTEXTS, 1, size, scale, scale, live, priors)

    @property
    def known(self):
        """uint8, (lines, places): the entries coded so far."""
        return self._frame.inside(self._known)

    def encode(self, kept):
        bits, out = kept.astype(np.int32), np.empty(self._count)
        contexts.field_run(bits, 1, self._known, *self._state, out)
        return coded(bits, out)

    def decode(self, reader):
        reader.spend(symbols(self._count))
        bits, out = np.zeros(0, dtype=np.int32), np.empty(block(self._count))
        while count := contexts.field_run(bits, 0, self._known, *self._state, out):
            bits = reader.block(out[:count])


def plan_ranks(ranks, values, negatives, kept, frame):
    """How to write which of few values each kept entry has.

    ranks   whole numbers from 0 to values - 1, in the order of the flat matrix, larger for larger values
    negatives  how many of the values are below zero;  kept  flat bool array, or None for all
    returns  cost in bits, symbols, and a function of a writer
    """
    code = _code_ranks if len(ranks) * (values - 1).bit_length() <= REMEMBERED else _code_ranks.__wrapped__
    packed = None if kept is None else np.packbits(kept).tobytes()
    parts = code(ranks.astype(np.uint8).tobytes(), values, negatives, packed, frame)
    cost, count = sum(part.cost for part in parts), rank_symbols(len(ranks), values)

    def write(writer):
        for part in parts:
            part.write(writer)
        writer.owe(count, cost)

    return cost, count, write


@functools.lru_cache(maxsize=8)  # a retrained model with a codebook has the assignments of the one-shot model
def _code_ranks(ranks, values, negatives, packed, frame):
    """Return the list of Coded of ranks; `ranks` and what is kept as bytes."""
    count, kept = frame.rows * frame.columns, None
    if packed is not None:
        kept = np.unpackbits(np.frombuffer(packed, np.uint8), count=count).view(bool)
    matrix = np.zeros(count, dtype=np.int32)
    matrix[slice(None) if kept is None else kept] = np.frombuffer(ranks, np.uint8)
    state = Ranks(frame, kept, values, negatives)
    return state.encode(frame.turned(matrix)[tuple(state.at)])


def read_ranks(reader, values, negatives, kept, frame):
    """The ranks that were written, int16, in the order of the flat matrix's kept entries."""
    count = frame.rows * frame.columns if kept is None else int(np.count_nonzero(kept))
    check(fits(frame, LARGEST // 4) and count <= MOST and values <= VALUES)
    state = Ranks(frame, kept, values, negatives)
    matrix = np.zeros((frame.lines, frame.places), dtype=np.int16)
    matrix[tuple(state.at)] = state.decode(reader)
    flat = frame.flat(matrix)
    return flat if kept is None else flat[kept]


def rank_symbols(count, values):
    """What so many ranks cost a reader's budget."""
    depth, blocks = (values - 1).bit_length(), -(-count // block(count * DEPTH))
    return symbols(count) + depth * (BIT_COST * count + BLOCK_COST * blocks)


class Ranks:
    """The state of coding which value each kept entry of a matrix has: first all signs, then all sizes.

    at  int32, (2, entries): lines and places of the kept entries, in the order of coding
    """

    def __init__(self, frame, kept, values, negatives):
        turned = np.ones((frame.lines, frame.places), bool) if kept is None else frame.turned(kept)
        self.at = np.stack([one.astype(np.int32) for one in np.nonzero(turned)])
        self._frame, self._negatives, self._sides = frame, negatives, (values - negatives, negatives)
        self._count, self._known = self.at.shape[1], _padded(frame, np.int16)

    def encode(self, ranks):
        """The ranks, in the order of `at`, as a list of Coded."""
        parts, positive = [], ranks >= self._negatives
        if all(self._sides):
            bits, out = positive.astype(np.int32), np.empty(self._count)
            contexts.signs_run(bits, 1, *self._signs(), out)
            parts.append(coded(bits, out))
        self._note(positive)
        if max(self._sides) > 1:
            sizes = np.where(positive, ranks - self._negatives, self._negatives - 1 - ranks).astype(np.int32)
            most = self._count * (max(self._sides) - 1).bit_length()
            bits, out = np.empty(most, dtype=np.int32), np.empty(most)
            count = contexts.sizes_run(bits, sizes, *self._sizes(), out)
            parts.append(coded(bits[:count], out[:count]))
        return parts

    def decode(self, reader):
        """The ranks, in the order of `at`."""
        reader.spend(rank_symbols(self._count, sum(self._sides)))
        positive = self._decode_signs(reader) if all(self._sides) else np.full(self._count, self._negatives == 0)
        self._note(positive)
        sizes = self._decode_sizes(reader) if max(self._sides) > 1 else np.zeros(self._count, dtype=np.int32)
        return np.where(positive, self._negatives + sizes, self._negatives - 1 - sizes)

    def _note(self, positive):
        self._frame.inside(self._known)[tuple(self.at)] = np.where(positive, 1, -1)

    def _decode_signs(self, reader):
        state, bits, found = self._signs(), np.zeros(0, dtype=np.int32), []
        out = np.empty(block(self._count))
        while count := contexts.signs_run(bits, 0, *state, out):
            bits = reader.block(out[:count])
            found.append(bits > 0)
        return np.concatenate([np.zeros(0, dtype=bool), *found])

    def _decode_sizes(self, reader):
        state, bits = self._sizes(), np.zeros(0, dtype=np.int32)
        out, none = np.empty(block(self._count * DEPTH)), np.zeros(0, dtype=np.int32)
        while count := contexts.sizes_run(bits, none, *state, out):
            bits = reader.block(out[:count])
        return state[1]

    def _signs(self):
        basic = [0, 0, self._frame.pad, 0, 0, 0, 0, 0]
        state = _state(self._frame, basic, contexts.SIGN_CONTEXTS, 1, block(self._count), RANK_SCALE)
        return self.at, self._known, *state

    def _sizes(self):
        basic, values = [0, 0, self._frame.pad, 0, *self._sides, 0, 0], sum(self._sides)
        state = _state(self._frame, basic, contexts.SIZE_CONTEXTS, values, block(self._count * DEPTH), RANK_SCALE)
        return self.at, np.zeros(self._count, dtype=np.int32), self._known, *state


def coded(bits, probabilities):
    """A Coded of bits (int32) and their probabilities (float64)."""
    bits, probabilities = bits.astype(bool), (probabilities * contexts.ONE).astype(np.uint16)
    shares = np.where(bits, probabilities, -probabilities)  # 2**16 less the probability, in 16 bits
    return Coded(bits, probabilities, -float(_LOG2[shares - 1].sum()))


def _state(frame, basic, kinds, nodes, size, scale, last=0, live=((), ()), priors=(0, 0)):
    """What `contexts` keeps of a matrix: one array of whole numbers, the sizes of its parts, and LOOKUP.

    kinds  number of contexts of each kind, for each of so many nodes;  size  of a block
    scale  weights of counters at first;  last  that of the input behind them
    """
    of_lines, of_places = np.zeros((frame.lines, 4)), np.zeros((frame.places, 5))
    of_lines[:, 2], of_places[:, 4] = priors
    of_lines[:, 3] = np.arange(frame.lines) // frame.group
    counters, weights = np.zeros((sum(kinds) * nodes, 2)), [*[scale] * len(kinds), last, 0]
    parts = [np.reshape(basic, (-1, 2)), frame.near, of_lines, of_places, *live, np.cumsum([0, *kinds[:-1]])]
    parts += [counters, weights, *(np.zeros((size, width)) for width in (4, *[len(kinds)] * 2, len(kinds) + 1))]
    parts = [np.atleast_2d(np.asarray(one, dtype=np.int64)) for one in parts]
    starts = np.cumsum([0, *(one.size for one in parts[:-1])])
    sizes = np.array([[start, *one.shape] for start, one in zip(starts, parts, strict=True)])
    return np.concatenate([one.reshape(-1) for one in parts]), sizes, contexts.LOOKUP


def _padded(frame, dtype):
    """Zeros for a matrix with lines around it, where its neighbours' neighbours are looked for."""
    return np.zeros((frame.lines + 2 * frame.pad, frame.places), dtype=dtype)


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


def check(small):
    """Refuse what takes more memory than its coding may."""
    if not small:
        raise CorruptFileError("a matrix is too large to be coded by contexts")
