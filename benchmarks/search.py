"""Search against a grid: with as many trainings in the same space, which finds the smaller file at an accuracy?

    python -m benchmarks.search [--trials 24] [--seeds 5] [--steps 100]

Paired: search and grid share each seed of the trainings. The grid crosses removed neurons, density, and bits of a grid
or a codebook, over the ranges that the search draws from. Points are judged on the validation images, as both choose by
them; the limit is half a point below the dense network.
"""

import argparse
import itertools

import pandas as pd
import torch

import compresslab as cl
from compresslab.experiments.search import NothingFitsError

NEURONS = (0.0, 0.4, 0.8)
DENSITIES = (0.3, 0.1, 0.03)  # evenly spaced in the logarithm, as they are drawn
VALUES = (("quantization", 4), ("weight_sharing", 4), ("weight_sharing", 2))
POINTS = 0.5


def list_grid(trials, steps):
    """Return recipes of a grid over the space of `cl.search`, the first `trials` of them."""
    recipes = []
    for neurons, density, (technique, bits) in itertools.product(NEURONS, DENSITIES, VALUES):
        chosen = [("activation_pruning", {"sparsity": neurons, "statistic": "variance"})] if neurons else []
        chosen += [("zero_pruning", {"sparsity": 1 - density}), (technique, {"bits": bits})]
        recipes.append(cl.Recipe([step for part in chosen for step in (part, ("retrain", {"steps": steps}))]))
    return recipes[:trials]


def find_smallest(recipes, net, data, seed, limit):
    """Return the fewest bytes among the recipes that keep the accuracy, or nan."""
    tables = [recipe.table(net, data, seed=seed, bar=False) for recipe in recipes]
    sizes = [table["file_bytes"].iloc[-1] for table in tables if table["accuracy"].iloc[-1] >= limit]
    return min(sizes, default=float("nan"))


def main():
    """Print a row for each seed, and the mean ratio with its spread."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=len(NEURONS) * len(DENSITIES) * len(VALUES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, net = cl.data.load("mnist"), cl.models.pretrained("lenet_300_100", "mnist")
    limit = cl.measure.accuracy(net, data.validation) - POINTS / 100
    rows = []
    for seed in range(options.seeds):
        recipes = list_grid(options.trials, options.steps)
        grid = find_smallest(recipes, net, data, seed, limit)
        limits = {"min_accuracy": limit, "trials": len(recipes)}
        try:
            searched = cl.search(net, data, seed=seed, steps=options.steps, bar=False, **limits).file_bytes
        except NothingFitsError:
            searched = float("nan")
        rows.append({"seed": seed, "grid": grid, "search": searched, "search / grid": searched / grid})
        print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False, header=seed == 0), flush=True)
    ratio = pd.DataFrame(rows)["search / grid"]
    print(f"mean ratio {ratio.mean():.3f}, from {ratio.min():.3f} to {ratio.max():.3f}; below 1 the search is better")


if __name__ == "__main__":
    main()
