"""What `check` says, whatever the answer does."""

import copy
import dataclasses
import html
import math

import numpy as np
import pytest
import torch

import compresslab as cl
from compresslab.classroom import feedback
from compresslab.classroom.feedback import NotYet, call, read_number, read_truth

pytestmark = pytest.mark.slow

STUBS = [None, ..., NotImplemented, NotImplementedError, NotImplementedError("write me"), (None, None, None)]


def handed_out(*arguments):
    raise NotImplementedError()


def endless(*arguments):
    return endless(*arguments)


def leaves(*arguments):
    raise SystemExit(3)


class Stubborn:
    """A value that fails whatever one does with it."""

    def __float__(self):
        raise RuntimeError("no number")

    def __eq__(self, other):
        raise RuntimeError("no comparison")

    def __repr__(self):
        raise RuntimeError("no text")

    __hash__ = object.__hash__


def test_every_exercise_says_what_it_asks_for():
    asked = cl.classroom.exercises()
    assert len([name for name in asked if name.startswith("00.")]) >= 3
    assert len([name for name in asked if name.startswith("02.")]) >= 3
    assert all(text.endswith(".") for text in asked.values())


@pytest.mark.parametrize("name", ["00.bytes", "", None, 7, ["00.file_bytes"]], ids=repr)
def test_an_unknown_exercise_is_refused_with_the_names_there_are(name):
    with pytest.raises(ValueError, match=r"exercise is .*00\.file_bytes.*02\.gradual"):
        cl.classroom.check(name, 1)


@pytest.mark.parametrize("name", sorted(cl.classroom.exercises()))
@pytest.mark.parametrize("stub", STUBS, ids=repr)
def test_a_stub_is_nothing_yet(name, stub, capsys):
    result = cl.classroom.check(name, stub)
    assert not result
    assert "not answered yet" in capsys.readouterr().out


OTHER_ANSWERS = {
    "01.gains_nothing",
    "01.student",
    "02.gradual",
    "03.mean_fails",
    "03.report",
    "04.contest",
    "06.pack_int4",
    "07.break_greedy",
    "07.challenge",
    "07.ranking",
    "08.order",
    "08.ten_kib",
    "09.repair",
    "09.round_trip",
    "10.constraints",
    "10.turned",
}  # not one function


@pytest.mark.parametrize("name", sorted(set(cl.classroom.exercises()) - OTHER_ANSWERS))
@pytest.mark.parametrize(
    "stub",
    [handed_out, lambda *arguments: None, lambda *arguments: ..., lambda *arguments: NotImplemented],
    ids=["raises", "returns nothing", "returns ...", "returns NotImplemented"],
)
def test_a_function_that_is_still_empty_is_nothing_yet(name, stub):
    result = cl.classroom.check(name, stub)
    assert not result
    assert "not answered yet" in result.message


@pytest.mark.parametrize("name", sorted(cl.classroom.exercises()))
@pytest.mark.parametrize(
    "answer",
    [
        *(0, -1, 3.5, float("nan"), float("inf"), True, "", "ten", b"10", 1j, 10**400),
        *([], [1, 2], (), {}, {"a": 1}, object(), Stubborn(), int, print, endless, leaves),
        *(torch.zeros(3), torch.tensor(float("nan")), np.zeros(4), np.float64("nan"), torch.nn.Linear(2, 2)),
        *(lambda *arguments: Stubborn(), lambda *arguments: torch.zeros(2, 2), lambda *arguments: "10"),
        *(lambda *arguments: float("nan"), lambda *arguments: 1 / 0, lambda: 1, lambda *arguments: arguments),
        (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_no_answer_gets_a_traceback_and_nonsense_never_passes(name, answer, capsys):
    result = cl.classroom.check(name, answer)
    printed = capsys.readouterr().out
    assert not result
    assert printed.endswith(result.message + "\n")
    assert result.message.startswith(("✗", "…")) and len(result.message) < 600


def test_a_failing_function_is_described_with_what_it_was_given(capsys):
    cl.classroom.check("00.file_bytes", lambda shapes: sum(rows * columns for rows, columns in shapes))
    printed = capsys.readouterr().out
    assert "stopped with ValueError: not enough values to unpack" in printed
    assert "(300, 784)" in printed


def test_endless_recursion_is_called_by_its_name():
    assert "calls itself without end" in cl.classroom.check("00.pareto", endless).message


def test_a_learners_function_cannot_change_the_cases():
    def clears(points):
        points.clear()
        return points

    assert not cl.classroom.check("00.pareto", clears)
    original = [(1, 2)]
    assert call(lambda points: points.append(3), original, none_allowed=True) is None
    assert original == [(1, 2)]


def test_an_interrupt_is_passed_on():
    def interrupted(shapes):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cl.classroom.check("00.file_bytes", interrupted)


class Quits(torch.nn.Module):
    """A network that leaves Python when it is called."""

    def forward(self, images):
        raise SystemExit(3)


@pytest.mark.parametrize("name", ["01.student", "08.ten_kib"])
def test_a_network_that_leaves_python_is_described(name):
    assert cl.classroom.check(name, Quits()).message.startswith(f"✗ {name}: not yet.")


def score(output):
    """The points that nbgrader 0.9.6 reads from the result of a check's cell."""
    return float(output["text/plain"])


def test_a_check_leaves_a_number_for_grading_and_words_for_people():
    right = cl.classroom.check("00.file_bytes", lambda shapes: sum(4 * math.prod(shape) for shape in shapes))
    assert right.points == score(right._repr_mimebundle_()) == right.possible == 2
    assert "2 of 2 points" in right._repr_mimebundle_()["text/html"]
    for answer in (None, handed_out, lambda shapes: 3, lambda shapes: 1 / 0):
        wrong = cl.classroom.check("00.file_bytes", answer)
        assert wrong.points == score(wrong._repr_mimebundle_()) == 0


@pytest.mark.parametrize(
    "answer, sign", [(lambda shapes: 1 / 0, "✗"), (None, "…"), (lambda shapes: "<b>", "✗")], ids=["✗", "…", "html"]
)
def test_a_notebook_shows_the_line_as_a_box(answer, sign, monkeypatch):
    shown = []
    monkeypatch.setattr(feedback, "display", shown.append)
    message = cl.classroom.check("00.file_bytes", answer).message
    (box,) = shown
    assert repr(box) == message and message.startswith(sign)
    assert html.escape(message) in box._repr_html_() and feedback._COLORS[sign] in box._repr_html_()


def test_where_strict_checks_are_asked_for_an_answer_that_does_not_pass_raises(monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_STRICT_CHECKS", "1")
    for answer in (None, lambda shapes: 3):
        with pytest.raises(AssertionError, match="00.file_bytes: not"):
            cl.classroom.check("00.file_bytes", answer)
    assert cl.classroom.check("00.file_bytes", lambda shapes: sum(4 * math.prod(shape) for shape in shapes))


def test_feedback_is_frozen_and_truthy():
    passed = feedback.Feedback("x", True, "right")
    assert passed and not dataclasses.replace(passed, passed=False)
    assert copy.deepcopy(passed) == passed
    with pytest.raises(dataclasses.FrozenInstanceError):
        passed.passed = False


@pytest.mark.parametrize(
    "value", [3, 3.0, np.float32(3), np.int64(3), torch.tensor(3.0), torch.tensor([[3]])], ids=repr
)
def test_numbers_of_python_numpy_and_torch_are_numbers(value):
    assert read_number(value) == 3.0


@pytest.mark.parametrize("value", [True, False, np.bool_(True), torch.tensor(True), torch.tensor(False)], ids=repr)
def test_truths_of_python_numpy_and_torch_are_truths(value):
    assert read_truth(value) is bool(value)


@pytest.mark.parametrize("value", [1, 0, "True", [True], np.array([True, False]), torch.tensor([True, True])], ids=repr)
def test_what_is_only_like_a_truth_is_refused(value):
    with pytest.raises(NotYet, match="True or False"):
        read_truth(value)
