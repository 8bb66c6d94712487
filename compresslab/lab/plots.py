"""The lab's pictures: each is a function of data and `ax` that draws and returns `ax`; none knows a widget.

Colours are Okabe and Ito's (2008), told apart by colour-blind people, and each has a marker of its own.
"""

import numpy as np
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

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


def curve(results, ax=None, dense=None, label=None):
    """Measured accuracy against measured size, one more series on `ax` each time it is called; the axes make room.

    results  DataFrame with accuracy (0 to 1), file_bytes and, if it has one, stage: retrained points are filled and
             joined, one-shot points hollow; several seeds of one setting give their mean and a band
    ax       matplotlib axes; None makes new ones
    dense    the dense baseline, drawn as a dashed line: its accuracy, (accuracy, file_bytes), or a Result
    label    text in the legend
    returns  ax
    """
    if missing := {"accuracy", "file_bytes"} - set(results.columns):
        raise ValueError(f"results has no column {', '.join(sorted(missing))}; give the frame of a sweep or a lab")
    ax = _new_axes() if ax is None else ax
    drawn, low, high, worst = getattr(ax, "_compresslab", (0, np.inf, 0, 1.0))
    accuracy, size = _dense(dense)
    sizes = [*results["file_bytes"], *([size] if size else [])]
    if len(sizes):
        low, high = size_limits(sizes, low, high)
    worst = min([worst, *results["accuracy"], accuracy or 1.0])
    ax._compresslab = drawn + 1, low, high, worst
    frame(ax, *((low, high) if high else (KIB, 1000 * KIB)), worst=worst)
    if dense is not None:
        baseline(ax, accuracy, size)
    color, marker = SERIES[drawn % len(SERIES)]
    stages = results["stage"] if "stage" in results else np.full(len(results), "retrained")
    for stage, part in results.groupby(np.asarray(stages), sort=False):
        hollow = stage == "one-shot"
        text = f"{label}, one-shot" if label and hollow else label
        series(ax, seeds_together(part), color, marker, hollow=hollow, label=text)
    if label or dense is not None:
        ax.legend(fontsize=TEXT - 1, frameon=False, loc="lower right")
    return ax


def frame_around(points, ax=None):
    """Empty accuracy-versus-size axes with room for all of `points` (file_bytes, accuracy); None makes new ones."""
    low, high = size_limits(list(points["file_bytes"]))
    return frame(_new_axes() if ax is None else ax, low, high, worst=points["accuracy"].min())


def frame(ax, low, high, worst=0.0):
    """Empty accuracy-versus-size axes: low and high in bytes, worst the lowest accuracy (0 to 1) to be shown."""
    dress(ax)
    size_axis(ax, low, high)
    return accuracy_axis(ax, low=next(tick for tick in _TICKS[3::-1] if tick <= max(0, 100 * worst - 0.5)))


def accuracy_axis(ax, low=0.0, high=99.7):
    """Make y an accuracy axis in percent, low to high, stretched towards 100% so that 98% and 99% lie apart."""
    ticks = _TICKS[(_TICKS >= low) & (_TICKS <= high)]
    ax.set_yscale("function", functions=(_stretch, _unstretch))
    ax.set_ylim(low, high)
    ax.yaxis.set_major_locator(FixedLocator(list(ticks)))
    ax.yaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylabel("validation accuracy (%)", fontsize=TEXT)
    return ax


def size_axis(ax, low, high):
    """Make x a logarithmic axis of sizes; low and high in bytes, labels in KiB."""
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    decades = np.outer(10.0 ** np.arange(-3, 8), [1, 2, 5] if high / low < 40 else [1, 3]).ravel()
    ax.xaxis.set_major_locator(FixedLocator([tick * KIB for tick in decades if low <= tick * KIB <= high]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size / KIB:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("file size (KiB, log axis)", fontsize=TEXT)
    return ax


def size_limits(sizes, low=np.inf, high=0):
    """Limits (low, high) of a size axis around `sizes` (bytes), never narrower than the given ones."""
    smallest, largest = max(min(sizes), 1), max(sizes)
    if smallest < low * 1.05:
        low = min(low, _round_down(smallest / 1.3))
    return low, max(high, largest * 1.6) if largest * 1.1 > high else high


def baseline(ax, accuracy, file_bytes=None, dense_bytes=None):
    """The dense model: a dashed line at its accuracy (0 to 1), a dotted one where compression gains nothing."""
    if accuracy is not None:
        ax.axhline(100 * accuracy, color=GREY, linestyle="--", linewidth=1.5, label=f"dense {accuracy:.1%}")
    if dense_bytes is not None:
        ax.axvline(dense_bytes, color=GREY, linestyle=":", linewidth=1.5)
        ax.annotate(
            "break-even",
            (dense_bytes, 0.12),  # above the points that are as good as guessing
            xycoords=("data", "axes fraction"),
            xytext=(-5, 0),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="bottom",
            fontsize=TEXT - 1,
            color=GREY,
            bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1},
        )
    if accuracy is not None and file_bytes is not None:
        ax.plot([file_bytes], [100 * accuracy], "X", color=GREY, markersize=10, label="_dense file")
    return ax


def series(ax, points, color=BLUE, marker="o", *, hollow=False, joined=True, label=None, alpha=1.0):
    """Measured points, joined in the order of size.

    points  DataFrame with accuracy (0 to 1), file_bytes and, if there are seeds to show, low and high
    """
    points = points.sort_values("file_bytes")
    sizes, heights = points["file_bytes"].to_numpy(), 100 * points["accuracy"].to_numpy()
    ax.plot(
        sizes,
        heights,
        linestyle=("--" if hollow else "-") if joined else "none",
        linewidth=1.0 if hollow else 2.0,
        color=color,
        marker=marker,
        markersize=7,
        markerfacecolor="white" if hollow else color,
        label=label,
        alpha=alpha,
    )
    if "low" in points and (points["high"] > points["low"]).any():
        ax.fill_between(sizes, 100 * points["low"], 100 * points["high"], color=color, alpha=0.2, linewidth=0)
    return ax


def seeds_together(results):
    """One row for each setting: mean size, mean accuracy, and the lowest and highest of its seeds (low, high)."""
    settings = [name for name in results.columns if name not in MEASURED]
    if not settings or "seed" not in results or results["seed"].nunique() < 2:
        return results
    grouped = results.groupby(settings, dropna=False, sort=False)
    together = grouped.agg(
        file_bytes=("file_bytes", "mean"),
        low=("accuracy", "min"),
        high=("accuracy", "max"),
        accuracy=("accuracy", "mean"),
    )
    return together.reset_index()


def front(ax, points):
    """The Pareto front: a broad pale line through points (file_bytes, accuracy), smallest first, behind the curves."""
    sizes, heights = points["file_bytes"].to_numpy(), 100 * points["accuracy"].to_numpy()
    style = {"color": "#F0E442", "linewidth": 9, "solid_capstyle": "round", "alpha": 0.8, "zorder": 1}
    ax.plot(sizes, heights, label="Pareto front", **style)
    return ax


def point(ax, file_bytes, accuracy, color=BLUE, marker="o", *, hollow=False):
    """The chosen point, large; returns the artists, so that they can be moved."""
    face = "white" if hollow else color
    place = ([file_bytes], [100 * accuracy])
    halo = ax.plot(*place, "o", color="none", markeredgecolor="black", markersize=21, markeredgewidth=1.5)
    return [*halo, *ax.plot(*place, marker, color=color, markerfacecolor=face, markersize=13, markeredgewidth=2)]


def trail(ax, file_bytes, accuracies, color=BLUE):
    """Accuracies on the way, while the point is retrained: faint dots climbing at one size; returns the artists."""
    heights = [100 * accuracy for accuracy in accuracies]
    return ax.plot([file_bytes] * len(heights), heights, ".-", color=color, alpha=0.35, markersize=9, linewidth=1.5)


def longer(ax, start, file_bytes, accuracy, steps, color=BLUE):
    """Where a point (file_bytes, accuracy) goes when it is trained for more steps; returns the artists."""
    line = ax.plot([start[0], file_bytes], [100 * start[1], 100 * accuracy], ":", color=color, linewidth=2)
    end = ax.plot([file_bytes], [100 * accuracy], "D", color=color, markersize=10, markeredgecolor="white")
    style = {"xytext": (10, 4), "textcoords": "offset points", "fontsize": TEXT - 1, "color": color}
    return [*line, *end, ax.annotate(f"{steps} steps", (file_bytes, 100 * accuracy), **style)]


def place(ax, file_bytes):
    """Where on the size axis the newest model lies, while its accuracy is not known yet; returns the artists."""
    return [ax.axvline(file_bytes, color=BLUE, linewidth=2, alpha=0.5)]


def guess(ax, accuracy, file_bytes=None):
    """A locked-in guess: a star, or without a size a dash-dotted line; returns the artists."""
    if file_bytes is None:
        return [ax.axhline(100 * accuracy, color=RED, linestyle="-.", linewidth=2, label="your guess")]
    style = {"color": RED, "markersize": 18, "markeredgecolor": "white", "linestyle": "none"}
    return ax.plot([file_bytes], [100 * accuracy], "*", label="your guess", **style)


def dress(ax, title=""):
    """The look all pictures share: large text, a light grid, no box."""
    ax.tick_params(labelsize=TEXT, length=3)
    ax.grid(True, color="#E5E5E5", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if title:
        ax.set_title(title, fontsize=TEXT + 1, loc="left")
    return ax


def few_ticks(axis, most=5):
    """At most `most` ticks on an axis, so that large labels do not touch."""
    axis.set_major_locator(MaxNLocator(most))


def _stretch(percent):
    return -np.log10(100.0 - np.clip(percent, 0, _BEST))


def _unstretch(height):
    return 100.0 - 10.0 ** -np.asarray(height)


def _round_down(size):
    """The next of 1, 2, 5, 10, 20, … KiB at or below `size` bytes (fractions of a KiB too)."""
    steps = np.outer(10.0 ** np.arange(-3, 9), [1, 2, 5]).ravel() * KIB
    return float(steps[max(0, np.searchsorted(steps, size, side="right") - 1)])


def _dense(dense):
    """(accuracy or None, file_bytes or None) of what `curve` takes as `dense`."""
    if dense is None or isinstance(dense, (int, float)):
        return dense, None
    if hasattr(dense, "accuracy"):
        return dense.accuracy, getattr(dense, "file_bytes", None)
    accuracy, size = dense
    return accuracy, size


def _new_axes():
    from matplotlib import pyplot  # only for a picture made in a notebook's own cell, never in the worker

    return pyplot.subplots(figsize=(7.5, 5), layout="constrained")[1]
