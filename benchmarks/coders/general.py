"""Compressors of any bytes, over the simplest layouts of a network: zstd at its highest levels, and xz -9e.

Layouts: the float32 numbers; of each tensor the codebook and an index for each number; of each tensor the codebook,
then distances and indices of the numbers that are not 0, a byte each (Deep Compression's, with 8 bits of distance).
"""

import io
import lzma

import numpy as np

from benchmarks.coders import Coded, codebook_of
from benchmarks.coders.deep_compression import entries

try:
    import zstandard
except ImportError:
    zstandard = None

INSTALL = "pip install zstandard"
LEVELS = (19, 22)
XZ = {"format": lzma.FORMAT_XZ, "check": lzma.CHECK_NONE, "preset": 9 | lzma.PRESET_EXTREME}


def zstd(tensors):
    """The smallest of all layouts and levels; None where zstandard is not installed."""
    if zstandard is None:
        return None
    packers = {f"level {level}": zstandard.ZstdCompressor(level=level).compress for level in LEVELS}
    return _best(tensors, packers, zstandard.ZstdDecompressor().decompress)


def xz(tensors):
    """The smallest of all layouts."""
    return _best(tensors, {"-9e": lambda blob: lzma.compress(blob, **XZ)}, lzma.decompress)


def _best(tensors, packers, unpack):
    tried = [
        (packer(write(tensors)), read, f"{setting}, {layout}")
        for layout, (write, read) in LAYOUTS.items()
        for setting, packer in packers.items()
    ]
    blob, read, how = min(tried, key=lambda one: len(one[0]))
    stream = io.BytesIO(unpack(blob))
    return Coded(len(blob), {name: read(stream, tensor.shape) for name, tensor in tensors.items()}, how)


def _each(write):
    """A layout of a network from that of a tensor."""
    return lambda tensors: b"".join(write(tensor) for tensor in tensors.values())


def _floats(tensor):
    return tensor.tobytes()


def _read_floats(stream, shape):
    return _taken(stream, np.float32, int(np.prod(shape))).reshape(shape)


def _indices(tensor):
    values, index = codebook_of(tensor)
    return _book(values) + index.astype(_index_type(len(values))).tobytes()


def _read_indices(stream, shape):
    values = _read_book(stream)
    return values[_taken(stream, _index_type(len(values)), int(np.prod(shape)))].reshape(shape)


def _distances(tensor):
    values, index = codebook_of(np.append(tensor, np.float32(0)))  # a 0 at the end, so that there is one
    skipped, kept = entries(index, int(np.flatnonzero(values == 0)[0]), width=8)
    kept = kept.astype(_index_type(len(values)))
    return _book(values) + np.uint32(len(kept)).tobytes() + skipped.astype(np.uint8).tobytes() + kept.tobytes()


def _read_distances(stream, shape):
    values = _read_book(stream)
    count = int(_taken(stream, np.uint32, 1)[0])
    skipped, kept = _taken(stream, np.uint8, count), _taken(stream, _index_type(len(values)), count)
    tensor = np.zeros(int(np.prod(shape)), np.float32)
    tensor[np.cumsum(skipped.astype(np.int64) + 1) - 1] = values[kept]
    return tensor.reshape(shape)


def _book(values):
    return np.uint32(len(values)).tobytes() + values.tobytes()


def _read_book(stream):
    return _taken(stream, np.float32, int(_taken(stream, np.uint32, 1)[0]))


def _index_type(size):
    return np.uint8 if size <= 256 else np.uint32


def _taken(stream, dtype, count):
    return np.frombuffer(stream.read(count * np.dtype(dtype).itemsize), dtype)


LAYOUTS = {
    "float32": (_each(_floats), _read_floats),
    "indices": (_each(_indices), _read_indices),
    "distances and indices": (_each(_distances), _read_distances),
}
