"""The lab's pictures of accuracy against size: functions of data and `ax` that draw and return `ax`; no widgets.

The colours are Okabe and Ito's (2008), distinct for colour-blind people, and each has its own marker.
"""

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
GREY, LIGHT = "#555555", "#BBBBBB"
SERIES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (RED, "v"), (SKY, "P"))
TEXT = 12  # points: read from the last row of a classroom
KIB = 1024
_TICKS = np.array([0, 50, 75, 90, 95, 97, 98, 99, 99.5, 99.8, 99.9])  # percent
_BEST = 99.95  # percent; the axis cannot show less error than this
MEASURED = {
    *("technique", "model", "data", "stage", "accuracy", "file_bytes", "parameters", "nonzeros", "seconds", "seed"),
    *("steps", "epochs", "split", "precision", "versions", "created", "key", "compression_ratio", "compare"),
}


def curve(results: pd.DataFrame, ax: Axes | None = None, dense=None, label: str | None = None) -> Axes:
    """Draw accuracy against size, one more series at each call; the axes make room.

    results  DataFrame with accuracy (0 to 1), file_bytes and perhaps stage: retrained points are filled, one-shot
             points hollow; several seeds of one setting give their mean and a band
    ax       matplotlib axes; None makes new ones
    dense    the dense baseline, drawn as a dashed line: its accuracy, (accuracy, file_bytes), or a Result
    """
    check_columns(results)
    if ax is None:
        from matplotlib import pyplot  # only for a picture made in a notebook's own cell, never in the worker

        ax = pyplot.subplots(figsize=(7.5, 5), layout="constrained")[1]
    if not isinstance(dense, tuple):
        dense = getattr(dense, "accuracy", dense), getattr(dense, "file_bytes", None)
    accuracy, size = dense
    drawn, limits, worst = getattr(ax, "_compresslab", (0, (np.inf, 0), 1.0))
    if sizes := [*results["file_bytes"], *([size] if size else [])]:
        limits = size_limits(sizes, *limits)
    worst = min([worst, *results["accuracy"], accuracy or 1.0])
    ax._compresslab = drawn + 1, limits, worst
    frame(ax, *(limits if limits[1] else (KIB, 1000 * KIB)), worst=worst)
    baseline(ax, accuracy, size)
    color, marker = SERIES[drawn % len(SERIES)][0], SERIES[(drawn + drawn // len(SERIES)) % len(SERIES)][1]
    one_shot = np.asarray(results.get("stage", "retrained")) == "one-shot"
    for hollow, part in results.groupby(np.broadcast_to(one_shot, len(results)), sort=False):
        text = f"{label}, one-shot" if label and hollow else label
        series(ax, average_seeds(part), color, marker, hollow=hollow, label=text)
    if label or accuracy is not None:
        ax.legend(fontsize=TEXT - 1, frameon=False, loc="lower right")
    return ax


def check_columns(results: pd.DataFrame) -> None:
    """Raise ValueError unless the results have accuracy and file_bytes."""
    if missing := {"accuracy", "file_bytes"} - set(results.columns):
        raise ValueError(f"results has no column {', '.join(sorted(missing))}; give the frame of a sweep or a lab")


def frame(ax: Axes, low: float, high: float, worst: float = 0.0) -> Axes:
    """Draw empty axes for sizes low to high (bytes), accuracies down to `worst`."""
    dress(ax)
    size_axis(ax, low, high)
    return accuracy_axis(ax, low=next(tick for tick in _TICKS[3::-1] if tick <= max(0, 100 * worst - 0.5)))


def accuracy_axis(ax: Axes, low: float = 0.0, high: float = 99.7) -> Axes:
    """Make y an accuracy axis in percent, stretched towards 100%."""
    ticks = _TICKS[(_TICKS >= low) & (_TICKS <= high)]
    stretch = (lambda percent: -np.log10(100 - np.clip(percent, 0, _BEST)), lambda height: 100 - 10.0**-height)
    ax.set_yscale("function", functions=stretch)
    ax.set_ylim(low, high)
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylabel("validation accuracy (%)", fontsize=TEXT)
    return ax


def size_axis(ax: Axes, low: float, high: float) -> Axes:
    """Make x a logarithmic axis of sizes, low and high in bytes, labels in KiB."""
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    decades = np.outer(10.0 ** np.arange(-3, 8), [1, 2, 5] if high / low < 40 else [1, 3]).ravel()
    ticks = [tick for tick in decades if low <= tick * KIB <= high]
    ax.set_xticks([tick * KIB for tick in ticks], [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("file size (KiB, log axis)", fontsize=TEXT)
    return ax


def size_limits(sizes: list, low: float = np.inf, high: float = 0) -> tuple[float, float]:
    """Return limits of a size axis around `sizes` (bytes), never narrower than low and high."""
    smallest, largest = max(min(sizes), 1), max(sizes)
    if smallest < low * 1.05:
        nice_sizes = np.outer(10.0 ** np.arange(-3, 9), [1, 2, 5]).ravel() * KIB
        place = np.searchsorted(nice_sizes, smallest / 1.3, side="right") - 1
        low = min(low, float(nice_sizes[max(0, place)]))
    return low, max(high, largest * 1.6) if largest * 1.1 > high else high


def baseline(ax: Axes, accuracy: float | None, file_bytes=None, dense_bytes=None) -> Axes:
    """Draw the dense model: its accuracy dashed, its fp32 size dotted."""
    if accuracy is not None:
        ax.axhline(100 * accuracy, color=GREY, linestyle="--", linewidth=1.5, label=f"dense {accuracy:.1%}")
    if dense_bytes is not None:
        ax.axvline(dense_bytes, color=GREY, linestyle=":", linewidth=1.5)
        place = {"xy": (dense_bytes, 0.12), "xycoords": ("data", "axes fraction")}  # above points as good as guessing
        place |= {"xytext": (-5, 0), "textcoords": "offset points", "rotation": 90, "ha": "right", "va": "bottom"}
        box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
        ax.annotate("break-even", **place, fontsize=TEXT - 1, color=GREY, bbox=box)
    if accuracy is not None and file_bytes is not None:
        ax.plot([file_bytes], [100 * accuracy], "X", color=GREY, markersize=10, label="_dense file")
    return ax


def series(ax: Axes, points: pd.DataFrame, color=BLUE, marker="o", *, hollow=False, joined=True, label=None, alpha=1.0):
    """Draw measured points, joined in their order, with the band of their seeds."""
    sizes, heights = points["file_bytes"].to_numpy(), 100 * points["accuracy"].to_numpy()
    line, width = ("--", 1.0) if hollow else ("-", 2.0)
    style = {"linestyle": line if joined else "none", "linewidth": width, "color": color, "alpha": alpha}
    face = "white" if hollow else color
    ax.plot(sizes, heights, marker=marker, markersize=7, markerfacecolor=face, label=label, **style)
    if "low" in points and (points["high"] > points["low"]).any():
        ax.fill_between(sizes, 100 * points["low"], 100 * points["high"], color=color, alpha=0.2, linewidth=0)


def average_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each setting and number of steps, smallest file first.

    returns  file_bytes and accuracy, means over the seeds; low and high, the seeds' accuracies; seeds, their number
    """
    settings = [name for name in results.columns if name not in MEASURED - {"steps"}]
    keys = results[settings].map(str).agg("|".join, axis=1) if settings and len(results) else results.index
    groups = results.groupby(keys, sort=False)
    averages = groups[["file_bytes", "accuracy"]].mean()
    averages[["low", "high", "seeds"]] = groups["accuracy"].agg(["min", "max", "size"])
    return averages.sort_values("file_bytes").reset_index(drop=True)


def front(ax: Axes, points: pd.DataFrame) -> None:
    """Draw the Pareto front: a broad pale line through points, smallest first, behind the curves."""
    style = {"color": "#F0E442", "linewidth": 9, "solid_capstyle": "round", "alpha": 0.8, "zorder": 1}
    ax.plot(points["file_bytes"], 100 * points["accuracy"], label="Pareto front", **style)


def point(ax: Axes, file_bytes: float, accuracy: float, color=BLUE, marker="o", *, hollow=False) -> list[Artist]:
    """Draw the chosen point, large; return the artists, so that they can be moved."""
    face, place = "white" if hollow else color, ([file_bytes], [100 * accuracy])
    halo = ax.plot(*place, "o", color="none", markeredgecolor="black", markersize=21, markeredgewidth=1.5)
    return [*halo, *ax.plot(*place, marker, color=color, markerfacecolor=face, markersize=13, markeredgewidth=2)]


def guess(ax: Axes, accuracy: float, file_bytes: float | None = None) -> list[Artist]:
    """Draw a guess: a star, or a line without a size; return the artists."""
    if file_bytes is None:
        return [ax.axhline(100 * accuracy, color=RED, linestyle="-.", linewidth=2, label="your guess")]
    style = {"color": RED, "markersize": 18, "markeredgecolor": "white", "linestyle": "none"}
    return ax.plot([file_bytes], [100 * accuracy], "*", label="your guess", **style)


def dress(ax: Axes, title: str = "") -> Axes:
    """Give axes the look that all pictures share: large text, a light grid, no box."""
    ax.tick_params(labelsize=TEXT, length=3)
    ax.grid(True, color="#E5E5E5", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if title:
        ax.set_title(title, fontsize=TEXT + 1, loc="left")
    return ax
