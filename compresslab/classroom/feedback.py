"""How an exercise is checked, and how a check speaks.

A check is a function of the learner's answer. It returns one sentence saying why the right answer matters, or raises
`NotYet` with a hint. Whatever the answer does, nothing but words comes back: a function that fails, calls itself
without end or returns nonsense is described, never passed on as a traceback.
"""

import copy
import math
import reprlib
from dataclasses import dataclass

import torch
from torch import nn

from compresslab import checks

_EXERCISES = {}  # name -> (what is asked, check)
_STUBS = (None, Ellipsis, NotImplemented, NotImplementedError)


@dataclass(frozen=True)
class Feedback:
    """What a check found; true if the exercise is passed.

    exercise  its name;  passed  bool;  message  the line that was printed
    """

    exercise: str
    passed: bool
    message: str

    def __bool__(self):
        return self.passed

    def _ipython_display_(self):
        """Show nothing at the end of a cell: the line is printed already."""


class NotYet(Exception):
    """Raised by a check: the answer is not right, and here is what to think about."""


class _Nothing(Exception):
    """Raised where the exercise is still as it was handed out."""


def check(exercise, answer):
    """Check an answer, print one line about it, and return a `Feedback` (true if passed).

    exercise  its name, "00.file_bytes"; `exercises()` lists them
    answer    what the exercise asks for: a number, a function, a model, …
    raises    ValueError for an exercise that does not exist
    """
    checks.choice("exercise", exercise, sorted(_EXERCISES))
    feedback = _feedback(exercise, answer)
    print(feedback.message)
    return feedback


def exercises():
    """Name -> what is asked, in a sentence, of every exercise; sorted by name."""
    return {name: asked for name, (asked, _) in sorted(_EXERCISES.items())}


def exercise(name, asked):
    """Decorator that registers a check: check(answer) -> why it matters; raises NotYet with a hint."""

    def register(function):
        _EXERCISES[name] = (asked, function)
        return function

    return register


def call(function, *arguments):
    """The learner's function, called on copies of the arguments; what goes wrong inside becomes a hint.

    raises  NotYet if it is no function, fails, or never ends; _Nothing for NotImplementedError
    """
    if not callable(function) or isinstance(function, nn.Module):
        raise NotYet(f"give the function itself, without calling it; this is {shown(function)}")
    try:
        return function(*copy.deepcopy(arguments))
    except NotImplementedError as error:
        raise _Nothing from error
    except RecursionError as error:
        raise NotYet("your function calls itself without end; which call is meant to be the last?") from error
    except (Exception, SystemExit) as error:
        given = ", ".join(map(shown, arguments))
        raise NotYet(f"for ({given}) your function stopped with {describe(error)}") from error


def given(answer):
    """`answer` itself, what a learner's function returned; as not begun yet where that is None or another stub."""
    if _is_stub(answer):
        raise _Nothing
    return answer


def number(value, what="your answer"):
    """A float from a Python, numpy or one-element torch number; raises NotYet for anything else, nan and infinity."""
    if value is None:
        raise _Nothing
    single = isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex()
    if isinstance(value, (bool, str, bytes)) or not (single or hasattr(value, "__float__")):
        raise NotYet(f"{what} should be a number; this is {shown(value)}")
    try:
        value = float(value)
    except Exception as error:
        raise NotYet(f"{what} should be one number; float() of it gives {describe(error)}") from error
    if not math.isfinite(value):
        raise NotYet(f"{what} is {value}; look for a division by zero or a logarithm of it")
    return value


def truth(value, what="your answer"):
    """A bool from True, False, or one such value of numpy or torch; raises NotYet for anything else."""
    if value is None:
        raise _Nothing
    kind = str(getattr(value, "dtype", type(value).__name__))
    if "bool" not in kind or getattr(value, "ndim", 0):
        raise NotYet(f"{what} should be True or False; this is {shown(value)}")
    return bool(value)


def shown(value):
    """A short text for a value, whatever its repr does."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, nn.Module):
        return f"a {type(value).__name__}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return reprlib.repr(value) if isinstance(value, (int, str, list, tuple, dict)) else f"a {type(value).__name__}"


def describe(error):
    """An exception in words: its type and the first line of its message."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _feedback(name, answer):
    asked, function = _EXERCISES[name]
    try:
        if _is_stub(answer):
            raise _Nothing
        return Feedback(name, True, f"✓ {name}: right. {function(answer)}")
    except NotYet as hint:
        return Feedback(name, False, f"✗ {name}: not yet. {_sentence(str(hint))}")
    except _Nothing:
        return Feedback(name, False, f"… {name}: nothing here yet. {asked}")
    except Exception as error:
        return Feedback(name, False, f"✗ {name}: not yet. This answer cannot be used: {describe(error)}")


def _is_stub(answer):
    """Whether the answer is what was handed out: None, `...` and the like, or a tuple of nothing else."""
    if isinstance(answer, tuple) and answer:
        return all(map(_is_stub, answer))
    return any(answer is stub for stub in _STUBS) or isinstance(answer, NotImplementedError)


def _sentence(text):
    return text[:1].upper() + text[1:]
