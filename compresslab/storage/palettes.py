"""The few different values that a tensor has, exactly and in few bits.

A palette is sorted and split at its signs: how many values are negative (have the sign bit set), then the magnitudes of
either side. A number says what magnitudes are
0 plain  whole numbers, as the bits say without the sign's. First the count of zero bits that all of them end in, which
         are left out
1 steps  (floats) whole multiples of a step, which comes first, multiplied in the tensor's own precision
Where both sides have as many values, one bit says whether they are alike; then the positive one is not there. Of a
side's numbers the largest comes first, then the smallest, then the rest by halves: the middle one is any of those that
leave room for the others (Moffat and Stuiver 2000, "Binary interpolative coding for effective index compression").
"""

import numpy as np

from compresslab.storage import streams
from compresslab.storage.container import CorruptFileError

PLAIN, STEPS = range(2)
MOST_STEPS = 2**12  # largest multiple of a step
PARTS = (1, 2, 4, 3, 5, 6, 7)  # parts of the smallest value that are tried as the step
COST = 32  # plain symbols whose decoding takes as long as that of a value, and of what is made of it
_FLOATS = {2: "<f2", 4: "<f4", 8: "<f8"}
_FRACTION = {1: 3, 2: 7, 4: 23, 8: 52}  # bits of a float below its exponent (of bfloat16; any number would do)
_USUAL = {1: 6, 2: 125, 4: 125, 8: 1021}  # exponent, as stored, of numbers from 1/4 to 1/2


def arranged(words, kind):
    """Distinct words in the order of their values, and how many are negative: what the ranks of `adaptive` want.

    words  unsigned, ascending;  kind  as in `values`
    """
    if kind == "unsigned":
        return words, 0
    below = words >> (8 * words.itemsize - 1) != 0
    minus = words[below]
    return np.concatenate([minus[::-1] if kind == "float" else minus, words[~below]]), len(minus)


def write(writer, palette, negatives, kind):
    """Write a palette as `arranged` gives it; how long it is, a reader knows already."""
    words = [int(one) for one in palette]
    sides = _magnitudes(words[:negatives][::-1], palette.itemsize, kind), words[negatives:]
    plans = [lambda one: _write_plain(one, sides, palette.itemsize, kind)]
    if kind == "float" and (steps := _steps(sides, palette.itemsize)) is not None:
        plans.append(lambda one: _write_steps(one, *steps, palette.itemsize))
    writer.number(negatives, len(palette) + 1)
    if kind == "float":
        best = min(range(len(plans)), key=lambda one: _cost(plans[one]))
        writer.uint(best)
    plans[best if kind == "float" else PLAIN](writer)


def cost(palette, negatives, kind):
    """Bits that a palette takes, near enough."""
    return _cost(lambda writer: write(writer, palette, negatives, kind))


def read(reader, count, itemsize, kind):
    """A palette of `count` words, and how many are negative; raises CorruptFileError."""
    negatives = reader.number(count + 1)
    if kind == "float" and reader.uint(STEPS) == STEPS:
        shift, fraction = _read_shift(reader, itemsize, kind)
        step = _read_largest(reader, fraction, itemsize) << shift
        found = _read_sides(reader, (negatives, count - negatives), 0, None)
        found = [_multiples(side, step, itemsize) for side in found]
    else:
        shift, fraction = _read_shift(reader, itemsize, kind)
        found = _read_sides(reader, (negatives, count - negatives), itemsize, fraction)
        found = [[one << shift for one in side] for side in found]
    limit = 2 ** (8 * itemsize - (kind != "unsigned"))
    if any(one >= limit for side in found for one in side):
        raise CorruptFileError("a palette has a value that its tensor's type does not have")
    minus = _magnitudes(found[0][::-1], itemsize, kind)
    return np.array([*minus, *found[1]], dtype=f"<u{itemsize}"), negatives


def _magnitudes(words, itemsize, kind):
    """Magnitudes of negative words, and the other way round."""
    top = 1 << (8 * itemsize - 1)
    return [one ^ top if kind == "float" else 2 * top - 1 - one for one in words]


def _cost(plan):
    writer = streams.Writer()
    plan(writer)
    return writer.bits_so_far()


def _write_plain(writer, sides, itemsize, kind):
    fraction, shift = _write_shift(writer, [*sides[0], *sides[1]], itemsize, kind)
    _write_sides(writer, [[one >> shift for one in side] for side in sides], itemsize, fraction)


def _write_steps(writer, step, multiples, itemsize):
    fraction, shift = _write_shift(writer, [step], itemsize, "float")
    _write_largest(writer, step >> shift, fraction, itemsize)
    _write_sides(writer, multiples, 0, None)


def _write_shift(writer, numbers, itemsize, kind):
    """How many zero bits all numbers end in; with it, returns the bits of what is left that are below an exponent."""
    every, bits = 0, 8 * itemsize
    for one in numbers:
        every |= one
    shift = (every & -every).bit_length() - 1 if every else bits - 1
    writer.number(shift, bits)
    return _fraction(shift, itemsize, kind), shift


def _read_shift(reader, itemsize, kind):
    shift = reader.number(8 * itemsize)
    return shift, _fraction(shift, itemsize, kind)


def _fraction(shift, itemsize, kind):
    return _FRACTION[itemsize] - shift if kind == "float" and shift <= _FRACTION[itemsize] else None


def _write_sides(writer, sides, itemsize, fraction):
    alike = sides[0] == sides[1]
    if len(sides[0]) == len(sides[1]):
        writer.number(int(alike), 2)
    for side in sides[: 1 if alike else 2]:
        if side:
            _write_largest(writer, side[-1], fraction, itemsize)
            _write_below(writer, side, fraction)


def _read_sides(reader, counts, itemsize, fraction):
    alike, found = counts[0] == counts[1] and reader.number(2), []
    for count in counts[: 1 if alike else 2]:
        found.append([])
        if count:
            largest = _read_largest(reader, fraction, itemsize)
            found[-1] = _read_below(reader, count, largest, fraction)
    return found * 2 if alike else found


def _write_largest(writer, number, fraction, itemsize):
    """A number about which little is known: of a float, first how far its exponent is from a usual one, zigzagged."""
    if fraction is None:
        writer.uint(number)
        return
    away = (number >> fraction) - _USUAL[itemsize]
    writer.uint(2 * away if away >= 0 else -2 * away - 1)
    writer.number(number % (1 << fraction), 1 << fraction)


def _read_largest(reader, fraction, itemsize):
    if fraction is None:
        return reader.uint(2**64)
    zigzagged = reader.uint(2**12)
    away = zigzagged // 2 if zigzagged % 2 == 0 else -(zigzagged + 1) // 2
    exponent = _USUAL[itemsize] + away
    if exponent < 0:
        raise CorruptFileError("a palette has an exponent below zero")
    return exponent << fraction | reader.number(1 << fraction)


def _write_below(writer, side, fraction):
    """The numbers below the largest one of a side."""
    if len(side) > 1:
        smallest, largest = side[0], side[-1]
        if fraction is None:
            writer.number(smallest, largest - len(side) + 2)
        else:
            writer.uint((largest >> fraction) - (smallest >> fraction))
            writer.number(smallest % (1 << fraction), 1 << fraction)
        _write_between(writer, side)


def _read_below(reader, count, largest, fraction):
    if count == 1:
        return [largest]
    if fraction is None:
        smallest = reader.number(max(0, largest - count + 2))
    else:
        exponent = (largest >> fraction) - reader.uint(largest >> fraction)
        smallest = exponent << fraction | reader.number(1 << fraction)
    if largest - smallest < count - 1:
        raise CorruptFileError(f"a palette has {count} values from {smallest} to {largest}")
    return [smallest, *_read_between(reader, count - 2, smallest, largest), largest]


def _write_between(writer, side):
    """The numbers between the first and the last, by halves."""
    if len(side) > 2:
        middle = len(side) // 2
        low, high = side[0] + middle, side[-1] - (len(side) - 1 - middle)
        writer.number(side[middle] - low, high - low + 1)
        _write_between(writer, side[: middle + 1])
        _write_between(writer, side[middle:])


def _read_between(reader, count, smallest, largest):
    if count <= 0:
        return []
    middle = (count + 2) // 2
    low, high = smallest + middle, largest - (count + 1 - middle)
    found = low + reader.number(high - low + 1)
    before = _read_between(reader, middle - 1, smallest, found)
    return [*before, found, *_read_between(reader, count - middle, found, largest)]


def _steps(sides, itemsize):
    """A step (its bits) and the multiples of it that a palette's sides are; None where there is no such step."""
    if itemsize not in _FLOATS:
        return None
    positive = [one for side in sides for one in side if one]
    numbers = [np.array(side, dtype=f"<u{itemsize}").view(_FLOATS[itemsize]) for side in sides]
    smallest = np.array(positive or [0], dtype=f"<u{itemsize}").min()[None].view(_FLOATS[itemsize])
    for part in PARTS:
        with np.errstate(all="ignore"):
            step = smallest / smallest.dtype.type(part)
            multiples = [np.rint(side / step) for side in numbers]
            if not all((one <= MOST_STEPS).all() for one in multiples):  # nan is not
                return None
            multiples = [[int(one) for one in side] for side in multiples]
        bits = int(step.view(f"<u{itemsize}")[0])
        if all(_multiples(some, bits, itemsize) == side for some, side in zip(multiples, sides, strict=True)):
            return bits, multiples
    return None


def _multiples(numbers, step, itemsize):
    """Bits of whole multiples of a step, itself given by its bits, computed in its precision."""
    if any(one > MOST_STEPS for one in numbers) or step >= 2 ** (8 * itemsize - 1):
        raise CorruptFileError("a palette has steps beyond its type, or too many")
    with np.errstate(all="ignore"):
        value = np.array([step], dtype=f"<u{itemsize}").view(_FLOATS[itemsize])
        product = np.array(numbers, dtype=value.dtype) * value
    return [int(one) for one in product.view(f"<u{itemsize}")]
