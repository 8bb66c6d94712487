"""Global magnitude pruning at 86.6 million weights: compresslab beside torch.nn.utils.prune, time and memory.

    python benchmarks/pruning_at_scale.py [--sparsity 0.9] [--threads 1]

Each method prunes torchvision's vit_b_16 (random weights, one seed) in a process of its own. Memory is the highest
resident size during the call less the one before it: compresslab's includes the copy of the model that it returns,
torch prunes in place. The masks of the two are compared, bit for bit.
"""

import argparse
import hashlib
import resource
import subprocess
import sys
import time

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune
from torchvision.models import vit_b_16


def ours(model, sparsity):
    """Prune with compresslab; returns the masks by layer name."""
    from compresslab import zero_pruning
    from compresslab.weights import layers

    pruned = zero_pruning.prune(model, sparsity=sparsity)
    return {name: layers.get_mask(module) for name, module in layers.weight_layers(pruned).items()}


def peer(model, sparsity):
    """Prune with torch.nn.utils.prune.global_unstructured; returns the masks by layer name."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    chosen = [(module, "weight") for module in found.values()]
    torch_prune.global_unstructured(chosen, torch_prune.L1Unstructured, amount=sparsity)
    return {name: module.weight_mask.bool() for name, module in found.items()}


METHODS = {"compresslab": ours, "torch.nn.utils.prune": peer}


def measure(method, sparsity, threads):
    """Prune once in this process and print seconds, MB above the loaded model, weights pruned, digest of the masks."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = vit_b_16(weights=None)
    METHODS[method](nn.Linear(8, 8), 0.5)  # imports and first calls are not what is compared
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    masks = METHODS[method](model, sparsity)
    seconds = time.perf_counter() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # KiB on Linux
    digest = hashlib.sha256(b"".join(name.encode() + mask.numpy().tobytes() for name, mask in sorted(masks.items())))
    print(seconds, memory, sum(int((~mask).sum()) for mask in masks.values()), digest.hexdigest())


def compare(sparsity, threads):
    """Table of both methods, one row each, and the ratios of time and memory."""
    import pandas

    rows = {}
    for method in METHODS:
        command = [sys.executable, __file__, "--method", method, "--sparsity", str(sparsity), "--threads", str(threads)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        rows[method] = {
            "seconds": float(printed[0]),
            "MB": float(printed[1]),
            "pruned": int(printed[2]),
            "mask": printed[3],
        }
    table = pandas.DataFrame(rows).T
    if table["mask"].nunique() > 1:
        raise SystemExit(f"the two masks differ:\n{table}")
    return table.assign(**{f"{unit} ratio": table[unit] / table.loc["compresslab", unit] for unit in ("seconds", "MB")})


def main():
    """Read the command line; compare, or measure one method (what the comparison starts for each)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--method", choices=list(METHODS), help="measure this one alone, in this process")
    chosen = parser.parse_args()
    if chosen.method:
        measure(chosen.method, chosen.sparsity, chosen.threads)
    else:
        table = compare(chosen.sparsity, chosen.threads)
        print(table.drop(columns="mask").to_string(float_format="{:.2f}".format))
        print("The masks of the two are equal, bit for bit.")


if __name__ == "__main__":
    main()
