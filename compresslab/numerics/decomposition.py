"""The best matrix of low rank, also weighted by what the matrix is multiplied with, also for large matrices.

Of all matrices of rank r, A' = U U^T A is nearest to A, where U holds the r eigenvectors of A A^T with the largest
eigenvalues (Eckart and Young 1936): the truncated SVD. Where A meets inputs x with second moment C = E[x x^T],
E|A x - A' x|^2 is least for the eigenvectors of A C A^T (Zhang et al. 2015, arXiv:1505.06798, section 3.1; SVD-LLM,
arXiv:2403.07378). A large matrix is first projected on a few directions, found with random test vectors: Halko,
Martinsson and Tropp 2011, arXiv:0909.4061.
"""

import functools
from dataclasses import dataclass

import torch

SMALL = 512  # a matrix with no more rows or columns is always decomposed completely: that takes 30 ms, and is kept
SHARE = 4  # random projection pays while it has at most one direction in so many
OVERSAMPLE = 10  # random directions beyond the rank asked for (Halko et al., section 4.2)
ITERATIONS = 2  # of the subspace iteration that sharpens the random directions (algorithm 4.4)
CACHED = 2**20  # numbers of the largest matrix whose complete decomposition is stored
ENTRIES = 8  # complete decompositions that are stored: a slider decomposes the same layers at every move


@dataclass(frozen=True)
class Decomposition:
    """A (rows, columns) matrix as left @ right, sorted so that the first r columns and rows are the best of rank r.

    left    (rows, k), orthonormal columns;  right  (k, columns), left.T @ matrix
    values  (k,) float64, descending: singular values of the matrix, or of the weighted one
    total   sum of the squares of all of them, also of those that a partial decomposition leaves out
    """

    left: torch.Tensor
    right: torch.Tensor
    values: torch.Tensor
    total: float

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return matrices (rows, rank) and (rank, columns) whose product is the best of this rank.

        Each column of the first is as long as the same row of the second: training then moves both at the same pace.
        """
        left, right = self.left[:, :rank], self.right[:rank]
        scale = right.double().norm(dim=1).sqrt()  # (rank,)
        share = torch.where(scale > 0, scale, 1.0)
        return (left * scale).to(left.dtype).contiguous(), (right / share[:, None]).to(left.dtype).contiguous()

    def rank_for(self, energy: float) -> int | None:
        """Return the smallest rank that reaches the fraction `energy` of the total, or None."""
        reached = self.values.square().cumsum(0) >= energy * self.total * (1 - 1e-12)  # rounding of the sum
        if energy == 1 and len(self.values) == min(len(self.left), self.right.shape[1]):
            return len(self.values)
        return int(reached.double().argmax()) + 1 if reached.any() else None

    def may_reach(self, energy: float, rank: int) -> bool:
        """Return whether a larger rank may keep `energy`."""
        squares = self.values.square()
        return float(squares.sum() + (rank - len(squares)) * squares[-1]) >= energy * self.total


def break_even(rows: int, columns: int) -> float:
    """Return the rank below which two factors are smaller than the matrix.

    Rank r takes r * (rows + columns) numbers in place of rows * columns: 85.33 for 256 x 128.
    """
    return rows * columns / (rows + columns)


def decompose(
    matrix: torch.Tensor,
    rank: int | None = None,
    energy: float | None = None,
    moment: torch.Tensor | None = None,
    seed: int = 0,
) -> Decomposition:
    """Return a Decomposition with at least `rank` values, or enough for `energy`, or all.

    matrix  (rows, columns), floating point, finite
    rank    whole number, 1 to min(rows, columns);  energy  fraction, above 0 to 1
    moment  (columns, columns) float64, positive definite: E[x x^T] of what the matrix is multiplied with, or None
    seed    of the random directions, used where the matrix has more than 512 rows and columns and a quarter of them is
            enough: the error is then above the best one of this rank by 3% at most; elsewhere the result is the best
    """
    # Try so many directions before a complete decomposition.
    full, sizes = min(matrix.shape), [rank]
    if rank is None:
        sizes = [] if energy in (None, 1) else [32 * 2**power for power in range(32)]
    partial = None
    for size in [size for size in sizes if full > SMALL and SHARE * (size + OVERSAMPLE) <= full]:
        if partial is None or partial.may_reach(energy, size):
            partial = _project(matrix, _random_basis(matrix, moment, size + OVERSAMPLE, seed), moment)
            if rank is not None or partial.rank_for(energy) is not None:
                return partial
    if max(matrix.numel(), 0 if moment is None else moment.numel()) > CACHED:
        return _decompose_completely(matrix, moment)
    return _look_up(_Key(matrix), None if moment is None else _Key(moment))


def _decompose_completely(matrix, moment):
    """Decompose by the Gram matrix of the rows; a tall matrix by QR first."""
    tall = matrix.shape[0] > matrix.shape[1]
    return _project(matrix, torch.linalg.qr(matrix.double()).Q if tall else None, moment)


def _project(matrix, basis, moment):
    """Decompose basis @ basis.T @ matrix, None for the identity as basis, in float64."""
    core = matrix.double() if basis is None else basis.T @ matrix.to(basis.dtype)  # (k, columns)
    precise = core.double()
    eigenvalues, vectors = torch.linalg.eigh((precise if moment is None else precise @ moment) @ precise.T)  # ascending
    vectors = vectors.flip(1).to(core.dtype)
    left, right = vectors if basis is None else basis @ vectors, vectors.T @ core
    values = eigenvalues.flip(0).clamp(min=0).sqrt()
    # The sum of all squared singular values, also of those that a partial decomposition leaves out.
    if len(values) == min(matrix.shape):
        total = float(values.square().sum())
    elif moment is None:
        total = float(torch.linalg.vector_norm(matrix)) ** 2
    else:
        total = float((matrix @ moment.to(matrix.dtype)).mul_(matrix).sum())
    return Decomposition(left.to(matrix.dtype), right.to(matrix.dtype), values, total)


def _random_basis(matrix, moment, size, seed):
    """Return orthonormal (rows, size) directions that hold most of the matrix's range (subspace iteration)."""
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(matrix.shape[1], size, generator=generator).to(matrix)  # (columns, size)
    for step in range(ITERATIONS + 1):
        sample = sample if moment is None else moment.to(matrix.dtype) @ sample
        basis = torch.linalg.qr(matrix @ sample).Q
        if step < ITERATIONS:
            sample = (basis.T @ matrix).T  # on a CPU several times faster than matrix.T @ basis
    return basis


class _Key:
    """A tensor as a key of the cache: equal where dtype, device and all numbers are."""

    def __init__(self, tensor):
        self.tensor = tensor.clone()

    def __hash__(self):
        return hash((self.tensor.shape, float(self.tensor.sum())))

    def __eq__(self, key):
        first, second = self.tensor, key.tensor
        return (first.dtype, first.device) == (second.dtype, second.device) and torch.equal(first, second)


@functools.lru_cache(ENTRIES)
def _look_up(matrix, moment):
    return _decompose_completely(matrix.tensor, None if moment is None else moment.tensor)
