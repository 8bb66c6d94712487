"""Files that claim much in few bytes: enormous tensors, in every form of the format, with any numbers in them."""

import numpy as np

from compresslab.storage import palettes, streams, tensors, values

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
    return header, bytes(coder.writer.data), coder.writer.coded() + tail


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
        self.chance, self.writer = chance, streams.Writer()

    def pick(self, *choices):
        """Write one of some numbers, and return it."""
        found = self.chance.choice(choices)
        self.writer.uint(found)
        return found

    def rounded(self, header, index, dtype, shape):
        """A tensor, perhaps with a mask, a grid or a codebook."""
        chance, how = self.chance, self.chance.randrange(4)
        if "float" in dtype and chance.random() < 0.2:
            header.setdefault("masked", []).append(index)
        if how == 0 and dtype in ("float32", "float64", "float16"):
            header.setdefault("codebooks", []).append([index])
            self.book(dtype, shape)
        elif how == 1 and dtype in ("float32", "float64"):
            ones = [size if chance.random() < 0.3 else 1 for size in shape]
            header.setdefault("grids", []).append([index, 4, 0, 15, chance.choice([[], ones, shape])])
            self.grid(header["grids"][-1][-1], shape)
        else:
            self.tensor(dtype, shape)

    def tensor(self, dtype, shape):
        """A tensor of any form."""
        stored = tensors.TYPES[dtype]
        form = self.pick(0, 1, 1, 2, 3 if len(shape) == 2 else 1)
        if form == tensors.UNROLLED:
            for _ in range(5):
                self.pick(1, 2, 3, 5, 28, 100, 1000)
            self.tensor(dtype, [2, 2, 3, 3])
        elif form == tensors.DENSE:
            self.values(stored.size, stored.kind, shape)
        else:
            self.frame(shape)
            self.positions(shape)
            self.values(stored.size, stored.kind, None)
            if form == tensors.SIGNED_SPARSE:
                self.pick(1, 2**15, 2**16 - 1)

    def frame(self, shape):
        """Which way a matrix is gone through."""
        if self.pick(0, 0, 1, 2, 3) & 2:
            self.pick(0, 1, 2, 3, 28, 2**10, 2**19)

    def positions(self, shape):
        """Which entries are kept."""
        form = self.pick(0, 1, 1, 2, 3, 4, 5, 6, 6, 6)
        if form in (2, 3):
            self.pick(0, 1, 4096, 2**18, 2**21)
            self.values(4, "unsigned", None, contexts=False)
        elif form == 4:
            self.pick(0, 1, 2**20)
            for _ in range(2):
                self.values(1, "unsigned", None, contexts=False, word=b"\x10")
        elif form == 5:
            self.values(1, "unsigned", None, contexts=False)
        elif form == 6:
            self.pick(0, 0, 1, 2, 3)

    def values(self, size, kind, shape, contexts=True, word=b"\1"):
        """Words; shape  of a whole tensor, whose frame is still to come, or None."""
        form = self.pick(0, 1, 1, 2, 3, 4 if contexts else 1)
        if form == values.RAW:
            self.writer.raw(bytes(self.chance.choice([0, 8, 64])))
        elif form == values.CONSTANT:
            self.writer.raw(word.ljust(size, b"\0"))
        elif form == values.PLANES:
            for _ in range(size):
                self.writer.uint(1)
                self.table(2)
        elif form == values.PALETTE:
            self.writer.uint(2)
            self.writer.raw(bytes(size) + word.ljust(size, b"\0"))
            self.table(2)
        else:
            self.few(size, kind, shape)

    def few(self, size, kind, shape):
        """A palette and ranks by contexts."""
        count = self.chance.choice([1, 2, 16, 100])
        self.writer.uint(count - 1)
        if shape is not None:
            self.frame(shape)
        self.palette(count, size, kind)

    def palette(self, count, size, kind):
        """A palette of words that ascend."""
        words = np.arange(1, count + 1, dtype=f"<u{size}") << (8 * size - 16 if size > 1 and count < 2**14 else 0)
        palettes.write(self.writer, words, 0, kind)

    def table(self, symbols):
        """A histogram of one symbol, of two alike, or of two that are almost one."""
        first = self.chance.choice([0, 1, 2**13, 2**14 - 1])
        self.writer.frequencies(np.array([first, 2**14 - first]))

    def grid(self, scale, shape):
        """A weight on a grid, its scales and zero points all alike."""
        for word in (b"\0\0\x80\x3f", bytes(4)):
            self.pick(0)
            self.pick(1)
            self.writer.raw(word)
        self.frame(shape)
        if self.pick(0, 1):
            self.positions(shape)
        how = self.pick(0, 1, 1, 2, 3)
        if how in (1, 2):
            self.writer.uint(0) if how == 1 else None
            self.table(2)
        elif how == 3:
            self.few(4, "signed", None)

    def book(self, dtype, shape):
        """A weight with a codebook."""
        size, how = tensors.TYPES[dtype].size, self.pick(0, 0, 1, 2, 3)
        count = self.chance.choice([1, 2, 16, 256, 2**14])
        self.writer.uint(count - 1)
        if how == 3:
            self.tensor(dtype, [count])
        else:
            self.palette(min(count, 2**14), size, "float")
        self.frame(shape)
        if self.pick(0, 1, 2):
            self.positions(shape)
        if self.pick(0, 1):
            self.values(2, "unsigned", None, contexts=False)
