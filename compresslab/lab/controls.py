"""Widgets made from what a technique declares: a slider, a chooser or a checkbox for each of its controls."""

import threading

import ipywidgets as widgets

from compresslab import checks
from compresslab.lab.span import makes_curve, whole

LABEL, LONG_LABEL = "135px", "270px"  # room for the longest name, and label, before a slider
UNUSED = "compresslab-unused"  # class of an alternative that is not in use; the page shows it dimmed


class Controls:
    """A technique's controls as widgets.

    widgets    name -> widget, in the order declared
    on_change  set it to a function without arguments: called whenever a person or a program moves one
    moved      name of the slider moved last: the curve runs along it

    Of controls that share an `alternative`, the one moved last is in use; the others are dimmed.
    """

    def __init__(self, technique, setting):
        self.declared = {control.name: control for control in technique.controls}
        self._active = {}  # alternative -> name of the control in use
        self._lock = threading.Lock()
        self.on_change = lambda: None
        check_setting(technique, setting)
        self.widgets = {name: make(control, setting.get(name)) for name, control in self.declared.items()}
        for control in technique.controls:
            if control.alternative and (control.alternative not in self._active or control.name in setting):
                self._active[control.alternative] = control.name
            self.widgets[control.name].observe(self._observer(control.name), "value")
        used = [name for name in self.widgets if self.in_use(name)]
        self.moved = next((name for name in used if makes_curve(self.declared[name])), next(iter(used), None))
        self._dim()

    def in_use(self, name):
        """Whether a control takes part, or an alternative to it does."""
        alternative = self.declared[name].alternative
        return not alternative or self._active[alternative] == name

    def setting(self):
        """name -> value of the controls in use; what the technique's function is called with."""
        with self._lock:
            return {name: plain(widget.value) for name, widget in self.widgets.items() if self.in_use(name)}

    def _observer(self, name):
        def moved(change):
            if plain(change["new"]) == plain(change["old"]):  # a browser's own rounding, not a hand
                return
            with self._lock:
                if makes_curve(self.declared[name]) and change["new"] is not None:
                    self.moved = name
                if alternative := self.declared[name].alternative:
                    self._active[alternative] = self._chosen(name, change["new"])
            self._dim()
            self._empty(name)
            self.on_change()

        return moved

    def _chosen(self, name, value):
        """Name of the control in use now that this alternative has a value: another one, if it was emptied."""
        alternative = self.declared[name].alternative
        others = [one for one, control in self.declared.items() if control.alternative == alternative and one != name]
        if value is not None:
            return name
        return self._active[alternative] if self._active[alternative] != name else next(iter(others), name)

    def _empty(self, moved):
        """Empty the choosers that the control just moved puts out of use, so that the same choice can be made again."""
        for name, widget in self.widgets.items():
            same = self.declared[name].alternative == self.declared[moved].alternative
            if name != moved and same and not self.in_use(name) and self.declared[name].default is None:
                widget.value = None

    def _dim(self):
        for name, widget in self.widgets.items():
            (widget.remove_class if self.in_use(name) else widget.add_class)(UNUSED)


def make(control, value=None):
    """The widget of one control, set to `value` or to the control's default."""
    value = control.default if value is None else value
    common = {
        "description": control.label or control.name,
        "tooltip": control.help or control.name,
        "style": {"description_width": LONG_LABEL if control.label else LABEL},
        "layout": widgets.Layout(width="auto", min_width="300px"),
    }
    if control.choices:
        return widgets.Dropdown(options=[(str(choice), choice) for choice in control.choices], value=value, **common)
    if isinstance(control.default, bool):
        return widgets.Checkbox(value=value, **common)
    value = control.low if value is None else value
    kind = widgets.IntSlider if whole(control) else widgets.FloatSlider
    shown = {} if whole(control) else {"readout_format": readout(control)}
    if control.unit not in ("", "%"):
        common["description"] += f" ({control.unit})"
    limits = {"min": control.low, "max": control.high, "step": control.step}
    return kind(value=value, continuous_update=True, **limits, **shown, **common)


def readout(control):
    """d3's number format that shows one step of a slider: percent for fractions, else enough decimals."""
    decimals = max(0, len(f"{control.step:.10f}".rstrip("0").split(".")[1]))
    return f".{max(0, decimals - 2)}%" if control.unit == "%" else f".{decimals}f"


def plain(value):
    """A slider's value without the dust of binary fractions, so that 0.7000000000000001 is 0.7 in the journal."""
    return round(value, 10) if isinstance(value, float) else value


def check_setting(technique, setting):
    """Raise ValueError unless `setting` (name -> value) fits the technique's controls."""
    declared = {control.name: control for control in technique.controls}
    used = {}
    for name, value in setting.items():
        checks.choice("setting", name, declared)
        control = declared[name]
        if control.choices:
            checks.choice(name, value, control.choices)
        elif not isinstance(control.default, bool):
            checks.real(name, value, control.low, control.high)
        if control.alternative and (other := used.setdefault(control.alternative, name)) != name:
            raise ValueError(f"setting has both {other} and {name}; give one of them")
