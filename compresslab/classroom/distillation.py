"""Exercises of notebook 01: the loss, a setting in which a teacher gains nothing, a small fast student."""

import torch
from torch import nn
from torch.nn import functional

from compresslab import data as datasets
from compresslab import measure, models, storage
from compresslab.classroom.feedback import NotYet, call, describe, exercise, read_number
from compresslab.experiments import sweep

_DEFAULTS = {"temperature": 4.0, "alpha": 0.9, "width": 0.2, "share": 0.01, "knowledge": "response"}
_STEPS, _SEEDS = 200, (0, 1)
_NOTHING, _AGAIN = 0.5, 1.0  # points: at most this is nothing, at least that is a gain
_LEARNS = 0.8  # accuracy that a student without a teacher must reach, or there is little to compare
_LOST, _SMALL = 0.01, 0.5  # accuracy that the last exercise's student may lose; its file, in the teacher's


@exercise("01.loss", points=3)
def check_loss(distillation_loss: object) -> str:
    """Write the loss: distillation_loss(student_logits, teacher_logits, labels, temperature, alpha)."""
    if not callable(distillation_loss):
        raise NotYet(f"give the function itself, without calling it; this is {describe(distillation_loss)}")
    for case in _cases():
        value, gradient = call(_graded(distillation_loss), *case)
        value = read_number(value.detach() if isinstance(value, torch.Tensor) else value, "the loss")
        right, slope = _by_hand(*case)
        if gradient is None:
            raise NotYet("the loss cannot be differentiated; use torch all through, without .item() and .detach()")
        if abs(value - right) <= 1e-6 and torch.allclose(gradient, slope, atol=1e-8):
            continue
        mistakes = _make_mistakes(*case).items()
        hint = f"the loss is {value:.4f}; by hand it is {right:.4f}"
        hint = next((slip for slip, wrong in mistakes if abs(value - float(wrong)) < 1e-6), hint)
        if abs(value - right) < 1e-6:
            hint = "the value is right and its gradient is not; is a part of it detached?"
        raise NotYet(f"for temperature {case[3]:g} and alpha {case[4]:g}, {hint}")
    return (
        "Its gradient is alpha * T * (student's soft answer - teacher's) + (1 - alpha) * (student's answer - label), "
        "over the batch: both parts are differences of probabilities, which is why they can be weighed against another."
    )


def _cases():
    """Yield logits of student and teacher, labels, temperature and alpha: each part alone, then both."""
    generator = torch.Generator().manual_seed(0)
    for images, classes, temperature, alpha in ((8, 5, 1.0, 0.0), (8, 5, 1.0, 1.0), (6, 3, 4.0, 1.0), (9, 7, 2.5, 0.3)):
        student, teacher = 3 * torch.randn(2, images, classes, generator=generator, dtype=torch.float64)
        yield student, teacher, torch.arange(images) % classes, temperature, alpha


def _graded(function):
    """Return a function that returns value and gradient by the student's logits."""

    def graded(student: torch.Tensor, *rest) -> tuple:
        """Return value and gradient."""
        value = function(student.requires_grad_(), *rest)
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
            return value, None
        return value.detach(), torch.autograd.grad(value.sum(), student, allow_unused=True)[0]

    return graded


def _by_hand(student, teacher, labels, temperature, alpha):
    """Return value and gradient of the loss from probabilities alone, as the paper writes them."""
    soft, answer = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    divergence = (soft * (soft.log() - answer.log())).sum(1).mean()
    hard = functional.one_hot(labels, student.shape[1]).to(student)
    surprise = -(hard * student.log_softmax(1)).sum(1).mean()
    slope = alpha * temperature * (answer - soft) + (1 - alpha) * (student.softmax(1) - hard)
    value = alpha * temperature**2 * divergence + (1 - alpha) * surprise
    return value.item(), slope / len(student)


def _make_mistakes(student, teacher, labels, temperature, alpha):
    """Return hint -> value of the loss with a usual mistake in it."""
    hard, softened = functional.cross_entropy(student, labels), functional.cross_entropy(student / temperature, labels)
    plain = _divergence(student / temperature, teacher / temperature)
    soft = temperature**2 * plain
    swapped = temperature**2 * _divergence(teacher / temperature, student / temperature)
    half = temperature**2 * _divergence(student, teacher / temperature)
    rest, (images, classes) = (1 - alpha) * hard, student.shape
    return {
        "the divergence lacks T**2; without it the teacher's part fades as T grows": alpha * plain + rest,
        "T appears once before the divergence; the gradient falls as 1 / T**2": alpha * temperature * plain + rest,
        "the divergence is averaged over the classes as well; which reduction averages over the batch only?": (
            alpha * soft / classes + rest
        ),
        "the divergence is a sum over the batch; which reduction takes the mean?": alpha * soft * images + rest,
        "the divergence is the wrong way round; the teacher's probabilities do the weighing": alpha * swapped + rest,
        "only one of the two is softened; both logits are divided by T": alpha * half + rest,
        "alpha and 1 - alpha are exchanged; alpha weighs the teacher": (1 - alpha) * soft + alpha * hard,
        "the labels are missing: they have the rest, 1 - alpha": alpha * soft,
        "the labels' part counts in full; it is weighed by 1 - alpha": alpha * soft + hard,
        "the labels' part is softened too; the student answers for the labels at temperature 1": (
            alpha * soft + (1 - alpha) * softened
        ),
    }


def _divergence(student, teacher):
    """Return the mean divergence of the student's answers from the teacher's, from logits."""
    return functional.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")


@exercise("01.gains_nothing", points=2)
def check_gains_nothing(answer: object) -> str:
    """Give (setting, why): a setting in which a teacher gains nothing, and the control to blame.

    Nothing is at most half a point over the student without a teacher, after 200 steps, in the mean of two seeds. The
    control is to blame if with its default instead the gain is a point or more.
    """
    setting, why = _pair(answer)
    full = {**_DEFAULTS, **setting}
    if not read_number(full["alpha"], "alpha") > 0:
        raise NotYet("with alpha 0 there is no teacher that could gain anything; leave alpha above 0")
    gain, alone = _gain(full)
    if alone < _LEARNS:
        raise NotYet(f"there, the student alone gets {alone:.0%} right: it learns too little to say anything about it")
    if gain > _NOTHING:
        raise NotYet(f"there, the teacher brings {gain:.1f} points; find a setting in which it brings none")
    back, _ = _gain({**full, why: _DEFAULTS[why]})
    again = f"with {why} at {_DEFAULTS[why]!r}"
    if back < _AGAIN:
        hint = "which other control takes the gain away?"
        raise NotYet(f"there, the teacher brings {gain:+.1f} points, and {back:+.1f} {again} again; {hint}")
    return (
        f"The teacher brings {gain:+.1f} points there and {back:+.1f} {again}, mean of {len(_SEEDS)} seeds. A teacher "
        "has something to add where the labels leave much unsaid, and the student has time and room to listen."
    )


def _pair(answer):
    """Return the setting as a dict and the control's name, checked."""
    if not isinstance(answer, (tuple, list)) or len(answer) != 2 or not isinstance(answer[0], dict):
        raise NotYet(f"give a dict of settings and the name of a control; this is {describe(answer)}")
    setting, why = answer
    if unknown := [name for name in setting if name not in _DEFAULTS]:
        raise NotYet(f"the setting has {describe(unknown[0])}; the controls are {', '.join(_DEFAULTS)}")
    if why not in [name for name, value in setting.items() if value != _DEFAULTS[name]]:
        raise NotYet(f"{describe(why)} is no control that your setting changes; it changes {describe(list(setting))}")
    return setting, why


def _gain(setting):
    """Return the points that the teacher adds and the accuracy without it."""
    teacher, data = models.pretrained("article_mlp", "mnist"), datasets.load("mnist")
    grid = [setting, {**setting, "alpha": 0.0}]
    results = list(sweep.run("distillation", teacher, data, grid, steps=_STEPS, seed=list(_SEEDS), bar=False))
    taught, alone = (
        sum(result.accuracy for result in results if (result.setting["alpha"] > 0) == with_teacher) / len(_SEEDS)
        for with_teacher in (True, False)
    )
    return 100 * (taught - alone), alone


@exercise("01.student", points=3)
def check_student(student: object) -> str:
    """Give a trained student of LeNet-300-100: half its file, faster, at most a point worse."""
    if not isinstance(student, nn.Module):
        raise NotYet(f"give the trained network itself; this is {describe(student)}")
    teacher, split = models.pretrained("lenet_300_100", "mnist"), datasets.load("mnist").validation
    wanted, accuracy = measure.accuracy(teacher, split) - _LOST, measure.accuracy(student, split)
    size = storage.file_bytes(student) / storage.file_bytes(teacher)
    if size > _SMALL:
        raise NotYet(f"its file is {size:.0%} of the teacher's; make it narrower, {_SMALL:.0%} at most is asked for")
    if accuracy < wanted:
        hint = "train longer, on more images, or faster (lr)"
        raise NotYet(f"{accuracy:.2%} right, and {wanted:.2%} is asked for; {hint}")
    speed = measure.compare_latency(teacher, student, batch_size=256)
    if speed.verdict != "faster":
        speed_words = f"its speed on 256 images {describe(speed.verdict)}"
        raise NotYet(f"its file is small, {speed_words}: what makes matrices smaller?")
    return (
        f"{accuracy:.2%} right, {size:.0%} of the file, {speed.ratio:.1f} times as fast on batches of 256. Is it the "
        "teacher's merit? Only the same student without it, on several seeds, can tell."
    )
