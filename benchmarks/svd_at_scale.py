"""Factorizing a vision transformer: random directions beside the full SVD, time, memory and error.

    python -m benchmarks.svd_at_scale [--rank 64] [--rounds 5] [--threads 1]

torchvision's vit_b_16 (random weights, one seed) is decomposed layer by layer, each layer by both in turn, so that a
busy moment of the machine meets both; the least time of a layer's rounds counts. Printed are the sums over the layers,
their ratio, the whole call of `low_rank.factorize`, and the error of each layer's factors, as a ratio to the least
error that its rank can have (Eckart-Young). Memory is the highest resident size of a process during the call, less the
size before it (Linux): it holds the copy of the model that the call begins with.
"""

import argparse
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from torchvision.models import vit_b_16
from tqdm.auto import tqdm

from compresslab import low_rank
from compresslab.numerics.decomposition import break_even, decompose


def network():
    """vit_b_16 with the same random weights every time; 86.6 million of them."""
    torch.manual_seed(0)
    return vit_b_16(weights=None).eval()


def matrices(model, rank):
    """Layer name -> weight as a matrix, of the layers that this rank makes smaller."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the layers left alone
        small = low_rank.factorize(model, rank=rank)
    replaced = [name for name, _ in model.named_modules() if type(small.get_submodule(name)) is torch.nn.Sequential]
    weights = {name: getattr(model.get_submodule(name), "weight", None) for name in replaced}
    return {name: weight.detach().flatten(1) for name, weight in weights.items() if weight is not None}


def seconds(function, *arguments, **options):
    """Time of one call, and its result."""
    start = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - start, result


def truncated(matrix, rank):
    """The rival: torch's full SVD, cut off."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank] * values[:rank], right[:rank], values


def ours(matrix, rank):
    """What the technique does with a layer's matrix."""
    return decompose(matrix, rank=rank).factors(rank)


def compare(matrix, rank, rounds):
    """Least seconds of the full SVD and of ours, and the ratio of our error to the least there can be."""
    full, random = [], []
    for _ in range(rounds):
        took, (_, _, values) = seconds(truncated, matrix, rank)
        full.append(took)
        took, (left, right) = seconds(ours, matrix, rank)
        random.append(took)
    error, least = (matrix - left @ right).double().norm(), values[rank:].double().norm()
    return min(full), min(random), float(error / least) if least else 1.0  # the head begins with zeros


def memory(rank, threads):
    """MB that `factorize` takes above the loaded model, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.svd_at_scale",
        "--rank",
        str(rank),
        "--threads",
        str(threads),
        "--memory",
    ]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(rank):
    """Print what `memory` reads."""
    model = network()
    decompose(torch.ones(8, 8))  # first calls are not what is measured
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = peak()
    low_rank.factorize(model, rank=rank)
    print(peak() - before)


def peak():
    """Highest resident size of this process so far, in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024  # KiB


def main():
    """Read the command line; compare, or measure the memory of one call (what the comparison starts)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="measure the memory of one call, in this process")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    warnings.simplefilter("ignore", UserWarning)
    if chosen.memory:
        measure_memory(chosen.rank)
        return
    model = network()
    layers = matrices(model, chosen.rank)
    rows = [compare(matrix, chosen.rank, chosen.rounds) for matrix in tqdm(layers.values(), desc="layers")]
    full, random, errors = zip(*rows, strict=True)
    whole = min(seconds(low_rank.factorize, model, rank=chosen.rank)[0] for _ in range(chosen.rounds))
    least = min(break_even(*matrix.shape) for matrix in layers.values())
    print(f"{len(layers)} layers of vit_b_16, rank {chosen.rank} (lowest break-even rank {least:.0f})")
    print(f"full SVD            {sum(full):7.2f} s")
    print(f"random directions   {sum(random):7.2f} s   {sum(full) / sum(random):5.1f} x faster")
    print(f"factorize, all of it{whole:7.2f} s   {sum(full) / whole:5.1f} x faster")
    print(f"error / least error {max(errors):7.3f} at most, {sum(errors) / len(errors):.3f} on average")
    print(f"memory of factorize {memory(chosen.rank, chosen.threads):7.0f} MB above the loaded model")


if __name__ == "__main__":
    main()
