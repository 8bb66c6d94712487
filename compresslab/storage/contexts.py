"""Probabilities of bits from what is known already: adaptive counters, mixed; whole numbers only, compiled by numba.

A probability is a whole number over 2**16. Every context (a situation such as "both neighbours are kept") has a counter
that follows the bits seen there; the counters of a bit's contexts are averaged in the logistic domain,

    p = squash(sum of weight * stretch(p of a counter)),    stretch(p) = ln(p / (1 - p)), in steps of 1/256

and the weights learn online which contexts tell most. Coding goes block by block: predict all bits of a block, code
them, learn from them. `field_…` codes which entries of a matrix are kept, `ranks_…` which value each kept entry has;
what they are given is in `adaptive`. Whole numbers make the same bytes on every machine.

Mahoney 2005, "Adaptive weighing of context models for lossless data compression" (PAQ; the mixing is that of lpaq).
"""

import numba
import numpy as np

ONE = 2**16  # of probabilities; those of counters are whole numbers over 2**22
REACH = 2839  # most that stretch gives: ln(2**16) * 256
SLOWEST = 1000  # bits after which a counter's rate falls no more
RATES = ONE + 2 * REACH + 1  # where rates begin in LOOKUP, after stretch and squash
FIELD_CONTEXTS = (64, 48, 48, 144, 64, 48)  # number of each kind
FIELD_COUNTERS = sum(FIELD_CONTEXTS)
RANK_CONTEXTS = (1, 9, 9, 25, 9, 9, 15, 9)  # for each node of the tree of values; in a vector, one for each value too


def _lookup():
    """stretch of 0 to ONE - 1, squash of -REACH to REACH, rate (times ONE) of a counter that has seen 0 to SLOWEST bits."""
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


def _compiled(function):
    """Compiled by numba at its first call; kept on disk where there is a folder for that."""
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no folder that it may write to
        return numba.njit(nogil=True, error_model="numpy")(function)


@_compiled
def _mixed(b, inputs, weights, lookup):
    """Probability that the inputs of bit `b` of a block give with the weights as they are now."""
    total = 0
    for one in range(inputs.shape[1]):
        total += inputs[b, one] * weights[one]
    return lookup[ONE + REACH + min(REACH, max(-REACH, total >> 16))]


@_compiled
def _predict(b, start, index, inputs, counters, weights, lookup):
    """Probability of bit `b` of a block: fills its inputs from its counters; those behind them are there already."""
    for one in range(index.shape[1]):
        context = index[b, one]
        inputs[b, one] = lookup[counters[context, 0] >> 6] if counters[context, 1] else start
    return _mixed(b, inputs, weights, lookup)


@_compiled
def _learn(b, bit, index, inputs, counters, weights, lookup):
    """Move weights and counters towards bit `b` of a block, after those before it."""
    mixed = _mixed(b, inputs, weights, lookup)
    error = (bit << 16) - mixed
    for one in range(inputs.shape[1]):
        weights[one] += (inputs[b, one] * error + (1 << 16)) >> 17
    for one in range(index.shape[1]):
        context = index[b, one]
        seen = counters[context, 1]
        if seen == 0:  # a new context starts from what the others say
            counters[context, 0] = mixed << 6
            seen = 1
        counters[context, 0] += (((bit << 22) - counters[context, 0]) * lookup[RATES + seen]) >> 16
        counters[context, 1] = min(SLOWEST, seen + 1)


@_compiled
def _at(known, line, place, default):
    """An entry of the matrix; `default` outside it."""
    if line < 0 or place < 0 or place >= known.shape[1]:
        return default
    return known[line, place]


@_compiled
def _density(count, total, pseudo, counts):
    """Share of kept entries as a probability, with so many pseudo-entries of the matrix's own share."""
    share = (count * ONE + counts[0] * ONE // counts[1] * pseudo) // (total + pseudo)
    return min(ONE - 1, max(1, share))


@_compiled
def _line_density(line, lag, counts, of_lines):
    """Density that a line's own entries so far, and those of the lines near it, suggest."""
    kept, total = 8 * of_lines[line, 0], 8 * of_lines[line, 1]
    for near, worth in ((1, 4), (2, 2), (lag - 1, 2), (lag, 4), (lag + 1, 2), (2 * lag, 2)):
        if (near <= 2 or lag > 0) and 0 < near <= line:
            kept += worth * of_lines[line - near, 0]
            total += worth * of_lines[line - near, 1]
    return _density(kept, total, 128, counts)


@_compiled
def _step(stretched, base):
    """A density relative to the matrix's own, in 12 steps."""
    return min(11, max(0, (stretched - base + 576) // 96))


@_compiled
def _field_contexts(b, line, place, by_line, by_place, frame, known, prior, group, index):
    """Fill index[b] with the contexts of an entry; by_line, by_place  densities in steps."""
    lag = frame[0]
    left, up, corner, other = _at(known, line - 1, place, 0), 0, 0, 0
    left2, up2, near = _at(known, line - 2, place, 0), 0, 0
    if lag > 0:
        up, corner = _at(known, line - lag, place, 0), _at(known, line - lag - 1, place, 0)
        up2 = _at(known, line - 2 * lag, place, 0)
        near = _at(known, line - lag - 2, place, 0)
        if lag > 1:
            other = _at(known, line - lag + 1, place, 0)
        if lag > 2:
            near += _at(known, line - lag + 2, place, 0)
    near = min(7, near + 2 * left + 2 * up + corner + other + left2 + up2)
    index[b, 0] = left | up << 1 | corner << 2 | other << 3 | left2 << 4 | up2 << 5
    index[b, 1] = 64 + near * 6 + by_place // 2
    index[b, 2] = 112 + near * 6 + by_line // 2
    index[b, 3] = 160 + by_place * 12 + by_line
    index[b, 4] = 304 + min(7, group) * 8 + by_place * 2 // 3
    index[b, 5] = 368 + prior * 3 + by_place // 4


@_compiled
def _cut(pool, at, rows, columns):
    """A part of the pool as a matrix, and where the next part begins."""
    return pool[at : at + rows * columns].reshape(rows, columns), at + rows * columns


@_compiled
def _field_parts(pool, sizes):
    lines, places, some_lines, some_places, block, used = sizes
    frame, at = _cut(pool, 0, 2, 2)
    of_lines, at = _cut(pool, at, lines, 3)
    of_places, at = _cut(pool, at, places, 5)
    live_lines, at = _cut(pool, at, 1, some_lines)
    live_places, at = _cut(pool, at, 1, some_places)
    counters, at = _cut(pool, at, FIELD_COUNTERS, 2)
    weights, at = _cut(pool, at, 1, used + 1)
    index, at = _cut(pool, at, block, used)
    inputs, at = _cut(pool, at, block, used + 1)
    return frame[0], frame[1], of_lines, of_places, live_lines[0], live_places[0], (
        counters, weights[0], index, inputs
    )  # fmt: skip


@_compiled
def field_block(first, start, stop, bits, known, pool, sizes, lookup, out):
    """Learn the bits of the entries first … start - 1, then put the probabilities of start … stop - 1 into `out`.

    bits   of the former, int32;  out  float64, at least as long as a block
    known  uint8, (lines, places): the entries so far;  pool, sizes  as from adaptive.Field
    """
    frame, counts, of_lines, of_places, lines, places, mixer = _field_parts(pool, sizes)
    counters, weights, index, inputs = mixer
    used, width = index.shape[1], len(places)
    for entry in range(first, start):
        line, place, bit, b = lines[entry // width], places[entry % width], np.int64(bits[entry - first]), entry - first
        _learn(b, bit, index, inputs, counters, weights, lookup)
        known[line, place] = bit
        counts[0] += bit
        counts[1] += 1
        of_lines[line, 0] += bit
        of_lines[line, 1] += 1
        of_places[place, 0] += bit
        of_places[place, 1] += 1
        if of_places[place, 3] != line // frame[1]:
            of_places[place, 2], of_places[place, 3] = 0, line // frame[1]
        of_places[place, 2] += bit
    base, before, by_line = lookup[_density(0, 0, 1, counts)], -1, 0
    for entry in range(start, stop):
        line, place, b = lines[entry // width], places[entry % width], entry - start
        if line != before:
            by_line, before = _step(lookup[_line_density(line, frame[0], counts, of_lines)], base), line
        density = lookup[_density(of_places[place, 0], of_places[place, 1], 12, counts)]
        group = of_places[place, 2] if of_places[place, 3] == line // frame[1] else 0
        prior = of_lines[line, 2] + of_places[place, 4]
        _field_contexts(b, line, place, by_line, _step(density, base), frame, known, prior, group, index)
        inputs[b, used] = density
        out[b] = _predict(b, density, index, inputs, counters, weights, lookup) / ONE


@_compiled
def field_all(bits, known, pool, sizes, lookup, out):
    """All probabilities, block by block, of entries whose bits are known: what a writer needs."""
    first, block = 0, sizes[4]
    for start in range(0, len(bits), block):
        stop = min(len(bits), start + block)
        field_block(first, start, stop, bits[first:start], known, pool, sizes, lookup, out[start:stop])
        first = start


@_compiled
def _tenths(total, count, default):
    """Mean of whole numbers from -1 to 1 in five steps."""
    return min(4, max(0, (4 * total + 4 * count) // (2 * count))) if count else default


@_compiled
def _size_step(total, count, totals):
    """Mean magnitude beside that of the whole matrix, in nine steps; 4 is like it."""
    mean = max(1, totals[0] * 16 // max(1, totals[1]))
    return min(8, total * 64 // (count * mean)) if count else 4


@_compiled
def _around(line, place, lag, known):
    """Classes of the four neighbours that come before an entry: left, up, and the two beside up."""
    left, up, corner, other = _at(known, line - 1, place, 0), 0, 0, 0
    if lag > 0:
        up, corner = _at(known, line - lag, place, 0), _at(known, line - lag - 1, place, 0)
        if lag > 1:
            other = _at(known, line - lag + 1, place, 0)
    return np.int64(left), np.int64(up), np.int64(corner), np.int64(other)


@_compiled
def _sign(number):
    return (number > 0) - (number < 0)


@_compiled
def _rank_contexts(b, line, place, basic, known, ranks, of_lines, of_places, kinds):
    """Fill kinds[b]: which context of each kind an entry is in."""
    totals = basic[2]
    left, up, corner, other = _around(line, place, basic[0, 0], known)
    signs = _sign(left) + _sign(up) + _sign(corner) + _sign(other)
    near = abs(left) + abs(up)
    kinds[b, 0] = 0
    kinds[b, 1] = 3 * _sign(left) + _sign(up) + 4
    kinds[b, 2] = 3 * _sign(corner) + _sign(other) + 4
    kinds[b, 3] = 5 * _tenths(of_places[place, 0], of_places[place, 2], 2)
    kinds[b, 3] += _tenths(of_lines[line, 0], of_lines[line, 2], 2)
    kinds[b, 4] = _size_step(of_places[place, 1], of_places[place, 2], totals)
    kinds[b, 5] = _size_step(of_lines[line, 1], of_lines[line, 2], totals)
    kinds[b, 6] = 5 * ((left != 0) + (up != 0)) + min(4, near)
    kinds[b, 7] = signs + 4
    if kinds.shape[1] > 8:
        kinds[b, 8] = _at(ranks, line - 1, place, 0)


@_compiled
def _node(b, state, negatives, values):
    """Which decision of the tree of values an entry is at: 0 for the sign, then where the range of sizes is halved."""
    side, low, high = state[b, 0], state[b, 1], state[b, 2]
    if side < 0:
        return 0
    return (low + high) // 2 + (values - negatives - 1 if side == 1 else 0)


@_compiled
def _decide(b, bit, state, negatives, values):
    """Go down the tree of values: side (-1 not known, 0 from zero up, 1 below zero), then sizes low … high - 1."""
    if state[b, 0] < 0:
        state[b, 0], state[b, 1], state[b, 2] = 1 - bit, 0, values - negatives if bit else negatives
    else:
        state[b, 1 if bit else 2] = (state[b, 1] + state[b, 2]) // 2


@_compiled
def _rank_parts(pool, sizes):
    lines, places, block, kinds, values, contexts = sizes
    basic, at = _cut(pool, 0, 3, 2)
    of_lines, at = _cut(pool, at, lines, 3)
    of_places, at = _cut(pool, at, places, 3)
    offsets, at = _cut(pool, at, 1, kinds)
    counters, at = _cut(pool, at, contexts * values, 2)
    weights, at = _cut(pool, at, 2, kinds + 1)
    state, at = _cut(pool, at, block, 4)
    of_kinds, at = _cut(pool, at, block, kinds)
    index, at = _cut(pool, at, block, kinds)
    inputs, at = _cut(pool, at, block, kinds + 1)
    return basic, (of_lines, of_places), (state, of_kinds, offsets[0]), (counters, weights, index, inputs)


@_compiled
def _predict_ranks(count, palette, tree, mixer, lookup, out):
    """Put the probabilities of the next decisions of the `count` active entries of a block into `out`."""
    state, kinds, offsets = tree
    counters, weights, index, inputs = mixer
    negatives, values = palette
    used = index.shape[1]
    for one in range(count):
        b = state[one, 3]
        node = _node(b, state, negatives, values)
        start = counters[node, 0] >> 6 if counters[node, 1] else ONE // 2
        for kind in range(used):
            index[b, kind] = (offsets[kind] + kinds[b, kind]) * values + node
        inputs[b, used] = 256
        own = weights[min(1, node)]
        out[one] = _predict(b, lookup[start], index, inputs, counters, own, lookup) / ONE


@_compiled
def ranks_level(count, bits, pool, sizes, lookup, out):
    """Learn the `count` decisions just coded of a block, then predict the next; returns how many those are."""
    basic, _, tree, mixer = _rank_parts(pool, sizes)
    state, (negatives, values), left = tree[0], (basic[1, 0], basic[1, 1]), 0
    counters, weights, index, inputs = mixer
    for one in range(count):
        b, bit = state[one, 3], np.int64(bits[one])
        own = weights[min(1, _node(b, state, negatives, values))]
        _learn(b, bit, index, inputs, counters, own, lookup)
        _decide(b, bit, state, negatives, values)
    for one in range(count):
        b = state[one, 3]
        if state[b, 2] - state[b, 1] > 1:
            state[left, 3] = b
            left += 1
    _predict_ranks(left, (negatives, values), tree, mixer, lookup, out)
    return left


@_compiled
def ranks_open(first, start, stop, at, found, known, ranks, pool, sizes, lookup, out):
    """Note the values of the entries first … start - 1, then begin with those of start … stop - 1.

    at       int32, (2, entries): line and place of each kept entry;  found  int32: their ranks, filled in
    known    int8, (lines, places): sign and size class of the values so far
    ranks    int16, (lines, places): one more than their ranks; only of a vector, else empty
    pool, sizes  as from adaptive.Ranks
    returns  how many decisions are predicted in `out` (float64)
    """
    basic, (of_lines, of_places), tree, mixer = _rank_parts(pool, sizes)
    state, (negatives, values) = tree[0], (basic[1, 0], basic[1, 1])
    for entry in range(first, start):
        line, place, side, size = at[0, entry], at[1, entry], state[entry - first, 0], state[entry - first, 1]
        found[entry] = negatives - 1 - size if side == 1 else negatives + size
        sign, magnitude = (-1, 1 + 4 * size // negatives) if side == 1 else (1, 1 + 4 * size // (values - negatives))
        known[line, place] = sign * magnitude
        if len(ranks):
            ranks[line, place] = found[entry] + 1
        basic[2, 0] += magnitude
        basic[2, 1] += 1
        for sums, where in ((of_lines, line), (of_places, place)):
            sums[where, 0] += sign
            sums[where, 1] += magnitude
            sums[where, 2] += 1
    for entry in range(start, stop):
        b = entry - start
        state[b, 0] = -1 if 0 < negatives < values else int(negatives > 0)
        state[b, 1], state[b, 2], state[b, 3] = 0, values, b
        _rank_contexts(b, at[0, entry], at[1, entry], basic, known, ranks, of_lines, of_places, tree[1])
    count = stop - start if values > 1 else 0
    _predict_ranks(count, (negatives, values), tree, mixer, lookup, out)
    return count


@_compiled
def ranks_all(wanted, at, found, known, ranks, pool, sizes, lookup, bits, out):
    """All decisions and their probabilities, block by block, of known ranks; returns how many: for a writer."""
    basic, _, tree, _ = _rank_parts(pool, sizes)
    negatives, state, block, first, done = basic[1, 0], tree[0], sizes[2], 0, 0
    for start in range(0, len(wanted), block):
        stop = min(len(wanted), start + block)
        count = ranks_open(first, start, stop, at, found, known, ranks, pool, sizes, lookup, out[done:])
        while count:
            for one in range(count):
                b = state[one, 3]
                rank, side = wanted[start + b], state[b, 0]
                own = negatives - 1 - rank if side == 1 else rank - negatives
                bits[done + one] = rank >= negatives if side < 0 else own >= (state[b, 1] + state[b, 2]) // 2
            done += count
            count = ranks_level(count, bits[done - count :], pool, sizes, lookup, out[done:])
        first = start
    return done
