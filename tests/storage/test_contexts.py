"""Contexts: every field and every few values come back, cost what they should, and the same on every machine."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.storage import adaptive, contexts, frames, palettes, positions, streams
from compresslab.storage.container import CorruptFileError
from compresslab.storage.frames import Frame


def chance(seed=0):
    return np.random.default_rng(seed)


def reader_of(writer, length=10**5):
    coded = writer.coded()
    words = np.frombuffer(coded + bytes(-len(coded) % 4), dtype=">u4")
    return streams.Reader(bytes(writer.data), words, length)


def field_bytes(kept, frame, prior=None):
    """Bytes that a field takes, after checking that it comes back and costs what the plan said."""
    cost, _, write = adaptive.plan_field(kept.reshape(-1), frame, prior)
    writer = streams.Writer()
    write(writer)
    assert abs(writer.bits_so_far() - cost) < 4 + 0.01 * cost
    assert (adaptive.read_field(reader_of(writer), frame, prior) == kept.reshape(-1)).all()
    return len(writer.coded())


def ranks_bytes(ranks, values, negatives, kept, frame):
    cost, _, write = adaptive.plan_ranks(ranks, values, negatives, kept, frame)
    writer = streams.Writer()
    write(writer)
    assert abs(writer.bits_so_far() - cost) < 4 + 0.01 * cost
    assert (adaptive.read_ranks(reader_of(writer), values, negatives, kept, frame) == ranks).all()
    return len(writer.coded())


def entropy(share):
    return -(share * math.log2(share) + (1 - share) * math.log2(1 - share))


frame_sizes = st.tuples(st.integers(1, 40), st.integers(1, 60))


@settings(max_examples=60, deadline=None)
@given(frame_sizes, st.booleans(), st.integers(0, 30), st.floats(0, 1), st.integers(0, 2**16))
def test_any_field_comes_back(sizes, transposed, lag, density, seed):
    rows, columns = sizes
    lag = 0 if transposed or lag < 2 else min(lag, columns // 2)
    frame = Frame(rows, columns, transposed, lag, max(1, lag * lag))
    kept = chance(seed).random((rows, columns)) < density
    counts = chance(seed).integers(0, 9, columns)
    assert field_bytes(kept, frame, adaptive.priors(counts, columns)) <= rows * columns / 8 * 1.3 + 30


@settings(max_examples=60, deadline=None)
@given(frame_sizes, st.integers(1, 256), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**16))
def test_any_ranks_come_back(sizes, values, below, density, seed):
    kept = chance(seed).random(sizes[0] * sizes[1]) < density
    ranks = chance(seed + 1).integers(0, values, int(kept.sum()))
    for where in (kept, None):
        some = ranks if where is not None else chance(seed).integers(0, values, len(kept))
        ranks_bytes(some, values, round(below * values), where, Frame(*sizes))


def test_a_random_field_costs_its_entropy_and_uneven_rows_and_columns_less():
    random = chance()
    for density in (0.5, 0.1, 0.02):
        even = random.random((300, 784)) < density
        assert field_bytes(even, Frame(300, 784)) < even.size * entropy(density) / 8 * 1.01 + 60
    likely = 0.4 * random.random((300, 1)) * random.random(784)
    uneven = random.random((300, 784)) < likely
    best = sum(entropy(one) for one in likely.reshape(-1)) / 8
    for transposed in (False, True):
        assert best < field_bytes(uneven, Frame(300, 784, transposed)) < 1.1 * best
    assert 1.12 * best < uneven.size * entropy(uneven.mean()) / 8


def test_what_lies_beside_and_above_tells_where_there_is_an_image():
    blobs = np.zeros((100, 28, 28), dtype=bool)
    for unit, (y, x) in zip(blobs, chance().integers(0, 20, (100, 2)), strict=True):
        unit[y : y + 8, x : x + 8] = True
    kept = blobs.reshape(100, 784)
    frame = frames.choose(kept.reshape(-1), (100, 784))
    assert (frame.lag, frame.group) == (28, 784)
    assert field_bytes(kept, frame) < 0.75 * field_bytes(kept, Frame(100, 784))
    mixed = kept[:, chance().permutation(784)]
    assert frames.choose(mixed.reshape(-1), (100, 784)).lag == 0


def test_dead_lines_places_and_certain_bits_cost_next_to_nothing():
    kept = np.zeros((300, 784), dtype=bool)
    kept[7, 100] = True
    assert field_bytes(kept, Frame(300, 784)) < 25
    kept[:150] = True
    assert field_bytes(kept, Frame(300, 784)) < 150
    assert field_bytes(np.ones((300, 784), dtype=bool), Frame(300, 784)) < 300


def test_units_of_the_layer_before_say_which_inputs_are_alive():
    counts = chance().integers(0, 3, 300) * 10
    kept = (chance(1).random((100, 300)) < 0.3) & (counts > 0)
    prior = adaptive.priors(counts, 300)
    assert field_bytes(kept, Frame(100, 300), prior) < field_bytes(kept, Frame(100, 300)) - 20
    assert adaptive.priors(counts, 301) is None and adaptive.priors(None, 300) is None


def test_priors_are_the_same_whole_numbers_everywhere():
    counts = np.array([0, 1, 10, 20, 9, 10**9])
    found = adaptive.priors(counts, 12)
    mean = counts.sum() / len(counts)
    assert found.tolist()[::2] == [
        0,
        *(int(np.clip(8 + math.floor(2 * math.log2(one / mean)), 1, 15)) for one in counts[1:]),
    ]
    assert (adaptive.priors(np.array([4, 4, 8, 2, 2]), 5) == [8, 8, 10, 6, 6]).all()  # 4 is the mean


def test_signs_that_keep_together_cost_less_than_a_bit():
    smooth = np.sign(np.add.outer(np.sin(np.arange(28) / 4), np.cos(np.arange(28) / 4)).reshape(-1))
    signs = np.stack([smooth * one for one in chance().choice([-1, 1], 100)])
    sizes = chance(1).integers(0, 4, signs.shape)
    ranks = np.where(signs > 0, 4 + sizes, 3 - sizes).reshape(-1)
    assert ranks_bytes(ranks, 8, 4, None, Frame(100, 784, lag=28, group=784)) < signs.size * 2.4 / 8


def test_biases_that_repeat_cost_their_changes():
    ranks = np.repeat(chance().integers(0, 8, 10), 36)
    assert ranks_bytes(ranks, 8, 4, None, Frame(1, 360)) < 45


def test_probabilities_reach_the_ends_and_are_whole_numbers():
    squash = contexts.LOOKUP[contexts.ONE : contexts.RATES]
    stretch = contexts.LOOKUP[: contexts.ONE]
    exact = contexts.ONE / (1 + np.exp(-np.arange(-contexts.REACH, contexts.REACH + 1) / 256))
    assert abs(squash - exact).max() < 1.01 and squash.min() <= 2 and squash.max() == contexts.ONE - squash.min()
    assert (np.diff(squash) >= 0).all() and (np.diff(stretch) >= 0).all()
    logit = np.log(np.arange(1, contexts.ONE) / (contexts.ONE - np.arange(1, contexts.ONE))) * 256
    assert abs(stretch[2000:-2000] - logit[1999:-2000]).max() < 2


def test_the_frame_of_a_kernel_is_its_own():
    frame = frames.plain((50, 20, 5, 5))
    assert (frame.rows, frame.columns, frame.lag, frame.group, frame.lines, frame.places) == (50, 500, 5, 25, 500, 50)
    assert (
        frames.plain((50, 20, 1, 1)).lag == 0 and frames.plain((7,)) == Frame(1, 7) and frames.plain(()) == Frame(1, 1)
    )
    kept = np.arange(12).reshape(3, 4)
    for transposed in (False, True):
        frame = Frame(3, 4, transposed)
        assert (frame.flat(frame.turned(kept.reshape(-1))) == kept.reshape(-1)).all()


@pytest.mark.parametrize("frame", [Frame(3, 40), Frame(3, 40, transposed=True), Frame(3, 40, lag=7, group=49)], ids=str)
def test_frames_come_back(frame):
    writer = streams.Writer()
    frames.write(writer, frame, (3, 40))
    assert frames.read(reader_of(writer), (3, 40)) == frame


def test_a_lag_beyond_the_matrix_is_refused():
    writer = streams.Writer()
    frames.write(writer, Frame(3, 40, lag=21), (3, 40))
    with pytest.raises(CorruptFileError, match="21 lines before"):
        frames.read(reader_of(writer), (3, 40))


def test_matrices_that_take_much_memory_are_refused_before_they_do():
    contextual = streams.Writer()
    contextual.uint(positions.CONTEXTS)
    for frame in (Frame(5000, 5000), Frame(1, 2**20), Frame(2**20, 1), Frame(4, 2**22)):
        with pytest.raises(CorruptFileError, match="too large"):
            positions.read(reader_of(contextual), frame.rows * frame.columns, frame)
        with pytest.raises(CorruptFileError, match="too large"):
            adaptive.read_ranks(reader_of(streams.Writer()), 4, 2, None, frame)
    with pytest.raises(CorruptFileError, match="more symbols"):
        adaptive.read_field(reader_of(streams.Writer(), length=10), Frame(4000, 4000), None)


def palette_bits(words, kind):
    """Bits that a palette takes, after checking that it comes back."""
    palette, negatives = palettes.arranged(np.unique(words), kind)
    writer = streams.Writer()
    palettes.write(writer, palette, negatives, kind)
    found, below = palettes.read(reader_of(writer), len(palette), palette.itemsize, kind)
    assert (found == palette).all() and below == negatives and found.dtype == palette.dtype
    assert palettes.cost(palette, negatives, kind) == writer.bits_so_far()
    return writer.bits_so_far()


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
    palette, negatives = palettes.arranged(np.unique(values.view("<u4")), "float")
    assert (
        palette.view("<f4").tolist() == [-np.inf, -3.5, -0.0, 0.0, pytest.approx(1e-45), 2.0, np.inf] and negatives == 3
    )
    palette, negatives = palettes.arranged(np.unique(np.array([5, -1, -7], dtype="<i2").view("<u2")), "signed")
    assert palette.view("<i2").tolist() == [-7, -1, 5] and negatives == 2


def test_few_mantissa_bits_steps_and_symmetry_make_palettes_short():
    values = chance().normal(0, 0.1, 16).astype("<f4")
    full, half = palette_bits(values.view("<u4"), "float"), palette_bits(values.view("<u4") & 0xFFFF0000, "float")
    even = (np.rint(values / 0.02).astype("<f4") * np.float32(0.0213)).view("<u4")
    assert full < 16 * 28 and half < 16 * 12 and palette_bits(even, "float") < 80
    both = np.concatenate([values, -values]).view("<u4")
    assert palette_bits(both, "float") < full + 70


CODE = """
import hashlib, sys, numpy as np
if len(sys.argv) > 1:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file takes a byte, as on a full disk
from compresslab.storage import adaptive, frames, streams
writer, chance = streams.Writer(), np.random.default_rng(0)
kept = chance.random(60 * 100) < 0.1
adaptive.plan_field(kept, frames.Frame(60, 100), None)[2](writer)
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
    assert contexts._quotient(number, divisor) == number // divisor
    assert contexts._quotient(number * divisor % 2**51, divisor) == number * divisor % 2**51 // divisor


def test_what_was_coded_before_is_not_coded_again(monkeypatch):
    """A retrained model keeps its positions, and the assignments of its codebooks; only values are new."""
    frame, chance = Frame(30, 40), np.random.default_rng(0)
    kept = chance.random(1200) < 0.2
    ranks = chance.integers(0, 5, np.count_nonzero(kept))

    def coded():
        writer = streams.Writer()
        adaptive.plan_field(kept, frame, None)[2](writer)
        adaptive.plan_ranks(ranks, 5, 2, kept, frame)[2](writer)
        return writer.coded()

    before = coded()
    for name in ("field_run", "signs_run", "sizes_run"):
        monkeypatch.delattr(contexts, name)
    assert coded() == before
