"""The best matrix of low rank, also weighted by what the matrix is multiplied with, also for large matrices.

Of all matrices of rank r, A' = U U^T A is nearest to A, where U holds the r eigenvectors of A A^T with the largest
eigenvalues (Eckart and Young 1936): the truncated SVD. Where A meets inputs x with second moment C = E[x x^T],
E|A x - A' x|^2 is least for the eigenvectors of A C A^T (Zhang et al. 2015, arXiv:1505.06798, section 3.1, without its
nonlinearity; the same optimum as whitening by a Cholesky factor of C, SVD-LLM, arXiv:2403.07378). A large matrix is
first projected on a few directions, found with random test vectors: Halko, Martinsson and Tropp 2011, arXiv:0909.4061.
"""

import threading
from dataclasses import dataclass

import torch

SMALL = 512  # a matrix with no more rows or columns is always decomposed completely: that takes 30 ms, and is kept
SHARE = 4  # random projection pays while it has at most one direction in so many
OVERSAMPLE = 10  # random directions beyond the rank asked for (Halko et al., section 4.2)
ITERATIONS = 2  # of the subspace iteration that sharpens the random directions (algorithm 4.4)


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

    def factors(self, rank):
        """Matrices (rows, rank) and (rank, columns) whose product is the best of this rank, the scale shared alike.

        Each column of the first is as long as the same row of the second: training then moves both at the same pace.
        """
        left, right = self.left[:, :rank], self.right[:rank]
        scale = right.double().norm(dim=1).sqrt()  # (rank,)
        share = torch.where(scale > 0, scale, 1.0)
        return tuple(one.to(left.dtype).contiguous() for one in (left * scale, right / share[:, None]))

    def rank_for(self, energy):
        """The smallest rank, 1 or more, whose squared values sum to the fraction `energy` of the total; None if even
        all that are here do not.
        """
        reached = self.values.square().cumsum(0) >= energy * self.total * (1 - 1e-12)  # rounding of the sum
        if energy == 1 and len(self.values) == min(len(self.left), self.right.shape[1]):
            return len(self.values)
        return int(reached.double().argmax()) + 1 if reached.any() else None

    def may_reach(self, energy, rank):
        """Whether a larger rank may keep `energy`: further values are no larger than the last one here."""
        squares = self.values.square()
        return float(squares.sum() + (rank - len(squares)) * squares[-1]) >= energy * self.total


def break_even(rows, columns):
    """The rank below which two factors are smaller than the matrix: rows * columns / (rows + columns).

    rows, columns  size of the matrix, 1 or more each;  returns  a float: 85.33 for 256 x 128

    Rank r takes r * (rows + columns) numbers in place of rows * columns.
    """
    return rows * columns / (rows + columns)


def decompose(matrix, rank=None, energy=None, moment=None, seed=0):
    """A Decomposition with at least `rank` values, or with enough of them for `energy`; complete if neither is given.

    matrix  (rows, columns), floating point, finite
    rank    whole number, 1 to min(rows, columns);  energy  fraction, above 0 to 1
    moment  (columns, columns) float64, positive definite: E[x x^T] of what the matrix is multiplied with; None for the
            plain SVD
    seed    of the random directions, which are used where the matrix is large (more than 512 rows and columns) and a
            quarter of them is enough. The error is then above the best one of this rank by 3% at most, for numbers
            that are pure noise, and by less the faster the spectrum falls; elsewhere the result is the best, rounded
    """
    found = None
    for size in _sizes(min(matrix.shape), rank, energy):
        if found is None or found.may_reach(energy, size):
            found = _project(matrix, _random_basis(matrix, moment, size + OVERSAMPLE, seed), moment)
            if rank is not None or found.rank_for(energy) is not None:
                return found
    return _kept((matrix, moment), lambda: _complete(matrix, moment))


def _sizes(full, rank, energy):
    """How many directions to try, before a complete decomposition."""
    doubled = [] if energy in (None, 1) else [32 * 2**power for power in range(32)]
    sizes = [] if full <= SMALL else doubled if rank is None else [rank]
    return [size for size in sizes if SHARE * (size + OVERSAMPLE) <= full]


def _complete(matrix, moment):
    """Everything, from the Gram matrix of the rows, after a QR decomposition where there are more rows than columns."""
    tall = matrix.shape[0] > matrix.shape[1]
    return _project(matrix, torch.linalg.qr(matrix.double()).Q if tall else None, moment)


def _project(matrix, basis, moment):
    """The Decomposition of basis @ basis.T @ matrix, None for the identity as basis; the Gram matrix in float64."""
    core = matrix.double() if basis is None else basis.T @ matrix.to(basis.dtype)  # (k, columns)
    precise = core.double()
    eigenvalues, vectors = torch.linalg.eigh((precise if moment is None else precise @ moment) @ precise.T)  # ascending
    vectors = vectors.flip(1).to(core.dtype)
    left, right = vectors if basis is None else basis @ vectors, vectors.T @ core
    values = eigenvalues.flip(0).clamp(min=0).sqrt()
    total = float(values.square().sum()) if len(values) == min(matrix.shape) else _total(matrix, moment)
    return Decomposition(left.to(matrix.dtype), right.to(matrix.dtype), values, total)


def _total(matrix, moment):
    """Sum of all squared singular values of the (weighted) matrix, without any of them."""
    if moment is None:
        return float(torch.linalg.vector_norm(matrix)) ** 2
    return float((matrix @ moment.to(matrix.dtype)).mul_(matrix).sum())


def _random_basis(matrix, moment, size, seed):
    """Orthonormal (rows, size) directions that hold most of the matrix's range: randomized subspace iteration."""
    generator = torch.Generator().manual_seed(seed)
    moment = None if moment is None else moment.to(matrix.dtype)
    sample = torch.randn(matrix.shape[1], size, generator=generator).to(matrix)  # (columns, size)
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(matrix @ _times(moment, sample)).Q
        sample = (basis.T @ matrix).T  # on a CPU several times faster than matrix.T @ basis
    return torch.linalg.qr(matrix @ _times(moment, sample)).Q


def _times(moment, sample):
    return sample if moment is None else moment @ sample


ROOM = 64 * 2**20  # bytes of complete decompositions that are kept, with the matrices they belong to
_entries, _lock = [], threading.Lock()  # pairs (key tensors, Decomposition), the one used last at the end


def _kept(key, compute):
    """What `compute()` gave for tensors equal to `key`, entry for entry: a slider decomposes one model many times."""
    with _lock:
        place = next((number for number, one in enumerate(_entries) if _equal(one[0], key)), None)
        if place is not None:
            _entries.append(_entries.pop(place))
            return _entries[-1][1]
    found = compute()
    if _bytes((key, found)) > ROOM:
        return found
    entry = (tuple(None if one is None else one.clone() for one in key), found)
    with _lock:
        _entries.append(entry)
        while sum(map(_bytes, _entries)) > ROOM or len(_entries) > 64:
            del _entries[0]
    return found


def _equal(one, other):
    """Whether two tuples of tensors (or None) hold the same numbers."""
    return all(
        (a is None and b is None)
        or (a is not None and b is not None and (a.dtype, a.device) == (b.dtype, b.device) and torch.equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


def _bytes(entry):
    key, found = entry
    return sum(one.nbytes for one in (*key, found.left, found.right, found.values) if one is not None)
