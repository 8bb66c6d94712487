"""Codebooks: a weight that is one of few values, and the values are what trains.

A parametrization like `grids.Grid`, but its values lie anywhere: weight = centroids[assignments]. Which weight takes
which centroid is settled; training moves the centroids, each by the sum of the gradients of its weights.

Han et al. 2016, arXiv:1510.00149, section 3.
"""

import torch
from torch import nn

from compresslab.layers import Rounding

MOST_CENTROIDS = 2**15
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Codebook(Rounding):
    """Parametrization that makes a weight of a codebook and the assignments to it.

    centroids    (k,) finite floats, k from 1 to 2**15: a parameter, trained; the weight has its dtype
    assignments  integers of the weight's shape, 0 to k - 1; a buffer, uint8 up to 256 centroids, else int16
    zero         True where centroid 0 is exactly 0 and stays it: training leaves it alone
    raises       ValueError for tensors of another kind, and assignments that no centroid is there for

    The parameter behind the weight has no part in it and gets no gradient. A tensor that is assigned to the weight
    takes, number by number, the nearest centroids.
    """

    def __init__(self, centroids, assignments, zero=False):
        super().__init__()
        _check(centroids, assignments, zero)
        self.zero = bool(zero)
        self.centroids = nn.Parameter(centroids)
        self.register_buffer("assignments", assignments.to(torch.uint8 if len(centroids) <= 256 else torch.int16))

    def forward(self, weight):
        index = self.assignments.flatten()
        if torch.is_grad_enabled() and self.centroids.requires_grad and not torch.compiler.is_compiling():
            values = _Lookup.apply(self.centroids, index, self.zero)
        else:
            values = _looked_up(self.centroids, index)
        return values.reshape(self.assignments.shape)

    def right_inverse(self, weight):
        """What is kept as the original. Registration hands over the module's own Parameter, which changes nothing."""
        if not isinstance(weight, nn.Parameter):
            self.assignments = nearest(weight, self.centroids).to(self.assignments.dtype)
        return weight

    def extra_repr(self):
        """What tells two codebooks apart, beside their tensors."""
        return f"centroids={len(self.centroids)}, assignments={tuple(self.assignments.shape)}, zero={self.zero}"


def nearest(numbers, centroids):
    """Which of some centroids is nearest to each number: int64 of the shape of `numbers`, the lesser one of two.

    numbers  float tensor of any shape;  centroids  (k,) float tensor, in any order

    The middle between two is rounded to the numbers' precision, but never up to the upper one: a number that is a
    centroid takes it, even beside the next float.
    """
    values, order = centroids.detach().cpu().double().sort(stable=True)
    lower, upper = values[:-1], values[1:]
    wide = numbers.detach().to(torch.promote_types(numbers.dtype, torch.float32)).contiguous()
    middles = (lower / 2 + upper / 2).to(wide.dtype)  # lower + upper may be infinite
    edges = torch.where(middles < upper, middles, lower.to(wide.dtype)).to(wide.device)
    return order.to(wide.device)[torch.bucketize(wide, edges, out_int32=True)]


class _Lookup(torch.autograd.Function):
    """centroids[index], with a gradient that takes a third of the time of torch's own on the CPU."""

    @staticmethod
    def forward(ctx, centroids, index, zero):
        ctx.save_for_backward(index)
        ctx.count, ctx.dtype, ctx.zero = len(centroids), centroids.dtype, zero
        return _looked_up(centroids, index)

    @staticmethod
    def backward(ctx, gradient):
        (index,) = ctx.saved_tensors
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        sums = (_sorted_sums if wide.is_cuda else _sums)(wide.flatten(), index, ctx.count)
        if ctx.zero:
            sums[0] = 0.0
        return sums.to(ctx.dtype), None, None


def _sums(numbers, index, count):
    """Sums of the numbers of each index, (count,)."""
    return torch.bincount(index, numbers, minlength=count)


def _sorted_sums(numbers, index, count):
    """The same in an order that is the same in every run, which a GPU's `_sums` has not."""
    order = index.argsort(stable=True)
    return torch.segment_reduce(numbers[order], "sum", lengths=torch.bincount(index, minlength=count))


def _looked_up(centroids, index):
    return centroids.index_select(0, index.int())  # indices of 32 bits take a quarter of the time of an index of 64


def _check(centroids, assignments, zero):
    if not isinstance(centroids, torch.Tensor) or centroids.dim() != 1 or centroids.dtype not in FLOATS:
        raise ValueError(f"centroids is {_told(centroids)}; give a tensor of floats, of shape (k,)")
    if not 1 <= len(centroids) <= MOST_CENTROIDS or not centroids.isfinite().all():
        raise ValueError(f"centroids has {len(centroids)} values, or some not finite; give 1 to {MOST_CENTROIDS}")
    whole = isinstance(assignments, torch.Tensor) and not assignments.is_floating_point()
    if not whole or assignments.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise ValueError(f"assignments is {_told(assignments)}; give a tensor of integers, of the weight's shape")
    if assignments.numel() and not 0 <= int(assignments.min()) <= int(assignments.max()) < len(centroids):
        found = f"{int(assignments.min())} to {int(assignments.max())}"
        raise ValueError(f"assignments has {found}; give 0 to {len(centroids) - 1}, one for each of the centroids")
    if zero and centroids[0] != 0:
        raise ValueError(f"zero is {zero!r}, but centroid 0 is {float(centroids[0]):g}; give 0 there")


def _told(thing):
    return f"{thing.dtype} of shape {tuple(thing.shape)}" if isinstance(thing, torch.Tensor) else repr(thing)
