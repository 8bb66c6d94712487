"""A constraint box: three limits as sliders, over measured points; it shows which points remain, and names the choice.

box = cl.lab.constrain(front)            # columns file_bytes, latency (ms), accuracy or points; a name per row
box.controls["kib"].value = 100
box.choice                               # the row's name, or None
"""

import math

import ipywidgets as widgets
import numpy as np
import pandas as pd

from compresslab import checks
from compresslab.lab import page, plots
from compresslab.lab.canvas import Panel

KIB = 1024
LIMITS = {  # control: (label of its slider, unit in a sentence)
    "kib": ("file size, at most (KiB)", "KiB"),
    "ms": ("latency, at most (ms)", "ms"),
    "points": ("points lost, at most", "points lost"),
}


class ConstraintBox(widgets.VBox):
    """The box that `constrain` returns.

    controls  "kib", "ms", "points" -> slider;  points  DataFrame of what is compared, in these units, name its index
    choice    name of the chosen row; None where no row is within all limits;  text  the sentence that says so
    """

    def __init__(self, points: pd.DataFrame):
        self.points, self.choice, self.text = points, None, ""
        self.controls = {name: _make_slider(name, points[name]) for name in LIMITS}
        self.panel = Panel()
        children = [widgets.HTML(page.STYLE), *self.controls.values(), self.panel.widget]
        super().__init__(children, layout=widgets.Layout(width="100%"))
        self.add_class("compresslab")
        for control in self.controls.values():
            control.observe(lambda change: self.show(), "value")
        self.show()

    def show(self) -> None:
        """Choose again, and draw the points that remain."""
        limits = {name: control.value for name, control in self.controls.items()}
        self.choice, self.text = choose_point(self.points, limits)
        self.panel.draw(lambda ax: draw_points(ax, self.points, limits, self.choice))
        self.panel.say(self.text)


def constrain(front: pd.DataFrame, dense: float | None = None) -> ConstraintBox:
    """Open a constraint box over measured points; let the notebook show what it returns.

    front    DataFrame with columns file_bytes, latency (ms) and either accuracy (0 to 1) or points (percentage points
             lost); a column name, or the index, names its rows
    dense    accuracy that points are lost against; None for the best one in the front
    raises   ValueError for a front without rows, without a column, or with values that are not finite numbers
    """
    if not isinstance(front, pd.DataFrame) or not len(front):
        raise ValueError(f"front is {checks.words(front)}; give a DataFrame with a row for each measured model")
    if missing := {"file_bytes", "latency"} - set(front):
        raise ValueError(f"front has no column {', '.join(sorted(missing))}; give file_bytes and latency (ms)")
    if "points" not in front and "accuracy" not in front:
        raise ValueError("front has neither a column accuracy nor points; give one of them")
    names = pd.Index(front["name"] if "name" in front else front.index).map(str)
    if not names.is_unique:
        raise ValueError(f"front has two rows named {names[names.duplicated()][0]!r}; give each a name of its own")
    measured = front[[column for column in ("file_bytes", "latency", "points", "accuracy") if column in front]]
    values = measured.apply(pd.to_numeric, errors="coerce").astype(float).set_axis(names)
    for column in values:
        if not np.isfinite(values[column]).all() or (column in ("file_bytes", "latency") and values[column].min() <= 0):
            raise ValueError(f"front has a {column} that is no finite number, or not above 0; leave such rows out")
    if "points" not in values:
        best = values["accuracy"].max() if dense is None else checks.fraction("dense", dense)
        values["points"] = 100 * (best - values["accuracy"])
    points = pd.DataFrame({"kib": values["file_bytes"] / KIB, "ms": values["latency"], "points": values["points"]})
    return ConstraintBox(points)


def choose_point(points: pd.DataFrame, limits: dict) -> tuple[str | None, str]:
    """Return the name of the row within all limits that loses fewest points, or None, and a sentence about it.

    points, limits  columns, and keys, "kib", "ms", "points"; of rows that lose as much the smallest file is chosen
    """
    excess = pd.DataFrame({name: (points[name] - limit).clip(lower=0) for name, limit in limits.items()})
    meets = (excess == 0).all(axis=1)
    if meets.any():
        name = points[meets].sort_values(["points", "kib", "ms"], kind="stable").index[0]
        count = f"{int(meets.sum())} of {len(points)} points meet all limits."
        return name, f"Choose {name}: {_describe(points.loc[name])}. {count}"
    spread = (points.max() - points.min()).replace(0, 1)
    name = (excess / spread).sum(axis=1).idxmin()
    broken = [
        f"{_write(limit, points.at[name, limit])} (at most {_round(limits[limit])})"
        for limit in LIMITS
        if excess.at[name, limit] > 0
    ]
    return None, f"No point meets all limits. Nearest comes {name}: {' and '.join(broken)}."


def draw_points(ax, points: pd.DataFrame, limits: dict, choice: str | None):
    """Draw points lost against size (log axis): green where all limits are met, grey elsewhere; return ax."""
    plots.dress(ax)
    low, high = plots.size_limits(list(KIB * points["kib"]))
    plots.size_axis(ax, low, high)
    slow = points["ms"] > limits["ms"]
    outside = (points["kib"] > limits["kib"]) | (points["points"] > limits["points"])
    groups = (
        ("meets all limits", ~slow & ~outside, plots.GREEN, "o"),
        ("too slow", slow, plots.GREY, "x"),
        ("too large, or too many points lost", outside & ~slow, plots.LIGHT, "s"),
    )
    for label, rows, color, marker in groups:
        ax.plot(KIB * points["kib"][rows], points["points"][rows], marker, color=color, markersize=9, label=label)
    ax.axvline(KIB * limits["kib"], color=plots.GREY, linestyle=":")
    ax.axhline(limits["points"], color=plots.GREY, linestyle=":")
    top, bottom = points["points"].min(), points["points"].max()
    margin = 0.15 * max(bottom - top, 0.1)
    ax.set_ylim(bottom + margin, top - 2 * margin)  # fewer points lost is higher
    ax.set_ylabel("validation points lost", fontsize=plots.TEXT)
    if choice is not None:
        place = KIB * points.at[choice, "kib"], points.at[choice, "points"]
        ax.plot(*place, "o", color="none", markeredgecolor="black", markersize=17, markeredgewidth=1.5)
        right = math.log(place[0] / low) > math.log(high / low) / 2  # its text must end within the axes
        text = {"xytext": (0, 13), "textcoords": "offset points", "ha": "right" if right else "left"}
        box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
        ax.annotate(choice, place, **text, fontsize=plots.TEXT, fontweight="bold", color=plots.GREEN, bbox=box)
    ax.legend(fontsize=plots.TEXT - 3, frameon=False, loc="upper center", bbox_to_anchor=(0.45, 1.13), ncols=3,
              columnspacing=0.8, handletextpad=0.2)  # fmt: skip
    return ax


def _make_slider(name, values):
    """Make the slider of a limit, from below every point to above them all, where it begins."""
    room = 0.1 * max(values.max() - values.min(), 0.1 * abs(values.max()), 1e-9)
    low, high = (min(values.min() - room, 0) if name == "points" else values.min() * 0.9), values.max() + room
    options = {"description": LIMITS[name][0], "style": {"description_width": page.LONG_LABEL}, "readout_format": ".3g"}
    options["layout"] = widgets.Layout(width="auto", min_width="300px")
    if name == "kib":
        ends = {"min": math.log10(low), "max": math.log10(high)}
        return widgets.FloatLogSlider(high, **ends, step=(ends["max"] - ends["min"]) / 200, **options)
    return widgets.FloatSlider(high, min=low, max=high, step=(high - low) / 200, **options)


def _write(limit, value):
    return f"{_round(value)} {LIMITS[limit][1]}"


def _round(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _describe(row):
    return ", ".join(_write(limit, row[limit]) for limit in LIMITS)
