"""A model card: what a model can do and what it costs, as Markdown, from measured objects alone.

Mitchell et al. 2019, arXiv:1810.03993: with the number for all images go the numbers for each group of them.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from compresslab import checks
from compresslab.measure.summary import Measurement

KIB = 1024


def model_card(
    name: str, measurement: Measurement, *, classes: pd.DataFrame | None = None, names: Sequence[str] = (),
    calibration: float | None = None, export: object = None, facts: Mapping[str, object] | None = None,
) -> str:  # fmt: skip
    """Write a model card in Markdown.

    name         the heading
    measurement  of `measure`, on the test images
    classes      of `per_class` with a reference: the most harmed class is named;  names  of the classes, label 0 first
    calibration  of `calibration_error`, a fraction
    export       a Report of compresslab.export: its bytes and its agreement
    facts        further lines, title -> text: what it is for, what it must not be used for
    raises       ValueError for a measurement of another kind, and classes without the column damage
    """
    if not isinstance(measurement, Measurement):
        raise ValueError(f"measurement is {checks.words(measurement)}; give what measure(model, split) returns")
    if classes is not None and "damage" not in classes:
        raise ValueError("classes has no column damage; give per_class(model, split, reference)")
    size, time = measurement.sizes, measurement.latency
    smaller = f"{size.compression_ratio:.1f} times smaller than these parameters in fp32"
    rows = {
        "accuracy": f"{measurement.accuracy:.2%}",
        "parameters": f"{size.parameters:,}",
        ".clab file": f"{size.file_bytes / KIB:,.1f} KiB, {smaller}",
        "latency in torch": f"{1000 * time.median:.2g} ms, batch of {time.batch_size}, {time.threads} thread(s)",
    }
    if classes is not None:
        worst = classes.loc[classes["damage"].idxmax()]
        label = names[int(worst["class"])] if len(names) else f"class {int(worst['class'])}"
        rows["most harmed class"] = f"{label}: {worst['accuracy']:.1%}, {100 * worst['damage']:.1f} points lost"
    if calibration is not None:
        rows["calibration error"] = f"{100 * calibration:.1f} points"
    if export is not None:
        rows["export"] = f"{export.bytes / KIB:,.1f} KiB, same answer for {export.agreement:.1%} of the images"
    lines = [f"| {title} | {text} |" for title, text in (rows | dict(facts or {})).items()]
    return "\n".join([f"### {name}", "", "| what | measured |", "|---|---|", *lines])
