"""Train the baselines that ship in data/baselines again: `make baselines`, or `python -m compresslab.baselines`.

Each network is trained once per data set, on the 50,000 training images, from a fixed seed, in fp32 on one thread, with
some of the pixels dropped (Srivastava et al. 2014, "Dropout"); the settings below were chosen on the validation images.
The test accuracy is printed and written down, and decides nothing.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional

from compresslab import data, models, paths, train

SETTINGS = {
    "article_mlp": dict(epochs=15, batch_size=128, lr=2e-3),
    "lenet_300_100": dict(epochs=15, batch_size=128, lr=2e-3),
    "lenet_5": dict(epochs=10, batch_size=128, lr=2e-3),
}
PIXELS_DROPPED = {"article_mlp": 0.2, "lenet_300_100": 0.2, "lenet_5": 0.1}
SEED = 0


def make(name, dataset, folder):
    """Train one baseline and write it to `folder`/baselines; returns a line of what was measured."""
    sets = data.load(dataset)
    model = models.build(name, seed=SEED)
    layout = "fp32+channels_last" if name == "lenet_5" else "fp32"

    def loss(model, images, labels):
        return functional.cross_entropy(model(functional.dropout(images, PIXELS_DROPPED[name])), labels)

    with train.threads(1):
        for _ in train.fit(model, sets.train, seed=SEED, loss=loss, precision=layout, device="cpu", **SETTINGS[name]):
            pass
        measured = {
            part: round(train.accuracy_of(train.evaluate(model, split), split.labels), 4)
            for part, split in (("validation", sets.validation), ("test", sets.test))
        }
    path = Path(folder) / models.baseline_file(name, dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = SETTINGS[name] | {"pixels_dropped": PIXELS_DROPPED[name], "seed": SEED}
    told = dict(name=name, dataset=dataset, settings=settings, accuracy=measured, torch=torch.__version__)
    save_file(model.state_dict(), path, metadata={"baseline": json.dumps(told, sort_keys=True)})
    return f"{dataset:15} {name:15} validation {measured['validation']:.2%}  test {measured['test']:.2%}"


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
