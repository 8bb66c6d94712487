"""Running ONNX files with ONNX Runtime, on the CPU."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from compresslab import checks

INSTALL = 'pip install "compresslab[export]"'
SILENT = 3  # ONNX Runtime's log level for errors alone
EXACT = {
    "session.x64quantprecision": "1",  # without VNNI, pairs of 8-bit products are added in 16 bits, which can overflow
    "session.qdq_matmulnbits_accuracy_level": "1",  # sums in fp32, not in int8
}


def import_optional(name: str) -> object:
    """Import a package of the extra `export`; raises ImportError with the line that installs it."""
    import importlib

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


def run_onnx(path: str | Path, images: torch.Tensor, batch_size: int = 256, threads: int = 1) -> torch.Tensor:
    """Compute the outputs of an ONNX file for images, as `train.evaluate` does for a torch model.

    images      (N, …), in the dtype of the file's input or one that becomes it
    batch_size  images at a time; threads  as of `open_session`
    returns     float tensor (N, …)
    """
    run = make_runner(open_session(path, threads))
    return torch.cat([run(part) for part in images.split(checks.integer("batch_size", batch_size, 1))])


def make_runner(session: object) -> Callable:
    """Return a function that maps a batch of images, a tensor, to the session's first output."""
    entry = session.get_inputs()[0]
    dtype = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(double)": np.float64}[entry.type]

    def _run(images):
        return torch.from_numpy(session.run(None, {entry.name: images.cpu().numpy().astype(dtype, copy=False)})[0])

    return _run


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
