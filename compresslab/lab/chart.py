"""The accuracy-versus-size picture: its contents, and its drawing in two layers, a still one and a moving one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from compresslab.lab import plots
from compresslab.lab.canvas import HEIGHT, WIDTH, Panel
from compresslab.lab.touch import Touch

PLACE = (0.135, 0.15, 0.845, 0.64)  # of the axes: the title and two lines of legend fit above them
LEGEND = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "frameon": False, "fontsize": plots.TEXT}
LEGEND |= {"columnspacing": 1.2, "handletextpad": 0.5, "borderaxespad": 0.2, "labelspacing": 0.3}


@dataclass(frozen=True)
class Moving:
    """The point under the slider, and what is drawn with it."""

    one_shot: tuple | None = None  # file_bytes, accuracy
    retrained: tuple | None = None  # file_bytes, accuracy
    trail: tuple = ()  # accuracies during the training
    longer: tuple | None = None  # file_bytes, accuracy, steps of the point trained for longer
    guess: tuple | None = None  # accuracy, file_bytes or None
    pinned: tuple | None = None  # file_bytes, accuracy of the point A


class Chart:
    """The picture, in a Panel of its own; its limits only ever grow, so that nothing moves but the point."""

    def __init__(self):
        self.panel = Panel(place=PLACE)
        self.touch = Touch(size=[WIDTH, HEIGHT]).add_class("compresslab-touch")
        self.panel.widget.children = (*self.panel.widget.children, self.touch)
        self.panel.widget.add_class("compresslab-chart")
        self.moving = Moving()
        self.reset()

    def reset(self) -> None:
        """Forget limits and point: for another model or other data."""
        self._limits, self._worst = (np.inf, 0), 1.0
        self.moving, self._subject, self._groups = Moving(guess=self.moving.guess), None, []

    def draw(self, subject: object, groups: list) -> None:
        """Draw everything anew.

        subject  the dense model: its accuracy and sizes
        groups   list of (label, DataFrame of points): the settings chosen, then each fair control
        """
        self._subject, self._groups = subject, groups
        points, dense = pd.concat([frame for _, frame in groups]), subject.sizes
        sizes = [dense.file_bytes, dense.dense_bytes, dense.dense_bytes / 60, *points["file_bytes"]]
        self._draw(sizes, [0.6, *points["accuracy"]])

    def show_point(self, results: Sequence = (), longer: object = None) -> None:
        """Move to a point's results, and to its result after a longer training."""
        places = {result.stage: (result.file_bytes, result.accuracy) for result in results}
        longer = (longer.file_bytes, longer.accuracy, longer.steps) if longer else None
        point = Moving(places.get("one-shot"), places.get("retrained"), longer=longer, guess=self.moving.guess)
        point = replace(point, pinned=self.moving.pinned)
        sizes, accuracies = [size for size, _ in places.values()], [accuracy for _, accuracy in places.values()]
        low, high = self._limits
        if all(low <= size <= high for size in sizes) and min(accuracies, default=1) >= self._worst:
            self.move(**vars(point))
        else:
            self.moving = point
            self._draw(sizes, accuracies)

    def move(self, **changes) -> None:
        """Change fields of `Moving`, and draw it."""
        self.moving = replace(self.moving, **changes)
        self.panel.move(self._draw_moving)

    def _draw(self, sizes, accuracies):
        """Draw both layers, with room for these sizes and accuracies."""
        self._limits = plots.size_limits(sizes, *self._limits)
        self._worst = min([self._worst, *accuracies])
        self.panel.draw(self._draw_still, self._draw_moving)
        points = self.list_points()
        places = self.panel.locate([(point.file_bytes, 100 * point.accuracy) for point in points])
        spots = [{"x": x, "y": y, "text": point.text} for (x, y), point in zip(places, points, strict=False)]
        if spots != self.touch.points:
            self.touch.points = spots

    def list_points(self) -> list:
        """Return the rows of all points on the chart, in the order of `touch.points`."""
        return [point for _, frame in self._groups for point in frame.itertuples()]

    def _draw_still(self, ax):
        subject = self._subject
        plots.frame(ax, *self._limits, worst=self._worst)
        plots.baseline(ax, subject.accuracy, subject.sizes.file_bytes, subject.sizes.dense_bytes)
        ax.figure.text(PLACE[0], 0.985, "Accuracy against size", fontsize=plots.TEXT + 1, va="top")
        for (label, frame), style in zip(self._groups, plots.SERIES, strict=False):
            on_curve = frame["on_curve"].astype(bool)
            for hollow, text in ((True, None if label else "one-shot"), (False, label or "retrained")):
                in_stage = (frame["stage"] == "one-shot") == hollow
                rest, curve = frame[in_stage & ~on_curve], frame[in_stage & on_curve].sort_values("place")
                faded = "other settings" if len(rest) and not hollow else None
                plots.series(ax, rest, *style, hollow=hollow, joined=False, alpha=0.35, label=faded)
                plots.series(ax, curve, *style, hollow=hollow, label=text)
        ax.legend(ncol=3 if len(self._groups) == 1 else 2, **LEGEND)

    def _draw_moving(self, ax):
        """Draw the moving artists, those on top last."""
        moving, artists = self.moving, []
        point = moving.retrained or moving.one_shot
        if moving.guess:
            artists += plots.guess(ax, *moving.guess)
        if moving.pinned:
            size, accuracy = moving.pinned
            style = {"fontsize": plots.TEXT, "fontweight": "bold", "textcoords": "offset points", "ha": "center"}
            artists.append(ax.annotate("A", (size, 100 * accuracy), xytext=(0, -22), **style))
        if moving.one_shot and moving.trail:  # accuracies during the retraining climb at one size
            heights = [100 * accuracy for accuracy in (moving.one_shot[1], *moving.trail)]
            places = [moving.one_shot[0]] * len(heights), heights
            artists += ax.plot(*places, ".-", color=plots.BLUE, alpha=0.35, markersize=9, linewidth=1.5)
        if moving.retrained and moving.longer:
            size, accuracy, steps = moving.longer
            (start, height), end = moving.retrained, 100 * accuracy
            artists += ax.plot([start, size], [100 * height, end], ":", color=plots.BLUE, linewidth=2)
            artists += ax.plot([size], [end], "D", color=plots.BLUE, markersize=10, markeredgecolor="white")
            style = {"fontsize": plots.TEXT - 1, "color": plots.BLUE, "textcoords": "offset points"}
            artists.append(ax.annotate(f"{steps} steps", (size, end), xytext=(10, 4), **style))
        return [*artists, *plots.point(ax, *point, hollow=not moving.retrained)] if point else artists
