"""Contexts: every field and every few values come back, cost what they should, and the same on every machine."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.storage import contexts, layouts, mixing, palettes, positions
from compresslab.storage.coder import Allowance, Reader, Writer
from compresslab.storage.container import CorruptFileError
from compresslab.storage.layouts import Layout

pytestmark = pytest.mark.slow


def chance(seed=0):
    return np.random.default_rng(seed)


def reader_of(writer, length=10**5):
    return Reader(writer.data(), writer.coded(), Allowance(length))


def field_bytes(kept, layout, prior=None):
    """Bytes that a field takes, after checking that it comes back and costs what the plan said."""
    writer = Writer()
    writer.append(contexts.try_field(writer, kept.reshape(-1), layout, prior))
    assert abs(8 * len(writer.coded()) - writer.size) < 9 + 0.01 * writer.size
    assert (contexts.read_field(reader_of(writer), layout, prior) == kept.reshape(-1)).all()
    return len(writer.coded())


def ranks_bytes(ranks, values, negatives, kept, layout):
    writer = Writer()
    writer.append(contexts.try_ranks(writer, ranks, values, negatives, kept, layout))
    assert abs(8 * len(writer.coded()) - writer.size) < 9 + 0.01 * writer.size
    assert (contexts.read_ranks(reader_of(writer), values, negatives, kept, layout) == ranks).all()
    return len(writer.coded())


def entropy(share):
    return -(share * math.log2(share) + (1 - share) * math.log2(1 - share))


layout_sizes = st.tuples(st.integers(1, 40), st.integers(1, 60))


@settings(max_examples=60, deadline=None)
@given(layout_sizes, st.integers(0, 30), st.floats(0, 1), st.integers(0, 2**16))
def test_any_field_comes_back(sizes, lag, density, seed):
    rows, columns = sizes
    lag = 0 if lag < 2 else min(lag, columns // 2)
    layout = Layout(rows, columns, lag, max(1, lag * lag))
    kept = chance(seed).random((rows, columns)) < density
    counts = chance(seed).integers(0, 9, columns)
    assert field_bytes(kept, layout, contexts.find_priors(counts, columns)) <= rows * columns / 8 * 1.3 + 30


@settings(max_examples=60, deadline=None)
@given(layout_sizes, st.integers(1, 256), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**16))
def test_any_ranks_come_back(sizes, values, below, density, seed):
    kept = chance(seed).random(sizes[0] * sizes[1]) < density
    ranks = chance(seed + 1).integers(0, values, int(kept.sum()))
    for where in (kept, None):
        some = ranks if where is not None else chance(seed).integers(0, values, len(kept))
        ranks_bytes(some, values, round(below * values), where, Layout(*sizes))


def test_a_random_field_costs_its_entropy_and_uneven_rows_and_columns_less():
    random = chance()
    for density in (0.5, 0.1, 0.02):
        even = random.random((300, 784)) < density
        assert field_bytes(even, Layout(300, 784)) < even.size * entropy(density) / 8 * 1.01 + 60
    likely = 0.4 * random.random((300, 1)) * random.random(784)
    uneven = random.random((300, 784)) < likely
    best = sum(entropy(one) for one in likely.reshape(-1)) / 8
    assert best < field_bytes(uneven, Layout(300, 784)) < 1.1 * best
    assert 1.12 * best < uneven.size * entropy(uneven.mean()) / 8


def test_what_lies_beside_and_above_tells_where_there_is_an_image():
    blobs = np.zeros((100, 28, 28), dtype=bool)
    for unit, (y, x) in zip(blobs, chance().integers(0, 20, (100, 2)), strict=True):
        unit[y : y + 8, x : x + 8] = True
    kept = blobs.reshape(100, 784)
    layout = layouts.choose_layout(kept.reshape(-1), (100, 784))
    assert (layout.lag, layout.group) == (28, 784)
    assert field_bytes(kept, layout) < 0.75 * field_bytes(kept, Layout(100, 784))
    mixed = kept[:, chance().permutation(784)]
    assert layouts.choose_layout(mixed.reshape(-1), (100, 784)).lag == 0


def test_dead_lines_places_and_certain_bits_cost_next_to_nothing():
    kept = np.zeros((300, 784), dtype=bool)
    kept[7, 100] = True
    assert field_bytes(kept, Layout(300, 784)) < 25
    kept[:150] = True
    assert field_bytes(kept, Layout(300, 784)) < 150
    assert field_bytes(np.ones((300, 784), dtype=bool), Layout(300, 784)) < 300


def test_units_of_the_layer_before_say_which_inputs_are_alive():
    counts = chance().integers(0, 3, 300) * 10
    kept = (chance(1).random((100, 300)) < 0.3) & (counts > 0)
    prior = contexts.find_priors(counts, 300)
    assert field_bytes(kept, Layout(100, 300), prior) < field_bytes(kept, Layout(100, 300)) - 20
    assert contexts.find_priors(counts, 301) is None and contexts.find_priors(None, 300) is None


def test_priors_are_the_same_whole_numbers_everywhere():
    counts = np.array([0, 1, 10, 20, 9, 10**9])
    found = contexts.find_priors(counts, 12)
    mean = counts.sum() / len(counts)
    assert found.tolist()[::2] == [
        0,
        *(int(np.clip(8 + math.floor(2 * math.log2(one / mean)), 1, 15)) for one in counts[1:]),
    ]
    assert (contexts.find_priors(np.array([4, 4, 8, 2, 2]), 5) == [8, 8, 10, 6, 6]).all()  # 4 is the mean


def test_signs_that_keep_together_cost_less_than_a_bit():
    smooth = np.sign(np.add.outer(np.sin(np.arange(28) / 4), np.cos(np.arange(28) / 4)).reshape(-1))
    signs = np.stack([smooth * one for one in chance().choice([-1, 1], 50)])
    sizes = chance(1).integers(0, 4, signs.shape)
    ranks = np.where(signs > 0, 4 + sizes, 3 - sizes).reshape(-1)
    assert ranks_bytes(ranks, 8, 4, None, Layout(50, 784, lag=28, group=784)) < signs.size * 2.4 / 8


def test_biases_that_repeat_cost_their_changes():
    ranks = np.repeat(chance().integers(0, 8, 10), 36)
    assert ranks_bytes(ranks, 8, 4, None, Layout(1, 360)) < 45


def test_probabilities_reach_the_ends_and_are_whole_numbers():
    squash = mixing.LOOKUP[mixing.ONE : mixing.RATES]
    stretch = mixing.LOOKUP[: mixing.ONE]
    exact = mixing.ONE / (1 + np.exp(-np.arange(-mixing.REACH, mixing.REACH + 1) / 256))
    assert abs(squash - exact).max() < 1.01 and squash.min() <= 2 and squash.max() == mixing.ONE - squash.min()
    assert (np.diff(squash) >= 0).all() and (np.diff(stretch) >= 0).all()
    logit = np.log(np.arange(1, mixing.ONE) / (mixing.ONE - np.arange(1, mixing.ONE))) * 256
    assert abs(stretch[2000:-2000] - logit[1999:-2000]).max() < 2


def test_the_layout_of_a_kernel_is_its_own():
    layout = layouts.shape_layout((50, 20, 5, 5))
    assert (layout.rows, layout.columns, layout.lag, layout.group) == (50, 500, 5, 25)
    assert (
        layouts.shape_layout((50, 20, 1, 1)).lag == 0
        and layouts.shape_layout((7,)) == Layout(1, 7)
        and layouts.shape_layout(()) == Layout(1, 1)
    )
    kept = np.arange(12).reshape(3, 4)
    layout = Layout(3, 4)
    assert (layout.flat(layout.by_lines(kept.reshape(-1))) == kept.reshape(-1)).all()


@pytest.mark.parametrize("layout", [Layout(3, 40), Layout(3, 40, lag=7, group=49)], ids=str)
def test_layouts_come_back(layout):
    writer = Writer()
    layouts.code_layout(writer, layout, (3, 40))
    assert layouts.code_layout(reader_of(writer), None, (3, 40)) == layout


def test_a_lag_beyond_the_matrix_is_refused():
    writer = Writer()
    writer.uint(22)
    with pytest.raises(CorruptFileError, match="21 lines before"):
        layouts.code_layout(reader_of(writer), None, (3, 40))


def test_matrices_that_take_much_memory_are_refused_before_they_do():
    contextual = Writer()
    contextual.uint(positions.CONTEXTS)
    for layout in (Layout(5000, 5000), Layout(1, 2**20), Layout(2**20, 1), Layout(4, 2**22)):
        with pytest.raises(CorruptFileError, match="too large"):
            positions.code(reader_of(contextual), None, layout.rows * layout.columns, layout)
        with pytest.raises(CorruptFileError, match="too large"):
            contexts.read_ranks(reader_of(Writer()), 4, 2, None, layout)
    reader = reader_of(Writer(), length=10)
    reader.allowance.spend(2**25)
    with pytest.raises(CorruptFileError, match="more symbols"):
        contexts.read_field(reader, Layout(2000, 2000), None)


def palette_bits(words, kind):
    """Bits that a palette takes, after checking that it comes back."""
    palette = palettes.sort_words(np.unique(words), kind)
    writer = Writer()
    palettes.code(writer, palette, len(palette), palette.itemsize, kind)
    same = palettes.code(reader_of(writer), None, len(palette), palette.itemsize, kind)
    assert (same == palette).all() and same.dtype == palette.dtype
    return writer.size


KINDS = [("<u4", "float"), ("<u2", "float"), ("<u8", "float"), ("<u1", "float"), ("<u1", "signed"), ("<u8", "signed")]


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([*KINDS, ("<u4", "unsigned")]), st.integers(1, 60), st.integers(0, 60), st.integers(0, 2**16))
def test_any_palette_comes_back(kind, count, zeros, seed):
    dtype, kind = kind
    bits = 8 * np.dtype(dtype).itemsize
    words = chance(seed).integers(0, 2**bits, count, dtype=np.uint64) >> (zeros % bits) << (zeros % bits)
    palette_bits((words % 2**bits).astype(dtype) if bits < 64 else words.astype(dtype), kind)


def test_palettes_in_order_are_arranged_by_value():
    values = np.array([-3.5, 2.0, -0.0, 0.0, np.inf, -np.inf, 1e-45], dtype="<f4")
    palette = palettes.sort_words(np.unique(values.view("<u4")), "float")
    assert palette.view("<f4").tolist() == [-np.inf, -3.5, -0.0, 0.0, pytest.approx(1e-45), 2.0, np.inf]
    assert palettes.count_negatives(palette, "float") == 3
    palette = palettes.sort_words(np.unique(np.array([5, -1, -7], dtype="<i2").view("<u2")), "signed")
    assert palette.view("<i2").tolist() == [-7, -1, 5] and palettes.count_negatives(palette, "signed") == 2


def test_few_mantissa_bits_and_steps_make_palettes_short():
    values = chance().normal(0, 0.1, 16).astype("<f4")
    full, half = palette_bits(values.view("<u4"), "float"), palette_bits(values.view("<u4") & 0xFFFF0000, "float")
    even = (np.rint(values / 0.02).astype("<f4") * np.float32(0.0213)).view("<u4")
    assert full < 16 * 29 and half < 16 * 13 and palette_bits(even, "float") < 80


CODE = """
import hashlib, sys, numpy as np
if len(sys.argv) > 1:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file takes a byte, as on a full disk
from compresslab.storage import coder, contexts, layouts
writer, chance = coder.Writer(), np.random.default_rng(0)
kept = chance.random(60 * 100) < 0.1
writer.append(contexts.try_field(writer, kept, layouts.Layout(60, 100), None))
print(hashlib.sha256(writer.coded()).hexdigest())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_it_works_where_nothing_can_be_kept_on_disk(tmp_path):
    """On a full disk, functions are compiled in memory."""
    empty = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [([], os.environ), (["full"], empty)]
    found = [
        subprocess.run([sys.executable, "-c", CODE, *more], check=True, capture_output=True, text=True, env=env).stdout
        for more, env in runs
    ]
    assert found[0] == found[1] and len(found[0]) == 65


@settings(deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 2**40))
def test_quotients_are_exact(number, divisor):
    assert mixing._quotient(number, divisor) == number // divisor
    assert mixing._quotient(number * divisor % 2**51, divisor) == number * divisor % 2**51 // divisor


def test_what_was_coded_before_is_not_coded_again(monkeypatch):
    """A retrained model keeps its positions, and the assignments of its codebooks; only values are new."""
    layout, chance = Layout(30, 40), np.random.default_rng(0)
    kept = chance.random(1200) < 0.2
    ranks = chance.integers(0, 5, np.count_nonzero(kept))

    def coded():
        writer = Writer()
        writer.append(contexts.try_field(writer, kept, layout, None))
        writer.append(contexts.try_ranks(writer, ranks, 5, 2, kept, layout))
        return writer.coded()

    before = coded()
    monkeypatch.delattr(mixing, "run")
    assert coded() == before
