"""A matrix whose rows repeat one another, shifted: a convolution written as a Linear layer (`structure.embedding`).

Its kernel stands for all of it. Row (map, y, x) of the first M·o·o holds the kernel of its map in the columns
(channel, y·stride + u, x·stride + v) of the first C·n·n, where o = (n - k) // stride + 1; everything else is +0.
Five numbers (M, C, n, k, stride) and then the kernel, (M, C, k, k), as a tensor of its own.
"""

import math
from dataclasses import dataclass

import numpy as np

from compresslab.storage.coder import Reader, Writer
from compresslab.storage.container import CorruptFileError

FEWEST = 16  # rows that a matrix has for a convolution to be looked for
MOST = 2**16  # of each number


@dataclass(frozen=True)
class Convolution:
    """maps, channels, width n of the square image, width k of the square kernel, stride; out is o above."""

    maps: int
    channels: int
    width: int
    kernel: int
    stride: int

    @property
    def out(self) -> int:
        """Return the width of the convolution's output."""
        return (self.width - self.kernel) // self.stride + 1

    @property
    def kernel_shape(self) -> tuple:
        """Return (maps, channels, kernel, kernel)."""
        return self.maps, self.channels, self.kernel, self.kernel

    def fits(self, rows: int, columns: int) -> bool:
        """Tell whether such a matrix lies within so many rows and columns, and repeats itself."""
        known = self.width >= self.kernel >= 1 and self.stride >= 1 and self.maps >= 1 and self.channels >= 1
        return known and self.out >= 2 and self.maps * self.out**2 <= rows and self.channels * self.width**2 <= columns


def find(words: np.ndarray) -> tuple:
    """Find the Convolution and the kernel (words, M × C × k × k) of a matrix of words, or (None, None)."""
    shape = _guess(words) if len(words) >= FEWEST else None
    if shape is None or not shape.fits(*words.shape):
        return None, None
    image = words[:, : shape.channels * shape.width**2].reshape(len(words), shape.channels, shape.width, shape.width)
    firsts = image[: shape.maps * shape.out**2 : shape.out**2]
    kernel = np.ascontiguousarray(firsts[..., : shape.kernel, : shape.kernel])
    return (shape, kernel) if np.array_equal(build(shape, kernel, *words.shape), words) else (None, None)


def build(shape: Convolution, kernel: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Build the matrix of words that a kernel stands for."""
    words = np.zeros((rows, columns), dtype=kernel.dtype)
    used, out = shape.maps * shape.out**2, range(shape.out)
    image = words[:used].reshape(shape.maps, shape.out, shape.out, columns)
    for y, x in ((y, x) for y in out for x in out):
        place = np.arange(shape.kernel) + y * shape.stride, np.arange(shape.kernel) + x * shape.stride
        at = np.arange(shape.channels)[:, None, None] * shape.width**2 + place[0][:, None] * shape.width + place[1]
        image[:, y, x][:, at] = kernel
    return words


def code(coder: Writer | Reader, shape: Convolution | None, rows: int, columns: int) -> Convolution:
    """Write or read the Convolution of a matrix of so many rows and columns."""
    numbers = [None] * 5 if shape is None else [shape.maps, shape.channels, shape.width, shape.kernel, shape.stride]
    shape = Convolution(*(coder.uint(number, MOST) for number in numbers))
    if not shape.fits(rows, columns):
        raise CorruptFileError(f"a convolution of {shape} does not lie within {rows} x {columns} weights")
    return shape


def _guess(words):
    """Guess the only Convolution that the first rows leave open, or None.

    The rows of one map have the same values in the same order; from one to the next they begin `stride` columns later,
    and at the end of a line a jump says how wide the image is.
    """
    keep = words != 0
    counts = np.count_nonzero(keep, axis=1)
    alive = np.flatnonzero(counts)
    if not len(alive) or counts[alive[0]] == words.shape[1]:
        return None
    first, end = alive[0], alive[0] + 1
    values = words[first][keep[first]]
    while end < len(words) and counts[end] == len(values) and np.array_equal(words[end][keep[end]], values):
        end += 1
    out = math.isqrt(end - first)
    if out < 2 or out * out != end - first or first % out**2:
        return None
    starts = np.argmax(keep[first:end], axis=1)
    stride = int(starts[1] - starts[0])
    if stride < 1:
        return None
    width, rest = divmod(int(starts[out] - starts[0]), stride)
    channels = words.shape[1] // max(1, width * width)
    maps = -(-(alive[-1] + 1) // out**2)
    kernel = width - stride * (out - 1)
    return Convolution(int(maps), channels, width, kernel, stride) if not rest and kernel >= 1 and channels else None
