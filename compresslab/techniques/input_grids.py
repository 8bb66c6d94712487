"""Grids for activations: fitted to the inputs of layers, and put before the layers.

Layer `fc1` becomes Sequential(input=InputGrid, layer=fc1), standard modules both, so that the model is stored, traced
and trained like any other. The range comes from calibration images, run one batch at a time.

Jacob et al. 2018, arXiv:1712.05877, section 2 (affine grids for activations); Nagel et al. 2021, arXiv:2106.08295,
section 3.1 (ranges).
"""

import math
from collections import OrderedDict

import torch
from torch import nn

from compresslab.calibration import watch
from compresslab.numerics import ranges
from compresslab.weights.grids import InputGrid

CALIBRATIONS = ("minmax", "percentile", "mse")
KEYS = 2**16  # upper halves that a float32 may have


def fit(
    model: nn.Module,
    names: list[str],
    images: torch.Tensor,
    bits: int,
    calibration: str,
    percentile: float,
    learned: bool,
) -> tuple[dict[str, InputGrid], dict[str, str]]:
    """Fit an affine grid to the inputs of each layer over images.

    names     qualified names of layers;  images  (N, …), as `calibration.watch` takes them;  bits  1 to 16
    calibration, percentile  "minmax", or "percentile" or "mse" as in `ranges.fit`;  learned  as in `grids.InputGrid`
    returns   dict of layer name -> InputGrid, and dict of layer name -> reason for the layers that no input reached
    raises    ValueError for images that the model does not take, and inputs that are not finite
    """
    seen = {name: _Seen(name, calibration != "minmax") for name in names}
    # Look at the inputs without the grids that are there already.
    gates = {gate: gate.input for name in names if (gate := _find_gate(model, name)) is not None}
    try:
        for gate in gates:
            gate.input = nn.Identity()
        watch(model, images, seen)
    finally:
        for gate, grid in gates.items():
            gate.input = grid
    grids = {}
    for name, entry in seen.items():
        if entry.count:
            parameters = list(model.get_submodule(name).parameters())
            grid = entry.make_grid(bits, calibration, percentile, learned)
            if learned:  # the step size of a frozen layer's input is frozen too
                grid.growth.requires_grad_(any(parameter.requires_grad for parameter in parameters))
            grids[name] = grid.to(parameters[0].device)
    return grids, {name: "input that images do not reach" for name in names if name not in grids}


def place(model: nn.Module, grids: dict[str, InputGrid], images: torch.Tensor) -> tuple[nn.Module, dict[str, str]]:
    """Put grids before their layers, in place; a grid that is there already is replaced.

    grids    dict of layer name -> InputGrid;  images  one or more, to see that the model still runs
    returns  the model, or a Sequential around it, and dict of layer name -> reason for the layers that stay as they
             are, because their model reads them instead of calling them
    """
    root, new, refused = nn.ModuleList([model]), {}, {}
    layers = {name: model.get_submodule(name) for name in grids}
    for name, grid in grids.items():
        gate = _find_gate(model, name)
        if gate is not None:
            gate.input = grid.train(gate.training)
            continue
        new[name] = nn.Sequential(OrderedDict(input=grid, layer=layers[name])).train(layers[name].training)
    for name, gate in new.items():
        _replace(root, layers[name], gate)
    # Where the model no longer runs, put the grids one by one, and take those back that stop it.
    if new and not _runs(root[0], images):
        for name, gate in new.items():
            _replace(root, gate, layers[name])
        for name, gate in new.items():
            _replace(root, layers[name], gate)
            if not _runs(root[0], images):
                _replace(root, gate, layers[name])
                refused[name] = "input of a layer whose weight is read elsewhere"
    return root[0], refused


def remove(model: nn.Module, names: list[str]) -> nn.Module:
    """Remove the grids before layers, in place; return the model."""
    root = nn.ModuleList([model])
    for gate in [gate for name in names if (gate := _find_gate(model, name)) is not None]:
        _replace(root, gate, gate.layer)
    return root[0]


class _Seen:
    """A watcher of a layer's inputs: their range and, where `counted`, the count of each number, to 8 significant bits.

    The upper 16 bits of a float32 are its sign, its exponent and 7 bits of its fraction: counting takes one pass.
    """

    def __init__(self, name, counted):
        self.name, self.count, self.low, self.high = name, 0, math.inf, -math.inf
        self.counts = torch.zeros(KEYS, dtype=torch.int64) if counted else None

    def __call__(self, inputs, output):
        if not isinstance(inputs, torch.Tensor) or not inputs.is_floating_point() or not inputs.numel():
            return
        low, high = (float(end) for end in inputs.aminmax())
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError(f"layer {self.name!r} gets inputs that are not finite (nan or inf) from these images")
        self.count, self.low, self.high = self.count + inputs.numel(), min(self.low, low), max(self.high, high)
        for part in inputs.reshape(-1).split(2**18) if self.counts is not None else ():
            keys = part.float().view(torch.int32).bitwise_right_shift(16).bitwise_and_(KEYS - 1)
            self.counts += torch.bincount(keys, minlength=KEYS).cpu()

    def make_grid(self, bits: int, calibration: str, percentile: float, learned: bool) -> InputGrid:
        """Return the InputGrid for the inputs that were seen."""
        if self.counts is None:
            scale, point = ranges.fit(torch.tensor([[self.low, self.high]]), bits, False, "none")
        else:
            keys = self.counts.nonzero()[:, 0]
            counts = self.counts[keys][None].float()
            numbers = _middle_of(keys).clamp(self.low, self.high)[None]
            scale, point = ranges.fit(numbers, bits, False, calibration, percentile, counts)
        return InputGrid(scale.reshape(()), point.reshape(()), *ranges.code_range(bits, False), bits, learned)


def _middle_of(keys):
    """Return the float32 in the middle of those with these upper 16 bits."""
    signed = torch.where(keys < KEYS // 2, keys, keys - KEYS)
    numbers = (signed * KEYS + KEYS // 2).to(torch.int32).view(torch.float32)
    return numbers.masked_fill(keys % (KEYS // 2) == 0, 0.0)


def _find_gate(model, name):
    """Return the Sequential (input, layer) that a layer of this name is in, or None."""
    path, _, child = name.rpartition(".")
    parent = model.get_submodule(path)
    is_pair = child == "layer" and isinstance(parent, nn.Sequential) and list(parent._modules) == ["input", "layer"]
    return parent if is_pair and isinstance(parent.input, InputGrid) else None


def _replace(root, old, new):
    """Put a module in the place of another, wherever that is used."""
    for module in [part for part in root.modules() if part is not new]:
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new


def _runs(model, images):
    try:
        watch(model, images[:1], {})
    except (ValueError, AttributeError):
        return False
    return True
