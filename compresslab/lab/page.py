"""Make the small widgets of a lab's page: style, fields and choosers, not yet connected with anything."""

from collections.abc import Iterable
from pathlib import Path

import ipywidgets as widgets

STYLE = f"<style>\n{Path(__file__).with_name('page.css').read_text(encoding='utf-8')}</style>"
BUTTONS = {  # name: (icon, tooltip)
    # beside the slider
    "whole curve": ("line-chart", "Measure settings from one end of the slider to the other"),
    "pause": ("pause", "Hold the training at its next step"),
    "step": ("step-forward", "Take one training step"),
    "resume": ("play", "Let the training go on"),
    "undo": ("undo", "Go back to the setting before"),
    "redo": ("repeat", "Go forward again"),
    "pin": ("thumb-tack", "Keep this point as A; each next one is compared with it, image by image"),
    "report on test": ("flag-checkered", "The chosen point on the test images, once, with its interval"),
    "show the code": ("code", "The lines of Python that reproduce the chosen point, and the one that reopens this lab"),
    # in the tabs
    "export CSV": ("download", "Write everything measured here to a file in the working folder"),
    "clear": ("eraser", "Empty the picture and the results; the journal keeps everything"),
    "forget": ("trash", "Take everything that this lab measured out of the journal; what others measured stays"),
    "lock in": ("lock", "Draw your guess; the measurement then says how far off it is"),
}
IN_TABS = ("export CSV", "clear", "forget", "lock in")
LABEL, LONG_LABEL = "124px", "200px"  # room for the longest name, and label, before a slider
NARROW = "1 1 360px"  # flex of the controls beside the chart: below one another on a page under 800 pixels
WIDE = "2 1 430px"  # of the chart
MOST_STEPS = 500  # right end of the slider for retraining steps
LARGEST_SEED = 2**31 - 1
NAME_FITS = {"description_width": "initial"}


def make_choosers(names: dict[str, list], chosen: dict) -> dict[str, widgets.Widget]:
    """Make the widgets that every lab has: "model", "data", "steps", "seed".

    names   the models and data that are offered;  chosen  the value of each to begin with
    """

    def options(name: str, width: str, tooltip: str = "") -> dict:
        """Return what the widgets have in common."""
        layout = widgets.Layout(width=width, margin="2px 8px 2px 2px")
        return {"description": name, "value": chosen[name], "layout": layout, "style": NAME_FITS, "tooltip": tooltip}

    steps = {"min": 0, "max": max(MOST_STEPS, chosen["steps"]), "step": 5, "description": "steps"}
    steps |= {"value": chosen["steps"], "tooltip": "Retraining steps; 0 for none"}
    steps |= {"style": {"description_width": LABEL}, "layout": widgets.Layout(width="auto", min_width="300px")}
    return {
        "model": widgets.Dropdown(options=names["model"], **options("model", "auto")),
        "data": widgets.Dropdown(options=names["data"], **options("data", "auto")),
        "steps": widgets.IntSlider(**steps),
        "seed": widgets.BoundedIntText(max=LARGEST_SEED, **options("seed", "130px", "Order of the training images")),
    }


def make_guess_fields() -> dict[str, widgets.Widget]:
    """Make the fields of a guess: "accuracy" in percent, "size" in KiB."""
    number = {"min": 0, "style": NAME_FITS, "layout": widgets.Layout(width="174px")}
    return {
        "accuracy": widgets.BoundedFloatText(97, max=100, step=0.1, description="accuracy (%)", **number),
        "size": widgets.BoundedFloatText(50, max=1e7, step=1, description="file size (KiB)", **number),
    }


def make_label(text: str, width: str = LABEL) -> widgets.Label:
    """Make a label, aligned with the sliders' names unless it has another width."""
    margin = "2px 6px 2px 2px" if width == LABEL else "2px 6px 2px 24px"
    return widgets.Label(text, layout=widgets.Layout(width=width, margin=margin, justify_content="flex-end"))


def make_html(style: str, **layout: str) -> widgets.HTML:
    """Make an empty HTML widget, with a class of STYLE."""
    return widgets.HTML(layout=widgets.Layout(**layout)).add_class(f"compresslab-{style}")


def make_row(children: Iterable) -> widgets.Box:
    """Lay widgets side by side, in several lines where the page is narrow."""
    return widgets.Box(list(children), layout=widgets.Layout(flex_flow="row wrap", width="100%"))


def make_column(children: Iterable, flex: str) -> widgets.VBox:
    """Lay widgets below one another, in a column that shares its row as `flex` says (CSS)."""
    return widgets.VBox(list(children), layout=widgets.Layout(flex=flex, min_width="0"))


def make_tabs(pages: dict[str, Iterable]) -> widgets.Tab:
    """Lay out a tab for each title."""
    boxes = [widgets.VBox(list(children), layout=widgets.Layout(width="100%")) for children in pages.values()]
    return widgets.Tab(boxes, titles=tuple(pages), layout=widgets.Layout(width="100%", margin="6px 0 0"))


def close_widgets(root: widgets.Widget) -> None:
    """Close a widget and its parts; the browser takes them off the page."""
    waiting, closed = [root], set()
    while waiting:
        widget = waiting.pop()
        if widget not in closed:
            values = [getattr(widget, name) for name in widget.keys]
            parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
            waiting += [part for part in parts if isinstance(part, widgets.Widget)]
            widgets.Widget.close(widget)
            closed.add(widget)
