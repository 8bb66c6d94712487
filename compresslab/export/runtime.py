"""Running ONNX files with ONNX Runtime, on the CPU."""

import importlib
import os
import tempfile
from pathlib import Path

import torch
from torch import nn

from compresslab import checks

INSTALL = 'pip install "compresslab[export]"'
SILENT = 3  # ONNX Runtime's log level for errors alone
DTYPES = {"tensor(float)": torch.float32, "tensor(double)": torch.float64, "tensor(int64)": torch.int64}
EXACT = {
    "session.x64quantprecision": "1",  # without VNNI, pairs of 8-bit products are added in 16 bits, which can overflow
    "session.qdq_matmulnbits_accuracy_level": "1",  # sums in fp32, not in int8
}


def import_optional(name: str) -> object:
    """Import a package of the extra `export`; raises ImportError with the line that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed; install it with: {INSTALL}") from error


def open_session(path: str | Path, threads: int = 1, exact: bool = True, optimized: str | None = None) -> object:
    """Open an ONNX file in ONNX Runtime, on the CPU.

    path       the file
    threads    threads within an operation, 1 or more
    exact      compute what the file says on any processor; False for the runtime's own, faster settings
    optimized  a path where the graph is written as the runtime computes it, or None
    returns    an onnxruntime.InferenceSession
    raises     ImportError without onnxruntime; ValueError for a file that is not there, or that the runtime refuses
    """
    runtime = import_optional("onnxruntime")
    if not os.path.isfile(path):
        raise ValueError(f"path is {str(path)!r}, where there is no file; give one that `onnx` wrote")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = checks.integer("threads", threads, 1)
    options.log_severity_level = SILENT
    for name, value in EXACT.items() if exact else ():
        options.add_session_config_entry(name, value)
    if optimized is not None:  # layouts that fit one processor alone (the last level) would hide the weights' names
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = optimized
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has a class of its own for each reason
        raise ValueError(f"ONNX Runtime refuses {str(path)!r}: {checks.reason(error)}") from error


class OnnxModel(nn.Module):
    """An ONNX file as a module: `measure.accuracy`, `latency` and `compare_latency` take it like any other.

    path     the file;  threads, exact  as of `open_session`
    It cannot be trained, and its copies share one session.
    """

    def __init__(self, path: str | Path, threads: int = 1, exact: bool = True):
        super().__init__()
        self.session = open_session(path, threads, exact)
        entry = self.session.get_inputs()[0]
        self.input_name, self.dtype = entry.name, DTYPES[entry.type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the first output for a batch of images."""
        inputs = images.detach().to("cpu", self.dtype).numpy()
        return torch.from_numpy(self.session.run(None, {self.input_name: inputs})[0])

    def __deepcopy__(self, memo):
        return self  # a session cannot be copied, and never changes


def run_onnx(path: str | Path, images: torch.Tensor, batch_size: int = 256, threads: int = 1) -> torch.Tensor:
    """Compute the outputs of an ONNX file for images, exactly, as `train.evaluate` does for a torch model.

    images      (N, …), in the dtype of the file's input or one that becomes it
    batch_size  images at a time;  threads  as of `open_session`
    returns     float tensor (N, …)
    """
    model = OnnxModel(path, threads)
    return torch.cat([model(part) for part in images.split(checks.integer("batch_size", batch_size, 1))])


def list_kernels(path: str | Path) -> dict[str, list[str]]:
    """Return which operation of the runtime's optimized graph reads each tensor of an ONNX file.

    returns  dict of the tensor's name -> types of the operations that read it ("QGemm", "FusedConv", …)
    """
    onnx = import_optional("onnx")
    with tempfile.TemporaryDirectory() as folder:
        optimized = os.path.join(folder, "optimized.onnx")
        open_session(path, exact=False, optimized=optimized)
        graph = onnx.load(optimized).graph
    kernels = {}
    for node in graph.node:
        for name in node.input:
            kernels.setdefault(name, []).append(node.op_type)
    return kernels
