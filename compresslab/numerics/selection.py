"""Which of many numbers are the smallest: exact, over many tensors together, without sorting or copying them.

A radix selection: the bits of an IEEE float, without its sign, rise with its magnitude, so a histogram of the upper 16
bits tells in which bin the cut lies, and a histogram of the next 16 bits inside that bin tells where. One pass over
the numbers for each, chunk by chunk, whatever their distribution.

Source: Knuth, The Art of Computer Programming, volume 3, section 5.2.5 (distribution by digits).
"""

import torch

from compresslab import bars

CHUNK = 2**18  # numbers looked at together: they stay in a core's cache, and extra memory at a few MB for any size
DIGIT = 16  # bits of a key that one histogram resolves


def keep_largest(scores, alive, count):
    """Masks that are False at exactly the `count` smallest |score|, of all tensors together.

    scores   tensors of any floating dtypes, shapes and devices, without nan
    alive    for each a bool tensor, False where the score is 0 and goes first, or None; `count` covers all of these
    returns  bool tensors; equal scores go in the order of tensors and indices
    """
    dtype = common_dtype(scores)
    with bars.steps("ranking weights", len(scores) * (torch.finfo(dtype).bits // DIGIT + 1)) as step:
        return _keep_largest(scores, alive, count, dtype, step)


def _keep_largest(scores, alive, count, dtype, step):
    """The masks of `keep_largest`; calls step() after each pass over a tensor."""
    cut, below = _select(scores, dtype, count - 1, step) if count else (-1, 0)
    masked = sum(one.numel() - int(one.count_nonzero()) for one in alive if one is not None)
    ties = count - below - (masked if cut == 0 else 0)
    masks = []
    for score, living in zip(scores, alive, strict=True):
        mask, start = torch.empty(score.numel(), dtype=torch.bool, device=score.device), 0
        living = None if living is None else living.reshape(-1)
        for chunk in chunks(score):
            keys, part = _keys(chunk, dtype), slice(start, start + chunk.numel())
            keep = keys >= cut if living is None else (keys >= cut) & living[part]
            if ties > 0:
                equal = (keep & (keys == cut)).nonzero()[:ties]
                keep[equal] = False
                ties -= len(equal)
            mask[part], start = keep, part.stop
        masks.append(mask.reshape(score.shape))
        step()
    return masks


def _select(scores, dtype, rank, step):
    """The key at a rank (from 0) of all keys in rising order, and how many keys are below it; a radix selection."""
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
    """Integers in the order of |chunk|: the bits of an IEEE float, without its sign, rise with its magnitude."""
    chunk = (chunk.abs() if chunk.is_complex() else chunk).to(dtype)
    if dtype == torch.float64:
        return chunk.view(torch.int64) & (2**63 - 1)
    return chunk.view(torch.int32) & (2**31 - 1)


def common_dtype(tensors):
    """float64 if a tensor needs it, float32 (which holds half precision exactly) otherwise."""
    wide = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors)
    return torch.float64 if wide else torch.float32


def chunks(tensor):
    """The tensor's entries in index order, at most CHUNK at a time; views, where the memory layout allows."""
    return tensor.reshape(-1).split(CHUNK)
