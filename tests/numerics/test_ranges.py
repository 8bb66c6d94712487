"""Where grids are laid: by hand, by trying every range, constants and extremes exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.numerics import ranges

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
ROWS = st.lists(st.lists(FINITE, min_size=4, max_size=4), min_size=1, max_size=4)


def laid(rows, bits, symmetric, clipping="none", **options):
    """Rows on their grid, with its scale and zero point."""
    rows = torch.as_tensor(rows, dtype=torch.float32)
    scale, point = ranges.fit(rows, bits, symmetric, clipping, **options)
    low, high = ranges.code_range(bits, symmetric)
    if bits == 1:
        return torch.where(rows >= (0.5 - point) * scale, 1 - point, -point) * scale, scale, point
    return ((rows / scale).round() + point).clamp(low, high).sub(point) * scale, scale, point


@pytest.mark.parametrize(
    "bits, symmetric, codes",
    [(1, True, (0, 1)), (1, False, (0, 1)), (2, True, (-2, 1)), (2, False, (0, 3)), (8, True, (-128, 127))],
)
def test_codes(bits, symmetric, codes):
    assert ranges.code_range(bits, symmetric) == codes


def test_ranges_by_hand():
    assert [one.item() for one in laid([[-4.0, 3.0, 1.0]], 3, True)[1:]] == [1.0, 0.0]
    assert [one.item() for one in laid([[-1.0, 6.0, 1.0]], 3, True)[1:]] == [2.0, 0.0]
    assert [one.item() for one in laid([[-2.0, 5.0, 1.0]], 3, False)[1:]] == [1.0, 2.0]
    assert [one.item() for one in laid([[2.0, 7.0]], 3, False)[1:]] == [1.0, 0.0]  # a range that misses 0 grows to it
    assert [one.item() for one in laid([[-7.0, -2.0]], 3, False)[1:]] == [1.0, 7.0]
    assert [one.item() for one in laid([[-1.0, 2.0, 3.0]], 1, True)[1:]] == [4.0, 0.5]  # twice the mean size
    values = laid([[1.0, 2.0, 6.0]], 1, False)[0]
    assert values.flatten().tolist() == pytest.approx([1, 1, 5])  # mean 3, mean distance 2


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, bits=st.integers(2, 8), symmetric=st.booleans())
def test_without_clipping_every_number_is_half_a_step_off_at_most(rows, bits, symmetric):
    values, scale, point = laid(rows, bits, symmetric)
    assert ((values - torch.tensor(rows)).abs() <= scale * 0.5001).all()
    assert (scale > 0).all() and torch.equal(point, point.round())


@settings(max_examples=100, deadline=None)
@given(
    number=st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda one: one / 4),
    bits=st.integers(1, 16),
    symmetric=st.booleans(),
    clipping=st.sampled_from(ranges.CLIPPINGS),
)
def test_equal_numbers_are_kept_exactly(number, bits, symmetric, clipping):
    rows = torch.full((2, 3), number)
    rows[1] = 1.0
    values, _, _ = laid(rows, bits, symmetric, clipping)
    assert torch.equal(values, rows)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 5), symmetric=st.booleans(), power=st.integers(-100, 100))
def test_the_search_loses_little_to_trying_every_range(seed, bits, symmetric, power):
    """However large or small the numbers are; one in some rows lies far outside.

    A lucky scale may suit a row of few numbers far better than those beside it: of 300,000 rows like these, 1 in 600
    had more than 1.3 times the least error, and the worst 1.9 times.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(30, 60, generator=generator)
    rows[:5, 0] = 40.0
    unit = 2.0**power
    found = laid(rows * unit, bits, symmetric, "mse")[0] / unit
    error, least = (found - rows).square().sum(1), everything_tried(rows, bits, symmetric)
    assert (error <= (laid(rows, bits, symmetric)[0] - rows).square().sum(1) * 1.0001).all()
    assert (error <= 3 * least).all() and (error / least).mean() < 1.1


def everything_tried(rows, bits, symmetric):
    """Least squared error of each row over a fine grid of scales, and all zero points."""
    low, high = ranges.code_range(bits, symmetric)
    scales, errors = torch.logspace(-2, 2, 120)[:, None, None], []
    codes = (rows / scales).round()  # (scales, rows, numbers)
    for point in [0] if symmetric else range(low, high + 1, max(1, (high - low) // 8)):
        values = codes.clamp(low - point, high - point) * scales
        errors.append((values - rows).square().sum(2).amin(0))
    return torch.stack(errors).amin(0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("clipping", ranges.CLIPPINGS)
def test_a_grid_fits_itself(bits, symmetric, clipping):
    if clipping == "l4" and bits > 2:
        pytest.skip("its search is coarse, and not meant for so many bits")
    rows = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    once, _, _ = laid(rows, bits, symmetric, clipping, percentile=1.0)
    twice, _, _ = laid(once, bits, symmetric, clipping, percentile=1.0)
    assert torch.allclose(once, twice, rtol=1e-5) or bits == 1 and not symmetric


@pytest.mark.parametrize("symmetric", [True, False])
def test_percentiles_hold_their_share(symmetric):
    rows = torch.randn(4, 1000, generator=torch.Generator().manual_seed(1))
    _, scale, point = laid(rows, 4, symmetric, "percentile", percentile=0.9)
    low, high = ranges.code_range(4, symmetric)
    inside = (rows >= (low - point - 0.51) * scale) & (rows <= (high - point + 0.51) * scale)
    assert ((inside.float().mean(1) - 0.9).abs() < 0.06).all()
    whole = [ranges.fit(rows, 4, symmetric, clipping, 1.0) for clipping in ("percentile", "none")]
    if not symmetric:
        assert all(torch.equal(one, other) for one, other in zip(*whole, strict=True))


def test_a_percentile_of_nothing_keeps_the_numbers_there_are():
    rows = torch.zeros(1, 100)
    rows[0, :2] = torch.tensor([3.0, -3.0])
    assert laid(rows, 4, True, "percentile", percentile=0.5)[0].abs().max() == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("clipping", ranges.CLIPPINGS)
@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_numbers_that_do_not_count(bits, symmetric, clipping):
    """Zeros of a mask leave the grid as it would be without them; a number twice counts twice."""
    rows = torch.randn(3, 40, generator=torch.Generator().manual_seed(2))
    kept = torch.ones(3, 80, dtype=torch.bool)
    kept[:, 40:] = False
    padded = torch.cat([rows, torch.zeros(3, 40)], 1)
    expected = ranges.fit(rows, bits, symmetric, clipping, 0.9)
    found = ranges.fit(padded, bits, symmetric, clipping, 0.9, kept)
    assert all(torch.allclose(one, other, rtol=1e-4) for one, other in zip(found, expected, strict=True))
    doubled = ranges.fit(rows, bits, symmetric, clipping, 0.9, torch.full((3, 40), 2.0))
    expected = ranges.fit(torch.cat([rows, rows], 1), bits, symmetric, clipping, 0.9)
    assert all(torch.allclose(one, other, rtol=0.05) for one, other in zip(doubled, expected, strict=True))


def test_a_row_of_none():
    none = torch.zeros(2, 3, dtype=torch.bool)
    for bits, symmetric in ((1, True), (4, True), (4, False)):
        scale, point = ranges.fit(torch.zeros(2, 3), bits, symmetric, "mse", counts=none)
        assert scale.isfinite().all() and point.isfinite().all()


def test_rows_larger_than_a_block_are_searched_alike():
    rows = torch.randn(2, ranges.BLOCK + 1000, generator=torch.Generator().manual_seed(3))
    scale, _ = ranges.fit(rows, 3, True, "mse")
    small = ranges.fit(rows[:, : ranges.BLOCK // 2], 3, True, "mse")[0]
    assert scale.flatten().tolist() == pytest.approx(small.flatten().tolist(), rel=0.05)
    rows[:, -1] = 100.0  # in the last block
    assert (ranges.fit(rows, 3, True, "none")[0] > 20).all()
    assert (ranges.fit(rows, 3, True, "mse")[0] < 2).all()
