"""Every tensor comes back to the bit, in no more bytes than it has, the fewer the more there is to know about it."""

import math

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.storage import coder, positions, tensors
from compresslab.storage.coder import Allowance, Reader, Writer
from compresslab.storage.container import CorruptFileError

SLACK = 2 + 4  # bytes that say "dense" and "raw", and the range coder's last word, of which a bit may be used


def written(tensor, mask=None):
    writer = Writer()
    tensors.write(writer, tensor, mask)
    return writer.data(), writer.coded()


def read(data, coded, tensor):
    reader = Reader(data, coded, Allowance(100 + len(data) + len(coded)))
    values = tensors.read(reader, tensors.NAMES[tensor.dtype], tuple(tensor.shape))
    reader.close()
    return values


def size(tensor, mask=None):
    """Bytes of a tensor, after checking that it comes back to the bit, and its mask with it."""
    data, coded = written(tensor, mask)
    found, kept = read(data, coded, tensor)
    assert found.dtype == tensor.dtype and found.shape == tensor.shape
    assert torch.equal(bits(found), bits(tensor))
    if mask is not None:
        assert torch.equal(kept, mask)
    return len(data) + len(coded)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("name", tensors.TYPES)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (7, 5), (2, 3, 4, 5)], ids=str)
def test_every_type_and_shape_comes_back_to_the_bit(name, shape):
    kind = tensors.TYPES[name]
    count = math.prod(shape) * kind.size
    raw = np.random.default_rng(0).integers(0, 2 if name == "bool" else 256, count, dtype=np.uint8)
    tensor = torch.from_numpy(raw).view(kind.dtype).reshape(shape) if count else torch.empty(shape, dtype=kind.dtype)
    assert size(tensor) <= tensor.nbytes + SLACK
    assert size(torch.zeros_like(tensor)) <= 2 + 8 * 2


def test_special_values_come_back_to_the_bit():
    values = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, -1e-45, 1e-38, 3.4e38] * 50)
    values[7] = torch.tensor([0x7FC00123], dtype=torch.int32).view(torch.float32)[0]  # a nan with a payload
    assert size(values) < values.nbytes
    assert size(values.reshape(45, 10)) < values.nbytes


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(1, 40),
    st.sampled_from(["float32", "float16", "int8", "int64", "uint8", "bool", "complex64"]),
    st.floats(0, 1),
    st.integers(1, 300),
    st.integers(0, 2**32 - 1),
)
def test_any_tensor_comes_back_to_the_bit_and_is_never_longer_than_raw(rows, columns, name, zeros, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-levels, levels + 1, (rows, columns), generator=generator) * 0.37
    values[torch.rand(rows, columns, generator=generator) < zeros] = 0
    tensor = values.to(tensors.TYPES[name].dtype)
    assert size(tensor) <= tensor.nbytes + SLACK
    signed = values.float() * -torch.ones(())  # its zeros are -0
    assert size(signed) <= signed.nbytes + SLACK


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 60), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_any_mask_comes_back_with_its_tensor(rows, columns, density, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=generator) < density
    values = torch.randn(rows, columns, generator=generator).round()  # kept weights that are 0 belong to the mask
    size(torch.where(mask, values, 0.0), mask)
    size(torch.where(mask, values, 0.0).to(torch.complex64), mask)


@pytest.mark.parametrize("name", ["float32", "complex64", "float8_e5m2", "int8"])
@pytest.mark.parametrize("shape", [(0,), (4, 0), (0, 4), (3, 0, 2), (0, 5, 5)], ids=str)
def test_an_empty_tensor_may_have_a_mask(name, shape):
    assert size(torch.empty(shape, dtype=tensors.TYPES[name].dtype), torch.ones(shape, dtype=torch.bool)) <= 4


@pytest.mark.parametrize("form", [positions.BITMAP, positions.CONTEXTS])
def test_positions_in_an_empty_tensor_are_none_or_all(form):
    """Its rows may be more than there is memory for."""
    writer = Writer()
    for number in (tensors.SPARSE, 0, form, 0):
        writer.uint(number)
    huge = torch.empty(2**60, 0, device="meta")
    with pytest.raises(CorruptFileError, match="empty"):
        read(writer.data(), writer.coded(), huge)


def test_sparse_bytes_are_near_the_entropy_of_positions_and_values():
    weight = noise(300, 784)
    for density in (0.5, 0.1, 0.01):
        mask = weight.abs() > weight.abs().flatten().quantile(1 - density)
        entropy = -(density * math.log2(density) + (1 - density) * math.log2(1 - density)) * weight.numel() / 8
        values = 27 / 8 * density * weight.numel()  # sign and mantissa raw, exponent at most 3 bits
        pruned = torch.where(mask, weight, 0.0)
        assert entropy + 2.9 * mask.sum() < size(pruned) < entropy + values
        assert abs(size(pruned) - size(pruned, mask)) < 10


def test_rows_and_columns_of_unequal_density_cost_less_than_equal_ones():
    generator = torch.Generator().manual_seed(0)
    likely = torch.rand(300, 1, generator=generator) ** 2 * torch.rand(1, 784, generator=generator) ** 2
    uneven = torch.rand(300, 784, generator=generator) < likely
    even = torch.rand(300, 784, generator=generator) < uneven.float().mean()
    assert size(uneven.float(), uneven) < 0.85 * size(even.float(), even)


def test_structure_costs_next_to_nothing():
    rows, most, one = (torch.ones(300, 784, dtype=torch.bool) for _ in range(3))
    rows[::3] = False
    rows[:, 100:500] = False
    most[5, 7] = most[100, 300] = False
    one[:] = False
    one[200, 3] = True
    for mask, limit in ((rows, 200), (most, 300), (one, 20), (torch.ones_like(rows), 10), (torch.zeros_like(rows), 10)):
        assert size(mask.float(), mask) < limit
        assert mask is most or size(mask.float() * 3) < limit


def test_nearly_structured_masks_cost_a_bit_an_entry_at_most():
    mask = torch.zeros(1000, 1000, dtype=torch.bool)
    mask[:500] = True
    mask[3, 4:7] = False
    assert size(mask.float(), mask) < 1000 * 1000 / 8 + 100


def test_few_distinct_values_cost_their_index():
    grid = (noise(300, 784) * 2).round().clamp(-7, 8) / 16 + 0.0  # 16 levels, 3.05 bits
    assert size(grid) < grid.numel() * 3.1 / 8
    assert size(grid.to(torch.bfloat16)) < grid.numel() * 3.1 / 8
    assert size((grid * 16).to(torch.int64)) < grid.numel() * 3.1 / 8


def test_exponents_of_dense_weights_are_coded():
    assert size(noise(200, 300)) < 0.85 * 4 * 60_000
    assert size(noise(200, 300).to(torch.bfloat16)) < 0.7 * 2 * 60_000


def test_the_same_tensor_gives_the_same_bytes_whatever_its_strides():
    weight = noise(6, 4, 5, 5)
    data, coded = written(weight)
    for same in (weight.clone(), weight.to(memory_format=torch.channels_last), weight[:, :].expand(6, 4, 5, 5)):
        again, others = written(same)
        assert again == data and others == coded


def test_large_tensors_are_coded_in_chunks():
    weight = noise(700, 800)  # more than coder.CHUNK
    weight[weight.abs() < 1.5] = 0
    negative = weight * noise(700, 800, seed=1).sign()
    assert size(weight) < size(negative) < 0.6 * weight.nbytes
    assert size(noise(700, 800)) < 0.85 * weight.nbytes


def test_frequencies_are_whole_and_leave_nobody_out():
    table = coder.count_frequencies([1, 0, 10**9, 5, 0])
    assert table.sum() == coder.TOTAL and table[1] == 0 and table[0] == 1 and table[3] == 1 and len(table) == 4


def test_a_reader_refuses_more_symbols_than_its_file_pays_for():
    writer = Writer()
    table = coder.count_frequencies([10**6, 1])
    reader = Reader(writer.data(), writer.coded(), Allowance(10))
    with pytest.raises(CorruptFileError, match="more symbols"):
        list(reader.symbols(None, 2**26, table))


@pytest.mark.parametrize("cut", [b"", b"0"])
def test_what_is_missing_or_left_over_is_noticed(cut):
    tensor = torch.where(noise(40, 50).abs() > 1, noise(40, 50, seed=1), 0.0)
    data, coded = written(tensor)
    with pytest.raises(CorruptFileError):
        read(data + b"0" if cut else data[:-9], coded, tensor)


def test_numbers_come_back():
    numbers = [0, 1, 2, 3, 127, 128, 10**6, 2**62 - 1]
    writer = Writer()
    for number in numbers:
        writer.uint(number)
    reader = Reader(writer.data(), writer.coded(), Allowance(1000))
    assert [reader.uint(None, 2**63) for _ in numbers] == numbers
    reader = Reader(writer.data(), writer.coded(), Allowance(1000))
    with pytest.raises(CorruptFileError, match="a count is 2, more than 1"):
        _ = [reader.uint(None, 1) for _ in numbers]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 2**70), st.floats(0, 1)), max_size=20))
def test_numbers_below_a_limit_cost_its_logarithm(pairs):
    pairs = [(limit, min(limit - 1, int(limit * share))) for limit, share in pairs]
    writer = Writer()
    for limit, number in pairs:
        writer.number(number, limit)
    assert writer.size <= sum(math.log2(limit) for limit, _ in pairs) + 1.01 * len(pairs)
    coded = writer.coded()
    reader = Reader(b"", coded, Allowance(1000))
    assert [reader.number(None, limit) for limit, _ in pairs] == [number for _, number in pairs]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 2**16 - 1), st.booleans()), max_size=200))
def test_the_output_of_the_coder_is_cut_to_what_is_needed(bits):
    writer = Writer()
    share, kept = np.array([one for one, _ in bits]) / 2**16, np.array([one for _, one in bits], dtype=bool)
    writer.bits(kept, share)
    coded = writer.coded()
    words = writer._encode_all().get_compressed()
    assert len(coded) <= len(words) * 4 and len(coded) < writer.size / 8 + 2.1  # a carry may cost one
    reader = Reader(b"", coded, Allowance(1000))
    assert (reader.bits(None, share) == kept).all()


def test_bits_are_coded_as_the_format_says():
    """Pairs of probabilities give the bytes of constriction's Bernoulli model, for every probability there is."""
    chance = np.random.default_rng(0)
    probabilities = chance.permutation(np.arange(1, 2**16)) / 2**16
    bits = chance.random(len(probabilities)) < probabilities
    writer, encoder = Writer(), constriction.stream.queue.RangeEncoder()
    writer.bits(bits, probabilities)
    encoder.encode(bits.astype(np.int32), constriction.stream.model.Bernoulli(perfect=False), probabilities)
    assert np.array_equal(writer._encode_all().get_compressed(), encoder.get_compressed())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.complex64])
def test_nonzeros_are_told_for_every_type(dtype):
    numbers = torch.tensor([[0.0, 1.0, -0.0], [0.0, 0.0, 2.0]]).to(dtype)
    assert tensors.find_nonzeros(numbers).tolist() == [[False, True, False], [False, False, True]]
    assert tensors.find_nonzeros(torch.tensor(float("nan")))
