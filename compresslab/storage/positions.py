"""Exact coding of which entries of a tensor are kept, in the cheapest of these forms.

A varint says which:
0 none, 1 all  nothing more to say
2 few, 3 most  how many there are (a varint) and how many entries are skipped before each (`values`): of the kept ones
               (few), or of those that are not kept (most)
4 odds         the base (a varint, over 2**20), a level for each row, one for each column (both `values`), then one
               range-coded bit for each entry of the matrix (first dimension × the rest), row after row. Its probability
               is that of odds = base · row factor · column factor, where a factor is 2**((level - 16) / 2), level 1 to
               31, chosen by how many entries the row or column keeps. Level 0: none are kept, no bits.
               Base 0: every entry of other rows and columns is kept, no bits
5 bitmap       a bit for each entry, eight to a byte, the first the highest, as bytes (`values`)
6 contexts     (from version 3 on) the matrix as a field of `adaptive`
"""

import functools
import math

import numpy as np

from compresslab.storage import adaptive, frames, values
from compresslab.storage.container import CorruptFileError
from compresslab.storage.streams import CHUNK, CODED, affordable

NONE, ALL, FEW, MOST, ODDS, BITMAP, CONTEXTS = range(7)
SMALL, SPARSE = 4096, 32  # gaps are for so many positions, or for one in so many entries
TURNED = 2**16  # entries up to which both ways of going through a matrix are tried
RARE = 1000  # beside contexts gaps are tried for fewer than one in so many
MIDDLE, LEVELS = 16, 32
ONE = 2**20  # odds of 1, in whole numbers
_HEAD = 8 + 8 * 4  # bits of a plan with levels beside those of the levels and of the entries, about
GRID = 2**16  # probabilities are whole numbers over this
# Factor of each level times ONE; whole square roots, the same on every machine.
FACTORS = np.array([0, *(math.isqrt(ONE * ONE * 2**level // 2**MIDDLE) for level in range(1, LEVELS))], dtype=np.int64)


def plan(kept, frame, writer):
    """The cheapest plan for a bool array.

    kept  bool array, 1-d;  frame  frames.Frame of what it was before it was flattened;  writer  streams.Writer: the one
          that the plan is for
    """
    count = int(np.count_nonzero(kept))
    if count in (0, len(kept)):
        return values.Plan(2, lambda writer: writer.uint(ALL if count else NONE))
    minority = min(count, len(kept) - count)
    plans = _plan_contexts(kept, frame, writer) if adaptive.fits(frame) else []
    rare = len(kept) // RARE if plans else _most_gaps(len(kept))
    plans += _plan_odds(kept, frame.rows, min((one.bits for one in plans), default=math.inf))
    if minority <= rare:
        plans.append(_plan_gaps(kept, MOST if minority < count else FEW))
    return min(plans or [_plan_bitmap(kept)], key=lambda one: one.bits)


def cheapest(kept, shape, writer, parts=1):
    """The frame of a tensor in which its positions cost least, of those that are worth a try, and the plan.

    shape, parts  of the tensor: its sizes, words in an element
    """
    frame = frames.choose(kept, shape, parts)
    found = plan(kept, frame, writer)
    if frame.lag or len(kept) > TURNED or frame.rows == 1:
        return frame, found
    turned = frames.Frame(frame.rows, frame.columns, transposed=True)
    other = plan(kept, turned, writer)
    return (turned, other) if other.bits < found.bits else (frame, found)


def read(reader, count, frame):
    """Bool array of `count` entries, as it was written; frame as for `plan`."""
    reader.hold(count)
    form = reader.uint(CONTEXTS if reader.version >= CODED else BITMAP)
    if form in (NONE, ALL):
        return np.full(count, form == ALL)
    if not count:
        raise CorruptFileError("an empty tensor keeps neither all nor none of its entries")
    if form == CONTEXTS:
        adaptive.check(adaptive.fits(frame))
        return adaptive.read_field(reader, frame, adaptive.priors(reader.counts, frame.columns))
    if form == ODDS:
        return _read_odds(reader, count, frame.rows)
    if form == BITMAP:
        return _read_bitmap(reader, count)
    at = _read_gaps(reader, count)
    kept = np.full(count, form == MOST)
    kept[at] = form == FEW
    return kept


def _plan_contexts(kept, frame, writer):
    """A plan, if it is not more symbols than a reader allows."""
    cost, symbols, write_field = adaptive.plan_field(kept, frame, adaptive.priors(writer.counts, frame.columns))
    if not adaptive.affordable(symbols, cost, writer.credit):
        return []

    def write(writer):
        writer.uint(CONTEXTS)
        write_field(writer)

    return [values.Plan(5 + cost, write)]


def _plan_gaps(kept, form):
    at = np.flatnonzero(kept if form == FEW else ~kept)
    gaps = np.diff(at, prepend=-1) - 1
    numbers = values.plan(gaps.astype(_gap_type(len(kept))), "unsigned")
    return values.Plan(8 + 8 * 3 + numbers.bits, lambda writer: _write_gaps(writer, form, len(at), numbers))


def _write_gaps(writer, form, count, numbers):
    writer.uint(form)
    writer.uint(count)
    numbers.write(writer)


def _read_gaps(reader, count):
    gaps = np.empty(reader.uint(_most_gaps(count)), dtype=_gap_type(count))
    values.read(reader, gaps, "unsigned")
    if len(gaps) and int(gaps.max()) >= count:
        raise CorruptFileError(f"a gap of {gaps.max()} lies outside a tensor of {count} entries")
    at = np.cumsum(gaps, dtype=np.int64)
    at += np.arange(len(at))
    if len(at) and at[-1] >= count:
        raise CorruptFileError(f"position {at[-1]} lies outside a tensor of {count} entries")
    return at


def _most_gaps(count):
    """How many gaps are tried, and read, for `count` entries: they take many times the memory of the entries."""
    return max(min(count, SMALL), count // SPARSE)


def _gap_type(count):
    return "<u4" if count < 2**32 else "<u8"


def _plan_bitmap(kept):
    numbers = values.plan(np.packbits(kept), "unsigned")

    def write(writer):
        writer.uint(BITMAP)
        numbers.write(writer)

    return values.Plan(8 + numbers.bits, write)


def _read_bitmap(reader, count):
    packed = np.empty(-(-count // 8), dtype=np.uint8)
    values.read(reader, packed, "unsigned")
    return np.unpackbits(packed, count=count).view(bool)


def _plan_odds(kept, rows, least):
    """Plans with a level for each row, each column, both, or neither; none that cannot take fewer bits than `least`."""
    find = _find_levels if len(kept) <= adaptive.REMEMBERED else _find_levels.__wrapped__
    for base, row_levels, column_levels, symbols, coded in find(np.packbits(kept).tobytes(), len(kept), rows):
        sides = _entropy(row_levels) + _entropy(column_levels)
        if _HEAD + sides + coded < least and affordable(symbols, coded):
            yield _plan_levels(kept.reshape(rows, -1), base, row_levels, column_levels, coded)


@functools.lru_cache(maxsize=16)  # a retrained model's positions are those of the one-shot model
def _find_levels(packed, count, rows):
    """Return what plans by odds there are: base, row levels, column levels, symbols, and their bits; `packed` bytes."""
    matrix = np.unpackbits(np.frombuffer(packed, np.uint8), count=count).view(bool).reshape(rows, -1)
    in_rows, in_columns = np.count_nonzero(matrix, axis=1), np.count_nonzero(matrix, axis=0)
    count, live = int(in_rows.sum()), np.count_nonzero(in_rows) * np.count_nonzero(in_columns)
    flat_rows, flat_columns = (np.where(kept > 0, MIDDLE, 0).astype(np.uint8) for kept in (in_rows, in_columns))
    if count == live:
        return [(0, flat_rows, flat_columns, 0, 0.0)]
    odds = min((count + 0.5) / (live - count + 0.5), 2**8)
    base = max(1, round(odds * ONE))
    row_levels = _levels(in_rows, np.count_nonzero(in_columns), odds)
    column_levels = _levels(in_columns, np.count_nonzero(in_rows), odds)
    joint, (bits_of_kept, bits_of_rest) = _kept_by_level(matrix, row_levels, column_levels), _bits(base)
    plans = []
    for rows in (row_levels, flat_rows):
        for columns in (column_levels, flat_columns):
            ones = _merged(_merged(joint, rows is flat_rows, 0), columns is flat_columns, 1)
            every = np.outer(np.bincount(rows, minlength=LEVELS), np.bincount(columns, minlength=LEVELS))
            coded = float((ones * bits_of_kept + (every - ones) * bits_of_rest).sum())
            plans.append((base, rows, columns, live, coded))
    return plans


def _kept_by_level(matrix, rows, columns):
    """Number of kept entries by row level and column level: (LEVELS, LEVELS) float64, exact.

    By matrix products, which take a tenth of the time of going through the kept entries.
    """
    counts, used = np.zeros((LEVELS, LEVELS)), np.unique(rows)
    exact = np.float32 if len(rows) < 2**24 else np.float64  # a column's sum is a whole number below 2**24
    of_level = (rows == used[:, None]).astype(exact)  # (levels, rows)
    step = max(1, CHUNK // len(rows))
    for start in range(0, len(columns), step):
        some = np.s_[start : start + step]
        sums = of_level @ matrix[:, some].astype(exact)  # (levels, columns)
        for row, sums_of_row in zip(used, sums, strict=True):
            counts[row] += np.bincount(columns[some], weights=sums_of_row, minlength=LEVELS)
    return counts


def _merged(counts, flat, axis):
    """`counts`, or where all levels of an axis are made one, their sums at MIDDLE."""
    if not flat:
        return counts
    sums, merged = counts.sum(axis=axis), np.zeros_like(counts)
    merged[(MIDDLE,) if axis == 0 else np.s_[:, MIDDLE]] = sums
    return merged


def _plan_levels(matrix, base, rows, columns, coded):
    sides = values.plan(rows, "unsigned"), values.plan(columns, "unsigned")
    bits = _HEAD + coded + sides[0].bits + sides[1].bits
    return values.Plan(bits, lambda writer: _write_odds(writer, matrix, base, rows, columns, sides))


def _write_odds(writer, matrix, base, rows, columns, sides):
    writer.uint(ODDS)
    writer.uint(base)
    for side in sides:
        side.write(writer)
    if base:
        for some, live, probabilities in _blocks(base, rows, columns):
            writer.bits(matrix[np.ix_(some, live)].reshape(-1), probabilities)


def _read_odds(reader, count, rows):
    base = reader.uint(2**8 * ONE)
    row_levels, column_levels = np.empty(rows, dtype=np.uint8), np.empty(count // rows, dtype=np.uint8)
    for levels in (row_levels, column_levels):
        values.read(reader, levels, "unsigned")
        if levels.max() >= LEVELS:
            raise CorruptFileError(f"a density level is {levels.max()}, not below {LEVELS}")
    if base:
        reader.check(np.count_nonzero(row_levels) * np.count_nonzero(column_levels))
    kept = np.logical_and.outer(row_levels, column_levels)
    if base:
        for some, live, probabilities in _blocks(base, row_levels, column_levels):
            kept[np.ix_(some, live)] = reader.bits(probabilities).reshape(len(some), len(live))
    return kept.reshape(-1)


def _blocks(base, rows, columns):
    """Live rows, live columns (indices) and the probabilities of their entries, in order, about CHUNK at a time."""
    table = _probabilities(base) / GRID
    width = max(1, min(CHUNK, len(columns)))  # where a row is more than a block, each block is of one row
    height = max(1, CHUNK // max(1, np.count_nonzero(columns))) if width == len(columns) else 1
    for top in range(0, len(rows), height):
        some = top + np.flatnonzero(rows[top : top + height])
        for left in range(0, len(columns) if len(some) else 0, width):
            live = left + np.flatnonzero(columns[left : left + width])
            yield some, live, table[np.ix_(rows[some], columns[live])].reshape(-1)


def _probabilities(base):
    """Probability times GRID of an entry being kept, by row level and column level: (LEVELS, LEVELS) int64."""
    row_odds = np.clip(base * FACTORS >> 20, 1, 2**34)
    odds = np.clip(row_odds[:, None] * FACTORS >> 20, 1, 2**36)
    return np.clip((odds << 16) // (odds + ONE), 1, GRID - 1)


def _levels(kept, of, odds):
    """Level of each row (or column) that keeps `kept` of `of` entries, 0 where it keeps none."""
    factor = (kept + 0.4) / (of - kept + 0.4) / odds
    return np.where(kept > 0, np.clip(np.rint(2 * np.log2(factor)) + MIDDLE, 1, LEVELS - 1), 0).astype(np.uint8)


def _entropy(levels):
    """Bits that levels take at least, in any form."""
    counts = np.bincount(levels, minlength=1)
    counts = counts[counts > 0]
    return float(counts @ np.log2(len(levels) / counts))


def _bits(base):
    """Bits of an entry that is kept, and of another one, by row level and column level: two (LEVELS, LEVELS) arrays."""
    live, bits = np.s_[1:, 1:], np.zeros((2, LEVELS, LEVELS))
    shares = _probabilities(base)[live] / GRID
    bits[0][live], bits[1][live] = -np.log2(shares), -np.log2(1 - shares)
    return bits
