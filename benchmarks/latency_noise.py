"""How often compare_latency is wrong on this machine: the same model twice, and models of known different size.

    python benchmarks/latency_noise.py [--repeats 20]

Expected, also on a busy machine: at most 2% of the identical pairs called different, and every larger model "slower".
"""

import argparse
import copy
from collections import Counter

from torch import nn

import compresslab as cl


def mlp(scale=1.0):
    """A 784-300-100-10 network with its hidden layers scaled."""
    wide, narrow = round(300 * scale), round(100 * scale)
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, wide), nn.ReLU()),
        *(nn.Linear(wide, narrow), nn.ReLU(), nn.Linear(narrow, 10)),
    )


def verdicts(name, make_a, make_b, batch_size, repeats):
    """Compare `repeats` fresh pairs and print what was said of the second model."""
    results = []
    for _ in range(repeats):
        a = make_a()
        results.append(cl.measure.compare_latency(a, make_b(a), batch_size=batch_size))
    said = ", ".join(f"{verdict} {count}" for verdict, count in Counter(one.verdict for one in results).most_common())
    ratios = sorted(one.ratio for one in results)
    print(f"{name:28} batch {batch_size:3}: {said}; ratio {ratios[0]:.3f} to {ratios[-1]:.3f}", flush=True)


def main():
    """Print the verdicts; about a minute on an idle machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    for batch_size in (1, 256):
        verdicts("MLP and its copy", mlp, copy.deepcopy, batch_size, repeats)
        for scale in (1.25, 2.0):
            verdicts(f"MLP and one {scale} times as wide", mlp, lambda a, s=scale: mlp(s), batch_size, repeats // 4)
    verdicts("LeNet-5 and its copy", cl.models.lenet_5, copy.deepcopy, 1, repeats)


if __name__ == "__main__":
    main()
