"""The outside of a .clab file: magic, version, header, two payload sections, checksum; and writing it whole.

    magic "CLAB" · version, 1 (1 byte) · header · length of the bytes section (varint) · bytes section · output of the
    range coder, to the end · first 4 bytes of the SHA-256 of everything before

The header is compact UTF-8 JSON, deflated by zlib without its own header and checksum, against DICTIONARY. A varint
holds 7 bits a byte, least significant first, the high bit set on all but the last. Nothing may be left over.
"""

import hashlib
import json
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from compresslab import writing

MAGIC, VERSION, CHECKSUM_BYTES = b"CLAB", 1, 4
# Words that headers are made of, part of the format: layers with their arguments, keys, calls of a traced forward,
# common names. No number and no network, so that every network pays for its architecture alike. Frequent ones last.
_LAYERS = """
Transformer num_encoder_layers num_decoder_layers | TransformerDecoder decoder_layer | TransformerDecoderLayer |
TransformerEncoder encoder_layer num_layers | TransformerEncoderLayer d_model nhead dim_feedforward dropout
activation layer_norm_eps norm_first enable_nested_tensor | MultiheadAttention embed_dim num_heads kdim vdim
add_bias_kv add_zero_attn | NonDynamicallyQuantizableLinear | GRUCell | LSTMCell | RNN nonlinearity | GRU | LSTM
input_size hidden_size num_layers bidirectional proj_size batch_first | EmbeddingBag mode | Embedding num_embeddings
embedding_dim padding_idx | Bilinear in1_features in2_features | Unflatten dim unflattened_size | Upsample
scale_factor size align_corners | PixelShuffle upscale_factor | ZeroPad2d | Unfold | Fold | AvgPool1d | AvgPool3d |
AvgPool2d | MaxPool1d | MaxPool3d ceil_mode count_include_pad | AdaptiveAvgPool1d | AdaptiveMaxPool2d |
AdaptiveAvgPool2d output_size | ConvTranspose1d | ConvTranspose2d output_padding | Conv1d | Conv3d padding_mode
dilation groups | PReLU num_parameters | Softplus | ELU alpha | Hardtanh min_val max_val | Hardsigmoid | Hardswish |
SiLU | SELU | ReLU6 | Mish | LogSoftmax dim | Softmax dim | LeakyReLU negative_slope | Sigmoid | Tanh | GELU
approximate | LocalResponseNorm size | InstanceNorm2d | RMSNorm | GroupNorm num_groups num_channels | LayerNorm
normalized_shape elementwise_affine eps | BatchNorm3d | BatchNorm1d | Identity | ModuleDict | ModuleList | InputGrid
bits low high learned | BatchNorm2d num_features affine track_running_stats momentum | Dropout p inplace | Flatten
start_dim | MaxPool2d kernel_size stride | Conv2d in_channels out_channels kernel_size stride padding bias | Linear
in_features out_features
"""
_CALLS = """
math.sqrt torch.stack torch.matmul torch.mean F.scaled_dot_product_attention F.softmax F.gelu F.avg_pool2d F.dropout
F.adaptive_avg_pool2d operator.mul operator.sub operator.truediv torch.sigmoid torch.tanh torch.cat operator.getitem
F.max_pool2d contiguous size mean permute transpose reshape view flatten torch.flatten torch.relu F.relu operator.add
attribute shape method function module
"""
_NAMES = """
gelu tanh reflect slice ellipsis list dict float inf dtype float64 bfloat16 float16 complex64 uint8 int64 int32 int8
bool running_mean running_var num_batches_tracked in_proj_weight in_proj_bias out_proj embedding encoder decoder
attention self_attn query key value proj mlp head classifier features backbone downsample shortcut block layers
layer input norm avgpool dropout weight bias float32 bn pool conv flatten act relu fc
"""


def _make_dictionary():
    layers = "".join(
        f'["{name}",{{' + ",".join(f'"{argument}":' for argument in arguments)
        for name, *arguments in (layer.split() for layer in _LAYERS.replace("\n", " ").split("|"))
    )
    calls = "".join(f'["{name}",' for name in _CALLS.split())
    names = "".join(f'"{name}#",' if len(name) < 6 else f'"{name}",' for name in _NAMES.split())
    keys = (
        ',"extra":["frozen":["inputs":[["halves":[["grids":[["learned"["tensors":[["constants":["buffers":["parameters":["'
        '"graphs":{"train":{"eval":{"same":"module",[{"node":}]],["function","method","tensor","attribute",[{"node":},'
        '["Module",{"graph":{"inputs":["x"],"steps":["output":{"node":}}},{"float":{"module":[null,true,false'
        '{"inplace":true}],"bias":false}],["Linear",{"out_features":}],["Conv2d",{"out_channels":,"kernel_size":}],'
        '["MaxPool2d",{"kernel_size":,"stride":}],["BatchNorm2d"],["ReLU"],["Flatten"],"flipped":["codebooks":[[,true],['
        ']],"masked":[]}]]}{"model":["Sequential",{},[["}]],"training":false,"training":true}'
    )
    return (calls + layers + names + keys).encode()


DICTIONARY = _make_dictionary()


class CorruptFileError(ValueError):
    """A .clab file that is damaged, truncated, hostile, or too new; the message says what was wrong."""


@dataclass(frozen=True)
class Parts:
    """Hold what a file says: `header` (JSON values), `data` (bytes section), `coded` (the coder's), `length` in bytes.

    cost  bytes of memory that the header takes, at most
    """

    header: dict
    data: bytes
    coded: bytes
    length: int
    cost: int


def pack(header: dict, data: bytes, coded: bytes) -> bytes:
    """Return the bytes of a file.

    header   dict of JSON values;  data, coded  the two sections of the payload
    raises   ValueError if the header is longer than a reader accepts
    """
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    body = b"".join((MAGIC, bytes([VERSION]), deflate(text), write_varint(len(data)), data, coded))
    if len(text) > header_limit(len(body)) or parsing_cost(text) > parsing_limit(len(body)):
        raise ValueError(f"model has a header of {len(text)} bytes, which is too much for a file of {len(body)} bytes")
    return body + checksum(body)


def unpack(blob: bytes) -> Parts:
    """Return the parts of a file, after its checksum and every length have been checked; raises CorruptFileError."""
    blob, start = bytes(blob), len(MAGIC)
    if blob[:start] != MAGIC or len(blob) <= start:
        raise CorruptFileError(f"not a .clab file: it starts with {blob[:start]!r}, not {MAGIC!r}")
    body = blob[:-CHECKSUM_BYTES]
    if blob[len(body) :] != checksum(body):
        raise CorruptFileError("checksum does not match: the file was cut off or changed after it was written")
    if blob[start] != VERSION:
        raise CorruptFileError(
            f"file has format version {blob[start]}, this compresslab reads {VERSION}; update compresslab"
        )
    text, rest = _inflate(body[start + 1 :], header_limit(len(blob)))
    length, at = read_varint(rest, 0)
    if at + length > len(rest):
        raise CorruptFileError(f"{length} bytes are announced, {len(rest) - at} are there")
    cost = parsing_cost(text)
    if cost > parsing_limit(len(blob)):
        raise CorruptFileError(f"header would take {cost} bytes of memory; {parsing_limit(len(blob))} are allowed")
    return Parts(_read_header(text), rest[at : at + length], rest[at + length :], len(blob), cost)


def deflate(text: bytes, dictionary: bytes | None = DICTIONARY) -> bytes:
    """Deflate a header (RFC 1951), which may refer to the dictionary, or None."""
    words = {} if dictionary is None else {"zdict": dictionary}
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, **words)
    return packer.compress(text) + packer.flush()


def _inflate(stored, most):
    """Return a deflated text of at most so many bytes, and what follows it."""
    unpacker = zlib.decompressobj(-15, DICTIONARY)
    try:
        text = unpacker.decompress(stored, most + 1)
    except zlib.error as error:
        raise CorruptFileError(f"header is damaged: {error}") from error
    if len(text) > most or not unpacker.eof:
        raise CorruptFileError(f"header unpacks to {len(text)} bytes or more; {most} are allowed")
    return text, unpacker.unused_data


def header_limit(length: int) -> int:
    """Return the most bytes that a header may have, in a file of `length` bytes."""
    return 2**21 + 8 * length


def parsing_limit(length: int) -> int:
    """Return the most that `parsing_cost` may be for a file of `length` bytes."""
    return 2**25 + 16 * length


def parsing_cost(text: bytes) -> int:
    """Return the bytes of memory, at most, that JSON takes: lists and dicts, pairs of dicts, other values, text."""
    values = 90 * (text.count(b"[") + text.count(b"{")) + 130 * text.count(b":") + 60 * text.count(b",")
    return values + (3 if text.isascii() else 9) * len(text)


def write_varint(number: int) -> bytes:
    """Return a number (0 or more) in 7-bit groups."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that starts at `at` (below 2**63), and where the next thing starts; raises CorruptFileError."""
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


def checksum(body: bytes) -> bytes:
    """Return what stands behind the body of a file."""
    return hashlib.sha256(body).digest()[:CHECKSUM_BYTES]


def _read_header(text):
    """Return the header's dict; raises CorruptFileError for anything that is not plain, finite, unambiguous JSON."""
    try:
        header = json.loads(
            text.decode(), object_pairs_hook=_check_duplicates, parse_constant=_refuse, parse_float=_check_finite
        )
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"header is not readable: {error}") from error
    if not isinstance(header, dict):
        raise CorruptFileError(f"header is a {type(header).__name__}, not an object")
    return header


def _check_duplicates(pairs):
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return values


def _refuse(constant):
    raise ValueError(f"{constant} is not a number of the format")


def _check_finite(text):
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def check_path(path: object) -> None:
    """Raise ValueError unless `path` is text or a Path."""
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path is {path!r}; give the name of a file, such as 'small.clab'")


def read_file(path: str | os.PathLike) -> bytes:
    """Return the bytes of a file; raises FileNotFoundError or another OSError, ValueError if `path` is none."""
    check_path(path)
    return Path(path).read_bytes()


def write_file(path: str | os.PathLike, blob: bytes) -> None:
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
