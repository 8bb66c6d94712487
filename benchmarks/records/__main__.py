"""The smallest files: networks trained for the length of their .clab file, measured as a fresh process decodes them.

    python -m benchmarks.records [--records NAME …] [--seeds 0 1 2 3 4] [--keep]
    python -m benchmarks.records --files

Each record is a reference network of its full shape. Its settings were chosen on the validation images; what is
printed is measured on the 10,000 test images, seed by seed, by a process that has nothing but the file. --keep writes
the file of the seed with the best validation accuracy to data/records. --files trains nothing: it says how many bytes
of those files are the header, and how many they would be if the decoder knew no words. Everything is computed on one
thread, and the seconds are those of the processor, from the data as they ship to the file: images are distorted, a
teacher answers to all of them, and a network learns the answers while it shrinks to few weights of few values
(`shrinking`), or pays for the bits of its weights (`rate`). Where a record's name says "tied",
that network has fewer units than the reference, and convolutions in place of matrices; it is written into the
reference's shape, in which rows repeat one another (`embedding`).
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import compresslab as cl
from benchmarks.records.augmentation import augmented
from benchmarks.records.embedding import busiest_first, embed, unrolled
from benchmarks.records.rate import charge
from benchmarks.records.shrinking import shrink
from compresslab.storage import container
from compresslab.techniques import distillation_losses

FOLDER = Path(__file__).parents[2] / "data" / "records"
SEEDS = [0, 1, 2, 3, 4]
WARM = 0.3  # of the epochs before weights are charged
DECODE = """
import json, sys, torch
torch.set_num_threads(1)
import compresslab as cl
model, data = cl.load(sys.argv[1]), cl.data.load(sys.argv[2])
print(json.dumps([1 - cl.measure.accuracy(model, split) for split in (data.validation, data.test)]))
"""


@dataclass(frozen=True)
class Record:
    """How one of the files is made, and what it is to reach.

    reference    the network whose shape the file has;  data  its data set
    small        small(seed) -> network to shrink;  full  full(small) -> the same function in the reference's shape
    kept, codes  as in `shrinking.shrink`, or price as in `rate.charge`, which begins after WARM of the epochs
    epochs       of as many images as the training set has
    lr, batch, temperature, alpha  of the training
    copies, distortion  of the training images, as in `augmented`
    taught       epochs that the teacher itself trains on the copies
    error, ratio at most and at least, on the test images: the target
    """

    reference: str
    data: str
    small: Callable
    full: Callable
    epochs: float
    error: float
    ratio: float
    kept: int = 0
    codes: int = 6
    price: float = 0.0
    lr: float = 1e-2
    batch: int = 512
    temperature: float = 3.0
    alpha: float = 1.0
    copies: int = 4
    taught: float = 0.0
    distortion: tuple = ()


def tied_lenet_5(first, second, maps, kernel):
    """LeNet-5 with fewer maps, whose fc1 is a convolution of the 4 x 4 places that it sees.

    The convolutions before need no bias: max pooling and fc1's take it over.
    """
    units = maps * (5 - kernel) ** 2

    def small(seed):
        return _seeded(seed, lambda: nn.Sequential(
            nn.Conv2d(1, first, 5, bias=False), nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, bias=False), nn.MaxPool2d(2),
            nn.Conv2d(second, maps, kernel), nn.ReLU(), nn.Flatten(), nn.Linear(units, 10),
        ))  # fmt: skip

    return small


def in_lenet_5(small):
    """A tied LeNet-5 in the full shape."""
    return embed(nn.Sequential(*small[:4], *unrolled(small[4:], (small[4].in_channels, 4, 4))), cl.models.lenet_5(0))


def tied_lenet_300_100(maps, kernel, stride, maps2, kernel2, stride2=1):
    """LeNet-300-100 whose two hidden layers are convolutions."""
    side = (28 - kernel) // stride + 1
    units = maps2 * ((side - kernel2) // stride2 + 1) ** 2

    def small(seed):
        return _seeded(seed, lambda: nn.Sequential(
            nn.Conv2d(1, maps, kernel, stride), nn.ReLU(), nn.Conv2d(maps, maps2, kernel2, stride2), nn.ReLU(),
            nn.Flatten(), nn.Linear(units, 10),
        ))  # fmt: skip

    return small


def in_lenet_300_100(small):
    """Any net of three layers in the full shape."""
    return embed(unrolled(small, (1, 28, 28)), cl.models.lenet_300_100(0))


def in_place(small):
    """A network that has the reference's shape already."""
    return busiest_first(small)


@functools.cache
def lessons(name, copies, distortion, taught):
    """(images and their copies, a teacher's answers to all of them, seconds of the processor) for a data set.

    The teacher is LeNet-5 as it ships, trained on for so many epochs of the copies.
    """
    start, data = time.process_time(), cl.data.load(name)
    images = augmented(data.train, copies, seed=0, **dict(distortion))
    teacher = cl.models.pretrained("lenet_5", name)
    if taught:
        teacher = cl.train.finetune(teacher, images, epochs=taught, lr=1.5e-3, batch_size=256, bar=sys.stderr.isatty())
    with cl.train.threads(1):
        answers = cl.train.evaluate(teacher, images)
    return images, answers, time.process_time() - start


class Told(nn.Module):
    """The teacher's answers and the labels of images, as a loss in which the images' labels are their positions."""

    def __init__(self, answers, labels, temperature, alpha):
        super().__init__()
        self.answers, self.labels, self.temperature, self.alpha = answers, labels, temperature, alpha

    def forward(self, model, images, positions):
        logits = model(images).float()
        soft = distillation_losses.response_loss(logits, self.answers[positions], self.temperature)
        if self.alpha == 1:
            return soft
        return self.alpha * soft + (1 - self.alpha) * nn.functional.cross_entropy(logits, self.labels[positions])


def make(record, seed):
    """(model in the reference's shape, seconds of the processor) of one seed."""
    images, answers, before = lessons(record.data, record.copies, record.distortion, record.taught)
    start, task = time.process_time(), Told(answers, images.labels, record.temperature, record.alpha)
    small, split = record.small(seed), cl.data.Split(images.images, torch.arange(len(images)))
    training = {"lr": record.lr, "batch_size": record.batch, "loss": task, "bar": sys.stderr.isatty()}
    epochs = record.epochs / (1 + record.copies)
    if record.kept:
        run = shrink(small, split, kept=record.kept, codes=record.codes, epochs=epochs, seed=seed, **training)
    else:
        small = cl.train.finetune(small, split, epochs=WARM * epochs, seed=seed, **training)
        run = charge(small, split, price=record.price, epochs=(1 - WARM) * epochs, seed=seed + 1, **training)
    for _ in run:
        pass
    return record.full(small), before + time.process_time() - start


def measured(path, data):
    """(validation error, test error) of a file, by a process that has nothing else."""
    found = subprocess.run([sys.executable, "-c", DECODE, str(path), data], capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def _seeded(seed, build):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


GENTLE = (("shift", 1.0), ("degrees", 5.0), ("scale", 0.05), ("shear", 0.05), ("elastic", 0.3), ("mirror", True))
RECORDS = {
    "lenet_300_100": Record(
        "lenet_300_100", "mnist", cl.models.lenet_300_100, in_place, kept=4700, epochs=80, error=0.0158, ratio=250
    ),
    "lenet_300_100-tied": Record(
        *("lenet_300_100", "mnist", tied_lenet_300_100(12, 8, 5, 25, 4), in_lenet_300_100),
        price=0.3, epochs=60, batch=128, temperature=2.0, alpha=0.9, taught=1.2, error=0.0158, ratio=250,
    ),
    "lenet_5-tied": Record(
        *("lenet_5", "mnist", tied_lenet_5(10, 20, 40, 2), in_lenet_5),
        price=0.12, epochs=40, batch=128, temperature=2.0, alpha=0.9, taught=1.2, error=0.008, ratio=400,
    ),
    "lenet_5-tied-smallest": Record(
        *("lenet_5", "mnist", tied_lenet_5(8, 16, 24, 2), in_lenet_5),
        price=0.45, epochs=50, batch=128, temperature=2.0, alpha=0.9, taught=1.2, error=0.0096, ratio=1110,
    ),
    "lenet_300_100-fashion": Record(
        *("lenet_300_100", "fashion_mnist", cl.models.lenet_300_100, in_place),
kept=13500, epochs=100, lr=5e-3, codes=10, temperature=1.5, distortion=GENTLE, error=0.1105, ratio=90,
    ),
}  # fmt: skip


def main():
    """Make the records that are asked for, and print what they measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", nargs="+", choices=RECORDS, default=list(RECORDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--keep", action="store_true", help="write the best file of each record to data/records")
    parser.add_argument("--files", action="store_true", help="split the files in data/records, and train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.files:
        print(split_files().to_string(index=False))
        return
    every = []
    for name in arguments.records:
        with tempfile.TemporaryDirectory() as folder:
            rows = [tried(name, seed, Path(folder) / f"{name}-{seed}.clab") for seed in arguments.seeds]
            if arguments.keep:
                keep(name, rows)
        every += rows
    print(summary(pd.DataFrame(every)).to_string(index=False))


def tried(name, seed, path):
    """One row: a record made with a seed, its file written, decoded elsewhere and measured. Printed as it is known."""
    record = RECORDS[name]
    model, seconds = make(record, seed)
    length, start = cl.save(model, path), time.process_time()
    cl.storage.dumps(model)
    encode, start = time.process_time() - start, time.process_time()
    cl.load(path)
    decode = time.process_time() - start
    validation, test = measured(path, record.data)
    ratio = cl.measure.sizes(model).dense_bytes / length
    row = {"record": name, "seed": seed, "bytes": length, "ratio": ratio, "validation error": validation}
    row |= {
        "test error": test,
        "seconds": seconds,
        "encode ms": 1000 * encode,
        "decode ms": 1000 * decode,
        "path": path,
    }
    print(
        "  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{value}" for key, value in row.items()),
        flush=True,
    )
    return row


def keep(name, rows):
    """Keep the file of the seed with the best validation accuracy, and what was measured of it."""
    FOLDER.mkdir(exist_ok=True)
    best = min(rows, key=lambda row: row["validation error"])
    (FOLDER / f"{name}.clab").write_bytes(Path(best["path"]).read_bytes())
    told = FOLDER / "records.json"
    known = json.loads(told.read_text()) if told.exists() else {}
    record = RECORDS[name]
    known[name] = {"reference": record.reference, "data": record.data, "seed": best["seed"], "bytes": best["bytes"]}
    known[name] |= {key: best[key] for key in ("validation error", "test error")}
    told.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


def split_files():
    """Tabulate the files in data/records: bytes, those of the header, and bytes if the decoder knew no words."""
    rows = []
    for path in sorted(FOLDER.glob("*.clab")):
        model, blob = cl.load(path), path.read_bytes()
        dense, bare = cl.measure.sizes(model).dense_bytes, count_without_words(blob)
        row = {"file": path.stem, "bytes": len(blob), "ratio": f"{dense / len(blob):.0f}x"}
        row["header"] = round(cl.storage.breakdown(model)[-1].bytes)
        rows.append(row | {"without words": bare, "ratio without words": f"{dense / bare:.0f}x"})
    return pd.DataFrame(rows)


def count_without_words(blob):
    """Count the bytes of a .clab file whose header is deflated with an empty dictionary."""
    start = len(container.MAGIC) + 1
    unpacker = zlib.decompressobj(-15, container.DICTIONARY)
    text = unpacker.decompress(blob[start:])
    bare = container.deflate(text, dictionary=None)
    if zlib.decompress(bare, -15) != text:
        raise RuntimeError("the header without a dictionary does not come back")
    return start + len(bare) + len(unpacker.unused_data)


def summary(rows):
    """A line for each record: mean, lowest and highest over the seeds, and whether the target is met."""
    lines = []
    for name, of in rows.groupby("record", sort=False):
        record, errors = RECORDS[name], 100 * of["test error"]
        met = (of["test error"] <= record.error) & (of["ratio"] >= record.ratio)
        lines.append({
            "record": name, "bytes": f"{of['bytes'].mean():,.0f} ({of['bytes'].min():,} to {of['bytes'].max():,})",
            "ratio": f"{of['ratio'].mean():.0f}x",
            "test error %": f"{errors.mean():.2f} ({errors.min():.2f} to {errors.max():.2f})",
            "target": f"{record.ratio:.0f}x at {100 * record.error:.2f}%", "met by": f"{met.sum()} of {len(of)}",
            "seconds": f"{of['seconds'].mean():.0f}", "encode ms": f"{of['encode ms'].mean():.0f}",
            "decode ms": f"{of['decode ms'].mean():.0f}",
        })  # fmt: skip
    return pd.DataFrame(lines)


if __name__ == "__main__":
    main()
