"""Checks of arguments, so that every bad value gets the same kind of answer: name, value, what is allowed."""

import math
import numbers
import os
import reprlib
from collections.abc import Hashable, Iterable, Mapping

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

    def repr1(self, value: object, level: int) -> str:
        """Word a value inside another."""
        if isinstance(value, nn.Module):
            return type(value).__name__
        if isinstance(shape := getattr(value, "shape", None), tuple) and shape:
            return f"{type(value).__name__} of shape {tuple(shape)}"
        return self.repr_dict(value, level) if isinstance(value, Mapping) else super().repr1(value, level)


def words(value: object) -> str:
    """Word a value for a message: its repr, cut short; the shape of a tensor."""
    return _cut(_Words().repr(value), LONGEST)


def reason(error: BaseException) -> str:
    """Word an exception: its type, and the beginning of its message."""
    try:
        message = _cut(str(error), 2 * LONGEST)
    except Exception:  # the user's own class
        message = ""
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _cut(text, most):
    """Put a text into one line of so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def module(name: str, value: object, also: str = "", wrapped: bool = False) -> nn.Module:
    """Check that a value is a model whose layers no wrapper renames; return it.

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
    """Return the name under which a wrapper holds its model; "" without a wrapper."""
    if isinstance(part, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "module"
    names = [name for name, _ in part.named_children()]
    return names[0] if len(names) == 1 and names[0] in _INSIDE else ""


def real(name: str, value: object, low: float, high: float, hint: str = "") -> float:
    """Check that a value is a number from low to high; return it.

    raises  ValueError naming the argument, the value and the range
    """
    if not _is_finite(value) or not low <= value <= high:
        bounds = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} is {words(value)}; give a number {bounds}{hint}")
    return float(value)


def fraction(name: str, value: object) -> float:
    """Check that a value is a fraction, 0 to 1; return it or raise ValueError."""
    percent = _is_finite(value) and 1.5 <= value <= 100
    hint = f" ({value / 100:g}, not {value:g})" if percent else " (0.9 for 90%)"
    if not _is_finite(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {words(value)}; give a fraction from 0 to 1{hint}")
    return float(value)


def _is_finite(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Check that a value is an integer in range; return it or raise ValueError."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < low or (high is not None and value > high):
        allowed = f"{low} or more" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} is {words(value)}; give a whole number {allowed}")
    return int(value)


def choice(name: str, value: object, allowed: Iterable) -> object:
    """Check that a value is among those allowed; return it or raise ValueError."""
    allowed = tuple(allowed)
    if not isinstance(value, Hashable) or value not in allowed:
        raise ValueError(f"{name} is {words(value)}; choose one of {', '.join(map(repr, allowed))}")
    return value
