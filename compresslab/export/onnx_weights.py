"""Weights in an ONNX graph as integers or codebook entries, unpacked by standard operations.

The exporter of torch writes all weights in fp32, under their names, or transposed under another name; where a
BatchNorm follows a convolution, its factor for each channel is multiplied in. So each weight is found by its name or
its values and written as steps * scale, whatever the scale has become:

    grid      (codes - zero_point) * scale    DequantizeLinear
    codebook  centroids[codes] * factor       Cast, Gather, Mul
    half      values * factor                 Cast, Mul
"""

from dataclasses import dataclass

import numpy as np
import torch

from compresslab.export.layer_forms import LayerForm
from compresslab.export.runtime import import_optional
from compresslab.weights.codebooks import Codebook
from compresslab.weights.grids import Grid, Half

CLOSE = 1e-5  # by how much of its largest value a weight may differ from steps * scale: rounding in fp32
INTEGERS = (("INT4", -8, 7), ("UINT4", 0, 15), ("INT8", -128, 127), ("UINT8", 0, 255))
INTEGERS += (("INT16", -(2**15), 2**15 - 1), ("UINT16", 0, 2**16 - 1))


@dataclass(frozen=True)
class Stored:
    """Describe how a weight lies in the file.

    initializer  name of the fp32 tensor that nodes read, made by operations unless it is stored in fp32
    words        for people: "int8, a scale for each channel"
    bytes        of everything that makes it
    source       name of the tensor that holds its codes; the initializer itself for fp32
    scale        float32 () or (channels,): of a grid, else None;  axis  of its channels
    """

    initializer: str
    words: str
    bytes: int
    source: str
    scale: np.ndarray | None = None
    axis: int = 0


class Graph:
    """An ONNX graph whose weights and inputs of layers are rewritten in place.

    model  onnx.ModelProto
    """

    def __init__(self, model):
        self.model, self.graph = model, model.graph
        self.onnx = import_optional("onnx")
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}

    def read(self, name: str) -> np.ndarray:
        """Return the values of an initializer."""
        return self.onnx.numpy_helper.to_array(self.tensors[name])

    def add(self, name: str, values: np.ndarray, kind: str | None = None) -> int:
        """Add an initializer, in ONNX's type `kind` or numpy's; return its bytes."""
        if kind is None:
            tensor = self.onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)
        else:
            dtype = self.onnx.helper.tensor_dtype_to_np_dtype(getattr(self.onnx.TensorProto, kind))
            tensor = self.onnx.numpy_helper.from_array(np.ascontiguousarray(values).astype(dtype), name)
        self.graph.initializer.append(tensor)
        self.tensors[name] = tensor
        return len(tensor.raw_data)

    def drop(self, name: str) -> None:
        """Remove an initializer."""
        self.graph.initializer.remove(self.tensors.pop(name))

    def add_node(self, kind: str, inputs: list, output: str, before: object = None, **attributes: object) -> None:
        """Add a node, named as its output, before another one; by default before all others."""
        node = self.onnx.helper.make_node(kind, inputs, [output], name=output, **attributes)
        places = (place for place, entry in enumerate(self.graph.node) if before is None or entry == before)
        self.graph.node.insert(next(places, 0), node)

    def list_readers(self, name: str) -> list:
        """Return the nodes that read a tensor."""
        return [node for node in self.graph.node if name in node.input]

    def find_weight(self, form: LayerForm) -> tuple[str, bool] | None:
        """Return the initializer of a layer's weight, and whether it lies transposed; None if there is none."""
        weight = form.weight.cpu().numpy()
        if form.tensor in self.tensors and tuple(self.tensors[form.tensor].dims) == weight.shape:
            return form.tensor, False
        for name, tensor in self.tensors.items():
            if tensor.data_type == self.onnx.TensorProto.FLOAT:
                for transposed, values in ((False, weight), (True, weight.T)):
                    if tuple(tensor.dims) == values.shape and np.array_equal(self.read(name), values):
                        return name, transposed
        return None


def store_weight(graph: Graph, form: LayerForm) -> Stored:
    """Write a layer's weight in the form that its rounding allows; fp32 where ONNX has none."""
    place = graph.find_weight(form)
    if place is None:
        size = 4 * form.weight.numel()
        return Stored("", "fp32, arranged anew by the exporter", size, "")
    name, transposed = place
    values = graph.read(name)
    shared = len(graph.list_readers(name)) > 1
    unpacked = "fp32" if values.dtype == np.float32 else str(values.dtype)
    in_fp32 = Stored(name, unpacked + ", several operations read it" * shared, values.nbytes, name)
    if shared or not form.weight.numel() or values.dtype != np.float32:
        return in_fp32
    writers = {Grid: _store_grid, Codebook: _store_codebook, Half: _store_half}
    writer = next((write for kind, write in writers.items() if isinstance(form.rounding, kind)), None)
    stored = writer and writer(graph, form, name, values, transposed)
    return stored or in_fp32


def _store_grid(graph, form, name, values, transposed):
    """Write codes, scale and zero point, and a DequantizeLinear."""
    grid = form.rounding
    integers = INTEGERS if form.input_grid is None else INTEGERS[2:]  # integer kernels read 8 bits
    kind = next((kind for kind, low, high in integers if low <= grid.low and grid.high <= high), None)
    if kind is None or (grid.zero_point % 1).any():
        return None
    codes, points = grid.codes(form.weight).cpu().numpy(), grid.zero_point.cpu().numpy()
    axis = _find_channels(grid.scale, form.weight)
    steps = (codes - points).astype(np.float64)
    codes, steps = (codes.T, steps.T) if transposed else (codes, steps)
    axis = codes.ndim - 1 - axis if transposed else axis
    scale = _factor(values, steps, axis)
    if scale is None:
        return None
    points = np.broadcast_to(points.reshape(-1), scale.shape).astype(np.int64)
    if (scale < 0).any():  # of a BatchNorm that turns a channel around: its codes are turned around as well
        flipped = _along(scale < 0, axis, codes.ndim)
        codes = np.where(flipped, grid.low + grid.high - codes, codes)
        points, scale = np.where(scale < 0, grid.low + grid.high - points, points), np.abs(scale)
    single = (scale == scale[0]).all() and (points == points[0]).all()
    scale, points = (scale[0], points[0]) if single else (scale, points)
    if points.min() < grid.low or points.max() > grid.high:
        return None
    size = graph.add(f"{name}.codes", codes, kind) + graph.add(f"{name}.scale", scale.astype(np.float32))
    size += graph.add(f"{name}.zero_point", points, kind)
    graph.drop(name)
    inputs = [f"{name}.codes", f"{name}.scale", f"{name}.zero_point"]
    graph.add_node("DequantizeLinear", inputs, name, **({} if single else {"axis": axis}))
    words = f"{kind.lower()}, {'one scale' if single else 'a scale for each channel'}"
    return Stored(name, words, size, inputs[0], scale.astype(np.float32), axis)


def _store_codebook(graph, form, name, values, transposed):
    """Write assignments and centroids, and the operations that look them up."""
    book = form.rounding
    codes = book.assignments.cpu().numpy()
    centroids = book.centroids.detach().float().cpu().numpy()
    if len(centroids) > 256:
        return None
    steps = centroids[codes].astype(np.float64)
    if form.zeros and (form.weight.cpu().numpy() != centroids[codes]).any():  # a mask lies over the codebook
        zero = np.flatnonzero(centroids == 0)
        if not len(zero) and len(centroids) == 256:
            return None
        centroids = centroids if len(zero) else np.append(centroids, np.float32(0))
        codes = np.where(form.weight.cpu().numpy() == 0, zero[0] if len(zero) else len(centroids) - 1, codes)
        steps = centroids[codes].astype(np.float64)
    codes, steps = (codes.T, steps.T) if transposed else (codes, steps)
    factor = _factor(values, steps, values.ndim - 1 if transposed else 0)
    if factor is None:
        return None
    kind = "UINT4" if len(centroids) <= 16 else "UINT8"
    size = graph.add(f"{name}.codes", codes, kind) + graph.add(f"{name}.centroids", centroids)
    graph.drop(name)
    size += _multiply(graph, name, factor, values.ndim - 1 if transposed else 0, values.ndim)
    entries = f"{name}.unscaled" if (factor != 1).any() else name
    graph.add_node("Gather", [f"{name}.centroids", f"{name}.index"], entries)
    graph.add_node("Cast", [f"{name}.codes"], f"{name}.index", to=graph.onnx.TensorProto.INT32)
    return Stored(name, f"{kind.lower()} into a codebook of {len(centroids)}", size, f"{name}.codes")


def _store_half(graph, form, name, values, transposed):
    """Write the values in 16 bits, and a Cast."""
    steps = form.weight.cpu().numpy()
    steps, axis = (steps.T, values.ndim - 1) if transposed else (steps, 0)
    factor = _factor(values, steps.astype(np.float64), axis)
    if factor is None:
        return None
    kind = "FLOAT16" if form.rounding.dtype == torch.float16 else "BFLOAT16"
    size = graph.add(f"{name}.codes", steps, kind)
    graph.drop(name)
    size += _multiply(graph, name, factor, axis, values.ndim)
    output = f"{name}.unscaled" if (factor != 1).any() else name
    graph.add_node("Cast", [f"{name}.codes"], output, to=graph.onnx.TensorProto.FLOAT)
    return Stored(name, kind.lower(), size, f"{name}.codes")


def _multiply(graph, name, factor, axis, dimensions):
    """Add the product of unscaled weights and a factor for each channel, where it is not 1; return its bytes."""
    if (factor == 1).all():
        return 0
    size = graph.add(f"{name}.factor", _along(factor, axis, dimensions).astype(np.float32))
    graph.add_node("Mul", [f"{name}.unscaled", f"{name}.factor"], name)
    return size


def _find_channels(scale, weight):
    """Return the axis along which a grid's scales differ; 0 for a single scale."""
    sizes = (1,) * (weight.dim() - scale.dim()) + tuple(scale.shape)
    return next((axis for axis, size in enumerate(sizes) if size > 1), 0)


def _along(vector, axis, dimensions):
    """Return a vector as an array that broadcasts along an axis."""
    return np.asarray(vector).reshape([-1 if place == axis else 1 for place in range(dimensions)])


def _factor(values, steps, axis):
    """Find the factor for each index of `axis` for which steps * factor are the values; None if there is none."""
    rest = tuple(place for place in range(values.ndim) if place != axis)
    squares = (steps**2).sum(rest)
    factor = np.where(squares > 0, (values * steps).sum(rest) / np.where(squares > 0, squares, 1), 1.0)
    rounded = factor.astype(np.float32)
    common = np.float32(np.median(rounded[squares > 0])) if (squares > 0).any() else np.float32(1)
    for candidate in (np.full_like(rounded, common), np.where(squares > 0, rounded, common)):
        error = np.abs(values - steps * _along(candidate, axis, values.ndim)).max(initial=0)
        if error <= CLOSE * np.abs(values).max(initial=0):
            return candidate
    return None
