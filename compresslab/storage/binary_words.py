"""Exact coding of an array of words, the bits of numbers, in the cheaper of two forms (docs/format.md, section 6).

    word     the bits of a number as an unsigned little-endian integer;  kind  "float", "signed" or "unsigned"
    plane    a byte of every word: the lowest of all, the next of all, …
    palette  the distinct words of an array, in the order of their values (see `palettes`)
    rank     a word's place in the palette

*Planes* are coded each by itself, raw, with a histogram, or as numbers below a limit: the plane that holds the
exponents of floats is predictable. *Few* is a palette and the ranks, by contexts where that is quick, else as planes.
"""

import math

import numpy as np

from compresslab.storage import contexts, palettes
from compresslab.storage.coder import CHUNK, Reader, Writer, count_frequencies, count_symbols
from compresslab.storage.layouts import Layout

PLANES, FEW = range(2)
RAW, HISTOGRAM, EVEN = range(3)
BY_PLANES, BY_CONTEXTS = range(2)
MOST_DISTINCT = 4096
SMALL = 4096  # words up to which both forms are tried
WORTH = 127 / 128  # of its raw size a plane may have and still be coded: less gain is not worth the time
SAMPLE = 2048  # words looked at to see whether a palette is worth a sort


def code(
    coder: Writer | Reader, words: np.ndarray, kind: str, keep: np.ndarray | None = None, layout: Layout | None = None
) -> None:
    """Write words in their cheapest form; a Reader fills the array with them.

    words   unsigned little-endian array, 1-d
    layout  of the tensor that the words are of, or None: then contexts do not code them
    keep    flat bool array of the tensor's entries that the words are of, or None for every entry
    """
    if isinstance(coder, Reader):
        if coder.uint(None, FEW) == FEW:
            _code_few(coder, words, kind, keep, layout)
        else:
            _code_planes(coder, words, kind)
        return
    trials = []
    if len(words) and (distinct := _find_distinct(words)) is not None:
        trials.append(few := Writer(coder))
        with few.counting("codebook"):
            few.uint(FEW)
        _code_few(few, words, kind, keep, layout, *distinct)
    if not trials or len(words) <= SMALL or not trials[0].affords():
        trials.append(planes := Writer(coder))
        with planes.counting("values"):
            planes.uint(PLANES)
            _code_planes(planes, words, kind)
    coder.append(min((trial for trial in trials if trial.affords()), key=lambda trial: trial.size))


def _find_distinct(words):
    """Find the distinct words, rising, and which of them each word is; None where they are too many for a palette."""
    sample = words[:: max(1, len(words) // SAMPLE)]
    palette = np.unique(sample)
    if len(palette) > max(8, len(sample) // 2):
        return None
    while len(palette) <= MOST_DISTINCT:
        which = np.searchsorted(palette, words)
        missing = words[palette[np.minimum(which, len(palette) - 1)] != words]
        if not len(missing):
            return palette, which
        palette = np.union1d(palette, missing[:: max(1, len(missing) // SAMPLE)])
    return None


def _code_few(coder, words, kind, keep, layout, distinct=None, which=None):
    """Code a palette and ranks; a Writer is given the distinct words, rising, and which of them each word is."""
    palette = ranks = count = None
    if distinct is not None:
        palette, count = palettes.sort_words(distinct, kind), len(distinct) - 1
        ranks = np.argsort(palette).astype(np.uint16)[which]
    with coder.counting("codebook"):
        count = coder.uint(count, MOST_DISTINCT - 1) + 1
        palette = palettes.code(coder, palette, count, words.itemsize, kind)
    if count > 1:
        with coder.counting("values"):
            ranks = _code_ranks(coder, ranks, palette, kind, len(words), keep, layout)
    if distinct is None and count == 1:
        words[:] = palette
    elif distinct is None:
        for start in range(0, len(words), CHUNK):
            words[start : start + CHUNK] = palette[ranks[start : start + CHUNK]]


def _code_ranks(coder, ranks, palette, kind, size, keep, layout):
    """Code the ranks of `size` words, by contexts if that is possible and worth it."""
    count, negatives, trial = len(palette), palettes.count_negatives(palette, kind), None
    if ranks is not None and layout is not None:
        trial = contexts.try_ranks(coder, ranks, count, negatives, keep, layout)
        trial = None if trial is None or trial.size > size * math.log2(count) else trial
    if coder.number(BY_PLANES if trial is None else BY_CONTEXTS, 2) == BY_PLANES:
        dtype = "<u1" if count <= 256 else "<u2"
        ranks = np.empty(size, dtype) if ranks is None else ranks.astype(dtype)
        _code_planes(coder, ranks, "unsigned")
    elif trial is not None:
        coder.append(trial)
    else:
        contexts.check(layout is not None)
        ranks = contexts.read_ranks(coder, count, negatives, keep, layout)
    return ranks


def _code_planes(coder, words, kind):
    """Code words byte by byte."""
    reading = isinstance(coder, Reader)
    rotated = words if reading else _spread_exponent(words, kind)
    for plane in rotated.view(np.uint8).reshape(len(words), words.itemsize).T:
        form, table = (None, None) if reading else _choose_plane(coder, np.ascontiguousarray(plane))
        form = coder.uint(form, EVEN)
        if form == RAW:
            parts = [np.frombuffer(coder.raw(None if reading else plane.tobytes(), len(plane)), dtype=np.uint8)]
        else:
            table = coder.frequencies(table, 256) if form == HISTOGRAM else coder.number(table, 255) + 2
            parts = coder.symbols(None if reading else np.ascontiguousarray(plane), len(plane), table)
        if reading:
            _fill(plane, parts)
    for start in range(0, len(words) if reading else 0, CHUNK):
        words[start : start + CHUNK] = _gather_exponent(words[start : start + CHUNK], kind)


def _choose_plane(writer, plane):
    """Choose the form of a plane: RAW, HISTOGRAM and its frequencies, or EVEN and its largest symbol less one."""
    if not len(plane):
        return RAW, None
    # With a histogram, where that is worth the time and a reader allows it.
    table, trial = count_frequencies(count_symbols(plane, 256)), Writer(writer)
    trial.symbols(plane, len(plane), trial.frequencies(table))
    even = len(plane) * math.log2(len(table)) + 8
    least = min(even, trial.size)
    if least >= WORTH * 8 * len(plane) or len(plane) <= 8 and len(table) > 1 or not trial.affords():
        return RAW, None
    return (EVEN, len(table) - 2) if even < trial.size and len(table) > 1 else (HISTOGRAM, table)


def _fill(out, parts):
    start = 0
    for part in parts:
        out[start : start + len(part)] = part
        start += len(part)


def _spread_exponent(words, kind):
    """Rotate floats left by a bit, zigzag signed integers."""
    if kind == "unsigned":
        return np.ascontiguousarray(words)
    sign = words >> (8 * words.itemsize - 1)
    return words << 1 | sign if kind == "float" else words << 1 ^ (0 - sign)


def _gather_exponent(words, kind):
    """Undo `_spread_exponent`."""
    if kind == "unsigned":
        return words
    low = words & 1
    return words >> 1 | low << (8 * words.itemsize - 1) if kind == "float" else words >> 1 ^ (0 - low)
