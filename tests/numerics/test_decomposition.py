"""Low-rank decompositions: torch's SVD as the oracle, weighted and random ones against the exact optimum."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.numerics import decomposition
from compresslab.numerics.decomposition import break_even, decompose

SHAPES = [(1, 1), (1, 7), (9, 1), (5, 5), (6, 20), (20, 6), (300, 100)]


def matrix_of(rows, columns, seed=0, decay=None):
    """Gaussian; with `decay` its singular values fall like decay**i."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator)
    if decay is None:
        return matrix
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left * decay ** torch.arange(len(right))) @ right


def moment_of(columns, seed=1):
    """Second moment of correlated inputs of very different sizes, and a matrix whose rows are such inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    inputs = (inputs * torch.logspace(0, -2, columns)).double()
    return inputs.T @ inputs / len(inputs), inputs


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_as_torch(shape):
    matrix = matrix_of(*shape)
    found = decompose(matrix)
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    assert torch.allclose(found.values, values, atol=1e-6)
    assert found.total == pytest.approx(float(values.square().sum()))
    for rank in {1, min(shape) // 2 or 1, min(shape)}:
        one, other = found.factors(rank)
        assert one.shape == (shape[0], rank) and other.shape == (rank, shape[1])
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert torch.allclose((one @ other).double(), best, atol=2e-5)


def test_the_scale_is_shared_alike():
    one, other = decompose(matrix_of(30, 12)).factors(5)
    assert torch.allclose(one.norm(dim=0), other.norm(dim=1), rtol=1e-5)
    assert torch.allclose(one.norm(dim=0).square(), torch.linalg.svdvals(matrix_of(30, 12))[:5], rtol=1e-5)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_matrix_of_lower_rank_than_asked_for(rank):
    matrix = matrix_of(20, rank) @ matrix_of(rank, 15, seed=2) if rank else torch.zeros(20, 15)
    found = decompose(matrix)
    one, other = found.factors(10)
    assert one.isfinite().all() and other.isfinite().all()
    assert torch.allclose(one @ other, matrix, atol=1e-5)
    assert found.values[rank:].max() < 1e-6 * (1 + found.values[0])
    assert found.rank_for(0.999999) == max(1, rank)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 99), scale=st.floats(1e-3, 1e3))
def test_no_matrix_of_that_rank_is_nearer(rows, columns, seed, scale):
    """Eckart-Young: the error is the tail of the spectrum, whatever the matrix."""
    matrix = scale * matrix_of(rows, columns, seed)
    values = torch.linalg.svdvals(matrix.double())
    found = decompose(matrix)
    for rank in range(1, min(rows, columns) + 1):
        one, other = found.factors(rank)
        error = (matrix - one @ other).double().norm()
        assert float(error) == pytest.approx(float(values[rank:].norm()), rel=1e-4, abs=1e-5 * float(values[0]))


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (30, 30)], ids=str)
def test_weighted_is_best_for_the_outputs(shape):
    """Against the SVD of the whitened matrix; the optimum is the tail of its spectrum."""
    matrix, (moment, inputs) = matrix_of(*shape).double(), moment_of(shape[1])
    values = torch.linalg.svdvals(matrix @ torch.linalg.cholesky(moment))
    found, plain = decompose(matrix, moment=moment), decompose(matrix)
    assert torch.allclose(found.values, values, rtol=1e-6, atol=1e-7)
    for rank in (1, 3, min(shape) - 1):
        errors = []
        for one, other in (found.factors(rank), plain.factors(rank)):
            errors.append(float((inputs @ (matrix - one @ other).T).square().sum(1).mean()))
        assert errors[0] == pytest.approx(float(values[rank:].square().sum()), rel=1e-5)
        assert errors[0] < errors[1]


@pytest.mark.parametrize("energy", [1e-9, 0.3, 0.5, 0.9, 0.999, 1])
def test_energy_takes_the_smallest_rank(energy):
    values = decompose(matrix_of(40, 25)).values.square()
    rank = decompose(matrix_of(40, 25), energy=energy).rank_for(energy)
    assert values[:rank].sum() >= energy * values.sum() * (1 - 1e-9)
    assert rank == 1 or values[: rank - 1].sum() < energy * values.sum()


def test_energy_of_equal_values():
    assert decompose(torch.eye(10)).rank_for(0.5) == 5
    assert decompose(torch.eye(10)).rank_for(0.51) == 6


LARGE = {"flat spectrum": None, "falling spectrum": 0.97}


@pytest.mark.parametrize("decay", LARGE.values(), ids=LARGE.keys())
@pytest.mark.parametrize("shape", [(600, 900), (900, 600)], ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_random_directions_come_near_the_best(shape, decay, weighted):
    matrix = matrix_of(*shape, decay=decay)
    moment = moment_of(shape[1])[0] if weighted else None
    root = torch.linalg.cholesky(moment + 1e-9 * torch.eye(shape[1])) if weighted else torch.eye(shape[1]).double()
    values = torch.linalg.svdvals(matrix.double() @ root)
    for rank in (1, 20, 100):
        found = decompose(matrix, rank=rank, moment=moment)
        assert len(found.values) < min(shape), "decomposed completely"
        one, other = found.factors(rank)
        error, best = ((matrix - one @ other).double() @ root).norm(), values[rank:].norm()
        assert best * (1 - 1e-4) <= error <= 1.03 * best
        assert found.total == pytest.approx(float(values.square().sum()), rel=1e-4)


def test_random_directions_repeat_with_their_seed():
    matrix, random = matrix_of(600, 700), torch.get_rng_state()
    one, same, other = (decompose(matrix, rank=8, seed=seed).left for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_large_matrix_at_a_high_rank_is_exact():
    matrix = matrix_of(600, 601)
    one, other = decompose(matrix, rank=600).factors(600)
    assert torch.allclose(one @ other, matrix, atol=1e-4)


@pytest.mark.parametrize(
    "decay, energy, complete", [(0.9, 0.5, False), (0.98, 0.97, False), (0.99, 0.999, True), (None, 0.9, True)]
)
def test_energy_looks_for_as_many_directions_as_it_takes(decay, energy, complete):
    matrix = matrix_of(600, 700, decay=decay)
    found, values = decompose(matrix, energy=energy), torch.linalg.svdvals(matrix.double()).square()
    best = int((values.cumsum(0) >= energy * values.sum()).double().argmax()) + 1
    assert best <= found.rank_for(energy) <= best + 1
    assert (len(found.values) == 600) == complete


def test_equal_numbers_are_decomposed_once(monkeypatch):
    calls = []
    complete = decomposition._decompose_completely
    monkeypatch.setattr(decomposition, "_decompose_completely", lambda *given: calls.append(1) or complete(*given))
    matrix, moment = matrix_of(7, 9, seed=77), moment_of(9)[0]
    first = decompose(matrix)
    assert decompose(matrix.clone()) is first and len(calls) == 1
    decompose(matrix, moment=moment)
    decompose(matrix, moment=moment.clone())
    assert len(calls) == 2
    matrix.data[0, 0] += 1  # the version counter does not see this
    assert decompose(matrix) is not first and len(calls) == 3
    assert torch.allclose(decompose(matrix).values, torch.linalg.svdvals(matrix.double()), atol=1e-5)


def test_what_is_stored_is_bounded(monkeypatch):
    for seed in range(20):
        decompose(matrix_of(6, 5, seed))
    assert decomposition._look_up.cache_info().currsize == decomposition.ENTRIES
    monkeypatch.setattr(decomposition, "CACHED", 20)
    before = decomposition._look_up.cache_info()
    decompose(matrix_of(6, 5))
    assert decomposition._look_up.cache_info() == before


@pytest.mark.parametrize(
    "rows, columns, expected", [(256, 128, 85.3333), (1, 1, 0.5), (10, 10, 5), (784, 300, 216.9742)]
)
def test_break_even(rows, columns, expected):
    found = break_even(rows, columns)
    assert found == pytest.approx(expected, abs=1e-4)
    below = int(found) if found > int(found) else int(found) - 1
    assert below * (rows + columns) < rows * columns <= (below + 1) * (rows + columns)
