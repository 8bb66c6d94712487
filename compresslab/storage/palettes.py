"""Palettes: the few distinct values of an array, exactly and in few bits (docs/format.md, section 6).

    plain  whole numbers in the order of the values: integers themselves, or the bits of floats (of a negative float -1
           less its magnitude)
    steps  whole multiples of a step, of which all floats are

Rising numbers are coded by halves: the middle one is any that leaves room for those before and behind it, and so on in
both halves (Moffat and Stuiver 2000, "Binary interpolative coding for effective index compression").
"""

import numpy as np

from compresslab.storage.coder import Reader, Writer
from compresslab.storage.container import CorruptFileError

PLAIN, STEPS = range(2)
MOST_STEPS = 2**12  # largest multiple of a step
PARTS = (1, 2, 4, 3, 5, 6, 7)  # parts of the smallest magnitude that are tried as the step
COST = 200  # symbols that take as long as a value
_FLOATS = {2: "<f2", 4: "<f4", 8: "<f8"}


def sort_words(words: np.ndarray, kind: str) -> np.ndarray:
    """Sort distinct words (unsigned, rising) by the values that they are the bits of; kind  as in `words`."""
    negative = _are_negative(words, kind)
    below = words[negative]
    return np.concatenate([below[::-1] if kind == "float" else below, words[~negative]])


def count_negatives(palette: np.ndarray, kind: str) -> int:
    """Count the values of a palette whose sign bit is set."""
    return int(np.count_nonzero(_are_negative(palette, kind)))


def write(writer: Writer, palette: np.ndarray, kind: str) -> None:
    """Write a palette, words in the order of their values; how many they are, a reader knows already."""
    size = palette.itemsize
    writer.charge(COST * len(palette))
    if kind != "float":
        numbers = [int(word) for word in (palette.view(f"<i{size}") if kind == "signed" else palette)]
        _write_bounded(writer, numbers, kind)
        return
    steps = _find_steps(palette)
    writer.uint(PLAIN if steps is None else STEPS)
    if steps is None:
        _write_plain(writer, palette)
    else:
        step, multiples = steps
        _write_plain(writer, step)
        _write_bounded(writer, multiples, kind)


def read(reader: Reader, count: int, itemsize: int, kind: str) -> np.ndarray:
    """Read a palette of `count` words; raises CorruptFileError."""
    reader.allowance.spend(COST * count)
    if kind == "float":
        if reader.uint(STEPS) == PLAIN:
            return _read_plain(reader, count, itemsize)
        step = _read_plain(reader, 1, itemsize)
        multiples = _read_bounded(reader, count, kind, MOST_STEPS)
        return _multiply(multiples, step)
    most = 2 ** (8 * itemsize - (kind == "signed")) - 1
    numbers = _read_bounded(reader, count, kind, most)
    return np.array([number % 2 ** (8 * itemsize) for number in numbers], dtype=f"<u{itemsize}")


def _write_plain(writer, palette):
    bits, magnitudes = 8 * palette.itemsize - 1, []
    for word in map(int, palette):
        magnitudes.append(word & (1 << bits) - 1)
    every = 0
    for magnitude in magnitudes:
        every |= magnitude
    zeros = (every & -every).bit_length() - 1 if every else bits
    writer.number(zeros, bits + 1)
    signs = [int(word) >> bits for word in palette]
    numbers = [-1 - (one >> zeros) if sign else one >> zeros for one, sign in zip(magnitudes, signs, strict=True)]
    limit = 1 << bits - zeros
    _write_between(writer, numbers, -limit, limit - 1)


def _read_plain(reader, count, itemsize):
    bits = 8 * itemsize - 1
    zeros = reader.number(bits + 1)
    limit = 1 << bits - zeros
    numbers = _read_between(reader, count, -limit, limit - 1)
    words = [number << zeros if number >= 0 else (-1 - number) << zeros | 1 << bits for number in numbers]
    return np.array(words, dtype=f"<u{itemsize}")


def _write_bounded(writer, numbers, kind):
    """Write whole numbers behind the least `most` that they are not beyond: -1 - most to most, unsigned from 0."""
    most = max(number if number >= 0 else -1 - number for number in numbers)
    writer.uint(most)
    _write_between(writer, numbers, 0 if kind == "unsigned" else -1 - most, most)


def _read_bounded(reader, count, kind, limit):
    most = reader.uint(limit)
    return _read_between(reader, count, 0 if kind == "unsigned" else -1 - most, most)


def _write_between(writer, numbers, low, high):
    """Write rising numbers, none below `low` or above `high`: the middle one, then each half between its neighbours."""
    if numbers:
        middle = len(numbers) // 2
        first, last = low + middle, high - (len(numbers) - 1 - middle)
        writer.number(numbers[middle] - first, last - first + 1)
        _write_between(writer, numbers[:middle], low, numbers[middle] - 1)
        _write_between(writer, numbers[middle + 1 :], numbers[middle] + 1, high)


def _read_between(reader, count, low, high):
    if not count:
        return []
    if high - low + 1 < count:
        raise CorruptFileError(f"a palette has {count} values from {low} to {high}")
    middle = count // 2
    first, last = low + middle, high - (count - 1 - middle)
    number = first + reader.number(last - first + 1)
    before = _read_between(reader, middle, low, number - 1)
    return [*before, number, *_read_between(reader, count - middle - 1, number + 1, high)]


def _find_steps(palette):
    """Find a step (a word, in an array) of which all floats of a palette are multiples, and those; None without one."""
    if palette.itemsize not in _FLOATS:
        return None
    floats = palette.view(_FLOATS[palette.itemsize])
    with np.errstate(all="ignore"):
        sizes = np.abs(floats[floats != 0])
        smallest = sizes.min() if len(sizes) else floats.dtype.type(1)
        for part in PARTS:
            step = np.array([smallest / floats.dtype.type(part)])
            multiples = np.rint(floats / step)
            if not (np.abs(multiples) <= MOST_STEPS).all():  # nan is not
                return None
            if np.array_equal(_multiply(multiples.astype(np.int64), step.view(palette.dtype)), palette):
                return step.view(palette.dtype), multiples.astype(np.int64).tolist()
    return None


def _multiply(numbers, step):
    """Multiply whole numbers by a step, given by its bits, in its own precision."""
    if step.itemsize not in _FLOATS:
        raise CorruptFileError("a palette of one-byte floats has steps")
    with np.errstate(all="ignore"):
        return (np.array(numbers, dtype=_FLOATS[step.itemsize]) * step.view(_FLOATS[step.itemsize])).view(step.dtype)


def _are_negative(words, kind):
    return words >> (8 * words.itemsize - 1) != 0 if kind != "unsigned" else np.zeros(len(words), dtype=bool)
