"""One epoch of MNIST: the workbook's loop against the tutorial way, interleaved in one run.

    python -m benchmarks.training [--rounds 3] [--threads 1]

The tutorial way is that of PyTorch's own introduction: torchvision's data set with ToTensor, a DataLoader with batches
of 64, Adam, fp32. Ours is `compresslab.train.fit` as it comes. Both see 50,000 images, on the same number of threads.
A ratio of 8 says that the tutorial's epoch takes 8 times as long.
"""

import argparse
import gzip
import statistics
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

import compresslab as cl
from compresslab import paths

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def unpack(root):
    """Lay MNIST out as torchvision wants it."""
    folder = Path(root) / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes(gzip.decompress(paths.find_data(f"MNIST/raw/{name}.gz").read_bytes()))


def tutorial_epoch(model, dataset):
    """Seconds of one epoch the tutorial way."""
    loader = DataLoader(dataset, batch_size=64, shuffle=True)
    optimizer, criterion = torch.optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss()
    start = time.perf_counter()
    for images, labels in loader:
        optimizer.zero_grad()
        criterion(model(images), labels).backward()
        optimizer.step()
    return time.perf_counter() - start


def our_epoch(model, split):
    """Seconds of one epoch with the workbook's loop, and the arithmetic it chose."""
    start = time.perf_counter()
    *_, last = cl.train.fit(model, split, epochs=1, bar=False)
    return time.perf_counter() - start, last.precision


def compare(name, dataset, split, rounds):
    """One row of the table."""
    tutorial, ours = [], []
    for seed in range(rounds):
        tutorial.append(tutorial_epoch(cl.models.build(name, seed), dataset))
        seconds, precision = our_epoch(cl.models.build(name, seed), split)
        ours.append(seconds)
    ratios = [slow / fast for slow, fast in zip(tutorial, ours, strict=True)]
    return {
        "network": name,
        "tutorial (s)": round(statistics.median(tutorial), 2),
        "compresslab (s)": round(statistics.median(ours), 2),
        "arithmetic": precision,
        "ratio": round(statistics.median(ratios), 1),
        "ratio, least to most": f"{min(ratios):.1f} to {max(ratios):.1f}",
    }


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    split = cl.data.load("mnist").train
    with tempfile.TemporaryDirectory() as root:
        unpack(root)
        dataset = Subset(datasets.MNIST(root, train=True, transform=transforms.ToTensor()), range(len(split)))
        rows = [compare(name, dataset, split, chosen.rounds) for name in ("lenet_300_100", "lenet_5")]
    print(
        f"epochs of {len(split)} images, {chosen.threads} thread(s), {chosen.rounds} rounds, torch {torch.__version__}"
    )
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
