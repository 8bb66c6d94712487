"""Codebooks: every weight is one of few values, and the values are what trains.

A parametrization like `grids.Grid`, but its values lie anywhere: weight = centroids[assignments]. Training moves the
centroids, each by the sum of the gradients of its weights. Han et al. 2016, arXiv:1510.00149, section 3.
"""

import torch
from torch import nn

from compresslab.weights.masks import Rounding

MOST_CENTROIDS = 2**15
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Codebook(Rounding):
    """Parametrization that makes a weight of a codebook and the assignments to it.

    centroids    (k,) finite floats, k from 1 to 2**15: a parameter, trained; the weight has its dtype
    assignments  integers of the weight's shape, 0 to k - 1; a buffer, uint8 up to 256 centroids, else int16
    zero         True where centroid 0 is exactly 0 and stays it: training leaves it alone
    raises       ValueError for tensors of another kind, and assignments without a centroid

    The parameter behind the weight gets no gradient. A tensor assigned to the weight takes the nearest centroids.
    """

    def __init__(self, centroids: torch.Tensor, assignments: torch.Tensor, zero: bool = False):
        super().__init__()
        _check(centroids, assignments, zero)
        self.zero = bool(zero)
        self.centroids = nn.Parameter(centroids)
        self.register_buffer("assignments", assignments.to(torch.uint8 if len(centroids) <= 256 else torch.int16))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight that the codebook makes, whatever the original is."""
        # Half precision is summed up in single precision.
        centroids, index = self.centroids.to(torch.promote_types(self.centroids.dtype, torch.float32)), self.assignments
        if self.zero:
            centroids = torch.cat([torch.zeros_like(centroids[:1]), centroids[1:]])  # without a gradient
        if centroids.is_cuda:  # the gradient of index_select would be summed in any order there
            return centroids[index.int()].to(self.centroids.dtype)
        return centroids.index_select(0, index.flatten().int()).reshape(index.shape).to(self.centroids.dtype)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """Assign the nearest centroids to a weight. At registration, the module's own Parameter changes nothing."""
        if not isinstance(weight, nn.Parameter):
            self.assignments = nearest(weight, self.centroids).to(self.assignments.dtype)
        return weight

    def extra_repr(self) -> str:
        """Describe the codebook beside its tensors."""
        return f"centroids={len(self.centroids)}, assignments={tuple(self.assignments.shape)}, zero={self.zero}"


def nearest(numbers: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Return the index of the nearest centroid to each number, the lesser at equal distance.

    numbers    float tensor of any shape;  centroids  (k,) float tensor, in any order
    returns    int64 tensor of the shape of `numbers`

    The middle between two centroids is rounded to the numbers' precision, but never up to the upper centroid.
    """
    values, order = centroids.detach().cpu().double().sort(stable=True)
    lower, upper = values[:-1], values[1:]
    wide = numbers.detach().to(torch.promote_types(numbers.dtype, torch.float32)).contiguous()
    middles = (lower / 2 + upper / 2).to(wide.dtype)  # lower + upper may be infinite
    edges = torch.where(middles < upper, middles, lower.to(wide.dtype)).to(wide.device)
    return order.to(wide.device)[torch.bucketize(wide, edges, out_int32=True)]


def _check(centroids, assignments, zero):
    if not isinstance(centroids, torch.Tensor) or centroids.dim() != 1 or centroids.dtype not in FLOATS:
        raise ValueError(f"centroids is {_describe(centroids)}; give a tensor of floats, of shape (k,)")
    if not 1 <= len(centroids) <= MOST_CENTROIDS or not centroids.isfinite().all():
        raise ValueError(f"centroids has {len(centroids)} values, or some not finite; give 1 to {MOST_CENTROIDS}")
    is_integer = isinstance(assignments, torch.Tensor) and not assignments.is_floating_point()
    if not is_integer or assignments.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise ValueError(f"assignments is {_describe(assignments)}; give a tensor of integers, of the weight's shape")
    if assignments.numel() and not 0 <= int(assignments.min()) <= int(assignments.max()) < len(centroids):
        actual = f"{int(assignments.min())} to {int(assignments.max())}"
        raise ValueError(f"assignments has {actual}; give 0 to {len(centroids) - 1}, one for each of the centroids")
    if zero and centroids[0] != 0:
        raise ValueError(f"zero is {zero!r}, but centroid 0 is {float(centroids[0]):g}; give 0 there")


def _describe(value):
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
