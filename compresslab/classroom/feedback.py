"""How an exercise is checked, and how a check speaks.

A check is a function of the learner's answer. It returns one sentence saying why the right answer matters, or raises
`NotYet` with a hint. Whatever the answer does, nothing but words comes back: a function that fails, calls itself
without end or returns nonsense is described, never passed on as a traceback, so a notebook runs to its end
however many exercises are still open. Grading reads the points: nbgrader takes the number that a cell ends with.
"""

import copy
import html
import math
import os
import reprlib
from dataclasses import dataclass

import torch
from IPython.display import display
from torch import nn

from compresslab import checks

_EXERCISES = {}  # name -> (what is asked, points, check)
_STUBS = (None, Ellipsis, NotImplemented, NotImplementedError)
_COLORS = {"✓": "#009E73", "✗": "#D55E00", "…": "#767676"}  # of the box, by the sign that its message begins with


@dataclass(frozen=True)
class Feedback:
    """What a check found; true if the exercise is passed.

    exercise  its name;  passed  bool;  message  the line that was shown;  possible  points for a right answer
    """

    exercise: str
    passed: bool
    message: str
    possible: int = 1

    def __bool__(self):
        return self.passed

    @property
    def points(self):
        """Points earned: all that are possible if passed, else 0."""
        return self.possible if self.passed else 0

    def _repr_mimebundle_(self, include=None, exclude=None):
        """The points, as a cell's result: words for people, a number for nbgrader."""
        return {
            "text/plain": str(self.points),
            "text/html": f"<small>{self.points} of {self.possible} points</small>",
        }


class _Box:
    """A message: a box in a notebook, a line elsewhere."""

    def __init__(self, message):
        self.message = message

    def __repr__(self):
        return self.message

    def _repr_html_(self):
        style = (
            f"border: 1px solid; border-left-width: 6px; border-color: {_COLORS[self.message[0]]}; padding: 4px 12px"
        )
        return f'<div class="compresslab-check" style="{style}">{html.escape(self.message)}</div>'


class NotYet(Exception):
    """Raised by a check: the answer is not right, and here is what to think about."""


class _Nothing(Exception):
    """Raised where the exercise is still as it was handed out."""


def check(exercise, answer):
    """Check an answer, show a box about it (outside of notebooks, print a line), and return a `Feedback`.

    exercise  its name, "00.file_bytes"; `exercises()` lists them
    answer    what the exercise asks for: a number, a function, a model, …
    returns   Feedback, true if passed; an answer that is wrong, fails or is not there yet has 0 points
    raises    ValueError for an exercise that does not exist; AssertionError for an answer that does not pass, but only
              where COMPRESSLAB_STRICT_CHECKS is set: the checks of the solved notebooks
    """
    checks.choice("exercise", exercise, sorted(_EXERCISES))
    feedback = _feedback(exercise, answer)
    display(_Box(feedback.message))
    if os.environ.get("COMPRESSLAB_STRICT_CHECKS") and not feedback:
        raise AssertionError(feedback.message)
    return feedback


def exercises():
    """Name -> what is asked, in a sentence, of every exercise; sorted by name."""
    return {name: asked for name, (asked, _, _) in sorted(_EXERCISES.items())}


def exercise(name, asked, points):
    """Decorator that registers a check: check(answer) -> why it matters; raises NotYet with a hint.

    points  for a right answer, as in the metadata of the notebook's cell
    """

    def register(function):
        _EXERCISES[name] = (asked, points, function)
        return function

    return register


def call(function, *arguments):
    """The learner's function, called on copies of the arguments; what goes wrong inside becomes a hint.

    raises  NotYet if it is no function, fails, or never ends; _Nothing for NotImplementedError, and where it returns
            `...` or another stub; None is passed on, since it may be the right answer
    """
    if not callable(function) or isinstance(function, nn.Module):
        raise NotYet(f"give the function itself, without calling it; this is {shown(function)}")
    try:
        answer = function(*copy.deepcopy(arguments))
    except NotImplementedError as error:
        raise _Nothing from error
    except RecursionError as error:
        raise NotYet("your function calls itself without end; which call is meant to be the last?") from error
    except (Exception, SystemExit) as error:
        inputs = ", ".join(map(shown, arguments))
        raise NotYet(f"for ({inputs}) your function stopped with {describe(error)}") from error
    return None if answer is None else given(answer)


def given(answer):
    """`answer` itself, what a learner's function returned; as not begun yet where that is None or another stub."""
    if _is_stub(answer):
        raise _Nothing
    return answer


def number(value, what="your answer"):
    """A float from a Python, numpy or one-element torch number; raises NotYet for anything else, nan and infinity."""
    value = given(value)
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
    value = given(value)
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
    asked, points, function = _EXERCISES[name]
    try:
        if _is_stub(answer):
            raise _Nothing
        return Feedback(name, True, f"✓ {name}: right. {function(answer)}", points)
    except NotYet as hint:
        message = f"✗ {name}: not yet. {_sentence(str(hint))}"
    except _Nothing:
        message = f"… {name}: not answered yet. {asked}"
    except (Exception, SystemExit) as error:
        message = f"✗ {name}: not yet. This answer cannot be used: {describe(error)}"
    return Feedback(name, False, message, points)


def _is_stub(answer):
    """Whether the answer is what was handed out: None, `...` and the like, or a tuple of nothing else."""
    if isinstance(answer, tuple) and answer:
        return all(map(_is_stub, answer))
    return any(answer is stub for stub in _STUBS) or isinstance(answer, NotImplementedError)


def _sentence(text):
    return text[:1].upper() + text[1:]
