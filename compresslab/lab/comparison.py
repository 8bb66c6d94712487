"""Curves of several labs or techniques over one another, from the journal: accuracy at each size."""

import pandas as pd
from matplotlib.axes import Axes

from compresslab import checks, measure, models, techniques
from compresslab import data as datasets
from compresslab.experiments import fingerprints
from compresslab.experiments import journal as journals
from compresslab.lab import plots
from compresslab.lab.explorer import Lab
from compresslab.lab.measurements import DATA


def compare(
    *sources,
    model: str = "lenet_300_100",
    data: str = "mnist",
    stage: str = "retrained",
    journal=None,
    front: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Lay measured curves over one another, with bands of seeds and the Pareto front.

    sources  a Lab, for the curve through its chosen point, with every seed of the journal; a technique (its name, a
             Technique or a Recipe), for all that the journal holds of it; a DataFrame of Results; or a pair (label,
             one of those). None at all: every technique that the journal holds for the model and the data
    model, data, journal  for techniques: names, and a Journal, a path or None for the default one
    stage    "retrained" or "one-shot", for techniques and DataFrames
    front    draw the Pareto front: points that no other point beats on both size and accuracy
    raises   ValueError for a source of which nothing is measured, or that is none of those
    """
    checks.choice("stage", stage, ("retrained", "one-shot"))
    if not sources:
        measured = {result.technique for result in _read(journal, model=model, data=data, stage=stage)}
        if not (sources := [name for name in techniques.names() if name in measured]):
            hint = "open a lab, or run a sweep"
            raise ValueError(f"the journal holds nothing for model {model!r} and data {data!r}; {hint}")
    loaded = [_load(source, model, data, stage, journal) for source in sources]
    subjects = {_name_subjects(results) for _, results, _ in loaded} - {""}
    for label, results, _ in loaded:
        text = f"{label} ({_name_subjects(results)})" if len(subjects) > 1 else label
        ax = plots.curve(results, ax, label=text)
    for accuracy in dict.fromkeys(dense for *_, dense in loaded if dense is not None):
        plots.baseline(ax, accuracy)
    if front:
        plots.front(ax, find_front(pd.concat([plots.average_seeds(results) for _, results, _ in loaded])))
    ax.legend(fontsize=plots.TEXT - 1, frameon=False, loc="lower right")
    best = "; ".join(f"{label}: best {results['accuracy'].max():.2%}" for label, results, _ in loaded)
    ax.set_gid(f"Measured accuracy against file size. {best}.")  # a text alternative, as the figure's title in an SVG
    return ax


def find_front(points: pd.DataFrame, same: float = 0.005) -> pd.DataFrame:
    """Return the rows of `points` (file_bytes, accuracy) that no other row beats, smallest first.

    same  share by which sizes may differ and still count as equal: files of one shape differ by some bytes
    """
    sizes, accuracies = (points[name].to_numpy(dtype=float) for name in ("file_bytes", "accuracy"))
    no_larger = sizes[:, None] <= (1 + same) * sizes  # (rows, rows): whether the first is no larger than the second
    ties = (accuracies[:, None] == accuracies) & (sizes[:, None] < sizes)
    beaten = (no_larger & (accuracies[:, None] > accuracies)) | ties
    return points[~beaten.any(axis=0)].sort_values("file_bytes")


def _read(journal, **where):
    opened = journal if isinstance(journal, journals.Journal) else journals.open(journal)
    return opened.results(**where)


def _load(source, model, data, stage, journal):
    """Return (label, DataFrame of Results, the dense model's accuracy or None) of a source."""
    label, source = source if isinstance(source, tuple) and len(source) == 2 else (None, source)
    dense = None
    if isinstance(source, Lab):
        label, results = label or source.title, source.family()
        dense = source.measurements.subject(source.choice).accuracy
    elif isinstance(source, pd.DataFrame):
        plots.check_columns(source)
        results = source[source["stage"] == stage].dropna(axis=1, how="all") if "stage" in source else source
        label = label or ", ".join(dict.fromkeys(source.get("technique", ["results"])))
    elif isinstance(source, (str, techniques.Technique)) or hasattr(source, "as_technique"):
        technique = techniques.get(source)
        label, code = label or technique.name, fingerprints.of_technique(technique)  # of the technique as it is now
        measured = _read(journal, technique=technique.name, model=model, data=data, stage=stage)
        results = journals.frame([result for result in measured if result.versions.get("technique") == code])
        if model in models.names() and data in DATA:
            dense = measure.accuracy(models.pretrained(model, data), datasets.load(data).validation)
    else:
        kind = type(source).__name__
        raise ValueError(f"source is a {kind}; give a Lab, a technique's name or a DataFrame of results")
    if not len(results):
        raise ValueError(f"nothing is measured of {label!r} yet ({stage}); open its lab, or run a sweep")
    return label, results, dense


def _name_subjects(results):
    """Return the names of the models and data that results are of: "lenet_5, mnist"."""
    columns = [column for column in ("model", "data") if column in results]
    return ", ".join(name for column in columns for name in dict.fromkeys(results[column]))
