"""Take what compression put on each layer off a copy of the model, so that other exporters see a plain one."""

from dataclasses import dataclass

import torch
from torch import nn

from compresslab import checks
from compresslab.weights.codebooks import Codebook
from compresslab.weights.grids import Grid, Half, InputGrid
from compresslab.weights.layers import find_matrices, plain, unsupported
from compresslab.weights.masks import Rounding, get_mask, get_rounding

MANY_ZEROS = 0.05  # share from which zeros are a saving


@dataclass(frozen=True)
class LayerForm:
    """Name a layer's weight, and what it carries.

    layer       qualified name as its owner knows it;  tensor  name of its weight in the plain copy
    weight      effective weight, detached
    rounding    Grid, Half, Codebook, or None
    input_grid  InputGrid that rounds its inputs, or None;  has_mask  True where a mask holds zeros in place
    """

    layer: str
    tensor: str
    weight: torch.Tensor
    rounding: Rounding | None = None
    input_grid: InputGrid | None = None
    has_mask: bool = False

    @property
    def zeros(self) -> float:
        """Return the share of weights that are 0."""
        return 1 - self.weight.count_nonzero().item() / max(1, self.weight.numel())

    @property
    def masked(self) -> bool:
        """Return whether zeros are a saving: a grid has its zeros anyway."""
        return self.has_mask or (self.rounding is None and self.zeros >= MANY_ZEROS)

    @property
    def saving(self) -> str:
        """Describe what compression put on the layer; empty for nothing."""
        parts = []
        if isinstance(self.rounding, Grid):
            parts.append(f"{self.rounding.bits}-bit grid")
        elif isinstance(self.rounding, Codebook):
            parts.append(f"codebook of {len(self.rounding.centroids)}")
        elif isinstance(self.rounding, Half):
            parts.append(str(self.rounding.dtype).removeprefix("torch."))
        if self.masked:
            parts.append(f"{self.zeros:.0%} zeros")
        if self.input_grid is not None:
            parts.append(f"{self.input_grid.bits}-bit inputs")
        return ", ".join(parts)


def split_forms(model: nn.Module, inputs_off: bool = True) -> tuple[nn.Module, list[LayerForm]]:
    """Return a plain copy of a model in evaluation mode, without roundings, and what each layer carried.

    The copy's weights are the effective ones. Grids before layers are taken out of it unless `inputs_off` is False.
    """
    copy = plain(checks.module("model", model)).eval()
    names, modules = {module: name for name, module in model.named_modules()}, dict(model.named_modules())
    tables = [name for name in unsupported(model, matrices=True) if isinstance(modules[name], nn.Embedding)]
    wanted, forms = [*find_matrices(model), *tables], []
    for layer, (module, tensor) in (find_matrices(model, wanted) if wanted else {}).items():
        name = names[module]
        path, _, child = name.rpartition(".")
        gate, grid = modules[path], None
        if child == "layer" and list(gate._modules) == ["input", "layer"] and isinstance(gate.input, InputGrid):
            layer, grid = path, gate.input
            if inputs_off:
                copy.get_submodule(path).input = nn.Identity()
        weight = getattr(copy.get_submodule(name), tensor).detach()
        marks = get_rounding(module, tensor), grid, get_mask(module, tensor) is not None
        forms.append(LayerForm(layer or "model", f"{name}.{tensor}".lstrip("."), weight, *marks))
    return copy, forms
