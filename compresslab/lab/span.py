"""Which settings of a slider make a curve: evenly spread ones first, then where the measured sizes lie far apart."""

import math
import numbers

import numpy as np

EVEN = 9  # settings spread evenly from one end of a slider to the other
WHOLE = 16  # settings of a whole curve, at least
CLOSE, FAR = 1.25, 2.0  # ratio of two sizes that leaves no gap on a curve, and that leaves one on a whole curve


def makes_curve(control):
    """Whether settings of a control have an order to draw a curve along: a slider, or choices that are numbers."""
    if control.choices:
        return all(isinstance(choice, numbers.Real) and not isinstance(choice, bool) for choice in control.choices)
    return not isinstance(control.default, bool)


def even_settings(control):
    """Settings from one end of a control to the other, on its steps; all the choices of a chooser."""
    if control.choices:
        return list(control.choices)
    if isinstance(control.default, bool):
        return [False, True]
    return list(dict.fromkeys(on_step(control, value) for value in np.linspace(control.low, control.high, EVEN)))


def neighbours(control, value, reach=1):
    """The settings up to `reach` steps of the slider on both sides of `value`, inside its range."""
    if control.choices or isinstance(control.default, bool):
        return []
    around = [value + sign * number * control.step for number in range(1, reach + 1) for sign in (1, -1)]
    return [on_step(control, one) for one in around if control.low <= one <= control.high]


def widest_gap(control, measured):
    """The setting in the middle of the two neighbours whose sizes differ most, or None if all are close.

    measured  list of (setting, file_bytes)
    """
    if control.choices or isinstance(control.default, bool):
        return None
    ordered = sorted(measured)
    gaps = [
        (abs(math.log(size / next_size)), on_step(control, (setting + following) / 2))
        for (setting, size), (following, next_size) in zip(ordered, ordered[1:], strict=False)
    ]
    have = {setting for setting, _ in measured}
    wide = CLOSE if len(measured) < WHOLE else FAR
    gaps = [gap for gap in gaps if gap[0] > math.log(wide) and gap[1] not in have]
    return max(gaps)[1] if gaps else None


def nearest_first(settings, value):
    """`settings` in the order of their distance to `value`; choices that are not numbers stay as they are."""
    if isinstance(value, (int, float)) and all(isinstance(one, (int, float)) for one in settings):
        return sorted(settings, key=lambda one: abs(one - value))
    return list(settings)


def on_step(control, value):
    """`value` moved to the nearest step of the slider, an int where the control counts whole numbers."""
    steps = round((value - control.low) / control.step)
    value = min(control.high, max(control.low, control.low + steps * control.step))
    return int(value) if whole(control) else round(float(value), 10)


def whole(control):
    """Whether a control counts in whole numbers."""
    return all(isinstance(number, numbers.Integral) for number in (control.low, control.high, control.step))
