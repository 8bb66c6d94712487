"""deflate: what it writes inflates to the same text, is no longer than zlib's, and does not change."""

import hashlib
import json
import random
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import compresslab as cl
from compresslab.storage import container
from compresslab.storage.deflate import deflate

DICTIONARY = container.DICTIONARIES[container.VERSION]


def inflated(packed, dictionary=DICTIONARY):
    unpacker = zlib.decompressobj(-15, dictionary)
    text = unpacker.decompress(packed)
    assert unpacker.eof and not unpacker.unused_data
    return text


def of_zlib(text):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    return packer.compress(text) + packer.flush()


pieces = st.sampled_from([b'["Linear",{', b"in_features", b"[300,784]", b"a", b"\0", b"\xff" * 300, DICTIONARY[99:500]])


@settings(max_examples=150, deadline=None)
@given(st.lists(pieces | st.binary(max_size=20), max_size=60).map(b"".join), st.sampled_from([DICTIONARY, b"", b"a"]))
def test_it_inflates_to_the_text(text, dictionary):
    assert inflated(deflate(text, dictionary), dictionary) == text


@pytest.mark.parametrize("size", [1, 2, 300, 5000, 70_000])
def test_of_one_letter_of_two_and_of_all(size):
    for letters in (b"x", b"xy", bytes(range(256))):
        text = bytes(random.Random(0).choices(letters, k=size))
        assert inflated(deflate(text, DICTIONARY)) == text


MODELS = {
    "reference": lambda: cl.models.lenet_300_100(0),
    "norms": lambda: nn.Sequential(*(nn.BatchNorm1d(4) for _ in range(50))),
    "lstm": lambda: nn.LSTM(10, 20, 2),
    "transformer": lambda: nn.TransformerEncoderLayer(32, 2, 64),
    "names": lambda: nn.ModuleDict({f"block_{index * 7919 % 1000}": nn.Linear(index + 1, 3) for index in range(80)}),
}


@pytest.mark.parametrize("name", MODELS)
def test_headers_are_no_longer_than_those_of_zlib(name):
    torch.manual_seed(0)
    header = container.unpack(cl.storage.dumps(MODELS[name]())).header
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    assert len(deflate(text, DICTIONARY)) <= len(of_zlib(text))


def test_its_bytes_are_the_same_everywhere():
    words = [f"layer{index % 37}.{'weight' if index % 3 else 'bias'}[{index * index}]" for index in range(2000)]
    packed = deflate(",".join(words).encode(), DICTIONARY)
    assert (len(packed), hashlib.sha256(packed).hexdigest()[:16]) == (9564, "38a9a091a835a4ab")
