"""Quantizing a vision transformer to int8, a scale for each output channel: compresslab beside torchao.

    python -m benchmarks.quantization_at_scale [--rounds 5] [--threads 1]

torchvision's vit_b_16 (random weights, one seed) is quantized by both in turn, so that a busy moment of the machine
meets both; the least time of each counts. torchao changes the model that it is given, so it is given a copy: its time
is told with the copying and without. compresslab's call makes its copy itself. Memory is the highest resident size of a
process of its own during the call, less the size before it (Linux). The weights of the two are compared.

torchao quantizes Linear layers alone, attention's output projections among them; compresslab also the convolution.
"""

import argparse
import copy
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from torchvision.models import vit_b_16

from compresslab import quantization
from compresslab.weights import layers


def network():
    """vit_b_16 with the same random weights every time; 86.6 million of them."""
    torch.manual_seed(0)
    return vit_b_16(weights=None).eval()


def ours(model, clipping="auto"):
    """Quantize with compresslab: a new model."""
    return quantization.quantize(model, bits=8, per_channel=True, clipping=clipping)


def peer(model):
    """Quantize with torchao, in place."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
    return model


METHODS = {"compresslab": ours, "torchao": lambda model: peer(copy.deepcopy(model))}


def seconds(function, *arguments):
    """Time of one call, and its result."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def compare(rounds):
    """Least times of both in turns (torchao's also without the copy), the search's, and the largest difference."""
    model, least = network(), {}
    for _ in range(rounds):
        times = {"compresslab": seconds(ours, model)}
        copying, twin = seconds(copy.deepcopy, model)
        alone, twin = seconds(peer, twin)
        times |= {"torchao": (copying + alone, twin), "torchao, in place": (alone, twin)}
        times["compresslab, least squared error"] = seconds(ours, model, "mse")
        least = {name: min(one, least.get(name, one)) for name, (one, _) in times.items()}
    return least, _difference(times["compresslab"][1], twin)


def _difference(model, twin):
    """Mean difference of the two models' weights, as a share of the mean size."""
    off = size = 0.0
    for name, layer in layers.weight_layers(model).items():
        weight = twin.get_submodule(name).weight
        if hasattr(weight, "dequantize"):
            off += float((weight.dequantize() - layer.weight).abs().sum())
            size += float(layer.weight.abs().sum())
    return off / size if size else float("nan")


def memory(method):
    """Megabytes that a method takes beside the loaded model, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.quantization_at_scale", "--memory", method]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_memory(method):
    """What `memory` starts: quantize once and print megabytes above those before."""
    METHODS[method](torch.nn.Sequential(torch.nn.Linear(64, 64)))  # imports and first calls are not what is compared
    model = network()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = peak()
    METHODS[method](model)
    print(peak() - before)


def peak():
    """Highest resident size of this process so far, in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024  # KiB


def main():
    """Read the command line; compare, or measure one method's memory (what the comparison starts for each)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", choices=list(METHODS), help="measure the memory of this one alone")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # the layers left alone
    torch.set_num_threads(chosen.threads)
    if chosen.memory:
        print_memory(chosen.memory)
        return
    try:
        peer(torch.nn.Sequential(torch.nn.Linear(64, 64)))
    except ImportError:
        raise SystemExit("torchao is not installed, so there is nothing to compare with: pip install torchao") from None
    least, difference = compare(chosen.rounds)
    for name, one in least.items():
        print(f"{name:34} {one:6.2f} s   {one / least['compresslab']:5.2f} times compresslab's")
    for name in METHODS:
        print(f"{name:34} {memory(name):6.0f} MB beside the model")
    print(f"The weights of the two differ by {100 * difference:.2f}% of their size on average.")


if __name__ == "__main__":
    main()
