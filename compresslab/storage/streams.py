"""The two payload sections: plain bytes, and the output of one range coder that all tensors share.

A histogram is two varints, the first symbol and how many follow it, then their frequencies, varints that sum to 2**14.
Entropy coding is constriction's range coder (Bamler 2022, arXiv:2201.01741) with 24-bit probabilities. Every
probability is a whole number over a power of two, so that each machine computes the same one.

Single whole numbers are varints among the bytes in versions 1 and 2. From version 3 on the range coder has them: one
more than the number in Elias' gamma code (as many ones as it has bits after its first, a zero, those bits), each bit of
probability 1/2; or, where all that is known is that it lies below a limit, its digits to base 2**16, the least
significant first, each uniform. What the coder makes is cut to the fewest bytes that decode alike: words are
big-endian there, and zeros follow the last byte.
"""

import contextlib
import math

import constriction
import numpy as np

from compresslab.storage import container
from compresslab.storage.container import CorruptFileError, read_varint, varint

TOTAL = 2**14  # frequencies of one alphabet sum to this
CHUNK = 2**18  # symbols coded in one call, so that temporary arrays stay small
CODED = 3  # first version that has small numbers in the range coder
CREDIT, PAYS = 2**21, 100  # less than a reader allows: symbols for nothing, and for a bit
AT_ONCE, STEADY = 2**25, 8  # the same of a large file, where PAYS is only for the first ones
HELD = 2  # bytes for each entry of a tensor of which not all are kept, while it is read
LONGEST = 64  # bits that a number in gamma code may have after its first
_coder = constriction.stream.queue
_models = constriction.stream.model
_EVEN = _models.Bernoulli(0.5, perfect=False)
_DIGIT = 2**16
_BITS = _models.Categorical(perfect=False)  # gives the bytes of Bernoulli(perfect=False) in a third of the time


class Writer:
    """Collects both sections: `raw` and `frequencies` go to the bytes, `symbols`, `bits` and `number` to the coder.

    version  of the format: where `uint` goes
    counts   weights kept in each unit of the last matrix that was written, for `adaptive.priors`
    credit   symbols that contexts may still cost a reader for nothing; bits that they write add to it (see `owe`)
    spent    kind of content -> bits so far; `enter(kind)` says what is written next
    """

    def __init__(self, version=CODED):
        self.data, self.version, self.counts, self.credit = bytearray(), version, None, CREDIT
        self.spent, self._kind, self._seen, self._as_one = {}, "header", 0.0, False
        self._left = AT_ONCE
        self._encoder = _coder.RangeEncoder()

    def enter(self, kind):
        """Note that what follows is of that kind; returns the one before."""
        if self._as_one:
            return self._kind
        before, now = self._kind, self.bits_so_far()
        self.spent[before] = self.spent.get(before, 0.0) + now - self._seen
        self._kind, self._seen = kind, now
        return before

    def owe(self, symbols, bits):
        """Note that symbols were coded by contexts, in so many bits."""
        self.credit = min(CREDIT, self.credit + PAYS * bits - symbols)
        self._left += STEADY * bits - symbols
        if self._left < 0:  # no more contexts: a reader without max_bytes would refuse the file
            self.credit = -float("inf")

    def spending(self):
        """Bits by kind since this was asked before; what follows is header."""
        self.enter("header")
        found, self.spent = self.spent, {}
        return found

    @contextlib.contextmanager
    def all_as(self, kind):
        """While it lasts, everything is of that kind."""
        before, self._as_one = (self._kind if self._as_one else self.enter(kind)), True
        yield
        self._as_one = False
        self.enter(before)

    def uint(self, number):
        if self.version < CODED:
            self.data += varint(number)
            return
        bits = [int(one) for one in f"{number + 1:b}"[1:]]
        self._encoder.encode(np.array([1] * len(bits) + [0] + bits, dtype=np.int32), _EVEN)

    def number(self, number, limit):
        """A whole number from 0 to limit - 1, all alike."""
        while limit > 1:
            if min(limit, _DIGIT) > 1:
                self._encoder.encode(np.array([number % _DIGIT], np.int32), _models.Uniform(min(limit, _DIGIT)))
            number, limit = number // _DIGIT, -(-limit // _DIGIT)

    def raw(self, values):
        self.data += values

    def frequencies(self, table):
        """table  frequencies of the symbols 0, 1, …, summing to TOTAL; leading zeros are cheap"""
        low = int(np.flatnonzero(table)[0])
        for number in (low, len(table) - low - 1, *table[low:].tolist()):
            self.data += varint(number)

    def symbols(self, values, table):
        """values  symbols, each of frequency 1 or more in `table`; an alphabet of one symbol takes nothing"""
        if np.count_nonzero(table) > 1:
            model = _models.Categorical(table / TOTAL, perfect=False)
            for start in range(0, len(values), CHUNK):
                self._encoder.encode(values[start : start + CHUNK].astype(np.int32), model)

    def bits(self, values, probabilities):
        """values  bool or int32 array;  probabilities  float64 array, each that of a True, strictly between 0 and 1"""
        self._encoder.encode(values.astype(np.int32, copy=False), _BITS, _pairs(probabilities))

    def words(self):
        return self._encoder.get_compressed()

    def coded(self):
        """What the coder has made, as the fewest bytes that decode alike."""
        blob = self.words().astype(">u4").tobytes()
        count, (low, width) = self._encoder.pos()
        head, tail = blob[: 4 * count], blob[4 * count :]
        if len(tail) not in (4, 8) or int.from_bytes(tail.ljust(8, b"\0"), "big") < low:  # a carry went into the head
            return blob
        for size in range(9):
            unit = 1 << 64 - 8 * size
            shortest = -(-low // unit) * unit
            if shortest < min(low + width, 2**64):
                return head + shortest.to_bytes(8, "big")[:size]
        return blob

    def bits_so_far(self):
        """Bits written so far, the coder's to a fraction."""
        count, (_, width) = self._encoder.pos()
        return 8.0 * len(self.data) + 32 * count + 64 - math.log2(width)


class Allowance:
    """What reading a file may still cost; spending more raises CorruptFileError.

    symbols  decoding steps, about 10 ns each, or what takes as long. A few bytes can claim to hold any number of almost
             certain symbols; a writer uses another form where they would be more than the length of the file pays for
             (`affordable`, Writer.credit)
    memory   bytes beside the tensors themselves
    """

    def __init__(self, length, max_bytes=None):
        """length  of the file, in bytes;  max_bytes  as of file.load: who gives it trusts the file with more time"""
        beyond = container.beyond(length)
        most = 2**25 + 1024 * length
        self.symbols = min(most, 5 * 2**24 + 80 * beyond)
        self.memory = 56 * 2**20 + 16 * beyond
        if max_bytes is not None:
            self.memory, self.symbols = max(self.memory, max_bytes), most + 8 * max_bytes

    def spend(self, symbols):
        """Take the price of so many symbols."""
        self.check(symbols)
        self.symbols -= symbols

    def check(self, symbols):
        """Refuse early that so many symbols will be read."""
        if symbols > self.symbols:
            raise CorruptFileError(
                "more symbols are claimed than a file of this length holds; give max_bytes if you trust it"
            )

    def keep(self, size):
        """Take so many bytes of memory, for good."""
        self.hold(size)
        self.memory -= size

    def hold(self, size):
        """Refuse what would take so many bytes of memory for a while."""
        if size > self.memory:
            raise CorruptFileError(
                f"{size} bytes are wanted beside the tensors, {max(0, self.memory)} are left; give max_bytes if you "
                "trust the file"
            )


class Reader:
    """Hands out both sections of a file in the order they were written; asking for more raises CorruptFileError.

    allowance  Allowance, that of a file of `length` bytes if not given. What is coded by contexts, which takes longer,
               counts as several symbols
    version, counts  as of Writer
    """

    def __init__(self, data, words, length, version=CODED, allowance=None):
        self.allowance = allowance or Allowance(length)
        self.version, self.counts = version, None
        self._data, self._at = data, 0
        self._decoder = _coder.RangeDecoder(words.astype(np.uint32))
        self._unused = len(words) > 0

    def uint(self, limit):
        """A number from 0 to `limit`."""
        if self.version < CODED:
            number, self._at = read_varint(self._data, self._at)
        else:
            number = self._gamma()
        if number > limit:
            raise CorruptFileError(f"a count is {number}, more than {limit}")
        return number

    def number(self, limit):
        """A number from 0 to limit - 1, all alike."""
        found, worth, left = 0, 1, limit
        while left > 1:
            found += worth * int(self._decode(_models.Uniform(min(left, _DIGIT)), 1)[0])
            worth, left = worth * _DIGIT, -(-left // _DIGIT)
        if found >= max(1, limit):
            raise CorruptFileError(f"a number is {found}, not below {limit}")
        return found

    def raw(self, count):
        end = self._at + count
        if end > len(self._data):
            raise CorruptFileError(f"tensor data ends early: {count} bytes wanted, {len(self._data) - self._at} left")
        start, self._at = self._at, end
        return self._data[start:end]

    def frequencies(self, alphabet):
        """The table that Writer.frequencies wrote, for symbols below `alphabet`."""
        low = self._varint(alphabet - 1)
        table = np.zeros(low + self._varint(alphabet - low - 1) + 1, dtype=np.int64)
        table[low:] = [self._varint(TOTAL) for _ in range(low, len(table))]
        if table.sum() != TOTAL:
            raise CorruptFileError(f"frequencies sum to {table.sum()}, not {TOTAL}")
        return table

    def symbols(self, count, table):
        """`count` symbols, in int arrays of at most CHUNK."""
        if np.count_nonzero(table) == 1:
            symbol = int(np.flatnonzero(table)[0])
            yield from (np.full(size, symbol, dtype=np.int32) for size in _sizes(count))
            return
        self.spend(count)
        model = _models.Categorical(table / TOTAL, perfect=False)
        for size in _sizes(count):
            yield self._decode(model, size)

    def bits(self, probabilities):
        """Bool array, one for each of `probabilities`."""
        self.spend(len(probabilities))
        return self._decode(_BITS, _pairs(probabilities)).astype(bool)

    def block(self, probabilities):
        """int32 array of bits, as `bits`, of symbols that are paid for: the quickest way."""
        return self._decoder.decode(_BITS, _pairs(probabilities))

    def spend(self, count):
        """Take the price of so many symbols off the budget."""
        self.allowance.spend(count)
        self._unused = False

    def check(self, count):
        """Refuse early that so many symbols will be read."""
        self.allowance.check(count)

    def hold(self, count):
        """Pay for a tensor of so many entries, not all of them kept: finding which takes time, and memory beside it."""
        self.allowance.spend(count // 4)
        self.allowance.hold(HELD * count)

    def close(self):
        """Check that both sections were used to their ends; the coder's, which version 3 cuts, only roughly."""
        if self._at != len(self._data):
            raise CorruptFileError(f"{len(self._data) - self._at} bytes are left over after the last tensor")
        if self._unused or (self.version < CODED and not self._decoder.maybe_exhausted()):
            raise CorruptFileError("entropy-coded words are left over after the last tensor")

    def _varint(self, limit):
        number, self._at = read_varint(self._data, self._at)
        if number > limit:
            raise CorruptFileError(f"a frequency is {number}, more than {limit}")
        return number

    def _gamma(self):
        size = 0
        while self._decode(_EVEN, 1)[0]:
            size += 1
            if size > LONGEST:
                raise CorruptFileError(f"a number has more than {LONGEST} bits")
        digits = self._decode(_EVEN, size) if size else ()
        return int("1" + "".join(map(str, digits)), 2) - 1

    def _decode(self, model, argument):
        self._unused = False
        try:
            return self._decoder.decode(model, argument)
        except (AssertionError, ValueError) as error:
            raise CorruptFileError(f"entropy-coded words are damaged: {error}") from error


def _pairs(probabilities):
    """Probabilities of 0 and of 1, (bits, 2), from those of 1; exact, for they are whole numbers over 2**16."""
    pairs = np.empty((len(probabilities), 2))
    pairs[:, 1] = probabilities
    np.subtract(1.0, probabilities, out=pairs[:, 0])
    return pairs


def affordable(symbols, bits):
    """Whether a reader's budget allows `symbols` coded in about `bits` (see Reader)."""
    return symbols <= 512 + 64 * bits


def frequencies(counts):
    """Whole frequencies that sum to TOTAL, in proportion to `counts`; 1 or more where a count is.

    counts   whole numbers, at least one above 0; no more than TOTAL of them above 0
    returns  int64 array as long as `counts` up to its last nonzero
    """
    counts = np.asarray(counts, dtype=np.int64)
    counts = counts[: np.flatnonzero(counts)[-1] + 1]
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
