"""Exact coding of a one-dimensional array of words (the bits of numbers), in the cheapest of four forms.

A varint says which:
0 raw       the words as they are, little-endian
1 constant  one word, repeated
2 planes    each byte of the words by itself, the least significant first: 0 and the raw bytes, or 1, a histogram, and
            the bytes in the range coder. Floats are rotated left by one bit before, so that one byte holds the whole
            exponent, the predictable part; signed integers are zigzagged
3 palette   how many distinct words there are (a varint, 4096 at most), those words ascending, a histogram of indices,
            and an index for each word in the range coder: weights on a grid or from a codebook
"""

from dataclasses import dataclass

import numpy as np

from compresslab.storage.container import CorruptFileError
from compresslab.storage.streams import CHUNK, affordable, coded_bits, frequencies

RAW, CONSTANT, PLANES, PALETTE = range(4)
PALETTE_LIMIT = 4096
WORTH = 127 / 128  # of its raw size a plane may have and still be coded: less gain is not worth the time
SAMPLE = 2048  # words looked at to see whether a palette is worth a sort


@dataclass(frozen=True)
class Plan:
    """A form that was tried: `bits` it takes, `write(writer)` that writes it, form byte included."""

    bits: float
    write: object


def plan(words, kind):
    """The cheapest plan for `words`.

    words  unsigned little-endian array, 1-d;  kind  "float", "signed" or "unsigned": what the words are the bits of
    """
    if len(words) > 1 and (words == words[0]).all():
        return Plan(8 + 8 * words.itemsize, lambda writer: _write(writer, CONSTANT, words[:1]))
    plans = [Plan(8 + 8 * words.nbytes, lambda writer: _write(writer, RAW, words))]
    if len(words) > 8:
        plans += [_plan_planes(words, kind), *_plan_palette(words)]
    return min(plans, key=lambda one: one.bits)


def read(reader, out, kind):
    """Fill `out` (unsigned little-endian array, 1-d) with the words that were written."""
    form = reader.uint(PALETTE)
    if form in (RAW, CONSTANT):
        stored = np.frombuffer(reader.raw(out.nbytes if form == RAW else out.itemsize), dtype=out.dtype)
        out[:] = stored
    elif form == PLANES:
        _read_planes(reader, out, kind)
    else:
        _read_palette(reader, out)


def _write(writer, form, words):
    writer.uint(form)
    writer.raw(words.tobytes())


def _plan_planes(words, kind):
    planes = _turned(words, kind).view(np.uint8).reshape(len(words), words.itemsize)
    tables, bits = [], 8.0
    for plane in planes.T:
        counts = _histogram(plane)
        table = frequencies(counts)
        coded = coded_bits(counts, table)
        worth = coded < WORTH * 8 * len(words) and (np.count_nonzero(table) == 1 or affordable(len(words), coded))
        tables.append(table if worth else None)
        bits += 8 + (coded if worth else 8 * len(words))
    return Plan(bits, lambda writer: _write_planes(writer, planes, tables))


def _write_planes(writer, planes, tables):
    writer.uint(PLANES)
    for plane, table in zip(planes.T, tables, strict=True):
        writer.uint(table is not None)
        if table is None:
            writer.raw(plane.tobytes())
        else:
            writer.frequencies(table)
            writer.symbols(plane, table)


def _read_planes(reader, out, kind):
    planes = out.view(np.uint8).reshape(len(out), out.itemsize)
    for plane in planes.T:
        if reader.uint(1):
            _fill(plane, reader.symbols(len(plane), reader.frequencies(256)))
        else:
            plane[:] = np.frombuffer(reader.raw(len(plane)), dtype=np.uint8)
    for start in range(0, len(out), CHUNK):
        out[start : start + CHUNK] = _turned_back(out[start : start + CHUNK], kind)


def _plan_palette(words):
    sample = words[:: max(1, len(words) // SAMPLE)]
    if len(np.unique(sample)) > max(8, len(sample) // 2):
        return []
    palette, indices, counts = np.unique(words, return_inverse=True, return_counts=True)
    if len(palette) > min(PALETTE_LIMIT, len(words) // 2):
        return []
    table = frequencies(counts)
    bits = 16 + 8 * palette.nbytes + coded_bits(counts, table)
    if not affordable(len(words), bits):
        return []
    return [Plan(bits, lambda writer: _write_palette(writer, palette, indices, table))]


def _write_palette(writer, palette, indices, table):
    writer.uint(PALETTE)
    writer.uint(len(palette))
    writer.raw(palette.tobytes())
    writer.frequencies(table)
    writer.symbols(indices, table)


def _read_palette(reader, out):
    size = reader.uint(PALETTE_LIMIT)
    if not size:
        raise CorruptFileError("a palette is empty")
    palette = np.frombuffer(reader.raw(size * out.itemsize), dtype=out.dtype)
    _fill(out, (palette[indices] for indices in reader.symbols(len(out), reader.frequencies(size))))


def _fill(out, chunks):
    start = 0
    for chunk in chunks:
        out[start : start + len(chunk)] = chunk
        start += len(chunk)


def _histogram(plane):
    counts = np.zeros(256, dtype=np.int64)
    for start in range(0, len(plane), CHUNK):
        counts += np.bincount(plane[start : start + CHUNK], minlength=256)
    return counts


def _turned(words, kind):
    """Rotated left by one bit (float), zigzagged (signed: 0, -1, 1, -2 become 0, 1, 2, 3) or as they are."""
    if kind == "unsigned":
        return np.ascontiguousarray(words)
    sign = words >> (8 * words.itemsize - 1)
    return words << 1 | sign if kind == "float" else words << 1 ^ (0 - sign)


def _turned_back(words, kind):
    if kind == "unsigned":
        return words
    low = words & 1
    return words >> 1 | low << (8 * words.itemsize - 1) if kind == "float" else words >> 1 ^ (0 - low)
