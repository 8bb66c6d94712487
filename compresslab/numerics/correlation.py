"""Correlations and affine fits of the activations of a layer's neurons over calibration images.

Activations are taken where the next layers read them, behind nonlinearity, normalisation and pooling. A channel counts
as one neuron, its images and positions as samples. Moments are gathered batch by batch in double precision.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from compresslab.calibration import watch
from compresslab.numerics.moments import find_padding, split_by_size

ROUNDING = 1e-6  # relative: what float32 activations cannot tell apart
BATCH = 256  # images at a time, at most
INPUT_LIMIT = 2**20  # numbers in a batch of images
ROWS_LIMIT = 2**22  # numbers of a batch that go into the moments of one reader: 32 MiB in double precision
MOMENTS_LIMIT = 2**26  # numbers in all matrices of moments at a time: 512 MiB; more take another run over the images


@dataclass(frozen=True, eq=False)
class Reading:
    """Statistics of what one layer reads of a group of neurons.

    correlation  float32 (neurons, neurons), -1 to 1, symmetric, 1 on the diagonal. A neuron that never varies has 0
                 with others, and 1 with those that never vary either
    mean, std    float64 (neurons,); std is 0 for a neuron that never varies
    samples      number of samples behind them: images times positions
    """

    correlation: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    samples: int

    def fit(self, removed: torch.Tensor, stand: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fit neurons `removed` (k,) on neurons `stand` (k,): slope and offset, float64 (k,) each.

        The slope on a neuron that never varies is 0; an offset that is only rounding is 0.
        """
        scale = torch.where(self.std[stand] > 0, self.std[removed] / self.std[stand], 0.0)
        slope = self.correlation[removed, stand] * scale
        offset = self.mean[removed] - slope * self.mean[stand]
        size = (self.mean[removed] ** 2 + self.std[removed] ** 2).sqrt()
        return slope, torch.where(offset.abs() > ROUNDING * size, offset, 0.0)


def readings(model: nn.Module, images: torch.Tensor, groups: list) -> Iterator[tuple]:
    """Yield each group of neurons and a tuple of Reading, for its consumers.

    images  (N, …) tensor;  groups  list of channels.Group whose consumers are Linear and ungrouped Conv layers
    raises  ValueError as `calibration.watch` does, and for activations that are not finite

    Of large feature maps every k-th position is taken. The zeros of a padded convolution count as samples.
    """
    batch_size = max(1, min(BATCH, INPUT_LIMIT // max(1, images[0].numel())))
    sizes = [group.size**2 * len(group.consumers) for group in groups]
    for part in split_by_size(groups, sizes, MOMENTS_LIMIT):
        moments, watchers = {}, {}
        for group in part:
            for consumer in group.consumers:
                entry = _Moments(consumer.inputs, model.get_submodule(consumer.name))
                moments[group.name, consumer.name] = entry
                watchers.setdefault(consumer.name, []).append(entry)
        watch(model, images, {name: partial(_call_all, entries) for name, entries in watchers.items()}, batch_size)
        for group in part:
            entries = [moments.pop((group.name, consumer.name)) for consumer in group.consumers]
            yield group, tuple(entry.reading(group.name) for entry in entries)


def weakest(parts: tuple[Reading, ...]) -> torch.Tensor:
    """Return the correlation of smallest magnitude over all readers, entry by entry, float32 (neurons, neurons).

    Neurons that never vary for any reader have 0 in their rows and columns, on the diagonal too.
    """
    matrix = parts[0].correlation.clone()
    for reading in parts[1:]:
        matrix = torch.where(reading.correlation.abs() < matrix.abs(), reading.correlation, matrix)
    still = torch.stack([reading.std == 0 for reading in parts]).all(0)
    matrix[still], matrix[:, still] = 0, 0
    return matrix


def _call_all(watchers, inputs, output):
    for watcher in watchers:
        watcher(inputs, output)


class _Moments:
    """Sums over the samples of a group's neurons in a layer's input; a watcher.

    inputs  (neurons, k) the input features, or channels, that belong to each neuron
    """

    def __init__(self, inputs, module):
        self.inputs, self.module, self.count = inputs, module, 0.0
        self.total, self.outer = torch.zeros(len(inputs)).double(), torch.zeros(len(inputs), len(inputs)).double()

    def __call__(self, value, _output):
        rows, padding = self._rows(value.detach())
        self.count += len(rows) * (1 + padding)
        self.total += rows.sum(0)
        self.outer.addmm_(rows.T, rows)

    def _rows(self, value):
        """Return samples (count, neurons) float64, and the zeros that padding adds for each."""
        padding = 0.0
        if not isinstance(self.module, nn.Linear):
            padding = _padded(value, self.module)
            value = value.movedim(1, -1)  # (N, *positions, channels)
        positions = math.prod(value.shape[1:-1])
        value = value.reshape(-1, value.shape[-1])[:: _stride(value.numel(), positions)]
        value = value.cpu().double()[:, self.inputs]  # (samples, neurons, k)
        return value.transpose(1, 2).reshape(-1, len(self.inputs)), padding

    def reading(self, name: str) -> Reading:
        """Return the Reading of what was seen; refuse too few or infinite activations."""
        if self.count < 2 or not self.outer.diagonal().isfinite().all():
            actual = "no activations" if self.count < 2 else "activations that are not finite"
            raise ValueError(f"the neurons of layer {name!r} give {actual} on these images")
        mean, square = self.total / self.count, self.outer.diagonal() / self.count
        variance = square - mean**2
        std = variance.masked_fill(variance <= ROUNDING**2 * square, 0).sqrt()
        return Reading(_correlation(self.outer / self.count, mean, std), mean, std, round(self.count))


def _correlation(second, mean, std):
    """Return the correlation matrix, float32, from E[x x^T], which is overwritten; see `Reading`."""
    scale = torch.where(std > 0, 1 / std, 0.0)
    second.addr_(mean, mean, alpha=-1).mul_(scale[:, None]).mul_(scale)
    still = (std == 0).nonzero().flatten()
    second[still[:, None], still] = 1
    matrix = second.float()
    return matrix.add_(matrix.T.contiguous()).div_(2).clamp_(-1, 1).fill_diagonal_(1)


def _stride(numbers, positions):
    """Return the stride at which samples stay below ROWS_LIMIT.

    A factor in common with the positions of an image would take the same columns in every row.
    """
    stride = -(-numbers // ROWS_LIMIT) or 1
    while stride > 1 and math.gcd(stride, positions) > 1:
        stride += 1
    return stride


def _padded(value, conv):
    """Return the zeros that padding adds to a channel, as a fraction of its positions."""
    if conv.padding_mode != "zeros" or conv.transposed:
        return 0.0
    spatial = value.shape[2:]
    padded = [length + sum(pair) for length, pair in zip(spatial, find_padding(conv), strict=True)]
    return math.prod(padded) / math.prod(spatial) - 1
