"""Exports that need no other runtime: torch.export's program, and plain tensors with a JSON beside them."""

import io
import json
import warnings
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save
from torch import nn

from compresslab import calibration, checks, train
from compresslab.export.layer_forms import split_forms
from compresslab.export.report import LayerReport, Report, compare_outputs
from compresslab.weights.codebooks import Codebook
from compresslab.weights.grids import Grid, Half
from compresslab.weights.layers import as_inputs, effective_state
from compresslab.writing import write_file

FORMULAS = {
    "grid": "(codes - zero_point) * scale",
    "codebook": "centroids[codes], times mask where there is one",
    "half": "values, widened to float32",
}


def torch_export(model: nn.Module, path: str | Path, images: torch.Tensor) -> Report:
    """Write a model as a program of torch.export (.pt2), which torch.export.load and ExecuTorch's tools read.

    Removed neurons are gone and a factorized layer is two; roundings and zeros are baked into fp32 weights, so of
    their size and speed nothing survives here. Grids on inputs stay, as operations of the program.

    model    any nn.Module that takes one tensor and returns one, a row for each input
    images   (N, …): real inputs, on which the outputs of the file are compared with the model's
    returns  Report
    raises   ValueError for a forward that torch.export cannot follow, and images that the model does not take
    """
    checks.module("model", model)
    images = calibration.checked_images(images)
    expected = train.evaluate(model, images, any_outputs=True)
    plain_copy, forms = split_forms(model, inputs_off=False)
    inputs = as_inputs(plain_copy, images)
    pair = inputs[[0, -1]]  # the program is saved with them
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(plain_copy, (pair,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
            torch.export.save(program, file)
        except Exception as error:
            raise ValueError(f"torch.export cannot follow the model's forward: {checks.reason(error)}") from error
        program = torch.export.load(io.BytesIO(file.getvalue())).module()
    with torch.no_grad():
        outputs = torch.cat([program(part) for part in inputs.split(256)])
    error, agreement = compare_outputs(outputs.float(), expected)
    write_file(path, file.getvalue())
    layers = [_report_dense(form) for form in forms]
    return Report(str(path), len(file.getvalue()), error, agreement, tuple(layers))


def _report_dense(form):
    size = form.weight.numel() * 4
    lost = f"{form.saving} baked in, fp32" if form.saving else "fp32"
    shape = tuple(form.weight.shape)
    return LayerReport(form.layer, shape, form.saving, "fp32", size, size, "", lost, "computed in fp32")


def safetensors(model: nn.Module, folder: str | Path) -> Report:
    """Write a model's tensors as model.safetensors and say in model.json how to read them; no class, no program.

    A weight on a grid is stored as NAME.codes (of 8, 16 or 32 bits), NAME.scale and NAME.zero_point; one with a
    codebook as NAME.codes and NAME.centroids; 16-bit floats as they are; all else under its name in its own dtype.
    model.json gives each weight's formula.

    folder   made if it is not there; other files in it are left alone
    returns  Report whose check is that the formulas give every weight back exactly
    raises   ValueError for a path that is a file
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder is {str(folder)!r}, which is a file; give a folder, or a path where nothing is")
    state = {name: value.detach().cpu().clone().contiguous() for name, value in effective_state(model).items()}
    _, forms = split_forms(model)
    tensors, how = dict(state), {}
    sizes = {name: value.nbytes for name, value in state.items()}
    for form in forms:
        parts, kind = _split_tensor(form)
        if parts and torch.equal(_join_tensor(kind, parts), state[form.tensor]):
            del tensors[form.tensor]
            tensors.update({f"{form.tensor}.{part}": value.contiguous() for part, value in parts.items()})
            names = [f"{form.tensor}.{part}" for part in parts]
            how[form.tensor] = {"kind": kind, "value": FORMULAS[kind], "parts": names}
            sizes[form.tensor] = sum(value.nbytes for value in parts.values())
    modules = {name: str(module) for name, module in model.named_modules() if name and not list(module.children())}
    content = {"format": "compresslab plain tensors", "weights": how, "modules": modules}
    content = {"model.safetensors": save(tensors), "model.json": json.dumps(content, indent=1).encode()}
    read = _join_tensors(load(content["model.safetensors"]), how)
    if not all(torch.equal(read[name], value) for name, value in state.items()):
        raise ValueError("the tensors read back differ from the model's; is a weight nan? Nothing was written")
    folder.mkdir(parents=True, exist_ok=True)
    for name, blob in content.items():
        write_file(folder / name, blob)
    layers = tuple(_report_plain(form, sizes[form.tensor], how) for form in forms)
    return Report(str(folder), sum(map(len, content.values())), 0.0, 1.0, layers)


def read_safetensors(folder: str | Path) -> dict[str, torch.Tensor]:
    """Read what `safetensors` wrote: a dict of name -> tensor, as of layers.plain(model).state_dict()."""
    weights = json.loads((Path(folder) / "model.json").read_text())["weights"]
    return _join_tensors(load_file(Path(folder) / "model.safetensors"), weights)


def _join_tensors(tensors, weights):
    """Put the weights that are stored in parts together again."""
    for name, entry in weights.items():
        parts = {part.removeprefix(f"{name}."): tensors.pop(part) for part in entry["parts"]}
        tensors[name] = _join_tensor(entry["kind"], parts)
    return tensors


def _split_tensor(form):
    """Return the parts that a weight is stored in, and their kind; none for a weight without a rounding."""
    rounding = form.rounding
    if isinstance(rounding, Grid):
        codes = rounding.codes(form.weight)
        widths = ((torch.int8, -128, 127), (torch.uint8, 0, 255), (torch.int16, -(2**15), 2**15 - 1))
        widths += ((torch.int32, rounding.low, rounding.high),)
        dtype = next(kind for kind, low, high in widths if low <= rounding.low and rounding.high <= high)
        parts = {"codes": codes.to(dtype), "scale": rounding.step_size.detach(), "zero_point": rounding.zero_point}
        return {name: value.cpu() for name, value in parts.items()}, "grid"
    if isinstance(rounding, Codebook):
        parts = {"codes": rounding.assignments.cpu(), "centroids": rounding.centroids.detach().cpu()}
        if form.zeros and not torch.equal(_join_tensor("codebook", parts), form.weight.cpu()):
            parts["mask"] = (form.weight != 0).cpu()
        return parts, "codebook"
    if isinstance(rounding, Half):
        return {"values": form.weight.to(rounding.dtype).cpu()}, "half"
    return {}, ""


def _join_tensor(kind, parts):
    """Return the weight that parts stand for."""
    if kind == "grid":
        return (parts["codes"].to(torch.int32) - parts["zero_point"]) * parts["scale"]
    if kind == "codebook":
        value = parts["centroids"][parts["codes"].long()]
        return value * parts["mask"] if "mask" in parts else value
    return parts["values"].float()


def _report_plain(form, size, how):
    dense = 4 * form.weight.numel()
    stored = how[form.tensor]["kind"] if form.tensor in how else "fp32"
    words = f"{stored}: {size / dense:.0%} of fp32" if dense else stored
    shape, speed = tuple(form.weight.shape), "for the reader to decide"
    return LayerReport(form.layer, shape, form.saving, stored, size, dense, "", words, speed)
