"""Probabilities of bits from what is known already: adaptive counters, mixed; whole numbers only, compiled by numba.

    context  a situation, such as "both neighbours are kept"; a kind of contexts is a question with so many answers
    counter  follows the bits seen in a context: a probability over 2**22, and how many bits it has seen
    stretch  ln(p / (1 - p)) in steps of 1/256;  squash  its inverse; probabilities are whole numbers over 2**16
    mixer    weighs the stretched probabilities of a bit's counters:  p = squash(sum of weight * stretch(counter))
    block    bits that are predicted together, then coded, then learned from in order
    line, place, near  see `layouts`
    node     a decision in the halving that finds a size, the same one for all entries

Each bit has one context of each kind. The weights of the mixer learn online which kinds tell most. `field_run` codes
which entries of a matrix are kept, `signs_run` the signs of the kept ones, `sizes_run` their sizes; what they are given
is made in `contexts`. Each is called again and again: it learns the bits of the block before, and predicts a block. A
writer, which knows all bits, has it go through all blocks in a single call (`every`).

Mahoney 2005, "Adaptive weighing of context models for lossless data compression" (PAQ; the mixing is that of lpaq).
"""

import numpy as np

from compresslab.storage.compiling import compiled, kept_on_disk

ONE = 2**16  # of probabilities
REACH = 2839  # most that stretch gives: ln(2**16) * 256
SLOWEST = 1000  # bits after which a counter's rate falls no more
RATES = ONE + 2 * REACH + 1  # where rates begin in LOOKUP, after stretch and squash
FIELD_CONTEXTS = (64, 48, 48, 144, 64, 48)  # number of contexts of each kind
SIGN_CONTEXTS = (1, 9, 9, 25, 9)
SIZE_CONTEXTS = (1, 9, 9, 15, 9, 9, 9)  # for each node; those of the last kind are the same for all nodes
TOWARD = 6  # the kind that depends on the decision
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


# What every coder does: mix, predict, learn. The `state` that the functions get is a tuple of arrays of whole numbers:
#     basic      (4, 2), whose meaning depends on the coder; the last row is where the block begins and ends
#     near       lines from an entry to its neighbours
#     of_lines   what is known of a line's entries, and of how many; its prior; its group
#     of_places  what is known of a place's entries, and of how many; what it keeps in the group; the group; its prior
#     lines, places    those that are not dead
#     offsets    where the counters of each kind begin;  counters, weights  of the mixer
#     scratch, kinds, index, inputs    of the bits of a block: the coder's own numbers, contexts by kind, numbers of
#                their counters, and inputs of the mixer
#     lookup     LOOKUP


@compiled
def _quotient(number, divisor):
    """Divide whole numbers, 0 or more and below 2**52 together, rounding down: exact, and faster than `//`."""
    return np.int64(np.float64(number) / np.float64(divisor))


@compiled
def _mix(b, inputs, weights, lookup):
    """Mix the inputs of bit `b` of a block to a probability, with the weights as they are now."""
    total = 0
    for i in range(inputs.shape[1]):
        total += inputs[b, i] * weights[i]
    return lookup[ONE + REACH + min(REACH, max(-REACH, total >> 16))]


@compiled
def _predict(b, start, index, inputs, counters, weights, lookup):
    """Predict bit `b` of a block: fill its inputs from its counters; the one behind those is there already.

    start  input of a counter that has seen nothing;  index  numbers of its counters
    """
    for i in range(index.shape[1]):
        context = index[b, i]
        inputs[b, i] = lookup[counters[context, 0] >> 6] if counters[context, 1] else start
    return _mix(b, inputs, weights, lookup)


@compiled
def _learn(b, bit, index, inputs, counters, weights, lookup):
    """Move weights and counters towards bit `b` of a block, after those before it."""
    # How far off is the mixer, with the weights as they are now? It learns faster at first.
    mixed = _mix(b, inputs, weights, lookup)
    last = inputs.shape[1]
    error = ((bit << 16) - mixed) * (6 + _quotient(ONE, 256 + weights[last]))
    # Each weight moves by its share in the error; behind them stands how many bits were learned.
    for i in range(last):
        weights[i] += (inputs[b, i] * error + (1 << 20)) >> 21
    weights[last] += 1
    # Each counter moves towards the bit; a new one starts from the mixed probability.
    for i in range(index.shape[1]):
        context = index[b, i]
        seen = counters[context, 1]
        if seen == 0:
            counters[context, 0] = mixed << 6
            seen = 1
        counters[context, 0] += (((bit << 22) - counters[context, 0]) * lookup[RATES + seen]) >> 16
        counters[context, 1] = min(SLOWEST, seen + 1)


@compiled
def _index(b, kinds, offsets, nodes, node, last, index, inputs):
    """Turn the contexts of bit `b` of a block into their counters' numbers; put `last` behind the counters' inputs."""
    used = kinds.shape[1]
    for i in range(used):
        index[b, i] = (offsets[i] + kinds[b, i]) * nodes + node
    inputs[b, used] = last


# Fields: which entries of a matrix are kept.


@compiled
def _density(count, total, pseudo, mean):
    """Return the share of kept entries, with so many pseudo-entries of share `mean`, that of the matrix."""
    return min(ONE - 1, max(1, _quotient(count * ONE + mean * pseudo, total + pseudo)))


@compiled
def _line_density(line, near, mean, of_lines):
    """Return the density that a line's own entries so far, and those of the lines near it, suggest."""
    kept, total = 8 * of_lines[line, 0], 8 * of_lines[line, 1]
    for i in range(6):
        if 0 < near[i] <= line:
            worth = 4 if i <= UP else 2
            kept += worth * of_lines[line - near[i], 0]
            total += worth * of_lines[line - near[i], 1]
    return _density(kept, total, 128, mean)


@compiled
def _step(stretched, base):
    """Return a density relative to the matrix's own, in 12 steps."""
    return min(11, max(0, (stretched - base + 576) // 96))


@compiled
def _field_contexts(b, line, place, by_line, by_place, near, known, prior, group, kinds):
    """Fill in the contexts of an entry of a field; by_line, by_place  densities in steps."""
    # Six neighbours as a pattern, and all eight as a weighted count.
    pattern = 0
    for i in range(6):
        pattern |= np.int64(known[line - near[i], place]) << i
    close = 2 * (pattern & 1) + 2 * (pattern >> 1 & 1)
    for i in range(CORNER, ACROSS2 + 1):
        close += known[line - near[i], place]
    close = min(7, close)
    kinds[b, 0] = pattern
    kinds[b, 1] = close * 6 + by_place // 2
    kinds[b, 2] = close * 6 + by_line // 2
    kinds[b, 3] = by_place * 12 + by_line
    # What the unit keeps in this image or kernel so far; what the layer before says about the input.
    kinds[b, 4] = min(7, group) * 8 + by_place * 2 // 3
    kinds[b, 5] = prior * 3 + by_place // 4


@compiled
def _note_field(bit, line, place, pad, known, counts, of_lines, of_places):
    """Note an entry of a field: in the matrix, in all sums, and in the place's sum of the line's group."""
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


@kept_on_disk
def field_run(bits, every, known, state, out):
    """Learn the bits of the block that was predicted last, and predict the next one.

    bits     of that block, int32; where `every` is 1, of all entries: then all blocks are gone through
    known    uint8: entries so far, with zeros around (see Layout.inside)
    out      float64: filled with the probabilities of kept entries, from its beginning (where `every`, all of them)
    returns  how many were predicted last: 0 at the end
    """
    (
        basic,
        near,
        of_lines,
        of_places,
        lines,
        places,
        offsets,
        counters,
        weights,
        scratch,
        kinds,
        index,
        inputs,
        lookup,
    ) = state
    counts, pad, block = basic[0], basic[1, 0], len(scratch)
    start, stop, width, total = basic[3, 0], basic[3, 1], len(places), len(lines) * len(places)
    while True:
        # Learn: the bits of the block before are known now.
        shift = 0 if every else start
        row, column = start // width if width else 0, start % width if width else 0
        for entry in range(start, stop):
            line, place, bit = lines[row], places[column], np.int64(bits[entry - shift])
            row, column = (row + 1, 0) if column + 1 == width else (row, column + 1)
            _learn(entry - start, bit, index, inputs, counters, weights, lookup)
            _note_field(bit, line, place, pad, known, counts, of_lines, of_places)
        # Predict the next block. The density of the matrix is what others are compared with.
        start, stop = stop, min(total, stop + block)
        mean = _quotient(counts[0] * ONE, counts[1])
        base, line_before, by_line = lookup[_density(0, 0, 1, mean)], -1, 0
        for entry in range(start, stop):
            line, place, b = lines[row], places[column], entry - start
            row, column = (row + 1, 0) if column + 1 == width else (row, column + 1)
            if line != line_before:
                by_line, line_before = _step(lookup[_line_density(line, near, mean, of_lines)], base), line
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


# Signs of the kept entries.


@compiled
def _sign(number):
    return np.int64(number > 0) - np.int64(number < 0)


@compiled
def _start(node, counters, lookup):
    """Return what a new context of a decision starts from: what was seen there whatever the context."""
    return lookup[counters[node, 0] >> 6 if counters[node, 1] else ONE // 2]


@compiled
def _fifth(total, count):
    """Return the mean of signs in five steps; 2 where there are as many of either."""
    return min(4, max(0, _quotient(2 * total + 2 * count, count))) if count else 2


@compiled
def _sign_contexts(b, line, place, near, known, of_line, of_place, kinds):
    """Fill in the contexts of a sign: two neighbours, two more, the means of place and line, the sum of all four."""
    left, up = known[line - near[LEFT], place], known[line - near[UP], place]
    corner, across = known[line - near[CORNER], place], known[line - near[ACROSS], place]
    kinds[b, 0] = 0
    kinds[b, 1] = 3 * left + up + 4
    kinds[b, 2] = 3 * corner + across + 4
    kinds[b, 3] = 5 * _fifth(of_place[0], of_place[1]) + _fifth(of_line[0], of_line[1])
    kinds[b, 4] = left + up + corner + across + 4


@kept_on_disk
def signs_run(bits, every, at, known, state, out):
    """Learn and predict, as `field_run`, the signs of kept entries, 1 for those that are not negative.

    at  int32, (2, entries): line and place of each;  known  int16: the signs so far, 1 and -1, with zeros around
    """
    basic, near, of_lines, of_places, _, _, offsets, counters, weights, scratch, kinds, index, inputs, lookup = state
    pad, block, total = basic[1, 0], len(scratch), at.shape[1]
    start, stop = basic[3, 0], basic[3, 1]
    while True:
        # Learn, and note the signs in the matrix and in the sums of line and place.
        shift = 0 if every else start
        for entry in range(start, stop):
            line, place, bit = at[0, entry], at[1, entry], np.int64(bits[entry - shift])
            _learn(entry - start, bit, index, inputs, counters, weights, lookup)
            known[pad + line, place] = 2 * bit - 1
            of_lines[line, 0] += 2 * bit - 1
            of_lines[line, 1] += 1
            of_places[place, 0] += 2 * bit - 1
            of_places[place, 1] += 1
        # Predict the next block.
        start, stop = stop, min(total, stop + block)
        for entry in range(start, stop):
            line, place, b = at[0, entry], at[1, entry], entry - start
            _sign_contexts(b, pad + line, place, near, known, of_lines[line], of_places[place], kinds)
            _index(b, kinds, offsets, 1, 0, 256, index, inputs)
            first = _start(0, counters, lookup)
            out[entry if every else b] = _predict(b, first, index, inputs, counters, weights, lookup) / ONE
        if not every or start == stop:
            break
    basic[3, 0], basic[3, 1] = start, stop
    return stop - start


# Sizes of the kept entries, each found by halving: is it in the upper half of what is left?


@compiled
def _size_step(total, count, mean):
    """Return a mean size beside the usual one (over 16), in nine steps; 4 is like it."""
    return min(8, _quotient(total * 64, count * mean)) if count else 4


@compiled
def _class(number, positives, negatives):
    """Return the size of an entry in four classes, 1 to 4; 0 where it is not known."""
    if number > 1:
        return 1 + 4 * (number - 2) // positives
    return 1 + 4 * (-number - 2) // negatives if number < -1 else 0


@compiled
def _toward(number, side, low, high):
    """Return where a neighbour of the same sign would go at a decision: 1 down, 2 up; 0 where it would not be there."""
    size = (-number if side else number) - 2
    if size < low or size >= high:
        return 0
    return 2 if size >= (low + high) // 2 else 1


@compiled
def _size_contexts(b, line, place, near, basic, known, mean, of_line, of_place, kinds):
    """Fill in the contexts of an entry's size; the last kind depends on the decision."""
    # All signs are known: how many of eight neighbours, before and after, have the entry's own?
    own, alike = _sign(known[line, place]), 0
    for i in range(4):
        alike += _sign(known[line - near[i], place]) + _sign(known[line + near[i], place])
    left, up = np.int64(known[line - near[LEFT], place]), np.int64(known[line - near[UP], place])
    classes = _class(left, basic[2, 0], basic[2, 1]) + _class(up, basic[2, 0], basic[2, 1])
    kinds[b, 0] = 0
    kinds[b, 1] = _size_step(of_place[0], of_place[1], mean)
    kinds[b, 2] = _size_step(of_line[0], of_line[1], mean)
    kinds[b, 3] = 5 * (np.int64(left != 0) + np.int64(up != 0)) + min(4, classes)
    kinds[b, 4] = min(4, max(-4, own * alike)) + 4
    kinds[b, 5] = 3 * own * _sign(left) + own * _sign(up) + 4
    kinds[b, TOWARD] = 0


@compiled
def _close_sizes(start, stop, at, sizes_out, known, basic, of_lines, of_places, scratch):
    """Note the sizes of a block whose decisions are all made."""
    for entry in range(start, stop):
        line, place, side, size = at[0, entry], at[1, entry], scratch[entry - start, 0], scratch[entry - start, 1]
        sizes_out[entry], step = size, 1 + 4 * size // basic[2, side]
        known[basic[1, 0] + line, place] = -2 - size if side else 2 + size
        basic[0, 0] += step
        basic[0, 1] += 1
        of_lines[line, 0] += step
        of_lines[line, 1] += 1
        of_places[place, 0] += step
        of_places[place, 1] += 1


@compiled
def _still_open(count, scratch):
    """Keep those of a block's `count` active entries whose size is still open; returns how many."""
    left = 0
    for i in range(count):
        b = scratch[i, 3]
        if scratch[b, 2] - scratch[b, 1] > 1:
            scratch[left, 3] = b
            left += 1
    return left


@compiled
def _open_sizes(start, stop, at, near, basic, known, of_lines, of_places, scratch, kinds):
    """Begin a block of sizes: each is from 0 to the number of values on its side."""
    pad, mean = basic[1, 0], max(1, basic[0, 0] * 16 // max(1, basic[0, 1]))
    for entry in range(start, stop):
        line, place, b = at[0, entry], at[1, entry], entry - start
        side = np.int64(known[pad + line, place] < 0)
        scratch[b, 0], scratch[b, 1], scratch[b, 2], scratch[b, 3] = side, 0, basic[2, side], b
        _size_contexts(b, pad + line, place, near, basic, known, mean, of_lines[line], of_places[place], kinds)


@kept_on_disk
def sizes_run(bits, wanted, at, sizes_out, known, state, out):
    """Learn the decisions that were predicted last about sizes of a block's entries, and predict the next ones.

    bits     of those decisions, int32; to be filled in where `wanted` is not empty: then all blocks are gone through
    wanted   int32: sizes of all entries, 0 for those nearest to zero, or none;  sizes_out  int32: filled in
    at       as of signs_run;  known  its signs; of entries whose size is known, 2 + size, or -2 - size
    returns  how many decisions were predicted: 0 at the end; where all are, how many they were
    """
    basic, near, of_lines, of_places, _, _, offsets, counters, weights, scratch, kinds, index, inputs, lookup = state
    pad, nodes, block, total, done = basic[1, 0], basic[2, 0] + basic[2, 1], len(scratch), at.shape[1], 0
    start, stop, count = basic[3, 0], basic[3, 1], basic[1, 1]
    while True:
        # Learn the decisions; each halves what is left of its entry's range.
        for i in range(count):
            b, bit = scratch[i, 3], np.int64(bits[done + i])
            _learn(b, bit, index, inputs, counters, weights, lookup)
            scratch[b, 1 if bit else 2] = (scratch[b, 1] + scratch[b, 2]) // 2
        done, count = done + count, _still_open(count, scratch)
        # Where all sizes of the block are found, begin the next one.
        while count == 0 and start < total:
            _close_sizes(start, stop, at, sizes_out, known, basic, of_lines, of_places, scratch)
            start, stop = stop, min(total, stop + block)
            _open_sizes(start, stop, at, near, basic, known, of_lines, of_places, scratch, kinds)
            count = _still_open(stop - start, scratch)
        # Predict the next decision of every entry whose size is still open.
        for i in range(count):
            b = scratch[i, 3]
            line, place, side, low, high = (
                pad + at[0, start + b],
                at[1, start + b],
                scratch[b, 0],
                scratch[b, 1],
                scratch[b, 2],
            )
            node = (low + high) // 2 + (basic[2, 0] if side else 0)
            _index(b, kinds, offsets, nodes, node, 256, index, inputs)
            toward = 3 * _toward(known[line - near[LEFT], place], side, low, high)
            toward += _toward(known[line - near[UP], place], side, low, high)
            index[b, TOWARD] = (offsets[TOWARD] + toward) * nodes
            share = _predict(b, _start(node, counters, lookup), index, inputs, counters, weights, lookup) / ONE
            if len(wanted):
                bits[done + i] = wanted[start + b] >= (low + high) // 2
            out[done + i if len(wanted) else i] = share
        if not len(wanted) or count == 0:
            break
    basic[3, 0], basic[3, 1], basic[1, 1] = start, stop, count
    return done if len(wanted) else count
