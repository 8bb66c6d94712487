"""Palettes: the few distinct values of an array, exactly and in few bits (docs/format.md, section 6).

    plain  whole numbers in the order of the values: integers themselves, or the bits of floats (of a negative float -1
           less its magnitude)
    steps  whole multiples of a step, of which all floats are

Rising numbers are coded by halves: the middle one is any that leaves room for those before and behind it, and so on in
both halves (Moffat and Stuiver 2000, "Binary interpolative coding for effective index compression"). Every function
here serves both ways: a Writer is given numbers, a Reader None.
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
    """Sort distinct words (unsigned, rising) by the values that they are the bits of; kind  as in `binary_words`."""
    negative = _are_negative(words, kind)
    below = words[negative]
    return np.concatenate([below[::-1] if kind == "float" else below, words[~negative]])


def count_negatives(palette: np.ndarray, kind: str) -> int:
    """Count the values of a palette whose sign bit is set."""
    return int(np.count_nonzero(_are_negative(palette, kind)))


def code(coder: Writer | Reader, palette: np.ndarray | None, count: int, itemsize: int, kind: str) -> np.ndarray:
    """Write or read a palette of `count` words of `itemsize` bytes, in the order of their values; returns it."""
    coder.charge(COST * count)
    if kind == "float":
        steps = None if palette is None else _find_steps(palette)
        if coder.uint(PLAIN if steps is None else STEPS, STEPS) == PLAIN:
            return _code_plain(coder, palette, count, itemsize)
        step, multiples = steps or (None, None)
        step = _code_plain(coder, step, 1, itemsize)
        return _multiply(_code_bounded(coder, multiples, count, "signed", MOST_STEPS), step)
    numbers = None
    if palette is not None:
        numbers = palette.view(f"<i{itemsize}").tolist() if kind == "signed" else palette.tolist()
    numbers = _code_bounded(coder, numbers, count, kind, 2 ** (8 * itemsize - (kind == "signed")) - 1)
    return np.array([number % 2 ** (8 * itemsize) for number in numbers], dtype=f"<u{itemsize}")


def _code_plain(coder, palette, count, itemsize):
    """Code floats by their bits, less the zeros in which all magnitudes end."""
    bits, zeros, numbers = 8 * itemsize - 1, 0, None
    if palette is not None:
        every = int(np.bitwise_or.reduce(palette)) & (1 << bits) - 1
        zeros = (every & -every).bit_length() - 1 if every else bits
        magnitudes = [(word & (1 << bits) - 1) >> zeros for word in palette.tolist()]
        numbers = [-1 - n if word >> bits else n for n, word in zip(magnitudes, palette.tolist(), strict=True)]
    zeros = coder.number(zeros, bits + 1)
    limit = 1 << bits - zeros
    numbers = _code_between(coder, numbers, count, -limit, limit - 1)
    words = [number << zeros if number >= 0 else (-1 - number) << zeros | 1 << bits for number in numbers]
    return np.array(words, dtype=f"<u{itemsize}")


def _code_bounded(coder, numbers, count, kind, limit):
    """Code rising numbers behind the least `most` that they are not beyond: -1 - most to most, unsigned from 0."""
    most = None if numbers is None else max(number if number >= 0 else -1 - number for number in numbers)
    most = coder.uint(most, limit)
    return _code_between(coder, numbers, count, 0 if kind == "unsigned" else -1 - most, most)


def _code_between(coder, numbers, count, low, high):
    """Code rising numbers from `low` to `high`: the middle one, then each half between its neighbours."""
    if not count:
        return []
    if high - low + 1 < count:
        raise CorruptFileError(f"a palette has {count} values from {low} to {high}")
    middle, halves = count // 2, (None, None)
    first, last, number = low + middle, high - (count - 1 - middle), None
    if numbers is not None:
        number, halves = numbers[middle] - first, (numbers[:middle], numbers[middle + 1 :])
    number = first + coder.number(number, last - first + 1)
    before = _code_between(coder, halves[0], middle, low, number - 1)
    return [*before, number, *_code_between(coder, halves[1], count - middle - 1, number + 1, high)]


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
