"""Whatever the bytes are: a model, or CorruptFileError; never another error, a hang, or memory nobody allowed."""

import copy
import json
import random
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import compresslab as cl
from compresslab import grids, layers
from compresslab.storage import CorruptFileError, codes, container
from tests.storage import claims, fuzzing, samples
from tests.storage.fuzzing import flipped, outcome, peak, remade, rewritten, signed, unsigned
from tests.storage.samples import Net

BLOBS = [cl.storage.dumps(model) for model in samples.some_models()]
PARTS = [container.unpack(blob) for blob in BLOBS]
PLAIN = cl.storage.dumps(nn.Sequential(nn.Linear(3, 2)))


def forged(header, data=b"", words=(), text=None):
    """A file of version 2 with any header, its lengths and checksum right; `text` in place of the header's JSON."""
    text = json.dumps(header, separators=(",", ":")).encode() if text is None else text
    lengths = b"".join(container.varint(n) for n in (len(text), len(text), len(data), len(words)))
    return signed(b"CLAB\x02" + lengths + text + data + np.array(words, dtype="<u4").tobytes())


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
        words = flipped(parts.words.astype(">u4").tobytes(), chance)
        seen.add(outcome(remade(parts, data=flipped(parts.data, chance), words=words)))
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
    with pytest.raises(CorruptFileError, match="format version 9.*reads up to 4.*update"):
        cl.storage.loads(newer)


def header(model=("Sequential", {}, {"0": ["Linear", {"in_features": 3, "out_features": 2}]}), tensors=None, **more):
    tensors = [["0.weight", "float32", [2, 3]], ["0.bias", "float32", [2]]] if tensors is None else tensors
    return {"model": list(model) if model is not None else None, "training": True, "tensors": tensors, **more}


def raw(*sizes):
    """Payload of dense raw tensors of so many bytes."""
    return b"".join(b"\0\0" + bytes(size) for size in sizes)


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
SCALE = b"\0\0\0\0\x80\x3f" + raw(4)  # a scale of 1 and a zero point of 0
GRIDS = [
    *(
        [[]],
        [[0]],
        [[0, 4]],
        [[2, 4, 0, 15]],
        [[-1, 4, 0, 15]],
        [[True, 4, 0, 15]],
        [["0", 4, 0, 15]],
        [0],
        [None],
        {},
        7,
    ),
    *([[0, 0, 0, 0]], [[0, 99, 0, 15]], [[0, 4, 15, 0]], [[0, 4, 0, 99]], [[0, 4, 0, 15, [3, 2]]], [[0, 4, 0, 15, 2]]),
    *([[0, 4, 0, 15], [0, 4, 0, 15]], [[0, 4, 0, 15, [], False, "bool"]], [[0, 4, 0, 15, [10**30]]]),
]
HALVES = [[[]], [[0]], [[0, "float32"]], [[0, "int8"]], [[0, ["float16"]]], [[9, "float16"]], [[0, "float16", 1]], [0]]
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
    good = SCALE + b"\0\0\x12\x34\x56" + raw(8)
    assert outcome(forged(header(grids=[[0, 4, 0, 15]]), good)) == "loaded"
    assert outcome(forged(header(halves=[[0, "float16"]]), raw(12, 8))) == "loaded"
    assert outcome(forged(header(tensors=reordered([1, 0])), raw(24, 8))) == "loaded"
    assert outcome(forged(gated(FOUR), SCALE + raw(24, 8))) == "loaded"
    assert outcome(forged(norm(), raw(8, 8, 8, 8, 8))) == "loaded"


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
    "mask of a dense tensor": dict(header=header(masked=[0]), data=raw(24, 8)),
    "mask out of range": dict(header=header(masked=[2]), data=raw(24, 8)),
    "mode of no module": dict(header=header(flipped=["9"]), data=raw(24, 8)),
    "data left over": dict(header=header(), data=raw(24, 8) + b"0"),
    "data cut": dict(header=header(), data=raw(24, 4)),
    "words nobody reads": dict(header=header(), data=raw(24, 8), words=[1]),
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
    **{f"grid {one}": dict(header=header(grids=one), data=raw(4, 4) + b"\0\0abc" + raw(8)) for one in GRIDS},
    **{f"half {one}": dict(header=header(halves=one), data=raw(12, 8)) for one in HALVES},
    **{f"order {one}": dict(header=header(tensors=reordered(one)), data=raw(24, 8)) for one in ORDERS},
    "a tensor is rounded twice": dict(header=header(grids=[[0, 4, 0, 15]], halves=[[0, "float16"]])),
    "a buffer on a grid": dict(header=norm(grids=[[2, 4, 0, 15]]), data=raw(8, 8) + SCALE + b"\0\0\0" + raw(8, 8)),
    "an integer on a grid": dict(header=norm(grids=[[4, 4, 0, 15]]), data=raw(8, 8, 8, 8) + SCALE + b"\0\0\0"),
    "a tied tensor on a grid": dict(
        header=header(
            ["Sequential", {}, {one: ["Linear", {"in_features": 1, "out_features": 1, "bias": False}] for one in "ab"}],
            [["a.weight", "float32", [1, 1]], ["b.weight", 0]],
            grids=[[1, 4, 0, 15]],
        ),
        data=SCALE + b"\0\0\0",
    ),
    **{
        f"input grid {one}": dict(header=gated(one), data=raw(4, 4, 24, 8))
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
    "input grid of no scale": dict(header=gated(FOUR), data=b"\0\0\0\0\xc0\x7f" + raw(4, 24, 8)),
    "input grid of negative scale": dict(header=gated(FOUR), data=b"\0\0\0\0\x80\xbf" + raw(4, 24, 8)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FORGERIES)
def test_forged_files_are_refused(name):
    blob = forged(**{"header": None, **FORGERIES[name]})
    with pytest.raises(CorruptFileError) as caught:
        cl.storage.loads(blob)
    assert len(str(caught.value)) < 1500


def one_tensor(dtype, shape, data, words=()):
    node = ["Module", {"buffers": ["a"], "graph": {"inputs": [], "steps": [], "output": None}}]
    return forged(header(node, [["a", dtype, shape]]), data, words)


def test_declared_sizes_are_held_against_max_bytes():
    constant = one_tensor("float32", [5, 2**20], b"\0\1abcd")  # 20 MiB in 200 bytes is allowed
    assert peak(constant) == ("loaded", pytest.approx(20 * 2**20, rel=0.1))
    assert peak(constant, max_bytes=20 * 2**20)[0] == "loaded"
    with pytest.raises(CorruptFileError, match="20971520 bytes, more than max_bytes, 20971519"):
        cl.storage.loads(constant, max_bytes=20 * 2**20 - 1)
    for shape in ([2**20, 2**20], [2**61, 4], [2**25]):
        found, held = peak(one_tensor("float32", shape, b"\0\1abcd"))
        assert found == "corrupt" and held < 2**20
    with pytest.raises(ValueError, match="max_bytes is -1"):
        cl.storage.loads(constant, max_bytes=-1)


def test_a_few_bytes_cannot_claim_hours_of_decoding_or_much_memory():
    size = 2**26
    nearly = container.varint(2**14 - 1) + container.varint(1)  # frequencies of an almost certain symbol
    planes = b"\0\2\1\0\1" + nearly
    palette = b"\0\3\2\0\1\0\1" + nearly
    levels = b"\1\x10"  # constant: level 16
    odds = b"\1\4\1" + levels + levels + b"\1\0"
    gaps = b"\1\2" + container.varint(2**26) + b"\1\0\0\0\0" + b"\1\1"
    for data in (planes, palette, odds, gaps):
        found, held = peak(one_tensor("uint8", [2**13, 2**13], data, [0] * 20))
        assert found == "corrupt" and held < size + 2**26, data


def test_codes_of_a_few_bytes_take_little_more_memory_than_the_weights_they_stand_for():
    sides = b"\0\1\0\0\x80\x3f" + b"\0\1\0\0\0\0"  # 16 MiB of weights, a scale and a zero point for each
    level = b"\1\0\0\0" + container.varint(2**14)
    node = ["Linear", {"in_features": 2**11, "out_features": 2**11, "bias": False}]
    listed = [["weight", "float32", [2**11, 2**11]]]
    for shape, data in (([], SCALE), ([2**11, 1], sides), ([2**11], sides)):
        blob = forged(header(node, listed, grids=[[0, 4, 0, 15, shape]]), data + b"\0" + level)
        found, held = peak(blob)
        assert found == "loaded" and held < 2**24  # torch holds the weights themselves
    blob = forged(header(node, listed, grids=[[0, 4, 0, 15]], masked=[0]), SCALE + b"\1\1" + level)
    found, held = peak(blob)
    assert found == "loaded" and held < 2**25
    nearly = container.varint(2**14 - 1) + container.varint(1)
    for data in (b"\0\1\0\0\1" + nearly, b"\0\2\0\1" + nearly, b"\0\0abc"):
        found, held = peak(forged(header(node, listed, grids=[[0, 4, 0, 15]]), SCALE + data, [0] * 20))
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
    grid = forged(norm(grids=[[2, 4, 0, 15]]), raw(8, 8) + SCALE + b"\0\0\0" + raw(8, 8))
    mask = forged(norm(masked=[2]), raw(8, 8) + b"\1\0\0" + raw(8, 8))
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


def deflated(text, version):
    """A header as zlib writes it, which takes less time for an enormous one than our own search."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, container.DICTIONARIES[version])
    return packer.compress(text) + packer.flush()


def test_a_packed_header_cannot_claim_much_memory():
    text = b'{"model":[' + b"[]," * 10**7 + b"1]}"
    stored = deflated(text, 1)
    for claimed in (len(text), 2**21):
        lengths = b"".join(container.varint(n) for n in (claimed, len(stored), 0, 0))
        found, held = peak(signed(b"CLAB\x01" + lengths + stored))
        assert found == "corrupt" and held < 2**26


def test_a_damaged_file_changes_nothing_in_the_module_it_was_to_fill():
    model = nn.Sequential(nn.Linear(3, 2))
    before = copy.deepcopy(model.state_dict())
    for damaged in (PLAIN[:-1], forged(header(), raw(24, 4)), forged(header(), raw(24, 8) + b"0")):
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


def claimed(shape, write, dtype="float32", **more):
    """A file with one tensor whose payload `write` makes of a Claims that takes no chance."""
    listed = [["t", dtype, shape]]
    coder = claims.Claims(random.Random(0))
    write(coder)
    tensors = {"model": claims.module(listed), "training": True, "tensors": listed, **more}
    return container.pack(tensors, bytes(coder.writer.data), coder.writer.coded() + b"\0")


def chosen(*numbers):
    """Writes numbers."""
    return lambda coder: [coder.writer.uint(one) for one in numbers]


def constant(coder, *numbers, word=bytes(4)):
    """Writes numbers, the last of them the form of a constant, and its word."""
    chosen(*numbers)(coder)
    coder.writer.raw(word)


def test_units_that_are_counted_take_little_memory():
    blob = claimed([2**24, 1], lambda coder: constant(coder, 1, 0, 1, 1))  # sparse, all kept
    found, held = peak(blob)
    assert found == "loaded" and held < 2**26 + 2**24 + 2**22


def test_signs_of_zeros_take_little_memory():
    blob = claimed([2**23, 4], lambda coder: constant(coder, 2, 0, 0, 0, 2**16 - 1, word=b""), "float16")
    found, held = peak(blob)
    assert found == "corrupt" and held < 2**26 + 2**26


@pytest.mark.parametrize("shape", [[2, 2**23], [2**23, 2], [2**24], [2**24, 1]])
def test_levels_of_rows_and_columns_take_little_memory(shape):
    def write(coder):
        chosen(1, 0, 4, 1)(coder)  # sparse, its first frame, odds, of a base
        constant(coder, 1, word=b"\x10")
        constant(coder, 1, word=b"\x10")

    paying = claimed(shape, write, "bool", flipped=[random.Random(0).randbytes(2**14).hex()])
    for blob in (claimed(shape, write, "bool"), paying):
        found, held = peak(blob)
        assert found == "corrupt" and held < 2**26  # 16 MiB of them declared


def test_assignments_take_little_memory():
    def write(coder):
        chosen(0, 1)(coder)  # two centroids, rising
        coder.palette(2, 4, "float")
        chosen(0, 0, 1)(coder)  # all kept, ranks as words
        constant(coder, 1, word=b"\1\0")

    found, held = peak(claimed([2**22], write, codebooks=[[0]]))
    assert found == "loaded" and held < 2**24 + 2**22 + 2**23 + 2**22


def test_many_centroids_in_few_bytes_are_refused():
    listed = [[f"{index:x}", "float32", [1]] for index in range(40)]
    coder = claims.Claims(random.Random(0))
    for _ in listed:
        chosen(0, 2**15 - 1)(coder)
        coder.palette(2**15, 4, "float")
        chosen(0, 0, 1)(coder)
        constant(coder, 1, word=bytes(2))
    header = {
        "model": claims.module(listed),
        "training": True,
        "tensors": listed,
        "codebooks": [[index] for index in range(40)],
    }
    with pytest.raises(CorruptFileError, match="more symbols"):
        cl.storage.loads(container.pack(header, bytes(coder.writer.data), coder.writer.coded()))


def test_sparse_tensors_of_small_types_are_held_against_the_length_of_the_file():
    blob = claimed([2**25], lambda coder: constant(coder, 1, 0, 1, 1, word=b"\1"), "uint8")
    with pytest.raises(
        CorruptFileError, match="67108864 bytes are wanted beside the tensors.*give max_bytes if you trust"
    ):
        cl.storage.loads(blob)
    assert outcome(blob, max_bytes=2**27) == "loaded"


def test_scales_are_held_against_the_length_of_the_file():
    blob = forged(header(None, [["a", "float32", [2**22, 1]]], grids=[[0, 4, 0, 15, [2**22, 1]]]))
    with pytest.raises(CorruptFileError, match="50331648 bytes are wanted beside the tensors"):
        cl.storage.loads(blob, into=nn.Linear(1, 2**22, bias=False))


@pytest.mark.parametrize("scale", [(), (4, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_table_of_codes_stands_for_computing_each_of_them(monkeypatch, scale, masked):
    torch.manual_seed(0)
    layer = nn.Linear(300, 4)
    grid = grids.Grid(torch.rand(scale) + 0.1, torch.randint(0, 7, scale).float(), 0, 7, 3)
    layer.weight.data = grid.values(torch.randint(0, 8, (4, 300)))
    layers.set_rounding(layer, grid)
    if masked:
        layers.set_mask(layer, torch.rand(4, 300) < 0.5)
    blob = cl.storage.dumps(layer)
    quick = cl.storage.loads(blob)
    assert codes._table(grid, (4, 300), torch.float32) is not None
    monkeypatch.setattr(codes, "_table", lambda *ignored: None)
    assert torch.equal(quick.weight, cl.storage.loads(blob).weight) and torch.equal(quick.weight, layer.weight)


def test_a_table_refuses_weights_off_their_grid():
    node = ["Linear", {"in_features": 200, "out_features": 2, "bias": False}]
    listed, tiny = [["weight", "float16", [2, 200]]], b"\0\0\1\0\0\0" + raw(4)  # a step that float16 does not have
    for scale, found in ((SCALE, "loaded"), (tiny, "corrupt")):
        assert outcome(forged(header(node, listed, grids=[[0, 2, 0, 3]]), scale + b"\0\0" + b"\x55" * 100)) == found


def packed(text, data=b"", coded=b""):
    """A file of version 3 with any header, which no writer's limits are held against."""
    stored = deflated(text, 3)
    return signed(b"CLAB\x03" + stored + container.varint(len(data)) + data + coded)


def filled(unit, head=b'{"model":[', tail=b'0],"training":true}', size=2**21):
    """A header of about so many bytes, the same unit again and again."""
    return packed(head + unit * ((size - len(head) - len(tail)) // len(unit)) + tail)


def steps(unit, buffers=1):
    """A module of a class of its own that takes many steps."""
    names = [f"a{index}" for index in range(buffers)]
    listed = json.dumps([[name, "int8", []] for name in names], separators=(",", ":")).encode()
    head = b'{"model":["Module",{"buffers":%s,"graph":{"inputs":["x"],"steps":[' % json.dumps(names).encode()
    return filled(unit, head, b'["tensor","a0",[]]],"output":null}}],"training":false,"tensors":%s}' % listed)


def padded(length, shape, write, dtype="int8", **more):
    """A file of about so many bytes: most are a tensor of raw bytes, behind it another that `write` makes."""
    listed = [["a", "int8", [length]], ["t", dtype, shape]]
    coder = claims.Claims(random.Random(0))
    constant(coder, 0, 0, word=random.Random(0).randbytes(length))
    write(coder)
    head = {"model": claims.module(listed), "training": True, "tensors": listed, **more}
    return container.pack(head, bytes(coder.writer.data), coder.writer.coded() + bytes(16))


def nearly(coder):
    """One plane of almost certain symbols."""
    chosen(0, 2, 1)(coder)
    coder.writer.frequencies(np.array([2**14 - 1, 1]))


def on_a_grid(scales):
    def write(coder):
        for word in (b"\0\0\x80\x3f", bytes(4)):
            constant(coder, 0, 1, word=word)
        chosen(0, 0, 1, 0)(coder)
        coder.writer.frequencies(np.array([2**14]))

    return {"write": write, "dtype": "float32", "grids": [[1, 4, 0, 15, scales]]}


def masked_or_not(item):
    return lambda coder: constant(coder, 1, 0, 1, 1, word=b"\1".ljust(item, b"\0"))


def small(count, shape, rounding, write):
    """A file of many small tensors, each with the same payload."""
    listed = [[f"{index:x}", "float32", shape] for index in range(count)]
    coder = claims.Claims(random.Random(0))
    for _ in listed:
        write(coder)
    head = {"model": claims.module(listed), "training": True, "tensors": listed}
    head |= {key: [[index, *more] for index in range(count)] for key, more in rounding.items()}
    return container.pack(head, bytes(coder.writer.data), coder.writer.coded() + bytes(16))


def small_grid(coder):
    for word in (b"\0\0\x80\x3f", bytes(4)):
        constant(coder, 0, 0, word=word)
    chosen(0, 0, 1, 0)(coder)
    coder.writer.frequencies(np.array([2**14]))


def small_field(coder):
    chosen(1, 0, 6, 0)(coder)
    coder.writer.bits(np.zeros(4, dtype=bool), np.full(4, 0.5))
    chosen(0)(coder)


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
    "a constant of a GiB": lambda: padded(MIB - 500, [MIB * 1000], lambda coder: constant(coder, 0, 1, word=b"\1")),
    "sparse": lambda: padded(512 * KIB, [140 * MIB], masked_or_not(1)),
    "mask": lambda: padded(900 * KIB, [100 * MIB], masked_or_not(4), "float32", masked=[1]),
    "small mask": lambda: padded(90 * KIB, [15 * MIB], masked_or_not(4), "float32", masked=[1]),
    "order": lambda: padded(
        900 * KIB,
        [2, 100 * MIB],
        lambda coder: constant(coder, 0, 1, word=b"\1"),
        tensors=[["a", "int8", [900 * KIB]], ["t", "int8", [2, 100 * MIB], [1, 0]]],
    ),
    "half": lambda: padded(
        900 * KIB, [70 * MIB], lambda coder: constant(coder, 0, 1, word=bytes(2)), "float32", halves=[[1, "float16"]]
    ),
    "a scale a column": lambda: padded(256 * KIB, [2**14, 4096], **on_a_grid([1, 4096])),
    "a scale a row": lambda: padded(256 * KIB, [2**22, 3], **on_a_grid([2**22, 1])),
    "grids": lambda: small(20_000, [2], {"grids": [4, 0, 15]}, small_grid),
    "grids of one module": lambda: small(2_400, [2], {"grids": [4, 0, 15]}, small_grid),
    "fields": lambda: small(20_000, [2, 2], {}, small_field),
    "buffers": lambda: small(23_000, [1], {}, lambda coder: constant(coder, 0, 0)),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_takes_more_time_or_memory_than_a_load_may(name):
    blob = ATTACKS[name]()
    assert len(blob) < 2**20
    fuzzing.outcome(PLAIN)  # what is compiled at first takes its time
    _, model, seconds, memory = fuzzing.measured(blob)
    assert seconds <= fuzzing.SECONDS and memory - fuzzing.declared(blob) <= fuzzing.MEMORY
