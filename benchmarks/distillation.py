"""Where a teacher helps and where it does not: students with a teacher, without one, and with smoothed labels.

    python -m benchmarks.distillation [--seeds 5] [--quick]

Every row is the same student, from the same initial weights, on the same images, for the same steps, of which there are
enough for its accuracy to be level. Only the loss differs, and the learning rate: each row has the one of RATES that is
best on the validation images (a seed of its own). Test accuracy in percent, mean and standard deviation over seeds, and
the gain over "no teacher", seed by seed. The last column is the validation accuracy that half the steps give, less the
one that all of them give: near 0 where the training has converged. The test images choose nothing.
"""

import argparse
import statistics

import torch

import compresslab as cl

FAIR = {"no teacher": {"alpha": 0.0}, "label smoothing": {"alpha": 0.0, "label_smoothing": 0.1}}
RATES = (1e-3, 3e-3, 1e-2)
TUNING_SEED = 100
FEW, NARROW = {"width": 0.2, "share": 0.01}, {"width": 0.1, "share": 1.0}
CASES = [  # (name, teacher, data, steps, setting)
    ("500 images", "article_mlp", "mnist", 600, FEW),
    ("500 images", "article_mlp", "fashion_mnist", 600, FEW),
    ("all images, narrow student", "article_mlp", "mnist", 4000, NARROW),
    ("all images, narrow student", "article_mlp", "fashion_mnist", 4000, NARROW),
]


def accuracies(teacher, data, steps, setting, seed, lr):
    """Validation and test accuracy, in percent, of one student."""
    technique = cl.distillation.TECHNIQUE
    student = technique.apply(teacher, data.train.images[:2], **setting, seed=seed)
    split, loss = technique.training(teacher, student, data.train, setting, seed)
    student = cl.train.finetune(student, split, steps=steps, seed=seed, loss=loss, lr=lr, bar=False)
    return [100 * cl.measure.accuracy(student, part) for part in (data.validation, data.test)]


def tuned(teacher, data, steps, setting):
    """The learning rate that is best on the validation images, and what half the steps lose with it there."""
    full = {lr: accuracies(teacher, data, steps, setting, TUNING_SEED, lr)[0] for lr in RATES}
    best = max(full, key=full.get)
    return best, accuracies(teacher, data, steps // 2, setting, TUNING_SEED, best)[0] - full[best]


def ways(setting):
    """Label -> setting: the kinds of knowledge, temperatures, and the fair controls."""
    taught = {f"response, T = {t:g}": {"temperature": t} for t in (1.0, 4.0, 12.0)}
    taught |= {kind: {"knowledge": kind} for kind in ("feature", "relation")}
    return {label: setting | own for label, own in (taught | FAIR).items()}


def report(name, model, dataset, steps, setting, seeds):
    """Measure and print one case."""
    teacher, data = cl.models.pretrained(model, dataset), cl.data.load(dataset)
    rates = {label: tuned(teacher, data, steps, own) for label, own in ways(setting).items()}
    found = {
        label: [accuracies(teacher, data, steps, own, seed, rates[label][0]) for seed in range(seeds)]
        for label, own in ways(setting).items()
    }
    validation = {label: statistics.mean(row[0] for row in rows) for label, rows in found.items()}
    best = max((label for label in found if label.startswith("response")), key=validation.get)
    right = 100 * cl.measure.accuracy(teacher, data.test)
    print(f"\n{dataset}, {model} ({right:.2f}%), {name}, {steps} steps, {seeds} seeds; best by validation: {best}")
    alone = [row[1] for row in found["no teacher"]]
    for label, rows in found.items():
        test = [row[1] for row in rows]
        gains = [one - other for one, other in zip(test, alone, strict=True)]
        spread = statistics.stdev(test) if seeds > 1 else 0.0
        told = f"{label:18} {statistics.mean(test):6.2f} ±{spread:.2f}   gain {statistics.mean(gains):+.2f}"
        print(
            f"{told} ({min(gains):+.2f} to {max(gains):+.2f})   lr {rates[label][0]:g}, half: {rates[label][1]:+.2f}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the cases with few images only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for case in CASES[:2] if arguments.quick else CASES:
        report(*case, arguments.seeds)
