"""Exercises of notebook 06: right answers pass, plausible wrong ones do not, and hints fit the mistake."""

import re

import pytest
import torch

import compresslab as cl


def grid(weight, bits, holds_zero=True, constants=True, most=None):
    """A right answer, and by its options some wrong ones."""
    low, high, most = weight.min().item(), weight.max().item(), 2**bits - 1 if most is None else most
    if constants and low == high:
        return (weight > 0).int(), abs(low) or 1.0, int(low < 0)
    if holds_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / most
    zero_point = round(-low / scale) if scale else 0
    return ((weight / (scale or 1)).round() + zero_point).clamp(0, 2**bits - 1).int(), scale, zero_point


def two_sided(weight, bits):
    """Right for constants too, in another way: the range from the constant to 0."""
    low, high = min(weight.min().item(), 0.0), max(weight.max().item(), 0.0)
    scale = torch.tensor((high - low) / (2**bits - 1) or 1.0, dtype=torch.float64)
    zero_point = (-low / scale).round()
    return ((weight.double() / scale).round() + zero_point).clamp(0, 2**bits - 1), scale, zero_point


def package(weight, bits):
    layer = torch.nn.Linear(weight.numel(), 1)
    layer.weight.data = weight.reshape(1, -1).clone()
    quantized = cl.quantization.quantize(layer, bits=bits, symmetric=False, clipping="none", per_channel=False)
    made = cl.layers.get_rounding(quantized)
    codes = made.codes(layer.weight.detach()).reshape(weight.shape)
    return codes, made.scale.item(), made.zero_point.item()


def pack(codes):
    codes = torch.cat([codes, codes.new_zeros(len(codes) % 2)])
    return codes[0::2] | (codes[1::2] << 4)


def unpack(packed, count):
    return torch.stack([packed & 15, packed >> 4], dim=1).flatten()[:count]


def high_first(codes):
    codes = torch.cat([codes, codes.new_zeros(len(codes) % 2)])
    return (codes[0::2] << 4) | codes[1::2]


def unpack_high_first(packed, count):
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:count]


def best(weight, bits, tries=200, ratio=0.97):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scales = [weight.abs().max().item() / high * ratio**number for number in range(tries)]
    return min(scales, key=lambda s: ((weight / s).round().clamp(low, high) * s - weight).square().mean().item())


RIGHT = {
    "06.affine_grid": [grid, package],
    "06.pack_int4": [(pack, unpack), (high_first, unpack_high_first)],
    "06.best_scale": [best, lambda weight, bits: torch.tensor(best(weight, bits))],
}
WRONG = {
    "06.affine_grid": [
        (lambda weight, bits: grid(weight, bits, holds_zero=False), "does your range hold 0"),
        (lambda weight, bits: grid(weight, bits, constants=False), "distance, above 0"),
        (lambda weight, bits: grid(weight, bits, most=2**bits), "steps off|codes go"),
        (lambda weight, bits: grid(weight, bits, most=2 ** (bits - 1) - 1), "reaches both ends"),
        (lambda weight, bits: (grid(weight, bits)[0] + 1, *grid(weight, bits)[1:]), "codes go from|steps off"),
        (lambda weight, bits: grid(weight, bits)[:2], "return codes, scale and zero point"),
        (lambda weight, bits: weight, "return codes, scale and zero point"),
    ],
    "06.pack_int4": [
        ((lambda codes: codes, lambda packed, count: packed), "bytes after pack"),
        ((pack, unpack_high_first), "come back as others"),
        ((pack, lambda packed, count: unpack(packed, 2 * len(packed))), "unpack returns"),
        ((lambda codes: codes[0::2] | (codes[1::2] << 4), unpack), "1 codes are 0 bytes"),
        ((lambda codes: pack(codes).int(), unpack), "give a uint8 tensor"),
        (pack, "give both functions"),
    ],
    "06.best_scale": [
        (lambda weight, bits: weight.abs().max() / (2 ** (bits - 1) - 1), "reaching for the largest"),
        (lambda weight, bits: 3 * weight.std() / (2 ** (bits - 1) - 1), "times the least one"),
        (lambda weight, bits: weight.abs().quantile(0.8) / (2 ** (bits - 1) - 1), "cut off|largest"),
        (lambda weight, bits: 0.0, "above 0"),
        (lambda weight, bits: weight, "should be (a|one) number"),
    ],
}


@pytest.mark.parametrize("name, answer", [(name, one) for name, answers in RIGHT.items() for one in answers])
def test_right_answers_pass(name, answer):
    feedback = cl.classroom.check(name, answer)
    assert feedback, feedback.message


@pytest.mark.parametrize("name, answer, hint", [(name, *one) for name, answers in WRONG.items() for one in answers])
def test_wrong_answers_get_a_hint(name, answer, hint):
    feedback = cl.classroom.check(name, answer)
    assert not feedback
    assert re.search(hint, feedback.message, re.IGNORECASE), feedback.message


def test_a_grid_that_is_right_for_all_but_constants_is_told_so():
    assert "can be exact" in cl.classroom.check("06.affine_grid", _rough_constants).message


def _rough_constants(weight, bits):
    codes, scale, zero_point = two_sided(weight, bits)
    return (codes, 1.01 * scale, zero_point) if weight.min() == weight.max() else grid(weight, bits)
