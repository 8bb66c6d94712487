"""What each technique gives: parameters, file bytes, accuracy before and after retraining, on both data sets.

    python -m benchmarks.techniques [--data mnist fashion_mnist] [--techniques …] [--seeds 5]

For each technique a few settings are retrained and measured on the validation images, with two seeds. Chosen is the
smallest file that loses at most 0.3 points there (where none does, the most accurate). That one setting is then
compressed and retrained with every seed and measured on the test images: the first table. The second holds named
settings against what they are to reach: so much smaller for so few points, on MNIST.
"""

import argparse
import statistics
import time
import warnings
from dataclasses import dataclass, replace

import pandas as pd
from tqdm.auto import tqdm

import compresslab as cl

ALLOWED = 0.003  # of the validation accuracy
CHOOSING_SEEDS = [100, 101]
SHORT, LONGER = {"epochs": 2}, {"epochs": 3}  # longer, for networks whose every weight is restricted


@dataclass(frozen=True)
class Plan:
    """Which network, which settings to choose from, and how to retrain them."""

    network: str
    settings: list
    training: dict


PLANS = {
    "distillation": Plan(
        "article_mlp", [{"width": width, "temperature": 2.0} for width in (0.1, 0.2, 0.3)], {"epochs": 12}
    ),
    "zero_pruning": Plan("lenet_300_100", [{"sparsity": share} for share in (0.8, 0.9, 0.93, 0.95, 0.97)], SHORT),
    "activation_pruning": Plan(
        "article_mlp", [{"sparsity": share, "statistic": "variance"} for share in (0.4, 0.5, 0.6, 0.7, 0.8)], SHORT
    ),
    "redundancy_pruning": Plan("article_mlp", [{"similarity": one} for one in (0.5, 0.6, 0.7, 0.8, 0.9)], SHORT),
    "low_rank": Plan(
        "lenet_300_100",
        [{"rank": {"fc1": one, "fc2": other}, "method": "activation"} for one, other in ((15, 10), (25, 15), (41, 18))],
        LONGER,
    ),
    "quantization": Plan("lenet_300_100", [{"bits": bits} for bits in (1, 2, 3, 4, 5)], LONGER),
}


def self_taught(model, compressed, split, setting, seed):
    """A training in which the dense network teaches the compressed one; temperature chosen on validation images."""
    return split, cl.distillation.loss(model, temperature=2, alpha=1.0)


TAUGHT = replace(cl.quantization.TECHNIQUE, training=self_taught)
TARGETS = {  # name: (technique, network, setting, training, share of parameters gone, points lost at most)
    "80% fewer by low rank": (
        *("low_rank", "lenet_300_100", {"rank": {"fc1": 41, "fc2": 18}, "method": "activation"}),
        *(LONGER, 0.8, 0.15),
    ),
    "4 bits, not trained": ("quantization", "lenet_300_100", {"bits": 4}, {"steps": 0}, 0.0, 0.2),
    "2 bits, trained": ("quantization", "lenet_300_100", {"bits": 2}, LONGER, 0.0, 0.2),
    "2 bits, trained by the dense network": (TAUGHT, "lenet_300_100", {"bits": 2}, LONGER, 0.0, 0.2),
}


def chosen(technique, model, data, plan):
    """The setting of the smallest file that loses at most 0.3 points on the validation images."""
    dense = cl.measure.accuracy(model, data.validation)
    options = {"seed": CHOOSING_SEEDS, "journal": False, "bar": False, **plan.training}
    runs = cl.sweep.run(technique, model, data, plan.settings, **options)
    results = [[] for _ in plan.settings]
    for run in runs:
        place = next(at for at, one in enumerate(plan.settings) if one.items() <= run.setting.items())
        results[place].append(run)
    rows = [
        (_mean(same, "file_bytes"), _mean(same, "accuracy"), setting)
        for same, setting in zip(results, plan.settings, strict=True)
    ]
    good = [row for row in rows if row[1] >= dense - ALLOWED]
    best = min(good, key=lambda row: row[0]) if good else max(rows, key=lambda row: row[1])
    return best[2]


def measured(technique, model, data, setting, training, seeds):
    """(Result, test accuracy) of a setting with every seed, in two lists: one-shot, and after training."""
    before, after = [], []
    for seed in range(seeds):
        trial = cl.sweep.Trial(technique, setting, seed=seed, **training)
        for event in cl.sweep.stages(trial, model, data, journal=False):
            if event.result:
                found = event.result, cl.measure.accuracy(event.model, data.test)
                (before if event.stage == "one-shot" else after).append(found)
    return before, after or before


def row(technique, network, data, setting, training, seeds):
    """One row of the first table: the setting with every seed, on the test images."""
    model, started = cl.models.pretrained(network, data.name), time.perf_counter()
    dense, full = cl.measure.accuracy(model, data.test), cl.layers.count_parameters(model)
    before, after = measured(technique, model, data, setting, training, seeds)
    seconds = (time.perf_counter() - started) / seeds
    accuracies, parameters = [accuracy for _, accuracy in after], after[0][0].parameters
    return {
        "technique": technique,
        "network": network,
        "data": data.name,
        "setting": ", ".join(f"{name}={value}" for name, value in setting.items()),
        "parameters": f"{parameters:,} ({parameters / full - 1:+.0%})",
        "file bytes": f"{statistics.mean(result.file_bytes for result, _ in after):,.0f}",
        "dense": f"{dense:.2%}",
        "one-shot": f"{statistics.mean(accuracy for _, accuracy in before):.2%}",
        "retrained": f"{statistics.mean(accuracies):.2%}",
        "lowest to highest": f"{min(accuracies):.2%} to {max(accuracies):.2%}",
        "points": f"{100 * (statistics.mean(accuracies) - dense):+.2f}",
        "seconds a seed": f"{seconds:.1f}",
    }


def target(name, data, seeds):
    """One row of the second table: what was asked for, what came of it, and whether that is enough."""
    technique, network, setting, training, fewer, points = TARGETS[name]
    model = cl.models.pretrained(network, data.name)
    dense, full = cl.measure.accuracy(model, data.test), cl.layers.count_parameters(model)
    _, after = measured(technique, model, data, setting, training, seeds)
    lost = [100 * (dense - accuracy) for _, accuracy in after]
    gone = 1 - after[0][0].parameters / full
    return {
        "target": name,
        "fewer parameters": f"{gone:.1%} (at least {fewer:.0%})",
        "points lost": f"{statistics.mean(lost):+.2f} (at most {points})",
        "lowest to highest": f"{min(lost):+.2f} to {max(lost):+.2f}",
        "met": gone >= fewer and statistics.mean(lost) <= points,
    }


def _mean(results, name):
    return statistics.mean(getattr(result, name) for result in results)


def main():
    """Choose, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=["mnist", "fashion_mnist"])
    parser.add_argument("--techniques", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--seeds", type=int, default=5)
    wanted, rows = parser.parse_args(), []
    warnings.simplefilter("ignore", UserWarning)  # the last layer is left alone, again and again
    for name in wanted.data:
        data = cl.data.load(name)
        for technique in tqdm(wanted.techniques, desc=name):
            plan = PLANS[technique]
            setting = chosen(technique, cl.models.pretrained(plan.network, name), data, plan)
            rows.append(row(technique, plan.network, data, setting, plan.training, wanted.seeds))
    print(pd.DataFrame(rows).to_string(index=False))
    data = cl.data.load("mnist")
    names = [name for name, (one, *_) in TARGETS.items() if cl.techniques.get(one).name in wanted.techniques]
    if names:
        print(pd.DataFrame([target(name, data, wanted.seeds) for name in names]).to_string(index=False))


if __name__ == "__main__":
    main()
