"""Grids: parametrizations that keep a weight on few values while it trains on.

A parametrization of this module is to quantization what `layers.Mask` is to pruning: it is part of the model, saved
with it, and whatever trains the model trains the numbers behind it (straight-through estimator).

Jacob et al. 2018, arXiv:1712.05877 (scale and zero point); Bengio et al. 2013, arXiv:1308.3432 (straight-through).
"""

import torch
from torch import nn


class Grid(nn.Module):
    """Parametrization that rounds a weight to an integer grid: (codes - zero_point) * scale.

    scale       float32, shape () or broadcastable to the weight (channels, 1, …), above 0
    zero_point  float32 of the same shape, the code that stands for 0; a whole number but for 1 bit
    low, high   smallest and largest code, whole numbers; high - low < 2**bits
    bits        width at which a code is stored, 1 to 16
    """

    def __init__(self, scale, zero_point, low, high, bits):
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.low, self.high, self.bits = low, high, bits

    def codes(self, weight):
        """Codes of a weight, int32 of its shape, low to high: round(weight / scale) + zero_point, ties to even."""
        return ((weight / self.scale).round() + self.zero_point).clamp(self.low, self.high).to(torch.int32)

    def values(self, codes):
        """float32 values of codes: exactly what a saved file gives back."""
        return (codes - self.zero_point) * self.scale

    def forward(self, weight):
        return weight + (self.values(self.codes(weight)) - weight).detach()
