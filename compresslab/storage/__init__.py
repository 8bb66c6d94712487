"""The .clab file, format version 4: a model in one self-describing file, exact to the bit, without class or pickle.

    save(net, "net.clab"); same = load("net.clab")

Written specification: docs/format.md; by module:
    container     magic, version, lengths, header, two payload sections, checksum; written whole or not at all
    content       the header: tensors by name, modes, masks, roundings
    architecture  the layers of torch.nn as JSON (which: standard);  plain  their arguments
    graph, calls  a class of the user's own as a graph of allowed calls (made by tracing)
    tensors       a tensor dense or sparse;  values  words of bits in their cheapest form;  positions  what is kept
    codes, books  a weight on an integer grid: scales, zero points, codes;  with a codebook: centroids, assignments
    contexts      probabilities from what is known;  adaptive, frames  what they are given;  palettes  few values
    unrolled      a convolution written as a matrix
    streams       numbers, histograms, and the range coder
roundings and inputs say which weights and which layers' inputs are rounded, and put that on a model again; filling
does so with tensors and masks. folding leaves out what no prediction depends on.

Files of versions 1 to 3 are read, and not written any more.

Loading trusts nothing. Every length is checked before it is used, nothing is built that the length of the file (or
`max_bytes`, for the numbers) does not pay for, names are looked up in fixed lists, and no code of the file runs.
A damaged file raises CorruptFileError, always.
"""

from compresslab.storage.container import CorruptFileError
from compresslab.storage.file import KINDS, Share, breakdown, dumps, file_bytes, load, loads, save

__all__ = ["KINDS", "CorruptFileError", "Share", "breakdown", "dumps", "file_bytes", "load", "loads", "save"]
