"""Layouts: how a tensor is gone through as a matrix, and what lies beside what in it (docs/format.md, section 5).

line   a column of the matrix, first dimension × the rest: the weights of all units for one input
place  an entry's number within its line, the unit
lag    where the inputs of a layer are an image, or a kernel, row after row: so many lines before is the one above
group  lines that are one image, or one channel of a kernel
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from compresslab.storage.coder import Reader, Writer
from compresslab.storage.container import CorruptFileError

ENOUGH = 2**18  # entries that are looked at for a lag
CLEAR = 5.0  # standard deviations by which neighbours have to be kept together more often than by chance
LARGEST_LAG = 2**20


@dataclass(frozen=True)
class Layout:
    """The way through a matrix.

    rows, columns  its size;  lag  0 where no line is above another;  group  number of lines
    """

    rows: int
    columns: int
    lag: int = 0
    group: int = 1

    @property
    def near(self) -> list[int]:
        """How many lines before an entry its neighbours are, the most telling first; 0 where there is none such."""
        lag = self.lag
        return [1, lag, lag + 1, lag - 1, 2, 2 * lag, lag + 2, max(0, lag - 2)] if lag else [1, 0, 0, 0, 2, 0, 0, 0]

    @property
    def pad(self) -> int:
        """Lines beyond the matrix that neighbours may be in."""
        return max(2 * self.lag, self.lag + 2)

    def inside(self, padded: np.ndarray) -> np.ndarray:
        """Return the entries of the matrix itself, of an array with so many lines more on either side."""
        return padded[self.pad : self.pad + self.columns]

    def by_lines(self, flat: np.ndarray) -> np.ndarray:
        """Return a flat array of the matrix's entries as a contiguous one of (columns, rows)."""
        return np.ascontiguousarray(flat.reshape(self.rows, self.columns).T)

    def flat(self, by_lines: np.ndarray) -> np.ndarray:
        """Undo `by_lines`."""
        return np.ascontiguousarray(by_lines.T).reshape(-1)


def shape_layout(shape: tuple) -> Layout:
    """Return the layout that the shape of a tensor alone suggests."""
    rows = shape[0] if len(shape) > 1 else 1
    count = math.prod(shape)
    columns = count // rows if rows else 0
    if len(shape) < 3 or not columns:
        return Layout(rows, columns)
    lag = shape[-1] if 1 < shape[-1] <= columns // 2 else 0
    return Layout(rows, columns, lag=lag, group=math.prod(shape[2:]))


def choose_layout(marks: np.ndarray, shape: tuple) -> Layout:
    """Choose the layout in which what is marked lies most regularly.

    marks  flat array, above 0 where an entry is kept, or, where all are, where it is positive
    """
    layout = shape_layout(shape)
    if len(shape) != 2 or not marks.size:
        return layout
    return _with_lag(layout, _find_lag(marks.reshape(layout.rows, layout.columns)))


def code_layout(coder: Writer | Reader, layout: Layout | None, shape: tuple) -> Layout:
    """Write or read the layout of a tensor of that shape, which a reader knows."""
    usual = shape_layout(shape)
    changed = layout is not None and layout.lag != usual.lag
    lag = coder.uint(layout.lag + 1 if changed else 0, LARGEST_LAG)
    return _with_lag(usual, lag - 1) if lag else usual


def _with_lag(layout, lag):
    """Return the layout with another lag, of images that are square."""
    if lag > layout.columns // 2:
        raise CorruptFileError(f"a line has its like {lag} lines before; there are {layout.columns}")
    return replace(layout, lag=lag, group=max(1, lag * lag))


def _find_lag(matrix):
    """Find the width of the square images that the columns of a matrix look like, 0 for none."""
    columns = matrix.shape[1]
    sample = matrix[: max(1, ENOUGH // max(1, columns))] > 0
    of_columns, clearest, lag = sample.sum(axis=0), CLEAR, 0
    for width in range(3, 257):
        if width * width > columns or columns % (width * width):
            continue
        # How often are two entries that lie one above the other both marked, beyond what chance would give?
        together = int(np.count_nonzero(sample[:, width:] & sample[:, :-width]))
        chance = int(of_columns[width:] @ of_columns[:-width]) / len(sample)
        clear = (together - chance) / max(1.0, chance) ** 0.5
        if clear > clearest:
            clearest, lag = clear, width
    return lag
