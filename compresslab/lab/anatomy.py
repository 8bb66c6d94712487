"""Pictures of what happened inside a model: one function for each kind that a technique may ask for.

Each takes a `Picture`, `ax` and the limits of its values and returns `ax`; `draw` chooses by the kind.
"""

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.ticker import MaxNLocator, PercentFormatter

from compresslab.lab.plots import BLUE, GREEN, GREY, LIGHT, ORANGE, RED, TEXT, dress
from compresslab.techniques import Picture

BINS = 81
PARTS = (BLUE, ORANGE, GREEN, GREY)  # colours of a bar's parts
TALL = 0.72  # height of a picture of targets, in its width
BAR = 0.6  # height of a bar of 100% in a row of 1, which leaves room for its number
FRACTIONS = (0.0, 1.02)  # limits of bars that are fractions, shown in percent


def draw(picture: Picture, ax: Axes, limits: tuple | None = None) -> Axes:
    """Draw a Picture of any kind; raises ValueError for a kind that is not known.

    limits  (low, high) of the value axis (histogram, bars) or of the colours (images, matrix); None takes the picture's
    """
    if picture.kind not in KINDS:
        raise ValueError(f"picture {picture.name!r} has kind {picture.kind!r}; choose one of {', '.join(KINDS)}")
    return KINDS[picture.kind](picture, ax, limits)


def histogram(picture: Picture, ax: Axes, limits: tuple | None = None) -> Axes:
    """Draw how often each value occurs, on a log axis."""
    values = np.asarray(picture.values, dtype=float).ravel()
    values = values[np.isfinite(values)]
    dress(ax, picture.title)
    low, high = limits or value_limits(values)
    counts, edges = np.histogram(values, bins=BINS, range=(low, high))
    ax.stairs(counts, edges, fill=True, color=BLUE, alpha=0.75)
    ax.set(xlim=(low, high), ylim=(0.7, 2 * max(counts.max(initial=0), 1)), yscale="log" if counts.any() else "linear")
    ax.set_xlabel(picture.axis or "value", fontsize=TEXT)
    ax.set_ylabel("count", fontsize=TEXT)
    ax.xaxis.set_major_locator(MaxNLocator(5))  # so that large labels do not touch
    return ax


def cut(picture: Picture, ax: Axes) -> list[Artist]:
    """Draw the moving part of a histogram or spectrum: cut and marks; return the artists."""
    if picture.kind not in ("histogram", "spectrum"):
        return []
    artists = []
    if picture.marks is not None:
        width = min(2.0, 60 / max(1, len(picture.marks)))
        artists.append(ax.vlines(picture.marks, *ax.get_ylim(), color=RED, linewidth=width))
    if picture.cut is None:
        return artists
    if picture.kind == "spectrum":
        return [*artists, ax.axvline(picture.cut - 0.5, color=RED, linewidth=2.5)]
    # The band lies over what the technique removes: above the cut, or below it on both sides of zero.
    left, right = ax.get_xlim()
    two_sided = left < 0 and not picture.above
    low, high = (picture.cut, right) if picture.above else (-picture.cut if two_sided else left, picture.cut)
    artists.append(ax.axvspan(low, high, color=ORANGE, alpha=0.35, linewidth=0))
    lines = {picture.cut, -picture.cut} if two_sided else {picture.cut}
    return [*artists, *(ax.axvline(place, color=RED, linewidth=2.5) for place in lines)]


def matrix(picture: Picture, ax: Axes, limits: tuple | None = None) -> Axes:
    """Draw a matrix as colours, red and blue around zero; zeros are white."""
    values = np.asarray(picture.values, dtype=float)
    reach = _reach(values, limits)
    shown = ax.imshow(values, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
    ax.figure.colorbar(shown, ax=ax, pad=0.02).ax.tick_params(labelsize=TEXT - 1)
    dress(ax, picture.title).grid(False)
    return ax


def spectrum(picture: Picture, ax: Axes, limits: tuple | None = None) -> Axes:
    """Draw values in descending order on a log axis."""
    values = np.asarray(picture.values, dtype=float).ravel()
    dress(ax, picture.title)
    ax.plot(np.arange(len(values)), values, ".-", color=BLUE, markersize=6)
    positive = values[values > 0]
    if len(positive):
        ax.set_yscale("log")
        ax.set_ylim(max(positive.min(), positive.max() * 1e-6) / 1.5, positive.max() * 1.5)
    ax.set_xlabel(picture.axis or "number", fontsize=TEXT)
    ax.xaxis.set_major_locator(MaxNLocator(5))  # so that large labels do not touch
    return ax


def images(picture: Picture, ax: Axes, limits: tuple | None = None) -> Axes:
    """Draw many small images (count, height, width) side by side, red and blue around zero."""
    stack = np.asarray(picture.values, dtype=float)
    reach = _reach(stack, limits)
    name, low = ("RdBu_r", -reach) if stack.size and stack.min() < 0 else ("cividis", 0)
    colors = colormaps[name].with_extremes(bad=LIGHT)  # the gaps are NaN
    ax.imshow(tile(stack, np.nan), cmap=colors, vmin=low, vmax=reach, interpolation="nearest")
    dress(ax, picture.title).grid(False)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax


def bars(picture: Picture, ax: Axes, limits: tuple | None = None) -> Axes:
    """Draw a bar for each value or row of values, a colour for each part."""
    values = np.nan_to_num(np.asarray(picture.values, dtype=float))
    values = values[:, None] if values.ndim == 1 else values  # (bars, parts)
    ends, places = np.cumsum(values, axis=1), np.arange(len(values))
    dress(ax, picture.title).grid(False, axis="y")
    names = picture.classes or [None] * values.shape[1]
    for name, end, part, color in zip(names, ends.T, values.T, PARTS, strict=False):
        ax.barh(places, part, left=end - part, color=color, height=0.7, label=name)
    step = max(1, -(-len(values) // 14))  # more than 14 labels would touch
    ax.set_yticks(places[::step], picture.labels[::step] or None)
    ax.set_ylim(len(values) - 0.4, -0.6)
    if picture.cut is not None:
        ax.axvline(picture.cut, color=RED, linewidth=2.5)
    ax.set_xlim(*(limits or (ends.min(initial=0), ends.max(initial=1e-12) * 1.08)))
    ax.xaxis.set_major_locator(MaxNLocator(6))
    if limits == FRACTIONS:
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlabel(picture.axis, fontsize=TEXT)
    if picture.classes:
        ax.legend(fontsize=TEXT - 1, frameon=False, loc="lower right")
    return ax


def targets(picture: Picture, ax: Axes, limits: tuple | None = None) -> Axes:
    """Draw each image beside a bar for each class, orange for its true class."""
    values = np.nan_to_num(np.asarray(picture.values, dtype=float))
    rows, columns = values.shape
    dress(ax, picture.title).grid(False)
    ax.set_box_aspect(TALL)
    ax.set(xlim=(-0.6 - _thumbnails(picture, ax), columns - 0.4), ylim=(max(rows, 1), 0))
    across, down = np.meshgrid(np.arange(columns), np.arange(rows) + 0.97)
    left, right, up = across - 0.38, across + 0.38, down - BAR * np.clip(values, 0, 1)
    corners = np.stack([left, down, left, up, right, up, right, down], -1).reshape(-1, 4, 2)  # (bars, corner, x and y)
    is_true = np.array([[name == label for name in picture.classes] for label in picture.labels], bool)
    colors = np.where(is_true.ravel(), ORANGE, BLUE) if is_true.size == values.size else BLUE
    ax.add_collection(PolyCollection(corners, facecolors=colors), autolim=False)
    ax.hlines(np.arange(rows) + 0.97, -0.5, columns - 0.5, color=LIGHT, linewidth=0.8)
    likeliest = np.argsort(-values, axis=1)[:, :2]  # (rows, 2)
    for row, column in zip(np.repeat(np.arange(rows), likeliest.shape[1]), likeliest.ravel(), strict=True):
        if values[row, column] >= 0.005:
            place = (column, 0.95 - BAR * min(1, values[row, column]) + row)
            ax.text(*place, f"{values[row, column]:.0%}", fontsize=TEXT - 2, ha="center", va="bottom")
    short = max(map(len, picture.classes), default=0) < 4
    turned = {} if short else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(np.arange(len(picture.classes)), picture.classes, **turned)
    ax.set_yticks(np.arange(len(picture.labels)) + 0.5, picture.labels)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_ylabel("true class", fontsize=TEXT)
    return ax


def _thumbnails(picture, ax):
    """Draw a picture's images in a column left of 0; return its width."""
    if picture.images is None or not len(picture.images):
        return 0.0
    count, height, width = picture.images.shape
    gap = max(1, height // 25)
    sheet = np.pad(np.asarray(picture.images, float), ((0, 0), (gap, gap), (gap, gap)), constant_values=np.nan)
    sheet = sheet.reshape(count * (height + 2 * gap), width + 2 * gap)
    share = min(0.5, TALL / count * width / height)  # of the axes' width
    column = (picture.values.shape[1] + 0.2) * share / (1 - share)
    extent = (-0.6 - column, -0.6, count, 0)
    ax.imshow(sheet, cmap="gray", vmin=0, vmax=1, extent=extent, aspect="auto", interpolation="nearest")
    return column


def tile(stack: np.ndarray, gap: float) -> np.ndarray:
    """Lay out images (count, height, width) as a sheet, with lines of `gap` around each.

    The sheet is about one and a half times as wide as high, with as few empty places as that allows.
    """
    count, height, width = stack.shape
    ideal = max(1, round(np.sqrt(count * 1.5 * height / max(width, 1))))
    columns = min(range(max(1, ideal - ideal // 4), ideal + ideal // 4 + 1), key=lambda c: (-count % c, abs(c - ideal)))
    rows = -(-count // columns)
    tiles = np.full((rows * columns, height + 1, width + 1), gap, dtype=float)
    tiles[:count, 1:, 1:] = stack
    tiles = tiles.reshape(rows, columns, height + 1, width + 1).swapaxes(1, 2)
    sheet = tiles.reshape(rows * (height + 1), columns * (width + 1))
    return np.pad(sheet, ((0, 1), (0, 1)), constant_values=gap)


def value_limits(values: np.ndarray) -> tuple[float, float]:
    """Return limits around all values, symmetric if any value is negative."""
    if not len(values):
        return 0.0, 1.0
    reach = float(np.abs(values).max()) * 1.02 or 1.0
    return (-reach if values.min() < 0 else 0.0), reach


def limits(picture: Picture) -> tuple[float, float] | None:
    """Return the limits to keep while a slider moves; None to follow each picture."""
    values = np.asarray(picture.values, dtype=float)
    if picture.kind == "histogram":
        return value_limits(values[np.isfinite(values)])
    if picture.kind in ("images", "matrix"):
        return -_reach(values, None), _reach(values, None)
    return FRACTIONS if picture.kind == "bars" and values.size and 0 <= values.min() <= values.max() <= 1 else None


def _reach(values, limits):
    if limits:
        return max(abs(limits[0]), abs(limits[1])) or 1.0
    finite = np.abs(values[np.isfinite(values)])
    return float(np.quantile(finite, 0.995)) if finite.size and finite.max() > 0 else 1.0


KINDS = {function.__name__: function for function in (histogram, matrix, spectrum, images, bars, targets)}
KINDS["stack"] = bars
