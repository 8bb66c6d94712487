"""k-means on a line: scikit-learn's KMeans as the oracle; starts by hand, duplicates, outliers, many numbers."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from compresslab.numerics import clustering
from compresslab.numerics.clustering import INITS, kmeans


def drawn(seed, size=3000, tail=3):
    """Numbers as the weights of a layer: many near zero, few far away."""
    return np.random.default_rng(seed).standard_t(tail, size).astype(np.float32)


def inertia(numbers, centroids):
    """Sum of the squared distances to the nearest centroid."""
    nearest = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, numbers)
    return float(np.square(numbers - centroids[nearest]).sum())


def learned(numbers, start, rounds=300):
    """Centroids of scikit-learn, from a start, until nothing moves."""
    wide = numbers.astype(np.float64)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(len(start), init=start[:, None], n_init=1, max_iter=rounds, tol=0).fit(wide)
    return np.sort(model.cluster_centers_.ravel())


def start_of(numbers, count, init, seed=0):
    return kmeans(numbers, count, init, rounds=0, generator=np.random.default_rng(seed))


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("count", [2, 3, 8, 16])
def test_the_centroids_of_scikit_learn(count, init):
    for seed in range(3):
        numbers = drawn(seed)
        ours = kmeans(numbers, count, init, generator=np.random.default_rng(0))
        assert np.allclose(ours, learned(numbers, start_of(numbers, count, init)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("init", INITS)
def test_many_centroids_come_as_close_as_scikit_learns(init):
    numbers = drawn(0)  # the even start leaves most of the 256 without a number, and those are sent elsewhere
    theirs = learned(numbers, start_of(numbers, 256, init))
    ours = kmeans(numbers, 256, init, generator=np.random.default_rng(0))
    assert inertia(numbers, ours) <= inertia(numbers, theirs) * 1.05


@settings(max_examples=40, deadline=None)
@given(
    numbers=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60),
    count=st.integers(1, 8),
    init=st.sampled_from(INITS),
)
def test_whatever_the_numbers_are(numbers, count, init):
    numbers = np.array(numbers, np.float32)
    ours = kmeans(numbers, count, init, generator=np.random.default_rng(0))
    assert 1 <= len(ours) <= count and (np.diff(ours) > 0).all()
    assert ours[0] >= numbers.min() - 1e-3 and ours[-1] <= numbers.max() + 1e-3
    start = start_of(numbers, count, init)
    assert inertia(numbers, ours) <= inertia(numbers, start) * (1 + 1e-6) + 1e-9


@settings(max_examples=30, deadline=None)
@given(values=st.sets(st.floats(-100, 100, width=32), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_few_distinct_numbers_are_their_own_centroids(values, seed):
    distinct = np.unique(np.array(sorted(values), np.float32))
    numbers = np.random.default_rng(seed).choice(distinct, 50)
    numbers[: len(distinct)] = distinct
    for init in INITS:
        assert np.array_equal(kmeans(numbers, 8, init, generator=np.random.default_rng(0)), distinct)


def test_a_round_by_hand():
    numbers = np.array([0.0, 1, 2, 10, 11, 30])
    assert kmeans(numbers, 3, "linear", rounds=0).tolist() == [0, 15, 30]
    assert kmeans(numbers, 3, "linear").tolist() == [1, 10.5, 30]
    assert kmeans(numbers, 1, "linear").tolist() == [9]
    assert kmeans(numbers, 3, "density", rounds=0).tolist() == [1, 10, 30]


def test_where_centroids_begin():
    numbers = drawn(0)
    assert np.allclose(start_of(numbers, 9, "linear"), np.linspace(numbers.min(), numbers.max(), 9))
    shares = [(numbers <= one).mean() for one in start_of(numbers, 8, "density")]
    assert np.allclose(shares, (np.arange(8) + 0.5) / 8, atol=1e-3)
    some = start_of(numbers, 8, "random")
    assert np.isin(some, numbers).all() and len(some) == 8
    assert not np.array_equal(some, start_of(numbers, 8, "random", seed=1))


def test_an_outlier_does_not_spoil_the_rest():
    numbers = np.append(drawn(0), [-1e30, 1e30]).astype(np.float32)
    ours = kmeans(numbers, 8, "density")
    assert ours[0] == numbers.min() and ours[-1] == numbers.max()
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("init", INITS)
def test_of_very_many_numbers_neighbours_are_taken_together(init, monkeypatch):
    numbers = drawn(0, 200_000, tail=5)
    exact = kmeans(numbers, 16, init, generator=np.random.default_rng(0))
    monkeypatch.setattr(clustering, "MOST", 60_000)
    together = kmeans(numbers, 16, init, generator=np.random.default_rng(0))
    assert inertia(numbers, together) < 1.005 * inertia(numbers, exact)


def test_shape_and_order_do_not_matter_and_nothing_is_written():
    numbers = drawn(0)
    before = numbers.copy()
    assert np.array_equal(kmeans(numbers.reshape(60, 50), 8), kmeans(numbers[::-1], 8))
    assert np.array_equal(numbers, before)
