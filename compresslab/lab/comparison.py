"""Curves of any number of labs over one another, from the journal: which technique gives what at which size."""

import pandas as pd

from compresslab import checks, fingerprints, measure, models, techniques
from compresslab import data as datasets
from compresslab import journal as journals
from compresslab.lab import plots
from compresslab.lab.explorer import Lab
from compresslab.lab.session import DATA

STAGES = ("retrained", "one-shot")


def compare(*sources, model="lenet_300_100", data="mnist", stage="retrained", journal=None, front=True, ax=None):
    """Lay measured curves over one another, with the band of their seeds and the Pareto front of them all.

    sources  each one of: a Lab, for the curve through its chosen point, with every seed that the journal holds; a
             technique's name (or a Technique, or a Recipe), for all that the journal holds of it; a DataFrame of
             Results, as `lab.results` or `cl.journal.frame` give it; or a pair (label, one of those). None at all:
             every technique that the journal holds for the model and the data
    model, data  names, for techniques given by name
    stage    "retrained" or "one-shot", for techniques given by name and DataFrames
    journal  a Journal or a path, for techniques given by name; None takes the default one; not opened for other sources
    front    draw the Pareto front: the points than which no other is both smaller and more accurate
    returns  ax; accuracy is on the validation images, sizes are those of the .clab files
    raises   ValueError for a source of which nothing is measured, or that is none of those
    """
    checks.choice("stage", stage, STAGES)
    if not sources:
        sources = _techniques(journal, model, data, stage)
    found = [_source(one, model, data, stage, journal) for one in sources]
    where = {_of(results) for _, results, _ in found} - {""}
    curves = [(f"{label} ({_of(results)})" if len(where) > 1 else label, means(results)) for label, results, _ in found]
    ax = plots.frame_around(pd.concat([points for _, points in curves]), ax)
    for accuracy in dict.fromkeys(dense for *_, dense in found if dense is not None):
        plots.baseline(ax, accuracy)
    if front:
        plots.front(ax, pareto(pd.concat([points for _, points in curves])))
    for number, (label, points) in enumerate(curves):
        color, marker = plots.SERIES[number % len(plots.SERIES)][0], plots.SERIES[_marker(number)][1]
        plots.series(ax, points, color, marker, label=label, hollow=stage == "one-shot")
    ax.legend(fontsize=plots.TEXT - 1, frameon=False, loc="lower right")
    ax.set_gid(_words(curves))  # a text alternative, as the figure's title in an SVG
    return ax


def means(results):
    """One row for each setting and number of steps: file_bytes and accuracy, means over the seeds; low, high; seeds."""
    settings = [name for name in results.columns if name not in plots.MEASURED - {"steps"}]
    keys = results[settings].map(str).agg("|".join, axis=1) if settings else results.index
    grouped = results.groupby(keys, sort=False)
    together = grouped.agg(
        file_bytes=("file_bytes", "mean"),
        accuracy=("accuracy", "mean"),
        low=("accuracy", "min"),
        high=("accuracy", "max"),
        seeds=("accuracy", "size"),
    )
    return together.sort_values("file_bytes").reset_index(drop=True)


def pareto(points, same=0.005):
    """The rows of `points` (file_bytes, accuracy) that no other row beats, smallest first.

    same  share by which sizes may differ and still count as equal: files of one shape differ by some bytes
    """
    sizes, accuracies = (points[name].to_numpy(dtype=float) for name in ("file_bytes", "accuracy"))
    no_larger = sizes[:, None] <= (1 + same) * sizes  # (rows, rows): whether the first is no larger than the second
    ties = (accuracies[:, None] == accuracies) & (sizes[:, None] < sizes)
    beaten = (no_larger & (accuracies[:, None] > accuracies)) | ties
    return points[~beaten.any(axis=0)].sort_values("file_bytes")


def _source(source, model, data, stage, journal):
    """(label, DataFrame of Results, the dense model's accuracy or None) of one source."""
    label, source = source if isinstance(source, tuple) and len(source) == 2 else (None, source)
    if isinstance(source, Lab):
        results, dense = source.family(), source.dense_accuracy
        label = label or source.title
    elif isinstance(source, pd.DataFrame):
        results, dense = _frame(source, stage), None
        label = label or _label(results)
    elif isinstance(source, (str, techniques.Technique)) or hasattr(source, "as_technique"):
        technique = techniques.get(source)
        results, dense = _measured(technique, model, data, stage, journal), _dense(model, data)
        label = label or technique.name
    else:
        raise ValueError(
            f"source is a {type(source).__name__}; give a Lab, a technique's name or a DataFrame of results"
        )
    if not len(results):
        raise ValueError(f"nothing is measured of {label!r} yet ({stage}); open its lab, or run a sweep")
    return label, results, dense


def _techniques(journal, model, data, stage):
    """Names of the techniques of which the journal holds something for a model and data."""
    held = {result.technique for result in _open(journal).results(model=model, data=data, stage=stage)}
    if names := [name for name in techniques.names() if name in held]:
        return names
    raise ValueError(f"the journal holds nothing for model {model!r} and data {data!r}; open a lab, or run a sweep")


def _open(journal):
    return journal if isinstance(journal, journals.Journal) else journals.open(journal)


def _measured(technique, model, data, stage, journal):
    """What the journal holds of a technique as its code is now."""
    held = _open(journal).results(technique=technique.name, model=model, data=data, stage=stage)
    code = fingerprints.of_technique(technique)
    return journals.frame([result for result in held if result.versions.get("technique") == code])


def _frame(results, stage):
    if missing := {"accuracy", "file_bytes"} - set(results.columns):
        raise ValueError(f"results has no column {', '.join(sorted(missing))}; give the frame of a sweep or a lab")
    return results[results["stage"] == stage].dropna(axis=1, how="all") if "stage" in results else results


def _label(results):
    return ", ".join(dict.fromkeys(results["technique"])) if "technique" in results else "results"


def _of(results):
    """Of which models and data results are: "lenet_5, mnist"."""
    names = [name for column in ("model", "data") if column in results for name in dict.fromkeys(results[column])]
    return ", ".join(names)


def _dense(model, data):
    """Validation accuracy of a reference network; None for a model of one's own."""
    if model not in models.names() or data not in DATA:
        return None
    return measure.accuracy(models.pretrained(model, data), datasets.load(data).validation)


def _marker(number):
    return (number + number // len(plots.SERIES)) % len(plots.SERIES)


def _words(curves):
    told = [f"{label}: best {points['accuracy'].max():.2%}" for label, points in curves]
    return f"Measured accuracy against file size. {'; '.join(told)}."
