"""Whatever the bytes are: a model, or CorruptFileError; never another error, a hang, or memory nobody allowed."""

import copy
import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import compresslab as cl
from compresslab.storage import CorruptFileError, binary_words, container, palettes, positions, rounded, tensors
from compresslab.weights import grids
from tests.storage import claims, fuzzing, samples
from tests.storage.fuzzing import flipped, outcome, peak, remade, rewritten, signed, unsigned
from tests.storage.samples import Net

pytestmark = pytest.mark.slow

BLOBS = [cl.storage.dumps(model) for model in samples.some_models()]
PARTS = [container.unpack(blob) for blob in BLOBS]
PLAIN = cl.storage.dumps(nn.Sequential(nn.Linear(3, 2)))


def forged(header, payload=(), text=None):
    """A file with any header, its lengths and checksum right; `text` in place of the header's JSON.

    payload  a list: whole numbers, bytes, and functions of a Claims that write what else there is
    """
    text = json.dumps(header, separators=(",", ":")).encode() if text is None else text
    coder = claims.Claims(random.Random(0))
    for part in payload:
        chosen(part)(coder) if isinstance(part, int) else coder.writer.raw(part) if isinstance(part, bytes) else part(
            coder
        )
    return packed(text, coder.writer.data(), coder.writer.coded() if payload else b"")


def packed(text, data=b"", coded=b""):
    """A file with any header, which no writer's limits are held against."""
    return signed(b"CLAB\x01" + container.deflate(text) + container.write_varint(len(data)) + data + coded)


@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_never_load(seed):
    chance = random.Random(seed)
    for _ in range(300):
        blob = chance.choice(BLOBS)
        changed = flipped(blob, chance)
        assert outcome(changed) == "corrupt" or changed == blob


@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_with_a_right_checksum_load_or_are_refused(seed):
    chance = random.Random(seed)
    seen = {outcome(signed(flipped(unsigned(chance.choice(BLOBS)), chance))) for _ in range(150)}
    for _ in range(150):
        parts = chance.choice(PARTS)
        coded = flipped(parts.coded, chance)
        seen.add(outcome(remade(parts, data=flipped(parts.data, chance), coded=coded)))
    assert seen >= {"loaded", "corrupt"}


@pytest.mark.parametrize("seed", range(4))
def test_rewritten_headers_with_a_right_checksum_load_or_are_refused(seed):
    chance = random.Random(seed)
    parts = [chance.choice(PARTS) for _ in range(250)]
    seen = {outcome(remade(one, rewritten(one.header, chance))) for one in parts}
    assert "corrupt" in seen


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 255))
def test_random_bytes_are_refused(junk, version):
    for blob in (junk, b"CLAB" + junk, signed(b"CLAB\x01" + junk), signed(b"CLAB" + bytes([version]) + junk)):
        assert outcome(blob) == "corrupt"


def test_every_cut_and_every_flipped_bit_is_noticed():
    assert outcome(PLAIN) == "loaded"
    for length in range(len(PLAIN)):
        assert outcome(PLAIN[:length]) == "corrupt"
    assert signed(unsigned(PLAIN)) == PLAIN
    for length in range(len(unsigned(PLAIN))):  # zeros follow the last bytes of the range coder: some are files
        assert outcome(signed(PLAIN[:length])) in ("corrupt", "loaded")
    for bit in range(8 * len(PLAIN)):
        changed = bytearray(PLAIN)
        changed[bit // 8] ^= 1 << bit % 8
        assert outcome(bytes(changed)) == "corrupt"


def test_a_newer_version_says_so():
    newer = signed(PLAIN[:4] + b"\x09" + unsigned(PLAIN)[5:])
    with pytest.raises(CorruptFileError, match="format version 9.*reads 1.*update"):
        cl.storage.loads(newer)


def header(model=("Sequential", {}, {"0": ["Linear", {"in_features": 3, "out_features": 2}]}), tensors=None, **more):
    tensors = [["0.weight", "float32", [2, 3]], ["0.bias", "float32", [2]]] if tensors is None else tensors
    return {"model": list(model) if model is not None else None, "training": True, "tensors": tensors, **more}


def raw(*sizes, itemsize=4):
    """Payload of dense tensors of so many bytes, plane by plane."""
    parts = []
    for size in sizes:
        parts += [rounded.NONE, tensors.DENSE, 0, binary_words.PLANES, *[0, bytes(size // itemsize)] * itemsize]
    return parts


def alike(word, itemsize=4, kind="float"):
    """Words that are all alike."""
    return lambda coder: coder.constant(word, itemsize, kind)


def single(value):
    """Payload of a tensor of a single float."""
    return [rounded.NONE, tensors.DENSE, 0, alike(int(np.array(value, dtype="<f4").view("<u4")))]


def on_grid(*levels, scale=1.0, sides=(), bits=4):
    """Payload of a weight on a grid, with a zero point of 0; levels  planes, or what writes them."""
    inner = [part for value in (scale, 0.0) for part in single(value)[1:]]
    return [rounded.GRID, lambda coder: coder.grid_head(sides, (), bits), *inner, 0, tensors.DENSE, 0, *levels]


def narrow(*numbers):
    """Levels of a grid, none of them negative."""
    planes = (np.array(numbers, dtype="<u2") << 1).view(np.uint8).reshape(-1, 2)  # zigzagged
    return [binary_words.PLANES, 0, planes[:, 0].tobytes(), 0, planes[:, 1].tobytes()]


def test_forging_can_make_a_good_file():
    assert outcome(forged(header(), raw(24, 8))) == "loaded"


def nested(depth, inner, outer='["Sequential",{},{"0":%s}]'):
    text = inner
    for _ in range(depth):
        text = outer % text
    return text


def doubling(levels):
    """Each level holds the one below twice: 2**levels places, one module each."""
    node = ["Sequential", {}, {"a": ["ReLU"], "b": {"same": "a"}}]
    for level in range(levels):
        path = ".".join("a" * (levels - level))
        node = ["Sequential", {}, {"a": node, "b": {"same": path}}]
    return relative(node, "")


def relative(node, path):
    name, arguments, children = [*node, {}, {}][:3]
    made = {}
    for key, child in children.items():
        inside = f"{path}.{key}" if path else key
        first = f"{path}.a" if path else "a"
        made[key] = {"same": first} if isinstance(child, dict) else relative(child, inside)
    return [name, arguments, made] if made else [name]


def encoder(layers_inside, inner):
    return ["TransformerEncoder", {"encoder_layer": {"module": inner}, "num_layers": layers_inside}]


FOUR = {"bits": 4, "low": 0, "high": 15}
SCALE = single(1.0) + single(0.0)
ORDERS = [[0], [0, 0], [1, 2], [0, 1, 2], [True, 0], ["1", "0"], [[], []], {}, "10", 10]


def reordered(order):
    return [["0.weight", "float32", [2, 3], order], ["0.bias", "float32", [2]]]


def norm(**more):
    """A normalisation: two parameters, two buffers, an integer."""
    names = ["weight", "bias", "running_mean", "running_var"]
    listed = [*([name, "float32", [2]] for name in names), ["num_batches_tracked", "int64", []]]
    return header(["BatchNorm1d", {"num_features": 2}], listed, **more)


def gated(arguments):
    """A linear layer behind an input grid."""
    node = ["Sequential", {}, {"input": ["InputGrid", arguments], "layer": header()["model"][2]["0"]}]
    listed = [["input.scale", "float32", []], ["input.zero_point", "float32", []]]
    return header(node, [*listed, ["layer.weight", "float32", [2, 3]], ["layer.bias", "float32", [2]]])


def test_forging_can_make_good_rounded_files():
    good = on_grid(*narrow(1, 2, 3, 4, 5, 6)) + raw(8)
    assert outcome(forged(header(), good)) == "loaded"
    half = [rounded.HALF, lambda coder: coder.writer.number(0, 2), *raw(12, itemsize=2)[1:]]
    assert outcome(forged(header(), half + raw(8))) == "loaded"
    assert outcome(forged(header(tensors=reordered([1, 0])), raw(24, 8))) == "loaded"
    assert outcome(forged(gated(FOUR), SCALE + raw(24, 8))) == "loaded"
    assert outcome(forged(norm(), raw(8, 8, 8, 8) + raw(8, itemsize=8))) == "loaded"


FORGERIES = {
    "header is a list": dict(header=[1, 2]),
    "no tensors": dict(header={"model": None, "training": True}),
    "an unknown key": dict(header=header(code="print()")),
    "unknown layer": dict(header=header(["os.system"])),
    "a class of torch.nn that is no layer": dict(header=header(["DataParallel", {"module": {"module": ["ReLU"]}}])),
    "dunder argument": dict(header=header(["Linear", {"__class__": 1}])),
    "other shape": dict(header=header(tensors=[["0.weight", "float32", [3, 2]], ["0.bias", "float32", [2]]])),
    "missing tensor": dict(header=header(tensors=[["0.weight", "float32", [2, 3]]])),
    "doubled name": dict(header=header(tensors=[["0.weight", "float32", [2, 3]]] * 2)),
    "negative size": dict(header=header(tensors=[["0.weight", "float32", [-2, -3]], ["0.bias", "float32", [2]]])),
    "size is true": dict(header=header(tensors=[["0.weight", "float32", [True, 3]], ["0.bias", "float32", [2]]])),
    "many dimensions": dict(header=header(None, [["a", "float32", [1] * 5000]])),
    "zero times huge": dict(header=header(None, [["a", "float32", [0, 2**61]], ["b", "float32", [2**61, 2**61]]])),
    "unknown dtype": dict(header=header(None, [["a", "object", [2]]])),
    "tied to itself": dict(header=header(tensors=[["0.weight", 0], ["0.bias", "float32", [2]]])),
    "tied to a later one": dict(header=header(tensors=[["0.weight", 1], ["0.bias", "float32", [2]]])),
    "tied to another shape": dict(header=header(tensors=[["0.weight", "float32", [2, 3]], ["0.bias", 0]])),
    "tied to nothing": dict(header=header(tensors=[["0.weight", None], ["0.bias", "float32", [2]]])),
    "mask of a dense tensor": dict(header=header(masked=[0]), payload=raw(24, 8)),
    "mask out of range": dict(header=header(masked=[2]), payload=raw(24, 8)),
    "mode of no module": dict(header=header(flipped=["9"]), payload=raw(24, 8)),
    "data left over": dict(header=header(), payload=[*raw(24, 8), b"0"]),
    "data cut": dict(header=header(), payload=raw(24, 4)),
    "words nobody reads": dict(header=header(["ReLU"], []), payload=[1]),
    "name that is a method": dict(header=header(["Sequential", {}, {"forward": ["ReLU"]}], [])),
    "name with a dot": dict(header=header(["Sequential", {}, {"a.b": ["ReLU"]}], [])),
    "module inside itself": dict(header=header(["Sequential", {}, {"a": ["Sequential", {}, {"b": {"same": ""}}]}], [])),
    "module of later": dict(header=header(["Sequential", {}, {"a": {"same": "b"}, "b": ["ReLU"]}], [])),
    "doubling": dict(header=header(doubling(60), [])),
    "many layers": dict(header=header(["LSTM", {"input_size": 1, "hidden_size": 1, "num_layers": 10**9}], [])),
    "many copies": dict(header=header(encoder(10**9, ["ReLU"]), [])),
    "copies of copies": dict(header=header(encoder(999, encoder(999, encoder(999, ["ReLU"]))), [])),
    "transformer of many": dict(header=header(["Transformer", {"num_encoder_layers": 10**7}], [])),
    "many small layers": dict(header=header(["Sequential", {}, {str(n): ["Transformer"] for n in range(2000)}], [])),
    "huge layer": dict(header=header(["Linear", {"in_features": 2**40, "out_features": 2**40}], [])),
    "long tuple": dict(header=header(["LayerNorm", {"normalized_shape": [1] * 30_000}], [])),
    "deep modules": dict(text=nested(50_000, '["ReLU"]').encode()),
    "deep arguments": dict(text=b'{"model":["ReLU",{"inplace":%s}]}' % (b"[" * 100_000 + b"]" * 100_000)),
    "key twice": dict(text=b'{"model":null,"model":null,"training":true,"tensors":[]}'),
    "not a number": dict(text=b'{"model":null,"training":true,"tensors":[NaN]}'),
    "beyond a float": dict(text=b'{"model":null,"training":true,"tensors":[1e999]}'),
    "long number": dict(text=b'{"model":null,"training":true,"tensors":[%s]}' % (b"9" * 10_000)),
    "no text": dict(text=b"\xff\xfe"),
    **{f"order {one}": dict(header=header(tensors=reordered(one)), payload=raw(24, 8)) for one in ORDERS},
    "a grid of a code too many": dict(header=header(), payload=on_grid(*narrow(1, 2, 3, 4, 5, 16)) + raw(8)),
    "a buffer on a grid": dict(header=norm(), payload=raw(8, 8) + on_grid(*narrow(1, 2)) + raw(8) + raw(8, itemsize=8)),
    "an integer on a grid": dict(header=norm(), payload=raw(8, 8, 8, 8) + on_grid(*narrow(1))),
    **{
        f"input grid {one}": dict(header=gated(one), payload=raw(4, 4, 24, 8))
        for one in (
            *(
                {},
                {"bits": 0, "low": 0, "high": 0},
                {"bits": 99, "low": 0, "high": 1},
                {"bits": 4, "low": 9, "high": 0},
            ),
            *(
                {"bits": 4, "low": 0, "high": 16},
                {"bits": 4, "low": 0.0, "high": 1},
                {"bits": 4, "low": 0, "high": 10**30},
            ),
            *(
                {**FOUR, "learned": True},
                {**FOUR, "shape": [2**40]},
                {**FOUR, "shape": {"list": [1]}},
                {**FOUR, "x": 1},
            ),
        )
    },
    "input grid of no scale": dict(header=gated(FOUR), payload=single(np.nan) + raw(4, 24, 8)),
    "input grid of negative scale": dict(header=gated(FOUR), payload=single(-1.0) + raw(4, 24, 8)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FORGERIES)
def test_forged_files_are_refused(name):
    blob = forged(**{"header": None, **FORGERIES[name]})
    with pytest.raises(CorruptFileError) as caught:
        cl.storage.loads(blob)
    assert len(str(caught.value)) < 1500


def one_tensor(dtype, shape, *payload):
    node = ["Module", {"buffers": ["a"], "graph": {"inputs": [], "steps": [], "output": None}}]
    return forged(header(node, [["a", dtype, shape]]), [rounded.NONE, *payload])


def test_declared_sizes_are_held_against_max_bytes():
    ones = tensors.DENSE, 0, alike(0x3F800000)
    constant = one_tensor("float32", [5, 2**20], *ones)  # 20 MiB in 200 bytes is allowed
    assert peak(constant) == ("loaded", pytest.approx(20 * 2**20, rel=0.1))
    assert peak(constant, max_bytes=20 * 2**20)[0] == "loaded"
    with pytest.raises(CorruptFileError, match="20971520 bytes, more than max_bytes, 20971519"):
        cl.storage.loads(constant, max_bytes=20 * 2**20 - 1)
    for shape in ([2**20, 2**20], [2**61, 4], [2**25]):
        found, held = peak(one_tensor("float32", shape, *ones))
        assert found == "corrupt" and held < 2**20
    with pytest.raises(ValueError, match="max_bytes is -1"):
        cl.storage.loads(constant, max_bytes=-1)


def almost_certain(coder):
    """Write the histogram of an almost certain symbol."""
    coder.writer.frequencies(np.array([2**14 - 1, 1]))


def pair(itemsize, kind):
    """Write a palette of two words."""
    return lambda coder: palettes.code(coder.writer, np.array([0, 1], dtype=f"<u{itemsize}"), 2, itemsize, kind)


def test_a_few_bytes_cannot_claim_hours_of_decoding_or_much_memory():
    size = 2**24
    planes = tensors.DENSE, 0, binary_words.PLANES, 1, almost_certain
    histogram = tensors.DENSE, 0, binary_words.FEW, 1, pair(1, "unsigned"), 0, binary_words.HISTOGRAM, almost_certain
    bitmap = tensors.SPARSE, 0, positions.BITMAP, binary_words.PLANES, 1, almost_certain
    for payload in (planes, histogram, bitmap):
        found, held = peak(one_tensor("uint8", [2**12, 2**12], *payload))
        assert held < size + 2**26, payload
        found, held = peak(one_tensor("uint8", [2**13, 2**13 - 1], *payload))
        assert found == "corrupt" and held < size + 2**26, payload


def test_codes_of_a_few_bytes_take_little_more_memory_than_the_weights_they_stand_for():
    level = alike(5, 2, "signed")
    node = ["Linear", {"in_features": 2**11, "out_features": 2**11, "bias": False}]
    listed = [["weight", "float32", [2**11, 2**11]]]
    for sides in ((), (2**11, 1), (2**11,)):
        blob = forged(header(node, listed), on_grid(level, sides=sides))
        found, held = peak(blob)
        assert found == "loaded" and held < 2**24  # torch holds the weights themselves
    masked = [*on_grid()[:-2], tensors.SPARSE, 0, 1, level]
    found, held = peak(forged(header(node, listed, masked=[0]), masked))
    assert found == "loaded" and held < 2**25
    for data in (
        [binary_words.PLANES, 1, almost_certain],
        [binary_words.FEW, 1, pair(2, "signed"), 0, 1],
        [binary_words.PLANES, 0, b"abc"],
    ):
        found, held = peak(forged(header(node, listed), on_grid(*data)))
        assert found == "corrupt" and held < 2**24


@pytest.mark.parametrize(
    "inputs", [[[]], [["input"]], [["input", None]], [["input", ["ReLU"]]], [[1, 2]], [["x", FOUR]]]
)
def test_input_grids_of_tensors_alone_that_no_writer_lists_are_refused(inputs):
    good = [["input", ["InputGrid", FOUR]]]
    target, listed, data = nn.Sequential(), gated(FOUR)["tensors"], SCALE + raw(24, 8)
    target.add_module("input", grids.InputGrid(torch.ones(()), torch.ones(()), 0, 1, 1))
    target.add_module("layer", nn.Linear(3, 2))
    with pytest.raises(CorruptFileError):
        cl.storage.loads(forged(header(None, listed, inputs=inputs), data), into=target)
    assert target.input.bits == 1
    assert cl.storage.loads(forged(header(None, listed, inputs=good), data), into=target).input.bits == 4


def test_what_is_no_parameter_is_not_masked_or_rounded_and_nothing_is_changed_then():
    target = nn.BatchNorm1d(2)
    before = copy.deepcopy(target.state_dict())
    grid = forged(norm(), raw(8, 8) + on_grid(*narrow(1, 2)) + raw(8) + raw(8, itemsize=8))
    mask = forged(
        norm(masked=[2]),
        raw(8, 8) + [rounded.NONE, tensors.SPARSE, 0, 0, binary_words.PLANES, *[0] * 4] + raw(8) + raw(8, itemsize=8),
    )
    for blob in (grid, mask):
        assert outcome(blob) == "corrupt"
        with pytest.raises(ValueError, match="running_mean.*not a parameter"):
            cl.storage.loads(blob, into=target)
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in before.items())


def test_shared_modules_cannot_multiply_input_grids():
    node = doubling(40)
    inner = node
    while len(inner) > 1 and isinstance(inner[2].get("a"), list):
        inner = inner[2]["a"]
    inner[:] = ["InputGrid", FOUR]
    blob = forged(header(node, [["a.scale", "float32", []], ["a.zero_point", "float32", []]]), SCALE)
    assert outcome(blob) == "corrupt" and outcome(blob, into=nn.Linear(3, 2)) == "corrupt"


@pytest.mark.parametrize("seed", range(2))
def test_rewritten_files_change_a_module_wholly_or_not_at_all(seed):
    chance, seen = random.Random(seed), set()
    makes = [lambda: nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4)), Net]
    for number in range(120):
        make, parts = [(makes[0], PARTS[-5]), (makes[1], PARTS[-2])][number % 2]
        target = make()
        before = copy.deepcopy(target.state_dict())
        try:
            data = flipped(parts.data, chance) if number % 3 == 0 else parts.data
            blob = remade(parts, rewritten(parts.header, chance) if number % 3 else parts.header, data)
            cl.storage.loads(blob, into=target)
            seen.add("loaded")
        except ValueError as error:
            seen.add("corrupt" if isinstance(error, CorruptFileError) else "does not fit")
            assert list(target.state_dict()) == list(before)
            assert all(torch.equal(value, target.state_dict()[key]) for key, value in before.items())
    assert seen >= {"loaded", "corrupt"}


def test_a_packed_header_cannot_claim_much_memory():
    text = b'{"model":[' + b"[]," * 10**7 + b"1]}"
    found, held = peak(packed(text))
    assert found == "corrupt" and held < 2**26


def test_a_damaged_file_changes_nothing_in_the_module_it_was_to_fill():
    model = nn.Sequential(nn.Linear(3, 2))
    before = copy.deepcopy(model.state_dict())
    for damaged in (PLAIN[:-1], forged(header(), raw(24, 4)), forged(header(), [*raw(24, 8), b"0"])):
        assert outcome(damaged, into=model) == "corrupt"
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_load_or_are_refused_in_little_time_and_memory(seed):
    tally = fuzzing.run(700, seed, bar=False)
    assert not tally.wrong
    assert {found for _, found in tally.seen} >= {"loaded", "corrupt"} and tally.memory <= fuzzing.MEMORY


def test_mutations_are_the_same_for_the_same_seed():
    numbers = range(3 * len(fuzzing.KINDS))
    assert [fuzzing.mutated(5, one) for one in numbers] == [fuzzing.mutated(5, one) for one in numbers]
    assert fuzzing.mutated(5, 0) != fuzzing.mutated(6, 0)
    assert {fuzzing.mutated(5, one)[0] for one in numbers} == {make.__name__[1:] for make in fuzzing.KINDS}


def test_the_tally_notes_what_must_not_be(monkeypatch):
    monkeypatch.setattr(fuzzing, "mutated", lambda seed, number: ("flipped", PLAIN))
    assert [what for *_, what in fuzzing.run(1, start=len(fuzzing.KINDS), bar=False).wrong] == [
        "loaded as another model"
    ]
    monkeypatch.setattr(cl.storage, "loads", lambda blob: 1 / 0)
    tally = fuzzing.Tally()
    tally.add(0, 0)
    assert "ZeroDivisionError" in tally.wrong[0][2]


def claimed(shape, write, rounding=rounded.NONE, dtype="float32", **more):
    """A file with one tensor whose payload `write` makes of a Claims that takes no chance."""
    listed = [["t", dtype, shape]]
    coder = claims.Claims(random.Random(0))
    coder.writer.uint(rounding)
    write(coder)
    tensors = {"model": claims.module(listed), "training": True, "tensors": listed, **more}
    return container.pack(tensors, coder.writer.data(), coder.writer.coded() + b"\0")


def chosen(*numbers):
    """Writes numbers."""
    return lambda coder: [coder.writer.uint(one) for one in numbers]


def constant(coder, *numbers, word=0, itemsize=4, kind="float"):
    """Writes numbers, and words that are all alike."""
    chosen(*numbers)(coder)
    coder.constant(word, itemsize, kind)


def test_units_that_are_counted_take_little_memory():
    blob = claimed([2**24, 1], lambda coder: constant(coder, tensors.SPARSE, 0, 1, word=1))  # all kept
    found, held = peak(blob)
    assert found == "loaded" and held < 2**26 + 2**24 + 2**22


@pytest.mark.parametrize("shape", [[2, 2**23], [2**23, 2], [2**24], [2**24, 1]])
def test_bitmaps_take_little_memory(shape):
    def write(coder):
        chosen(tensors.SPARSE, 0, positions.BITMAP)(coder)
        constant(coder, word=129, itemsize=1, kind="unsigned")
        constant(coder, word=1, itemsize=1, kind="unsigned")

    paying = claimed(shape, write, dtype="bool", flipped=[random.Random(0).randbytes(2**14).hex()])
    for blob in (claimed(shape, write, dtype="bool"), paying):
        found, held = peak(blob)
        assert held < 2**26 + 2**24  # which it declares


def book_head(coder, count):
    """Write what comes before so many centroids, which rise."""
    coder.writer.number(0, 2)
    coder.writer.number(0, 2)
    chosen(count - 1)(coder)
    coder.writer.number(rounded.RISING, 2)


def test_assignments_take_little_memory():
    def write(coder):
        book_head(coder, 2)
        coder.palette(2, 4, "float")
        constant(coder, 0, tensors.DENSE, 0, word=1, itemsize=2, kind="signed")

    found, held = peak(claimed([2**22], write, rounded.BOOK))
    assert found == "loaded" and held < 2**24 + 2**22 + 2**23 + 2**22


def test_many_centroids_in_few_bytes_are_refused():
    listed = [[f"{index:x}", "float32", [1]] for index in range(40)]
    coder = claims.Claims(random.Random(0))
    for _ in listed:
        coder.writer.uint(rounded.BOOK)
        book_head(coder, 2**15)
        coder.palette(2**15, 4, "float")
        constant(coder, 0, tensors.DENSE, 0, word=1, kind="signed")
    header = {
        "model": claims.module(listed),
        "training": True,
        "tensors": listed,
    }
    with pytest.raises(CorruptFileError, match="more symbols"):
        cl.storage.loads(container.pack(header, coder.writer.data(), coder.writer.coded()))


def test_sparse_tensors_of_small_types_are_held_against_the_length_of_the_file():
    blob = claimed(
        [2**25], lambda coder: constant(coder, tensors.SPARSE, 0, 1, word=1, itemsize=1, kind="unsigned"), dtype="uint8"
    )
    with pytest.raises(
        CorruptFileError, match="100663296 bytes are wanted beside the tensors.*give max_bytes if you trust"
    ):
        cl.storage.loads(blob)
    assert outcome(blob, max_bytes=2**27) == "loaded"


def test_scales_are_held_against_the_length_of_the_file():
    blob = forged(header(None, [["a", "float32", [2**22, 1]]]), on_grid(sides=(2**22, 1)))
    with pytest.raises(CorruptFileError, match="67108864 bytes are wanted beside the tensors"):
        cl.storage.loads(blob, into=nn.Linear(1, 2**22, bias=False))


def test_weights_off_their_grid_are_refused():
    node = ["Linear", {"in_features": 200, "out_features": 2, "bias": False}]
    listed, tiny = [["weight", "float16", [2, 200]]], 1e-40  # a step that float16 does not have
    for scale, found in ((1.0, "loaded"), (tiny, "corrupt")):
        assert outcome(forged(header(node, listed), on_grid(alike(1, 2, "signed"), scale=scale, bits=2))) == found


def filled(unit, head=b'{"model":[', tail=b'0],"training":true}', size=2**21):
    """A header of about so many bytes, the same unit again and again."""
    return packed(head + unit * ((size - len(head) - len(tail)) // len(unit)) + tail)


def steps(unit, buffers=1):
    """A module of a class of its own that takes many steps."""
    names = [f"a{index}" for index in range(buffers)]
    listed = json.dumps([[name, "int8", []] for name in names], separators=(",", ":")).encode()
    head = b'{"model":["Module",{"buffers":%s,"graph":{"inputs":["x"],"steps":[' % json.dumps(names).encode()
    return filled(unit, head, b'["tensor","a0",[]]],"output":null}}],"training":false,"tensors":%s}' % listed)


def padded(length, shape, write, dtype="int8", rounding=rounded.NONE, **more):
    """A file of about so many bytes: most are a tensor of raw bytes, behind it another that `write` makes."""
    listed = [["a", "int8", [length]], ["t", dtype, shape]]
    coder = claims.Claims(random.Random(0))
    chosen(rounded.NONE, tensors.DENSE, 0, binary_words.PLANES, 0)(coder)
    coder.writer.raw(random.Random(0).randbytes(length))
    coder.writer.uint(rounding)
    write(coder)
    head = {"model": claims.module(listed), "training": True, "tensors": listed, **more}
    return container.pack(head, coder.writer.data(), coder.writer.coded() + bytes(16))


def nearly(coder):
    """One plane of almost certain symbols."""
    chosen(tensors.DENSE, 0, binary_words.PLANES, 1)(coder)
    almost_certain(coder)


def on_a_grid(sides):
    return {"write": lambda coder: small_grid(coder, sides), "dtype": "float32", "rounding": rounded.GRID}


def sparse(itemsize, kind):
    return lambda coder: constant(coder, tensors.SPARSE, 0, 1, word=1, itemsize=itemsize, kind=kind)


def small(count, shape, rounding, write):
    """A file of many small tensors, each with the same payload."""
    listed = [[f"{index:x}", "float32", shape] for index in range(count)]
    coder = claims.Claims(random.Random(0))
    for _ in listed:
        coder.writer.uint(rounding)
        write(coder)
    head = {"model": claims.module(listed), "training": True, "tensors": listed}
    return container.pack(head, coder.writer.data(), coder.writer.coded() + bytes(16))


def small_grid(coder, sides=()):
    coder.grid_head(sides, ())
    for word in (0x3F800000, 0):
        constant(coder, tensors.DENSE, 0, word=word)
    constant(coder, 0, tensors.DENSE, 0, word=1, itemsize=2, kind="signed")


def small_field(coder):
    chosen(tensors.SPARSE, 0, positions.CONTEXTS, 0, 0)(coder)
    coder.writer.bits(np.zeros(4, dtype=bool), np.full(4, 0.5))
    constant(coder)


KIB, MIB = 2**10, 2**20
ATTACKS = {
    "steps and buffers": lambda: steps(b'["tensor","a1",[]],', 1990),
    "steps": lambda: steps(b'["method","t",[]],'),
    "steps with arguments": lambda: steps(b'["method","t",[%s0]],' % (b"[]," * 40)),
    "objects": lambda: filled(b'{"":{}},'),
    "lists": lambda: filled(b"[],"),
    "text": lambda: filled(b'"a",'),
    "wide text": lambda: filled(b'"a",', '{"model":["\U0001f600",'.encode()),
    "modules": lambda: filled(b'"a":["ReLU"],', b'{"model":["Sequential",{},{', b'"z":null}],"training":true}'),
    "almost certain symbols": lambda: padded(256 * KIB, [255 * MIB], nearly),
    "almost certain symbols of a MiB": lambda: padded(MIB - 500, [MIB * 900], nearly),
    "a constant of a GiB": lambda: padded(
        MIB - 500, [MIB * 1000], lambda coder: constant(coder, tensors.DENSE, 0, word=1, itemsize=1, kind="signed")
    ),
    "sparse": lambda: padded(512 * KIB, [140 * MIB], sparse(1, "signed")),
    "mask": lambda: padded(900 * KIB, [100 * MIB], sparse(4, "float"), "float32", masked=[1]),
    "small mask": lambda: padded(90 * KIB, [15 * MIB], sparse(4, "float"), "float32", masked=[1]),
    "order": lambda: padded(
        900 * KIB,
        [2, 100 * MIB],
        lambda coder: constant(coder, tensors.DENSE, 0, word=1, itemsize=1, kind="signed"),
        tensors=[["a", "int8", [900 * KIB]], ["t", "int8", [2, 100 * MIB], [1, 0]]],
    ),
    "half": lambda: padded(
        900 * KIB,
        [70 * MIB],
        lambda coder: (coder.writer.number(0, 2), constant(coder, tensors.DENSE, 0, itemsize=2)),
        "float32",
        rounding=rounded.HALF,
    ),
    "a scale a column": lambda: padded(256 * KIB, [2**14, 4096], **on_a_grid([1, 4096])),
    "a scale a row": lambda: padded(256 * KIB, [2**22, 3], **on_a_grid([2**22, 1])),
    "grids": lambda: small(20_000, [2], rounded.GRID, small_grid),
    "grids of one module": lambda: small(2_400, [2], rounded.GRID, small_grid),
    "fields": lambda: small(20_000, [2, 2], rounded.NONE, small_field),
    "buffers": lambda: small(23_000, [1], rounded.NONE, lambda coder: constant(coder, tensors.DENSE, 0)),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_takes_more_time_or_memory_than_a_load_may(name):
    blob = ATTACKS[name]()
    assert len(blob) < 2**20
    fuzzing.outcome(PLAIN)  # what is compiled at first takes its time
    _, model, seconds, memory = fuzzing.measured(blob)
    assert seconds <= fuzzing.SECONDS and memory - fuzzing.declared(blob) <= fuzzing.MEMORY
