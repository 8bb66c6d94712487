"""The outside of a .clab file: magic, version, header, two payload sections, checksum.

    magic "CLAB" · version, 4 (1 byte) · header · length of the bytes section (varint) · bytes section · output of the
    range coder, to the end · first 4 bytes of the SHA-256 of everything before

The header is compact UTF-8 JSON, raw-deflated against the version's dictionary. A varint holds 7 bits a byte, least
significant first, the high bit set on all but the last.

Version 3, which is read, differs by its dictionary alone. Versions 1 and 2, which are read, have

    magic · version · four varints: header bytes unpacked, header bytes stored, bytes section, words · header · bytes
    section · words of the range coder (32-bit little-endian) · first 8 bytes of the SHA-256 of everything before

where a header whose two lengths are the same is stored as it is. Nothing may be left over.
"""

import hashlib
import json
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compresslab import writing
from compresslab.storage.deflate import deflate

MAGIC = b"CLAB"
FIRST, VERSION = 1, 4  # oldest that is read; newest that is read, the one that is written
CHECKSUM_BYTES = {1: 8, 2: 8, 3: 4, 4: 4}
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
_THIRD_DICTIONARY = _SECOND_DICTIONARY + (
    b'"extra":[1,3,5,7],"frozen":[1,3,5,7],"codebooks":[[0],[2],[4],[6]],"codebooks":[[0,true],[1],[2,true],[3],[4,true]'
    b",[5],[6,true],[7]]}[[0,true],[2,true],[4,true],[6,true]]}[[0,true],[1,true],[2,true],[3,true],[4,true],[5,true],"
    b'[6,true],[7,true]]}"in_channels":3,"out_channels":"kernel_size":3,"padding":1}],"bn1":["BatchNorm2d",'
    b'{"num_features":64}],"fc3":["Linear",{"in_features":256,"out_features":128}],"relu3":["ReLU"],"fc4":["Linear",'
    b'{"in_features":128,"out_features":10}]}],"training":false,"masked":[0,2,4,6]}'
    b'{"model":["Sequential",{},{"flatten":["Flatten"],"fc1":["Linear",{"in_features":784,"out_features":512}],"relu1":'
    b'["ReLU"],"fc2":["Linear",{"in_features":512,"out_features":256}],"relu2":["ReLU"],"fc3":["Linear",'
    b'{"model":["Sequential",{},{"0":["Flatten"],"1":["Linear",{"in_features":784,"out_features":300}],"2":["ReLU"],"3":'
    b'["Linear",{"in_features":300,"out_features":100}],"4":["ReLU"],"5":["Linear",{"in_features":100,"out_features":10}'
    b']}],"training":true,"masked":[0,2,4],'
    b'{"model":["Sequential",{},{"conv1":["Conv2d",{"in_channels":1,"out_channels":20,"kernel_size":5}],"pool1":['
    b'"MaxPool2d",{"kernel_size":2,"stride":2}],"conv2":["Conv2d",{"in_channels":20,"out_channels":50,"kernel_size":5}],'
    b'"pool2":["MaxPool2d",{"kernel_size":2,"stride":2}],"flatten":["Flatten"],"fc1":["Linear",{"in_features":800,'
    b'"out_features":500}],"relu1":["ReLU"],"fc2":["Linear",{"in_features":500,"out_features":10}]}],"training":false,'
    b'"masked":[0,2,4,6],'
    b'{"model":["Sequential",{},{"flatten":["Flatten"],"fc1":["Linear",{"in_features":784,"out_features":300}],"relu1":'
    b'["ReLU"],"fc2":["Linear",{"in_features":300,"out_features":100}],"relu2":["ReLU"],"fc3":["Linear",{"in_features":'
    b'100,"out_features":10}]}],"training":false,"masked":[0,2,4]}'
)
# Names of layers, of their arguments and of what a forward calls, and common words: no number and no network, so that
# every network pays for its architecture alike.
_FOURTH_DICTIONARY = (
    b'["Transformer",{"num_encoder_layers":,"num_decoder_layers":["TransformerDecoder",{"decoder_layer":{"module":'
    b'["TransformerDecoderLayer",{["TransformerEncoder",{"encoder_layer":{"module":'
    b'["TransformerEncoderLayer",{"d_model":,"nhead":,"dim_feedforward":,"dropout":,"activation":"gelu","layer_norm_eps":,'
    b'"norm_first":true,"enable_nested_tensor":false,"num_layers":["MultiheadAttention",{"embed_dim":,"num_heads":,"kdim":'
    b',"vdim":,"add_bias_kv":,"add_zero_attn":["NonDynamicallyQuantizableLinear",{["GRUCell",{["LSTMCell",{'
    b'["RNN",{"nonlinearity":"tanh"["GRU",{["LSTM",{"input_size":,"hidden_size":,"num_layers":,"bidirectional":true,'
    b'"proj_size":,"batch_first":true}],"["EmbeddingBag",{"mode":["Embedding",{"num_embeddings":,"embedding_dim":,'
    b'"padding_idx":["Bilinear",{"in1_features":,"in2_features":["Unflatten",{"dim":,"unflattened_size":'
    b'["Upsample",{"scale_factor":,"size":,"align_corners":["PixelShuffle",{"upscale_factor":["ZeroPad2d",{["Unfold",{'
    b'["Fold",{["AvgPool1d",{["AvgPool3d",{["AvgPool2d",{["MaxPool1d",{["MaxPool3d",{"ceil_mode":true,"count_include_pad":'
    b'false["AdaptiveAvgPool1d",{["AdaptiveMaxPool2d",{["AdaptiveAvgPool2d",{"output_size":["ConvTranspose1d",{'
    b'["ConvTranspose2d",{"output_padding":["Conv1d",{["Conv3d",{"padding_mode":"reflect","dilation":,"groups":'
    b'["PReLU",{"num_parameters":["Softplus"["ELU",{"alpha":["Hardtanh",{"min_val":,"max_val":["Hardsigmoid"]'
    b'["Hardswish"]["SiLU"]["SELU"]["ReLU6"]["Mish"]["LogSoftmax",{"dim":["Softmax",{"dim":'
    b'["LeakyReLU",{"negative_slope":["Sigmoid"]["Tanh"]["GELU"],"["LocalResponseNorm",{"size":["InstanceNorm2d",{'
    b'["RMSNorm",{["GroupNorm",{"num_groups":,"num_channels":["LayerNorm",{"normalized_shape":,"elementwise_affine":false,'
    b'"eps":,"momentum":,"affine":,"track_running_stats":false["BatchNorm3d",{["BatchNorm1d",{"num_features":'
    b'["Identity"],"["ModuleDict",{},{["ModuleList",{},{"{"slice":[null,null]},{"ellipsis":null}{"list":[{"dict":['
    b'["{"float":"inf"{"dtype":"float64","bfloat16","float16","complex64","uint8","int64","int32","int8","bool","extra":'
    b'["frozen":["inputs":[["halves":[["grids":[["learned"["tensors":[["running_mean","running_var","num_batches_tracked",'
    b'"in_proj_weight","in_proj_bias","out_proj""constants":["buffers":["graphs":[{"parameters":["'
    b'["function","math.sqrt","torch.stack","torch.matmul","torch.mean","F.scaled_dot_product_attention","F.softmax",'
    b'"F.gelu","F.avg_pool2d","F.dropout","operator.mul","operator.sub","operator.truediv","torch.sigmoid","torch.tanh",'
    b'"torch.cat","operator.getitem","F.max_pool2d",[{"node":],{"training":false}],'
    b'["function","attribute",[{"node":},"shape"]],["method","contiguous","size","mean","permute","transpose","reshape",'
    b'"view","flatten",[{"node":],["function","torch.flatten","torch.relu",["function","F.relu",[{"node":}],{"inplace":'
    b'false}],["function","operator.add",[{"node":},{"node":{"model":["Module",{"graph":{"inputs":["x"],"steps":['
    b'["module",["module","linear",[{"node":}]],["module","}]],"output":{"node":}}},{"embedding","encoder","decoder",'
    b'"attention","self_attn","query","key","value","proj","mlp","head","classifier","features","backbone","downsample",'
    b'"shortcut","block","layers","layer.norm","dropout","avgpool","weight","bias","'
    b'["InputGrid",{"bits":,"low":,"high":,"learned":true}],"layer":"input":dropout":["Dropout",{"p":}],"norm":["bn":'
    b'["BatchNorm2d",{"num_features":}],"pool":["MaxPool2d",{"kernel_size":,"stride":}],"conv":'
    b'["Conv2d",{"in_channels":,"out_channels":,"kernel_size":,"stride":,"padding":,"bias":false}],"flatten":'
    b'["Flatten"],"act":["ReLU",{"inplace":true}],"relu":["ReLU"],"fc":["Linear",{"in_features":,"out_features":}],"":'
    b'["ReLU"],"":["Linear",{"in_features":}]}],"training":false,"flipped":["masked":[,"codebooks":[[,true],[,'
    b'true]]}{"model":["Sequential",{},{"}]}],"training":true}'
)
DICTIONARIES = {1: _FIRST_DICTIONARY, 2: _SECOND_DICTIONARY, 3: _THIRD_DICTIONARY, 4: _FOURTH_DICTIONARY}


class CorruptFileError(ValueError):
    """A .clab file that is damaged, truncated, hostile, or too new; the message says what was found."""


@dataclass(frozen=True)
class Parts:
    """What a file holds: `header` (JSON values), `data` (bytes section), `words` (uint32 array), `length` in bytes.

    cost  bytes of memory that the header takes, at most
    """

    header: dict
    data: bytes
    words: np.ndarray
    length: int
    version: int
    cost: int


def pack(header, data, coded):
    """The bytes of a file.

    header   dict of JSON values;  data  bytes;  coded  bytes, from the range coder
    raises   ValueError if the header is longer than a reader accepts
    """
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    stored = deflate(text, DICTIONARIES[VERSION])
    body = b"".join((MAGIC, bytes([VERSION]), stored, varint(len(data)), data, coded))
    if len(text) > header_limit(len(body)) or parsing_cost(text) > parsing_limit(len(body)):
        raise ValueError(f"model has a header of {len(text)} bytes, which is too much for a file of {len(body)} bytes")
    return body + checksum(body, CHECKSUM_BYTES[VERSION])


def unpack(blob):
    """The parts of a file's bytes, after every length and the checksum have been checked; raises CorruptFileError."""
    blob = bytes(blob)
    version = _read_version(blob)
    text, data, words = _split(blob, version) if version >= 3 else _split_before(blob, version)
    cost = parsing_cost(text)
    if cost > parsing_limit(len(blob)):
        raise CorruptFileError(f"header would take {cost} bytes of memory; {parsing_limit(len(blob))} are allowed")
    return Parts(_read_header(text), data, words, len(blob), version, cost)


def _read_version(blob):
    """Version of a file's format, one that is read here."""
    start = len(MAGIC)
    if blob[:start] != MAGIC or len(blob) <= start:
        raise CorruptFileError(f"not a .clab file: it starts with {blob[:start]!r}, not {MAGIC!r}")
    version = blob[start]
    if version > VERSION and any(_is_whole(blob, size) for size in set(CHECKSUM_BYTES.values())):
        raise CorruptFileError(
            f"file has format version {version}, this compresslab reads up to {VERSION}; update compresslab"
        )
    if not FIRST <= version <= VERSION:
        raise CorruptFileError(f"file has format version {version}, which is damaged; versions start at 1")
    return version


def _split(blob, version):
    """Text of the header, bytes section, and words of the coder, of a file from version 3 on."""
    at, end = len(MAGIC) + 1, len(blob) - CHECKSUM_BYTES[version]
    if not _is_whole(blob, CHECKSUM_BYTES[version]):
        raise CorruptFileError("checksum does not match: the file was cut off or changed after it was written")
    text, rest = _inflate(blob[at:end], header_limit(len(blob)), DICTIONARIES[version])
    length, at = read_varint(rest, 0)
    if at + length > len(rest):
        raise CorruptFileError(f"{length} bytes are announced, {len(rest) - at} are there")
    coded = rest[at + length :]
    return text, rest[at : at + length], np.frombuffer(coded + bytes(-len(coded) % 4), dtype=">u4").astype("<u4")


def _split_before(blob, version):
    """The same of a file of version 1 or 2."""
    lengths, at, tail = [], len(MAGIC) + 1, CHECKSUM_BYTES[version]
    for _ in range(4):
        length, at = read_varint(blob, at)
        lengths.append(length)
    unpacked, stored, data, words = lengths
    ends = [at + stored, at + stored + data, at + stored + data + 4 * words]
    if ends[-1] + tail != len(blob):
        raise CorruptFileError(f"file is {len(blob)} bytes, its lengths say {ends[-1] + tail}; truncated?")
    if not _is_whole(blob, tail):
        raise CorruptFileError("checksum does not match: the file was changed after it was written")
    if unpacked > header_limit(len(blob)):
        raise CorruptFileError(f"header claims {unpacked} bytes; a file this size holds {header_limit(len(blob))}")
    text, rest = blob[at : ends[0]], b""
    if stored != unpacked:
        text, rest = _inflate(text, unpacked, DICTIONARIES[version])
    if rest or len(text) != unpacked:
        raise CorruptFileError(f"header unpacks to {len(text)} bytes and leaves {len(rest)}, instead of {unpacked}")
    return text, blob[ends[0] : ends[1]], np.frombuffer(blob[ends[1] : ends[2]], dtype="<u4")


def beyond(length):
    """Bytes of a file beyond the first MiB: what it may cost to read grows with them."""
    return max(0, length - 2**20)


def header_limit(length):
    """Longest header, in bytes, of a file of `length` bytes."""
    return 2**21 + 8 * min(length, 2**19) + 8 * beyond(length)


def parsing_limit(length):
    """Most that `parsing_cost` may be for a file of `length` bytes."""
    return 2**25 + 16 * beyond(length)


def parsing_cost(text):
    """Bytes of memory, at most, that JSON takes with its values: a list or dict, a pair of a dict, another value."""
    values = 90 * (text.count(b"[") + text.count(b"{")) + 130 * text.count(b":") + 60 * text.count(b",")
    return values + (3 if text.isascii() else 9) * len(text)


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


def check_path(path):
    """Raise ValueError unless `path` is text or a Path."""
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path is {path!r}; give the name of a file, such as 'small.clab'")


def read_file(path):
    """The bytes of the file at `path`; raises FileNotFoundError or another OSError, ValueError if it is no path."""
    check_path(path)
    return Path(path).read_bytes()


def write_file(path, blob):
    """Write `blob` to `path` whole or not at all.

    raises  OSError naming `path` (missing or read-only folder, a folder in its place, full disk); what was there stays
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(21, "path is a folder; give a file name", str(path))
    if target.exists() and not target.is_file():
        raise OSError(22, "path is not a regular file", str(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(2, f"folder {target.parent} does not exist; make it first", str(path))
    try:
        writing.write_file(target, blob)
    except OSError as error:
        reason = f"could not save ({error.strerror}); an earlier file is unchanged"
        raise OSError(error.errno, reason, str(path)) from error


def checksum(body, size):
    """What stands behind the body of a file, in so many bytes."""
    return hashlib.sha256(body).digest()[:size]


def _is_whole(blob, size):
    return blob[-size:] == checksum(blob[:-size], size)


def _read_header(text):
    """The header's dict; raises CorruptFileError for anything that is not plain, finite, unambiguous JSON."""
    try:
        header = json.loads(
            text.decode(), object_pairs_hook=_without_duplicates, parse_constant=_refuse, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"header is not readable: {error}") from error
    if not isinstance(header, dict):
        raise CorruptFileError(f"header is a {type(header).__name__}, not an object")
    return header


def _inflate(stored, most, dictionary):
    """A raw-deflated text of at most so many bytes, and what follows it."""
    unpacker = zlib.decompressobj(-15, dictionary)
    try:
        text = unpacker.decompress(stored, most + 1)
    except zlib.error as error:
        raise CorruptFileError(f"header is damaged: {error}") from error
    if len(text) > most or not unpacker.eof:
        raise CorruptFileError(f"header unpacks to {len(text)} bytes or more; {most} are allowed")
    return text, unpacker.unused_data


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
