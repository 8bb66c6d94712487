"""Settings along a control that make a curve: spread evenly first, then where the measured sizes lie far apart."""

import itertools
import numbers

import numpy as np

from compresslab.techniques import Control

EVEN = 9  # settings spread evenly from one end of a slider to the other
COMPLETE = 16  # settings of a complete curve, at least
CLOSE, FAR = 1.25, 2.0  # ratio of two sizes that is a gap before a curve has COMPLETE settings, and afterwards


def makes_curve(control: Control) -> bool:
    """Return whether the settings are numbers, so that a curve runs along them."""
    if control.choices:
        return all(isinstance(choice, numbers.Real) and not isinstance(choice, bool) for choice in control.choices)
    return not isinstance(control.default, bool)


def list_even_settings(control: Control) -> list:
    """List settings from one end of a control to the other, on its steps."""
    if control.choices:
        return list(control.choices)
    if isinstance(control.default, bool):
        return [False, True]
    return list(dict.fromkeys(round_to_step(control, value) for value in np.linspace(control.low, control.high, EVEN)))


def list_neighbours(control: Control, value: float) -> list:
    """List the settings one step of the slider above and below `value`, inside its range."""
    if control.choices or isinstance(control.default, bool):
        return []
    around = value + control.step, value - control.step
    return [round_to_step(control, setting) for setting in around if control.low <= setting <= control.high]


def find_widest_gap(control: Control, measured: list) -> float | None:
    """Return the setting between the neighbours whose sizes differ most, if any differ enough.

    measured  list of (setting, file_bytes)
    """
    if control.choices or isinstance(control.default, bool):
        return None
    ordered, taken = sorted(measured), {setting for setting, _ in measured}
    smallest_ratio = CLOSE if len(measured) < COMPLETE else FAR
    gaps = []
    for (low, low_size), (high, high_size) in itertools.pairwise(ordered):
        ratio, middle = max(low_size, high_size) / min(low_size, high_size), round_to_step(control, (low + high) / 2)
        if ratio > smallest_ratio and middle not in taken:
            gaps.append((ratio, middle))
    return max(gaps)[1] if gaps else None


def sort_by_distance(settings: list, value: object) -> list:
    """Sort settings by their distance to `value`, if they are numbers."""
    if all(isinstance(setting, (int, float)) for setting in (value, *settings)):
        return sorted(settings, key=lambda setting: abs(setting - value))
    return list(settings)


def round_to_step(control: Control, value: float) -> float:
    """Return the nearest step of the slider, an int where the control counts whole numbers."""
    steps = round((value - control.low) / control.step)
    value = min(control.high, max(control.low, control.low + steps * control.step))
    return int(value) if counts_whole_numbers(control) else round(float(value), 10)


def counts_whole_numbers(control: Control) -> bool:
    """Return whether a control's range and step are whole numbers."""
    return all(isinstance(number, numbers.Integral) for number in (control.low, control.high, control.step))
