"""Weights on a grid cost their codes at the grid's width at most, mostly less, and come back to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.storage import rounded, tensors
from compresslab.storage.coder import Allowance, Reader, Writer
from compresslab.storage.container import CorruptFileError
from compresslab.storage.header import Entry
from compresslab.weights import grids

pytestmark = pytest.mark.slow

SLACK = 2 * 8 + 8 + 4 + 8  # two tensors of scales, with their forms; two forms; the last word; the range of codes


def grid_of(low, high, bits, channels=None, whole=True, seed=0):
    """A grid with a scale for each of so many channels of a matrix, or one for all."""
    generator = torch.Generator().manual_seed(seed)
    shape = () if channels is None else (channels, 1)
    scale = torch.rand(shape, generator=generator) + 0.1
    zero_point = torch.randint(low, high + 1, shape, generator=generator).float() + (0.0 if whole else 0.5)
    return grids.Grid(scale, zero_point, low, high, bits)


def written(settled, mask=None):
    writer = Writer()
    rounded.write(writer, None, mask, settled)
    return writer.data(), writer.coded()


def read(data, coded, shape, masked=False, dtype=torch.float32):
    reader = Reader(data, coded, Allowance(100 + len(data) + len(coded)))
    result = rounded.read(reader, Entry("weight", tensors.NAMES[dtype], tuple(shape)), masked)
    reader.close()
    return result


def size(grid, numbers, mask=None):
    """Bytes of a weight with these codes, after checking that all of it comes back to the bit."""
    weight = grid.values(numbers) if mask is None else torch.where(mask, grid.values(numbers), 0.0)
    settled, again = rounded.settle_grid(grid, weight, mask)
    assert torch.equal(again if mask is None else again[mask], numbers if mask is None else numbers[mask])
    data, coded = written((settled, again), mask)
    found, value, kept = read(data, coded, tuple(numbers.shape), mask is not None)
    assert torch.equal(value, weight) and not value.signbit()[value == 0].any()
    assert torch.equal(found.scale, grid.step_size) and torch.equal(found.zero_point, grid.zero_point)
    assert (found.low, found.high, found.bits) == (grid.low, grid.high, grid.bits)
    assert kept is None if mask is None else torch.equal(kept, mask)
    return len(data) + len(coded)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [None, 40], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_of_any_kind_cost_their_bits_at_most_and_bell_shaped_ones_less(bits, channels):
    grid = grid_of(0, 2**bits - 1, bits, channels)
    scales = 2 * 4 * (channels or 1)
    spread = 0 if channels is None else 1  # of levels: zero points lie anywhere, and levels are counted from there
    even = torch.randint(0, 2**bits, (40, 300), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    assert size(grid, even) <= even.numel() * (bits + spread) / 8 + scales + SLACK
    grid.zero_point.fill_(2 ** (bits - 1))
    bell = (noise(40, 3000) * 2**bits / 8 + 2 ** (bits - 1)).round().clamp(0, 2**bits - 1).to(torch.int32)
    assert size(grid, bell) < bell.numel() * bits / 8 * (0.9 if bits > 1 else 1) + scales + SLACK
    for shape in ((1,), (3,), (7, 1), (2, 3, 1, 2), (0, 4)):
        grid = grid_of(0, 2**bits - 1, bits)
        few = torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(2), dtype=torch.int32)
        assert size(grid, few) <= -(-few.numel() * bits // 8) + 8 + SLACK


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(0, 30), st.integers(1, 40)),
    st.integers(1, 16),
    st.integers(-300, 300),
    st.booleans(),
    st.booleans(),
    st.floats(0, 1),
    st.one_of(st.none(), st.floats(0, 1)),
    st.integers(0, 2**16),
)
def test_any_codes_come_back(shape, bits, low, per_channel, whole, zeros, density, seed):
    grid = grid_of(low, low + 2**bits - 1, bits, shape[0] if per_channel else None, whole, seed)
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(low, low + 2**bits, shape, generator=generator, dtype=torch.int32)
    zero = grid.zero_point.floor().clamp(low, low + 2**bits - 1).to(torch.int32).expand(shape)
    numbers = torch.where(torch.rand(shape, generator=generator) < zeros, zero, numbers)
    mask = None if density is None else torch.rand(shape, generator=generator) < density
    most = numbers.numel() * (bits + per_channel) / 8 + 8 * grid.scale.numel() + SLACK
    most += numbers.numel() / (4 if bits > 8 else 32)  # of two bytes, each coded by itself with a table
    assert size(grid, numbers, mask) <= most + (0 if mask is None else 10 + numbers.numel() / 8)


def test_channels_of_unequal_ranges_share_one_histogram():
    """Affine grids put 0 at another code in each channel; levels, which are counted from there, crowd around 0."""
    weight = noise(200, 300) * 0.05
    low, high = weight.amin(1, keepdim=True) - torch.rand(200, 1), weight.amax(1, keepdim=True)
    scale = (high - low) / 255
    grid = grids.Grid(scale, (-low / scale).round(), 0, 255, 8)
    assert size(grid, grid.codes(weight)) < 0.85 * weight.numel()


def test_many_zeros_are_left_out_where_rows_and_columns_differ():
    weight = noise(300, 784) * (torch.rand(784, generator=torch.Generator().manual_seed(0)) ** 4)
    grid = grids.Grid(torch.tensor(0.5), torch.tensor(0.0), -8, 7, 4)
    numbers = grid.codes(weight)
    share = numbers.unique(return_counts=True)[1] / numbers.numel()
    entropy = -float((share * share.log2()).sum()) * numbers.numel() / 8
    assert size(grid, numbers) < 0.9 * entropy


def test_one_bit_and_constant_weights_cost_next_to_nothing_more():
    binary = grids.Grid(torch.full((300, 1), 0.25), torch.full((300, 1), 0.5), 0, 1, 1)
    assert size(binary, (noise(300, 784) > 0).to(torch.int32)) < 300 * 784 / 8 + 50
    assert size(binary, torch.ones(300, 784, dtype=torch.int32)) < 40
    one = grids.Grid(torch.tensor(3.0), torch.tensor(0.0), -8, 7, 4)
    assert size(one, torch.full((300, 784), -3, dtype=torch.int32)) < 40


def test_masks_of_grids_keep_zeros_that_belong_to_them():
    weight, grid = noise(60, 50), grids.Grid(torch.tensor(0.5), torch.tensor(0.0), -2, 1, 2)
    mask = weight.abs() > 0.24
    assert bool((grid.codes(weight)[mask] == 0).any())
    assert size(grid, grid.codes(weight), mask) < 60 * 50 * 3 / 8
    without_zero = grids.Grid(torch.tensor(0.5), torch.tensor(0.5), 0, 1, 1)
    assert size(without_zero, without_zero.codes(weight), mask) < 60 * 50 / 8 * 1.6
    assert size(grid, grid.codes(weight), torch.zeros_like(mask)) < 40


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize(
    "scales", [(1, 6, 1, 1), (6, 1, 1, 1), (1, 1, 5, 1), (6, 1, 1), (5,), (6, 6, 1, 1), (6, 6, 5, 5), (1, 1, 1, 1), ()]
)
def test_step_sizes_may_lie_along_any_dimension(scales, bits):
    """A transposed convolution has its channels along the second one, perhaps as many as along the first."""
    scale = torch.rand(scales, generator=torch.Generator().manual_seed(0)) + 0.1
    zero_point = torch.arange(scale.numel()).reshape(scales) % 2**bits
    grid = grids.Grid(scale, zero_point.float(), 0, 2**bits - 1, bits)
    mask = noise(6, 6, 5, 5) > 0
    for held in (None, mask):
        size(grid, torch.randint(0, 2**bits, mask.shape, dtype=torch.int32), held)


def test_learned_step_sizes_are_stored_as_they_are_and_stay_learned():
    grid = grids.Grid(torch.rand(6, 1) + 1, torch.zeros(6, 1), -8, 7, 4, learned=True)
    with torch.no_grad():
        grid.growth.normal_(generator=torch.Generator().manual_seed(0))
    size(grid, grid.codes(noise(6, 9) * 3))
    for trained in (True, False):
        grid.growth.requires_grad_(trained)
        settled = rounded.settle_grid(grid, grid.values(torch.ones(6, 9, dtype=torch.int32)))
        assert read(*written(settled), (6, 9))[0].growth.requires_grad == trained


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_dtypes_come_back(dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grid = grids.Grid(torch.rand(9, 1, dtype=wide) + 0.1, torch.zeros(9, 1, dtype=wide), -8, 7, 4)
    with torch.no_grad():
        weight = grid(noise(9, 20).to(dtype))
    found = read(*written(rounded.settle_grid(grid, weight)), (9, 20), dtype=dtype)[1]
    assert found.dtype == dtype and torch.equal(found, weight)


def test_what_its_grid_does_not_give_is_not_taken_for_codes():
    grid = grids.Grid(torch.tensor(0.5), torch.tensor(0.0), -8, 7, 4)
    assert rounded.settle_grid(grid, torch.tensor([0.5, 1.0])) is not None
    for weight in (torch.tensor([0.5, 1.1]), torch.tensor([0.5, torch.nan]), torch.tensor([4.0])):
        assert rounded.settle_grid(grid, weight) is None
    assert rounded.settle_grid(grid, torch.tensor([0.5, 1.1]), torch.tensor([True, False])) is not None
    far = grids.Grid(torch.tensor(0.5), torch.tensor(2.0**30), 0, 15, 4)
    assert rounded.settle_grid(far, far.values(torch.tensor([3], dtype=torch.int32))) is None


def payload(scale, zero_point, levels=(2, 1), narrow=True, low=0, span=15, bits=4, sides=()):
    """The bytes of a grid of any numbers, and of any levels."""
    writer = Writer()
    writer.uint(rounded.GRID)
    writer.number(bits - 1, 16)
    writer.uint(2 * low)
    writer.uint(span)
    writer.number(0, 3)
    writer.number(0, 2)
    writer.uint(len(sides))
    for whole in sides:
        writer.number(whole, 2)
    for side in (scale, zero_point):
        tensors.write(writer, torch.tensor(float(side)))
    writer.number(int(not narrow), 2)
    tensors.write(writer, torch.tensor(levels, dtype=torch.int16 if narrow else torch.int32))
    return writer.data(), writer.coded()


@pytest.mark.parametrize(
    ("sides", "levels", "more", "message"),
    [
        ((float("nan"), 0), (2, 1), {}, "scale"),
        ((float("inf"), 0), (2, 1), {}, "scale"),
        ((-1.0, 0), (2, 1), {}, "scale"),
        ((0.0, 0), (2, 1), {}, "do not lie on their grid"),
        ((1.0, float("nan")), (2, 1), {}, "zero point"),
        ((1.0, 1e30), (2, 1), {}, "zero point"),
        ((1.0, 0), (16, 1), {}, "outside its grid"),
        ((1.0, 0), (-1, 1), {}, "outside its grid"),
        ((1.0, 20), (0, 0), {}, "outside its grid"),
        ((0.1, 2.0**24 - 1), (2, 1), {}, "outside its grid"),
        ((1.0, 0), (2, 1), {"span": 16}, "a count is 16, more than 15"),
        ((1.0, 0), (2, 1), {"low": 2**24}, "a code or zero point out of reach"),
        ((1.0, 0), (2, 1), {"low": 2**25}, "a count is 67108864"),
        ((1.0, 0), (2, 1), {"sides": (1, 1)}, "a count is 2, more than 1"),
    ],
    ids=str,
)
def test_grids_that_no_writer_writes_are_refused(sides, levels, more, message):
    for narrow in (True, False):
        assert read(*payload(1.0, 0, narrow=narrow), (2,))[1].tolist() == [2, 1]
        with pytest.raises(CorruptFileError, match=message):
            read(*payload(*sides, levels, narrow, **more), (2,))


def test_a_grid_that_ends_early_or_has_too_much_is_refused():
    data, coded = payload(1.0, 0)
    with pytest.raises(CorruptFileError, match="left over"):
        read(data + b"0", coded, (2,))
    with pytest.raises(CorruptFileError, match="ends early"):
        read(b"", payload(0.1234567, 0, range(0, 32000, 1000))[1], (32,))


@pytest.mark.parametrize("kind", [rounded.GRID, rounded.BOOK, rounded.HALF])
def test_integers_are_not_rounded(kind):
    writer = Writer()
    writer.uint(kind)
    with pytest.raises(CorruptFileError, match="is rounded, which is int8"):
        read(b"", writer.coded(), (2,), dtype=torch.int8)


def test_a_masked_weight_must_have_its_mask():
    with pytest.raises(CorruptFileError, match="without one"):
        read(*payload(1.0, 0), (2,), masked=True)
