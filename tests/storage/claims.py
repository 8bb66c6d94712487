"""Files that claim much in few bytes: enormous tensors, in every form of the format, with any numbers in them."""

import numpy as np

from compresslab.storage import binary_words, palettes, positions, rounded, tensors
from compresslab.storage.coder import Writer

SHAPES = [
    *([4096, 4096], [8192, 2000], [2**24], [2**22, 4], [4, 2**22], [16, 2**20], [2**18 - 9, 8], [64, 2**17]),
    *([8, 2**10, 2, 2**10], [1, 1, 2, 2**20], [2000, 2000, 2, 2], [100, 20, 5, 5], [300, 784], [30, 40], [1, 2**17]),
    *([2**17, 1], [2**26, 1], [2, 2**23], [2**23, 2], [2**26], [3], [1], [], [0, 5], [5, 0], [2**13, 2**13], [7, 9]),
]
DTYPES = ("float32", "float32", "float16", "float64", "int8", "uint8", "bool", "int64", "complex64", "bfloat16")


def file(chance):
    """Header, bytes, and output of the range coder of such a file."""
    coder = Claims(chance)
    count = chance.choice([1, 1, 1, 2, 2, 3, 40, 2000]) if chance.random() < 0.3 else chance.choice([1, 2])
    shapes = SHAPES if count < 9 else [[3], [2, 2], [4, 9], [2, 2, 2, 2]]
    listed = [[f"t{index}", chance.choice(DTYPES), chance.choice(shapes)] for index in range(count)]
    header = {"model": module(listed), "training": True, "tensors": listed}
    for index, (_, dtype, shape) in enumerate(listed):
        coder.rounded(header, index, dtype, shape)
    tail = chance.choice([b"", bytes(1), b"\xff"]) * chance.choice([1, 3000, 30_000])
    tail = chance.randbytes(chance.choice([10, 3000, 30_000])) if chance.random() < 0.3 else tail
    return header, coder.writer.data(), coder.writer.coded() + tail


def module(listed):
    """Architecture of a module with these tensors: floats are parameters, others buffers."""
    graph = {"inputs": [], "steps": [], "output": None}
    names = {True: [], False: []}
    for name, dtype, _ in listed:
        names["float" in dtype].append(name)
    return ["Module", {"parameters": names[True], "buffers": names[False], "graph": graph}]


class Claims:
    """Writes tensors' payloads form by form, each decision by chance, as a reader would ask for them."""

    def __init__(self, chance):
        self.chance, self.writer = chance, Writer()

    def pick(self, *choices):
        """Write one of some numbers, and return it."""
        found = self.chance.choice(choices)
        self.writer.uint(found)
        return found

    def rounded(self, header, index, dtype, shape):
        """A tensor, perhaps with a mask, a grid or a codebook."""
        if "float" in dtype and self.chance.random() < 0.2:
            header.setdefault("masked", []).append(index)
        how = self.pick(0, 0, 1, 2, 3)
        if how == rounded.BOOK and "float" in dtype:
            self.book(dtype, shape)
        elif how == rounded.GRID:
            self.grid([size if self.chance.random() < 0.3 else 1 for size in shape], shape)
        else:
            if how == rounded.HALF:
                self.writer.number(0, 2)
            self.tensor("float16" if how == rounded.HALF else dtype, shape)

    def tensor(self, dtype, shape):
        """A tensor of any form."""
        stored = tensors.TYPES[dtype]
        form = self.pick(0, 1, 1, 2 if len(shape) == 2 else 1)
        if form == tensors.UNROLLED:
            for _ in range(5):
                self.pick(1, 2, 3, 5, 28, 100, 1000)
            self.tensor(dtype, [2, 2, 3, 3])
        elif form == tensors.DENSE:
            self.layout()
            self.values(stored.size, stored.kind)
        else:
            self.layout()
            self.positions()
            self.values(stored.size, stored.kind)

    def layout(self):
        """Which way a matrix is gone through."""
        self.pick(0, 0, 1, 2, 3, 4, 29, 2**10, 2**19)

    def positions(self):
        """Which entries are kept."""
        form = self.pick(0, 1, 1, 2, 2, 2, 3)
        if form == positions.BITMAP:
            self.values(1, "unsigned")
        elif form == positions.CONTEXTS:
            for _ in range(2):
                self.writer.number(self.chance.choice([0, 0, 1]), 2)

    def values(self, size, kind):
        """Words."""
        if self.pick(0, 1, 1) == binary_words.FEW:
            self.few(size, kind)
        else:
            self.planes(size)

    def planes(self, size):
        """Words byte by byte."""
        for _ in range(size):
            form = self.pick(0, 1, 2)
            if form == binary_words.HISTOGRAM:
                self.table(2)
            elif form == binary_words.EVEN:
                self.writer.number(self.chance.choice([0, 7, 254]), 255)
            else:
                self.writer.raw(bytes(self.chance.choice([0, 8, 64])))

    def few(self, size, kind):
        """A palette and ranks."""
        count = self.chance.choice([1, 1, 1, 2, 16, 100])
        self.writer.uint(count - 1)
        self.palette(count, size, kind)
        if count > 1:
            if self.writer.number(self.chance.choice([0, 1]), 2) == binary_words.BY_PLANES:
                self.planes(1)

    def palette(self, count, size, kind):
        """A palette of words that ascend."""
        numbers = np.arange(1, count + 1, dtype=f"<u{size}") << (8 * size - 16 if size > 1 and count < 2**14 else 0)
        palettes.code(self.writer, numbers, count, size, kind)

    def table(self, symbols):
        """A histogram of one symbol, of two alike, or of two that are almost one."""
        first = self.chance.choice([0, 1, 2**13, 2**14 - 1])
        self.writer.frequencies(np.array([first, 2**14 - first]))

    def grid(self, scale, shape):
        """A weight on a grid, its scales and zero points all alike."""
        self.grid_head(self.chance.choice([[], scale]), shape)
        for word in (0x3F800000, 0):
            self.writer.uint(tensors.DENSE)
            self.writer.uint(0)
            self.constant(word, 4, "float")
        self.levels(shape)

    def grid_head(self, scale, shape, bits=4):
        """A grid's range, and the shape of its scale."""
        for number, limit in ((bits - 1, 16), (0, None), (2**bits - 1, None), (0, 3), (0, 2), (len(scale), None)):
            self.writer.uint(number) if limit is None else self.writer.number(number, limit)
        for size in scale:
            self.writer.number(int(size != 1), 2)

    def constant(self, word, size, kind):
        """Words that are all alike."""
        self.writer.uint(binary_words.FEW)
        self.writer.uint(0)
        palettes.code(self.writer, np.array([word], dtype=f"<u{size}"), 1, size, kind)

    def book(self, dtype, shape):
        """A weight with a codebook."""
        count = self.chance.choice([1, 2, 16, 256, 2**14])
        self.writer.number(0, 2)
        self.writer.number(0, 2)
        self.writer.uint(count - 1)
        if self.writer.number(self.chance.choice([0, 0, 1]), 2) == rounded.ANY_ORDER:
            self.tensor(dtype, [count])
        else:
            self.palette(count, tensors.TYPES[dtype].size, "float")
        self.levels(shape)

    def levels(self, shape):
        """Levels of weights on a grid or of a codebook."""
        self.tensor("int32" if self.writer.number(self.chance.choice([0, 0, 1]), 2) else "int16", shape)
