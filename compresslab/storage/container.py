"""The outside of a .clab file: magic, version, lengths, header, two payload sections, checksum; and the atomic write.

    magic "CLAB" · version (1 byte) · four varints: header bytes unpacked, header bytes stored, bytes section, words
    · header · bytes section · words (32-bit little-endian) · first 8 bytes of the SHA-256 of everything before

The version is the lowest whose readers know all that the file uses: 1, or 2 where weights or inputs are rounded, or a
tensor has an order (grids, halves, inputs and tensors in `content`, InputGrid in `standard`). A varint holds 7 bits a
byte, least significant first, the high bit set on all but the last. The header is compact UTF-8 JSON, raw-deflated
against the version's dictionary where that is shorter (then the two lengths differ). Nothing may be left over.
"""

import contextlib
import hashlib
import json
import math
import os
import secrets
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAGIC = b"CLAB"
FIRST, VERSION = 1, 2  # oldest that is read, newest that is read and written
CHECKSUM_BYTES = 8
# Part of the format: what deflate may refer back to. The most frequent strings stand last.
_FIRST_DICTIONARY = (
    b'["MaxPool1d",["MaxPool3d",["AvgPool2d",["AdaptiveAvgPool2d",{"output_size":["ConvTranspose2d",["Conv1d",["Conv3d",'
    b'["LSTM",{"input_size":"hidden_size":"batch_first":true,"num_layers":["GRU",["Embedding",{"num_embeddings":'
    b'"embedding_dim":["LayerNorm",{"normalized_shape":["MultiheadAttention",{"embed_dim":"num_heads":'
    b'["TransformerEncoderLayer",{"d_model":"nhead":"dim_feedforward":["GELU"]["Sigmoid"]["Tanh"]["Softmax",{"dim":'
    b'["LeakyReLU"]["Identity"]["ModuleList",{},{["ModuleDict",{},{["Module",{"parameters":"buffers":"graph":"inputs":'
    b'"output":{"node":"torch.flatten","F.relu","operator.add","method.view","module","layer1.0.conv1.weight",'
    b'"bfloat16","float16","int64","float64","bool","running_mean","running_var","num_batches_tracked","float32",[],'
    b'["BatchNorm1d",{"num_features":["BatchNorm2d",{"num_features":"stride":[2,2]"padding":[1,1]"bias":false}]'
    b'["Dropout",{"p":"inplace":true["MaxPool2d",{"kernel_size":2,"stride":2}],"pool1":"pool2":'
    b'["Conv2d",{"in_channels":"out_channels":"kernel_size":[5,5]}],"kernel_size":[3,3]"conv1":"conv2":'
    b'{"model":["Sequential",{},{"flatten":["Flatten"],"0":["Linear",{"in_features":784,"out_features":10}],"relu1":'
    b'["ReLU"],"1":["ReLU"],"fc1":["Linear",{"in_features":300,"out_features":100}],"relu2":["ReLU"],"fc2":["Linear",'
    b'"fc3":["Linear",{"in_features":"out_features":10}]}],"training":false,"flipped":[],"frozen":[],"masked":[],'
    b'"tensors":[["0.weight","float32",["1.weight","float32",["0.bias","float32",["fc1.weight","float32",[300,784]],'
    b'["fc1.bias","float32",[300]],["fc2.weight","float32",[100,300]],["fc2.bias","float32",[100]],'
    b'["fc3.weight","float32",[10,100]],["fc3.bias","float32",[10]]]}'
)
_SECOND_DICTIONARY = (
    b'"inputs":[["halves":[[0,"bfloat16"],"float16"],"frozen"],"growth","float32",[]],["fc2.input.scale","float32",[]],'
    b'["fc1.input.growth","float32",[]],["fc1.input.scale","float32",[]],["fc1.input.zero_point","float32",[]],'
    b'["fc1.layer.weight","float32",["fc1.layer.bias","float32",["fc1.0.weight","fc1.1.weight","fc1.1.bias",'
    b'["Sequential",{},{"input":["InputGrid",{"bits":8,"low":0,"high":255,"learned":true}],"layer":["Conv2d","Linear",'
    b'"grids":[[0,8,-128,127,[500,1]],[1,2,-2,1],[2,4,-8,7,[100,1,1,1]],[0,4,-8,7,[300,1]],[2,4,-8,7,[100,1]],'
    b'[4,4,-8,7,[10,1]]],"tensors":[["fc1.weight","float32",[300,784]],'
) + _FIRST_DICTIONARY
DICTIONARIES = {1: _FIRST_DICTIONARY, 2: _SECOND_DICTIONARY}


class CorruptFileError(ValueError):
    """A .clab file that is damaged, truncated, hostile, or too new; the message says what was found."""


@dataclass(frozen=True)
class Parts:
    """What a file holds: `header` (JSON values), `data` (bytes section), `words` (uint32 array), `length` in bytes."""

    header: dict
    data: bytes
    words: np.ndarray
    length: int


def pack(header, data, words, version):
    """The bytes of a file.

    header   dict of JSON values;  data  bytes;  words  uint32 array, from the range coder
    version  lowest format version that has all that is in them
    raises   ValueError if the header is longer than a reader accepts
    """
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    stored = min(_deflate(text, DICTIONARIES[version]), text, key=len)
    lengths = b"".join(varint(n) for n in (len(text), len(stored), len(data), len(words)))
    words = np.ascontiguousarray(words, dtype="<u4").tobytes()
    body = b"".join((MAGIC, bytes([version]), lengths, stored, data, words))
    if len(text) > header_limit(len(body)):
        raise ValueError(f"model has a header of {len(text)} bytes; a file this size holds {header_limit(len(body))}")
    return body + _checksum(body)


def unpack(blob):
    """The parts of a file's bytes, after every length and the checksum have been checked; raises CorruptFileError."""
    blob = bytes(blob)
    version_at = len(MAGIC)
    if blob[:version_at] != MAGIC or len(blob) <= version_at:
        raise CorruptFileError(f"not a .clab file: it starts with {blob[:version_at]!r}, not {MAGIC!r}")
    if blob[version_at] > VERSION and blob[-CHECKSUM_BYTES:] == _checksum(blob[:-CHECKSUM_BYTES]):
        raise CorruptFileError(
            f"file has format version {blob[version_at]}, this compresslab reads up to {VERSION}; update compresslab"
        )
    if not FIRST <= blob[version_at] <= VERSION:
        raise CorruptFileError(f"file has format version {blob[version_at]}, which is damaged; versions start at 1")
    lengths, at = [], version_at + 1
    for _ in range(4):
        length, at = read_varint(blob, at)
        lengths.append(length)
    unpacked, stored, data, words = lengths
    ends = [at + stored, at + stored + data, at + stored + data + 4 * words]
    if ends[-1] + CHECKSUM_BYTES != len(blob):
        raise CorruptFileError(f"file is {len(blob)} bytes, its lengths say {ends[-1] + CHECKSUM_BYTES}; truncated?")
    if blob[-CHECKSUM_BYTES:] != _checksum(blob[:-CHECKSUM_BYTES]):
        raise CorruptFileError("checksum does not match: the file was changed after it was written")
    header = _read_header(blob[at : ends[0]], unpacked, len(blob), DICTIONARIES[blob[version_at]])
    return Parts(header, blob[ends[0] : ends[1]], np.frombuffer(blob[ends[1] : ends[2]], dtype="<u4"), len(blob))


def header_limit(length):
    """Longest header, in bytes, of a file of `length` bytes: what parsing it may cost stays in proportion."""
    return 2**21 + 8 * length


def varint(number):
    """`number` (0 or more) in 7-bit groups."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def read_varint(data, at):
    """The number that starts at `at` (below 2**63), and where the next thing starts; raises CorruptFileError."""
    number = 0
    for group in range(9):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << (7 * group)
        if byte < 0x80:
            return number, at
    raise CorruptFileError("a length is cut off or longer than 9 bytes")


def read_file(path):
    """The bytes of the file at `path`; raises FileNotFoundError or another OSError."""
    return Path(path).read_bytes()


def write_file(path, blob):
    """Write `blob` to `path` whole or not at all: under a temporary name in the same folder, synced, then renamed.

    raises  OSError naming `path` (missing or read-only folder, a folder in its place, full disk); what was there stays
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(21, "path is a folder; give a file name", str(path))
    if target.exists() and not target.is_file():
        raise OSError(22, "path is not a regular file", str(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(2, f"folder {target.parent} does not exist; make it first", str(path))
    temporary = target.parent / f".clab-{secrets.token_hex(8)}.tmp"
    try:
        _write_synced(temporary, blob)
        os.replace(temporary, target)
    except OSError as error:
        reason = f"could not save ({error.strerror}); an earlier file is unchanged"
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_synced(path, blob):
    with open(path, "xb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())


def _checksum(body):
    return hashlib.sha256(body).digest()[:CHECKSUM_BYTES]


def _deflate(text, dictionary):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, dictionary)
    return packer.compress(text) + packer.flush()


def _read_header(stored, unpacked, length, dictionary):
    """The header's dict; raises CorruptFileError for anything that is not plain, finite, unambiguous JSON."""
    if unpacked > header_limit(length):
        raise CorruptFileError(f"header claims {unpacked} bytes; a file this size holds {header_limit(length)}")
    text = stored if len(stored) == unpacked else _inflate(stored, unpacked, dictionary)
    try:
        header = json.loads(
            text.decode(), object_pairs_hook=_without_duplicates, parse_constant=_refuse, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"header is not readable: {error}") from error
    if not isinstance(header, dict):
        raise CorruptFileError(f"header is a {type(header).__name__}, not an object")
    return header


def _inflate(stored, unpacked, dictionary):
    unpacker = zlib.decompressobj(-15, dictionary)
    try:
        text = unpacker.decompress(stored, unpacked + 1)
    except zlib.error as error:
        raise CorruptFileError(f"header is damaged: {error}") from error
    if len(text) != unpacked or not unpacker.eof or unpacker.unused_data:
        raise CorruptFileError(f"header unpacks to {len(text)} bytes or more, not {unpacked}")
    return text


def _without_duplicates(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _refuse(constant):
    raise ValueError(f"{constant} is not a number of the format")


def _finite(text):
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number
