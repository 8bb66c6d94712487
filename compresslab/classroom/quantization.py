"""Exercises of notebook 06: an affine grid for every range, codes below a byte, a scale that survives an outlier."""

import math

import torch

from compresslab.classroom.feedback import NotYet, call, describe, exercise, read_number

_SLACK = 1 + 1e-4  # of half a step, for rounding in float32
_NEAR = 1.1  # of the least squared error that a fine search finds
_LENGTHS = (0, 1, 2, 3, 8, 97, 1000)


@exercise("06.affine_grid", points=3)
def check_affine_grid(affine_grid: object) -> str:
    """Write a function that lays an affine grid over any tensor."""
    for name, weight in _tensors().items():
        for bits in (2, 4, 8):
            _check_grid(call(affine_grid, weight, bits), f"for {name} and {bits} bits", weight, bits)
    return (
        "A range that is made to hold 0 gives 0 a code of its own, which padding and pruned weights need; "
        "and a constant is a grid of one step."
    )


def _check_grid(answer, what, weight, bits):
    if not isinstance(answer, tuple) or len(answer) != 3:
        raise NotYet(f"{what} your function returns {describe(answer)}; return codes, scale and zero point")
    codes, scale, zero_point = answer
    scale, zero_point = read_number(scale, f"the scale {what}"), read_number(zero_point, f"the zero point {what}")
    if not isinstance(codes, torch.Tensor) or codes.shape != weight.shape:
        wanted = f"a tensor of the weight's shape, {tuple(weight.shape)}"
        raise NotYet(f"{what} the codes are {describe(codes)}; give {wanted}")
    if scale <= 0:
        raise NotYet(f"{what} the scale is {scale:g}; it is a distance, above 0: what if all weights are equal?")
    codes, most = codes.double(), 2**bits - 1
    if codes.isnan().any() or (codes != codes.round()).any() or codes.min() < 0 or codes.max() > most:
        raise NotYet(f"{what} the codes go from {codes.min():g} to {codes.max():g}; whole numbers from 0 to {most} fit")
    if zero_point != round(zero_point) or not 0 <= zero_point <= most:
        raise NotYet(f"{what} the zero point is {zero_point:g}; it is a code, 0 to {most}: does your range hold 0?")
    values = (codes - zero_point) * scale
    worst = (values - weight.double()).abs().max().item()
    if weight.min() == weight.max() and worst > 1e-6 * abs(weight.flatten()[0].item()):
        raise NotYet(f"{what} the one value there is comes back {worst:.3g} off; it can be exact")
    cut = 0.5 if weight.min() < 0 < weight.max() else 0.0  # steps by which a rounded zero point may move a range
    if worst > 0.5 * scale * _SLACK + 1e-12 and worst > scale * (0.5 + cut):
        raise NotYet(f"{what} a weight is {worst / scale:.2f} steps off; half a step is enough")
    wide = max(weight.max().item(), 0) - min(weight.min().item(), 0)
    if weight.min() != weight.max() and scale > 1.01 * wide / most:
        raise NotYet(f"{what} a step is {scale:.3g}; {wide / most:.3g} reaches both ends of the range")


def _tensors():
    drawn = torch.Generator().manual_seed(0)
    normal, flat = torch.randn(30, 20, generator=drawn), torch.rand(30, 20, generator=drawn)
    return {
        "weights on both sides of zero": normal,
        "positive weights": flat + 0.01,
        "negative weights": -3 * flat - 0.01,
        "weights far above zero": 100 + flat,
        "a constant": torch.full((3, 4), 0.3),
        "a negative constant": torch.full((5,), -7.0),
        "zeros": torch.zeros(4),
    }


@exercise("06.pack_int4", points=2)
def check_pack_int4(answer: object) -> str:
    """Write the two functions that pack 4-bit codes into bytes and bring them back."""
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise NotYet(f"give both functions, (pack, unpack); this is {describe(answer)}")
    pack, unpack = answer
    drawn = torch.Generator().manual_seed(0)
    for length in _LENGTHS:
        codes = torch.randint(0, 16, (length,), generator=drawn, dtype=torch.uint8)
        packed = call(pack, codes)
        if not isinstance(packed, torch.Tensor) or packed.dtype != torch.uint8 or packed.dim() != 1:
            raise NotYet(f"pack returns {describe(packed)} for {length} codes; give a uint8 tensor of one dimension")
        if len(packed) != (length + 1) // 2:
            raise NotYet(f"{length} codes are {len(packed)} bytes after pack; {(length + 1) // 2} are enough")
        back = call(unpack, packed, length, none_allowed=True)
        if not isinstance(back, torch.Tensor) or back.shape != codes.shape:
            raise NotYet(f"unpack returns {describe(back)} for {length} codes")
        if not torch.equal(back.to(torch.int64), codes.to(torch.int64)):
            wrong = int((back.to(torch.int64) != codes).sum())
            raise NotYet(f"{wrong} of {length} codes come back as others; is the order the same, are 15 and 8 right?")
    return "A width below a byte exists only where somebody packs it; a tensor's dtype does not."


@exercise("06.best_scale", points=3)
def check_best_scale(best_scale: object) -> str:
    """Write a function that chooses the scale of a symmetric grid, outlier or not."""
    for name, weight in _weights().items():
        for bits in (2, 3, 4):
            what = f"for {name} and {bits} bits"
            scale = read_number(call(best_scale, weight, bits), f"the scale {what}")
            if scale <= 0:
                raise NotYet(f"{what} the scale is {scale:g}; it is a distance, above 0")
            widest = 1.05 * weight.abs().max().item() / (2 ** (bits - 1) - 1)
            error = _error(weight, scale, bits)
            least = min(_error(weight, widest * 0.99**step, bits) for step in range(600))  # of a fine search
            if error > _NEAR * least:
                hint = "is it worth reaching for the largest weight?"
                if math.isfinite(scale) and (weight.abs() > scale * 2 ** (bits - 1)).float().mean() > 0.1:
                    hint = "is the grid too fine, so that much is cut off?"
                raise NotYet(f"{what} the squared error is {error / least:.2f} times the least one; {hint}")
    return "One number decides how far apart all values lie; give up the outlier, and the others are heard again."


def _weights():
    drawn = torch.Generator().manual_seed(0)
    normal = 0.1 * torch.randn(2000, generator=drawn)
    outlier, far = normal.clone(), normal.clone()
    outlier[7], far[3] = 1.5, -5.0
    return {
        "bell-shaped weights": normal,
        "flat weights": torch.rand(2000, generator=drawn) - 0.5,
        "weights with an outlier": outlier,
        "weights with a far outlier": far,
    }


def _error(weight, scale, bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return ((weight / scale).round().clamp(low, high) * scale - weight).square().mean().item()
