"""Exact coding of which entries of a tensor are kept, in the cheapest of four forms.

none, all  nothing more to say
gaps       how many entries are skipped before each kept one; for very few kept entries
odds       one range-coded bit for each entry of the matrix (first dimension × the rest), with probability from
           odds = base · row factor · column factor. A factor is 2**((level - 16) / 2), level 1 to 31, chosen for a
           row or column by how many of its entries are kept; level 0 is a row or column that keeps none at all
"""

import math

import numpy as np

from compresslab.storage import values
from compresslab.storage.container import CorruptFileError
from compresslab.storage.streams import CHUNK, affordable

NONE, ALL, GAPS, ODDS = range(4)
MIDDLE, LEVELS = 16, 32
ONE = 2**20  # odds of 1, in whole numbers
GRID = 2**16  # probabilities are whole numbers over this
# Factor of each level times ONE; whole square roots, the same on every machine.
FACTORS = np.array([0, *(math.isqrt(ONE * ONE * 2**level // 2**MIDDLE) for level in range(1, LEVELS))], dtype=np.int64)


def plan(kept, rows):
    """The cheapest plan for a bool array.

    kept  bool array, 1-d;  rows  length of the first dimension of what it was before it was flattened
    """
    count = int(np.count_nonzero(kept))
    if count in (0, len(kept)):
        return values.Plan(8, lambda writer: writer.uint(ALL if count else NONE))
    matrix = kept.reshape(rows, -1)
    plans = [_plan_gaps(kept), *_plan_odds(matrix)]
    return min(plans, key=lambda one: one.bits)


def read(reader, count, rows):
    """Bool array of `count` entries, as it was written; rows as for `plan`."""
    form = reader.uint(ODDS)
    if form in (NONE, ALL):
        return np.full(count, form == ALL)
    return _read_gaps(reader, count) if form == GAPS else _read_odds(reader, count, rows)


def _plan_gaps(kept):
    at = np.flatnonzero(kept)
    gaps = np.diff(at, prepend=-1) - 1
    numbers = values.plan(gaps.astype(_gap_type(len(kept))), "unsigned")
    return values.Plan(8 + 8 * 3 + numbers.bits, lambda writer: _write_gaps(writer, len(at), numbers))


def _write_gaps(writer, count, numbers):
    writer.uint(GAPS)
    writer.uint(count)
    numbers.write(writer)


def _read_gaps(reader, count):
    gaps = np.empty(reader.uint(count), dtype=_gap_type(count))
    values.read(reader, gaps, "unsigned")
    if len(gaps) and int(gaps.max()) >= count:
        raise CorruptFileError(f"a gap of {gaps.max()} lies outside a tensor of {count} entries")
    at = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if len(at) and at[-1] >= count:
        raise CorruptFileError(f"position {at[-1]} lies outside a tensor of {count} entries")
    kept = np.zeros(count, dtype=bool)
    kept[at] = True
    return kept


def _gap_type(count):
    return "<u4" if count < 2**32 else "<u8"


def _plan_odds(matrix):
    """Plans with a level for each row, each column, both, or neither."""
    in_rows, in_columns = np.count_nonzero(matrix, axis=1), np.count_nonzero(matrix, axis=0)
    live = np.count_nonzero(in_rows) * np.count_nonzero(in_columns)
    odds = (int(in_rows.sum()) + 0.5) / (live - int(in_rows.sum()) + 0.5)
    base = max(1, round(min(odds, 2**8) * ONE))
    row_levels, column_levels = _levels(in_rows, np.count_nonzero(in_columns), odds), None
    column_levels = _levels(in_columns, np.count_nonzero(in_rows), odds)
    at_rows, at_columns = np.nonzero(matrix)
    for rows in (row_levels, np.where(in_rows > 0, MIDDLE, 0).astype(np.uint8)):
        for columns in (column_levels, np.where(in_columns > 0, MIDDLE, 0).astype(np.uint8)):
            pairs = rows[at_rows].astype(np.int64) * LEVELS + columns[at_columns]
            ones = np.bincount(pairs, minlength=LEVELS * LEVELS).reshape(LEVELS, LEVELS)
            every = np.outer(np.bincount(rows, minlength=LEVELS), np.bincount(columns, minlength=LEVELS))
            coded = _bits(ones, every, _probabilities(base))
            sides = values.plan(rows, "unsigned"), values.plan(columns, "unsigned")
            if affordable(live, coded):
                bits = 8 + 8 * 4 + coded + sides[0].bits + sides[1].bits
                yield values.Plan(bits, _odds_writer(matrix, base, rows, columns, sides))


def _odds_writer(matrix, base, rows, columns, sides):
    def write(writer):
        writer.uint(ODDS)
        writer.uint(base)
        for side in sides:
            side.write(writer)
        for some, probabilities in _blocks(base, rows, columns):
            writer.bits(matrix[some][:, columns > 0].reshape(-1), probabilities)

    return write


def _read_odds(reader, count, rows):
    base = reader.uint(2**8 * ONE)
    row_levels, column_levels = np.empty(rows, dtype=np.uint8), np.empty(count // rows, dtype=np.uint8)
    for levels in (row_levels, column_levels):
        values.read(reader, levels, "unsigned")
        if levels.max() >= LEVELS:
            raise CorruptFileError(f"a density level is {levels.max()}, not below {LEVELS}")
    kept = np.zeros((rows, count // rows), dtype=bool)
    live = np.flatnonzero(column_levels)
    for some, probabilities in _blocks(base, row_levels, column_levels):
        kept[np.ix_(some, live)] = reader.bits(probabilities).reshape(len(some), len(live))
    return kept.reshape(-1)


def _blocks(base, rows, columns):
    """Indices of rows, a block at a time, and the probability of each of their entries in live columns."""
    table = _probabilities(base) / GRID
    columns = columns[columns > 0]
    live = np.flatnonzero(rows)
    size = max(1, CHUNK // max(1, len(columns)))
    for start in range(0, len(live), size):
        some = live[start : start + size]
        yield some, table[rows[some]][:, columns].reshape(-1)  # (rows of the block × columns)


def _probabilities(base):
    """Probability times GRID of an entry being kept, by row level and column level: (LEVELS, LEVELS) int64."""
    row_odds = np.clip(base * FACTORS >> 20, 1, 2**34)
    odds = np.clip(row_odds[:, None] * FACTORS >> 20, 1, 2**36)
    return np.clip((odds << 16) // (odds + ONE), 1, GRID - 1)


def _levels(kept, of, odds):
    """Level of each row (or column) that keeps `kept` of `of` entries, 0 where it keeps none."""
    factor = (kept + 0.4) / (of - kept + 0.4) / odds
    return np.where(kept > 0, np.clip(np.rint(2 * np.log2(factor)) + MIDDLE, 1, LEVELS - 1), 0).astype(np.uint8)


def _bits(ones, every, probabilities):
    """Bits for `ones` kept entries among `every`, by level pair."""
    live = np.s_[1:, 1:]
    share = probabilities[live] / GRID
    return -float((ones[live] * np.log2(share) + (every - ones)[live] * np.log2(1 - share)).sum())
