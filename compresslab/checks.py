"""Checks of arguments, so that every bad value gets the same kind of answer: name, value, what is allowed."""

import math
import numbers
import os
import reprlib
from collections.abc import Hashable, Mapping

from torch import nn

LONGEST = 80  # characters of a value in a message; of what an exception says, twice as many
_INSIDE = ("_orig_mod", "_fsdp_wrapped_module")  # names of the model inside a wrapper, of torch.compile and FSDP
_HINTS = {
    Mapping: "; a state_dict is not one: load it into its model",
    (str, os.PathLike): "; a file is not one: load it first",
    (list, tuple): "; put layers into one: nn.Sequential(*layers)",
}


class _Words(reprlib.Repr):
    """Values in a few words: of tensors and modules their kind alone."""

    def __init__(self):
        super().__init__()
        self.maxstring = self.maxother = LONGEST
        self.maxlist = self.maxtuple = 10

    def repr1(self, value, level):
        if isinstance(value, nn.Module):
            return type(value).__name__
        if isinstance(shape := getattr(value, "shape", None), tuple) and shape:
            return f"{type(value).__name__} of shape {tuple(shape)}"
        return self.repr_dict(value, level) if isinstance(value, Mapping) else super().repr1(value, level)


def words(value):
    """Return a value as it stands in a message: its repr, of large ones the beginning; of tensors the shape."""
    return _cut(_Words().repr(value), LONGEST)


def reason(error):
    """Return an exception in words: its type, and the beginning of what it says."""
    try:
        said = _cut(str(error), 2 * LONGEST)
    except Exception:  # the user's own class
        said = ""
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _cut(text, most):
    """A text in one line of so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def module(name, value, also="", wrapped=False):
    """Return `value` after checking that it is a model, and that no wrapper renames its layers.

    also    what else is allowed, in words (" or the name of a pretrained network")
    wrapped  True lets a wrapper pass, for what only runs the model
    raises  ValueError for anything but an nn.Module, and for a model of torch.compile, DataParallel or the like
    """
    if isinstance(value, type) and issubclass(value, nn.Module):
        kind = value.__name__
        raise ValueError(f"{name} is the class {kind}; give a torch.nn.Module, an instance of it: {kind}(…)")
    if not isinstance(value, nn.Module):
        hint = next((hint for kind, hint in _HINTS.items() if isinstance(value, kind)), "")
        raise ValueError(f"{name} is {words(value)}; give a torch.nn.Module{also}{hint}")
    for path, part in () if wrapped else value.named_modules():
        if inside := _wrapped(part):
            path = f"{name}.{path}" if path else name
            wrapper = "torch.compile" if inside == _INSIDE[0] else type(part).__name__
            raise ValueError(f"{path} is wrapped by {wrapper}; pass the model itself: {path}.{inside}")
    return value


def _wrapped(part):
    """Name under which a wrapper holds the model that it is called for; "" for what is no wrapper."""
    if isinstance(part, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "module"
    names = [name for name, _ in part.named_children()]
    return names[0] if len(names) == 1 and names[0] in _INSIDE else ""


def real(name, value, low, high, hint=""):
    """Return `value` as a float after checking that it is a finite number from low to high.

    raises  ValueError naming the argument, the value and the range
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        upper = "" if high == math.inf else f" to {high:g}"
        bounds = f"from {low:g}{upper}" if upper else f"{low:g} or more"
        raise ValueError(f"{name} is {words(value)}; give a number {bounds}{hint}")
    return float(value)


def fraction(name, value):
    """Return `value` as a float after checking that it is a fraction, 0 to 1; raises ValueError."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 1:
        hint = f" ({value / 100:g}, not {value:g})" if number and 1.5 <= value <= 100 else " (0.9 for 90%)"
        raise ValueError(f"{name} is {words(value)}; give a fraction from 0 to 1{hint}")
    return float(value)


def integer(name, value, low, high=None):
    """Return `value` as an int after checking that it is a whole number from low to high; raises ValueError."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        allowed = f"{low} or more" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} is {words(value)}; give a whole number {allowed}")
    return int(value)


def choice(name, value, allowed):
    """Return `value` after checking that it is one of `allowed`; raises ValueError that lists them."""
    if not isinstance(value, Hashable) or value not in tuple(allowed):
        raise ValueError(f"{name} is {words(value)}; choose one of {', '.join(map(repr, allowed))}")
    return value
