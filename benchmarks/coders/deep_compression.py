"""Deep Compression's layout, as a stream of bits that can be read again.

Of a tensor: the distance from one kept number to the next in a few bits, with a zero put in wherever a distance is too
long; the index of the number in the tensor's codebook; both Huffman coded. Counted are the codebook (32 bits a value),
the lengths of the words of both codes, and the number of entries. The paper takes 8 bits of distance for convolutions
and 5 for dense layers; here every tensor takes what makes it smallest, and is kept as plain float32 where that is less.

Han, Mao, Dally 2016, "Deep Compression", arXiv:1510.00149, sections 2 to 4.
"""

import numpy as np

from benchmarks.coders import Coded, codebook_of, huffman

DISTANCE_BITS = range(1, 13)  # 0 in their place says that the numbers are plain
MOST_VALUES = 2**16 - 2  # of a codebook; a zero for the distances may join them
WORD_BITS = 6  # a word of 63 bits needs more than 10**13 entries
COUNT_BITS = 32


def best(tensors):
    """A network in this layout, and what is read from it again; the setting names the bits of each tensor."""
    chosen = {name: _shortest(tensor) for name, tensor in tensors.items()}
    stream = _packed("".join(bits for bits, _ in chosen.values()))
    decoded = unpacked(stream, {name: tensor.shape for name, tensor in tensors.items()})
    return Coded(len(stream), decoded, "distances of " + ", ".join(str(bits) for _, bits in chosen.values()) + " bits")


def unpacked(stream, shapes):
    """The tensors of a stream, by their shapes, in order."""
    bits = iter(format(int.from_bytes(stream, "big"), f"0{8 * len(stream)}b"))
    return {name: _read(bits, shape) for name, shape in shapes.items()}


def _shortest(tensor):
    """(bits, bits of distance) of one tensor, by trying."""
    values, index = codebook_of(tensor)
    widths = DISTANCE_BITS if len(values) <= MOST_VALUES else ()
    tried = [(_sparse(values, index.ravel(), width), width) for width in widths]
    return min([*tried, (_number(0, 4) + _floats(tensor), 0)], key=lambda one: len(one[0]))


def entries(index, zero, width):
    """Distances and codebook indices of a flat tensor with the zeros that are put in.

    index    (numbers,) codebook indices
    zero     index of the number that is not kept
    width    bits of a distance: 0 to 2**width - 1 numbers are skipped before an entry
    returns  distances, indices: (entries,) each
    """
    kept = np.flatnonzero(index != zero)
    skipped = np.diff(kept, prepend=-1) - 1
    fillers = skipped >> width  # each skips as far as it can, and is itself a zero
    last = np.cumsum(fillers + 1) - 1
    distances, indices = np.full(fillers.sum() + len(kept), (1 << width) - 1), np.full(fillers.sum() + len(kept), zero)
    distances[last], indices[last] = skipped & ((1 << width) - 1), index[kept]
    return distances, indices


def _sparse(values, index, width):
    zeros = np.flatnonzero(values == 0)
    if not len(zeros):
        values, zeros = np.append(values, np.float32(0)), [len(values)]
    zero = int(zeros[0])
    distances, indices = entries(index, zero, width)
    head = _number(width, 4) + _number(len(distances), COUNT_BITS) + _number(len(values), 16) + _number(zero, 16)
    return head + _floats(np.delete(values, zero)) + _coded(distances, 1 << width) + _coded(indices, len(values))


def _coded(symbols, alphabet):
    """The lengths of all symbols' words, or of the used ones with their names, whichever is less; then the words."""
    depth = huffman.lengths(np.bincount(symbols, minlength=alphabet))
    name_bits, used = alphabet.bit_length(), np.flatnonzero(depth)
    listed = "1" + "".join(_number(length, WORD_BITS) for length in depth)
    named = "0" + _number(len(used), name_bits)
    named += "".join(_number(symbol, name_bits) + _number(depth[symbol], WORD_BITS) for symbol in used)
    return min(listed, named, key=len) + huffman.encoded(symbols, depth)


def _read(bits, shape):
    width = _taken(bits, 4)
    if not width:
        return _read_floats(bits, int(np.prod(shape))).reshape(shape)
    count, size, zero = _taken(bits, COUNT_BITS), _taken(bits, 16), _taken(bits, 16)
    values = np.insert(_read_floats(bits, size - 1), zero, 0)
    distances, indices = _read_coded(bits, count, 1 << width), _read_coded(bits, count, size)
    tensor = np.zeros(int(np.prod(shape)), np.float32)
    tensor[np.cumsum(distances + 1) - 1] = values[indices]
    return tensor.reshape(shape)


def _read_coded(bits, count, alphabet):
    name_bits, depth = alphabet.bit_length(), np.zeros(alphabet, dtype=np.int64)
    if _taken(bits, 1):
        depth[:] = [_taken(bits, WORD_BITS) for _ in range(alphabet)]
    else:
        for _ in range(_taken(bits, name_bits)):
            symbol = _taken(bits, name_bits)
            depth[symbol] = _taken(bits, WORD_BITS)
    return huffman.decoded(bits, count, depth)


def _number(value, width):
    return format(int(value), f"0{width}b")


def _floats(values):
    blob = b"\1" + values.astype(">f4").tobytes()  # the 1 keeps the zeros after it
    return format(int.from_bytes(blob, "big"), "b")[1:]


def _read_floats(bits, count):
    return np.frombuffer(bytes(_taken(bits, 8) for _ in range(4 * count)), ">f4").astype(np.float32)


def _taken(bits, width):
    return int("".join(next(bits) for _ in range(width)), 2)


def _packed(bits):
    padded = bits + "0" * (-len(bits) % 8)
    return int(padded, 2).to_bytes(len(padded) // 8, "big")
