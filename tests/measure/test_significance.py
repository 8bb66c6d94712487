import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from compresslab import measure


class Column(nn.Module):
    """Right on an image (label 0) where its column is 1."""

    def __init__(self, column):
        super().__init__()
        self.column = column

    def forward(self, images):
        right = images[:, self.column]
        return torch.stack([right, 1 - right], 1)


def columns(both, only_a, only_b, neither):
    """Images on which Column(0) and Column(1) agree and disagree as often as told."""
    rows = [[1.0, 1.0]] * both + [[1.0, 0.0]] * only_a + [[0.0, 1.0]] * only_b + [[0.0, 0.0]] * neither
    return torch.tensor(rows), torch.zeros(len(rows), dtype=torch.long)


def right_on(count, total):
    return columns(count, 0, 0, total - count)


def test_interval_holds_the_bootstrap_of_scipy():
    interval = measure.accuracy_interval(Column(0), right_on(160, 200))
    sample = (np.arange(200) < 160).astype(float)
    oracle = stats.bootstrap((sample,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1))
    assert interval.accuracy == 0.8
    assert interval.low == pytest.approx(oracle.confidence_interval.low, abs=0.006)
    assert interval.high == pytest.approx(oracle.confidence_interval.high, abs=0.006)


def test_interval_shrinks_with_images_and_grows_with_confidence():
    few, many = (measure.accuracy_interval(Column(0), right_on(8 * n, 10 * n)) for n in (5, 500))
    sure = measure.accuracy_interval(Column(0), right_on(40, 50), confidence=0.999)
    assert many.high - many.low < 0.2 * (few.high - few.low)
    assert sure.low < few.low < 0.8 < few.high < sure.high
    assert sure.confidence == 0.999


def test_ten_thousand_images_give_a_fifth_of_a_point():
    interval = measure.accuracy_interval(Column(0), right_on(9850, 10_000))
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * (0.985 * 0.015 / 10_000) ** 0.5, rel=0.1)


@pytest.mark.parametrize(("count", "low", "high"), [(20, 0.025 ** (1 / 20), 1.0), (0, 0.0, 1 - 0.025 ** (1 / 20))])
def test_interval_at_the_ends_is_not_a_point(count, low, high):
    interval = measure.accuracy_interval(Column(0), right_on(count, 20))
    assert (interval.low, interval.accuracy, interval.high) == (pytest.approx(low), count / 20, pytest.approx(high))


def test_interval_is_repeatable_and_private():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    one, same, other = (
        measure.accuracy_interval(Column(0), right_on(30, 50), resamples=100, seed=s) for s in (0, 0, 1)
    )
    assert one == same
    assert one != other
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence": 95}, r"confidence is 95; give a fraction from 0 to 1 \(0.95, not 95\)"),
        ({"confidence": 1}, "confidence is 1; give a fraction between 0 and 1"),
        ({"confidence": 0.0}, "confidence is 0"),
        ({"confidence": float("nan")}, "confidence is nan"),
        ({"resamples": 1}, "resamples is 1"),
        ({"resamples": 1e3}, "resamples is 1000.0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        measure.accuracy_interval(Column(0), right_on(5, 10), **settings)


@pytest.mark.parametrize(
    ("only_a", "only_b", "verdict"),
    [(12, 2, "a is better"), (2, 12, "b is better"), (6, 5, "can't tell"), (0, 5, "can't tell"), (6, 0, "a is better")],
)
def test_mcnemar_by_the_binomial(only_a, only_b, verdict):
    result = measure.mcnemar(Column(0), Column(1), columns(30, only_a, only_b, 4))
    assert (result.only_a, result.only_b, result.verdict) == (only_a, only_b, verdict)
    tail = stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
    assert result.p_value == pytest.approx(min(1, 2 * tail))


def test_mcnemar_of_a_model_with_itself():
    result = measure.mcnemar(Column(0), Column(0), columns(3, 2, 1, 1))
    assert (result.only_a, result.only_b, result.p_value, result.verdict) == (0, 0, 1.0, "can't tell")


def test_mcnemar_does_not_mind_the_order():
    split = columns(10, 9, 3, 2)
    one, other = measure.mcnemar(Column(0), Column(1), split), measure.mcnemar(Column(1), Column(0), split)
    assert (one.only_a, one.only_b, one.p_value) == (other.only_b, other.only_a, other.p_value)


def test_mcnemar_of_nothing():
    with pytest.raises(ValueError, match="at least one image"):
        measure.mcnemar(Column(0), Column(1), columns(0, 0, 0, 0))
