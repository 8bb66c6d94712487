"""The widgets of a lab and where they stand on the page; none of them does anything yet."""

import html

import ipywidgets as widgets
import pandas as pd

from compresslab.lab import words
from compresslab.lab.controls import LABEL

STYLE = """<style>
.compresslab { font-size: 15px; padding: 4px 6px 8px 2px; }
.compresslab .widget-label, .compresslab .widget-readout { font-size: 15px; }
.compresslab-caption { color: #555; font-size: 13px; line-height: 1.35; }
.compresslab-caption .widget-html-content { line-height: 1.35; white-space: normal; }
.compresslab-status .widget-html-content { font-size: 16px; line-height: 1.4; white-space: normal; }
.compresslab-status b { font-weight: 600; }
.compresslab-unused { opacity: 0.45; }
.compresslab-note .widget-html-content { line-height: 1.4; white-space: normal; }
.compresslab-error { color: #A33B00; font-weight: 600; }
.compresslab table.ledger { border-collapse: collapse; font-size: 14px; line-height: 1.3; margin: 2px 0; }
.compresslab table.ledger td, .compresslab table.ledger th { padding: 3px 10px; text-align: right; }
.compresslab table.ledger th { border-bottom: 2px solid #999; font-weight: 600; }
.compresslab table.ledger td { border-bottom: 1px solid #E0E0E0; }
.compresslab table.ledger td:first-child, .compresslab table.ledger th:first-child,
.compresslab table.ledger td:last-child, .compresslab table.ledger th:last-child { text-align: left; }
.compresslab table.ledger tr.file td { font-weight: 600; background: rgba(0, 114, 178, 0.09); }
.compresslab textarea { font-family: monospace; font-size: 14px; line-height: 1.4; }
</style>"""
PICTURES = {  # two beside one another, or one where the page is narrow
    "grid_template_columns": "repeat(auto-fit, minmax(max(380px, 40%), 1fr))",
    "grid_gap": "6px 12px",
    "width": "100%",
    "align_items": "flex-start",
}
BUTTONS = {  # name: (icon, tooltip)
    "whole curve": ("line-chart", "Measure settings from one end of the slider to the other"),
    "report on test": ("flag-checkered", "The chosen point on the test images, once, with its interval"),
    "export CSV": ("download", "Write everything measured here to a file in the working folder"),
    "show the code": ("code", "The lines of Python that reproduce the chosen point, and the one that reopens this lab"),
    "clear": ("eraser", "Empty the picture and the results; the journal keeps everything"),
    "pause": ("pause", "Hold the training at its next step"),
    "step": ("step-forward", "Take one training step"),
    "resume": ("play", "Let the training go on"),
}


class Page:
    """Every widget of a lab, by name, and `children`, the page from top to bottom.

    technique  its widgets;  fair  label -> checkbox;  chart  the Panel on the left
    """

    def __init__(self, choosers, technique, fair, chart):
        self.status = widgets.HTML(layout=widgets.Layout(margin="2px 0", min_height="48px"))
        self.status.add_class("compresslab-status")
        self.progress = widgets.FloatProgress(
            min=0, max=1, layout=widgets.Layout(width="100%", height="10px", margin="0")
        )
        self.progress.style.bar_color = "#0072B2"
        self.guess = _guess()
        self.buttons = {name: _button(name, *about) for name, about in BUTTONS.items()}
        self.buttons["lock in"] = _button(
            "lock in", "lock", "Draw your guess; the measurement then says how far off it is"
        )
        self.ledger, self.note = widgets.HTML(), widgets.HTML(layout=widgets.Layout(margin="4px 0"))
        self.note.add_class("compresslab-note")
        self.unkept = widgets.HTML(layout=widgets.Layout(margin="0", display="none"))
        self.unkept.add_class("compresslab-note")
        self.code = widgets.Textarea(layout=widgets.Layout(width="100%", height="240px", display="none"))
        self.pictures = widgets.GridBox([chart.widget], layout=widgets.Layout(**PICTURES))
        sliders = [one for one in technique if isinstance(one, widgets.IntSlider | widgets.FloatSlider)]
        others = [one for one in technique if one not in sliders]
        compare = [_label("compare with"), *fair.values()] if fair else []
        guess = [_label("your guess", "auto" if fair else LABEL), *self.guess.values(), self.buttons["lock in"]]
        self.children = [
            widgets.HTML(STYLE, layout=widgets.Layout(display="none")),
            _row(list(choosers)),
            *sliders,
            *([_row(others)] if others else []),
            _row([*compare, *guess]),
            self.unkept,
            self.status,
            self.progress,
            self.pictures,
            self.ledger,
            _row([self.buttons[name] for name in BUTTONS]),
            self.note,
            self.code,
        ]

    def show_pictures(self, panels):
        """Put the anatomy's panels beside the chart, if they are not there already."""
        wanted = (self.pictures.children[0], *(panel.widget for panel in panels))
        if self.pictures.children != wanted:
            self.pictures.children = wanted

    def show_unkept(self, problem):
        """Say that what is measured is kept no longer, and why."""
        text = f"Nothing is kept from now on: {problem}."
        self.unkept.value = f"<span class='compresslab-error'>{html.escape(text)}</span>"
        self.unkept.layout.display = None


def close_widgets(*roots):
    """Close widgets and all that they are made of: children, layouts, styles. The browser takes them off the page."""
    waiting, closed = list(roots), set()
    while waiting:
        widget = waiting.pop()
        if widget not in closed:
            values = [getattr(widget, name) for name in widget.keys]
            parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
            waiting += [part for part in parts if isinstance(part, widgets.Widget)]
            widgets.Widget.close(widget)
            closed.add(widget)


def ledger_table(ledger, title, dense_bytes):
    """The size ledger as an HTML table; the .clab file's row stands out.

    dense_bytes  of the network before compression, which every row is compared with
    """
    frame = ledger.to_frame()
    against = f"against the dense network in fp32 ({words.kib(dense_bytes)})"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", "count", "KiB", against, "what it counts"))
    rows = "".join(_ledger_row(row, dense_bytes) for row in frame.to_dict("records"))
    heading = f"<tr><td colspan=5><b>{html.escape(title)}</b></td></tr>"
    return f"<table class='ledger'><thead>{heading}<tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _ledger_row(row, dense_bytes):
    cells = (
        row["kind"],
        "" if pd.isna(row["count"]) else f"{row['count']:,}",
        "" if pd.isna(row["KiB"]) else f"{row['KiB']:,.1f}",
        "" if pd.isna(row["bytes"]) else words.times(row["bytes"], dense_bytes),
        row["meaning"],
    )
    kind = " class='file'" if row["kind"] == ".clab file" else ""
    return f"<tr{kind}>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in cells)}</tr>"


def _guess():
    number = {"style": {"description_width": "initial"}, "layout": widgets.Layout(width="174px")}
    return {
        "accuracy": widgets.BoundedFloatText(97, min=0, max=100, step=0.1, description="accuracy (%)", **number),
        "size": widgets.BoundedFloatText(50, min=0, max=1e7, step=1, description="file size (KiB)", **number),
    }


def _label(text, width=LABEL):
    margin = "2px 6px 2px 2px" if width == LABEL else "2px 6px 2px 24px"
    layout = widgets.Layout(width=width, margin=margin, justify_content="flex-end")
    return widgets.Label(text, layout=layout)


def _button(name, icon, tooltip):
    layout = widgets.Layout(width="auto", min_width="84px")
    return widgets.Button(description=name, icon=icon, tooltip=tooltip, layout=layout)


def _row(children, **layout):
    return widgets.Box(children, layout=widgets.Layout(flex_flow="row wrap", width="100%", **layout))
