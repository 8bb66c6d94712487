"""Quantization: keep weights, and activations if wanted, on few evenly spaced values, or in a 16-bit float.

A value of b bits is one of 2**b codes, and (code - zero_point) * scale is what it stands for. Rounding to that grid is
a parametrization of the layer (compresslab.grids.Grid), through which training passes straight: whatever trains the
quantized model trains it quantization-aware. The file holds the codes, packed, and the scales.

Sources: Jacob et al. 2018, arXiv:1712.05877 (affine grids, training with them); Nagel et al. 2021, arXiv:2106.08295
(ranges, calibration); Rastegari et al. 2016, arXiv:1603.05279 (one bit); Esser et al. 2020, arXiv:1902.08153 (learned
step size).
"""

import math
import numbers

import numpy as np
import torch
from torch import nn

from compresslab import bars, checks, input_grids
from compresslab.activations import checked_images
from compresslab.grids import MOST_BITS, Grid, Half
from compresslab.input_grids import CALIBRATIONS
from compresslab.layers import (
    TYPES,
    distinct_weights,
    duplicate,
    get_rounding,
    set_rounding,
    unsupported,
    weight_layers,
)
from compresslab.numerics import ranges
from compresslab.numerics.rounding_noise import signal_to_noise
from compresslab.techniques.contract import Control, Picture, Technique, warn_left_alone

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # (in, out, …); the others (out, in, …)
FLOAT = 32  # bits that leave numbers as they are
DEFAULT_BITS = 8
CLIPPINGS = ("auto", *ranges.CLIPPINGS)
IMAGES = 1000  # calibration images that sweep and lab hand over


def quantize(
    model,
    images=None,
    bits=None,
    dtype=None,
    symmetric=True,
    per_channel=True,
    clipping="auto",
    percentile=0.995,
    activations=None,
    calibration="mse",
    calibration_size=None,
    learned=False,
    layers=None,
):
    """New model whose weights lie on a grid of few values; `model` itself is not changed.

    model        any nn.Module with Linear, Conv or ConvTranspose layers; biases stay float32
    images       (N, …) calibration images, a tensor or a Split: the activations are quantized too, see `activations`
    bits         of a weight: 1 to 16, or 32 to leave weights as they are; 8 if neither this nor `dtype` is given
    dtype        instead of bits: "fp16" or "bf16", the 16-bit floats
    symmetric    True: codes -2**(bits - 1) to 2**(bits - 1) - 1, and 0 stands for 0; of 1 bit the two values are
                 -mean|w| and mean|w|. False: codes 0 to 2**bits - 1, and a zero point, a code too, stands for 0; of
                 1 bit the two values lie as far below and above the mean weight
    per_channel  a scale for each output neuron or channel, or one for the whole layer
    clipping     where the range of the weights ends. "none": at the largest; "percentile": where that share of them
                 lies inside; "mse", "l4": where the mean square, or fourth power, of the error is least. "auto": "l4"
                 at 2 bits, "mse" up to 7, "none" above, where the search gains nothing. 1 bit has no range to choose
    percentile   for "percentile", of clipping or calibration: a fraction above 0, to 1
    activations  bits of what goes into each quantized layer: 1 to 16, or "fp32" to leave it as it is. None: as many as
                 `bits` where images are given (with a dtype, none are quantized), and unchanged where not. One scale
                 and zero point a layer, affine, fitted to the images; layer `fc1` becomes Sequential(input, layer)
    calibration  where the range of activations ends: "minmax", "percentile" or "mse", as of `clipping`
    calibration_size  use the first so many images, 1 or more; None for all
    learned      train the step sizes along with the weights (of grids; 16-bit floats have none); frozen weights' not
    layers       names of the layers to quantize, as in model.named_modules(); None for all
    returns      model whose quantized weights carry a grids.Grid or grids.Half, so that training keeps them on it
    raises       ValueError for a setting out of range, both bits and dtype, activations without images or images that
                 the model does not take, an unknown layer, a model without such layers, weights that are not finite
    warns        UserWarning that names what is left alone: embeddings, recurrent layers, attention's projections

    Training the result is quantization-aware. At 1 and 2 bits it recovers most when it is trained towards the model
    that it came from (distillation.distill). A masked model stays masked. Quantizing again replaces the grid, from the
    values there are. Tensors all of whose weights are equal, channels of zeros, and ranges to one side of 0 are kept:
    exactly, exactly, to half a step.
    """
    checks.choice("clipping", clipping, CLIPPINGS)
    checks.choice("calibration", calibration, CALIBRATIONS)
    _check_flags(symmetric=symmetric, per_channel=per_channel, learned=learned)
    if calibration_size is not None:
        checks.integer("calibration_size", calibration_size, 1)
    percentile = _check_share(percentile)
    bits = _check_format(bits, dtype)
    inputs = _check_activations(activations, bits, images)
    _check_model(model, layers)
    twin = duplicate(model)
    weights = distinct_weights(twin, layers)
    for weight in bars.over(weights, "quantizing layers"):
        if dtype:
            rounding = _half(weight, DTYPES[dtype])
        else:
            grid = bits, symmetric, per_channel, _clipping(clipping, bits), percentile, learned
            rounding = None if bits == FLOAT else _grid(weight, *grid)
        for module, name in weight.holders:
            set_rounding(module, rounding, name)
        if learned and isinstance(rounding, Grid):
            source = weight.holders[0][0].parametrizations[weight.holders[0][1]]
            rounding.growth.requires_grad_(any(one.requires_grad for one in source.parameters(recurse=False)))
    reasons = _left_alone(twin, weights) if layers is None and bits != FLOAT else {}
    names = list(weight_layers(twin, layers))
    if inputs == "fp32":
        twin = input_grids.remove(twin, names)
    elif inputs is not None:
        images = checked_images(images)[:calibration_size]
        grids, unseen = input_grids.fit(twin, names, images, inputs, calibration, percentile, learned)
        twin, refused = input_grids.place(twin, grids, images)
        reasons |= unseen | refused
    _report(reasons)
    return twin


def _grid(weight, bits, symmetric, per_channel, clipping, percentile, learned):
    """The Grid for a Weight, fitted to what it holds now; a masked weight's zeros do not count."""
    _check_values(weight)
    if not weight.value.numel():
        return None
    codes = ranges.code_range(bits, symmetric)
    layer = next(module for module, _ in weight.holders if isinstance(module, TYPES))
    transposed = isinstance(layer, TRANSPOSED)
    kept = None if weight.mask is None else _rows(weight.mask, transposed, per_channel)
    rows = _rows(weight.value, transposed, per_channel)
    scale, point = ranges.fit(rows, bits, symmetric, clipping, percentile, kept)
    _check_finite(weight, scale)
    shape = [1] * weight.value.dim() if per_channel else []
    if per_channel:
        shape[transposed] = len(rows)
    grid = Grid(scale.reshape(shape), point.reshape(shape), *codes, bits, learned)
    if float(scale.max()) > torch.finfo(scale.dtype).max / 2**bits:  # a sum or product may be infinite, but rarely is
        _check_finite(weight, grid(weight.value))
    return grid


def _half(weight, dtype):
    """The Half for a Weight; raises ValueError where it would turn a weight to infinity."""
    _check_values(weight)
    if not weight.value.to(dtype).isfinite().all():
        _check_finite(weight, weight.value)
        size, most = float(weight.value.abs().max()), torch.finfo(dtype).max
        raise ValueError(
            f"layer {weight.names[0]!r} has a weight of size {size:g}; {dtype} ends at {most:g}, use 'bf16'"
        )
    return Half(dtype)


def _clipping(clipping, bits):
    """What "auto" stands for: what was the most accurate on the reference networks, and takes no time for nothing."""
    if clipping != "auto":
        return clipping
    return "l4" if bits <= 2 else "mse" if bits < 8 else "none"


def _rows(value, transposed, per_channel):
    """A weight as a matrix, (output channels, n), or (1, n) for the whole of it; in single precision at least."""
    value = value.transpose(0, 1) if transposed else value
    value = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    return value.reshape(len(value) if per_channel else 1, -1)


def _left_alone(model, weights):
    """Reasons for the parts whose weights stay as they are; an embedding that shares a quantized weight is not one."""
    quantized = {id(module) for weight in weights for module, _ in weight.holders}
    found = unsupported(model)
    return {
        name: f"weights of {kind}" for name, kind in found.items() if id(model.get_submodule(name)) not in quantized
    }


def _report(reasons):
    warn_left_alone("quantization", reasons)


def _check_format(bits, dtype):
    """Bits of a weight, or None for a dtype."""
    if bits is not None and dtype is not None:
        raise ValueError(f"bits is {checks.words(bits)} and dtype is {checks.words(dtype)}; give one of the two")
    if dtype is not None:
        checks.choice("dtype", dtype, DTYPES)
        return None
    return _check_bits("bits", DEFAULT_BITS if bits is None else bits, "32 for weights as they are")


def _check_bits(name, bits, otherwise):
    whole = isinstance(bits, numbers.Integral) and not isinstance(bits, bool)
    if not whole or not (1 <= bits <= MOST_BITS or bits == FLOAT):
        raise ValueError(f"{name} is {checks.words(bits)}; give a whole number from 1 to {MOST_BITS}, or {otherwise}")
    return int(bits)


def _check_activations(activations, bits, images):
    """Bits of activations; "fp32" to have them as they are; None to leave them as the model has them."""
    if activations is None:
        activations = None if images is None else bits or FLOAT
    if activations is None or (isinstance(activations, str) and activations == "fp32"):
        return activations
    activations = _check_bits("activations", activations, "'fp32' for activations as they are")
    if activations == FLOAT:
        return "fp32"
    if images is None:
        hint = "give images=data.train.images[:1000], or activations='fp32'"
        raise ValueError(f"activations is {activations} and images is None, but their range comes from images; {hint}")
    return activations


def _check_share(percentile):
    if checks.fraction("percentile", percentile) == 0:
        raise ValueError(f"percentile is {percentile!r}; give a fraction above 0, to 1 (0.999 for 99.9%)")
    return float(percentile)


def _check_flags(**flags):
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} is {checks.words(value)}; give True or False")


def _check_model(model, layers):
    checks.module("model", model)
    if not weight_layers(model, layers):
        known = ", ".join(kind.__name__ for kind in TYPES)
        found = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
        raise ValueError(f"model has no layer to quantize; those are {known}, it is made of {found}")


def _check_values(weight):
    """Raise ValueError for weights without values, or of a kind that is not rounded."""
    name, value = weight.names[0], weight.value
    if value.is_meta:
        raise ValueError(f"layer {name!r} is on the meta device, without values; load the weights first")
    if not value.is_floating_point():
        raise ValueError(f"layer {name!r} has weights of {value.dtype}; only real floating-point ones are quantized")


def _check_finite(weight, numbers):
    """Raise ValueError where numbers made from a weight are not finite, and say whether the weight is."""
    if not numbers.isfinite().all():
        found = (
            "too large for a grid in their arithmetic" if weight.value.isfinite().all() else "not finite (nan or inf)"
        )
        raise ValueError(f"layer {weight.names[0]!r} has weights that are {found}")


def anatomy(model, compressed, setting, data=None):
    """Pictures of what a quantization did: weights and where they are clipped, the first layer now, noise by layer.

    model, compressed  before and after;  setting  what `quantize` was called with;  data  as in `signal_to_noise`
    returns            list of Picture, quick enough for every move of a slider
    """
    layers = setting.get("layers")
    before = distinct_weights(model, layers)
    after = [one for one in distinct_weights(compressed) if not layers or set(_plain_names(one)) & set(layers)]
    return [_histogram(before[0], after[0]), _weights_picture(after[0]), noise_picture(model, before, after, data)]


def _plain_names(weight):
    return [name.removesuffix(".layer") for name in weight.names] + list(weight.names)


def _histogram(before, after, most=1_000_000):
    """Weights of a layer before, every k-th of a large one, and the largest value on its grid, meaned over channels."""
    values = before.value.reshape(-1)
    values = values[:: -(-values.numel() // most) or 1].float().cpu().numpy()
    grid = get_rounding(*after.holders[0])
    cut, caption = None, "A 16-bit float keeps every weight to three or four digits: there is nothing to clip."
    if isinstance(grid, Grid):
        ends = [(end - grid.zero_point) * grid.step_size.detach() for end in (grid.low, grid.high)]
        cut = float(torch.maximum(-ends[0], ends[1]).mean())
        caption = (
            f"{grid.high - grid.low + 1} values between the cuts are left. What lies outside becomes the outermost."
        )
    title = f"Weights of {before.names[0]} before"
    return Picture("weights", "histogram", values, title, caption, cut=cut, axis="weight")


def _weights_picture(weight, most=64):
    """The weights of a layer now: an image for each neuron or filter that looks at pixels, or else a matrix."""
    name, value = weight.names[0].removesuffix(".layer"), weight.value.float().cpu()
    side = math.isqrt(value.shape[1]) if value.dim() == 2 else 0
    if side > 1 and side**2 == value.shape[1]:
        images = value[:25].reshape(-1, side, side)  # (neurons, height, width)
        caption = "The weights of the first 25 neurons, one image each: count the shades, each is a value on the grid."
        return Picture("values", "images", images.numpy(), f"Weights of {name} after", caption)
    if value.dim() > 3 and value[0, 0].numel() > 1:
        images = value.flatten(0, -3)[:most]  # (filters times what they read, height, width)
        caption = "The first filters, one image each: count the shades, each is a value on the grid."
        return Picture("values", "images", images.numpy(), f"Weights of {name} after", caption)
    caption = "A row for each output: count the shades, each is a value on the grid."
    return Picture("values", "matrix", value.flatten(1)[:most].numpy(), f"Weights of {name} after", caption)


def noise_picture(model, before, after, data):
    """Picture the signal to noise of each layer's rounding; the arguments as in `rounding_noise.signal_to_noise`."""
    ratios, caption = signal_to_noise(model, before, after, data)
    names = tuple(weight.names[0] for weight in before)
    return Picture("noise", "bars", np.array(ratios), "Signal to noise", caption, labels=names, axis="dB")


TECHNIQUE = Technique(
    name="quantization",
    apply=quantize,
    controls=(
        Control("bits", 4, 1, 8, 1, alternative="format", help="Bits of a weight: 2**bits values."),
        Control("dtype", None, choices=tuple(DTYPES), alternative="format", help="A 16-bit float instead of a grid."),
        Control("symmetric", True, help="Zero in the middle of the codes, or anywhere (affine)."),
        Control("per_channel", True, help="A scale for each neuron or filter, or one for a whole layer."),
        Control("clipping", "auto", choices=CLIPPINGS, help="Where the range of the weights ends."),
        Control("activations", "fp32", choices=("fp32", 8, 6, 4, 2), help="Bits of what goes into layers."),
        Control("calibration", "mse", choices=CALIBRATIONS, help="Where the range of the activations ends."),
        Control("calibration_size", 200, 10, IMAGES, 10, help="Training images the activations are seen on."),
        Control("learned", False, help="Train the step sizes along with the weights."),
    ),
    fair_controls={"one scale a layer": {"per_channel": False}, "no clipping": {"clipping": "none"}},
    anatomy=anatomy,
    calibration=IMAGES,
)
