"""The anatomy beside the chart: a Panel for each picture that a technique makes of what happened inside."""

import numpy as np

from compresslab.lab import anatomy
from compresslab.lab.canvas import Panel
from compresslab.lab.page import close_widgets

MOVING = ("histogram", "spectrum")  # kinds whose cut moves over a picture that may stay


class Gallery:
    """Panels by the pictures' names; colours and axes keep the limits of the first picture of a model."""

    def __init__(self):
        self.panels = {}
        self._shown, self._limits = {}, {}

    def empty(self):
        """Close all pictures; those that come next keep the limits."""
        for panel in self.panels.values():
            close_widgets(panel.widget)
            panel.release()
        self.panels, self._shown = {}, {}

    def reset(self):
        """Another model: close all pictures, and choose the limits anew."""
        self.empty()
        self._limits = {}

    def arrange(self, names):
        """Make room for the pictures of these names; returns their panels in order."""
        for name in names:
            if name not in self.panels:
                self.panels[name] = Panel()
        return [self.panels[name] for name in names]

    def draw(self, pictures, moving=False):
        """Draw those that changed; a generator that yields after each.

        moving  True only moves the cuts of those that otherwise stay, which is quick
        """
        for picture in pictures:
            panel, same = self.panels[picture.name], self._same(picture)
            if same and picture.kind in MOVING:
                panel.move(lambda ax, picture=picture: anatomy.cut(picture, ax))
            elif moving:
                continue
            elif not same:
                limits = self._limits.setdefault(picture.name, anatomy.limits(picture))
                panel.draw(
                    lambda ax, picture=picture, limits=limits: anatomy.draw(picture, ax, limits),
                    lambda ax, picture=picture: anatomy.cut(picture, ax),
                    layout=picture.name not in self._shown,
                )
            self._shown[picture.name] = picture
            panel.say(picture.caption or picture.title)
            yield

    def _same(self, picture):
        """Whether the values are those on the page already (the cut may differ where it moves)."""
        before = self._shown.get(picture.name)
        if before is None or (before.kind, before.title, before.labels) != (
            picture.kind,
            picture.title,
            picture.labels,
        ):
            return False
        if picture.kind not in MOVING and before.cut != picture.cut:
            return False
        return before.values is picture.values or np.array_equal(before.values, picture.values)
