"""Measuring what the rounding of each layer's weights costs the network's answers: signal to noise, in decibels."""

import contextlib
import math

import torch
from torch import nn

from compresslab.calibration import run
from compresslab.data import Data
from compresslab.weights.layers import TRANSPOSED, TYPES, Weight, as_inputs, modes_kept, plain, weight_layers

CLEAR = 100.0  # dB from where on no noise is to be seen
SIDES = (8, 16, 28, 32, 64, 12, 24, 48, 96, 128, 224)  # of images that are tried where a model does not take the data's


def signal_to_noise(
    model: nn.Module, before: list[Weight], after: list[Weight], data: Data | None = None
) -> tuple[list[float], str]:
    """Measure signal to noise of the outputs with each layer alone rounded, in dB.

    before, after  lists of Weight, of `model` and of what a technique made of it
    data           Data, whose first training images are run; random ones where the model takes only other shapes. None
                   compares the weights instead, each output channel for itself, for a later layer may scale them
    returns        a ratio for each layer, and a sentence on what they are
    """
    inputs = None if data is None else _find_inputs(model, data.train.images, len(before))
    if inputs is None:
        ratios = [_compare_channels(*pair) for pair in zip(before, after, strict=True)]
        subject = "each channel's weights rise above their"
    else:
        twin, ratios = plain(model), []
        expected = _answer(twin, inputs).double()
        for original, rounded in zip(before, after, strict=True):
            weight = twin.get_submodule(original.names[0]).weight
            weight.data.copy_(rounded.value)
            noise = (_answer(twin, inputs).double() - expected).square().sum()
            weight.data.copy_(original.value)
            ratios.append(_decibels(expected.square().sum(), noise))
        subject = "the network's answers rise above the error of a layer's"
    return ratios, f"How far {subject} rounding: about 6 dB for each bit. The lowest bar suffers most."


def _find_inputs(model, images, layers, most=2**18):
    """Return a few inputs that a model takes: images, else random ones, else None."""
    first = next(iter(weight_layers(model).values()))
    if isinstance(first, nn.Linear):
        shapes = [(first.in_features,)]
    else:
        shapes = [(first.in_channels, *[side] * len(first.kernel_size)) for side in SIDES]
    generator = torch.Generator().manual_seed(0)
    for number, shape in enumerate((images.shape[1:], *shapes)):
        count = max(1, min(64, most // max(1, layers * math.prod(shape))))
        inputs = images[:count] if number == 0 else torch.rand(count, *shape, generator=generator)
        with contextlib.suppress(ValueError):
            if isinstance(_answer(model, inputs), torch.Tensor):
                return inputs
    return None


def _answer(model, inputs):
    """Return what a model answers in evaluation mode, without gradients."""
    with modes_kept(model), torch.no_grad():
        return run(model.eval(), as_inputs(model, inputs.clone()))


def _compare_channels(before, after):
    """Return the mean signal to noise of a weight's nonzero output channels, in dB."""
    layer = next(module for module, _ in before.holders if isinstance(module, TYPES))
    pair = before.value, before.value - after.value
    value, error = (channel_rows(part, isinstance(layer, TRANSPOSED)) for part in pair)
    power, noise = (part.abs().double().square().sum(1) for part in (value, error))
    return _decibels((power > 0).sum(), (noise / power)[power > 0].sum())


def _decibels(signal, noise):
    """Return signal to noise in dB, from -CLEAR to CLEAR."""
    if not noise > 0:
        return -CLEAR if noise.isnan() else CLEAR
    return 10 * math.log10(min(max(float(signal / noise), 10 ** (-CLEAR / 10)), 10 ** (CLEAR / 10)))


def channel_rows(value: torch.Tensor, transposed: bool) -> torch.Tensor:
    """Return a weight as a matrix (output channels, n), in single precision at least."""
    value = value.transpose(0, 1) if transposed else value
    value = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    return value.reshape(len(value), -1)
