"""Multiply-accumulates of one forward pass, counted by torch while the model runs."""

import contextlib

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compresslab import data, layers
from compresslab.measure.inputs import batch, evaluating, sample_shape


def macs(model, images=None):
    """Multiply-accumulates for one sample, by torch's own flop counter (flops / 2).

    Counted are matrix products, convolutions and attention: what Linear, Conv, recurrent and attention layers do. Not
    counted are elementwise work, normalisation and pooling. A weight of zero is multiplied like any other, so a masked
    model has the MACs of the dense one; they fall only when neurons, channels or ranks are really removed.

    images   (N, …) tensor, array or data.Split of which the first is used, or the shape of one sample (1, 28, 28);
             None as in `latency`
    returns  int
    raises   ValueError if the model does not take these inputs
    """
    with evaluating(model), _counted_kernels(model), torch.no_grad():
        inputs = _one(model, images)
        with FlopCounterMode(display=False) as counter:
            model(inputs)
    return counter.get_total_flops() // 2


def _one(model, images):
    """A batch of one, from images or from a shape."""
    images = images.images if isinstance(images, data.Split) else images
    if not isinstance(images, torch.Tensor | np.ndarray):
        return batch(model, sample_shape(model, images))
    images = torch.as_tensor(images)
    if images.ndim == 0 or len(images) == 0:
        raise ValueError(f"images has shape {tuple(images.shape)}; give at least one, (N, …)")
    if images.is_floating_point():
        sample_shape(model, tuple(images.shape[1:]))
    return layers.as_inputs(model, images[:1])


@contextlib.contextmanager
def _counted_kernels(model):
    """Keep torch from fused kernels that the counter does not see: they would count as no work at all."""
    fused = [(torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled)]
    if any(isinstance(part, nn.RNNBase) for part in model.modules()):
        fused += [_switch(torch.backends.mkldnn), _switch(torch.backends.cudnn)]
    before = [get() for get, _ in fused]
    try:
        for _, set_to in fused:
            set_to(False)
        yield
    finally:
        for (_, set_to), value in zip(fused, before, strict=True):
            set_to(value)


def _switch(backend):
    return lambda: backend.enabled, lambda value: setattr(backend, "enabled", value)
