"""Mean and second moment of what the layers of a model get as inputs, over calibration images.

A Linear layer's input is a row of features, a convolution's is a window of its image, unrolled as its weight is. These
two moments tell the mean squared change of the output for any change of the weight.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from compresslab import bars, calibration
from compresslab.data import Split
from compresslab.weights.layers import CONVOLUTIONS

ROWS, WORK = 2**15, 4e9  # input rows of a layer, and multiplications for its moment, before rows are left out
BYTES = 64 * 2**20  # of rows made at a time
BATCH, VALUES = 1000, 2**22  # images run at a time, and values in them, at most
TOGETHER = 2**29  # bytes of moments kept at a time; more layers than fit take further runs of the model


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's input rows x.

    mean    (columns,) float64, E[x];  second  (columns, columns) float64, E[x x^T];  rows  how many were seen
    """

    mean: torch.Tensor
    second: torch.Tensor
    rows: int

    def covariance(self) -> torch.Tensor:
        """Return E[x x^T] - E[x] E[x]^T, (columns, columns)."""
        return torch.addr(self.second, self.mean, self.mean, alpha=-1)


def input_moments(
    model: nn.Module, images: torch.Tensor | Split, names: list[str], seed: int = 0
) -> Iterator[tuple[str, Moments]]:
    """Yield (name, Moments) for Linear and ungrouped Conv layers over calibration images.

    names    qualified names; a layer that the model does not run with a tensor as its first argument is left out
    seed     of the choice of rows where there are too many: up to 32,768 are taken, fewer where that would be over 4e9
             multiplications, but 4 * columns at least; at random, the same share of every batch
    raises   ValueError as `calibration.watch` does, and for inputs that are not finite

    Memory: at most 512 MiB of moments at a time, or those of one layer.
    """
    images = calibration.checked_images(images)
    batch_size = max(1, min(BATCH, VALUES // max(1, images[0].numel())))
    modules = dict(model.named_modules(remove_duplicate=False))
    for group in split_by_size(names, [8 * modules[name].weight[0].numel() ** 2 for name in names], TOGETHER):
        sums = {name: _Sums(modules[name], -(-len(images) // batch_size), seed) for name in group}
        calibration.watch(model, images, {name: layer_sums.add for name, layer_sums in sums.items()}, batch_size)
        for name, layer_sums in bars.over(sums.items(), "factorizing layers"):
            if layer_sums.rows:
                yield name, layer_sums.finish(name)


def split_by_size(items: Iterable, sizes: Iterable[int], room: int) -> list[list]:
    """Split items into lists whose sizes add up to `room` at most."""
    parts, left = [], 0
    for item, size in zip(items, sizes, strict=True):
        if not parts or size > left:
            parts.append([])
            left = room
        parts[-1].append(item)
        left -= size
    return parts


class _Sums:
    """Sums over the input rows of one layer, a batch at a time; `add` is a watcher."""

    def __init__(self, module, batches, seed):
        self._module, self._generator = module, torch.Generator().manual_seed(seed)
        columns = module.weight[0].numel()  # features, or channels times kernel places
        self._wanted, self._share = max(4 * columns, min(ROWS, WORK / columns**2)) / batches, None
        self.rows, self.first, self.second = 0, 0.0, 0.0

    def add(self, inputs: torch.Tensor, _: object) -> None:
        """Add a batch of inputs."""
        if not isinstance(inputs, torch.Tensor):
            return
        windows = _windows(self._module, inputs.detach())
        count = _count(windows)
        self._share = self._share or min(1.0, self._wanted / max(1, count))  # the first batch is the largest
        chosen = torch.arange(count)
        if self._share < 1:
            chosen = torch.randperm(count, generator=self._generator)[: int(self._share * count) + 1]
        for rows in _chosen(windows, chosen.to(inputs.device)):
            self.rows += len(rows)
            self.first = self.first + rows.sum(0).double()
            self.second = self.second + (rows.T @ rows).double()

    def finish(self, name: str) -> Moments:
        """Return the Moments; refuse values that are not finite."""
        mean, second = self.first / self.rows, self.second / self.rows
        if not (mean.isfinite().all() and second.diagonal().isfinite().all()):
            raise ValueError(f"layer {name!r} is given values that are not finite for these images")
        return Moments(mean, second, self.rows)


def _windows(module, inputs):
    """Return a view of the inputs, (batch, places…, channels, kernel…): a row each place."""
    if not isinstance(module, CONVOLUTIONS):
        return inputs.reshape(-1, inputs.shape[-1])
    dimensions = len(module.kernel_size)
    inputs = inputs if inputs.dim() == dimensions + 2 else inputs[None]  # without a batch dimension
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padding = [side for pair in reversed(find_padding(module)) for side in pair]
    windows = functional.pad(inputs, padding, mode=mode)
    for axis, (size, stride, gap) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        windows = windows.unfold(axis + 2, gap * (size - 1) + 1, stride)[..., ::gap]
    return windows.movedim(1, dimensions + 1)


def find_padding(module: nn.Module) -> list[tuple[int, int]]:
    """Return the padding of a convolution before and after each dimension."""
    if not isinstance(module.padding, str):
        return [(size, size) for size in module.padding]
    spans = [gap * (size - 1) for gap, size in zip(module.dilation, module.kernel_size, strict=True)]
    return [(span // 2, span - span // 2) if module.padding == "same" else (0, 0) for span in spans]


def _places(windows):
    """Return the sizes of the dimensions that count input rows: batch and places."""
    return windows.shape[: windows.dim() // 2] if windows.dim() > 2 else windows.shape[:1]


def _count(windows):
    return _places(windows).numel()


def _chosen(windows, places):
    """Yield input rows at these places, (rows, columns) float32, in parts of bounded size."""
    sizes = _places(windows)
    columns = max(1, windows.shape[len(sizes) :].numel())
    for part in places.split(max(1, BYTES // (4 * columns))):
        yield windows[torch.unravel_index(part, sizes)].flatten(1).float()
