"""Train the baselines that ship in data/baselines again: `make baselines`, or `python -m benchmarks.records.baselines`.

Each network is trained once per data set, on the 50,000 training images, from a fixed seed, in fp32 on one thread, with
weight decay (Krogh and Hertz 1991), dropout before some layers (Srivastava et al. 2014) and, where a mirrored image is
still of its class, mirrored images. Without weight decay, pruning would look worse than it is on networks people use.
It pulls towards a hundredth of the initial weights, not to 0, since the weights of pixels that are always black would
become denormal numbers, with which a CPU computes many times more slowly.
The settings were chosen on the validation images. The test accuracy is printed and written down, and decides nothing.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional

from compresslab import data, models, paths, train

SETTINGS = dict(epochs=15, batch_size=128, lr=2e-3)
DROPOUT = {"article_mlp": {"fc1": 0.2}, "lenet_300_100": {"fc1": 0.2}, "lenet_5": {"fc1": 0.3, "fc2": 0.3}}
PRECISION = {"article_mlp": "fp32", "lenet_300_100": "fp32", "lenet_5": "fp32+channels_last"}
WEIGHT_DECAY = 1e-4  # times half the squared distance
MIRRORED = {("lenet_5", "fashion_mnist")}
SEED = 0


def make(name, dataset, folder):
    """Train one baseline and write it to `folder`/baselines; returns a line of what was measured."""
    sets = data.load(dataset)
    model = models.build(name, seed=SEED)
    told = SETTINGS | {"seed": SEED, "precision": PRECISION[name]}
    with train.threads(1):
        for _ in train.fit(model, sets.train, loss=regularized(model, name, dataset), device="cpu", **told):
            pass
        measured = {
            part: round(train.accuracy_of(train.evaluate(model, split), split.labels), 4)
            for part, split in (("validation", sets.validation), ("test", sets.test))
        }
    path = Path(folder) / models.baseline_file(name, dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    told |= {"weight_decay": WEIGHT_DECAY, "dropout": DROPOUT[name], "mirrored": (name, dataset) in MIRRORED}
    told = {"name": name, "dataset": dataset, "settings": told, "accuracy": measured, "torch": str(torch.__version__)}
    save_file(model.state_dict(), path, metadata={"baseline": json.dumps(told, sort_keys=True)})
    path.chmod(0o644)
    return f"{dataset:15} {name:15} validation {measured['validation']:.2%}  test {measured['test']:.2%}"


def regularized(model, name, dataset):
    """The loss of a baseline: cross entropy behind dropout, with weight decay; images mirrored where that is sound."""
    rest = [weight.detach() / 100 for weight in model.parameters()]

    def loss(model, images, labels):
        if (name, dataset) in MIRRORED:
            images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
        for layer, module in model.named_children():
            images = module(functional.dropout(images, DROPOUT[name].get(layer, 0.0)))
        distance = sum((one - other).square().sum() for one, other in zip(model.parameters(), rest, strict=True))
        return functional.cross_entropy(images, labels) + WEIGHT_DECAY / 2 * distance

    return loss


def main():
    """Train all baselines, or those whose names are given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=models.names(), help="networks (default: all)")
    parser.add_argument("--folder", default=paths.PACKAGE.parent / "data", help="data folder to write to")
    chosen = parser.parse_args()
    for dataset in ("mnist", "fashion_mnist"):
        for name in chosen.names:
            print(make(name, dataset, chosen.folder), flush=True)


if __name__ == "__main__":
    main()
