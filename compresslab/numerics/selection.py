"""Selecting the smallest of many numbers: exact, over many tensors together, without sorting or copying them.

A radix selection: the bits of an IEEE float, without its sign, rise with its magnitude, so a histogram of the upper 16
bits tells in which bin the cut lies, and a histogram of the next 16 bits inside that bin tells where.

Source: Knuth, The Art of Computer Programming, volume 3, section 5.2.5 (distribution by digits).
"""

import torch

from compresslab import bars

CHUNK = 2**18  # numbers looked at together: they stay in a core's cache, and extra memory at a few MB for any size
DIGIT = 16  # bits of a key that one histogram resolves


def keep_largest(scores: list[torch.Tensor], alive: list[torch.Tensor | None], count: int) -> list[torch.Tensor]:
    """Return masks that are False at exactly the `count` smallest |score|, of all tensors together.

    scores   tensors of any floating dtypes, shapes and devices, without nan
    alive    for each a bool tensor, False where the score is 0 and goes first, or None; `count` covers all of these
    returns  bool tensors; equal scores go in the order of tensors and indices
    """
    dtype = common_dtype(scores)
    masks = []
    with bars.steps("ranking weights", len(scores) * (torch.finfo(dtype).bits // DIGIT + 1)) as step:
        # Find the cut; of scores equal to it, `ties` go.
        cut, below = _select(scores, dtype, count - 1, step) if count else (-1, 0)
        masked = sum(mask.numel() - int(mask.count_nonzero()) for mask in alive if mask is not None)
        ties = count - below - (masked if cut == 0 else 0)
        for score, alive_mask in zip(scores, alive, strict=True):
            mask, start = torch.empty(score.numel(), dtype=torch.bool, device=score.device), 0
            for chunk in chunks(score):
                keys, part = _keys(chunk, dtype), slice(start, start + chunk.numel())
                keep = keys >= cut
                if alive_mask is not None:
                    keep &= alive_mask.reshape(-1)[part]
                if ties > 0:
                    equal = (keep & (keys == cut)).nonzero()[:ties]
                    keep[equal] = False
                    ties -= len(equal)
                mask[part], start = keep, part.stop
            masks.append(mask.reshape(score.shape))
            step()
    return masks


def _select(scores, dtype, rank, step):
    """Return the key at a rank (from 0), and the number of keys below it."""
    bits = torch.finfo(dtype).bits
    prefix = below = 0
    for shift in range(bits - DIGIT, -1, -DIGIT):
        histogram = torch.zeros(2**DIGIT, dtype=torch.int64)
        for score in scores:
            for chunk in chunks(score):
                keys = _keys(chunk, dtype)
                if shift + DIGIT < bits:
                    keys = keys[keys >> (shift + DIGIT) == prefix]
                digits = keys.bitwise_right_shift_(shift).bitwise_and_(2**DIGIT - 1)  # keys are a copy, of no more use
                histogram += torch.bincount(digits, minlength=2**DIGIT).cpu()
            step()
        cumulative = histogram.cumsum(0)
        digit = int(torch.searchsorted(cumulative, rank - below, right=True))
        below += int(cumulative[digit] - histogram[digit])
        prefix = (prefix << DIGIT) + digit
    return prefix, below


def _keys(chunk, dtype):
    """Return integers in the order of |chunk|: bits of its floats, without the sign."""
    chunk = (chunk.abs() if chunk.is_complex() else chunk).to(dtype)
    if dtype == torch.float64:
        return chunk.view(torch.int64) & (2**63 - 1)
    return chunk.view(torch.int32) & (2**31 - 1)


def common_dtype(tensors: list[torch.Tensor]) -> torch.dtype:
    """Return float64 if a tensor needs it, else float32 (which holds half precision exactly)."""
    wide = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors)
    return torch.float64 if wide else torch.float32


def chunks(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Split a tensor's entries in index order, at most CHUNK at a time."""
    return tensor.reshape(-1).split(CHUNK)
