"""Context-mixed coding of a matrix: which entries are kept (a field), and which of few values each has (ranks).

    field   a bool for each entry of a matrix
    rank    the number of a value among a palette's, which is in the order of the values
    dead    (of a line or place) keeping nothing
    prior   what the weights of the layer before say about an input: 0 none, 8 as many as the mean, +2 for each doubling
    block   entries that are predicted together, then coded, then learned from

The matrix is gone through line by line (`layouts`), in several passes; `mixing` has the probabilities, and says what
they depend on. `_code_field` and `_code_ranks` serve both ways; what was written is remembered, by its bytes.
"""

import bisect
import functools
import math

import numpy as np

from compresslab.storage import mixing
from compresslab.storage.coder import Reader, Writer
from compresslab.storage.container import CorruptFileError
from compresslab.storage.layouts import Layout

ENTRIES, PADDED, SIDES = 2**22, 2**23, 2**18  # entries of a matrix, with lines around it; lines and places together
MOST_RANKS, MOST_VALUES = 2**20, 256
BLOCKS = 2048  # blocks that a pass is cut into, about: what decoding costs
PRIORS, PRIOR = 16, 8
BIT_COST, BLOCK_COST = 8, 100  # symbols that take as long as a bit, and as a block
WEIGHT = 10_000  # of counters in the mixer at first, over 2**16; the density has none
QUICK, SLOW = 2**17, 1.25  # decisions about ranks that are tried: so many, or for each entry of the tensor
REMEMBERED = 2**20  # bits that are remembered of a matrix at most; they take 3 bytes each


def try_field(writer: Writer, keep: np.ndarray, layout: Layout, prior: np.ndarray | None) -> Writer | None:
    """Write which entries of a matrix are kept, on trial; None where reading it would take too much.

    keep  bool array, flat;  prior  as from `find_priors`, for the columns, or None
    """
    if not fits(layout):
        return None
    record = _record_field if len(keep) <= REMEMBERED else _record_field.__wrapped__
    recorded = record(np.packbits(keep).tobytes(), layout, None if prior is None else prior.tobytes())
    return _try(writer, recorded, len(keep))


def _try(writer, recorded, entries):
    """Return a trial of what was recorded, or None where reading it would take too much."""
    trial = Writer(writer)
    trial.append(recorded)
    trial.context_entries += entries
    return trial if trial.affords() and trial.affords_contexts(0) else None


def read_field(reader: Reader, layout: Layout, prior: np.ndarray | None) -> np.ndarray:
    """Read which entries are kept, as `try_field` wrote them: a flat bool array."""
    check(fits(layout))
    return layout.flat(_code_field(reader, layout, prior))


@functools.lru_cache(maxsize=16)  # a retrained model's positions are those of the one-shot model
def _record_field(packed, layout, prior):
    """Write a field to a Writer of its own; arguments as bytes."""
    keep, writer = _unpack(packed, layout), Writer()
    _code_field(writer, layout, None if prior is None else np.frombuffer(prior, np.uint8), layout.by_lines(keep))
    return writer


def _code_field(coder, layout, prior, keep=None):
    """Code which entries are kept, and return them: bool, (lines, places)."""
    live = []
    for count, lag, priors, axis in ((layout.columns, layout.lag, prior, 1), (layout.rows, 0, None, 0)):
        side, numbers = None if keep is None else keep.any(axis=axis), np.arange(count, dtype=np.int32)
        if coder.number(int(side is not None and not side.all()), 2):
            numbers = numbers[_code_entries(coder, Layout(1, count, lag=lag), priors, numbers, side).reshape(-1)]
        live.append(numbers)
    at = (live[0][:, None] * layout.rows + live[1]).reshape(-1)
    return _code_entries(coder, layout, prior, at, keep)


def _code_entries(coder, layout, prior, at, keep):
    """Code which of the entries `at` are kept, the others being dead."""
    matrix = _Matrix(layout, mixing.FIELD, prior=prior)
    _code_pass(coder, matrix, at, None if keep is None else keep.reshape(-1)[at])
    return layout.inside(matrix.known) > 0


def try_ranks(
    writer: Writer, ranks: np.ndarray, values: int, negatives: int, keep: np.ndarray | None, layout: Layout
) -> Writer | None:
    """Write which of few values each kept entry has, on trial; None where that would take too long.

    ranks   whole numbers from 0 to values - 1, in the order of the flat matrix, larger for larger values
    negatives  how many of the values are below zero;  keep  flat bool array, or None for all
    """
    entries, decisions = layout.rows * layout.columns, len(ranks) * (values - 1).bit_length()
    quick = decisions <= max(QUICK, SLOW * entries) and writer.affords_contexts(entries)
    if not quick or not _fits_ranks(layout, len(ranks), values):
        return None
    record = _record_ranks if decisions <= REMEMBERED else _record_ranks.__wrapped__
    packed = None if keep is None else np.packbits(keep).tobytes()
    return _try(writer, record(ranks.astype(np.uint8).tobytes(), values, negatives, packed, layout), decisions)


def read_ranks(reader: Reader, values: int, negatives: int, keep: np.ndarray | None, layout: Layout) -> np.ndarray:
    """Read the ranks that were written, int16, in the order of the flat matrix's kept entries."""
    count = layout.rows * layout.columns if keep is None else int(np.count_nonzero(keep))
    check(_fits_ranks(layout, count, values))
    flat = layout.flat(_code_ranks(reader, layout, keep, values, negatives))
    return flat if keep is None else flat[keep]


@functools.lru_cache(maxsize=16)  # assignments to a codebook stay the same while it is trained
def _record_ranks(ranks, values, negatives, packed, layout):
    """Write ranks to a Writer of their own; arrays as bytes."""
    keep, writer = None if packed is None else _unpack(packed, layout), Writer()
    matrix = np.zeros(layout.rows * layout.columns, dtype=np.int16)
    matrix[slice(None) if keep is None else keep] = np.frombuffer(ranks, np.uint8)
    _code_ranks(writer, layout, keep, values, negatives, layout.by_lines(matrix))
    return writer


def _code_ranks(coder, layout, keep, values, negatives, ranks=None):
    """Code the ranks of kept entries, and return them: int16, (lines, places)."""
    keep = np.ones(layout.rows * layout.columns, dtype=bool) if keep is None else layout.by_lines(keep)
    at = np.flatnonzero(keep).astype(np.int32)
    ranks = None if ranks is None else ranks.reshape(-1)[at]
    # First all signs.
    matrix = _Matrix(layout, mixing.SIGNS)
    if 0 < negatives < values:
        _code_pass(coder, matrix, at, None if ranks is None else ranks >= negatives)
    else:
        matrix.entries[at] = -1 if negatives else 1
    # Then all sizes, by halves of what is left of their ranges.
    sides = values - negatives, negatives
    matrix = _Matrix(layout, mixing.SIZES, sides, known=matrix.known)
    sizes = None if ranks is None else np.where(ranks >= negatives, ranks - negatives, negatives - 1 - ranks)
    for shift in reversed(range((max(sides) - 1).bit_length())):
        ends = np.abs(matrix.entries[at]) - 1 + (1 << shift)
        undecided = ends < np.where(matrix.entries[at] > 0, *sides)
        bits = None if sizes is None else sizes[undecided] >> shift & 1
        _code_pass(coder, matrix, at[undecided], bits, 1 << shift)
    known = layout.inside(matrix.known)
    return np.where(known > 0, negatives - 1 + known, negatives + known)


class _Matrix:
    """What is known of a matrix, and the arrays of `mixing`; entries  a flat view of what is known."""

    def __init__(self, layout, kind, sides=(1, 0), prior=None, known=None):
        shape, nodes = (layout.columns + 2 * layout.pad, layout.rows), sum(sides)
        self.known = np.zeros(shape, dtype=np.int16) if known is None else known
        self.entries = layout.inside(self.known).reshape(-1)
        self._of_lines, self._of_places = np.zeros((shape[0], 4), np.int64), np.zeros((layout.rows, 5), np.int64)
        self._of_lines = self._of_lines[: layout.columns]
        self._of_lines[:, 2] = 0 if prior is None else prior
        self._of_lines[:, 3] = np.arange(layout.columns) // layout.group
        self._basic = np.array([[0, 0], [kind, 0], [layout.pad, nodes], sides, [0, 0]])
        kinds = mixing.CONTEXTS[kind]
        self._near, self._offsets = np.array(layout.near), np.cumsum([0, *kinds[:-1]])
        self._counters = np.zeros((sum(kinds) * nodes, 2), np.int64)
        self._weights = np.array([*[WEIGHT] * mixing.KINDS, 0, 0])

    def begin(self, size: int, half: int) -> tuple:
        """Return the state for a pass in blocks of some size."""
        self._of_lines[:, :2] = self._of_places[:, :4] = 0
        self._basic[0], self._basic[1, 1], self._basic[4] = (1, 4), half, 0
        block = np.zeros((size, mixing.KINDS), np.int64), np.zeros((size, mixing.KINDS + 1), np.int64)
        sums = self._basic, self._near, self._of_lines, self._of_places
        return *sums, self._offsets, self._counters, self._weights, *block, mixing.LOOKUP


def _code_pass(coder, matrix, at, bits, half=0):
    """Code a bit for each of the entries `at` (int32)."""
    size = block_size(len(at))
    coder.charge(count_symbols(len(at)))
    out, state = np.empty(size if bits is None else len(at)), matrix.begin(size, half)
    if bits is not None:
        mixing.run(bits.astype(np.int32), 1, at, matrix.known, state, out)
        coder.bits(bits.astype(bool), out)
        return
    bits = np.zeros(0, dtype=np.int32)
    while count := mixing.run(bits, 0, at, matrix.known, state, out):
        bits = coder.bits(None, out[:count])


def _unpack(packed, layout):
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=layout.rows * layout.columns).view(bool)


def count_symbols(entries: int) -> int:
    """Count the symbols that take as long as a pass over so many entries."""
    return BIT_COST * entries + BLOCK_COST * -(-entries // block_size(entries))


def block_size(entries: int) -> int:
    """Entries in a block of a pass over so many."""
    return 1 << max(0, math.ceil(entries / BLOCKS) - 1).bit_length()


def fits(layout: Layout) -> bool:
    """Tell whether a matrix, with the lines around it, is not too large for what its coding takes beside it."""
    small = layout.columns * layout.rows <= ENTRIES and layout.columns + layout.rows <= SIDES
    return small and (layout.columns + 2 * layout.pad) * layout.rows <= PADDED


def _fits_ranks(layout, count, values):
    return fits(layout) and count <= MOST_RANKS and values <= MOST_VALUES


def check(possible: bool) -> None:
    """Refuse what takes more memory than its coding may."""
    if not possible:
        raise CorruptFileError("a matrix is too large to be coded by contexts")


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
