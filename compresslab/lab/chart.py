"""The accuracy-versus-size picture: what is on it, and its drawing in two layers, a still one and a moving one."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from compresslab.lab import plots
from compresslab.lab.canvas import Panel

COLUMNS = ["accuracy", "file_bytes", "stage", "family"]
PLACE = (0.135, 0.15, 0.845, 0.64)  # of the axes: the title and two lines of legend fit above them


@dataclass(frozen=True)
class Moving:
    """The point under the slider: (file_bytes, accuracy) pairs, and the accuracies on the way between them.

    longer  (file_bytes, accuracy, steps) of the point trained for longer
    guess   (accuracy, file_bytes or None), locked in by a person
    """

    one_shot: tuple | None = None
    trail: tuple = ()
    retrained: tuple | None = None
    longer: tuple | None = None
    guess: tuple | None = None


NO_POINT = {
    "one_shot": None,
    "trail": (),
    "retrained": None,
    "longer": None,
}  # changes of `Moving` that take the point away


class Chart:
    """The picture, in a Panel of its own; its limits only ever grow, so that nothing moves but the point."""

    def __init__(self):
        self.panel = Panel(place=PLACE)
        self.moving = Moving()
        self._limits = np.inf, 0
        self._worst = 1.0

    def reset(self):
        """Forget limits and point: another model or other data."""
        self._limits, self._worst, self.moving = (np.inf, 0), 1.0, Moving(guess=self.moving.guess)

    def still(self, subject, groups):
        """Draw everything anew.

        subject  the dense model: its accuracy and sizes
        groups   list of (label, rows with accuracy, file_bytes, stage, family): the settings chosen, then each fair
                 control; points of the family are joined
        """
        groups = [(label, pd.DataFrame(rows, columns=COLUMNS)) for label, rows in groups]
        drawn = pd.concat([frame for _, frame in groups])
        sizes = [subject.sizes.file_bytes, subject.sizes.dense_bytes, subject.sizes.dense_bytes / 60]
        self._limits = plots.size_limits([*sizes, *drawn["file_bytes"]], *self._limits)
        self._worst = min([self._worst, *drawn["accuracy"], 0.6])
        self.panel.draw(lambda ax: self._paint(ax, subject, groups), self._lay)

    def move(self, **changes):
        """Move the point: changes of `Moving`'s fields. A few milliseconds."""
        self.moving = replace(self.moving, **changes)
        self.panel.move(self._lay)

    def fits(self, file_bytes, accuracy):
        """Whether a point lies inside the limits; if not, `still` makes room."""
        return self._limits[0] <= file_bytes <= self._limits[1] and accuracy >= self._worst

    def _paint(self, ax, subject, groups):
        plots.frame(ax, *self._limits, worst=self._worst)
        plots.baseline(ax, subject.accuracy, subject.sizes.file_bytes, subject.sizes.dense_bytes)
        ax.figure.text(PLACE[0], 0.985, "Accuracy against size", fontsize=plots.TEXT + 1, va="top")
        for (label, frame), (color, marker) in zip(groups, plots.SERIES, strict=False):
            for hollow in (True, False):
                points = frame[(frame["stage"] == "one-shot") == hollow]
                other, family = points[points["family"] == False], points[points["family"] == True]  # noqa: E712
                text = label or ("one-shot" if hollow else "retrained")
                legend = text if not (label and hollow) else None
                plots.series(ax, other, color, marker, hollow=hollow, joined=False, alpha=0.35)
                plots.series(ax, family, color, marker, hollow=hollow, label=legend)
        ax.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncol=3 if len(groups) == 1 else 2, frameon=False,
            fontsize=plots.TEXT, columnspacing=1.2, handletextpad=0.5, borderaxespad=0.2, labelspacing=0.3,
        )  # fmt: skip

    def _lay(self, ax):
        """The moving artists, those on top last."""
        moving, artists = self.moving, []
        if moving.guess:
            artists += plots.guess(ax, *moving.guess)
        if moving.one_shot and moving.trail:
            artists += plots.trail(ax, moving.one_shot[0], [moving.one_shot[1], *moving.trail])
        if moving.retrained and moving.longer:
            artists += plots.longer(ax, moving.retrained, *moving.longer)
        if moving.retrained:
            return [*artists, *plots.point(ax, *moving.retrained)]
        if moving.one_shot:
            artists += plots.point(ax, *moving.one_shot, hollow=True)
        return artists
