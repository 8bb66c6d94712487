"""Where to lay an integer grid over numbers: its scale and zero point, for each row of a matrix.

A grid has few values. Reaching for the largest number leaves them far apart; cutting the largest off (clipping) costs
those and brings the rest closer. A good cut, by mean squared error, is found by trying ranges and refining the best:
given the codes k (less the zero point) of the numbers w, the scale that fits best is <w, k> / <k, k>. Trying every
range finds no better on average; in a row of few numbers (60) it may find a lucky scale that halves the error.

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


def code_range(bits, symmetric):
    """Smallest and largest code of a grid of 1 to 16 bits.

    symmetric  -2**(bits - 1) to 2**(bits - 1) - 1, and 0 stands for 0; of 1 bit, 0 and 1, which stand for -1 and +1
    affine     0 to 2**bits - 1, and one of them (of 1 bit: neither) stands for 0
    """
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric and bits > 1 else (0, 2**bits - 1)


def fit(rows, bits, symmetric=True, clipping="mse", percentile=0.995, counts=None):
    """Scale and zero point of a grid for each row.

    rows        (channels, n) float32 or float64, finite, at most a quarter of the largest float
    bits        1 to 16;  symmetric  as in `code_range`
    clipping    "none": the range holds every number, each half a step away from a value at most; "percentile": it holds
                that share of them; "mse": it is the one with the least mean squared error of those tried;
                "l4": with the least mean fourth power of the error, which spares large numbers.
                1 bit has no range to choose: its two values are the mean size, negative and positive (affine: their
                mean distance from their mean, below and above it)
    percentile  fraction above 0, to 1
    counts      (channels, n) how often each number occurs, 0 or more; None for once each
    returns     scale, zero_point: (channels, 1), of the dtype of `rows`. A row of equal numbers is kept exactly
    """
    smallest, largest = _ends(rows, counts)
    codes = code_range(bits, symmetric)
    if bits == 1:
        scale, point = _two_values(rows, counts, symmetric, _unit(smallest, largest))
    else:
        reach = _percentiles(rows, counts, percentile, symmetric) if clipping == "percentile" else (smallest, largest)
        scale, point = _laid(*reach, codes, symmetric)
        if clipping in ("mse", "l4"):
            scale, point = _search(rows, counts, *reach, codes, symmetric, clipping == "l4")
    constant, size = smallest == largest, largest.abs()
    if bits == 1:
        return torch.where(constant, 2 * size, scale), point.masked_fill(constant, 0.5)
    scale = torch.where(constant, size, scale)
    if not symmetric:
        point = torch.where(constant, (largest < 0).to(point.dtype), point)
    return scale.masked_fill(scale == 0, 1.0), point


def _two_values(rows, counts, symmetric, unit):
    """One bit: the mean size about 0, or the mean distance from the mean about the mean; as shares of a row's unit."""
    rows = rows / unit
    middle = torch.zeros_like(unit) if symmetric else _mean(rows, counts)
    scale = 2 * _mean((rows - middle).abs(), counts)
    return scale * unit, 0.5 - middle / scale.masked_fill(scale == 0, 1.0)


def _laid(smallest, largest, codes, symmetric):
    """The finest grid that reaches both ends of a range, which 0 belongs to; what lies inside is half a step off."""
    low, high = codes
    smallest, largest = smallest.clamp(max=0), largest.clamp(min=0)
    if symmetric:
        scale = torch.maximum(smallest / low, largest / high)
        return _no_less(scale, largest - smallest), torch.zeros_like(scale)
    scale = _no_less((largest - smallest) / (high - low), largest - smallest)
    return scale, (low - smallest / scale.masked_fill(scale == 0, 1.0)).round().clamp(low, high)


def _no_less(scale, width):
    """A scale that is not rounded down to 0, but where all numbers are 0."""
    least = torch.finfo(scale.dtype).smallest_normal * torch.finfo(scale.dtype).eps
    return torch.where(width > 0, scale.clamp(min=least), scale)


def _search(rows, counts, smallest, largest, codes, symmetric, quartic):
    """The grid of the least error of those tried; the outermost values move, both at once and one by one."""
    error = _Error(rows, counts, codes, symmetric, quartic, _unit(smallest, largest))
    size = _mean_size(rows, counts)
    best = error.of_range(smallest, largest)
    shares = [number / TRIES for number in range(TRIES)]
    for part in ("both",) if symmetric else ("both", "high", "low"):
        before = best
        for share in shares:
            low = before.low if part == "high" else -_between(size, -smallest, share)
            high = before.high if part == "low" else _between(size, largest, share)
            best = best.or_better(error.of_range(low, high))
    for factor in NEARBY if quartic else ():
        best = best.or_better(error.of_scale(best, best.scale * factor))
    for _ in range(REFINEMENTS):
        best = best.or_better(error.of_fitted(best))
    return best.scale, best.point


def _between(size, reach, share):
    """A bound between the mean size (share 0) and the largest (share 1), on a log scale; 0 where the largest is."""
    start = torch.minimum(size, reach).clamp(min=0)
    return (start ** (1 - share) * reach.clamp(min=0) ** share).nan_to_num(0.0)


class _Error:
    """The error of grids laid over the numbers of each row, a block of numbers at a time in the same memory."""

    def __init__(self, rows, counts, codes, symmetric, quartic, unit):
        self.codes, self.symmetric, self.quartic, self.unit = codes, symmetric, quartic, unit
        self.divides = bool((unit < 1e-25).any())  # whose reciprocal, in steps, may be infinite
        self.blocks = list(_blocks(rows, counts))
        self.scratch = torch.empty(2, max([some.numel() for _, some, _ in self.blocks], default=0), dtype=rows.dtype)
        self.scratch = self.scratch.to(rows.device)

    def of_range(self, low, high):
        """The grid laid over a range, with its error."""
        scale, point = _laid(low, high, self.codes, self.symmetric)
        return self._judged(scale.masked_fill(scale == 0, 1.0), point, low, high)

    def of_scale(self, grid, scale):
        """A grid with another scale, and its error."""
        return self._judged(scale, grid.point, grid.low, grid.high)

    def of_fitted(self, grid):
        """The grid with the scale that fits its codes best, and its error."""
        along, square = torch.zeros_like(grid.scale), torch.zeros_like(grid.scale)
        for part, scaled, codes, count in self._coded(grid.scale, grid.point):
            weighted = codes if count is None else codes * count
            along[part] += torch.linalg.vecdot(scaled, weighted)[:, None]
            square[part] += torch.linalg.vecdot(codes, weighted)[:, None]
        change = torch.where((square > 0) & (along > 0), along / square, 1.0)
        return self.of_scale(grid, grid.scale * change)

    def _judged(self, scale, point, low, high):
        error = torch.zeros_like(scale)
        for part, scaled, codes, count in self._coded(scale, point):
            off = scaled.sub_(codes)
            if self.quartic:
                off.square_()
            if count is not None:
                off.mul_(count.sqrt())
            error[part] += torch.linalg.vector_norm(off, dim=1, keepdim=True).square()
        return _Laid(error * (scale / self.unit) ** (4 if self.quartic else 2), scale, point, low, high)

    def _coded(self, scale, point):
        """Of each block: its rows (a slice), the numbers in steps, their codes less the zero point, their counts."""
        low, high = self.codes
        for part, some, count in self.blocks:
            scaled, codes = (memory[: some.numel()].view(some.shape) for memory in self.scratch)
            if self.divides:
                torch.div(some, scale[part], out=scaled)
            else:
                torch.mul(some, scale[part].reciprocal(), out=scaled)
            torch.round(scaled, out=codes)
            if self.symmetric:
                codes.clamp_(low, high)
            else:  # one clamp to bounds that differ from row to row takes ten times as long
                torch.minimum(codes, high - point[part], out=codes)
                torch.maximum(codes, low - point[part], out=codes)
            yield part, scaled, codes, count


@dataclass(frozen=True)
class _Laid:
    """A grid for each row, (channels, 1) each: its error, scale, zero point, and the range it was laid over."""

    error: torch.Tensor
    scale: torch.Tensor
    point: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def or_better(self, other):
        """For each row the one of the two with the smaller error."""
        better = other.error < self.error
        names = ("error", "scale", "point", "low", "high")
        return _Laid(*(torch.where(better, getattr(other, name), getattr(self, name)) for name in names))


def _blocks(rows, counts):
    """Slice of the rows, some of their numbers, their counts (or None): at most BLOCK numbers, but a whole column."""
    height = max(1, BLOCK // max(1, rows.shape[1]))
    for top in range(0, len(rows), height):
        part = slice(top, top + height)
        for left in range(0, rows.shape[1], BLOCK):
            some = slice(left, left + BLOCK)
            yield part, rows[part, some], None if counts is None else counts[part, some].to(rows.dtype)


def _ends(rows, counts):
    """Smallest and largest number of each row, (channels, 1) each; 0 for a row of none."""
    if counts is None:
        return rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)  # in less time than aminmax
    there = counts > 0
    smallest = rows.masked_fill(~there, torch.inf).amin(1, keepdim=True)
    largest = rows.masked_fill(~there, -torch.inf).amax(1, keepdim=True)
    return smallest.nan_to_num(posinf=0.0), largest.nan_to_num(neginf=0.0)


def _unit(smallest, largest):
    """Largest size in each row, and 1 for a row of zeros."""
    size = torch.maximum(-smallest, largest)
    return size.masked_fill(size == 0, 1.0)


def _mean(rows, counts):
    """Mean of each row; 0 for a row of none."""
    if counts is None:
        return rows.mean(1, keepdim=True)
    return (rows * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp(min=1)


def _mean_size(rows, counts):
    """Mean of |w| of each row, without a copy of them where all count once; infinite where the sum is."""
    if counts is None:
        return torch.linalg.vector_norm(rows, 1, dim=1, keepdim=True) / rows.shape[1]
    return _mean(rows.abs(), counts)


def _percentiles(rows, counts, percentile, symmetric):
    """The range that holds a share of each row's numbers: of their sizes, or as much less at either end.

    A row most of whose numbers are 0 may have a range of nothing at all; there the range holds every number.
    """
    if symmetric:
        high = _upper(rows.abs(), counts, percentile)
        low = -high
    else:
        share = (1 + percentile) / 2
        low, high = -_upper(-rows, counts, share), _upper(rows, counts, share)
    smallest, largest = _ends(rows, counts)
    nothing = (low >= 0) & (high <= 0)
    return torch.where(nothing, smallest, low), torch.where(nothing, largest, high)


def _upper(rows, counts, share):
    """The smallest number of each row that has `share` of the row's numbers at or below it."""
    if counts is None or counts.dtype == torch.bool:  # where it is False the number is 0, and the range holds 0 anyway
        total = rows.shape[1] if counts is None else counts.sum(1, keepdim=True)
        place = torch.as_tensor((1 - share) * total, device=rows.device).floor().long().expand(len(rows), 1)
        largest = rows.topk(min(rows.shape[1], int(place.max()) + 1), dim=1).values
        return largest.gather(1, place.clamp(max=largest.shape[1] - 1))
    ordered, places = rows.sort(1)
    reached = counts.gather(1, places).double().cumsum(1)
    place = torch.searchsorted(reached, reached[:, -1:] * share).clamp(max=rows.shape[1] - 1)
    return ordered.gather(1, place)
