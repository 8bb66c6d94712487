"""Checks of arguments, so that every bad value gets the same kind of answer: name, value, what is allowed."""

import math
import numbers


def real(name, value, low, high, hint=""):
    """Return `value` as a float after checking that it is a finite number from low to high.

    raises  ValueError naming the argument, the value and the range
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        upper = "" if high == math.inf else f" to {high:g}"
        bounds = f"from {low:g}{upper}" if upper else f"{low:g} or more"
        raise ValueError(f"{name} is {value!r}; give a number {bounds}{hint}")
    return float(value)


def fraction(name, value):
    """Return `value` as a float after checking that it is a fraction, 0 to 1; raises ValueError."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 1:
        hint = f" ({value / 100:g}, not {value:g})" if number and 1.5 <= value <= 100 else " (0.9 for 90%)"
        raise ValueError(f"{name} is {value!r}; give a fraction from 0 to 1{hint}")
    return float(value)


def integer(name, value, low, high=None):
    """Return `value` as an int after checking that it is a whole number from low to high; raises ValueError."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        allowed = f"{low} or more" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} is {value!r}; give a whole number {allowed}")
    return int(value)


def choice(name, value, allowed):
    """Return `value` after checking that it is one of `allowed`; raises ValueError that lists them."""
    if value not in tuple(allowed):
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, allowed))}")
    return value
