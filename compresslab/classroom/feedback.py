"""Runs the checks of the exercises, and holds what they share.

A check is a function of the learner's answer; the first line of its docstring is the question. It returns one sentence
saying why the right answer matters, or raises `NotYet` with a hint. Whatever the answer does, only words come back: a
function that fails, never returns or returns nonsense is described, never passed on as a traceback, so a notebook runs
to its end with open exercises. Grading reads the points: nbgrader takes the number that a cell ends with.
"""

import copy
import html
import math
import os
import reprlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from IPython.display import display
from torch import nn

from compresslab import checks, measure, storage, train
from compresslab.data import Split
from compresslab.weights import layers

_EXERCISES = {}  # name -> (question, points, check)
_STUBS = (None, Ellipsis, NotImplemented, NotImplementedError)
_COLORS = {"✓": "#009E73", "✗": "#D55E00", "…": "#767676"}  # of the box, by the sign that its message begins with


@dataclass(frozen=True)
class Feedback:
    """The result of a check; true if the exercise is passed."""

    exercise: str  # its name
    passed: bool
    message: str  # the line that was shown
    possible: int = 1  # points for a right answer

    def __bool__(self):
        return self.passed

    @property
    def points(self) -> int:
        """Points earned: all that are possible if passed, else 0."""
        return self.possible if self.passed else 0

    def _repr_mimebundle_(self, include=None, exclude=None):
        """Return the points as a cell's result: words for people, a number for nbgrader."""
        words = f"<small>{self.points} of {self.possible} points</small>"
        return {"text/plain": str(self.points), "text/html": words}


class _Box:
    """A message: a box in a notebook, a line elsewhere."""

    def __init__(self, message):
        self.message = message

    def __repr__(self):
        return self.message

    def _repr_html_(self):
        color = _COLORS[self.message[0]]
        style = f"border: 1px solid; border-left-width: 6px; border-color: {color}; padding: 4px 12px"
        return f'<div class="compresslab-check" style="{style}">{html.escape(self.message)}</div>'


class NotYet(Exception):
    """Raised by a check: the answer is not right, and here is what to think about."""


class _Nothing(Exception):
    """Raised where the exercise is still as it was handed out."""


def check(exercise: str, answer: object) -> Feedback:
    """Check an answer, show a box (outside of notebooks a line), return a `Feedback`.

    exercise  its name, "00.file_bytes"; `exercises()` lists them
    answer    what the exercise asks for: a number, a function, a model, …
    returns   Feedback, true if passed; an answer that is wrong, fails or is not there yet has 0 points
    raises    ValueError for an exercise that does not exist; where COMPRESSLAB_STRICT_CHECKS is set, for the checks of
              the solved notebooks, AssertionError for an answer that does not pass
    """
    checks.choice("exercise", exercise, sorted(_EXERCISES))
    question, points, function = _EXERCISES[exercise]
    passed = False
    try:
        message = f"✓ {exercise}: right. {function(require(answer))}"
        passed = True
    except NotYet as hint:
        text = str(hint)
        message = f"✗ {exercise}: not yet. {text[:1].upper()}{text[1:]}"
    except _Nothing:
        message = f"… {exercise}: not answered yet. {question}"
    except (Exception, SystemExit) as error:
        message = f"✗ {exercise}: not yet. This answer cannot be used: {describe_error(error)}"
    display(_Box(message))
    if os.environ.get("COMPRESSLAB_STRICT_CHECKS") and not passed:
        raise AssertionError(message)
    return Feedback(exercise, passed, message, points)


def exercises() -> dict[str, str]:
    """Return name -> question, in a sentence, of every exercise; sorted by name."""
    return {name: question for name, (question, _, _) in sorted(_EXERCISES.items())}


def exercise(name: str, points: int) -> Callable:
    """Register the decorated check under its name; the docstring's first line is the question.

    points  for a right answer, as in the metadata of the notebook's cell
    """

    def _register(function):
        _EXERCISES[name] = (function.__doc__.splitlines()[0], points, function)
        return function

    return _register


def call(function: Callable, *arguments, none_allowed: bool = False) -> object:
    """Call the learner's function on copies of the arguments; turn errors into hints.

    none_allowed  None may be the right answer, not only a function that is still empty
    raises        NotYet if it is no function, fails, or never ends; _Nothing where it raises or returns a stub
    """
    if not callable(function) or isinstance(function, nn.Module):
        raise NotYet(f"give the function itself, without calling it; this is {describe(function)}")
    try:
        answer = function(*copy.deepcopy(arguments))
    except NotImplementedError as error:
        raise _Nothing from error
    except RecursionError as error:
        raise NotYet("your function calls itself without end; which call is meant to be the last?") from error
    except (Exception, SystemExit) as error:
        inputs = ", ".join(map(describe, arguments))
        raise NotYet(f"for ({inputs}) your function stopped with {describe_error(error)}") from error
    return None if answer is None and none_allowed else require(answer)


def require(answer: object) -> object:
    """Return the answer; None and other stubs count as not answered yet."""
    if _is_stub(answer):
        raise _Nothing
    return answer


def split_answer(answer: object, names: str) -> list:
    """Return the parts of an answer; NotYet unless it has as many as `names`."""
    count = names.count(",") + 1
    if not isinstance(answer, (tuple, list)) or len(answer) != count:
        raise NotYet(f"give {'two' if count == 2 else 'three'} things, {names}; this is {describe(answer)}")
    return list(answer)


def read_tensors(answer: object, names: str, shapes: list, case: str) -> list:
    """Return the tensors of an answer, detached, in single precision; NotYet for other shapes."""
    tensors = split_answer(answer, names)
    if strange := [part for part in tensors if not isinstance(part, torch.Tensor)]:
        raise NotYet(f"your function should return tensors, {names}; one of them is {describe(strange[0])}")
    actual, wanted = (
        ", ".join(" × ".join(map(str, shape)) for shape in group)
        for group in ([tensor.shape for tensor in tensors], shapes)
    )
    if actual != wanted:
        raise NotYet(f"{case}, the shapes are {actual}; they should be {wanted}")
    tensors = [tensor.detach().float() for tensor in tensors]
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise NotYet(f"{case}, some of the numbers are not finite; look for a division by zero, or a singular matrix")
    return tensors


def check_verdict(verdict: object, networks: list, split) -> tuple:
    """Return McNemar's test and both accuracies; NotYet if the verdict is another."""
    test = measure.mcnemar(*networks, split)
    if verdict != test.verdict:
        hint = f"{describe(verdict)}; ask cl.measure.mcnemar"
        raise NotYet(f"on the validation images your verdict does not hold: {hint}")
    return test, [measure.accuracy(network, split) for network in networks]


def pair_layers(name: str, network: object, dense: nn.Module) -> list:
    """Return pairs of a network's layer and the dense one's; NotYet if their shapes differ."""
    mine = layers.weight_layers(network).values() if isinstance(network, nn.Module) else ()
    originals = layers.weight_layers(dense).values()
    if [layer.weight.shape for layer in mine] != [layer.weight.shape for layer in originals]:
        raise NotYet(f"{name} is no LeNet-300-100; start both from the pretrained network")
    return list(zip(mine, originals, strict=True))


def read_number(value: object, what: str = "your answer") -> float:
    """Return a Python, numpy or one-element torch number as a float; NotYet for anything else."""
    value = require(value)
    single = isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex()
    if isinstance(value, (bool, str, bytes)) or not (single or hasattr(value, "__float__")):
        raise NotYet(f"{what} should be a number; this is {describe(value)}")
    try:
        value = float(value)
    except Exception as error:
        raise NotYet(f"{what} should be one number; float() of it gives {describe_error(error)}") from error
    if not math.isfinite(value):
        raise NotYet(f"{what} is {value}; look for a division by zero or a logarithm of it")
    return value


def read_truth(value: object, what: str = "your answer") -> bool:
    """Return a Python, numpy or torch truth as a bool; NotYet for anything else."""
    value = require(value)
    kind = str(getattr(value, "dtype", type(value).__name__))
    if "bool" not in kind or getattr(value, "ndim", 0):
        raise NotYet(f"{what} should be True or False; this is {describe(value)}")
    return bool(value)


def describe(value: object) -> str:
    """Return a short text for a value, whatever its repr does."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, nn.Module):
        return f"a {type(value).__name__}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return reprlib.repr(value) if isinstance(value, (int, str, list, tuple, dict)) else f"a {type(value).__name__}"


def describe_error(error: BaseException) -> str:
    """Return the type of an exception and the first line of its message."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _is_stub(answer):
    """Return whether the answer is a stub: None, `...`, a tuple of such."""
    if isinstance(answer, tuple) and answer:
        return all(map(_is_stub, answer))
    return any(answer is stub for stub in _STUBS) or isinstance(answer, NotImplementedError)


def pass_through_file(network: object, split: Split) -> tuple[bytes, nn.Module]:
    """Return the bytes of a network's file, and the network loaded from them.

    split   of images that the network should take
    raises  NotYet for what is no network, has no file, or takes no such images
    """
    if not isinstance(network, nn.Module):
        hint = "apply the recipe to the network first" if hasattr(network, "apply") else "give the network itself"
        raise NotYet(f"this is {describe(network)}; {hint}")
    try:
        blob = storage.dumps(network)
        loaded = storage.loads(blob)
        train.evaluate(loaded, split.images[:2])
    except Exception as error:
        raise NotYet(f"this network has no file that answers to images: {describe_error(error)}") from error
    return blob, loaded
