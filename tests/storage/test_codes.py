"""Weights on a grid cost their codes at the grid's width at most, mostly less, and come back to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab import grids
from compresslab.storage import codes, streams
from compresslab.storage.container import CorruptFileError

SLACK = 2 * 8 + 8 + 4  # two tensors of scales, which say how they are stored; two forms; the range coder's last word


def grid_of(low, high, bits, channels=None, whole=True, seed=0):
    """A grid with a scale for each of so many channels of a matrix, or one for all."""
    generator = torch.Generator().manual_seed(seed)
    shape = () if channels is None else (channels, 1)
    scale = torch.rand(shape, generator=generator) + 0.1
    zero_point = torch.randint(low, high + 1, shape, generator=generator).float() + (0.0 if whole else 0.5)
    return grids.Grid(scale, zero_point, low, high, bits)


def written(grid, numbers, mask=None):
    writer = streams.Writer()
    codes.write(writer, grid, numbers, mask)
    return bytes(writer.data), writer.words()


def read(data, words, form, shape, masked=False, dtype=torch.float32, version=3):
    reader = streams.Reader(data, words, 100 + len(data) + 4 * len(words), version)
    found = codes.read(reader, form, shape, dtype, masked)
    reader.close()
    return found


def size(grid, numbers, mask=None):
    """Bytes of a weight with these codes, after checking that all of it comes back to the bit."""
    weight = grid.values(numbers) if mask is None else torch.where(mask, grid.values(numbers), 0.0)
    settled, again = codes.settled(grid, weight, mask)
    assert torch.equal(again if mask is None else again[mask], numbers if mask is None else numbers[mask])
    data, words = written(settled, again, mask)
    form = codes.read_form(codes.form_of(grid).listed(), tuple(numbers.shape))
    found, value, kept = read(data, words, form, tuple(numbers.shape), mask is not None)
    assert torch.equal(value, weight) and not value.signbit()[value == 0].any()
    assert torch.equal(found.scale, grid.step_size) and torch.equal(found.zero_point, grid.zero_point)
    assert (found.low, found.high, found.bits) == (grid.low, grid.high, grid.bits)
    assert kept is None if mask is None else torch.equal(kept, mask)
    return len(data) + 4 * len(words)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [None, 40], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_of_any_kind_cost_their_bits_at_most_and_bell_shaped_ones_less(bits, channels):
    grid = grid_of(0, 2**bits - 1, bits, channels)
    scales = 2 * 4 * (channels or 1)
    even = torch.randint(0, 2**bits, (40, 300), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    assert size(grid, even) <= even.numel() * bits / 8 + scales + SLACK
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
    most = numbers.numel() * bits / 8 + 8 * grid.scale.numel() + SLACK
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


@pytest.mark.parametrize("bits", [2, 8], ids=["values from a table", "computed values"])
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
    assert (codes._table(grid, mask.shape, torch.float32) is None) == (
        bits == 8 or len(scales) > 3 and scale.numel() > 6
    )


def test_learned_step_sizes_are_stored_as_they_are_and_stay_learned():
    grid = grids.Grid(torch.rand(6, 1) + 1, torch.zeros(6, 1), -8, 7, 4, learned=True)
    with torch.no_grad():
        grid.growth.normal_(generator=torch.Generator().manual_seed(0))
    size(grid, grid.codes(noise(6, 9) * 3))
    for trained, stored in ((True, True), (False, "frozen")):
        grid.growth.requires_grad_(trained)
        form = codes.form_of(grid)
        assert form.learned == stored and form.listed() == [4, -8, 7, [6, 1], stored]
        assert form.grid(grid.scale, grid.zero_point).growth.requires_grad == trained


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_dtypes_come_back(dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grid = grids.Grid(torch.rand(9, 1, dtype=wide) + 0.1, torch.zeros(9, 1, dtype=wide), -8, 7, 4)
    with torch.no_grad():
        weight = grid(noise(9, 20).to(dtype))
    form = codes.read_form(codes.form_of(grid).listed(), (9, 20))
    found = read(*written(*codes.settled(grid, weight)), form, (9, 20), dtype=dtype)[1]
    assert found.dtype == dtype and torch.equal(found, weight)


def test_what_its_grid_does_not_give_is_not_taken_for_codes():
    grid = grids.Grid(torch.tensor(0.5), torch.tensor(0.0), -8, 7, 4)
    assert codes.settled(grid, torch.tensor([0.5, 1.0])) is not None
    for weight in (torch.tensor([0.5, 1.1]), torch.tensor([0.5, torch.nan]), torch.tensor([4.0])):
        assert codes.settled(grid, weight) is None
    assert codes.settled(grid, torch.tensor([0.5, 1.1]), torch.tensor([True, False])) is not None
    far = grids.Grid(torch.tensor(0.5), torch.tensor(2.0**30), 0, 15, 4)
    assert codes.settled(far, far.values(torch.tensor([3], dtype=torch.int32))) is None


@pytest.mark.parametrize(
    "items",
    [
        *([], [4], [4, 0], [4, 0, 15, [], False, "float32", 1], [4.0, 0, 15], [True, 0, 1], ["4", 0, 15]),
        *([0, 0, 0], [17, 0, 15], [99, 0, 15], [-4, 0, 15], [4, 15, 0], [4, 0, 16], [4, -(2**30), -(2**30) + 1]),
        *([4, 0, 15, 3], [4, 0, 15, [2]], [4, 0, 15, [5, 6, 1]], [4, 0, 15, [6, 5]], [4, 0, 15, [True, 1]]),
        *(
            [4, 0, 15, ["5"]],
            [4, 0, 15, [-1]],
            [4, 0, 15, [], 1],
            [4, 0, 15, [], 1.0],
            [4, 0, 15, [], "x"],
            [4, 0, 15, [], None],
        ),
        *([4, 0, 15, [], False, "float16"], [4, 0, 15, [], False, "int8"], [4, 0, 15, [], False, ["float32"]]),
    ],
    ids=str,
)
def test_forms_that_no_writer_lists_are_refused(items):
    assert codes.read_form([4, 0, 15, [5, 1], True], (5, 6)) == codes.Form(4, 0, 15, (5, 1), True)
    with pytest.raises(CorruptFileError):
        codes.read_form(items, (5, 6))


def payload(scale, zero_point, *rest):
    """Scale and zero point as raw tensors, and what follows."""
    both = (torch.tensor(one).numpy().astype("<f4").tobytes() for one in (scale, zero_point))
    return b"".join(b"\0\0" + one for one in both) + bytes(rest)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (payload(float("nan"), 0, 0, 0, 0x21), "scale"),
        (payload(float("inf"), 0, 0, 0, 0x21), "scale"),
        (payload(-1.0, 0, 0, 0, 0x21), "scale"),
        (payload(0.0, 0, 0, 0, 0x21), "do not lie on their grid"),
        (payload(1.0, float("nan"), 0, 0, 0x21), "zero point"),
        (payload(1.0, 1e30, 0, 0, 0x21), "zero point"),
        (payload(1.0, 0, 2, 0, 0x21), "count is 2"),
        (payload(1.0, 0, 0, 3, 0x21), "count is 3"),
        (payload(1.0, 0, 0, 0), "ends early"),
        (payload(1.0, 0, 0, 0, 0x21, 0), "left over"),
        (payload(1.0, 0, 0, 1, 40, 0, 0, 0x80, 0x80, 1), "outside its grid"),
        (payload(1.0, 0, 0, 1, 1, 0, 0, 0x80, 0x80, 1), "outside its grid"),
        (payload(1.0, 0, 0, 1, 0, 0, 0, 1), "frequencies sum"),
        (payload(1.0, 0, 0, 2, 16, 0, 0x80, 0x80, 1), "outside its grid"),
        (payload(1.0, 20, 1, 0, 0), "outside its grid"),
        (payload(0.1, 2.0**24 - 1, 0, 0, 0x21), "do not lie"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_codes_that_no_writer_writes_are_refused(data, message):
    form = codes.Form(4, 0, 15)
    assert read(payload(1.0, 0, 0, 0, 0x21), np.zeros(0, "u4"), form, (2,), version=2)[1].tolist() == [2, 1]
    with pytest.raises(CorruptFileError, match=message):
        read(data, np.zeros(0, "u4"), form, (2,), version=2)


def test_a_masked_weight_must_have_its_mask():
    with pytest.raises(CorruptFileError, match="without its mask"):
        read(payload(1.0, 0, 0, 0, 0x21), np.zeros(0, "u4"), codes.Form(4, 0, 15), (2,), masked=True, version=2)
