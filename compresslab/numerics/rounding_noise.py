"""How much of a network's answers the rounding of each layer's weights costs: signal to noise, in decibels."""

import contextlib
import math

import torch
from torch import nn

from compresslab.activations import run
from compresslab.layers import TYPES, as_inputs, modes_kept, plain, weight_layers

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # (in, out, …); the others (out, in, …)
CLEAR = 100.0  # dB from where on no noise is to be seen
SIDES = (8, 16, 28, 32, 64, 12, 24, 48, 96, 128, 224)  # of images that are tried where a model does not take the data's


def signal_to_noise(model, before, after, data=None):
    """Measure how much rounding each layer alone changes what the model answers: signal to noise of its outputs, in dB.

    before, after  lists of Weight, of `model` and of what a technique made of it
    data           Data, whose first training images are run; random ones where the model takes only other shapes. None
                   compares the weights instead, each output channel for itself, for a later layer may scale them
    """
    inputs = None if data is None else _inputs_of(model, data.train.images, len(before))
    if inputs is None:
        ratios = [_decibels(*_channel_powers(one, other)) for one, other in zip(before, after, strict=True)]
        what = "each channel's weights rise above their"
    else:
        ratios = _output_ratios(model, before, after, inputs)
        what = "the network's answers rise above the error of a layer's"
    caption = f"How far {what} rounding: about 6 dB for each bit. The lowest bar suffers most."
    return ratios, caption


def _inputs_of(model, images, layers, most=2**18):
    """A few inputs that a model answers with a tensor: of the images, else random ones of a likely shape, else None."""
    first = next(iter(weight_layers(model).values()))
    shapes = [(first.in_features,)] if isinstance(first, nn.Linear) else []
    if not shapes:
        shapes = [(first.in_channels, *[side] * len(first.kernel_size)) for side in SIDES]
    generator = torch.Generator().manual_seed(0)
    for shape in (images.shape[1:], *shapes):
        count = max(1, min(64, most // max(1, layers * math.prod(shape))))
        inputs = images[:count] if shape is images.shape[1:] else torch.rand(count, *shape, generator=generator)
        with contextlib.suppress(ValueError):
            if isinstance(_answers(model, inputs), torch.Tensor):
                return inputs
    return None


def _answers(model, inputs):
    """What a model answers in evaluation mode, without gradients."""
    with modes_kept(model), torch.no_grad():
        return run(model.eval(), as_inputs(model, inputs.clone()))


def _output_ratios(model, before, after, inputs):
    """Signal to noise of the model's outputs with each weight alone as it is after, in dB, a list."""
    twin, ratios = plain(model), []
    expected = _answers(twin, inputs).double()
    for one, other in zip(before, after, strict=True):
        weight = twin.get_submodule(one.names[0]).weight
        weight.data.copy_(other.value)
        noise = (_answers(twin, inputs).double() - expected).square().sum()
        weight.data.copy_(one.value)
        ratios.append(_decibels(expected.square().sum(), noise))
    return ratios


def _channel_powers(one, other):
    """How many output channels a Weight has that are not 0, and their squared errors, each relative to its weights."""
    layer = next(module for module, _ in one.holders if isinstance(module, TYPES))
    value, error = (_channels(part, isinstance(layer, TRANSPOSED)) for part in (one.value, one.value - other.value))
    power, noise = (part.abs().double().square().sum(1) for part in (value, error))
    return (power > 0).sum(), (noise / power)[power > 0].sum()


def _decibels(signal, noise):
    """Signal to noise in dB, from -CLEAR, also where the noise is no number, to CLEAR."""
    if not noise > 0:
        return -CLEAR if noise.isnan() else CLEAR
    return 10 * math.log10(min(max(float(signal / noise), 10 ** (-CLEAR / 10)), 10 ** (CLEAR / 10)))


def _channels(value, transposed):
    """Return a weight as a matrix (output channels, n), in single precision at least."""
    value = value.transpose(0, 1) if transposed else value
    value = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    return value.reshape(len(value), -1)
