"""Coders of other people, beside which compresslab's files are measured: networks are dicts of name -> NumPy array.

    coded = deep_compression.best(tensors)      # Coded: bytes of the stream, the tensors decoded from it, how
    general.coded("xz -9e", tensors)            # zstd, xz
    nncodec.exact(tensors), nncodec.tuned(tensors, good)

Shapes and names are given to every decoder here and not counted, though NNCodec's streams contain them, and so does
our own file, with the architecture.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Coded:
    """What became of a network: length of the stream in bytes, tensors that were decoded from it, chosen setting."""

    bytes: int
    tensors: dict
    how: str


def codebook_of(tensor):
    """Distinct numbers of a tensor, rising, as (k,) float32, and each number's index there, of the tensor's shape.

    -0.0 counts as 0.0: no product tells them apart.
    """
    values, index = np.unique(tensor + np.float32(0), return_inverse=True)
    return values, index.reshape(tensor.shape)


def same(tensors, others):
    """True where two networks hold the same numbers under the same names."""
    return tensors.keys() == others.keys() and all(np.array_equal(tensors[name], others[name]) for name in tensors)
