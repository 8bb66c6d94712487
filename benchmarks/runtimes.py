"""The truth about speed: what runs a compressed network faster than the best dense runtime does.

    python -m benchmarks.runtimes [--network lenet_300_100] [--csv runtimes.csv]

Dense, masked, removed, low-rank, CSR, torch's and torchao's int8, and ONNX Runtime in fp32 and int8, at batches of 1
and of 256, on one thread. Each is timed against the fastest dense runtime, in turns (A B B A), so that a slow moment of
the machine meets both; "faster" and "slower" need 2% and an interval that leaves out 1.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import compresslab as cl

BATCHES = (1, 256)


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
    """Return the dense runtimes, and all others: dicts of name -> module."""
    data = cl.data.load("mnist")
    images, test = data.train.images[:1000], data.test.images[:256]
    net = cl.models.pretrained(network, "mnist")

    def exported(name, model):
        cl.export.onnx(model, folder / f"{name}.onnx", test)
        return cl.export.OnnxModel(folder / f"{name}.onnx", exact=False)

    masked = cl.zero_pruning.prune(net, sparsity=0.9)
    removed = cl.activation_pruning.prune(net, images, sparsity=0.5)
    factors = cl.low_rank.factorize(net, rank=16)
    weights = cl.quantization.quantize(net, bits=8)
    both = cl.quantization.quantize(net, bits=8, images=images)
    smallest = cl.quantization.quantize(removed, bits=8, images=images)
    dense = {"torch, fp32": net, "ONNX Runtime, fp32": exported("dense", net)}
    others = {
        "90% zeros, as they are": masked,
        "90% zeros, CSR": replace_linear(masked, SparseLinear),
        "half the neurons removed": removed,
        "half removed, ONNX Runtime": exported("removed", removed),
        "rank 16": factors,
        "rank 16, ONNX Runtime": exported("factors", factors),
        "int8, torch": torch_int8(net),
        "int8, torchao": torchao_int8(net),
        "int8 weights, ONNX Runtime": exported("weights", weights),
        "int8 throughout, ONNX Runtime": exported("both", both),
        "half removed and int8, ONNX Runtime": exported("smallest", smallest),
    }
    return dense, others


def time_all(dense, others, shape=(1, 28, 28)):
    """Return a table: for each batch and contender the milliseconds, and the ratio to the best dense runtime."""
    rows = []
    for batch in BATCHES:
        times = {name: cl.measure.latency(model, batch, shape).median for name, model in dense.items()}
        best = min(times, key=times.get)
        for name, model in {**dense, **others}.items():
            if model is None:
                rows.append({"batch": batch, "contender": name, "verdict": "not installed"})
                continue
            time = cl.measure.latency(model, batch, shape)
            row = {
                "batch": batch,
                "contender": name,
                "ms": 1e3 * time.median,
                "from": 1e3 * time.low,
                "to": 1e3 * time.high,
            }
            if name == best:
                row["verdict"] = "the best dense runtime"
            else:
                pair = cl.measure.compare_latency(dense[best], model, batch, shape)
                row |= {"times faster": pair.ratio, "low": pair.low, "high": pair.high, "verdict": pair.verdict}
            rows.append(row)
    return pd.DataFrame(rows)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="lenet_300_100")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = time_all(*make_contenders(options.network, Path(folder)))
    print(table.round(3).to_string(index=False, na_rep=""))
    if options.csv:
        table.to_csv(options.csv, index=False)


if __name__ == "__main__":
    main()
