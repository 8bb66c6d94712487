"""Quantization: keep weights, and activations if wanted, on few evenly spaced values, or in a 16-bit float.

A value of b bits is one of 2**b codes, and (code - zero_point) * scale is what it stands for. Rounding to that grid is
a parametrization of the layer (weights.grids.Grid), through which training passes straight: whatever trains the
quantized model trains it quantization-aware. The file holds the codes, packed, and the scales.

Sources: Jacob et al. 2018, arXiv:1712.05877 (affine grids, training with them); Nagel et al. 2021, arXiv:2106.08295
(ranges, calibration); Rastegari et al. 2016, arXiv:1603.05279 (one bit); Esser et al. 2020, arXiv:1902.08153 (learned
step size).
"""

import numbers
from collections.abc import Iterable

import torch
from torch import nn

from compresslab import bars, checks
from compresslab.calibration import checked_images
from compresslab.data import Data, Split
from compresslab.numerics import ranges
from compresslab.numerics.rounding_noise import channel_rows
from compresslab.techniques import base, input_grids
from compresslab.techniques.base import Control, Picture, Technique
from compresslab.techniques.input_grids import CALIBRATIONS
from compresslab.weights import layers as network
from compresslab.weights.grids import MOST_BITS, Grid, Half
from compresslab.weights.masks import is_trained

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
FLOAT = 32  # bits that leave numbers as they are
DEFAULT_BITS = 8
CLIPPINGS = ("auto", *ranges.CLIPPINGS)
IMAGES = 1000  # calibration images that sweep and lab hand over


def quantize(
    model: nn.Module,
    images: torch.Tensor | Split | None = None,
    bits: int | None = None,
    dtype: str | None = None,
    symmetric: bool = True,
    per_channel: bool = True,
    clipping: str = "auto",
    percentile: float = 0.995,
    activations: int | str | None = None,
    calibration: str = "mse",
    calibration_size: int | None = None,
    learned: bool = False,
    layers: Iterable[str] | None = None,
) -> nn.Module:
    """Return a new model whose weights lie on a grid of few values.

    model        any nn.Module with Linear, Conv or ConvTranspose layers; biases stay float32
    images       (N, …) calibration images, a tensor or a Split: the activations are quantized too, see `activations`
    bits         of a weight: 1 to 16, or 32 to leave weights as they are; 8 if neither this nor `dtype` is given
    dtype        instead of bits: "fp16" or "bf16", the 16-bit floats
    symmetric    True: 0 is the code for 0; of 1 bit the two values are -mean|w| and mean|w|. False: a zero point, a
                 code too, stands for 0; of 1 bit the two values lie as far below and above the mean weight
    per_channel  a scale for each output neuron or channel, or one for the whole layer
    clipping     where the range of the weights ends. "none": at the largest; "percentile": where that share of them
                 lies inside; "mse", "l4": where the mean square, or fourth power, of the error is least. "auto": "l4"
                 at 2 bits, "mse" up to 7, "none" above, where the search gains nothing
    percentile   for "percentile", of clipping or calibration: a fraction above 0, to 1
    activations  bits of the inputs of each quantized layer: 1 to 16, or "fp32" to leave them as they are. None: as many
                 as `bits` where images are given (with a dtype, none are quantized). One affine scale and zero point a
                 layer, fitted to the images; layer `fc1` becomes Sequential(input, layer)
    calibration  where the range of activations ends: "minmax", "percentile" or "mse", as of `clipping`
    calibration_size  use the first so many images, 1 or more; None for all
    learned      train the step sizes of grids along with the weights; frozen weights' not
    layers       names of the layers to quantize, as in model.named_modules(); None for all
    returns      model whose quantized weights carry a grids.Grid or grids.Half, so that training keeps them on it; a
                 mask stays, an earlier grid is replaced
    raises       ValueError for a setting out of range, both bits and dtype, activations without images or images that
                 the model does not take, an unknown layer, a model without such layers, weights that are not finite
    warns        UserWarning that names what is left alone: embeddings that are not named in `layers`

    At 1 and 2 bits training recovers most towards the model that this came from (distillation.distill).
    """
    checks.choice("clipping", clipping, CLIPPINGS)
    checks.choice("calibration", calibration, CALIBRATIONS)
    base.check_flags(symmetric=symmetric, per_channel=per_channel, learned=learned)
    if calibration_size is not None:
        checks.integer("calibration_size", calibration_size, 1)
    percentile = base.check_share("percentile", percentile, "(0.999 for 99.9%)")
    bits, input_bits = _check_formats(bits, dtype, activations, images)
    twin = network.duplicate(base.check_model(model, layers, "quantize", network.find_matrices))
    for weight in bars.over(network.distinct_weights(twin, layers), "quantizing layers"):
        if dtype:
            rounding = _fit_half(weight, DTYPES[dtype])
        elif bits == FLOAT:
            rounding = None
        else:
            rounding = _fit_grid(weight, bits, symmetric, per_channel, clipping, percentile, learned)
        for module, name in weight.holders:
            network.set_rounding(module, rounding, name)
        if learned and isinstance(rounding, Grid):
            rounding.growth.requires_grad_(is_trained(*weight.holders[0]))
    reasons = {}
    if layers is None and bits != FLOAT:
        reasons = {name: f"weights of {kind}" for name, kind in network.unsupported(twin, matrices=True).items()}
    matrices = network.find_matrices(twin, layers)
    names = [name for name, (module, _) in matrices.items() if isinstance(module, network.TYPES)]
    if input_bits == "fp32":
        twin = input_grids.remove(twin, names)
    elif input_bits is not None:
        images = checked_images(images)[:calibration_size]
        grids, unseen = input_grids.fit(twin, names, images, input_bits, calibration, percentile, learned)
        twin, refused = input_grids.place(twin, grids, images)
        reasons |= unseen | refused
    base.warn_left_alone("quantization", reasons)
    return twin


def _fit_grid(weight, bits, symmetric, per_channel, clipping, percentile, learned):
    """Fit a Grid to the values of a Weight, without masked weights."""
    base.check_weight(weight, "quantized")
    if not weight.value.numel():
        return None
    layer = next((module for module, _ in weight.holders if isinstance(module, network.TYPES)), None)
    transposed = isinstance(layer, network.TRANSPOSED)
    rows = channel_rows(weight.value, transposed)
    counts = None if weight.mask is None else channel_rows(weight.mask, transposed)
    if not per_channel:
        rows, counts = rows.reshape(1, -1), None if counts is None else counts.reshape(1, -1)
    if clipping == "auto":  # the most accurate on the reference networks, and no search where it gains nothing
        clipping = "l4" if bits <= 2 else "mse" if bits < 8 else "none"
    scale, point = ranges.fit(rows, bits, symmetric, clipping, percentile, counts)
    _check_finite(weight, scale)
    shape = [1] * weight.value.dim() if per_channel else []
    if per_channel:
        shape[transposed] = len(rows)
    low, high = ranges.code_range(bits, symmetric)
    grid = Grid(scale.reshape(shape), point.reshape(shape), low, high, bits, learned)
    if float(scale.max()) > torch.finfo(scale.dtype).max / 2**bits:  # a sum or product may be infinite, but rarely is
        _check_finite(weight, grid(weight.value))
    return grid


def _fit_half(weight, dtype):
    """Return the Half for a Weight; refuse to turn a weight to infinity."""
    base.check_weight(weight, "quantized")
    if not weight.value.to(dtype).isfinite().all():
        _check_finite(weight, weight.value)
        size, most = float(weight.value.abs().max()), torch.finfo(dtype).max
        name = weight.names[0]
        raise ValueError(f"layer {name!r} has a weight of size {size:g}; {dtype} ends at {most:g}, use 'bf16'")
    return Half(dtype)


def _check_bits(name, bits, otherwise):
    is_integer = isinstance(bits, numbers.Integral) and not isinstance(bits, bool)
    if not is_integer or not (1 <= bits <= MOST_BITS or bits == FLOAT):
        raise ValueError(f"{name} is {checks.words(bits)}; give a whole number from 1 to {MOST_BITS}, or {otherwise}")
    return int(bits)


def _check_formats(bits, dtype, activations, images):
    """Return the bits of weights (None for a dtype) and of activations ("fp32", or None)."""
    if bits is not None and dtype is not None:
        raise ValueError(f"bits is {checks.words(bits)} and dtype is {checks.words(dtype)}; give one of the two")
    if dtype is not None:
        checks.choice("dtype", dtype, DTYPES)
    else:
        bits = _check_bits("bits", DEFAULT_BITS if bits is None else bits, "32 for weights as they are")
    if activations is None and images is not None:
        activations = bits or FLOAT
    if activations is None or (isinstance(activations, str) and activations == "fp32"):
        return bits, activations
    activations = _check_bits("activations", activations, "'fp32' for activations as they are")
    if activations == FLOAT:
        return bits, "fp32"
    if images is None:
        hint = "give images=data.train.images[:1000], or activations='fp32'"
        raise ValueError(f"activations is {activations} and images is None, but their range comes from images; {hint}")
    return bits, activations


def _check_finite(weight, values):
    """Refuse values made from a weight that are not finite."""
    if not values.isfinite().all():
        overflows = weight.value.isfinite().all()
        reason = "too large for a grid in their arithmetic" if overflows else "not finite (nan or inf)"
        raise ValueError(f"layer {weight.names[0]!r} has weights that are {reason}")


def anatomy(model: nn.Module, compressed: nn.Module, setting: dict, data: Data | None = None) -> list[Picture]:
    """Picture a quantization: weights and clipping, the first layer now, noise by layer."""
    layers = setting.get("layers")
    before = network.distinct_weights(model, layers)
    after = [  # a layer may be behind an input grid
        weight
        for weight in network.distinct_weights(compressed)
        if not layers or any(name in layers or name.removesuffix(".layer") in layers for name in weight.names)
    ]
    return [_histogram(before[0], after[0]), _weights_picture(after[0]), base.picture_noise(model, before, after, data)]


def _histogram(before, after):
    """Picture the weights of a layer before, and the mean end of its grid."""
    grid = network.get_rounding(*after.holders[0])
    cut, caption = None, "A 16-bit float keeps every weight to three or four digits: there is nothing to clip."
    if isinstance(grid, Grid):
        ends = [(end - grid.zero_point) * grid.step_size.detach() for end in (grid.low, grid.high)]
        cut = float(torch.maximum(-ends[0], ends[1]).mean())
        count = grid.high - grid.low + 1
        caption = f"{count} values between the cuts are left. What lies outside becomes the outermost."
    title = f"Weights of {before.names[0]} before"
    return Picture("weights", "histogram", base.thin_out(before.value), title, caption, cut=cut, axis="weight")


def _weights_picture(weight, most=64):
    """Picture the weights of a layer now, as images or a matrix."""
    value = weight.value.float().cpu()
    title = f"Weights of {weight.names[0].removesuffix('.layer')} after"
    hint = "count the shades, each is a value on the grid."
    images = base.as_images(value)
    if images is None:
        return Picture("values", "matrix", value.flatten(1)[:most].numpy(), title, f"A row for each output: {hint}")
    caption = f"The first filters, one image each: {hint}"
    if value.dim() == 2:
        most, caption = 25, f"The weights of the first 25 neurons, one image each: {hint}"
    return Picture("values", "images", images.flatten(0, 1)[:most].numpy(), title, caption)


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
