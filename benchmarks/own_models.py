"""Four models as people bring them, from measuring to the export: seconds, peak memory, bytes, accuracy.

    python -m benchmarks.own_models [--models resnet18 lstm] [--images 10000] [--epochs 2] [--csv own_models.csv]

torchvision's resnet18 and mobilenet_v3_small at 32x32, a small VisionTransformer and an LSTM that reads an image row by
row, on Fashion-MNIST; the training images come from a DataLoader that shifts them. Each model is trained, measured,
compressed by a recipe (70% of the weights go, retraining, 8-bit grids), measured again, saved, loaded and exported to
ONNX. Every model runs in a process of its own. Memory is the peak of a step above what the process held before it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import pandas as pd
import psutil
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

import compresslab as cl

BATCH = 128


class RowReader(nn.Module):
    """An LSTM that reads the rows of an image, and a Linear layer that names its class."""

    def __init__(self):
        super().__init__()
        self.memory, self.head = nn.LSTM(32, 128, batch_first=True), nn.Linear(128, 10)

    def forward(self, images):
        """Return logits (N, 10) of images (N, 3, 32, 32)."""
        return self.head(self.memory(images[:, 0])[0][:, -1])


def make_vision_transformer():
    """Return a VisionTransformer of four layers for 32x32."""
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 4, "num_heads": 4, "hidden_dim": 128, "mlp_dim": 256}
    return torchvision.models.VisionTransformer(num_classes=10, **sizes)


MODELS = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=10),
    "vision_transformer": make_vision_transformer,
    "lstm": RowReader,
}


class Shifted(Dataset):
    """Images of three channels, 32x32, moved by up to two pixels, drawn anew at each access."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, position):
        right, down = torch.randint(-2, 3, (2,)).tolist()
        return self.images[position].roll((down, right), (1, 2)), self.labels[position]


class Step:
    """Measure the seconds and the peak of memory of a `with` block."""

    def __init__(self, rows, name):
        self.rows, self.name, self.process = rows, name, psutil.Process()

    def __enter__(self):
        self.before = self.peak = self.process.memory_info().rss
        self.done, self.start = threading.Event(), time.perf_counter()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def _watch(self):
        while not self.done.wait(0.005):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *_):
        seconds = time.perf_counter() - self.start
        self.done.set()
        self.watcher.join()
        self.rows.append({"step": self.name, "seconds": seconds, "peak MiB": (self.peak - self.before) / 2**20})


def load_data(images):
    """Return Data of DataLoaders: Fashion-MNIST in three channels at 32x32, the training images shifted."""
    source = cl.data.load("fashion_mnist")

    def prepare(split, count):
        padded = functional.pad(split.images[:count], (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous()
        return padded, split.labels[:count]

    train = DataLoader(Shifted(*prepare(source.train, images)), batch_size=BATCH, shuffle=True, drop_last=True)
    parts = [prepare(source.validation, 2000), prepare(source.test, None)]
    validation, test = (DataLoader(TensorDataset(*part), batch_size=BATCH) for part in parts)
    return cl.data.from_loader(train, validation, test)


def compress_own_model(name, images, epochs):
    """Return the rows of a model's table: a step each, with seconds and memory, and what was measured after it."""
    torch.manual_seed(0)
    net, data, rows = MODELS[name](), load_data(images), []
    recipe = [("zero_pruning", {"sparsity": 0.7}), ("retrain", {"epochs": epochs}), ("quantization", {"bits": 8})]
    with Step(rows, "train"):
        net = cl.train.finetune(net, data.train, epochs=2 * epochs).eval()
    with Step(rows, "measure"):
        before = cl.measure.measure(net, data.test)
    with Step(rows, "recipe"):
        small = cl.Recipe(recipe).apply(net, data, journal=False)
    with Step(rows, "measure the small one"):
        after = cl.measure.measure(small, data.test)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with Step(rows, "save"):
            cl.save(small, path / "small.clab")
        with Step(rows, "load"):
            again = cl.load(path / "small.clab", into=MODELS[name]())
        with Step(rows, "export"):
            report = cl.export.onnx(small, path / "small.onnx", data.test.sample(64).images)
        rows[4] |= {"bytes": os.path.getsize(path / "small.clab")}
    rows[1] |= {"accuracy": before.accuracy, "bytes": before.sizes.file_bytes}
    rows[3] |= {"accuracy": after.accuracy, "bytes": after.sizes.file_bytes}
    rows[5] |= {"accuracy": cl.measure.accuracy(again, data.test)}
    rows[6] |= {"bytes": report.bytes}
    size = sum(weight.nbytes for weight in net.parameters()) / 2**20
    return pd.DataFrame(rows).assign(model=name, size=size).rename(columns={"size": "model MiB"})


def main():
    """Run every model in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--csv", type=Path, default=Path("own_models.csv"))
    options = parser.parse_args()
    if len(options.models) == 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that a technique leaves alone
            table = compress_own_model(options.models[0], options.images, options.epochs)
        print(table.round(3).to_string(index=False, na_rep=""))
        table.to_csv(options.csv, index=False)
        return
    tables = []
    for name in options.models:
        path = options.csv.with_suffix(f".{name}.csv")
        arguments = ["--models", name, "--images", options.images, "--epochs", options.epochs, "--csv", path]
        subprocess.run([sys.executable, "-m", "benchmarks.own_models", *map(str, arguments)], check=True)
        tables.append(pd.read_csv(path))
        path.unlink()
    pd.concat(tables).to_csv(options.csv, index=False)


if __name__ == "__main__":
    main()
