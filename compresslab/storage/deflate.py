"""Raw deflate (RFC 1951) of which every machine writes the same bytes: zlib's depend on who built it, and for what.

Literals and matches are chosen by what they cost (dynamic programming), first in the fixed code, then in the codes that
suit what was chosen before; the smallest block is written. Whole numbers only. Any inflate reads it.
"""

import functools
import heapq

import numpy as np

from compresslab.storage.compiling import kept_on_disk

WINDOW, SHORTEST, LONGEST, END = 2**15, 3, 258, 256
TRIES, ROUNDS = 64, 2  # earlier places looked at for a match; choices after the first
_LENGTH_BITS = [*[0] * 8, *(bits for bits in range(1, 6) for _ in range(4)), 0]
_DISTANCE_BITS = [0, 0, *(bits for bits in range(14) for _ in range(2))]
_LENGTHS = [*(SHORTEST + sum(1 << bits for bits in _LENGTH_BITS[:code]) for code in range(28)), LONGEST]
_DISTANCES = [1 + sum(1 << bits for bits in _DISTANCE_BITS[:code]) for code in range(30)]
_LENGTH_CODE = np.searchsorted(_LENGTHS, np.arange(LONGEST + 1), side="right") - 1
_DISTANCE_CODE = np.searchsorted(_DISTANCES, np.arange(WINDOW + 1), side="right") - 1
_FIXED = [8] * 144 + [9] * 112 + [7] * 24 + [8] * 8, [5] * 30
_ORDER = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15]  # of the code of code lengths


@functools.lru_cache(maxsize=16)  # a model's header stays the same while it trains
def deflate(text, dictionary=b""):
    """`text` as raw deflate; what it repeats may stand in `dictionary`, which inflate is given too (both bytes)."""
    data = np.frombuffer(dictionary + text, dtype=np.uint8)
    steps = _chosen(data, len(dictionary), *_costs(*_FIXED))
    found = [_block("110", _FIXED, text, steps)]
    for _ in range(ROUNDS):
        codes = _suited(text, steps)
        steps = _chosen(data, len(dictionary), *_costs(*codes))
    codes = _suited(text, steps)
    found.append(_block("101" + _told(*codes), codes, text, steps))
    bits = np.frombuffer(min(found, key=len).encode(), dtype=np.uint8) - ord("0")
    return np.packbits(bits, bitorder="little").tobytes()


def _costs(symbols, distances):
    """Bits of each literal, of each length and of each distance; what has no code yet costs a long one."""
    symbols, distances = (np.array([bits or 12 for bits in one], dtype=np.int64) for one in (symbols, distances))
    of_lengths = symbols[257 + _LENGTH_CODE] + np.array(_LENGTH_BITS)[_LENGTH_CODE]
    return symbols[:END], of_lengths, distances[_DISTANCE_CODE] + np.array(_DISTANCE_BITS)[_DISTANCE_CODE]


@kept_on_disk
def _chosen(data, start, literals, lengths, distances):
    """(steps, 2): length, 1 for a literal, and distance of each step of the cheapest way from `start` to the end."""
    size = len(data)
    latest, earlier = np.full(2**15, -1, np.int64), np.full(size, -1, np.int64)
    cost, length, distance = (
        np.full(size + 1, 2**40, np.int64),
        np.zeros(size + 1, np.int64),
        np.zeros(size + 1, np.int64),
    )
    cost[start] = 0
    for at in range(size):
        if at >= start and cost[at] + literals[data[at]] < cost[at + 1]:
            cost[at + 1], length[at + 1], distance[at + 1] = cost[at] + literals[data[at]], 1, 0
        if at + SHORTEST > size:
            continue
        key = (data[at] << 10 ^ data[at + 1] << 5 ^ data[at + 2]) & (2**15 - 1)
        place, best, most = latest[key], SHORTEST - 1, min(LONGEST, size - at)
        for _ in range(TRIES if at >= start else 0):
            if place < 0 or at - place > WINDOW or best == most:
                break
            reach = 0
            while reach < most and data[place + reach] == data[at + reach]:
                reach += 1
            for one in range(best + 1, reach + 1):
                total = cost[at] + lengths[one] + distances[at - place]
                if total < cost[at + one]:
                    cost[at + one], length[at + one], distance[at + one] = total, one, at - place
            best, place = max(best, reach), earlier[place]
        earlier[at], latest[key] = latest[key], at
    steps, at, count = np.zeros((size - start, 2), np.int64), size, size - start
    while at > start:
        count -= 1
        steps[count, 0], steps[count, 1] = length[at], distance[at]
        at -= length[at]
    return steps[count:]


def _suited(text, steps):
    """Code lengths of symbols and of distances that suit how often the steps use them."""
    symbols, distances, at = [0] * 286, [0] * 30, 0
    for length, distance in steps.tolist():
        if distance:
            symbols[257 + _LENGTH_CODE[length]] += 1
            distances[_DISTANCE_CODE[distance]] += 1
        else:
            symbols[text[at]] += 1
        at += length
    symbols[END] = 1
    return _huffman(symbols, 15), _huffman(distances, 15)


def _huffman(counts, most):
    """Code length, `most` at most, of each symbol, 0 where it is not used; two symbols at least have one."""
    counts = list(counts)
    for symbol in range(2):
        if sum(map(bool, counts)) < 2:
            counts[symbol] = counts[symbol] or 1
    while True:
        heap = [(count, symbol, [symbol]) for symbol, count in enumerate(counts) if count]
        lengths = [0] * len(counts)
        heapq.heapify(heap)
        while len(heap) > 1:
            (few, first, some), (more, _, others) = heapq.heappop(heap), heapq.heappop(heap)
            for symbol in some + others:
                lengths[symbol] += 1
            heapq.heappush(heap, (few + more, first, some + others))
        if max(lengths) <= most:
            return lengths
        counts = [(count + 1) // 2 for count in counts]


def _told(symbols, distances):
    """How a block tells its code lengths: bits, in order."""
    symbols, distances = _cut(symbols, 257), _cut(distances, 1)
    runs = list(_runs(symbols + distances))
    code = _huffman(np.bincount([symbol for symbol, *_ in runs], minlength=19).tolist(), 7)
    ordered = _cut([code[symbol] for symbol in _ORDER], 4)
    words = _words(code)
    parts = [_low(len(symbols) - 257, 5), _low(len(distances) - 1, 5), _low(len(ordered) - 4, 4)]
    parts += [_low(bits, 3) for bits in ordered]
    return "".join(parts + [words[symbol] + _low(more, bits) for symbol, more, bits in runs])


def _cut(lengths, least):
    """Without the zeros at the end, but for the first ones."""
    used = max((index + 1 for index, length in enumerate(lengths) if length), default=0)
    return list(lengths[: max(least, used)])


def _runs(lengths):
    """(symbol, further bits' number, how many they are): 16 repeats what was, 17 and 18 are runs of zeros."""
    at = 0
    while at < len(lengths):
        count = next(
            (one for one in range(1, len(lengths) - at) if lengths[at + one] != lengths[at]), len(lengths) - at
        )
        if lengths[at] or count < 3:
            yield lengths[at], 0, 0
            count -= 1
            at += 1
        before = at > 0 and count and lengths[at] == lengths[at - 1] and lengths[at]
        while count >= 3:
            some = min(count, 6 if before else 138)
            yield (16, some - 3, 2) if before else (17, some - 3, 3) if some < 11 else (18, some - 11, 7)
            at, count = at + some, count - some


def _block(head, codes, text, steps):
    """The bits of a last block, in order."""
    symbols, distances = map(_words, codes)
    parts, at = [head], 0
    for length, distance in steps.tolist():
        if distance:
            one, other = _LENGTH_CODE[length], _DISTANCE_CODE[distance]
            parts += [symbols[257 + one], _low(length - _LENGTHS[one], _LENGTH_BITS[one])]
            parts += [distances[other], _low(distance - _DISTANCES[other], _DISTANCE_BITS[other])]
        else:
            parts.append(symbols[text[at]])
        at += length
    return "".join([*parts, symbols[END]])


def _words(lengths):
    """The canonical code's words of such lengths, the highest bit first."""
    words, word = [""] * len(lengths), 0
    for bits in range(1, max(lengths) + 1):
        word <<= 1
        for symbol in (symbol for symbol, length in enumerate(lengths) if length == bits):
            words[symbol] = f"{word:0{bits}b}"
            word += 1
    return words


def _low(number, bits):
    """A number in so many bits, the lowest first."""
    return f"{number:0{bits}b}"[::-1] if bits else ""
