"""Fitting an integer grid to numbers: its scale and zero point, for each row of a matrix.

A grid has few values. Reaching for the largest number leaves them far apart; cutting the largest off (clipping) costs
those and brings the rest closer. A good cut, by mean squared error, is found by trying ranges and refining the best:
given the codes k (less the zero point) of the numbers w, the scale that fits best is <w, k> / <k, k>.

Jacob et al. 2018, arXiv:1712.05877, section 2 (scale, zero point); Rastegari et al. 2016, arXiv:1603.05279, section 3.1
(one bit); Nagel et al. 2021, arXiv:2106.08295, section 3.1 (min-max, mean squared error); Nahshan et al. 2019,
arXiv:1911.07190, section 4 (other powers of the error: at very few bits, 2 of them cuts off too much).
"""

from dataclasses import dataclass

import torch

CLIPPINGS = ("none", "percentile", "mse", "l4")
BLOCK = 2**16  # numbers looked at together: they stay in a core's cache
TRIES = 8  # ranges tried between the mean size and the largest, evenly on a log scale
REFINEMENTS = 2
NEARBY = (0.88, 1.12, 0.94, 1.06)  # factors of the best scale that "l4" tries too: the formula is the squared error's


def code_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """Return the smallest and largest code of a grid of 1 to 16 bits.

    symmetric  -2**(bits - 1) to 2**(bits - 1) - 1, and 0 stands for 0; of 1 bit, 0 and 1, which stand for -1 and +1
    affine     0 to 2**bits - 1, and one of them (of 1 bit: neither) stands for 0
    """
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric and bits > 1 else (0, 2**bits - 1)


def fit(
    rows: torch.Tensor,
    bits: int,
    symmetric: bool = True,
    clipping: str = "mse",
    percentile: float = 0.995,
    counts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit the scale and zero point of a grid to each row.

    rows        (channels, n) float32 or float64, finite, at most a quarter of the largest float
    bits        1 to 16;  symmetric  as in `code_range`
    clipping    "none": the range holds every number; "percentile": it holds that share of them; "mse": it has the least
                mean squared error of those tried; "l4": the least mean fourth power of the error, which spares large
                numbers. 1 bit has no range to choose: its two values are the mean size, negative and positive (affine:
                the mean distance from the mean, below and above it)
    percentile  fraction above 0, to 1
    counts      (channels, n) how often each number occurs, 0 or more; None for once each
    returns     scale, zero_point: (channels, 1), of the dtype of `rows`. A row of equal numbers is kept exactly
    """
    smallest, largest = _ends(rows, counts)
    codes = code_range(bits, symmetric)
    if bits == 1:
        # The mean size about 0, or the mean distance about the mean.
        unit = _unit(smallest, largest)
        middle = torch.zeros_like(unit) if symmetric else _mean(rows / unit, counts)
        scale = 2 * _mean((rows / unit - middle).abs(), counts)
        scale, point = scale * unit, 0.5 - middle / scale.masked_fill(scale == 0, 1.0)
    else:
        reach = _percentiles(rows, counts, percentile, symmetric) if clipping == "percentile" else (smallest, largest)
        scale, point = _lay(*reach, codes, symmetric)
        if clipping in ("mse", "l4"):
            scale, point = _Search(rows, counts, codes, symmetric, clipping == "l4").run(*reach)
    # A row of equal numbers is one of the grid's values.
    constant, size = smallest == largest, largest.abs()
    if bits == 1:
        return torch.where(constant, 2 * size, scale), point.masked_fill(constant, 0.5)
    scale = torch.where(constant, size, scale)
    if not symmetric:
        point = torch.where(constant, (largest < 0).to(point.dtype), point)
    return scale.masked_fill(scale == 0, 1.0), point


def _lay(smallest, largest, codes, symmetric):
    """Lay the finest grid that reaches both ends of a range and 0."""
    low, high = codes
    smallest, largest = smallest.clamp(max=0), largest.clamp(min=0)
    if symmetric:
        scale = torch.maximum(smallest / low, largest / high)
        return _raise_scale(scale, largest - smallest), torch.zeros_like(scale)
    scale = _raise_scale((largest - smallest) / (high - low), largest - smallest)
    return scale, (low - smallest / scale.masked_fill(scale == 0, 1.0)).round().clamp(low, high)


def _raise_scale(scale, width):
    """Return a scale that is not rounded down to 0."""
    least = torch.finfo(scale.dtype).smallest_normal * torch.finfo(scale.dtype).eps
    return torch.where(width > 0, scale.clamp(min=least), scale)


@dataclass(frozen=True)
class _Candidate:
    """A grid for each row, (channels, 1) each: its error, scale, zero point, and the range it was laid over."""

    error: torch.Tensor
    scale: torch.Tensor
    point: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def take_better(self, rival: "_Candidate") -> "_Candidate":
        """Return for each row the grid with the smaller error."""
        better = rival.error < self.error
        names = ("error", "scale", "point", "low", "high")
        return _Candidate(*(torch.where(better, getattr(rival, name), getattr(self, name)) for name in names))


class _Search:
    """A search for the grid with the least error for each row, a block of numbers at a time in the same memory.

    quartic  True for the fourth power of the error, False for the square
    """

    def __init__(self, rows, counts, codes, symmetric, quartic):
        self.codes, self.symmetric, self.quartic = codes, symmetric, quartic
        self.unit, self.mean_size = _unit(*_ends(rows, counts)), _mean_size(rows, counts)
        self.divides = bool((self.unit < 1e-25).any())  # the reciprocal of such a scale may be infinite
        self.blocks = []  # a slice of the rows, their numbers, and counts or None
        height = max(1, BLOCK // max(1, rows.shape[1]))
        for top in range(0, len(rows), height):
            for left in range(0, rows.shape[1], BLOCK):
                part, columns = slice(top, top + height), slice(left, left + BLOCK)
                weights = None if counts is None else counts[part, columns].to(rows.dtype)
                self.blocks.append((part, rows[part, columns], weights))
        largest = max([numbers.numel() for _, numbers, _ in self.blocks], default=0)
        self.scratch = torch.empty(2, largest, dtype=rows.dtype).to(rows.device)

    def run(self, smallest: torch.Tensor, largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and zero point: try ranges, then refine the best."""
        best = self._lay_range(smallest, largest)
        for part in ("both",) if self.symmetric else ("both", "high", "low"):
            before = best
            for share in (number / TRIES for number in range(TRIES)):
                low = before.low if part == "high" else -_between(self.mean_size, -smallest, share)
                high = before.high if part == "low" else _between(self.mean_size, largest, share)
                best = best.take_better(self._lay_range(low, high))
        for factor in NEARBY if self.quartic else ():
            best = best.take_better(self._judge(best.scale * factor, best.point, best.low, best.high))
        for _ in range(REFINEMENTS):
            best = best.take_better(self._refine(best))
        return best.scale, best.point

    def _lay_range(self, low, high):
        """Return the grid laid over a range, with its error."""
        scale, point = _lay(low, high, self.codes, self.symmetric)
        return self._judge(scale.masked_fill(scale == 0, 1.0), point, low, high)

    def _refine(self, grid):
        """Return the grid with the best scale for its codes, <w, k> / <k, k>."""
        along, square = torch.zeros_like(grid.scale), torch.zeros_like(grid.scale)
        for part, scaled, codes, counts in self._encode(grid.scale, grid.point):
            weighted = codes if counts is None else codes * counts
            along[part] += torch.linalg.vecdot(scaled, weighted)[:, None]
            square[part] += torch.linalg.vecdot(codes, weighted)[:, None]
        change = torch.where((square > 0) & (along > 0), along / square, 1.0)
        return self._judge(grid.scale * change, grid.point, grid.low, grid.high)

    def _judge(self, scale, point, low, high):
        """Return a grid with its error."""
        error = torch.zeros_like(scale)
        for part, scaled, codes, counts in self._encode(scale, point):
            off = scaled.sub_(codes)
            if self.quartic:
                off.square_()
            if counts is not None:
                off.mul_(counts.sqrt())
            error[part] += torch.linalg.vector_norm(off, dim=1, keepdim=True).square()
        return _Candidate(error * (scale / self.unit) ** (4 if self.quartic else 2), scale, point, low, high)

    def _encode(self, scale, point):
        """Yield the rows (a slice), numbers in steps, codes less the zero point and counts."""
        low, high = self.codes
        for part, numbers, counts in self.blocks:
            scaled, codes = (memory[: numbers.numel()].view(numbers.shape) for memory in self.scratch)
            if self.divides:
                torch.div(numbers, scale[part], out=scaled)
            else:
                torch.mul(numbers, scale[part].reciprocal(), out=scaled)
            torch.round(scaled, out=codes)
            if self.symmetric:
                codes.clamp_(low, high)
            else:  # clamping to bounds that differ from row to row takes ten times as long
                torch.minimum(codes, high - point[part], out=codes)
                torch.maximum(codes, low - point[part], out=codes)
            yield part, scaled, codes, counts


def _between(size, reach, share):
    """Return a bound between the mean size and the largest, on a log scale."""
    start = torch.minimum(size, reach).clamp(min=0)
    return (start ** (1 - share) * reach.clamp(min=0) ** share).nan_to_num(0.0)


def _ends(rows, counts):
    """Return the smallest and largest number of each row, (channels, 1) each."""
    if counts is None:
        return rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)  # in less time than aminmax
    there = counts > 0
    smallest = rows.masked_fill(~there, torch.inf).amin(1, keepdim=True)
    largest = rows.masked_fill(~there, -torch.inf).amax(1, keepdim=True)
    return smallest.nan_to_num(posinf=0.0), largest.nan_to_num(neginf=0.0)


def _unit(smallest, largest):
    """Return the largest size in each row, and 1 for a row of zeros."""
    size = torch.maximum(-smallest, largest)
    return size.masked_fill(size == 0, 1.0)


def _mean(rows, counts):
    """Return the mean of each row; 0 for an empty row."""
    if counts is None:
        return rows.mean(1, keepdim=True)
    return (rows * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp(min=1)


def _mean_size(rows, counts):
    """Return the mean of |w| of each row, (channels, 1)."""
    if counts is None:
        return torch.linalg.vector_norm(rows, 1, dim=1, keepdim=True) / rows.shape[1]
    return _mean(rows.abs(), counts)


def _percentiles(rows, counts, percentile, symmetric):
    """Return the range that holds a share of each row's numbers.

    A row that is mostly 0 may have an empty range; then the range holds every number.
    """
    if symmetric:
        high = _quantile(rows.abs(), counts, percentile)
        low = -high
    else:
        share = (1 + percentile) / 2
        low, high = -_quantile(-rows, counts, share), _quantile(rows, counts, share)
    smallest, largest = _ends(rows, counts)
    nothing = (low >= 0) & (high <= 0)
    return torch.where(nothing, smallest, low), torch.where(nothing, largest, high)


def _quantile(rows, counts, share):
    """Return the smallest number of each row with `share` of them at or below it."""
    ordered, places = rows.sort(1)
    reached = (torch.ones_like(rows) if counts is None else counts.gather(1, places)).double().cumsum(1)
    place = torch.searchsorted(reached, reached[:, -1:] * share).clamp(max=rows.shape[1] - 1)
    return ordered.gather(1, place)
