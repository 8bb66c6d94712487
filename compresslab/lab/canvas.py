"""A matplotlib figure shown in one Image widget, quick enough for a slider.

The still part (axes, curve) is drawn once and kept as pixels; the moving part (the point under the slider) is drawn
onto a copy of it (Agg blitting). No pyplot, no clear_output: the page never blanks and never jumps.
"""

import html
import io
import threading
from collections.abc import Callable

import ipywidgets as widgets
import numpy as np
import traitlets
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

DPI = 120
WIDTH, HEIGHT = 648, 480  # pixels: 5.4 x 4 inches
_drawing = threading.RLock()  # matplotlib's caches of fonts and text are shared by all figures


class TitledImage(widgets.Image):
    """An Image with a tooltip, which screen readers speak; without a description its view would fail in the browser."""

    description = traitlets.Unicode("").tag(sync=True)


class Panel:
    """One picture: `image` is the widget, `caption` its text alternative, `figure` what is drawn.

    width, height  pixels
    place          (left, bottom, width, height) of the axes, fractions of the figure; None lets matplotlib choose
    """

    def __init__(self, width: int = WIDTH, height: int = HEIGHT, place: tuple | None = None):
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        self.canvas = FigureCanvasAgg(self.figure)
        self.canvas.draw()
        layout = widgets.Layout(width="100%", height="auto", margin="0")
        self.image = TitledImage(format="png", width=width, height=height, value=_png(self.canvas), layout=layout)
        self.caption = widgets.HTML(layout=widgets.Layout(margin="0"))
        self.caption.add_class("compresslab-caption")
        layout = widgets.Layout(width="100%", max_width="720px", margin="0")
        self.widget = widgets.VBox([self.image, self.caption], layout=layout)
        self._places = place and [place]
        self._background = None

    def draw(self, still: Callable, moving: Callable | None = None, layout: bool = False) -> None:
        """Draw the axes with still(ax) and, over them, the artists that moving(ax) returns.

        layout  True computes the layout again, for another kind of picture
        """
        with _drawing:
            self.figure.clear()
            layout = layout or self._places is None
            self.figure.set_layout_engine("constrained" if layout else "none")
            still(self.figure.add_subplot())
            if layout:  # 60 ms, so not for every picture
                self.figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
                self.figure.draw_without_rendering()
                self.figure.set_layout_engine("none")
                self._places = [ax.get_position().bounds for ax in self.figure.axes]  # a colour bar has its own
            for ax, place in zip(self.figure.axes, self._places, strict=False):
                ax.set_position(place)
            self.canvas.draw()
            self._background = self.canvas.copy_from_bbox(self.figure.bbox)
            self.move(moving)

    def move(self, moving: Callable | None = None) -> None:
        """Lay moving(ax)'s artists over the still part and show the result."""
        with _drawing:
            if self._background is None:
                return
            self.canvas.restore_region(self._background)
            ax = self.figure.axes[0]
            for artist in moving(ax) if moving else ():
                ax.draw_artist(artist)
                artist.remove()
            self.image.value = _png(self.canvas)

    def locate(self, points: list) -> list[tuple[float, float]]:
        """Return where points (x, y of the data) lie in the picture, in pixels from its top left corner."""
        with _drawing:
            if self._background is None or not points:
                return []
            spots = self.figure.axes[0].transData.transform(np.asarray(points, dtype=float))
            height = self.canvas.get_width_height()[1]
            return [(round(float(x), 1), round(height - float(y), 1)) for x, y in spots]

    def blank(self) -> None:
        """Show an empty picture."""
        with _drawing:
            self.figure.clear()
            self.canvas.draw()
            self._background = None
            self.image.value = _png(self.canvas)

    def release(self) -> None:
        """Let go of the figure and its pixels; nothing can be drawn any more."""
        with _drawing:
            self.figure = self.canvas = self._background = None

    def say(self, text: str) -> None:
        """Set the caption, a sentence that says what the picture shows; also the picture's tooltip."""
        if text != self.image.tooltip:
            self.caption.value, self.image.tooltip = html.escape(text), text


def _png(canvas):
    """Return the canvas as PNG bytes, packed lightly, which is several times quicker."""
    packed = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(packed, "png", compress_level=1)
    return packed.getvalue()
