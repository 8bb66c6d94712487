"""The truth about speed: what runs a compressed network faster than the best dense runtime does.

    python -m benchmarks.runtimes [--network lenet_300_100] [--csv runtimes.csv] [--picture roofline.png]

Dense, masked, removed, low-rank, CSR, torch's and torchao's int8, and ONNX Runtime in fp32 and int8, at batches of 1
and of 256, on one thread. Each is timed against the fastest dense runtime, in turns (A B B A), so that a slow moment of
the machine meets both; "faster" and "slower" need 2% and an interval that leaves out 1.

The last columns and the picture say what a call waits for most. It reads its weights (bytes), multiplies (arithmetic)
and starts its layers (dispatch); the time of each follows from what one thread reaches here. Williams, Waterman and
Patterson 2009, doi:10.1145/1498765.1498785 (the roofline).
"""

import argparse
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn

import compresslab as cl

BATCHES = (1, 256)
COLOURS = {"bytes": "#0072B2", "arithmetic": "#009E73", "dispatch": "#D55E00"}


@dataclass(frozen=True)
class Contender:
    """Hold a model (None where it is not installed), and what a call of it does.

    macs    multiply-accumulates an image, zeros included;  weight_bytes  that it reads
    layers  that it starts;  runtime  which starts them;  dense  whether nothing is compressed
    """

    model: nn.Module | None
    macs: int
    weight_bytes: int
    layers: int
    runtime: str = "torch"
    dense: bool = False


@dataclass(frozen=True)
class Machine:
    """Hold what one thread reaches in fp32: operations and bytes a second; seconds of starting a layer, by runtime."""

    flops: float
    bandwidth: float
    dispatch: dict

    def find_bound(self, contender, batch, moved):
        """Return which of the three times is the largest: "bytes", "arithmetic" or "dispatch"."""
        times = {
            "bytes": moved / self.bandwidth,
            "arithmetic": 2 * batch * contender.macs / self.flops,
            "dispatch": contender.layers * self.dispatch[contender.runtime],
        }
        return max(times, key=times.get)


class SparseLinear(nn.Module):
    """A Linear layer whose weight lies in CSR, as torch multiplies it."""

    def __init__(self, layer):
        super().__init__()
        self.weight, self.bias = layer.weight.detach().to_sparse_csr(), layer.bias.detach()

    def forward(self, inputs):
        """Return inputs (N, in) times the weight, plus the bias."""
        return (self.weight @ inputs.T).T + self.bias

    def __deepcopy__(self, memo):
        return self  # torch cannot copy CSR tensors; they never change here


def replace_linear(model, make):
    """Return a plain copy of a model whose Linear layers are made anew by `make`."""
    model = cl.layers.plain(model).eval()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, make(child))
    return model


def torch_int8(model):
    """Return the model with torch's own dynamic int8, or None where torch no longer has it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.ao.quantization.quantize_dynamic(cl.layers.plain(model).eval(), {nn.Linear}, dtype=torch.qint8)
    except (AttributeError, ImportError, RuntimeError):
        return None


def torchao_int8(model):
    """Return the model with torchao's dynamic int8, or None where it is not installed."""
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError:
        return None
    copy = cl.layers.plain(model).eval()
    quantize_(copy, Int8DynamicActivationInt8WeightConfig())
    return copy


def make_contenders(network, folder):
    """Return a dict of name -> Contender."""
    data = cl.data.load("mnist")
    images, test = data.train.images[:1000], data.test.images[:256]
    net = cl.models.pretrained(network, "mnist")

    def use_torch(model, source=None, **settings):
        macs = cl.measure.macs(source or model, (1, 28, 28))
        layers = len(cl.layers.weight_layers(source or model))
        return Contender(model, macs, 0 if model is None else count_bytes(model), layers, **settings)

    def use_runtime(name, model, **settings):
        report = cl.export.onnx(model, folder / f"{name}.onnx", test)
        runner = cl.export.OnnxModel(folder / f"{name}.onnx", exact=False)
        macs, layers = cl.measure.macs(model, (1, 28, 28)), len(cl.layers.weight_layers(model))
        return Contender(runner, macs, report.bytes, layers, "ONNX Runtime", **settings)

    masked = cl.zero_pruning.prune(net, sparsity=0.9)
    removed = cl.activation_pruning.prune(net, images, sparsity=0.5)
    factors = cl.low_rank.factorize(net, rank=16)
    both = cl.quantization.quantize(net, bits=8, images=images)
    smallest = cl.quantization.quantize(removed, bits=8, images=images)
    return {
        "torch, fp32": use_torch(net, dense=True),
        "ONNX Runtime, fp32": use_runtime("dense", net, dense=True),
        "90% zeros, as they are": use_torch(masked),
        "90% zeros, CSR": use_torch(replace_linear(masked, SparseLinear), net),
        "half the neurons removed": use_torch(removed),
        "half removed, ONNX Runtime": use_runtime("removed", removed),
        "rank 16": use_torch(factors),
        "rank 16, ONNX Runtime": use_runtime("factors", factors),
        "int8, torch": use_torch(torch_int8(net), net),
        "int8, torchao": use_torch(torchao_int8(net), net),
        "int8 weights, ONNX Runtime": use_runtime("weights", cl.quantization.quantize(net, bits=8)),
        "int8 throughout, ONNX Runtime": use_runtime("both", both),
        "half removed and int8, ONNX Runtime": use_runtime("smallest", smallest),
    }


def count_bytes(model):
    """Return the bytes of the weights that a call reads; packed int8 weights count a byte each."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [
        value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)
    ]
    sparse = [part for tensor in tensors if tensor.layout == torch.sparse_csr for part in split_csr(tensor)]
    dense = [tensor for tensor in tensors if tensor.layout != torch.sparse_csr]
    packed = [layer.weight() for layer in model.modules() if callable(getattr(layer, "weight", None))]
    return sum(tensor.nbytes for tensor in [*dense, *sparse]) + sum(weight.numel() for weight in packed)


def split_csr(tensor):
    """Return the three arrays of a CSR tensor."""
    return tensor.values(), tensor.col_indices(), tensor.crow_indices()


def measure_machine(folder):
    """Measure what one thread reaches, the best of several tries."""
    side, width = torch.rand(768, 768), torch.rand(2**18)  # 1 MiB: weights of this size lie in the cache
    tiny = nn.Sequential(*[nn.Linear(1, 1) for _ in range(50)]).eval()
    cl.export.onnx(tiny, folder / "tiny.onnx", torch.rand(4, 1))
    session = cl.export.open_session(folder / "tiny.onnx")
    feed = {session.get_inputs()[0].name: np.zeros((1, 1), np.float32)}
    with torch.no_grad():
        multiply = time_best(lambda: side @ side)
        read = time_best(lambda: width.sum())
        starts = {"torch": time_best(lambda: tiny(torch.zeros(1, 1)))}
    starts["ONNX Runtime"] = time_best(lambda: session.run(None, feed))
    return Machine(2 * 768**3 / multiply, width.nbytes / read, {name: value / 50 for name, value in starts.items()})


def time_best(call, tries=200):
    """Return the seconds of the fastest of some calls."""
    seconds = []
    for _ in range(tries):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def time_all(contenders, machine, shape=(1, 28, 28)):
    """Return a table: for each batch and contender the milliseconds, the ratio to the best dense runtime, the bound."""
    rows = []
    for batch in BATCHES:
        dense = {name: each.model for name, each in contenders.items() if each.dense}
        times = {name: cl.measure.latency(model, batch, shape).median for name, model in dense.items()}
        best = min(times, key=times.get)
        for name, each in contenders.items():
            if each.model is None:
                rows.append({"batch": batch, "contender": name, "verdict": "not installed"})
                continue
            latency = cl.measure.latency(each.model, batch, shape)
            milliseconds = {"ms": 1e3 * latency.median, "from": 1e3 * latency.low, "to": 1e3 * latency.high}
            row = {"batch": batch, "contender": name, **milliseconds, "verdict": "the best dense runtime"}
            if name != best:
                pair = cl.measure.compare_latency(dense[best], each.model, batch, shape)
                row |= {"times faster": pair.ratio, "low": pair.low, "high": pair.high, "verdict": pair.verdict}
            moved = each.weight_bytes + 4 * batch * int(np.prod(shape))
            work = {"flop a byte": 2 * batch * each.macs / moved, "gflop/s": 2e-9 * batch * each.macs / latency.median}
            rows.append(row | work | {"waits for": machine.find_bound(each, batch, moved)})
    return pd.DataFrame(rows)


def draw_roofline(table, machine, path):
    """Draw operations a second against operations a byte; a point's colour is what its call waits for."""
    figure, axes = plt.subplots(1, len(BATCHES), figsize=(13, 6), sharey=True, layout="constrained")
    for ax, batch in zip(axes, BATCHES, strict=True):
        points = table[(table["batch"] == batch) & table["ms"].notna()].reset_index(drop=True)
        grid = np.geomspace(points["flop a byte"].min() / 3, points["flop a byte"].max() * 3)
        ax.plot(grid, np.minimum(machine.flops, machine.bandwidth * grid) / 1e9, color="black")
        ax.text(grid[0], machine.flops / 0.8e9, "the most in fp32", fontsize=9)
        for number, point in points.iterrows():
            spot = point["flop a byte"], point["gflop/s"]
            ax.plot(*spot, "o", markersize=9, color=COLOURS[point["waits for"]])
            ax.annotate(number + 1, spot, (-20, 4) if number % 2 else (7, 4), textcoords="offset points", fontsize=10)
        words = "\n".join(f"{number + 1} {name}" for number, name in enumerate(points["contender"]))
        ax.text(1.02, 0.98, words, transform=ax.transAxes, va="top", fontsize=9)
        ax.set(xscale="log", yscale="log", xlabel="operations a byte of weights and inputs", title=f"batch {batch}")
    axes[0].set_ylabel("billion operations a second, one thread")
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=colour) for colour in COLOURS.values()]
    figure.legend(handles, [f"waits for {bound}" for bound in COLOURS], loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    """Print the table, and draw the roofline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="lenet_300_100")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        machine = measure_machine(Path(folder))
        table = time_all(make_contenders(options.network, Path(folder)), machine)
    starts = ", ".join(
        f"{1e6 * seconds:.1f} µs to start a layer in {name}" for name, seconds in machine.dispatch.items()
    )
    print(f"one thread: {machine.flops / 1e9:.0f} GFLOP/s in fp32, {machine.bandwidth / 1e9:.0f} GB/s, {starts}")
    print(table.round(3).to_string(index=False, na_rep=""))
    if options.csv:
        table.to_csv(options.csv, index=False)
    if options.picture:
        draw_roofline(table, machine, options.picture)


if __name__ == "__main__":
    main()
