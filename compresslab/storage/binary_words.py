"""Exact coding of an array of words, the bits of numbers, in the cheaper of two forms (docs/format.md, section 6).

    word     the bits of a number as an unsigned little-endian integer;  kind  "float", "signed" or "unsigned"
    plane    a byte of every word: the lowest of all, the next of all, …
    palette  the distinct words of an array, in the order of their values (see `palettes`)
    rank     a word's place in the palette
    place    where words stand in a tensor: what lies around them tells contexts what they are

*Planes* are coded each by itself, raw or with a histogram: the one that holds the exponents of floats is predictable.
*Few* is a palette and the ranks, by contexts where that is quick.
"""

import math
from dataclasses import dataclass

import numpy as np

from compresslab.storage import contexts, palettes
from compresslab.storage.coder import CHUNK, Plan, Reader, Writer, count_frequencies, estimate_bits
from compresslab.storage.layouts import Layout, choose_layout, read_layout, write_layout

PLANES, FEW = range(2)
CONTEXTS, HISTOGRAM, EVEN = range(3)
MOST_DISTINCT = 4096
SMALL = 4096  # words up to which both forms are tried
WORTH = 127 / 128  # of its raw size a plane may have and still be coded: less gain is not worth the time
SAMPLE = 2048  # words looked at to see whether a palette is worth a sort


@dataclass(frozen=True)
class Place:
    """The place of words in a tensor.

    shape   of the tensor
    kept    flat bool array of the entries that the words are of, or None for every entry
    layout  Layout, or None where it is still to be chosen, or read: then `kept` is None
    """

    shape: tuple
    kept: np.ndarray | None = None
    layout: Layout | None = None


def plan(writer: Writer, words: np.ndarray, kind: str, place: Place | None = None) -> Plan:
    """Find the cheapest way to write words.

    words  unsigned little-endian array, 1-d;  place  Place, if they are of a tensor: then contexts may code them
    """
    plans = []
    if len(words) and (distinct := _find_distinct(words)) is not None:
        if writer.affords(palettes.COST * len(distinct[0]), 0):
            plans.append(_plan_few(writer, words, kind, place, *distinct))
    if not plans or len(words) <= SMALL:
        plans.append(_plan_planes(writer, words, kind))
    return min(plans, key=lambda candidate: candidate.bits)


def read(reader: Reader, out: np.ndarray, kind: str, place: Place | None = None) -> None:
    """Fill `out` (unsigned little-endian array, 1-d) with the words that were written."""
    if reader.uint(FEW) == FEW:
        _read_few(reader, out, kind, place)
    else:
        _read_planes(reader, out, kind)


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


def _plan_few(writer, words, kind, place, distinct, which):
    """Plan a palette and ranks."""
    palette = palettes.sort_words(distinct, kind)
    ranks = np.argsort(palette).astype(np.int32)[which] if kind != "unsigned" else which
    negatives, layout, form = palettes.count_negatives(palette, kind), None, CONTEXTS
    coded = Plan(0.0, lambda writer: None)
    if len(palette) > 1:
        coded = None
        if place is not None:
            layout = place.layout or choose_layout(ranks >= negatives, place.shape)
            coded = contexts.plan_ranks(writer, ranks, len(palette), negatives, place.kept, layout)
        if coded is None:
            coded, form = _plan_histogram(writer, ranks), HISTOGRAM
        even = math.log2(len(palette)) * len(ranks)
        if coded is None or even < coded.bits:
            coded, form = Plan(even, lambda writer: writer.symbols(ranks, len(palette))), EVEN

    def write(writer):
        with writer.counting("codebook"):
            writer.uint(FEW)
            writer.uint(len(palette) - 1)
            palettes.write(writer, palette, kind)
        with writer.counting("values"):
            if len(palette) > 1:
                writer.uint(form)
                if form == CONTEXTS and place.layout is None:
                    write_layout(writer, layout, place.shape)
            coded.write(writer)

    side = Writer()
    palettes.write(side, palette, kind)
    return Plan(6 + 2 * len(palette).bit_length() + side.count_bits() + coded.bits, write)


def _read_few(reader, out, kind, place):
    count = reader.uint(MOST_DISTINCT - 1) + 1
    palette = palettes.read(reader, count, out.itemsize, kind)
    if count == 1:
        out[:] = palette
        return
    form = reader.uint(EVEN)
    if form in (HISTOGRAM, EVEN):
        table = count if form == EVEN else reader.frequencies(count)
        _fill(out, (palette[ranks] for ranks in reader.symbols(len(out), table)))
    else:
        contexts.check(place is not None)
        layout = place.layout or read_layout(reader, place.shape)
        negatives = palettes.count_negatives(palette, kind)
        out[:] = palette[contexts.read_ranks(reader, count, negatives, place.kept, layout)]


def _plan_histogram(writer, symbols):
    """Plan a histogram and the symbols; None where that would be more of them than a reader allows."""
    counts, size = 0, int(symbols.max()) + 1
    for start in range(0, len(symbols), CHUNK):
        counts = counts + np.bincount(symbols[start : start + CHUNK], minlength=size)
    table = count_frequencies(counts)
    bits = estimate_bits(counts, table)
    if np.count_nonzero(table) > 1 and not writer.affords(len(symbols), bits):
        return None

    def write(writer):
        writer.frequencies(table)
        writer.symbols(symbols, table)

    return Plan(bits, write)


def _plan_planes(writer, words, kind):
    planes, plans, total = _spread_exponent(words, kind).view(np.uint8).reshape(len(words), words.itemsize), [], 2.0
    for plane in planes.T:
        coded = _plan_histogram(writer, plane) if len(plane) > 8 else None
        coded = coded if coded is not None and coded.bits < WORTH * 8 * len(plane) else None
        plans.append((plane, coded))
        total += 8 * len(plane) if coded is None else coded.bits

    def write(writer):
        with writer.counting("values"):
            writer.uint(PLANES)
            for plane, coded in plans:
                writer.uint(int(coded is not None))
                if coded is None:
                    writer.raw(plane.tobytes())
                else:
                    coded.write(writer)

    return Plan(total + words.itemsize, write)


def _read_planes(reader, out, kind):
    for plane in out.view(np.uint8).reshape(len(out), out.itemsize).T:
        if reader.uint(1):
            _fill(plane, reader.symbols(len(plane), reader.frequencies(256)))
        else:
            plane[:] = np.frombuffer(reader.raw(len(plane)), dtype=np.uint8)
    for start in range(0, len(out), CHUNK):
        out[start : start + CHUNK] = _gather_exponent(out[start : start + CHUNK], kind)


def _fill(out, chunks):
    start = 0
    for chunk in chunks:
        out[start : start + len(chunk)] = chunk
        start += len(chunk)


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
