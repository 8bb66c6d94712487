"""The payload of a file: plain bytes, and the output of one range coder that all tensors share.

    symbol      a whole number that is coded with a probability of its own
    trial       a Writer of one form of something; the shortest is appended to the file's Writer
    allowance   the time and memory that reading a file may still take

A Writer and a Reader have the same methods, so that one function can describe a form both ways: what it codes is given
to a Writer and returned; a Reader is given None, and returns what it reads.

Entropy coding is constriction's range coder (Bamler 2022, arXiv:2201.01741) with 24-bit probabilities. Every
probability is a whole number over a power of two, so that each machine computes the same one.

A single whole number is written in Elias' gamma code, each bit of probability 1/2: one more than the number, in
binary, behind as many ones as it has digits after its first, and a zero. Where a number is only known to lie below a
limit, its digits to base 2**16 are written, the least significant first, each as likely as any other.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator

import constriction
import numpy as np

from compresslab.storage.container import CorruptFileError, read_varint, write_varint

TOTAL = 2**14  # frequencies of one alphabet sum to this
CHUNK = 2**18  # symbols coded in one call, so that temporary arrays stay small
LONGEST = 64  # binary digits that a number in gamma code may have after its first
DIGIT = 2**16
# What decoding may cost, in symbols of about 10 ns. A few bytes can claim to hold any number of almost certain symbols.
FREE_TO_READ, PER_BYTE = 3 * 2**24, 48
FREE_TO_WRITE, PER_BIT = 2**25, 5  # a writer stays below, for reading costs more than symbols
CONTEXT_ENTRIES = 2**22  # entries of a file that are worth the time of coding them by contexts
ONE = 2**16  # probabilities of bits are whole numbers over this
_LOG2 = np.log2(np.arange(1, ONE) / ONE)
_coder = constriction.stream.queue
_models = constriction.stream.model
_EVEN = _models.Bernoulli(0.5, perfect=False)
_BITS = _models.Categorical(perfect=False)  # the bytes of Bernoulli(perfect=False) in a third of the time


class Allowance:
    """Time and memory that reading a file may still take; taking more raises CorruptFileError.

    symbols  steps of decoding, about 10 ns each, or what takes as long
    memory   bytes beside the tensors themselves
    """

    def __init__(self, length: int, max_bytes: int | None = None):
        """length  of the file, in bytes;  max_bytes  as of `load`: who gives it trusts the file with more"""
        self.symbols = FREE_TO_READ + PER_BYTE * length
        self.memory = 56 * max(2**20, length)
        if max_bytes is not None:
            self.memory, self.symbols = max(self.memory, max_bytes), self.symbols + 8 * max_bytes

    def spend(self, symbols: int) -> None:
        """Take the time of so many symbols."""
        if symbols > self.symbols:
            raise CorruptFileError(
                "more symbols are claimed than a file of this length holds; give max_bytes if you trust it"
            )
        self.symbols -= symbols

    def take(self, size: int) -> None:
        """Take so many bytes of memory."""
        self.check(size)
        self.memory -= size

    def check(self, size: int) -> None:
        """Refuse what would take so many bytes of memory for a while."""
        if size > self.memory:
            raise CorruptFileError(
                f"{size} bytes are wanted beside the tensors, {max(0, self.memory)} are left; give max_bytes if you "
                "trust the file"
            )


class Writer:
    """Collects both parts: `raw` and `frequencies` go to the bytes, numbers, `symbols` and `bits` to the coder.

    size        bits written so far
    row_counts  weights kept in each row of the last matrix that was written, or None (see `contexts.find_priors`)
    spent       kind of content -> bits; None for what is of none
    """

    def __init__(self, parent: "Writer | None" = None):
        """parent  of a trial: the Writer that it may be appended to"""
        self.size, self.spent, self.context_entries = 0.0, {}, 0
        self.row_counts, self._kind = (parent.row_counts, parent._kind) if parent else (None, None)
        self._parent, self._symbols, self._data, self._coded = parent, 0, [], []

    @contextlib.contextmanager
    def counting(self, kind: str) -> Iterator[None]:
        """Count what is written meanwhile as of this kind; inside another kind, that one counts."""
        before, self._kind = self._kind, self._kind or kind
        yield
        self._kind = before

    def append(self, trial: "Writer") -> None:
        """Write what was written to a trial."""
        self._data += trial._data
        self._coded += trial._coded
        self.charge(trial._symbols)
        self.size, self.context_entries = self.size + trial.size, self.context_entries + trial.context_entries
        for kind, bits in trial.spent.items():
            self.spent[kind or self._kind] = self.spent.get(kind or self._kind, 0.0) + bits

    def affords(self, symbols: int = 0) -> bool:
        """Tell whether a reader's allowance has room for all that was charged, and so many symbols."""
        size, writer = 0.0, self
        while writer is not None:
            symbols, size, writer = symbols + writer._symbols, size + writer.size, writer._parent
        return symbols <= FREE_TO_WRITE + PER_BIT * size

    def affords_contexts(self, entries: int) -> bool:
        """Tell whether so many entries may still be coded by contexts."""
        writer = self
        while writer is not None:
            entries, writer = entries + writer.context_entries, writer._parent
        return entries <= CONTEXT_ENTRIES

    def charge(self, symbols: int) -> None:
        """Note that reading takes the time of so many symbols."""
        self._symbols += symbols

    def uint(self, number: int, limit: int | None = None) -> int:
        """Write a whole number, 0 or more, small ones in fewer bits."""
        digits = [int(digit) for digit in f"{number + 1:b}"[1:]]
        self._encode(2 * len(digits) + 1, np.array([1] * len(digits) + [0] + digits), _EVEN)
        return number

    def number(self, number: int, limit: int) -> int:
        """Write a whole number from 0 to limit - 1, all of them as likely."""
        rest = number
        while limit > 1:
            digit = min(limit, DIGIT)
            self._encode(math.log2(digit), np.array([rest % DIGIT]), _models.Uniform(digit))
            rest, limit = rest // DIGIT, -(-limit // DIGIT)
        return number

    def raw(self, content: bytes, count: int | None = None) -> bytes:
        """Write bytes as they are."""
        self._data.append(content)
        self._count(8 * len(content))
        return content

    def frequencies(self, table: np.ndarray, alphabet: int | None = None) -> np.ndarray:
        """Write a histogram: the first symbol that occurs, how many follow, their frequencies (sum TOTAL)."""
        first = int(np.flatnonzero(table)[0])
        numbers = first, len(table) - first - 1, *table[first:].tolist()
        self.raw(b"".join(write_varint(number) for number in numbers))
        return table

    def symbols(self, symbols: np.ndarray, count: int, table: np.ndarray | int) -> Iterable[np.ndarray]:
        """Write symbols by a histogram, or of so many that are all as likely; a single one takes nothing."""
        if isinstance(table, int):
            self.charge(count)
            self._encode(count * math.log2(table), symbols, _make_model(table))
        elif np.count_nonzero(table) > 1:
            self.charge(count)
            used, counts = np.flatnonzero(table), count_symbols(symbols, len(table))
            bits = float(counts[used] @ (np.log2(TOTAL) - np.log2(table[used])))
            self._encode(bits, symbols, _make_model(table))
        return [symbols]

    def bits(self, bits: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Write bits (bool), each with its probability of being 1 (float64, strictly between 0 and 1)."""
        probabilities = (probabilities * ONE).astype(np.uint16)
        shares = np.where(bits, probabilities, -probabilities)  # 2**16 less the probability, in 16 bits
        self._encode(-float(_LOG2[shares - 1].sum()), bits, _BITS, probabilities)
        return bits

    def data(self) -> bytes:
        """Return the bytes section."""
        return b"".join(self._data)

    def coded(self) -> bytes:
        """Return the output of the coder, as the fewest bytes that decode alike: zeros follow the last byte."""
        encoder = self._encode_all()
        blob, (count, (low, width)) = encoder.get_compressed().astype(">u4").tobytes(), encoder.pos()
        head, tail = blob[: 4 * count], blob[4 * count :]
        if len(tail) not in (4, 8) or int.from_bytes(tail.ljust(8, b"\0"), "big") < low:  # a carry went into the head
            return blob
        for size in range(9):
            unit = 1 << 64 - 8 * size
            shortest = -(-low // unit) * unit
            if shortest < min(low + width, 2**64):
                return head + shortest.to_bytes(8, "big")[:size]
        return blob

    def _encode_all(self):
        encoder = _coder.RangeEncoder()
        for symbols, model, *probabilities in self._coded:
            for start in range(0, len(symbols), CHUNK):
                part = slice(start, start + CHUNK)
                pairs = [_pair(of_bits[part] / ONE) for of_bits in probabilities]
                encoder.encode(symbols[part].astype(np.int32), model, *pairs)
        return encoder

    def _encode(self, bits, *arguments):
        self._coded.append(arguments)
        self._count(bits)

    def _count(self, bits):
        self.size += bits
        self.spent[self._kind] = self.spent.get(self._kind, 0.0) + bits


class Reader:
    """Hands out both parts of a payload in the order they were written; asking for more raises CorruptFileError.

    data, coded  the bytes, and the output of the coder;  allowance  Allowance;  row_counts  as of Writer
    Its methods are those of Writer; what they are given to code is ignored.
    """

    def __init__(self, data: bytes, coded: bytes, allowance: Allowance):
        self.allowance, self.row_counts = allowance, None
        self._data, self._at, self._unused = data, 0, len(coded) > 0
        words = np.frombuffer(coded + bytes(-len(coded) % 4), dtype=">u4")
        self._decoder = _coder.RangeDecoder(words.astype(np.uint32))

    def counting(self, kind: str) -> contextlib.AbstractContextManager:
        """Do nothing: only a Writer counts."""
        return contextlib.nullcontext()

    def charge(self, symbols: int) -> None:
        """Take the time of so many symbols off the allowance."""
        self.allowance.spend(symbols)

    def uint(self, _: object, limit: int) -> int:
        """Read a number from 0 to `limit` in gamma code."""
        size = 0
        while self._decode(_EVEN, 1)[0]:
            size += 1
            if size > LONGEST:
                raise CorruptFileError(f"a number has more than {LONGEST} bits")
        digits = self._decode(_EVEN, size) if size else ()
        number = int("1" + "".join(map(str, digits)), 2) - 1
        if number > limit:
            raise CorruptFileError(f"a count is {number}, more than {limit}")
        return number

    def number(self, _: object, limit: int) -> int:
        """Read a number from 0 to limit - 1."""
        number, worth, left = 0, 1, limit
        while left > 1:
            number += worth * int(self._decode(_models.Uniform(min(left, DIGIT)), 1)[0])
            worth, left = worth * DIGIT, -(-left // DIGIT)
        if number >= max(1, limit):
            raise CorruptFileError(f"a number is {number}, not below {limit}")
        return number

    def raw(self, _: object, count: int) -> bytes:
        """Read so many bytes."""
        start, end = self._at, self._at + count
        if end > len(self._data):
            raise CorruptFileError(f"tensor data ends early: {count} bytes wanted, {len(self._data) - start} left")
        self._at = end
        return self._data[start:end]

    def frequencies(self, _: object, alphabet: int) -> np.ndarray:
        """Read a histogram of symbols below `alphabet`."""
        first = self._varint(alphabet - 1)
        table = np.zeros(first + self._varint(alphabet - first - 1) + 1, dtype=np.int64)
        table[first:] = [self._varint(TOTAL) for _ in range(first, len(table))]
        if table.sum() != TOTAL:
            raise CorruptFileError(f"frequencies sum to {table.sum()}, not {TOTAL}")
        return table

    def symbols(self, _: object, count: int, table: np.ndarray | int) -> Iterator[np.ndarray]:
        """Read `count` symbols, in int arrays of at most CHUNK."""
        sizes = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
        if not isinstance(table, int) and np.count_nonzero(table) == 1:
            yield from (np.full(size, np.flatnonzero(table)[0]) for size in sizes)
        else:
            self.charge(count)
            yield from (self._decode(_make_model(table), size) for size in sizes)

    def bits(self, _: object, probabilities: np.ndarray) -> np.ndarray:
        """Read bits (int32), one for each of `probabilities`; their time must have been taken off the allowance."""
        return self._decode(_BITS, _pair(probabilities))

    def close(self) -> None:
        """Check that the bytes were used to their end, and the coder's output at all."""
        if self._at != len(self._data):
            raise CorruptFileError(f"{len(self._data) - self._at} bytes are left over after the last tensor")
        if self._unused:
            raise CorruptFileError("entropy-coded words are left over after the last tensor")

    def _varint(self, limit):
        number, self._at = read_varint(self._data, self._at)
        if number > limit:
            raise CorruptFileError(f"a frequency is {number}, more than {limit}")
        return number

    def _decode(self, model, argument):
        self._unused = False
        try:
            return self._decoder.decode(model, argument)
        except (AssertionError, ValueError) as error:
            raise CorruptFileError(f"entropy-coded words are damaged: {error}") from error


def count_symbols(symbols: np.ndarray, size: int) -> np.ndarray:
    """Count each of the symbols below `size`, a part at a time: numpy makes wide copies."""
    parts = range(0, len(symbols), CHUNK)
    return sum((np.bincount(symbols[at : at + CHUNK], minlength=size) for at in parts), np.zeros(size, np.int64))


def count_frequencies(counts: np.ndarray) -> np.ndarray:
    """Scale counts of symbols to whole frequencies that sum to TOTAL.

    counts   whole numbers, at least one above 0; no more than TOTAL of them above 0
    returns  int64 array as long as `counts` up to its last nonzero; 1 or more where a count is
    """
    counts = np.asarray(counts, dtype=np.int64)
    counts = counts[: np.flatnonzero(counts)[-1] + 1]
    used = counts > 0
    table = np.where(used, 1 + counts * (TOTAL - np.count_nonzero(used)) // counts.sum(), 0)
    table[np.argmax(counts)] += TOTAL - table.sum()
    return table


def _make_model(table):
    """Make the model of symbols with a histogram, or of a number of equally likely ones."""
    return _models.Uniform(table) if isinstance(table, int) else _models.Categorical(table / TOTAL, perfect=False)


def _pair(probabilities):
    """Probabilities of 0 and of 1, (bits, 2), from those of 1; exact, for they are whole numbers over 2**16."""
    pairs = np.empty((len(probabilities), 2))
    pairs[:, 1] = probabilities
    np.subtract(1.0, probabilities, out=pairs[:, 0])
    return pairs
