"""How a tensor is gone through as a matrix, and what lies beside what in it.

The first dimension times the rest is a matrix. It is coded line by line, a line being a column, so that the weights of
all units for one input stand together, or a row. Where the inputs of a layer are an image, row after row, or a kernel,
the line `lag` lines before is the one above. In a file, a number says: 1 where lines are rows, plus 2 where a lag other
than the tensor's own follows (of a kernel its width, else 0), a number too.
"""

from dataclasses import dataclass, replace

import numpy as np

from compresslab.storage.container import CorruptFileError

ENOUGH = 2**18  # entries that are looked at for a lag
CLEAR = 5.0  # standard deviations by which neighbours have to be kept together more often than by chance
LARGEST = 2**20  # lag


@dataclass(frozen=True)
class Frame:
    """How a matrix is gone through.

    rows, columns  its size;  transposed  whether a line is a row (else a column)
    lag    lines from a line to the one above it, 0 where there is none such, and where lines are rows
    group  lines that are one image, or one channel of a kernel
    """

    rows: int
    columns: int
    transposed: bool = False
    lag: int = 0
    group: int = 1

    @property
    def lines(self):
        return self.rows if self.transposed else self.columns

    @property
    def places(self):
        return self.columns if self.transposed else self.rows

    @property
    def near(self):
        """How many lines before an entry its neighbours are, those that tell most first; 0 where there is none such."""
        lag = self.lag
        return [1, lag, lag + 1, lag - 1, 2, 2 * lag, lag + 2, max(0, lag - 2)] if lag else [1, 0, 0, 0, 2, 0, 0, 0]

    @property
    def pad(self):
        """Lines beyond the matrix that neighbours may be in."""
        return max(2 * self.lag, self.lag + 2)

    def inside(self, padded):
        """The entries of the matrix itself, of an array with so many lines more on either side."""
        return padded[self.pad : self.pad + self.lines]

    def turned(self, flat):
        """A flat array of the matrix's entries as a contiguous one of (lines, places)."""
        matrix = flat.reshape(self.rows, self.columns)
        return np.ascontiguousarray(matrix if self.transposed else matrix.T)

    def flat(self, turned):
        """The inverse of `turned`."""
        return np.ascontiguousarray(turned if self.transposed else turned.T).reshape(-1)


def plain(shape, parts=1):
    """The frame that the shape of a tensor alone suggests; parts  words an element has."""
    rows = shape[0] if len(shape) > 1 else 1
    count = int(np.prod(shape, dtype=object)) * parts
    lag, group = _kernel(shape) if parts == 1 else (0, 1)
    return Frame(rows, count // rows if rows else 0, lag=lag, group=group)


def choose(marks, shape, parts=1):
    """The frame in which what is marked lies most regularly.

    marks  flat bool array: what is kept, or, where all is, what is positive
    """
    frame = plain(shape, parts)
    if len(shape) != 2 or parts > 1 or not marks.size:
        return frame
    return _with_lag(frame, _lag(marks.reshape(frame.rows, frame.columns)))


def write(writer, frame, shape, parts=1):
    """Write a frame of a tensor of that shape, which a reader knows."""
    usual = plain(shape, parts).lag
    writer.uint(frame.transposed + 2 * (frame.lag != usual))
    if frame.lag != usual:
        writer.uint(frame.lag)


def read(reader, shape, parts=1):
    """The frame that was written."""
    how, frame = reader.uint(3), plain(shape, parts)
    if how & 2:
        frame = _with_lag(frame, reader.uint(LARGEST))
    return Frame(frame.rows, frame.columns, transposed=True) if how & 1 else frame


def _kernel(shape):
    """Lag and group of a convolution's weight."""
    lines, size = int(np.prod(shape[1:], dtype=object)), int(np.prod(shape[2:], dtype=object))
    return (shape[-1] if 1 < shape[-1] <= lines // 2 else 0, size) if len(shape) > 2 and lines else (0, 1)


def _with_lag(frame, lag):
    """The frame with another lag, of images that are square."""
    if lag > frame.lines // 2:
        raise CorruptFileError(f"a line has its like {lag} lines before; there are {frame.lines}")
    return replace(frame, lag=lag, group=max(1, lag * lag))


def _lag(matrix):
    """Width of the square images that the columns of a bool matrix look like, 0 for none."""
    columns = matrix.shape[1]
    some = matrix[: max(1, ENOUGH // max(1, columns))]
    of_columns, best, found = some.sum(axis=0), CLEAR, 0
    for lag in _widths(columns):
        together = int(np.count_nonzero(some[:, lag:] & some[:, :-lag]))
        chance = int(of_columns[lag:] @ of_columns[:-lag]) / len(some)
        clear = (together - chance) / max(1.0, chance) ** 0.5
        if clear > best:
            best, found = clear, lag
    return found


def _widths(columns):
    return [width for width in range(3, 257) if width * width <= columns and columns % (width * width) == 0]
