"""Probabilities of bits from what is known already: adaptive counters, mixed; whole numbers only, compiled by numba.

    context  a situation, such as "both neighbours are kept"; a kind of contexts is a question with so many answers
    counter  follows the bits seen in a context: a probability over 2**22, and how many bits it has seen
    stretch  ln(p / (1 - p)) in steps of 1/256;  squash  its inverse; probabilities are whole numbers over 2**16
    mixer    weighs the stretched probabilities of a bit's counters:  p = squash(sum of weight * stretch(counter))
    pass     a bit for each of some entries of a matrix, line by line
    block    bits of a pass that are predicted together, then coded, then learned from in order
    line, place, near  see `layouts`
    node     a decision in the halving that finds a size

Three kinds of passes: FIELD, which entries are kept; SIGNS of the kept ones; SIZES, whether a size is in the upper half
of what is left of its range. What is known of an entry: 1 if it is kept; 1 or -1, its sign; the sign times 1 + the low
end of its size's range. Each bit has one context of each of KINDS kinds. The weights learn online which tell most.

Mahoney 2005, "Adaptive weighing of context models for lossless data compression" (PAQ; the mixing is that of lpaq).
"""

import numpy as np

from compresslab.storage.compiling import compiled, kept_on_disk

ONE = 2**16  # of probabilities
REACH = 2839  # most that stretch gives: ln(2**16) * 256
SLOWEST = 1000  # bits after which a counter's rate falls no more
RATES = ONE + 2 * REACH + 1  # where rates begin in LOOKUP, after stretch and squash
FIELD, SIGNS, SIZES = range(3)
KINDS, SHARED = 6, 5  # of contexts; the one that is the same for all nodes
# By pass, the number of contexts of each kind, for each node.
CONTEXTS = ((64, 48, 48, 144, 64, 48), (1, 9, 9, 144, 9, 108), (1, 12, 12, 36, 9, 81))
LEFT, UP, CORNER, ACROSS, LEFT2, UP2, CORNER2, ACROSS2 = range(8)  # neighbours, in the order of Layout.near


def _make_lookup():
    """Tabulate stretch of 0 to ONE - 1, squash of -REACH to REACH, rates of a counter after 0 to SLOWEST bits."""
    # e**(-1 / 256) times 2**96 by its series, and its powers, in whole numbers.
    ratio, term, step = 0, 2**96, 0
    while term:
        ratio += -term if step % 2 else term
        step += 1
        term //= 256 * step
    powers = [2**96]
    for _ in range(REACH):
        powers.append(powers[-1] * ratio >> 96)
    # squash(x) = 1 / (1 + e**-x); of negative x what is missing to ONE.
    above = [min(ONE - 1, 2**112 // (2**96 + power)) for power in powers]
    squash = np.array([ONE - value for value in above[:0:-1]] + above, dtype=np.int64)
    # stretch(p) is the least x whose squash is p or more.
    stretch = np.clip(np.searchsorted(squash, np.arange(ONE)), 0, 2 * REACH) - REACH
    # A counter moves by 1 / (seen + 1.6) of the way towards a bit.
    rates = [10 * ONE // (10 * seen + 16) for seen in range(SLOWEST + 1)]
    return np.concatenate([stretch, squash, np.array(rates, dtype=np.int64)])


LOOKUP = _make_lookup()


# The `state` that `run` gets is a tuple of arrays of whole numbers:
#     basic      (5, 2): ones and bits of this pass; the pass and half of a size's range; lines around the matrix and
#                nodes; positive and negative values; where the block begins and ends
#     near       lines from an entry to its neighbours
#     of_lines   ones and bits of a line in this pass; its prior; its group
#     of_places  ones and bits of a place in this pass; ones in the group; the group; its prior
#     offsets    where the counters of each kind begin;  counters, weights  of the mixer
#     index, inputs    of the bits of a block: numbers of their counters, and inputs of the mixer
#     lookup     LOOKUP


@compiled
def _quotient(number, divisor):
    """Divide whole numbers, 0 or more and below 2**52 together, rounding down: exact, and faster than `//`."""
    return np.int64(np.float64(number) / np.float64(divisor))


@compiled
def _mix(b, inputs, weights, lookup):
    """Mix the inputs of bit `b` of a block to a probability, with the weights as they are now."""
    total = 0
    for i in range(KINDS + 1):
        total += inputs[b, i] * weights[i]
    return lookup[ONE + REACH + min(REACH, max(-REACH, total >> 16))]


@compiled
def _learn(b, bit, index, inputs, counters, weights, lookup):
    """Move weights and counters towards bit `b` of a block, after those before it."""
    # How far off is the mixer, with the weights as they are now? It learns faster at first.
    mixed = _mix(b, inputs, weights, lookup)
    error = ((bit << 16) - mixed) * (6 + _quotient(ONE, 256 + weights[KINDS + 1]))
    # Each weight moves by its share in the error; behind them stands how many bits were learned.
    for i in range(KINDS + 1):
        weights[i] += (inputs[b, i] * error + (1 << 20)) >> 21
    weights[KINDS + 1] += 1
    # Each counter moves towards the bit; a new one starts from the mixed probability.
    for i in range(KINDS):
        context = index[b, i]
        seen = counters[context, 1]
        if seen == 0:
            counters[context, 0] = mixed << 6
            seen = 1
        counters[context, 0] += (((bit << 22) - counters[context, 0]) * lookup[RATES + seen]) >> 16
        counters[context, 1] = min(SLOWEST, seen + 1)


@compiled
def _note(bit, line, place, sums, of_lines, of_places):
    """Count a bit in the sums of the matrix, its line and its place, and in the place's of the line's group."""
    sums[0] += bit
    sums[1] += 1
    of_lines[line, 0] += bit
    of_lines[line, 1] += 1
    of_places[place, 0] += bit
    of_places[place, 1] += 1
    if of_places[place, 3] != of_lines[line, 3]:
        of_places[place, 2], of_places[place, 3] = 0, of_lines[line, 3]
    of_places[place, 2] += bit


@compiled
def _density(count, total, pseudo, mean):
    """Return the share of ones, with so many pseudo-entries of share `mean`, that of the matrix."""
    return min(ONE - 1, max(1, _quotient(count * ONE + mean * pseudo, total + pseudo)))


@compiled
def _line_density(line, near, mean, of_lines):
    """Return the density that a line's own entries so far, and those of the lines near it, suggest."""
    ones, total = 8 * of_lines[line, 0], 8 * of_lines[line, 1]
    for i in range(6):
        if 0 < near[i] <= line:
            worth = 4 if i <= UP else 2
            ones += worth * of_lines[line - near[i], 0]
            total += worth * of_lines[line - near[i], 1]
    return _density(ones, total, 128, mean)


@compiled
def _step(stretched, base):
    """Return a density relative to the matrix's own, in 12 steps."""
    return min(11, max(0, (stretched - base + 576) // 96))


@compiled
def _field_contexts(line, place, near, known, by_place, by_line, group, prior):
    """Return the contexts of an entry of a field; by_place, by_line  densities in 12 steps."""
    # Six neighbours as a pattern, and all eight as a weighted count.
    pattern = 0
    for i in range(6):
        pattern |= np.int64(known[line - near[i], place]) << i
    close = 2 * (pattern & 1) + 2 * (pattern >> 1 & 1)
    for i in range(CORNER, ACROSS2 + 1):
        close += known[line - near[i], place]
    close = min(7, close)
    # What the unit keeps in this image or kernel so far; what the layer before says about the input.
    in_group, before = min(7, group) * 8 + by_place * 2 // 3, prior * 3 + by_place // 4
    return pattern, close * 6 + by_place // 2, close * 6 + by_line // 2, by_place * 12 + by_line, in_group, before


@compiled
def _sign(number):
    return np.int64(number > 0) - np.int64(number < 0)


@compiled
def _sign_contexts(line, place, near, known, by_place, by_line):
    """Return the contexts of a sign: two neighbours, two more, the means of place and line, the sum of all four."""
    left, up = np.int64(known[line - near[LEFT], place]), np.int64(known[line - near[UP], place])
    corner, across = np.int64(known[line - near[CORNER], place]), np.int64(known[line - near[ACROSS], place])
    beside, diagonal = 3 * left + up + 4, 3 * corner + across + 4
    return 0, beside, diagonal, by_place * 12 + by_line, left + up + corner + across + 4, beside * 12 + by_place


@compiled
def _toward(number, sign, low, half):
    """Return whether a neighbour of the same sign and low end is in the upper half, 2, or not, 1; 0 for any other."""
    size = sign * number - 1
    return np.int64(0) if size < low or size >= low + 2 * half else np.int64(1) + np.int64(size >= low + half)


@compiled
def _size_contexts(line, place, near, known, by_place, by_line, half, values):
    """Return the contexts of a decision about a size."""
    # All signs are known: how many of eight neighbours, before and after, have the entry's own?
    sign, alike = _sign(known[line, place]), 0
    for i in range(4):
        alike += _sign(known[line - near[i], place]) + _sign(known[line + near[i], place])
    left, up = np.int64(known[line - near[LEFT], place]), np.int64(known[line - near[UP], place])
    low = sign * known[line, place] - 1
    toward = 3 * _toward(left, sign, low, half) + _toward(up, sign, low, half)
    large = min(11, 6 * (max(0, abs(left) - 1) + max(0, abs(up) - 1)) // values)
    beside = large + 12 * ((left != 0) + (up != 0))
    pair = 3 * sign * _sign(left) + sign * _sign(up) + 4
    return 0, by_place, by_line, beside, min(4, max(-4, sign * alike)) + 4, 9 * toward + pair


@compiled
def _learn_block(bits, start, stop, at, known, state):
    """Learn the bits of a block that was predicted, and note what is known of its entries now."""
    basic, _, of_lines, of_places, _, counters, weights, index, inputs, lookup = state
    sums, (kind, half), pad, rows = basic[0], basic[1], basic[2, 0], len(of_places)
    for b in range(stop - start):
        line, bit = _quotient(at[start + b], rows), np.int64(bits[b])
        place = at[start + b] - line * rows
        _learn(b, bit, index, inputs, counters, weights, lookup)
        _note(bit, line, place, sums, of_lines, of_places)
        if kind == FIELD:
            known[pad + line, place] = bit
        elif kind == SIGNS:
            known[pad + line, place] = 2 * bit - 1
        else:
            known[pad + line, place] += bit * half * _sign(known[pad + line, place])


@compiled
def _predict_block(start, stop, at, known, state, out):
    """Fill `out` with the probabilities of the ones of a block, `index` and `inputs` with what they come from."""
    basic, near, of_lines, of_places, offsets, counters, weights, index, inputs, lookup = state
    (kind, half), (pad, nodes), sides, rows = basic[1], basic[2], basic[3], len(of_places)
    # The density of the matrix is what others are compared with.
    mean = _quotient(basic[0, 0] * ONE, basic[0, 1])
    base, line_before, by_line = lookup[_density(0, 0, 1, mean)], -1, np.int64(0)
    for b in range(stop - start):
        line, node = _quotient(at[start + b], rows), np.int64(0)
        place = at[start + b] - line * rows
        if line != line_before:
            by_line, line_before = _step(lookup[_line_density(line, near, mean, of_lines)], base), line
        density = lookup[_density(of_places[place, 0], of_places[place, 1], 12, mean)]
        by_place = _step(density, base)
        if kind == FIELD:
            group = of_places[place, 2] if of_places[place, 3] == of_lines[line, 3] else np.int64(0)
            prior = of_lines[line, 2] + of_places[place, 4]
            contexts = _field_contexts(pad + line, place, near, known, by_place, by_line, group, prior)
        elif kind == SIGNS:
            contexts = _sign_contexts(pad + line, place, near, known, by_place, by_line)
        else:
            number = np.int64(known[pad + line, place])
            node = abs(number) - 1 + half + (sides[0] if number < 0 else 0)
            values = sides[np.int64(number < 0)]
            contexts = _size_contexts(pad + line, place, near, known, by_place, by_line, half, values)
        # The inputs of the mixer: what the counters say, where they have seen something, and the place's density.
        for i in range(KINDS):
            counter = (offsets[i] + contexts[i]) * nodes + (node if i < SHARED else 0)
            index[b, i] = counter
            inputs[b, i] = lookup[counters[counter, 0] >> 6] if counters[counter, 1] else density
        inputs[b, KINDS] = density
        out[b] = _mix(b, inputs, weights, lookup) / ONE


@kept_on_disk
def run(bits: np.ndarray, every: int, at: np.ndarray, known: np.ndarray, state: tuple, out: np.ndarray) -> None:
    """Learn the bits of the block that was predicted last, and predict the next one.

    bits     of that block, int32; where `every` is 1, of all entries: then all blocks are gone through
    at       int32: the entries whose bits are coded in this pass, line * places + place
    known    int16: what is known of all entries (see the module's docstring), with zeros around (see Layout.inside)
    out      float64: filled with the probabilities of ones, from its beginning (where `every`, all of them)
    returns  how many were predicted last: 0 at the end
    """
    basic, block = state[0], len(state[7])
    start, stop = basic[4]
    while True:
        _learn_block(bits[start:] if every else bits, start, stop, at, known, state)
        start, stop = stop, min(len(at), stop + block)
        _predict_block(start, stop, at, known, state, out[start:] if every else out)
        if not every or start == stop:
            break
    basic[4, 0], basic[4, 1] = start, stop
    return stop - start
