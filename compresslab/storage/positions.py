"""Exact coding of which entries of a tensor are kept: none, all, gaps between them, or a field of `contexts`.

    gap   how many entries are skipped before one: a kept one (few), or one that is not kept (most)

docs/format.md, section 7.
"""

import numpy as np

from compresslab.storage import binary_words, contexts
from compresslab.storage.coder import CHUNK, Plan, Reader, Writer
from compresslab.storage.container import CorruptFileError
from compresslab.storage.layouts import Layout, choose_layout

NONE, ALL, FEW, MOST, CONTEXTS = range(5)
TURNED = 2**16  # entries up to which both ways of going through a matrix are tried
RARE = 1000  # beside contexts gaps are tried for fewer than one in so many


def plan(writer: Writer, kept: np.ndarray, layout: Layout) -> Plan:
    """Find the cheapest way to write a bool array, 1-d; layout  of what it was before it was flattened."""
    count = int(np.count_nonzero(kept))
    if count in (0, len(kept)):
        return Plan(2, lambda writer: writer.uint(ALL if count else NONE))
    plans, rare = [], len(kept)
    prior = contexts.find_priors(writer.row_counts, layout.columns)
    if (field := contexts.plan_field(writer, kept, layout, prior)) is not None:
        plans, rare = [_led_by(CONTEXTS, field)], len(kept) // RARE
    if min(count, len(kept) - count) <= rare:
        plans.append(_plan_gaps(writer, kept, FEW if 2 * count <= len(kept) else MOST))
    return min(plans, key=lambda candidate: candidate.bits)


def plan_layout(writer: Writer, kept: np.ndarray, shape: tuple) -> tuple[Layout, Plan]:
    """Find the layout of a tensor in which its positions take fewest bits, and the plan."""
    layout = choose_layout(kept, shape)
    best = plan(writer, kept, layout)
    if layout.lag or len(kept) > TURNED or layout.rows == 1:
        return layout, best
    transposed = Layout(layout.rows, layout.columns, transposed=True)
    candidate = plan(writer, kept, transposed)
    return (transposed, candidate) if candidate.bits < best.bits else (layout, best)


def read(reader: Reader, count: int, layout: Layout) -> np.ndarray:
    """Read a bool array of `count` entries."""
    form = reader.uint(CONTEXTS)
    if form in (NONE, ALL):
        return np.full(count, form == ALL)
    if not count:
        raise CorruptFileError("an empty tensor keeps neither all nor none of its entries")
    if form == CONTEXTS:
        return contexts.read_field(reader, layout, contexts.find_priors(reader.row_counts, layout.columns))
    return _read_gaps(reader, count, form)


def _led_by(form, planned):
    def write(writer):
        writer.uint(form)
        planned.write(writer)

    return Plan(5 + planned.bits, write)


def _plan_gaps(writer, kept, form):
    at = np.flatnonzero(kept if form == FEW else ~kept)
    gaps = np.diff(at, prepend=-1) - 1
    numbers = binary_words.plan(writer, gaps.astype(_gap_type(len(kept))), "unsigned")

    def write(writer):
        writer.uint(form)
        writer.uint(len(at))
        numbers.write(writer)

    return Plan(4 + 2 * len(at).bit_length() + numbers.bits, write)


def _read_gaps(reader, count, form):
    gaps = np.empty(reader.uint(count // 2), dtype=_gap_type(count))
    binary_words.read(reader, gaps, "unsigned")
    kept, before = np.full(count, form == MOST), -1
    for start in range(0, len(gaps), CHUNK):
        at = before + np.cumsum(gaps[start : start + CHUNK].astype(np.int64) + 1)
        if gaps[start : start + CHUNK].max() >= count or at[-1] >= count:
            raise CorruptFileError(f"a gap leads outside a tensor of {count} entries")
        kept[at] = form == FEW
        before = int(at[-1])
    return kept


def _gap_type(count):
    """Return the smallest type of whole numbers that holds any gap among `count` entries, little-endian."""
    return np.min_scalar_type(count).newbyteorder("<")
