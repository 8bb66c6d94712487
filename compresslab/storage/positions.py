"""Exact coding of which entries of a tensor are present: none, all, a bitmap, or a field of `contexts`.

docs/format.md, section 7.
"""

import numpy as np

from compresslab.storage import binary_words, contexts
from compresslab.storage.coder import Plan, Reader, Writer
from compresslab.storage.container import CorruptFileError
from compresslab.storage.layouts import Layout

NONE, ALL, CONTEXTS, BITMAP = range(4)


def plan(writer: Writer, present: np.ndarray, layout: Layout) -> Plan:
    """Plan how to write a flat bool array: by contexts, or as a bitmap where those would take too long."""
    count = int(np.count_nonzero(present))
    if count in (0, len(present)):
        return Plan(2, lambda writer: writer.uint(ALL if count else NONE))
    prior = contexts.find_priors(writer.row_counts, layout.columns)
    planned, form = contexts.plan_field(writer, present, layout, prior), CONTEXTS
    if planned is None:
        planned, form = binary_words.plan(writer, np.packbits(present), "unsigned"), BITMAP

    def _write(writer):
        writer.uint(form)
        planned.write(writer)

    return Plan(3 + planned.bits, _write)


def read(reader: Reader, count: int, layout: Layout) -> np.ndarray:
    """Read a bool array of `count` entries."""
    form = reader.uint(BITMAP)
    if form in (NONE, ALL):
        return np.full(count, form == ALL)
    if not count:
        raise CorruptFileError("an empty tensor has neither all nor none of its entries")
    if form == CONTEXTS:
        return contexts.read_field(reader, layout, contexts.find_priors(reader.row_counts, layout.columns))
    packed = np.empty(-(-count // 8), dtype=np.uint8)
    binary_words.read(reader, packed, "unsigned")
    return np.unpackbits(packed, count=count).view(bool)
