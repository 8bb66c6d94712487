"""What `check` says, whatever the answer does."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

import compresslab as cl
from compresslab.classroom import feedback
from compresslab.classroom.feedback import NotYet, call, number, truth

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
    assert "nothing here yet" in capsys.readouterr().out


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
}  # not one function


@pytest.mark.parametrize("name", sorted(set(cl.classroom.exercises()) - OTHER_ANSWERS))
@pytest.mark.parametrize("stub", [handed_out, lambda *arguments: None], ids=["raises", "returns nothing"])
def test_a_function_that_is_still_empty_is_nothing_yet(name, stub):
    result = cl.classroom.check(name, stub)
    assert not result
    assert "nothing here yet" in result.message


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
    assert call(lambda points: points.append(3), original) is None
    assert original == [(1, 2)]


def test_an_interrupt_is_passed_on():
    def interrupted(shapes):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cl.classroom.check("00.file_bytes", interrupted)


def test_feedback_is_frozen_truthy_and_silent_in_a_cell(capsys):
    passed = feedback.Feedback("x", True, "right")
    assert passed and not dataclasses.replace(passed, passed=False)
    assert copy.deepcopy(passed) == passed
    with pytest.raises(dataclasses.FrozenInstanceError):
        passed.passed = False
    passed._ipython_display_()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "value", [3, 3.0, np.float32(3), np.int64(3), torch.tensor(3.0), torch.tensor([[3]])], ids=repr
)
def test_numbers_of_python_numpy_and_torch_are_numbers(value):
    assert number(value) == 3.0


@pytest.mark.parametrize("value", [True, False, np.bool_(True), torch.tensor(True), torch.tensor(False)], ids=repr)
def test_truths_of_python_numpy_and_torch_are_truths(value):
    assert truth(value) is bool(value)


@pytest.mark.parametrize("value", [1, 0, "True", [True], np.array([True, False]), torch.tensor([True, True])], ids=repr)
def test_what_is_only_like_a_truth_is_refused(value):
    with pytest.raises(NotYet, match="True or False"):
        truth(value)
