"""What each technique gives: parameters, file bytes, accuracy before and after retraining, on both data sets.

    python -m benchmarks.techniques [--data mnist fashion_mnist] [--techniques …] [--seeds 5]

For each technique a few settings are retrained for 2 epochs and measured on the validation images, with two seeds.
Chosen is the smallest file that loses at most 0.3 points there (where none does, the most accurate). That one setting
is then compressed and retrained with every seed and measured on the test images: the table.
"""

import argparse
import statistics
import time
import warnings

import pandas as pd
from tqdm.auto import tqdm

import compresslab as cl

EPOCHS = 2
ALLOWED = 0.003  # of the validation accuracy
CHOOSING_SEEDS = [100, 101]
CANDIDATES = {  # technique: (network, settings to choose from)
    "distillation": ("article_mlp", [{"width": width} for width in (0.05, 0.1, 0.2, 0.3, 0.5)]),
    "zero_pruning": ("lenet_300_100", [{"sparsity": share} for share in (0.8, 0.9, 0.93, 0.95, 0.97)]),
    "activation_pruning": (
        "article_mlp",
        [{"sparsity": share, "statistic": "variance"} for share in (0.4, 0.5, 0.6, 0.7, 0.8)],
    ),
    "redundancy_pruning": ("article_mlp", [{"similarity": one} for one in (0.6, 0.7, 0.8, 0.9, 0.95)]),
    "low_rank": ("lenet_300_100", [{"rank": rank} for rank in (5, 10, 15, 20, 30, 40)]),
    "quantization": ("lenet_300_100", [{"bits": bits} for bits in (1, 2, 3, 4, 5)]),
}


def chosen(technique, model, data, settings):
    """The setting of the smallest file that loses at most 0.3 points on the validation images."""
    dense = cl.measure.accuracy(model, data.validation)
    runs = cl.sweep.run(technique, model, data, settings, epochs=EPOCHS, seed=CHOOSING_SEEDS, journal=False, bar=False)
    results = {}
    for run in runs:
        results.setdefault(str(run.setting), []).append(run)
    rows = [(_mean(same, "file_bytes"), _mean(same, "accuracy"), same[0].setting) for same in results.values()]
    good = [row for row in rows if row[1] >= dense - ALLOWED]
    best = min(good, key=lambda row: row[0]) if good else max(rows, key=lambda row: row[1])
    return best[2]


def row(technique, network, data, setting, seeds):
    """One row of the table: the setting with every seed, on the test images."""
    model = cl.models.pretrained(network, data.name)
    dense, full = cl.measure.accuracy(model, data.test), cl.layers.count_parameters(model)
    measured, started = [], time.perf_counter()
    for seed in range(seeds):
        recipe = cl.sweep.Recipe(technique, setting, epochs=EPOCHS, seed=seed)
        for event in cl.sweep.stages(recipe, model, data, journal=False):
            if event.result:
                accuracy = cl.measure.accuracy(event.model, data.test)
                result = event.result
                measured.append((event.stage, accuracy, result.parameters, result.file_bytes))
    seconds = (time.perf_counter() - started) / seeds
    before, after = ([one for one in measured if one[0] == stage] for stage in ("one-shot", "retrained"))
    accuracies = [one[1] for one in after]
    return {
        "technique": technique,
        "network": network,
        "data": data.name,
        "setting": ", ".join(f"{name}={value}" for name, value in setting.items()),
        "parameters": f"{after[0][2]:,} ({after[0][2] / full - 1:+.0%})",
        "file bytes": f"{statistics.mean(one[3] for one in after):,.0f}",
        "dense %": f"{dense:.2%}",
        "one-shot %": f"{statistics.mean(one[1] for one in before):.2%}",
        "retrained %": f"{statistics.mean(accuracies):.2%}",
        "lowest to highest": f"{min(accuracies):.2%} to {max(accuracies):.2%}",
        "points": f"{100 * (statistics.mean(accuracies) - dense):+.2f}",
        "seconds a seed": f"{seconds:.1f}",
    }


def _mean(results, name):
    return statistics.mean(getattr(result, name) for result in results)


def main():
    """Choose, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=["mnist", "fashion_mnist"])
    parser.add_argument("--techniques", nargs="+", default=list(CANDIDATES))
    parser.add_argument("--seeds", type=int, default=5)
    wanted = parser.parse_args()
    rows = []
    for name in wanted.data:
        data = cl.data.load(name)
        for technique in tqdm(wanted.techniques, desc=name):
            network, settings = CANDIDATES[technique]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the last layer is left alone, again and again
                setting = chosen(technique, cl.models.pretrained(network, name), data, settings)
                rows.append(row(technique, network, data, setting, wanted.seeds))
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
