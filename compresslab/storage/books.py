"""Exact coding of a weight with a codebook (compresslab.codebooks.Codebook): centroids, and who has which.

The centroids come first. A number says how
0 rising    their palette (`palettes`), in rising order
1 zero      centroid 0 is zero; the palette of the others, in rising order
2 permuted  their palette, then for each centroid its place among those of the palette that are left
3 tensor    as a tensor (`tensors`): some are equal
after another, one less than how many they are. Centroids have ranks by value. Then the frame (`frames`), and a number:
0 all       every weight's rank
1 sparse    the kept ones: their positions (`positions`), then their ranks alone. A masked weight keeps what its mask
            keeps; any other what is not exactly the one centroid that is zero, whose rank is then left out
2 free      as sparse, but the mask keeps weights that are zero
and another for the ranks: 0 by contexts (`adaptive`), 1 as words of 16 bits (`values`). What is not kept has the rank
of zero, or of centroid 0 where none is.
"""

from dataclasses import dataclass

import numpy as np
import torch

from compresslab import codebooks
from compresslab.storage import adaptive, frames, palettes, positions, tensors, values
from compresslab.storage.container import CorruptFileError
from compresslab.storage.streams import CHUNK

RISING, ZERO, PERMUTED, TENSOR = range(4)
ALL, SPARSE, FREE = range(3)
CONTEXTS, WORDS = range(2)
KINDS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Form:
    """What the header says of a codebook: whether centroid 0 stays `zero`, and whether the centroids are `frozen`."""

    zero: bool = False
    frozen: bool = False

    def listed(self):
        """As a list of JSON values; defaults at its end are left out."""
        return [self.zero, self.frozen] if self.frozen else [self.zero] if self.zero else []


def form_of(codebook):
    """The Form of a Codebook."""
    return Form(codebook.zero, not codebook.centroids.requires_grad)


def read_form(items):
    """The Form that `items`, a list from a header, stands for; raises CorruptFileError."""
    if len(items) > 2 or any(type(one) is not bool for one in items):
        raise CorruptFileError(f"a codebook is listed as {str(items)[:200]}")
    return Form(*items)


def settled(codebook, weight, mask=None):
    """A codebook and its assignments on the CPU; None where they do not stand for exactly this weight."""
    centroids, chosen = codebook.centroids.detach().cpu(), codebook.assignments.detach().cpu()
    if centroids.dtype != weight.dtype or chosen.shape != weight.shape:
        return None
    zeros, weight = torch.nonzero(_bits(centroids) == 0), weight.detach().cpu()
    if len(zeros) == 1:  # weights that were folded away have it too
        chosen = chosen.masked_fill(_bits(weight) == 0, int(zeros))
    same = _bits(centroids[chosen.long()]) == _bits(weight)
    if not (same if mask is None else same | ~mask.cpu()).all():
        return None
    settled = codebooks.Codebook(centroids, chosen, codebook.zero)
    settled.centroids.requires_grad_(codebook.centroids.requires_grad)
    return settled


def write(writer, codebook, mask=None):
    """Write a weight with a codebook."""
    centroids, shape = codebook.centroids.detach(), tuple(codebook.assignments.shape)
    stored, counts, before = tensors.TYPES[tensors.NAMES[centroids.dtype]], writer.counts, writer.enter("codebook")
    words = tensors.words_of(centroids, stored)
    with writer.all_as("codebook"):
        _write_centroids(writer, words, centroids, codebook.zero)
    writer.enter("values")
    writer.counts, book = counts, _book(words)
    ranks = book.ranks[codebook.assignments.cpu().contiguous().numpy().reshape(-1)]
    kept = ranks != book.zero if mask is None else mask.detach().cpu().contiguous().numpy().reshape(-1)
    if mask is None and kept.all():
        where, places, how = values.Where(shape, frame=frames.choose(ranks >= book.negatives, shape)), None, ALL
    else:
        frame, places = positions.cheapest(kept, shape, writer)
        where, ranks = values.Where(shape, kept=kept, frame=frame), ranks[kept]
        how = FREE if (ranks == book.zero).any() else SPARSE
    _write_positions(writer, where, places, how)
    without = how == SPARSE and book.zero >= 0
    _write_ranks(writer, ranks - (without & (ranks > book.zero)), len(words) - without, book, where)
    writer.enter(before)


def read(reader, form, shape, dtype):
    """Codebook, weight, and the kept positions (bool tensors, or None where all are) of a weight that was written.

    form  Form;  shape, dtype  of the weight, dtype a key of tensors.TYPES
    """
    stored, counts, shape = tensors.TYPES[dtype], reader.counts, tuple(shape)
    words = _read_centroids(reader, dtype, stored)
    reader.counts, book = counts, _book(words)
    frame = frames.read(reader, shape)
    how, count, kept = reader.uint(FREE), frame.rows * frame.columns, None
    if how != ALL:
        kept = positions.read(reader, count, frame)
    tensors.note(reader, kept, shape)
    without = how == SPARSE and book.zero >= 0
    where = values.Where(shape, kept=kept, frame=frame)
    chosen = _assigned(_read_ranks(reader, count, len(words) - without, book, where), book, without)
    if kept is not None:
        some, chosen = chosen, np.full(count, book.order[max(0, book.zero)])
        chosen[kept] = some
    weight = tensors.tensor_of(np.empty(count, dtype=words.dtype), stored, shape)
    centroids, flat = tensors.tensor_of(words, stored, (len(words),)), weight.view(-1)
    for start in range(0, count, CHUNK):
        part = centroids[torch.from_numpy(chosen[start : start + CHUNK]).long()]
        flat[start : start + CHUNK] = part
    if kept is not None:
        weight.masked_fill_(~torch.from_numpy(kept).reshape(shape), 0.0)
    codebook = codebooks.Codebook(centroids, torch.from_numpy(chosen).reshape(shape), form.zero)
    codebook.centroids.requires_grad_(not form.frozen)
    return codebook, weight, None if kept is None else torch.from_numpy(kept).reshape(shape)


@dataclass(frozen=True)
class _Book:
    """What follows from centroids: the rank of each by value, the centroid of each rank, …

    negatives  how many have the sign bit set;  zero  rank of the one that is +0, -1 where there is none, or several
    """

    ranks: np.ndarray
    order: np.ndarray
    negatives: int
    zero: int


def _book(words):
    bits = 8 * words.itemsize
    keys = [one ^ (2**bits - 1) if one >> bits - 1 else one | 1 << bits - 1 for one in map(int, words)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    ranks = np.empty(len(keys), dtype=np.int32)
    ranks[order] = np.arange(len(keys))
    zeros = np.flatnonzero(words == 0)
    negatives = sum(one >> bits - 1 == 0 for one in keys)
    kind = np.uint8 if len(keys) <= 256 else np.int16  # of Codebook's assignments
    return _Book(ranks, np.array(order, dtype=kind), negatives, int(ranks[zeros[0]]) if len(zeros) == 1 else -1)


def _write_centroids(writer, words, centroids, zero):
    rest = words[1:] if zero and words[0] == 0 and len(words) > 1 else words
    palette, negatives = palettes.arranged(np.unique(rest), "float")
    distinct = len(np.unique(words)) == len(words)
    how = (
        TENSOR
        if not distinct
        else (PERMUTED if (rest != palette).any() else ZERO if len(rest) < len(words) else RISING)
    )
    writer.uint(how)
    writer.uint(len(words) - 1)
    if how == TENSOR:
        tensors.write(writer, centroids)
        return
    if how == PERMUTED:
        palette, negatives = palettes.arranged(np.unique(words), "float")
    palettes.write(writer, palette, negatives, "float")
    if how == PERMUTED:
        left = palette.tolist()
        for word in words.tolist():
            writer.number(left.index(word), len(left))
            left.remove(word)


def _read_centroids(reader, dtype, stored):
    how, count = reader.uint(TENSOR), reader.uint(codebooks.MOST_CENTROIDS - 1) + 1
    reader.spend(palettes.COST * count)
    if how == TENSOR:
        return tensors.words_of(tensors.read(reader, dtype, (count,))[0], stored)
    palette, _ = palettes.read(reader, count - (how == ZERO), stored.size, "float")
    if how == ZERO:
        return np.concatenate([np.zeros(1, dtype=palette.dtype), palette])
    left = palette.tolist()
    order = [left.pop(reader.number(len(left))) for _ in range(count)] if how == PERMUTED else left
    return np.array(order, dtype=palette.dtype)


def _write_positions(writer, where, places, how):
    """Frame, form and positions of the kept weights; places  their plan, None for all of them."""
    with writer.all_as("positions"):
        frames.write(writer, where.frame, where.shape)
        writer.uint(how)
        if places is not None:
            places.write(writer)
    tensors.note(writer, where.kept, where.shape)


def _write_ranks(writer, ranks, count, book, where):
    """Write ranks below `count` by contexts, or, where that takes too long, as words."""
    if values.is_quick(len(ranks), count, where):
        cost, symbols, write = adaptive.plan_ranks(ranks, count, book.negatives, where.kept, where.frame)
        if adaptive.affordable(symbols, cost, writer.credit):
            writer.uint(CONTEXTS)
            write(writer)
            return
    writer.uint(WORDS)
    values.plan(ranks.astype("<u2"), "unsigned").write(writer)


def _read_ranks(reader, size, count, book, where):
    """Ranks of what is kept of `size` weights, whole numbers below `count`."""
    reader.hold(size)
    if reader.uint(WORDS) == CONTEXTS:
        return adaptive.read_ranks(reader, count, book.negatives, where.kept, where.frame)
    words = np.empty(size if where.kept is None else int(np.count_nonzero(where.kept)), dtype="<u2")
    values.read(reader, words, "unsigned")
    if len(words) and words.max() >= count:
        raise CorruptFileError(f"a weight has centroid {words.max()} of {count}")
    return words


def _assigned(ranks, book, without):
    """Assignments of weights of these ranks, a chunk at a time; without  whether the rank of zero is left out."""
    chosen = np.empty(len(ranks), dtype=book.order.dtype)
    for start in range(0, len(ranks), CHUNK):
        some = ranks[start : start + CHUNK].astype(np.int32)
        chosen[start : start + CHUNK] = book.order[some + (without & (some >= book.zero))]
    return chosen


def _bits(tensor):
    """The bits of floats, as integers of their shape."""
    return tensor.contiguous().view(getattr(torch, f"int{8 * tensor.itemsize}"))
