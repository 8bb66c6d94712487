"""Exact coding of a one-dimensional array of words (the bits of numbers), in the cheapest of four forms.

A varint says which:
0 raw       the words as they are, little-endian
1 constant  one word, repeated
2 planes    each byte of the words by itself, the least significant first: 0 and the raw bytes, or 1, a histogram, and
            the bytes in the range coder. Floats are rotated left by one bit before, so that one byte holds the whole
            exponent, the predictable part; signed integers are zigzagged
3 palette   how many distinct words there are (a varint, 4096 at most), those words ascending, a histogram of indices,
            and an index for each word in the range coder: weights on a grid or from a codebook
4 contexts  (from version 3 on) one less than how many distinct words there are, the palette (`palettes`), and each
            word's rank in it (`adaptive`). The frame comes first, where the words are a whole tensor
"""

from dataclasses import dataclass

import numpy as np

from compresslab.storage import adaptive, frames, palettes
from compresslab.storage.container import CorruptFileError
from compresslab.storage.streams import CHUNK, CODED, affordable, coded_bits, frequencies

RAW, CONSTANT, PLANES, PALETTE, CONTEXTS = range(5)
PALETTE_LIMIT = 4096
WORTH = 127 / 128  # of its raw size a plane may have and still be coded: less gain is not worth the time
SAMPLE = 2048  # words looked at to see whether a palette is worth a sort
QUICK, SLOW = 2**17, 1.25  # decisions that contexts are tried for: so many, or for each entry of the tensor


@dataclass(frozen=True)
class Plan:
    """A form that was tried: `bits` it takes, `write(writer)` that writes it, form byte included."""

    bits: float
    write: object


@dataclass(frozen=True)
class Where:
    """Where the words of a tensor stand.

    shape, parts  of the tensor: its sizes, words in an element;  kept  flat bool array, or None for every word
    frame  frames.Frame, or None where it is still to be chosen, or read: then `kept` is None
    credit  of the streams.Writer that a plan is for
    """

    shape: tuple
    parts: int = 1
    kept: np.ndarray | None = None
    frame: object = None
    credit: float = 0.0


def plan(words, kind, where=None):
    """The cheapest plan for `words`.

    words  unsigned little-endian array, 1-d;  kind  "float", "signed" or "unsigned": what the words are the bits of
    where  Where, if they are of a tensor: then they may be coded by contexts
    """
    few = _few(words)
    plans = plan_contexts(words, kind, where, few) if where is not None else []
    if len(words) > 1 and (words == words[0]).all():
        return min([*plans, _plan_constant(words)], key=lambda one: one.bits)
    plans.append(Plan(8 + 8 * words.nbytes, lambda writer: _write(writer, RAW, words)))
    if len(words) > 8 and len(plans) == 1:  # contexts know all that a histogram knows
        plans += [_plan_planes(words, kind), *_plan_palette(words, few)]
    return min(plans, key=lambda one: one.bits)


def read(reader, out, kind, where=None):
    """Fill `out` (unsigned little-endian array, 1-d) with the words that were written."""
    form = reader.uint(CONTEXTS if where is not None and reader.version >= CODED else PALETTE)
    if form in (RAW, CONSTANT):
        stored = np.frombuffer(reader.raw(out.nbytes if form == RAW else out.itemsize), dtype=out.dtype)
        out[:] = stored
    elif form == PLANES:
        _read_planes(reader, out, kind)
    elif form == PALETTE:
        _read_palette(reader, out)
    else:
        read_contexts(reader, out, kind, where)


def _plan_constant(words):
    return Plan(8 + 8 * words.itemsize, lambda writer: _write(writer, CONSTANT, words[:1]))


def _few(words):
    """The distinct words, ascending, and which of them each word is; None where a palette may not have so many."""
    sample = words[:: max(1, len(words) // SAMPLE)]
    palette = np.unique(sample)
    if len(palette) > max(8, len(sample) // 2):
        return None
    while len(palette) <= PALETTE_LIMIT:
        which = np.searchsorted(palette, words)
        others = words[palette[np.minimum(which, len(palette) - 1)] != words]
        if not len(others):
            return palette, which
        palette = np.union1d(palette, others[:: max(1, len(others) // SAMPLE)])
    return None


def plan_contexts(words, kind, where, few=None, lead=CONTEXTS):
    """A plan by contexts, in a list; none where it would take too long.

    few  what `_few` says of the words, if it was asked;  lead  the number that says that contexts follow
    """
    few = _few(words) if few is None else few
    if few is None or not len(words) or not is_quick(len(words), len(few[0]), where):
        return []
    palette, which = few
    ordered, negatives = palettes.arranged(palette, kind)
    ranks = np.argsort(ordered).astype(np.int32)[which]
    frame = where.frame or frames.choose(ranks >= negatives, where.shape, where.parts)
    cost, symbols, write_ranks = adaptive.plan_ranks(ranks, len(palette), negatives, where.kept, frame)
    if not adaptive.affordable(symbols, cost, where.credit):
        return []

    def write(writer):
        writer.uint(lead)
        writer.uint(len(palette) - 1)
        if where.frame is None:
            frames.write(writer, frame, where.shape, where.parts)
        before = writer.enter("codebook")
        palettes.write(writer, ordered, negatives, kind)
        writer.enter(before)
        write_ranks(writer)

    return [Plan(10 + palettes.cost(ordered, negatives, kind) + cost, write)]


def is_quick(count, values, where):
    """Whether `count` words, of so many values, may be coded by contexts, and in a time that is in proportion."""
    frame = where.frame or frames.plain(where.shape, where.parts)
    size, fits = frame.rows * frame.columns, adaptive.fits(frame, adaptive.LARGEST // 4)
    return (
        fits
        and values <= adaptive.VALUES
        and count <= adaptive.MOST
        and count * max(1, (values - 1).bit_length()) <= max(QUICK, SLOW * size)
    )


def read_contexts(reader, out, kind, where):
    """Fill `out` with the words of a plan by contexts, the number before them being read."""
    count = reader.uint(adaptive.VALUES - 1) + 1
    frame = where.frame or frames.read(reader, where.shape, where.parts)
    reader.spend(palettes.COST * count)
    palette, negatives = palettes.read(reader, count, out.itemsize, kind)
    ranks = adaptive.read_ranks(reader, count, negatives, where.kept, frame)
    out[:] = palette[ranks]


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


def _plan_palette(words, few):
    if few is None or len(few[0]) > min(PALETTE_LIMIT, len(words) // 2):
        return []
    palette, indices = few
    table = frequencies(counts := np.bincount(indices, minlength=len(palette)))
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
