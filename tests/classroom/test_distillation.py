"""Exercises of notebook 01: right answers pass, plausible wrong ones do not, and hints fit the mistake."""

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional

import compresslab as cl
from compresslab.classroom import distillation as exercises


def kl(student, teacher, temperature, over="batch"):
    answer, soft = (student / temperature).log_softmax(1), (teacher / temperature).softmax(1)
    parts = functional.kl_div(answer, soft, reduction="none")
    return {"batch": parts.sum(1).mean(), "all": parts.mean(), "sum": parts.sum()}[over]


def right(student, teacher, labels, temperature, alpha):
    soft = temperature**2 * kl(student, teacher, temperature)
    return alpha * soft + (1 - alpha) * functional.cross_entropy(student, labels)


def from_the_package(student, teacher, labels, temperature, alpha):
    soft = cl.distillation.response_loss(student, teacher, temperature)
    return alpha * soft + (1 - alpha) * functional.cross_entropy(student, labels)


def soft_cross_entropy(student, teacher, labels, temperature, alpha):
    """The same gradient, another value: cross entropy with the soft targets."""
    soft = functional.cross_entropy(student / temperature, (teacher / temperature).softmax(1))
    return alpha * temperature**2 * soft + (1 - alpha) * functional.cross_entropy(student, labels)


def mixed(divergence):
    return lambda s, t, y, temperature, alpha: (
        alpha * divergence(s, t, temperature) + (1 - alpha) * functional.cross_entropy(s, y)
    )


WRONG_LOSSES = {
    "no T**2": (mixed(kl), "lacks T**2"),
    "T": (mixed(lambda s, t, temperature: temperature * kl(s, t, temperature)), "T appears once"),
    "mean": (mixed(lambda s, t, temperature: temperature**2 * kl(s, t, temperature, "all")), "over the classes"),
    "sum": (mixed(lambda s, t, temperature: temperature**2 * kl(s, t, temperature, "sum")), "a sum over the batch"),
    "reversed": (mixed(lambda s, t, temperature: temperature**2 * kl(t, s, temperature)), "wrong way round"),
    "exchanged": (lambda s, t, y, temperature, alpha: right(s, t, y, temperature, 1 - alpha), "exchanged"),
    "no labels": (lambda s, t, y, temperature, alpha: alpha * right(s, t, y, temperature, 1), "labels are missing"),
    "labels in full": (
        lambda s, t, y, temperature, alpha: alpha * right(s, t, y, temperature, 1) + functional.cross_entropy(s, y),
        "in full",
    ),
    "labels softened": (
        lambda s, t, y, temperature, alpha: (
            alpha * temperature**2 * kl(s, t, temperature) + (1 - alpha) * functional.cross_entropy(s / temperature, y)
        ),
        "softened too",
    ),
    "soft cross entropy": (soft_cross_entropy, "by hand it is"),
    "a number": (lambda *arguments: right(*arguments).item(), "differentiated"),
    "detached": (lambda *arguments: right(*arguments).detach(), "differentiated"),
    "half detached": (
        lambda s, t, y, temperature, alpha: right(s, t, y, temperature, alpha) * 0.5
        + right(s, t, y, temperature, alpha).detach() * 0.5,
        "gradient is not",
    ),
    "one for each image": (lambda s, *others: s.sum(1), "number"),
    "fails": (lambda s, t: 0, "your function stopped with TypeError"),
    "no function": (0.5, "the function itself"),
}  # fmt: skip


@pytest.mark.parametrize("loss", [right, from_the_package], ids=lambda one: one.__name__)
def test_the_right_loss_passes(loss):
    result = cl.classroom.check("01.loss", loss)
    assert result, result.message
    assert "right." in result.message and len(result.message) < 320


@pytest.mark.parametrize("loss, hint", WRONG_LOSSES.values(), ids=WRONG_LOSSES.keys())
def test_a_wrong_loss_fails_with_a_hint_that_fits(loss, hint):
    result = cl.classroom.check("01.loss", loss)
    assert not result
    assert hint in result.message


def test_nothing_written_is_nothing_yet():
    assert "not answered yet" in cl.classroom.check("01.loss", lambda *arguments: None).message
    for name in ("01.loss", "01.gains_nothing", "01.student"):
        assert "not answered yet" in cl.classroom.check(name, ...).message
    assert "not answered yet" in cl.classroom.check("01.gains_nothing", (None, None)).message


@dataclass(frozen=True)
class Found:
    setting: dict
    accuracy: float


@pytest.fixture
def measured(monkeypatch):
    """Sweeps that answer at once: the teacher brings 3 points with few images and T > 1, and nothing otherwise."""

    def run(technique, model, data, grid, *, steps, seed, bar):
        for setting in grid:
            cl.distillation.student(nn.Linear(1, 2), torch.ones(2, 1), **{**setting, "width": 1.0})  # checks the rest
            helps = setting["share"] < 0.05 and setting["temperature"] > 1
            alone = 0.85 if setting["width"] > 0.1 else 0.4
            for _ in seed:
                yield Found(setting, alone + (0.03 if helps and setting["alpha"] else 0.0))

    monkeypatch.setattr(exercises.sweep, "run", run)


@pytest.mark.parametrize(
    "answer",
    [({"share": 1.0}, "share"), [{"temperature": 1}, "temperature"], ({"share": 0.5, "width": 0.6}, "share")],
    ids=str,
)
def test_a_setting_without_a_gain_and_the_control_to_blame_pass(measured, answer):
    result = cl.classroom.check("01.gains_nothing", answer)
    assert result, result.message
    assert "right." in result.message and len(result.message) < 320


WRONG_SETTINGS = [
    (({"width": 0.6}, "width"), "the teacher brings 3.0 points"),
    (({"share": 1.0, "width": 0.6}, "width"), "which other control"),
    (({"share": 1.0, "temperature": 1.0}, "share"), "which other control"),
    (({"share": 1.0}, "width"), "no control that your setting changes"),
    (({"share": 0.01}, "share"), "no control that your setting changes"),
    (({"share": 1.0}, ["share"]), "no control that your setting changes"),
    (({"width": 0.02}, "width"), "learns too little"),
    (({"alpha": 0.0}, "alpha"), "no teacher"),
    (({"alpha": "low"}, "alpha"), "lpha should be a number"),
    (({"alpha": 2}, "alpha"), "alpha is 2"),
    (({"share": 0.0}, "share"), "share is 0.0"),
    (({"sparsity": 0.9}, "sparsity"), "the controls are temperature"),
    ({"share": 1.0}, "the name of a control"),
    ("share", "the name of a control"),
]


@pytest.mark.parametrize("answer, hint", WRONG_SETTINGS, ids=str)
def test_a_setting_with_a_gain_or_the_wrong_control_fails(measured, answer, hint):
    result = cl.classroom.check("01.gains_nothing", answer)
    assert not result
    assert hint in result.message


def test_the_gain_is_the_difference_of_the_same_students():
    """Measured for real, for a few steps: the same seeds with and without alpha."""
    teacher, data = cl.models.pretrained("article_mlp", "mnist"), cl.data.load("mnist")
    setting = {**exercises._DEFAULTS, "width": 0.1}
    old = exercises._STEPS, exercises._SEEDS
    exercises._STEPS, exercises._SEEDS = 3, (4,)
    try:
        gain, alone = exercises._gain(setting)
    finally:
        exercises._STEPS, exercises._SEEDS = old
    grid = [setting, setting | {"alpha": 0.0}]
    taught, without = (
        next(cl.sweep.run("distillation", teacher, data, [one], steps=3, seed=4, journal=False, bar=False)).accuracy
        for one in grid
    )
    assert (gain, alone) == (pytest.approx(100 * (taught - without)), without)


def test_the_defaults_are_those_of_the_lab():
    assert exercises._DEFAULTS == {one.name: one.default for one in cl.distillation.TECHNIQUE.controls}


@functools.cache
def trained():
    """A student of half the width, trained quickly."""
    data, teacher = cl.data.load("mnist"), cl.models.pretrained("lenet_300_100", "mnist")
    student = cl.distillation.student_of(teacher, data.train.images[:2], 0.5)
    return cl.distillation.distill(student, teacher, data.train, steps=60, lr=1e-2, precision="fp32", bar=False)


@dataclass(frozen=True)
class Timed:
    verdict: str
    ratio: float = 2.0


def test_a_student_passes_if_it_is_small_fast_and_right(monkeypatch):
    monkeypatch.setattr(exercises, "_LOST", 0.2)
    monkeypatch.setattr(exercises.measure, "compare_latency", lambda *networks, batch_size: Timed("faster"))
    result = cl.classroom.check("01.student", trained())
    assert result, result.message
    assert f"{cl.measure.accuracy(trained(), cl.data.load('mnist').validation):.2%}" in result.message


def test_a_student_that_is_large_slow_or_wrong_fails(monkeypatch):
    teacher = cl.models.pretrained("lenet_300_100", "mnist")
    for answer, hint in (
        (teacher, "its file is 100%"),
        (trained(), "train longer"),
        (cl.models.build("lenet_300_100", seed=0), "its file is"),
        (cl.storage.dumps(trained()), "give the trained network itself"),
        (0.98, "give the trained network itself"),
        (nn.Linear(3, 2), "cannot be used"),
    ):
        result = cl.classroom.check("01.student", answer)
        assert not result and hint in result.message.replace("Its", "its").replace("Give", "give"), result.message
    monkeypatch.setattr(exercises.measure, "compare_latency", lambda *networks, batch_size: Timed("can't tell"))
    masked = cl.zero_pruning.prune(teacher, 0.7)
    monkeypatch.setattr(exercises, "_LOST", 0.2)
    assert "what makes matrices smaller" in cl.classroom.check("01.student", masked).message
