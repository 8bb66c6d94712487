"""The article's five experiments on its own network, with seeds and fair controls, and a map of all techniques.

    python -m benchmarks.audit            # measures everything, writes data/measured/10.csv, prints and draws it
    python -m benchmarks.audit --report   # prints and draws what the csv holds

The article is "Model Compression: An Overlooked ML Technique", Daily Dose of Data Science. Each experiment is one or
more arms; an arm is a technique with a setting and a length of training, and is run with five seeds. The map adds the
strengths of every technique, with three seeds. All retrainings are equally long, the dense network's too. Students
start from nothing, so they also get a long training; their learning rates and temperature are chosen on the validation
images, with a seed of their own. The other settings are the article's, those of earlier notebooks, or a fixed grid.
No setting is chosen on the test images.
"""

import argparse
import itertools
import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from torch import nn
from tqdm.auto import tqdm

import compresslab as cl
from compresslab.lab import plots

ROOT = Path(__file__).parent.parent
CSV, PICTURE = ROOT / "data" / "measured" / "10.csv", ROOT / "docs" / "article.png"
RETRAINING, LONG = 2, 10  # epochs: of every retraining, and of the long training of small networks
SEEDS, MAP_SEEDS, TUNING_SEED = 5, 3, 100
RATES, TEMPERATURES = (1e-3, 3e-3, 1e-2), (1.0, 4.0)
WIDTH = 0.2  # of the student's hidden layers, a fraction of the teacher's
POINTS = 0.62  # percentage points lost: the price that the article names, for 72% fewer parameters
ALLOWED = 0.5  # points lost on the validation images by the settings that the choice is from
MAP, SMALL_NET = "map", "small net from scratch"


def copy_dense(model: nn.Module) -> nn.Module:
    """Return a copy: the dense network, to be retrained as long as the compressed ones."""
    return cl.layers.duplicate(model)


def multiply_back(model: nn.Module, images, rank: int) -> nn.Module:
    """Factorize every layer, multiply the factors, and put the products where the weights were."""
    factorized, product = cl.low_rank.factorize(model, images, rank=rank), cl.layers.duplicate(model)
    for name, layer in cl.layers.weight_layers(product).items():
        factors = factorized.get_submodule(name)
        if isinstance(factors, nn.Sequential):
            layer.weight.data = factors[1].weight.data @ factors[0].weight.data  # (outputs, inputs)
    return product


Technique = cl.techniques.base.Technique
DENSE = Technique("dense", copy_dense, ())
MULTIPLIED = Technique("low_rank, multiplied back", multiply_back, (), calibration=cl.low_rank.CALIBRATION)


@dataclass(frozen=True)
class Arm:
    """One way to compress, run with every seed: technique, setting, epochs of training, learning rate."""

    experiment: str
    label: str
    technique: object
    setting: dict
    epochs: int = RETRAINING
    seeds: int = SEEDS
    lr: float | None = None


ARTICLE_ARMS = [
    Arm("dense", "dense", DENSE, {}),
    Arm("zero pruning", "50% zeros", "zero_pruning", {"sparsity": 0.5}),
    Arm("zero pruning", "90% zeros", "zero_pruning", {"sparsity": 0.9}),
    Arm("zero pruning", "90% zeros, at random", "zero_pruning", {"sparsity": 0.9, "criterion": "random"}),
    Arm("activation pruning", "mean below 0.4", "activation_pruning", {"threshold": 0.4}),
    Arm("activation pruning", "mean below 0.15", "activation_pruning", {"threshold": 0.15}),
    Arm("activation pruning", "54%, by variance", "activation_pruning", {"sparsity": 0.54, "statistic": "variance"}),
    Arm("activation pruning", "same size, at random", "activation_pruning", {"threshold": 0.15, "statistic": "random"}),
    Arm("activation pruning", "same size, from scratch", "activation_pruning", {"threshold": 0.15, "fresh": True}),
    Arm(
        *("activation pruning", "same size, from scratch, long", "activation_pruning"),
        *({"threshold": 0.15, "fresh": True}, LONG),
    ),
    Arm("low rank", "rank 40, two layers", "low_rank", {"rank": 40}),
    Arm("low rank", "rank 40, multiplied back", MULTIPLIED, {"rank": 40}, epochs=0, seeds=1),
    Arm("low rank", "rank 40, from scratch", "low_rank", {"rank": 40, "fresh": True}),
    *[Arm("quantization", f"{bits} bits", "quantization", {"bits": bits}) for bits in (8, 4, 2)],
]

STRENGTHS = {
    "zero_pruning": ("zero pruning", [{"sparsity": share} for share in (0.5, 0.8, 0.9, 0.95, 0.98)]),
    "activation_pruning": (
        "activation pruning",
        [{"sparsity": share, "statistic": "variance"} for share in (0.3, 0.54, 0.7, 0.8, 0.9)],
    ),
    "redundancy_pruning": ("redundancy pruning", [{"sparsity": share} for share in (0.1, 0.3, 0.5, 0.7)]),
    "low_rank": ("low rank", [{"rank": rank} for rank in (5, 10, 20, 40)]),
    "quantization": ("quantization", [{"bits": bits} for bits in (1, 2, 3, 4, 8)]),
}
STUDENT_WIDTHS = (0.05, 0.1, 0.2, 0.4)


def list_map_arms(taught: dict, taught_lr: float, alone_lr: float) -> list[Arm]:
    """List the arms of the map: every technique at every strength, students with both lengths of training."""
    arms = [
        Arm(MAP, label, technique, setting, seeds=MAP_SEEDS)
        for technique, (label, settings) in STRENGTHS.items()
        for setting in settings
    ]
    for width, (epochs, length) in itertools.product(
        STUDENT_WIDTHS, ((RETRAINING, f", {RETRAINING} epochs"), (LONG, ""))
    ):
        shape = {"width": width}
        arms.append(Arm(MAP, f"student{length}", "distillation", taught | shape, epochs, MAP_SEEDS, taught_lr))
        alone = {"alpha": 0.0} | shape
        arms.append(Arm(MAP, f"{SMALL_NET}{length}", "distillation", alone, epochs, MAP_SEEDS, alone_lr))
    return arms


def choose_students(model: nn.Module, data) -> list[Arm]:
    """List the arms of distillation, learning rates and temperature chosen on the validation images."""

    def tune(setting):
        runs = {
            lr: next(
                cl.sweep.run(
                    *("distillation", model, data, [setting]),
                    **{"epochs": LONG, "seed": TUNING_SEED, "lr": lr, "journal": False, "bar": False},
                )
            ).accuracy
            for lr in RATES
        }
        best = max(runs, key=runs.get)
        return runs[best], best

    # The settings that are compared, each with the learning rate that suits it best.
    settings = {temperature: {"width": WIDTH, "temperature": temperature} for temperature in TEMPERATURES}
    tuned = {name: tune(setting) for name, setting in tqdm(settings.items(), desc="temperatures")}
    chosen = max(tuned, key=lambda name: tuned[name][0])
    alone = {"width": WIDTH, "alpha": 0.0}
    length = {"epochs": LONG}
    return [
        Arm("distillation", "student, T = 1", "distillation", settings[1.0], lr=tuned[1.0][1], **length),
        Arm("distillation", "student, T chosen", "distillation", settings[chosen], lr=tuned[chosen][1], **length),
        Arm("distillation", "same student, no teacher", "distillation", alone, lr=tune(alone)[1], **length),
    ]


def measure_arm(arm: Arm, model: nn.Module, data, seed: int) -> list[dict]:
    """Run an arm with a seed; return a row for the one-shot network and one for the retrained network."""
    trial = cl.sweep.Trial(arm.technique, arm.setting, epochs=arm.epochs, seed=seed, lr=arm.lr)
    rows = []
    for event in cl.sweep.stages(trial, model, data, journal=False):
        if event.result is None or (arm.technique == "distillation" and event.stage == "one-shot"):
            continue  # an untrained student is no result
        tensors = cl.layers.plain(event.model).state_dict().values()
        rows.append(
            {
                "technique": event.result.technique,
                "setting": json.dumps(arm.setting, sort_keys=True),
                "stage": event.stage,
                "epochs": arm.epochs if event.stage == "retrained" else 0,
                "lr": arm.lr,
                "seed": seed,
                "parameters": event.result.parameters,
                "nonzeros": event.result.nonzeros,
                "memory_bytes": sum(tensor.nbytes for tensor in tensors),
                "file_bytes": event.result.file_bytes,
                "validation": event.result.accuracy,
                "test": round(cl.measure.accuracy(event.model, data.test), 4),
            }
        )
    return rows


def measure_all(model: nn.Module, data) -> pd.DataFrame:
    """Run every arm with every seed; equal trials are run once."""
    students = choose_students(model, data)
    _, taught, alone = students
    doubled = [
        replace(arm, label=f"{arm.label}, twice as long", epochs=2 * LONG, seeds=MAP_SEEDS) for arm in (taught, alone)
    ]
    arms = [*ARTICLE_ARMS, *students, *doubled, *list_map_arms(taught.setting, taught.lr, alone.lr)]
    trials, rows = [(arm, seed) for arm in arms for seed in range(arm.seeds)], []
    measured = {}
    for arm, seed in tqdm(trials, desc="arms and seeds"):
        key = (str(arm.technique), json.dumps(arm.setting, sort_keys=True), arm.epochs, arm.lr, seed)
        if key not in measured:
            measured[key] = measure_arm(arm, model, data, seed)
        rows += [{"experiment": arm.experiment, "arm": arm.label} | row for row in measured[key]]
    return pd.DataFrame(rows)


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each arm, setting and stage: sizes, and mean, lowest and highest accuracy over the seeds."""
    groups = frame.groupby(["experiment", "arm", "setting", "stage"], sort=False)
    table = groups[["parameters", "nonzeros", "memory_bytes", "file_bytes", "validation", "test"]].mean()
    table[["low", "high", "seeds"]] = groups["test"].agg(["min", "max", "size"])
    return table.reset_index()


def find_runs(frame: pd.DataFrame, arm: str, stage: str = "retrained") -> pd.DataFrame:
    """Return the rows of an arm of the five experiments, by seed."""
    rows = frame[(frame["arm"] == arm) & (frame["stage"] == stage) & (frame["experiment"] != MAP)]
    return rows.set_index("seed")


def list_losses(frame: pd.DataFrame, arm: str, against: str = "dense", stage: str = "retrained") -> pd.Series:
    """Return the points of test accuracy that an arm loses, seed by seed, against another arm."""
    return (100 * (find_runs(frame, against)["test"] - find_runs(frame, arm, stage)["test"])).dropna()


def judge(losses: pd.Series, bound: float) -> str:
    """Say whether a loss is at most `bound`: yes or no only if all seeds agree."""
    if (losses <= bound + 1e-9).all():
        return "holds"
    return "does not hold" if (losses > bound + 1e-9).all() else "cannot tell"


def describe_range(points: pd.Series) -> str:
    """Return the mean and the range of points as text."""
    mean, low, high = (round(value, 2) + 0.0 for value in (points.mean(), points.min(), points.max()))  # no -0.00
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def describe_sizes(frame: pd.DataFrame, arm: str, stage: str = "retrained") -> str:
    """Return by how much parameters, file and memory of an arm are smaller than the dense network's."""
    names = {"parameters": "parameters", "nonzeros": "nonzeros", "file_bytes": "file", "memory_bytes": "memory"}
    dense, rows = find_runs(frame, "dense", "one-shot").mean(numeric_only=True), find_runs(frame, arm, stage)
    changes = {text: rows[name].mean() / dense[name] - 1 for name, text in names.items()}
    return ", ".join(f"{text} {round(100 * change):+d}%" for text, change in changes.items()).replace("+0%", "±0%")


CLAIMS = [  # (technique, claim, arm, stage); each allows POINTS to be lost
    ("distillation", "a much smaller student keeps the accuracy", "student, T chosen", "retrained"),
    ("zero pruning", "half of the weights can be zero", "50% zeros", "retrained"),
    ("zero pruning", "90% can be zero", "90% zeros", "retrained"),
    ("activation pruning", "72% fewer parameters, at threshold 0.4", "mean below 0.4", "retrained"),
    ("activation pruning", "72% fewer, lowest means", "mean below 0.15", "retrained"),
    ("activation pruning", "72% fewer, lowest means, not retrained", "mean below 0.15", "one-shot"),
    ("activation pruning", "72% fewer, lowest variances", "54%, by variance", "retrained"),
    ("low rank", "rank 40 keeps the accuracy", "rank 40, two layers", "retrained"),
    ("quantization", "8 bits keep the accuracy", "8 bits", "retrained"),
    ("quantization", "4 bits keep the accuracy", "4 bits", "retrained"),
    ("quantization", "2 bits keep the accuracy", "2 bits", "retrained"),
]
CONTROLS = [  # (arm, its fair control)
    ("student, T chosen", "same student, no teacher"),
    ("student, T chosen, twice as long", "same student, no teacher, twice as long"),
    ("student, T chosen, twice as long", "student, T chosen"),
    ("90% zeros", "90% zeros, at random"),
    ("mean below 0.15", "same size, at random"),
    ("mean below 0.15", "same size, from scratch"),
    ("mean below 0.15", "same size, from scratch, long"),
    ("54%, by variance", "mean below 0.15"),
    ("rank 40, two layers", "rank 40, from scratch"),
]


def judge_claims(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each claim: what was lost, the verdict of the seeds, and which sizes fell."""
    rows = []
    for technique, claim, arm, stage in CLAIMS:
        losses = list_losses(frame, arm, stage=stage)
        sizes = describe_sizes(frame, arm, stage)
        rows.append((technique, claim, describe_range(losses), judge(losses, POINTS), sizes))
    return pd.DataFrame(rows, columns=["technique", "claim", "points lost", "verdict", "sizes"])


def judge_controls(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each fair control: what an arm gains over it, seed by seed, and the verdict."""
    rows = []
    for arm, control in CONTROLS:
        gains = list_losses(frame, control, against=arm)
        rows.append((arm, control, describe_range(gains), compare_arms(gains)))
    return pd.DataFrame(rows, columns=["arm", "control", "points gained", "verdict"])


def judge_widths(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each width of the map's students: what they gain by the teacher, and the verdict."""
    points = frame[(frame["experiment"] == MAP) & frame["arm"].isin(["student", SMALL_NET])]
    widths = points["setting"].map(lambda text: json.loads(text)["width"])
    tests = points.assign(width=widths).pivot(index=["width", "seed"], columns="arm", values="test")
    rows = []
    for width, pair in tests.groupby("width"):
        gains = 100 * (pair["student"] - pair[SMALL_NET])
        rows.append((width, describe_range(gains), compare_arms(gains)))
    return pd.DataFrame(rows, columns=["width", "points gained by the teacher", "verdict"])


def compare_arms(gains: pd.Series) -> str:
    """Say whether an arm is better or worse than its control: only if all seeds agree."""
    words = {"holds": "better", "does not hold": "worse", "cannot tell": "cannot tell"}
    return words[judge(-gains, 0)]


def list_choices(frame: pd.DataFrame) -> pd.DataFrame:
    """Return for each technique of the map its smallest file that loses little on the validation images."""
    dense = find_runs(frame, "dense", "one-shot").iloc[0]
    points = frame[(frame["experiment"] == MAP) & ~frame["arm"].str.endswith("epochs")]
    table = summarize(points[points["stage"] == "retrained"])
    good = table[100 * (dense["validation"] - table["validation"]) <= ALLOWED].sort_values("file_bytes")
    best = good.groupby("arm").head(1)
    lost = [100 * (dense["test"] - best[name]) for name in ("test", "high", "low")]
    return pd.DataFrame(
        {
            "technique": best["arm"],
            "setting": [
                ", ".join(f"{name} {value}" for name, value in json.loads(text).items()) for text in best["setting"]
            ],
            "parameters": best["parameters"].map("{:,.0f}".format),
            "file KiB": (best["file_bytes"] / 1024).map("{:.0f}".format),
            "memory KiB": (best["memory_bytes"] / 1024).map("{:.0f}".format),
            "points lost on test": [
                f"{mean:.2f} ({low:.2f} to {high:.2f})" for mean, low, high in zip(*lost, strict=True)
            ],
        }
    )


def write_markdown(table: pd.DataFrame) -> str:
    """Write a table as Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def draw_map(frame: pd.DataFrame, path: Path) -> None:
    """Draw test accuracy against file size, all techniques, with the bands of their seeds."""
    dense = find_runs(frame, "dense", "one-shot").iloc[0]
    figure = Figure(figsize=(9, 6), layout="constrained")
    ax = figure.add_subplot()
    points = frame[(frame["experiment"] == MAP) & (frame["stage"] == "retrained")]
    for label in dict.fromkeys(points["arm"]):
        if label.endswith("epochs"):  # students after a short training; the long one is shown
            continue
        runs = points[points["arm"] == label]
        runs = runs[["setting", "seed", "file_bytes"]].assign(accuracy=runs["test"])
        if label == SMALL_NET:  # the control of all of them
            plots.series(ax, plots.average_seeds(runs), "black", "s", label=label)
        else:
            plots.curve(runs, ax, (dense["test"], dense["file_bytes"]), label)
    finish_map(ax)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def finish_map(ax) -> None:
    """Put the legend, one entry a technique, beside the map; name the axis after the test images."""
    entries = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ax.legend(entries.values(), entries, fontsize=plots.TEXT - 1, frameon=False, loc="lower right")
    ax.set_ylim(top=99)
    ax.set_ylabel("test accuracy (%)", fontsize=plots.TEXT)


def report(frame: pd.DataFrame) -> None:
    """Print every arm, and the claims with their verdicts; draw the map."""
    table = summarize(frame)
    shown = table[["experiment", "arm", "setting", "stage", "seeds"]].assign(
        parameters=table["parameters"].map("{:,.0f}".format),
        KiB=(table["file_bytes"] / 1024).map("{:,.1f}".format),
        test=[f"{row.test:.2%} ({row.low:.2%} to {row.high:.2%})" for row in table.itertuples()],
    )
    print(shown.to_string(index=False))
    for part in (judge_claims(frame), judge_controls(frame), judge_widths(frame), list_choices(frame)):
        print("\n" + write_markdown(part))
    draw_map(frame, PICTURE)


def main():
    """Measure and write the csv, or read it; then print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="print and draw what the csv holds")
    if not parser.parse_args().report:
        warnings.simplefilter("ignore", UserWarning)  # high thresholds leave single neurons, which is the point here
        data, model = cl.data.load("mnist"), cl.models.pretrained("article_mlp", "mnist")
        CSV.parent.mkdir(exist_ok=True)
        measure_all(model, data).to_csv(CSV, index=False)
    report(pd.read_csv(CSV))


if __name__ == "__main__":
    main()
