"""The two payload sections: plain bytes, and the words of one range coder that all tensors share.

A histogram is two varints, the first symbol and how many follow it, then their frequencies, varints that sum to 2**14.
Entropy coding is constriction's range coder (Bamler 2022, arXiv:2201.01741) with 24-bit probabilities. Every
probability is a whole number over a power of two, so that each machine computes the same one.
"""

import constriction
import numpy as np

from compresslab.storage.container import CorruptFileError, read_varint, varint

TOTAL = 2**14  # frequencies of one alphabet sum to this
CHUNK = 2**18  # symbols coded in one call, so that temporary arrays stay small
_coder = constriction.stream.queue
_models = constriction.stream.model


class Writer:
    """Collects both sections: `uint`, `raw` and `frequencies` go to the bytes, `symbols` and `bits` to the coder."""

    def __init__(self):
        self.data = bytearray()
        self._encoder = _coder.RangeEncoder()

    def uint(self, number):
        self.data += varint(number)

    def raw(self, values):
        self.data += values

    def frequencies(self, table):
        """table  frequencies of the symbols 0, 1, …, summing to TOTAL; leading zeros are cheap"""
        low = int(np.flatnonzero(table)[0])
        self.uint(low)
        self.uint(len(table) - low - 1)
        for frequency in table[low:].tolist():
            self.uint(frequency)

    def symbols(self, values, table):
        """values  symbols, each of frequency 1 or more in `table`; an alphabet of one symbol takes nothing"""
        if np.count_nonzero(table) > 1:
            model = _models.Categorical(table / TOTAL, perfect=False)
            for start in range(0, len(values), CHUNK):
                self._encoder.encode(values[start : start + CHUNK].astype(np.int32), model)

    def bits(self, values, probabilities):
        """values  bool array;  probabilities  float64 array, each that of a True, strictly between 0 and 1"""
        self._encoder.encode(values.astype(np.int32), _models.Bernoulli(perfect=False), probabilities)

    def words(self):
        return self._encoder.get_compressed()


class Reader:
    """Hands out both sections of a file in the order they were written; asking for more raises CorruptFileError.

    budget  symbols that may still be decoded. A few bytes can claim to hold any number of almost certain symbols;
            a writer uses another form where they would be more than the length of the file pays for (`affordable`).
    """

    def __init__(self, data, words, length):
        self.budget = 2**22 + 1024 * length
        self._data, self._at = data, 0
        self._decoder = _coder.RangeDecoder(words.astype(np.uint32))
        self._unused = len(words) > 0

    def uint(self, limit):
        """A number from 0 to `limit`."""
        number, self._at = read_varint(self._data, self._at)
        if number > limit:
            raise CorruptFileError(f"a count is {number}, more than {limit}")
        return number

    def raw(self, count):
        end = self._at + count
        if end > len(self._data):
            raise CorruptFileError(f"tensor data ends early: {count} bytes wanted, {len(self._data) - self._at} left")
        start, self._at = self._at, end
        return self._data[start:end]

    def frequencies(self, alphabet):
        """The table that Writer.frequencies wrote, for symbols below `alphabet`."""
        low = self.uint(alphabet - 1)
        table = np.zeros(low + self.uint(alphabet - low - 1) + 1, dtype=np.int64)
        table[low:] = [self.uint(TOTAL) for _ in range(low, len(table))]
        if table.sum() != TOTAL:
            raise CorruptFileError(f"frequencies sum to {table.sum()}, not {TOTAL}")
        return table

    def symbols(self, count, table):
        """`count` symbols, in int arrays of at most CHUNK."""
        if np.count_nonzero(table) == 1:
            symbol = int(np.flatnonzero(table)[0])
            yield from (np.full(size, symbol, dtype=np.int32) for size in _sizes(count))
            return
        self._spend(count)
        model = _models.Categorical(table / TOTAL, perfect=False)
        for size in _sizes(count):
            yield self._decode(model, size)

    def bits(self, probabilities):
        """Bool array, one for each of `probabilities`."""
        self._spend(len(probabilities))
        return self._decode(_models.Bernoulli(perfect=False), probabilities).astype(bool)

    def check(self, count):
        """Refuse early that so many symbols will be read."""
        if count > self.budget:
            raise CorruptFileError("more symbols are claimed than a file of this length holds")

    def close(self):
        """Check that both sections were used to their ends."""
        if self._at != len(self._data):
            raise CorruptFileError(f"{len(self._data) - self._at} bytes are left over after the last tensor")
        if self._unused or not self._decoder.maybe_exhausted():
            raise CorruptFileError("entropy-coded words are left over after the last tensor")

    def _spend(self, count):
        self.check(count)
        self.budget -= count

    def _decode(self, model, argument):
        self._unused = False
        try:
            return self._decoder.decode(model, argument)
        except (AssertionError, ValueError) as error:
            raise CorruptFileError(f"entropy-coded words are damaged: {error}") from error


def affordable(symbols, bits):
    """Whether a reader's budget allows `symbols` coded in about `bits` (see Reader)."""
    return symbols <= 512 + 64 * bits


def frequencies(counts):
    """Whole frequencies that sum to TOTAL, in proportion to `counts`; 1 or more where a count is.

    counts   whole numbers, at least one above 0; no more than TOTAL of them above 0
    returns  int64 array as long as `counts` up to its last nonzero
    """
    counts = np.trim_zeros(np.asarray(counts, dtype=np.int64), "b")
    used = counts > 0
    table = np.where(used, 1 + counts * (TOTAL - np.count_nonzero(used)) // counts.sum(), 0)
    table[np.argmax(counts)] += TOTAL - table.sum()
    return table


def coded_bits(counts, table):
    """Bits that symbols with these counts take, the table included (an estimate, within a word of the truth)."""
    counts, table = np.asarray(counts)[: len(table)], np.asarray(table)
    used = table > 0
    stored = 8 * (2 + len(table) - int(np.argmax(used)) + np.count_nonzero(table > 127))
    return stored + float(counts[used] @ (np.log2(TOTAL) - np.log2(table[used])))


def _sizes(count):
    return [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
