"""Other people's coders, as benchmarks.peers compares them: what they write can be read again, and is no longer than it
has to be."""

import itertools

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.coders import codebook_of, deep_compression, general, huffman, nncodec, same

pytestmark = pytest.mark.slow

SHAPES = {"fc.weight": (12, 30), "conv.weight": (4, 2, 3, 3), "fc.bias": (12,)}
needs_nncodec = pytest.mark.skipif(nncodec.load() is None, reason=f"needs NNCodec: {nncodec.INSTALL}")


def network(sparsity=0.8, values=6, seed=0):
    """Tensors with few values, most of them 0."""
    random = np.random.default_rng(seed)
    numbers = random.normal(size=values).astype(np.float32)
    tensors = {name: random.choice(numbers, shape) for name, shape in SHAPES.items()}
    return {name: np.where(random.random(one.shape) < sparsity, np.float32(0), one) for name, one in tensors.items()}


@st.composite
def tensors(draw):
    shape = draw(st.sampled_from([(1,), (7,), (5, 9), (3, 2, 3, 3)]))
    numbers = draw(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=5))
    indices = draw(st.lists(st.integers(-9, 4), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    flat = [numbers[index % len(numbers)] if index >= 0 else 0.0 for index in indices]
    return np.array(flat, dtype=np.float32).reshape(shape) + np.float32(0)  # no -0.0: see codebook_of


COUNTS = st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any)


@given(COUNTS)
def test_huffman_takes_the_fewest_bits(counts):
    used = np.array([count for count in counts if count], dtype=np.float64)
    depth = huffman.lengths(np.array(counts))
    assert (depth[np.array(counts) == 0] == 0).all() and (depth[np.array(counts) > 0] > 0).all()
    if len(used) > 1:
        tree = constriction.symbol.huffman.EncoderHuffmanTree(used / used.sum())
        oracle = 0
        for symbol, count in enumerate(used):
            queue = constriction.symbol.QueueEncoder()
            queue.encode_symbol(symbol, tree)
            oracle += int(count) * queue.get_compressed()[1]
        assert int((depth * np.array(counts)).sum()) == oracle


@given(COUNTS)
def test_huffman_words_are_no_beginnings_of_others(counts):
    found = sorted(huffman.words(huffman.lengths(np.array(counts))).values())
    assert not any(later.startswith(word) for word, later in itertools.pairwise(found))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_huffman_reads_what_it_wrote(symbols):
    depth = huffman.lengths(np.bincount(symbols, minlength=10))
    bits = iter(huffman.encoded(np.array(symbols), depth) + "rest")
    assert huffman.decoded(bits, len(symbols), depth).tolist() == symbols
    assert "".join(bits) == "rest"


def test_far_entries_get_zeros_between():
    index = np.zeros(12, dtype=int)
    index[[0, 4, 10]] = 3, 1, 2  # 0, 3 and 5 numbers skipped, at most 3 by one entry of 2 bits
    distances, indices = deep_compression.entries(index, 0, width=2)
    assert distances.tolist() == [0, 3, 3, 1] and indices.tolist() == [3, 1, 0, 2]


@settings(deadline=None, max_examples=40)
@given(st.lists(tensors(), min_size=1, max_size=3))
@pytest.mark.parametrize("code", [deep_compression.best, general.xz, general.zstd], ids=["layout", "xz", "zstd"])
def test_every_network_comes_back(code, listed):
    if code is general.zstd and general.zstandard is None:
        pytest.skip(general.INSTALL)
    given_ = {str(number): tensor for number, tensor in enumerate(listed)}
    assert same(code(given_).tensors, given_)


def test_the_layout_counts_what_it_should():
    """By hand: one number kept of 8: width, entries, codebook size and zero's place, a value, two tables, two words."""
    tensor = np.zeros(8, dtype=np.float32)
    tensor[1] = 0.5
    head, book, named = 4 + 32 + 16 + 16, 32, 1 + 2 + (2 + 6)
    assert deep_compression.best({"w": tensor}).bytes == -(-(head + book + 2 * named + 2) // 8)


def test_numbers_that_are_all_different_stay_plain():
    tensor = np.random.default_rng(0).normal(size=(20, 20)).astype(np.float32)
    assert deep_compression.best({"w": tensor}).bytes == 1600 + 1  # the four bits that say so


def test_sparser_networks_take_less():
    sizes = [
        [code(network(sparsity)).bytes for sparsity in (0.5, 0.98)] for code in (deep_compression.best, general.xz)
    ]
    assert all(dense > sparse for dense, sparse in sizes)


def test_zeros_of_both_signs_are_one_value():
    values, index = codebook_of(np.array([0.0, -0.0, 1.0], dtype=np.float32))
    assert values.tolist() == [0, 1] and index.tolist() == [0, 0, 1]


def test_orders_of_indices():
    values, index = np.array([-2, -1, 0, 3, 5], dtype=np.float32), np.array([0, 0, 0, 1, 2, 3, 4, 4])
    assert nncodec._by_value(values, index).tolist() == [-2, -1, 0, 1, 2]
    assert nncodec._by_count(values, index).tolist() == [-1, -2, 0, 2, 1]


def test_vectors_go_in_one_and_come_back():
    given_ = network() | {"other.bias": np.arange(3, dtype=np.float32)}
    named, undo = nncodec._joined(given_)
    assert sorted(named) == ["A", "B", "b"] and len(named["b"]) == 15
    assert same(undo(named), given_)


@needs_nncodec
@pytest.mark.parametrize("sparsity", [0.0, 0.8, 1.0])
def test_nncodec_without_loss(sparsity):
    given_ = network(sparsity)
    coded = nncodec.exact(given_)
    assert same(coded.tensors, given_) and coded.bytes > 0


@needs_nncodec
def test_nncodec_rounds_more_where_it_may():
    given_ = network()

    def within(error):
        return lambda decoded: max(np.abs(decoded[name] - given_[name]).max() for name in given_) <= error

    fine, coarse = (nncodec.tuned(given_, within(error), rounds=1) for error in (0.05, 0.5))
    assert within(0.05)(fine.tensors) and within(0.5)(coarse.tensors)
    assert coarse.bytes < fine.bytes


@needs_nncodec
def test_nncodec_where_nothing_is_good_enough():
    assert nncodec.tuned(network(), lambda decoded: False) is None
