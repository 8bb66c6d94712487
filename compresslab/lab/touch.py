"""Lay points that can be pressed over the chart, and give the controls of its page names for screen readers."""

from collections.abc import Callable
from pathlib import Path

import anywidget
import traitlets


class Touch(anywidget.AnyWidget):
    """A transparent picture over the chart, in the browser.

    size     width and height of the chart, pixels
    points   of each point {"x", "y": pixels from the top left corner, "text": what is shown beside it}
    pressed  [number of the point, time]: the last one that a person chose
    """

    _esm = Path(__file__).with_name("touch.js").read_text(encoding="utf-8")
    size = traitlets.List(traitlets.Int(), default_value=[1, 1]).tag(sync=True)
    points = traitlets.List(traitlets.Dict()).tag(sync=True)
    pressed = traitlets.List(traitlets.Int(), default_value=[-1, 0]).tag(sync=True)

    def on_press(self, handle: Callable[[int], None]) -> None:
        """Call handle(number of the point) when a person presses a point."""
        self.observe(lambda change: handle(change["new"][0]), "pressed")
