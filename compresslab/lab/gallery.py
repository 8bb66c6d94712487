"""The pictures in the tabs: a Panel for each picture that a technique makes of what happened inside, and the bytes."""

from functools import partial

import ipywidgets as widgets
import numpy as np

from compresslab.lab import anatomy, damage, size_table
from compresslab.lab.canvas import Panel
from compresslab.lab.page import close_widgets
from compresslab.techniques import Picture

MOVING = ("histogram", "spectrum")  # kinds whose cut moves over a picture that may stay
GRID = {  # two beside one another, or one where the page is narrow
    "grid_template_columns": "repeat(auto-fit, minmax(max(380px, 40%), 1fr))",
    "grid_gap": "6px 12px",
    "width": "100%",
    "align_items": "flex-start",
}


class Gallery:
    """Panels by their pictures' names; colours and axes keep the limits of the first picture of a model.

    inside  the panels of what happened inside, side by side;  bytes  the panel of the file's bytes;  damage  those of
            changed answers
    """

    def __init__(self):
        self.inside, self.bytes, self.damage = (widgets.GridBox(layout=widgets.Layout(**GRID)) for _ in range(3))
        self._boxes = {size_table.BYTES: self.bytes} | dict.fromkeys(damage.NAMES, self.damage)
        self.panels = {}
        self._shown, self._limits, self._waiting = {}, {}, []

    def empty(self, forget_limits: bool = False) -> None:
        """Close all pictures; for another model, forget the limits too."""
        self.arrange([])
        for panel in self.panels.values():
            close_widgets(panel.widget)
            panel.release()
        self.panels, self._shown = {}, {}
        if forget_limits:
            self._limits = {}

    def arrange(self, names: list) -> None:
        """Make room for the pictures of these names, in this order; nothing waits any more."""
        self._waiting = []
        for name in names:
            self.panels[name] = self.panels.get(name) or Panel()
        for box in (self.inside, self.bytes, self.damage):
            children = tuple(self.panels[name].widget for name in names if self._boxes.get(name, self.inside) is box)
            if box.children != children:
                box.children = children

    def show(self, pictures: list[Picture]) -> None:
        """Move the cuts of pictures whose values stay; the others wait for `draw_next`."""
        for picture in pictures:
            shown, moves = self._shown.get(picture.name), picture.kind in MOVING
            fields = ("kind", "title", "labels") if moves else ("kind", "title", "labels", "cut")
            same = shown is not None and all(getattr(shown, name) == getattr(picture, name) for name in fields)
            if not same or not np.array_equal(shown.values, picture.values):
                self._waiting.append(picture)
                continue
            if moves:
                self.panels[picture.name].move(partial(anatomy.cut, picture))
            self._note_shown(picture)

    def draw_next(self) -> bool:
        """Draw the first picture that waits; return False if none does."""
        if not self._waiting:
            return False
        picture = self._waiting.pop(0)
        limits = self._limits.setdefault(picture.name, anatomy.limits(picture))
        still, moving = partial(anatomy.draw, picture, limits=limits), partial(anatomy.cut, picture)
        self.panels[picture.name].draw(still, moving, layout=picture.name not in self._shown)
        self._note_shown(picture)
        return True

    def _note_shown(self, picture):
        self.panels[picture.name].say(picture.caption or picture.title)
        self._shown[picture.name] = picture
