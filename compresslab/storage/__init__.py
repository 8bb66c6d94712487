"""The .clab file: a model in one self-describing file, exact to the bit, without class or pickle.

    save(net, "net.clab"); same = load("net.clab")

Written specification: docs/format.md; by module, from the outside in:
    file             saving and loading, the two flows
    container        magic, version, header, two payload sections, checksum; written whole or not at all
    header           tensors by name, modes, masks, roundings
    architecture     layers as JSON nodes (which: standard_layers);  arguments  their arguments
    tracing, graph   a class of the user's own as a graph of allowed calls (which: calls)
    rounded          a weight that is rounded: grid, codebook, 16 bits
    tensors          a tensor, dense or sparse;  unrolled  a convolution written as a matrix
    folding          leaves out what no prediction depends on
    positions        which entries are kept;  binary_words  their bits in the cheapest form;  palettes  few values
    contexts         few values and positions by what lies around them (layouts, mixing)
    coder            numbers, histograms, the range coder, and what reading may cost
    filling, rounded_inputs  put the tensors, masks and roundings into a model

Loading trusts nothing. Every length is checked before it is used, nothing is built that the length of the file (or
`max_bytes`, for the numbers) does not pay for, names are looked up in fixed lists, and no code of the file runs.
A damaged file raises CorruptFileError, always.
"""

from compresslab.storage.container import CorruptFileError
from compresslab.storage.file import KINDS, Share, breakdown, dumps, file_bytes, load, loads, save

__all__ = ["KINDS", "CorruptFileError", "Share", "breakdown", "dumps", "file_bytes", "load", "loads", "save"]
