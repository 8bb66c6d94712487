"""Widgets made from what a technique declares: a slider, a chooser or a checkbox for each of its controls."""

import threading
from functools import partial

import ipywidgets as widgets

from compresslab import checks
from compresslab.lab.page import LABEL, LONG_LABEL
from compresslab.lab.settings import counts_whole_numbers, makes_curve
from compresslab.techniques import Control, Technique

UNUSED = "compresslab-unused"  # class of an alternative that is not in use; the page shows it dimmed


class Controls:
    """A technique's controls as widgets.

    widgets    name -> widget, in the order declared
    on_change  set it to a function without arguments: called whenever a person or a program moves one
    moved      name of the slider moved last: the curve runs along it

    Of controls that share an `alternative`, the one moved last is in use; the others are dimmed.
    """

    def __init__(self, technique: Technique, setting: dict):
        self._declared = {control.name: control for control in technique.controls}
        self._active = {}  # alternative -> name of the control in use
        self._lock = threading.Lock()
        self.on_change = lambda: None
        self._check(setting)
        self.widgets = {name: make_widget(control, setting.get(name)) for name, control in self._declared.items()}
        for name, control in self._declared.items():
            if control.alternative and (control.alternative not in self._active or name in setting):
                self._active[control.alternative] = name
            self.widgets[name].observe(partial(self._handle_move, name), "value")
        used = list(self.values())
        self.moved = next((name for name in used if makes_curve(self._declared[name])), next(iter(used), None))
        self._dim()

    def values(self) -> dict:
        """Return name -> value of the controls in use: the setting of the technique's function."""
        with self._lock:
            return {name: drop_dust(widget.value) for name, widget in self.widgets.items() if self._is_used(name)}

    def move_to(self, setting: dict) -> None:
        """Set all controls of a setting; of controls that exclude one another the setting's are in use."""
        for name, value in setting.items():
            if name in self.widgets and value is not None:
                self.widgets[name].value = value
                with self._lock:
                    if alternative := self._declared[name].alternative:
                        self._active[alternative] = name
        self._dim()

    def _check(self, setting):
        """Raise ValueError unless the setting fits the controls, with one of each alternative at most."""
        used = {}  # alternative -> name
        for name, value in setting.items():
            checks.choice("setting", name, self._declared)
            control = self._declared[name]
            if control.choices:
                checks.choice(name, value, control.choices)
            elif not isinstance(control.default, bool):
                checks.real(name, value, control.low, control.high)
            if control.alternative and used.setdefault(control.alternative, name) != name:
                raise ValueError(f"setting has both {used[control.alternative]} and {name}; give one of them")

    def _is_used(self, name):
        return self._active.get(self._declared[name].alternative, name) == name

    def _handle_move(self, name, change):
        if drop_dust(change["new"]) == drop_dust(change["old"]):  # a browser's own rounding, not a hand
            return
        alternative, emptied = self._declared[name].alternative, change["new"] is None
        with self._lock:
            if makes_curve(self._declared[name]) and not emptied:
                self.moved = name
            if alternative and not emptied:
                self._active[alternative] = name
            elif alternative and self._active[alternative] == name:  # emptied: the first of the others is used
                rivals = [rival for rival, control in self._declared.items() if control.alternative == alternative]
                self._active[alternative] = next((rival for rival in rivals if rival != name), name)
        self._dim()
        self.on_change()

    def _dim(self):
        """Dim the controls out of use; empty their choosers, to be used again."""
        for name, widget in self.widgets.items():
            (widget.remove_class if self._is_used(name) else widget.add_class)(UNUSED)
            if (
                not self._is_used(name)
                and isinstance(widget, widgets.Dropdown)
                and self._declared[name].default is None
            ):
                widget.value = None


def make_widget(control: Control, value: object = None) -> widgets.Widget:
    """Make the widget of a control, set to `value` or to the control's default."""
    value = control.default if value is None else value
    label, width = (control.label, LONG_LABEL) if control.label else (control.name, LABEL)
    common = {
        "description": label,
        "tooltip": control.help or control.name,
        "style": {"description_width": width},
        "layout": widgets.Layout(width="auto", min_width="300px"),
    }
    if control.choices:
        return widgets.Dropdown(options=[(str(choice), choice) for choice in control.choices], value=value, **common)
    if isinstance(control.default, bool):
        return widgets.Checkbox(value=value, **common)
    common["description"] += f" ({control.unit})" if control.unit not in ("", "%") else ""
    common["value"] = control.low if value is None else value
    common |= {"min": control.low, "max": control.high, "step": control.step}
    if counts_whole_numbers(control):
        return widgets.IntSlider(**common)
    return widgets.FloatSlider(readout_format=choose_readout(control), **common)


def choose_readout(control: Control) -> str:
    """Return the number format (d3's) that shows one step of a slider."""
    decimals = max(0, len(f"{control.step:.10f}".rstrip("0").split(".")[1]))
    return f".{max(0, decimals - 2)}%" if control.unit == "%" else f".{decimals}f"


def drop_dust(value: object) -> object:
    """Return a slider's value without the dust of binary fractions: 0.7 for 0.7000000000000001."""
    return round(value, 10) if isinstance(value, float) else value
