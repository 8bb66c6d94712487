"""Canonical Huffman codes: what has to be kept of a code is the length of each symbol's word.

Huffman 1952, "A method for the construction of minimum-redundancy codes".
"""

import heapq
import itertools

import numpy as np


def lengths(counts):
    """Bits of each symbol's word.

    counts   (symbols,) whole numbers, how often each symbol occurs
    returns  (symbols,) int array: 0 for symbols that do not occur, 1 for a symbol that is alone
    """
    used = np.flatnonzero(counts)
    depth = np.zeros(len(counts), dtype=np.int64)
    if len(used) == 1:
        depth[used] = 1
        return depth
    order = itertools.count()  # decides between equal counts, so that symbols are never compared
    heap = [(int(counts[symbol]), next(order), [symbol]) for symbol in used]
    heapq.heapify(heap)
    while len(heap) > 1:
        (one, _, left), (other, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        depth[left + right] += 1
        heapq.heappush(heap, (one + other, next(order), left + right))
    return depth


def words(depth):
    """Symbol -> its word, a string of 0 and 1: shorter words first, then smaller symbols; counted upwards."""
    found, code, past = {}, -1, 0
    for length, symbol in sorted((int(length), symbol) for symbol, length in enumerate(depth) if length):
        code = (code + 1) << (length - past)
        found[symbol], past = format(code, f"0{length}b"), length
    return found


def encoded(symbols, depth):
    """The words of `symbols` in a row, a string of 0 and 1."""
    book = words(depth)
    return "".join([book[symbol] for symbol in symbols.tolist()])


def decoded(bits, count, depth):
    """The `count` symbols at the head of an iterator of "0" and "1", which is moved past them."""
    book, symbols, word = {word: symbol for symbol, word in words(depth).items()}, [], ""
    while len(symbols) < count:
        word += next(bits)
        if word in book:
            symbols.append(book[word])
            word = ""
    return np.array(symbols, dtype=np.int64)
