"""The size ledger: the cost of a model, counted in every way that is commonly quoted.

"72% smaller" means nothing until it says which count went down: the count of weights, the count of weights that are
not zero, or the bytes of a file. Only the last two lines of the ledger know about zeros, and they pay for positions.
"""

import io
import math
import zlib
from dataclasses import dataclass

import pandas as pd
import torch
from scipy import sparse
from torch import nn

from compresslab import bars, checks, storage
from compresslab.weights import layers

HEADER, WHOLE = ".header", ".clab file"  # rows of a breakdown: no name of a tensor begins with a dot
_GZIP_LEVEL = 6  # what the gzip command uses
_CHUNK = 2**22  # bytes zipped between two steps of the bar


@dataclass(frozen=True)
class SizeLedger:
    """What a model costs, counted in seven ways; parameters shared between layers count once everywhere.

    parameters        count of weights and biases, zeros included; scales and zero points of grids are none
    nonzeros          count of those that are not zero
    dense_bytes       parameters and persistent buffers, 4 bytes for each floating-point number whatever its precision
                      now, whole numbers and flags at their own width
    torch_save_bytes  length of torch.save(state_dict), masks and grids baked in;  gzip_bytes  of that, gzip level 6
    csr_bytes         every weight of 2 or more dimensions as fp32 compressed sparse rows, reshaped to (out, …), with
                      both index arrays (int32); everything else as in dense_bytes
    file_bytes        length of the .clab file
    breakdown         its parts, a tuple of storage.Share: bytes by tensor and kind, which add up to file_bytes
    """

    parameters: int
    nonzeros: int
    dense_bytes: int
    torch_save_bytes: int
    gzip_bytes: int
    csr_bytes: int
    file_bytes: int
    breakdown: tuple = ()

    @property
    def compression_ratio(self) -> float:
        """Dense bytes / bytes of the .clab file."""
        return self.dense_bytes / self.file_bytes

    def to_frame(self) -> pd.DataFrame:
        """Return the ledger as a table to read.

        returns  DataFrame: kind, count (of the first two rows), bytes and KiB (of the others), "× smaller" (dense
                 bytes / bytes), meaning (one line)
        """
        frame = pd.DataFrame(_ROWS, columns=["kind", "field", "meaning"])
        values = pd.Series([getattr(self, field) for field in frame["field"]], dtype="Int64")
        in_bytes = frame["field"].str.endswith("_bytes")
        size = values.where(in_bytes)
        frame = frame.assign(count=values.mask(in_bytes), bytes=size, KiB=size.astype(float) / 1024)
        frame["× smaller"] = self.dense_bytes / size.astype(float).replace(0, math.nan)
        return frame[["kind", "count", "bytes", "KiB", "× smaller", "meaning"]]

    def breakdown_frame(self) -> pd.DataFrame:
        """Return the parts of the .clab file as a table to read.

        returns  DataFrame of bytes (floats): a row for each tensor, ".header" for what belongs to none, and
                 ".clab file" for the sum; a column for positions, values, codebook, header, and "all"
        """
        rows = {share.tensor or HEADER: dict.fromkeys(storage.KINDS, 0.0) for share in self.breakdown}
        for share in self.breakdown:
            rows[share.tensor or HEADER][share.kind] += share.bytes
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=list(storage.KINDS))
        frame["all"] = frame.sum(axis=1)
        frame.loc[WHOLE] = frame.sum()
        return frame.rename_axis("tensor")


_ROWS = (
    ("parameters", "parameters", "numbers in weights and biases, zeros included"),
    ("nonzeros", "nonzeros", "those that are not zero: a count, not a size, it leaves out where they are"),
    ("dense fp32", "dense_bytes", "4 bytes for every number, whatever its precision is now"),
    ("torch.save", "torch_save_bytes", "torch.save(state_dict): zeros take as much room as any other number"),
    ("torch.save + gzip", "gzip_bytes", "the same bytes zipped: runs of zeros shrink, the other numbers hardly do"),
    ("CSR", "csr_bytes", "nonzeros and their column and row indices: pays only above 50% zeros"),
    (WHOLE, "file_bytes", "the whole model in one file that a fresh process loads back"),
)


def sizes(model: nn.Module) -> SizeLedger:
    """Count the size of a model in every way that is commonly quoted."""
    parts = storage.breakdown(checks.module("model", model))  # first: its copies are gone before others are made
    state = layers.plain(model).state_dict()
    tensors, buffer = _find_distinct(state), io.BytesIO()
    torch.save(state, buffer)
    return SizeLedger(
        parameters=layers.count_parameters(model),
        nonzeros=layers.count_nonzeros(model),
        dense_bytes=sum(map(_dense_bytes, tensors)),
        torch_save_bytes=buffer.tell(),
        gzip_bytes=_gzip_bytes(buffer.getbuffer()),
        csr_bytes=sum(map(_csr_bytes, bars.over(tensors, "sparse rows"))),
        file_bytes=round(sum(part.bytes for part in parts)),
        breakdown=tuple(parts),
    )


def _gzip_bytes(content):
    """Return the length of the bytes as a gzip file."""
    zipper = zlib.compressobj(_GZIP_LEVEL, wbits=31)  # gzip's header and checksum
    starts = bars.over(range(0, len(content), _CHUNK), "zipping")
    return sum(len(zipper.compress(content[start : start + _CHUNK])) for start in starts) + len(zipper.flush())


def _find_distinct(state):
    """List the tensors of a state dict, those under tied names once."""
    distinct = {}
    for index, value in enumerate(state.values()):
        if isinstance(value, torch.Tensor):
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else index
            distinct.setdefault(key, value)
    return list(distinct.values())


def _dense_bytes(tensor):
    width = 4 if tensor.is_floating_point() else tensor.element_size()
    return tensor.numel() * width


def _csr_bytes(tensor):
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return _dense_bytes(tensor)
    matrix = sparse.csr_matrix(tensor.detach().cpu().float().flatten(1).numpy())  # (out, everything else)
    return matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
