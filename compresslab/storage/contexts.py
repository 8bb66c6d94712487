"""Probabilities of bits from what is known already: adaptive counters, mixed; whole numbers only, compiled by numba.

A probability is a whole number over 2**16. Every context (a situation such as "both neighbours are kept") has a counter
that follows the bits seen there; the counters of a bit's contexts are averaged in the logistic domain,

    p = squash(sum of weight * stretch(p of a counter)),    stretch(p) = ln(p / (1 - p)), in steps of 1/256

and the weights learn online which contexts tell most. Coding goes block by block: all bits of a block are predicted,
then coded, then learned from, one after the other. `field_run` codes which entries of a matrix are kept, `signs_run`
the signs of the kept ones, `sizes_run` their sizes; what they are given is made in `adaptive`. Whole numbers make the
same bytes on every machine.

Mahoney 2005, "Adaptive weighing of context models for lossless data compression" (PAQ; the mixing is that of lpaq).
"""

import numpy as np

from compresslab.storage.compiling import compiled, kept_on_disk

ONE = 2**16  # of probabilities; those of counters are whole numbers over 2**22
REACH = 2839  # most that stretch gives: ln(2**16) * 256
SLOWEST = 1000  # bits after which a counter's rate falls no more
RATES = ONE + 2 * REACH + 1  # where rates begin in LOOKUP, after stretch and squash
FIELD_CONTEXTS = (64, 48, 48, 144, 64, 48)  # number of each kind
SIGN_CONTEXTS = (1, 9, 9, 25, 9)
SIZE_CONTEXTS = (1, 9, 9, 15, 9, 9, 9)  # for each node of the trees of sizes; the last ones for all nodes alike
TOWARD = 6  # which of them depends on the decision
LEFT, UP, CORNER, OTHER, LEFT2, UP2, CORNER2, OTHER2 = range(8)  # neighbours: how many lines before, as `near` says


def _lookup():
    """stretch of 0 to ONE - 1, squash of -REACH to REACH, rates (times ONE) of a counter after 0 to SLOWEST bits."""
    ratio, term, step = 0, 2**96, 0
    while term:  # the series of e**(-1 / 256), in whole numbers
        ratio += -term if step % 2 else term
        step += 1
        term //= 256 * step
    powers = [2**96]
    for _ in range(REACH):
        powers.append(powers[-1] * ratio >> 96)
    above = [min(ONE - 1, 2**112 // (2**96 + power)) for power in powers]
    squash = np.array([ONE - one for one in above[:0:-1]] + above, dtype=np.int64)
    stretch = np.clip(np.searchsorted(squash, np.arange(ONE)), 0, 2 * REACH) - REACH
    rates = [10 * ONE // (10 * seen + 16) for seen in range(SLOWEST + 1)]
    return np.concatenate([stretch, squash, np.array(rates, dtype=np.int64)])


LOOKUP = _lookup()


@compiled
def _quotient(number, divisor):
    """Divide whole numbers, 0 or more and below 2**52 together, rounding down: exact, and faster than `//`."""
    return np.int64(np.float64(number) / np.float64(divisor))


@compiled
def _mixed(b, inputs, weights, lookup):
    """Probability that the inputs of bit `b` of a block give with the weights as they are now."""
    total = 0
    for one in range(inputs.shape[1]):
        total += inputs[b, one] * weights[one]
    return lookup[ONE + REACH + min(REACH, max(-REACH, total >> 16))]


@compiled
def _predict(b, start, index, inputs, counters, weights, lookup):
    """Probability of bit `b` of a block: fills its inputs from its counters; those behind them are there already."""
    for one in range(index.shape[1]):
        context = index[b, one]
        inputs[b, one] = lookup[counters[context, 0] >> 6] if counters[context, 1] else start
    return _mixed(b, inputs, weights, lookup)


@compiled
def _learn(b, bit, index, inputs, counters, weights, lookup):
    """Move weights and counters towards bit `b` of a block, after those before it."""
    mixed = _mixed(b, inputs, weights, lookup)
    last = inputs.shape[1]
    error = ((bit << 16) - mixed) * (6 + _quotient(ONE, 256 + weights[last]))  # faster at first
    for one in range(last):
        weights[one] += (inputs[b, one] * error + (1 << 20)) >> 21
    weights[last] += 1
    for one in range(index.shape[1]):
        context = index[b, one]
        seen = counters[context, 1]
        if seen == 0:  # a new context starts from what the others say
            counters[context, 0] = mixed << 6
            seen = 1
        counters[context, 0] += (((bit << 22) - counters[context, 0]) * lookup[RATES + seen]) >> 16
        counters[context, 1] = min(SLOWEST, seen + 1)


@compiled
def _part(pool, size):
    """A part of the pool as a matrix; size  where it begins, its rows and columns."""
    return pool[size[0] : size[0] + size[1] * size[2]].reshape(size[1], size[2])


@compiled
def _parts(pool, sizes):
    """The arrays of a pool: basic numbers, near, sums of lines and places, live ones, scratch, and the mixer's."""
    basic, near = _part(pool, sizes[0]), _part(pool, sizes[1])
    sums = _part(pool, sizes[2]), _part(pool, sizes[3])
    live = _part(pool, sizes[4])[0], _part(pool, sizes[5])[0]
    scratch = _part(pool, sizes[9]), _part(pool, sizes[10]), _part(pool, sizes[6])[0]
    mixer = _part(pool, sizes[7]), _part(pool, sizes[8])[0], _part(pool, sizes[11]), _part(pool, sizes[12])
    return basic, near[0], sums, live, scratch, mixer


@compiled
def _index(b, kinds, offsets, nodes, node, last, index, inputs):
    """Turn the contexts of bit `b` of a block into their counters' numbers, and put the input behind those of them."""
    used = kinds.shape[1]
    for one in range(used):
        index[b, one] = (offsets[one] + kinds[b, one]) * nodes + node
    inputs[b, used] = last


@compiled
def _density(count, total, pseudo, mean):
    """Share of kept entries as a probability, with so many pseudo-entries of share `mean`, that of the matrix."""
    return min(ONE - 1, max(1, _quotient(count * ONE + mean * pseudo, total + pseudo)))


@compiled
def _line_density(line, near, mean, of_lines):
    """Density that a line's own entries so far, and those of the lines near it, suggest."""
    kept, total = 8 * of_lines[line, 0], 8 * of_lines[line, 1]
    for one in range(6):
        if 0 < near[one] <= line:
            worth = 4 if one <= UP else 2
            kept += worth * of_lines[line - near[one], 0]
            total += worth * of_lines[line - near[one], 1]
    return _density(kept, total, 128, mean)


@compiled
def _step(stretched, base):
    """A density relative to the matrix's own, in 12 steps."""
    return min(11, max(0, (stretched - base + 576) // 96))


@compiled
def _field_contexts(b, line, place, by_line, by_place, near, known, prior, group, kinds):
    """Fill in the contexts of an entry of a field; by_line, by_place  densities in steps."""
    pattern = 0
    for one in range(6):
        pattern |= np.int64(known[line - near[one], place]) << one
    close = 2 * (pattern & 1) + 2 * (pattern >> 1 & 1)
    for one in range(CORNER, OTHER2 + 1):
        close += known[line - near[one], place]
    close = min(7, close)
    kinds[b, 0] = pattern
    kinds[b, 1] = close * 6 + by_place // 2
    kinds[b, 2] = close * 6 + by_line // 2
    kinds[b, 3] = by_place * 12 + by_line
    kinds[b, 4] = min(7, group) * 8 + by_place * 2 // 3
    kinds[b, 5] = prior * 3 + by_place // 4


@kept_on_disk
def field_run(bits, every, known, pool, sizes, lookup, out):
    """Learn the bits of the block that was predicted last, and predict the next one.

    bits     of that block, int32; where `every` is 1, of all entries: then all blocks are gone through
    known    uint8: entries so far, with zeros around (see adaptive.Frame)
    out      float64: filled with the probabilities of kept entries, from its beginning (where `every`, all of them)
    returns  how many were predicted last: 0 at the end
    """
    basic, near, (of_lines, of_places), (lines, places), (state, kinds, offsets), mixer = _parts(pool, sizes)
    counts, pad, block = basic[0], basic[1, 0], len(state)
    counters, weights, index, inputs = mixer
    start, stop, width, total = basic[3, 0], basic[3, 1], len(places), len(lines) * len(places)
    while True:
        shift = 0 if every else start
        row, column = start // width if width else 0, start % width if width else 0
        for entry in range(start, stop):
            line, place, bit = lines[row], places[column], np.int64(bits[entry - shift])
            row, column = (row + 1, 0) if column + 1 == width else (row, column + 1)
            _learn(entry - start, bit, index, inputs, counters, weights, lookup)
            known[pad + line, place] = bit
            counts[0] += bit
            counts[1] += 1
            of_lines[line, 0] += bit
            of_lines[line, 1] += 1
            of_places[place, 0] += bit
            of_places[place, 1] += 1
            if of_places[place, 3] != of_lines[line, 3]:
                of_places[place, 2], of_places[place, 3] = 0, of_lines[line, 3]
            of_places[place, 2] += bit
        start, stop = stop, min(total, stop + block)
        mean = _quotient(counts[0] * ONE, counts[1])
        base, before, by_line = lookup[_density(0, 0, 1, mean)], -1, 0
        for entry in range(start, stop):
            line, place, b = lines[row], places[column], entry - start
            row, column = (row + 1, 0) if column + 1 == width else (row, column + 1)
            if line != before:
                by_line, before = _step(lookup[_line_density(line, near, mean, of_lines)], base), line
            density = lookup[_density(of_places[place, 0], of_places[place, 1], 12, mean)]
            group = of_places[place, 2] if of_places[place, 3] == of_lines[line, 3] else 0
            prior = of_lines[line, 2] + of_places[place, 4]
            _field_contexts(b, pad + line, place, by_line, _step(density, base), near, known, prior, group, kinds)
            _index(b, kinds, offsets, 1, 0, density, index, inputs)
            out[entry if every else b] = _predict(b, density, index, inputs, counters, weights, lookup) / ONE
        if not every or start == stop:
            break
    basic[3, 0], basic[3, 1] = start, stop
    return stop - start


@compiled
def _sign(number):
    return np.int64(number > 0) - np.int64(number < 0)


@compiled
def _usual(node, counters, lookup):
    """What a new context of a decision starts from: what was seen there whatever the context."""
    return lookup[counters[node, 0] >> 6 if counters[node, 1] else ONE // 2]


@compiled
def _fifth(total, count):
    """Mean of signs in five steps; 2 where there are as many of either."""
    return min(4, max(0, _quotient(2 * total + 2 * count, count))) if count else 2


@kept_on_disk
def signs_run(bits, every, at, known, pool, sizes, lookup, out):
    """The same for the signs of kept entries, 1 for those that are not negative.

    at  int32, (2, entries): line and place of each;  known  int16: the signs so far, 1 and -1, with zeros around
    """
    basic, near, (of_lines, of_places), _, (state, kinds, offsets), mixer = _parts(pool, sizes)
    pad, block, total = basic[1, 0], len(state), at.shape[1]
    counters, weights, index, inputs = mixer
    start, stop = basic[3, 0], basic[3, 1]
    while True:
        shift = 0 if every else start
        for entry in range(start, stop):
            line, place, bit = at[0, entry], at[1, entry], np.int64(bits[entry - shift])
            _learn(entry - start, bit, index, inputs, counters, weights, lookup)
            known[pad + line, place] = 2 * bit - 1
            of_lines[line, 0] += 2 * bit - 1
            of_lines[line, 1] += 1
            of_places[place, 0] += 2 * bit - 1
            of_places[place, 1] += 1
        start, stop = stop, min(total, stop + block)
        for entry in range(start, stop):
            line, place, b = at[0, entry], at[1, entry], entry - start
            left, up = known[pad + line - near[LEFT], place], known[pad + line - near[UP], place]
            corner, other = known[pad + line - near[CORNER], place], known[pad + line - near[OTHER], place]
            kinds[b, 0] = 0
            kinds[b, 1] = 3 * left + up + 4
            kinds[b, 2] = 3 * corner + other + 4
            kinds[b, 3] = 5 * _fifth(of_places[place, 0], of_places[place, 1])
            kinds[b, 3] += _fifth(of_lines[line, 0], of_lines[line, 1])
            kinds[b, 4] = left + up + corner + other + 4
            _index(b, kinds, offsets, 1, 0, 256, index, inputs)
            usual = _usual(0, counters, lookup)
            out[entry if every else b] = _predict(b, usual, index, inputs, counters, weights, lookup) / ONE
        if not every or start == stop:
            break
    basic[3, 0], basic[3, 1] = start, stop
    return stop - start


@compiled
def _size_step(total, count, mean):
    """Mean size beside the usual one (over 16), in nine steps; 4 is like it."""
    return min(8, _quotient(total * 64, count * mean)) if count else 4


@compiled
def _class(number, positives, negatives):
    """Size of an entry in four classes, 1 to 4; 0 where it is not known."""
    if number > 1:
        return 1 + 4 * (number - 2) // positives
    return 1 + 4 * (-number - 2) // negatives if number < -1 else 0


@compiled
def _toward(number, side, low, high):
    """Where a neighbour of the same sign would go at a decision: 1 down, 2 up; 0 where it would not be there."""
    size = (-number if side else number) - 2
    if size < low or size >= high:
        return 0
    return 2 if size >= (low + high) // 2 else 1


@compiled
def _size_contexts(b, line, place, near, basic, known, kinds):
    """Fill in the contexts of an entry's size, but for those of its line and place."""
    own, alike = _sign(known[line, place]), 0
    for one in range(4):
        alike += _sign(known[line - near[one], place]) + _sign(known[line + near[one], place])
    left, up = np.int64(known[line - near[LEFT], place]), np.int64(known[line - near[UP], place])
    classes = _class(left, basic[2, 0], basic[2, 1]) + _class(up, basic[2, 0], basic[2, 1])
    kinds[b, 0] = 0
    kinds[b, 3] = 5 * (np.int64(left != 0) + np.int64(up != 0)) + min(4, classes)
    kinds[b, 4] = min(4, max(-4, own * alike)) + 4
    kinds[b, 5] = 3 * own * _sign(left) + own * _sign(up) + 4
    kinds[b, TOWARD] = 0


@compiled
def _close_sizes(start, stop, at, found, known, basic, of_lines, of_places, state):
    """Note the sizes of a block whose decisions are all made."""
    for entry in range(start, stop):
        line, place, side, size = at[0, entry], at[1, entry], state[entry - start, 0], state[entry - start, 1]
        found[entry], step = size, 1 + 4 * size // basic[2, side]
        known[basic[1, 0] + line, place] = -2 - size if side else 2 + size
        basic[0, 0] += step
        basic[0, 1] += 1
        of_lines[line, 0] += step
        of_lines[line, 1] += 1
        of_places[place, 0] += step
        of_places[place, 1] += 1


@compiled
def _still_open(count, state):
    """Keep those of a block's `count` active entries whose size is still open; returns how many."""
    left = 0
    for one in range(count):
        b = state[one, 3]
        if state[b, 2] - state[b, 1] > 1:
            state[left, 3] = b
            left += 1
    return left


@kept_on_disk
def sizes_run(bits, wanted, at, found, known, pool, sizes, lookup, out):
    """Learn the decisions that were predicted last about sizes of a block's entries, and predict the next ones.

    bits     of those decisions, int32; to be filled in where `wanted` is not empty: then all blocks are gone through
    wanted   int32: sizes of all entries, 0 for those nearest to zero, or none;  found  int32: filled in
    at       as of signs_run;  known  its signs; of entries whose size is known, 2 + size, or -2 - size
    returns  how many decisions were predicted: 0 at the end; where all are, how many they were
    """
    basic, near, (of_lines, of_places), _, (state, kinds, offsets), mixer = _parts(pool, sizes)
    counters, weights, index, inputs = mixer
    pad, nodes, block, total, done = basic[1, 0], basic[2, 0] + basic[2, 1], len(state), at.shape[1], 0
    start, stop, count = basic[3, 0], basic[3, 1], basic[1, 1]
    while True:
        for one in range(count):
            b, bit = state[one, 3], np.int64(bits[done + one])
            _learn(b, bit, index, inputs, counters, weights, lookup)
            state[b, 1 if bit else 2] = (state[b, 1] + state[b, 2]) // 2
        done, count = done + count, _still_open(count, state)
        while count == 0 and start < total:
            _close_sizes(start, stop, at, found, known, basic, of_lines, of_places, state)
            start, stop = stop, min(total, stop + block)
            mean = max(1, basic[0, 0] * 16 // max(1, basic[0, 1]))
            for entry in range(start, stop):
                line, place, b = at[0, entry], at[1, entry], entry - start
                side = np.int64(known[pad + line, place] < 0)
                state[b, 0], state[b, 1], state[b, 2], state[b, 3] = side, 0, basic[2, side], b
                _size_contexts(b, pad + line, place, near, basic, known, kinds)
                kinds[b, 1] = _size_step(of_places[place, 0], of_places[place, 1], mean)
                kinds[b, 2] = _size_step(of_lines[line, 0], of_lines[line, 1], mean)
            count = _still_open(stop - start, state)
        for one in range(count):
            b = state[one, 3]
            line, place, side, low, high = (
                pad + at[0, start + b],
                at[1, start + b],
                state[b, 0],
                state[b, 1],
                state[b, 2],
            )
            node = (low + high) // 2 + (basic[2, 0] if side else 0)
            _index(b, kinds, offsets, nodes, node, 256, index, inputs)
            toward = 3 * _toward(known[line - near[LEFT], place], side, low, high)
            toward += _toward(known[line - near[UP], place], side, low, high)
            index[b, TOWARD] = (offsets[TOWARD] + toward) * nodes
            usual = _usual(node, counters, lookup)
            share = _predict(b, usual, index, inputs, counters, weights, lookup) / ONE
            if len(wanted):
                bits[done + one] = wanted[start + b] >= (low + high) // 2
            out[done + one if len(wanted) else one] = share
        if not len(wanted) or count == 0:
            break
    basic[3, 0], basic[3, 1], basic[1, 1] = start, stop, count
    return done if len(wanted) else count
