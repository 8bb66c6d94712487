"""Exact coding of which entries of a tensor are present: none, all, a bitmap, or a field of `contexts`.

docs/format.md, section 7.
"""

import numpy as np

from compresslab.storage import binary_words, contexts
from compresslab.storage.coder import Reader, Writer
from compresslab.storage.container import CorruptFileError
from compresslab.storage.layouts import Layout

NONE, ALL, CONTEXTS, BITMAP = range(4)


def code(coder: Writer | Reader, present: np.ndarray | None, count: int, layout: Layout) -> np.ndarray:
    """Write or read a flat bool array of `count` entries; as a bitmap where contexts would take too long."""
    prior, form, trial = contexts.find_priors(coder.row_counts, layout.columns), None, None
    if present is not None and not (present.any() and not present.all()):
        form = ALL if present.any() else NONE
    elif present is not None:
        trial = contexts.try_field(coder, present, layout, prior)
        form = BITMAP if trial is None else CONTEXTS
    form = coder.uint(form, BITMAP)
    if form in (NONE, ALL):
        return np.full(count, form == ALL)
    if not count:
        raise CorruptFileError("an empty tensor has neither all nor none of its entries")
    if trial is not None:
        coder.append(trial)
        return present
    if form == CONTEXTS:
        return contexts.read_field(coder, layout, prior)
    packed = np.empty(-(-count // 8), dtype=np.uint8) if present is None else np.packbits(present)
    binary_words.code(coder, packed, "unsigned")
    return np.unpackbits(packed, count=count).view(bool)
