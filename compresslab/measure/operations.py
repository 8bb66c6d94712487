"""Multiply-accumulates of one forward pass, counted by torch while the model runs.

The count must not depend on which kernel runs. So torch is kept from fused kernels where it can be, and products that
its counter does not know are counted by the formulas below.
"""

import contextlib
import threading
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compresslab import checks, data
from compresslab.measure.examples import batch, refusal, sample_shape
from compresslab.weights import layers

_switches = threading.RLock()  # torch's switches are those of all threads


def macs(model: nn.Module, images: torch.Tensor | data.Split | Sequence[int] | None = None) -> int:
    """Count the multiply-accumulates for one sample, half of what torch counts as flops.

    Counted are matrix products, convolutions and attention (two full matrix products, causal or masked or not), but no
    elementwise work, normalisation or pooling. A weight of zero is multiplied like any other, so a masked model has
    the MACs of the dense one; they fall only when neurons, channels or ranks are really removed.

    images   (N, …) tensor, array or data.Split of which the first is used, or the shape of one sample (1, 28, 28);
             None as in `latency`
    raises   ValueError if the model does not take these inputs, or computes in a way that torch cannot count
    """
    checks.module("model", model)
    with layers.modes_kept(model), torch.no_grad():
        inputs = _make_sample(model.eval(), images)
        counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
        with _switches, _plain_kernels(model), counter:
            try:
                model(inputs)
            except Exception as error:  # it ran in `_make_sample`
                reason = checks.reason(error)
                raise ValueError(f"model computes in a way that torch's counter cannot follow ({reason})") from error
    return counter.get_total_flops() // 2


def _make_sample(model, images):
    """Make a batch of a single sample, from images or from a shape."""
    images = images.images if isinstance(images, data.Split) else images
    if not isinstance(images, torch.Tensor | np.ndarray):
        return batch(model, sample_shape(model, images))
    images = torch.as_tensor(images)
    if images.ndim == 0 or len(images) == 0:
        raise ValueError(f"images has shape {tuple(images.shape)}; give at least one, (N, …)")
    inputs = layers.as_inputs(model, images[:1])
    if error := refusal(model, inputs):
        raise ValueError(f"the model does not take a batch of shape {tuple(inputs.shape)}: {error}; give other images")
    return inputs


@contextlib.contextmanager
def _plain_kernels(model):
    """Make torch compute attention and recurrent layers by matrix products, which its counter sees."""
    is_recurrent = any(isinstance(part, nn.RNNBase) for part in model.modules())
    backends = [torch.backends.mkldnn, torch.backends.cudnn] if is_recurrent else []
    before, fast_path = [backend.enabled for backend in backends], torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for backend in backends:
            backend.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for backend, enabled in zip(backends, before, strict=True):
            backend.enabled = enabled


def _attention_flops(query, key, value, *_, **__):
    """Count the flops of softmax(query · keyᵀ) · value, from the shapes (…, length, width)."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


# Flops of operators that torch's counter may lack, from the shapes of their arguments and of what they return. The
# attention kernels are for a forward that chooses its kernel itself. A torch that lacks an operator never calls it.
_FORMULAS = {
    getattr(torch.ops.aten, name): formula
    for name, formula in {
        "mv": lambda matrix, *_, **__: 2 * prod(matrix),
        "addmv": lambda bias, matrix, *_, **__: 2 * prod(matrix),
        "dot": lambda vector, *_, **__: 2 * prod(vector),
        "vdot": lambda vector, *_, **__: 2 * prod(vector),
        "addbmm": lambda bias, first, second, **_: 2 * prod(first) * second[-1],
        "bilinear": lambda first, second, weight, *_, **__: 2 * prod(first[:-1]) * prod(weight),
        "_trilinear": lambda first, weight, *_, **__: 2 * first[0] * prod(weight),  # what bilinear is made of
        "conv_tbc": lambda inputs, weight, *_, out_shape, **__: 2 * prod(out_shape[:2]) * prod(weight),
        "_scaled_dot_product_flash_attention_for_cpu": _attention_flops,
        "_scaled_dot_product_fused_attention_overrideable": _attention_flops,
        "_scaled_dot_product_attention_math_for_mps": _attention_flops,
    }.items()
    if hasattr(torch.ops.aten, name)
}
