"""ONNX files: the plain model through torch's exporter, then weights and inputs of layers as integers.

A layer with a grid on its weight and on its inputs is written as QuantizeLinear and DequantizeLinear around the fp32
operation ("QDQ"), which ONNX Runtime replaces by an integer kernel: Jacob et al. 2018, arXiv:1712.05877. Its bias is
rounded to int32 in steps of both scales' product, as those kernels want it.
"""

import contextlib
import logging
import re
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compresslab import calibration, checks, train
from compresslab.export.layer_forms import split_forms
from compresslab.export.onnx_weights import Graph, store_weight
from compresslab.export.report import LayerReport, Report, compare_outputs
from compresslab.export.runtime import import_optional, list_kernels, run_onnx
from compresslab.weights.layers import as_inputs
from compresslab.writing import write_file

OPSET = 21  # the first with 4-bit integers
LIMIT = 2**31 - 2**20  # bytes of a protobuf message
TOLERANCE = 1e-3  # of the largest output, where all arithmetic is fp32
ROUGH = 0.1  # the same, where inputs are rounded: a sum that rounds the other way moves an input by a whole step
INTEGER_KERNELS = ("QGemm", "QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger")
LAYERS = ("Gemm", "Conv", "MatMul", "ConvTranspose")  # operations that read a weight


def onnx(model: nn.Module, path: str | Path, images: torch.Tensor, tolerance: float | None = None) -> Report:
    """Write a model as an ONNX file that takes batches of any size, and compare it with the model in ONNX Runtime.

    Removed neurons are gone from the file, a factorized layer is two layers. Grids of weights become int4, int8 or
    int16; with 8-bit grids on the inputs as well, the runtime computes in integers. Codebooks and 16-bit floats shrink
    the file alone; zeros of a mask are stored like any other number.

    model      any nn.Module that takes one tensor and returns one, a row for each input
    path       the file; it is replaced as a whole, and stays as it was where the export fails
    images     (N, …): real inputs, on which the outputs are compared
    tolerance  largest allowed difference of the outputs; by default a thousandth of the largest output, or a tenth
               where the grids on inputs round
    returns    Report
    raises     ImportError that says what to install; ValueError for a model that cannot be exported (the layer is
               named), images that it does not take, and outputs beyond the tolerance
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        import_optional(name)
    checks.module("model", model)
    images = calibration.checked_images(images)
    expected = train.evaluate(model, images, any_outputs=True)
    copy, forms = split_forms(model)
    inputs = as_inputs(copy, images)
    graph = Graph(_export(copy.cpu(), inputs.cpu()))
    stored = [store_weight(graph, form) for form in forms]
    for form, weight in zip(forms, stored, strict=True):
        if form.input_grid is not None:
            _round_inputs(graph, form, weight)
    content = _serialize(graph.model)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "trial.onnx"
        trial.write_bytes(content)
        outputs, kernels = run_onnx(trial, inputs), list_kernels(trial)
    error, agreement = compare_outputs(outputs, expected)
    _check_error(error, expected, tolerance, any(form.input_grid is not None for form in forms))
    write_file(path, content)
    layers = [_report_layer(form, weight, kernels) for form, weight in zip(forms, stored, strict=True)]
    return Report(str(path), len(content), error, agreement, tuple(layers))


def _export(copy, images):
    """Return torch's ONNX model of a plain model; raises ValueError that names the layer which stops it."""
    pair = images[[0, -1]]
    with warnings.catch_warnings(), _quiet_logs():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(copy, (pair,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        except Exception as error:
            raise ValueError(f"torch.export cannot follow the model's forward: {checks.reason(error)}") from error
        try:
            return _convert(program)
        except Exception as error:
            operation = re.search(r"target=torch\.ops\.([\w.]+)", f"{error} {error.__cause__ or ''}")
            reason = f"uses {operation.group(1)}" if operation else f"is refused: {checks.reason(error)}"
            where = _find_refused(copy, pair)
            raise ValueError(f"{where} {reason}; the ONNX exporter of torch has no operation for it") from error


def _convert(program):
    return torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False).model_proto


@contextlib.contextmanager
def _quiet_logs():
    """Keep the exporters' own logs from the page: what matters of them is in the error."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _find_refused(copy, pair):
    """Name the innermost module that cannot be converted by itself, in words."""
    inputs, names = {}, {module: name for name, module in copy.named_modules()}
    handles = [
        module.register_forward_pre_hook(lambda module, arguments: inputs.setdefault(module, arguments))
        for module in names
    ]
    with torch.no_grad():
        copy(pair)
    for handle in handles:
        handle.remove()
    module = refused = copy
    while module is not None:
        refused = module
        module = next(
            (part for part in module.children() if part in inputs and not _converts(part, inputs[part])), None
        )
    return f"layer {names[refused]!r} ({type(refused).__name__})" if names[refused] else "the model's own forward"


def _converts(module, inputs):
    try:
        _convert(torch.export.export(module, inputs))
    except Exception:
        return False
    return True


def _round_inputs(graph, form, stored):
    """Put QuantizeLinear and DequantizeLinear before the operation of a layer, and round its bias to int32."""
    grid = form.input_grid
    nodes = [node for node in graph.list_readers(stored.initializer) if node.op_type in LAYERS]
    if not nodes or grid.scale.numel() != 1 or float(grid.zero_point) % 1 or grid.low < 0:
        reason = "has a grid on its inputs that ONNX cannot hold"
        raise ValueError(f"layer {form.layer!r} {reason}; quantize it without images= for an export")
    scale, point = np.float32(grid.step_size.item()), int(grid.zero_point)
    kind, most = ("UINT8", 255) if grid.high <= 255 else ("UINT16", 2**16 - 1)
    name = f"{stored.initializer}.input"
    graph.add(f"{name}.scale", scale)
    graph.add(f"{name}.zero_point", np.array(point), kind)
    for count, node in enumerate(nodes):
        output, source = f"{name}.{count}", node.input[0]
        node.input[0] = output
        if grid.high < most:  # fewer bits than the integer has
            ends = np.float32([(grid.low - point) * scale, (grid.high - point) * scale])
            for end, value in zip(("low", "high"), ends, strict=True):
                if f"{name}.{end}" not in graph.tensors:
                    graph.add(f"{name}.{end}", value)
            graph.add_node("Clip", [source, f"{name}.low", f"{name}.high"], f"{output}.clipped", before=node)
            source = f"{output}.clipped"
        pair = [f"{name}.scale", f"{name}.zero_point"]
        graph.add_node("QuantizeLinear", [source, *pair], f"{output}.codes", before=node)
        graph.add_node("DequantizeLinear", [f"{output}.codes", *pair], output, before=node)
        if stored.scale is not None and node.op_type in ("Gemm", "Conv") and len(node.input) > 2 and node.input[2]:
            _round_bias(graph, node, scale * stored.scale)


def _round_bias(graph, node, scale):
    """Write a node's bias as int32 in steps of `scale`, () or (channels,)."""
    name = node.input[2]
    if name not in graph.tensors or len(graph.list_readers(name)) > 1:
        return
    bias = graph.read(name)
    if bias.dtype != np.float32 or not np.all(scale):
        return
    codes = np.round(bias.astype(np.float64) / scale)
    if np.abs(codes).max(initial=0) >= 2**31 - 1:
        return
    graph.drop(name)
    graph.add(f"{name}.codes", codes, "INT32")
    graph.add(f"{name}.scale", np.float32(scale))
    axis = {"axis": 0} if np.ndim(scale) else {}
    graph.add_node("DequantizeLinear", [f"{name}.codes", f"{name}.scale"], name, **axis)


def _serialize(model):
    """Return the bytes of an ONNX model, without the exporter's notes on each node."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:], model.graph.metadata_props[:], model.metadata_props[:]
    size = model.ByteSize()
    if size > LIMIT:
        raise ValueError(f"the model takes {size:,} bytes; an ONNX file holds up to {LIMIT:,}")
    return model.SerializeToString()


def _check_error(error, expected, tolerance, rounded):
    """Refuse outputs that differ from torch's by more than the tolerance."""
    largest = expected.abs().max().item()
    share = ROUGH if rounded else TOLERANCE
    limit = share * largest if tolerance is None else checks.real("tolerance", tolerance, 0, float("inf"))
    if not error <= limit:
        difference = f"ONNX Runtime's outputs differ from torch's by {error:.3g}"
        raise ValueError(f"{difference}; tolerance is {limit:.3g}. Nothing was written")


def _report_layer(form, stored, kernels):
    """Say what became of a layer."""
    kernel = _find_kernel(stored, kernels)
    dense = 4 * form.weight.numel()
    share = f"{stored.bytes / dense:.0%} of fp32" if dense else "no weights"
    lost_zeros = f", {form.zeros:.0%} zeros stored in full" if form.masked else ""
    if kernel in INTEGER_KERNELS:
        speed = f"computed in int8 by {kernel}"
    elif kernel == "MatMulNBits":
        speed = "weights unpacked as they are read, by MatMulNBits, which may round inputs to 8 bits"
    else:
        when = "at every call" if "DequantizeLinear" in kernels.get(stored.source, []) else "when the file is opened"
        unpacked = "" if stored.source == stored.initializer else f"weights unpacked {when}, "
        speed = f"{unpacked}computed in fp32 by {kernel or 'a joined operation'}"
    size = f"{stored.words}: {share}{lost_zeros}"
    return LayerReport(
        form.layer, tuple(form.weight.shape), form.saving, stored.words, stored.bytes, dense, kernel, size, speed
    )


def _find_kernel(stored, kernels):
    """Return the operation that reads a weight in the runtime's graph; empty where it has been joined with another."""
    # The runtime may store a weight anew under a longer name: "fc1.weight.codes_T".
    names = [name for name in kernels if stored.source and f"{name}_".startswith(f"{stored.source}_")]
    operations = [kind for name in [*names, stored.initializer] for kind in kernels.get(name, [])]
    return next((kind for kind in operations if kind not in ("DequantizeLinear", "Cast", "Gather", "Mul")), "")
