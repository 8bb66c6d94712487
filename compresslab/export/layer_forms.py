"""What compression put on each layer, taken off a copy of the model so that other exporters see a plain one."""

from dataclasses import dataclass

import torch
from torch import nn

from compresslab import calibration, checks
from compresslab.weights.codebooks import Codebook
from compresslab.weights.grids import Grid, Half, InputGrid
from compresslab.weights.layers import as_inputs, duplicate, plain, unsupported, weight_layers
from compresslab.weights.masks import Rounding, get_mask, get_rounding

MANY_ZEROS = 0.05  # share from which zeros are a saving


@dataclass(frozen=True)
class LayerForm:
    """A layer and what it carries.

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
    originals, forms = dict(model.named_modules()), []
    for name in weight_layers(model):
        path, _, child = name.rpartition(".")
        gate = originals[path]
        is_gate = child == "layer" and list(gate._modules) == ["input", "layer"] and isinstance(gate.input, InputGrid)
        if is_gate and inputs_off:
            copy.get_submodule(path).input = nn.Identity()
        tensor = f"{name}.weight" if name else "weight"
        weight = copy.get_submodule(name).weight.detach()
        layer, grid = (path, gate.input) if is_gate else (name, None)
        marks = get_rounding(originals[name]), grid, get_mask(originals[name]) is not None
        forms.append(LayerForm(layer or "model", tensor, weight, *marks))
    return copy, forms


def list_other_layers(model: nn.Module) -> dict[str, tuple[str, int]]:
    """Return the layers whose weights no technique compresses: dict of name -> (class, bytes in fp32)."""
    modules = dict(model.named_modules())
    sizes = {name: sum(weight.numel() for weight in modules[name].parameters(False)) for name in unsupported(model)}
    return {name: (type(modules[name]).__name__, 4 * size) for name, size in sizes.items()}


def run_model(model: nn.Module, images: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """Compute a model's outputs for images in evaluation mode; the model is left as it was.

    raises  ValueError for images that it does not take, and outputs that are no single tensor of a row for each image
    """
    images = as_inputs(model, calibration.checked_images(images))
    twin = duplicate(model).eval()
    with torch.no_grad():
        outputs = [calibration.run(twin, part) for part in images.split(batch_size)]
    first = outputs[0]
    if not isinstance(first, torch.Tensor) or not first.dim() or len(first) != min(len(images), batch_size):
        kind = tuple(first.shape) if isinstance(first, torch.Tensor) else f"a {type(first).__name__}"
        wanted = f"{min(len(images), batch_size)} images; an export takes one tensor, a row for each"
        raise ValueError(f"the model returned {kind} for {wanted}")
    return torch.cat(outputs).float()
