"""The smallest files: networks trained for the length of their .clab file, measured as a fresh process decodes them.

    python -m benchmarks.records [--records NAME …] [--seeds 0 1 2 3 4] [--keep] [--quick]

Each record is a reference network of its full shape. Its settings were chosen on the validation images; what is printed
is measured on the 10,000 test images, seed by seed, by a process that has nothing but the file. --keep writes the file
of the seed with the best validation accuracy to data/records. Everything is computed on one thread, and the seconds are
those of the processor, from the data as they ship to the file: images are distorted, a teacher learns them, a network
with few units learns from it, its weights go on grids and are charged for the bits of their codes (`compresslab.rate`),
and what is left is written into the reference network's shape (`compresslab.structure.embedding`).
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import compresslab as cl
from compresslab import knowledge, rate
from compresslab.augmentation import augmented
from compresslab.structure.embedding import embed, unrolled

FOLDER = Path(__file__).parent.parent / "data" / "records"
SEEDS = [0, 1, 2, 3, 4]
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
    small        small(seed) -> network with few units;  full  full(small) -> the same function in the reference's shape
    epochs       (before, after) the weights go on their grids, each as many images as the training set has
    lr, batch    of both trainings;  price  loss for 10,000 bits;  settle  share of the second in which zeros stay zero
    copies       distorted copies of the training images
    error, ratio at most and at least, on the test images: the target
    """

    reference: str
    data: str
    small: Callable
    full: Callable
    epochs: tuple
    lr: float
    batch: int
    price: float
    settle: float = 0.3
    copies: int = 4
    top: int = 7
    error: float = 1.0
    ratio: float = 0.0
    distortion: dict | None = None


def narrow_lenet_5(first, second, hidden):
    """LeNet-5 with fewer maps and units. The convolutions need no bias: max pooling and fc1's bias take it over."""

    def small(seed):
        return _seeded(seed, lambda: nn.Sequential(
            nn.Conv2d(1, first, 5, bias=False), nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, bias=False), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(16 * second, hidden), nn.ReLU(), nn.Linear(hidden, 10),
        ))  # fmt: skip

    return small


def tied_lenet_5(first, second, maps, kernel):
    """LeNet-5 with fewer maps, whose fc1 is a convolution of the 4 x 4 places that it sees."""
    units = maps * (5 - kernel) ** 2

    def small(seed):
        return _seeded(seed, lambda: nn.Sequential(
            nn.Conv2d(1, first, 5, bias=False), nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, bias=False), nn.MaxPool2d(2),
            nn.Conv2d(second, maps, kernel), nn.ReLU(), nn.Flatten(), nn.Linear(units, 10),
        ))  # fmt: skip

    return small


def in_lenet_5(small):
    """A narrow or tied LeNet-5 in the full shape."""
    small = cl.layers.plain(small)
    if isinstance(small[4], nn.Conv2d):
        small = nn.Sequential(*small[:4], *unrolled(small[4:], (small[4].in_channels, 4, 4)))
    return embed(small, cl.models.lenet_5(0))


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


def make(record, seed):
    """(model in the reference's shape, seconds of the processor) of one seed."""
    start, data = time.process_time(), cl.data.load(record.data)
    images, task = lessons(record, data)
    small = record.small(seed)
    task.prepare(small, images.images)
    before, after = (round(epochs * len(data.train) / record.batch) for epochs in record.epochs)
    training = {"lr": record.lr, "batch_size": record.batch, "precision": "auto", "bar": sys.stderr.isatty()}
    small = cl.train.finetune(small, images, steps=before, seed=seed, loss=task, **training)
    settle = round((1 - record.settle) * after)
    charged = rate.RateLoss(task, record.price * 1e-4, ramp=settle // 2, settle=settle)
    small = rate.on_grids(small, record.top)
    small = cl.train.finetune(small, images, steps=after, seed=seed + 1, loss=charged, **training)
    return record.full(small), time.process_time() - start


def lessons(record, data):
    """(Split of the images and their copies, loss that knows the teacher's answers to them)."""
    images = augmented(data.train, record.copies, seed=0, **(record.distortion or {}))
    teacher = cl.models.pretrained("lenet_5", record.data)
    teacher = cl.train.finetune(teacher, images, epochs=1.2, lr=1.5e-3, batch_size=256, bar=sys.stderr.isatty())
    task = knowledge.loss(teacher, temperature=2.0, alpha=0.9)
    task.prepare(teacher, images.images)
    return task.remember(images, most=len(images)), task


def measured(path, data):
    """(validation error, test error) of a file, by a process that has nothing else."""
    found = subprocess.run([sys.executable, "-c", DECODE, str(path), data], capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def _seeded(seed, build):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()
