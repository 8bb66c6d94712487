"""Tell whether a difference is real: an interval for an accuracy, a paired test for two models."""

from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import nn

from compresslab import checks
from compresslab.data import Split
from compresslab.measure.correctness import correct

_ALPHA = 0.05  # level of McNemar's verdict


@dataclass(frozen=True)
class Interval:
    """An accuracy with its interval, all fractions, low <= accuracy <= high."""

    accuracy: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class McNemar:
    """A paired comparison of two models.

    only_a, only_b  number of images that only the first, only the second model gets right
    p_value         chance of a split at least this uneven if both models were equally good, 0 to 1
    verdict         "a is better" | "b is better" | "can't tell" (p_value above 0.05)
    """

    only_a: int
    only_b: int
    p_value: float
    verdict: str


def accuracy_interval(
    model: nn.Module, split: Split | tuple, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Bootstrap an interval of the accuracy on more images of the same kind.

    Drawing N images again with replacement makes the number of right ones binomial, so it is drawn as that. Where all
    images are right, or none, the bootstrap sees no doubt; there the exact (Clopper-Pearson) bound is given.

    confidence  fraction strictly between 0 and 1;  resamples  number of bootstrap draws, 100 or more
    returns     Interval (percentile method)
    raises      ValueError, as `accuracy` does, and for the two settings

    Efron 1979, doi:10.1214/aos/1176344552; Clopper and Pearson 1934.
    """
    confidence = checks.fraction("confidence", confidence)
    if confidence in (0, 1):
        raise ValueError(f"confidence is {confidence:g}; give a fraction between 0 and 1, without the ends (0.95)")
    resamples = checks.integer("resamples", resamples, 100)
    seed = checks.integer("seed", seed, 0)
    right = correct(model, split)
    count, total = int(right.sum()), len(right)
    if count in (0, total):
        exact = stats.binomtest(count, total).proportion_ci(confidence, method="exact")
        low, high = exact.low, exact.high
    else:
        draws = np.random.default_rng(seed).binomial(total, count / total, resamples) / total
        low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(accuracy=count / total, low=float(low), high=float(high), confidence=confidence)


def mcnemar(a: nn.Module, b: nn.Module, split: Split | tuple) -> McNemar:
    """Test whether a model is really better, by McNemar's exact test; errors as `accuracy`.

    McNemar 1947, doi:10.1007/BF02295996; for classifiers, Dietterich 1998, doi:10.1162/089976698300017197.
    """
    right_a, right_b = correct(a, split), correct(b, split)
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    disagree = only_a + only_b
    p_value = float(stats.binomtest(only_a, disagree).pvalue) if disagree else 1.0
    better = "a is better" if only_a > only_b else "b is better"
    return McNemar(only_a, only_b, p_value, better if p_value <= _ALPHA else "can't tell")
