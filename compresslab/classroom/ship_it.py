"""Exercises of notebook 09: overconfidence, a round trip through a fresh process, the most harmed class, a memo."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import compresslab
from compresslab import data as datasets
from compresslab import measure, models, train
from compresslab.classroom import feedback
from compresslab.classroom.feedback import NotYet, call, describe, exercise, read_number, require
from compresslab.experiments.sweep import seed_global
from compresslab.techniques import zero_pruning

_LARGEST = 0.5  # of 4 bytes for each parameter, the file of a network whose weights are 90% zeros
_SECONDS = 120  # that the fresh process may take
_ZEROS, _HARM = 0.97, 0.02  # of the pruned network, and its largest damage at least
_CLOSE = 0.001  # of all weights
_LOSS = 0.005  # accuracy that a repair may cost
_LIMITS = ("KiB", "ms", "points")
_RUN = """
import sys, torch
path, images, outputs = sys.argv[1:]
{code}
with torch.no_grad():
    torch.save(model(torch.load(images)), outputs)
"""


@exercise("09.overconfidence", points=1)
def check_overconfidence(overconfidence: object) -> str:
    """Write a function that says by how much a model's confidence is above its accuracy."""
    drawn = torch.Generator().manual_seed(0)
    for count, level in ((4, 0.5), (50, 0.9), (200, 0.2)):
        confidences = 0.5 + 0.5 * torch.rand(count, generator=drawn)
        right = torch.rand(count, generator=drawn) < level
        answer = read_number(call(overconfidence, confidences, right), "the overconfidence")
        gap = confidences.double().mean().item() - right.double().mean().item()
        if abs(answer - gap) > 1e-4:
            hint = "take the mean of both, and their difference"
            hint = (
                "is it the other way round? Confidence above accuracy is positive" if abs(answer + gap) < 1e-4 else hint
            )
            hint = "keep the sign: a model can also be too modest" if answer == abs(answer) > gap else hint
            raise NotYet(f"for {count} answers, {right.sum()} of them right, you give {answer:.4f}; {hint}")
    return "calibration_error is this, bin by bin and without the sign: there, too sure and too modest do not cancel."


@exercise("09.round_trip", points=2)
def check_round_trip(answer: object) -> str:
    """Give a function that saves a network, and the code that loads it in a fresh process: (save, code)."""
    save, code = feedback.split_answer(answer, "(save, code)")
    if not isinstance(require(code), str):
        raise NotYet(f"the code that loads is a text, run by a fresh Python; this is {describe(code)}")
    model, images = _make_network(), datasets.load("fashion_mnist").validation.images[:64]
    dense_bytes = measure.sizes(model).dense_bytes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network"
        call(save, model, str(path), none_allowed=True)
        if not path.is_file():
            raise NotYet("your function left no file at the path that it was given")
        size = path.stat().st_size
        outputs = _run_fresh(code, path, images)
    expected = train.evaluate(model, images)
    if not isinstance(outputs, torch.Tensor) or outputs.shape != expected.shape:
        raise NotYet(f"in the fresh process, model(images) is {describe(outputs)}; it should be logits, (64, 10)")
    if not torch.allclose(outputs, expected, atol=1e-4):
        raise NotYet("the loaded network gives other outputs; are its weights, and its mode, those of the saved one?")
    if size > _LARGEST * dense_bytes:
        hint = "90% of its weights are zeros; which format keeps that saving?"
        raise NotYet(f"it comes back, from {size / 1024:.0f} KiB; dense it has {dense_bytes / 1024:.0f} KiB: {hint}")
    return (
        f"A fresh Python that has never seen the class gives the same 64 answers, from {size / 1024:.0f} KiB instead "
        f"of {dense_bytes / 1024:.0f}. The file holds the architecture as well."
    )


def _make_network():
    """Make a pruned network of a class that no other process can import."""

    class Secret(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(784, 60), nn.Linear(60, 10)

        def forward(self, images):
            return self.last(torch.relu(self.first(images.flatten(1))))

    with seed_global(0):
        return zero_pruning.prune(Secret(), sparsity=0.9).eval()


def _run_fresh(code, path, images):
    """Load the network in a fresh process by the learner's code; return its outputs for the images."""
    inputs, outputs = path.with_name("images.pt"), path.with_name("outputs.pt")
    torch.save(images, inputs)
    package = Path(compresslab.__file__).parents[1]
    paths = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", _RUN.format(code=code), *map(str, (path, inputs, outputs))]
    try:
        done = subprocess.run(command, cwd=path.parent, env=os.environ | {"PYTHONPATH": paths}, timeout=_SECONDS,
                              capture_output=True, text=True, check=False)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise NotYet(f"the fresh process did not end within {_SECONDS} seconds") from error
    if done.returncode or not outputs.is_file():
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise NotYet(f"the fresh process stopped: {last[:200]}. It has neither your variables nor your classes")
    return torch.load(outputs)


@exercise("09.repair", points=3)
def check_repair(answer: object) -> str:
    """Give a network, 97% zeros, the class that lost most, and the network repaired: (pruned, harmed, repaired)."""
    pruned, harmed, repaired = feedback.split_answer(answer, "(pruned, harmed, repaired)")
    data, dense = datasets.load("fashion_mnist"), models.pretrained("lenet_300_100", "fashion_mnist")
    harmed = read_number(harmed, "the harmed class")
    zeros = {}
    for name, network in {"the pruned network": pruned, "the repaired network": repaired}.items():
        pairs = feedback.pair_layers(name, network, dense)
        zeros[name] = 1 - float(
            torch.cat([layer.weight.detach().flatten() for layer, _ in pairs]).ne(0).double().mean()
        )
        if zeros[name] < _ZEROS - _CLOSE:
            hint = "does your repair keep the zeros?" if name == "the repaired network" else "prune it to 97%"
            raise NotYet(f"{name} has {zeros[name]:.1%} zeros; {_ZEROS:.0%} are asked for: {hint}")
    before, after = (measure.per_class(network, data.validation, dense) for network in (pruned, repaired))
    worst = int(before["damage"].idxmax())
    if before["damage"][worst] < _HARM:
        raise NotYet("the pruned network harms no class by 2 points; there is nothing to repair")
    if harmed != worst:
        hint = "the largest damage on the validation images"
        raise NotYet(f"class {harmed:g} is not the one with {hint}; ask cl.measure.per_class")
    name, text = data.classes[worst], _describe_repair(before, after, worst)
    if after["damage"][worst] > before["damage"][worst] / 2:
        raise NotYet(f"{name}: {text}; half of it has to go. Which images should training see more often?")
    if after["damage"].max() > before["damage"].max():
        victim = int(after["damage"].idxmax())
        moved = f"{data.classes[victim]} now loses {100 * after['damage'][victim]:.1f} points"
        raise NotYet(f"{name}: {text}, but {moved}: the harm has moved. Look at all classes, and do less of it")
    accuracies = [measure.accuracy(network, data.validation) for network in (pruned, repaired)]
    if accuracies[1] < accuracies[0] - _LOSS:
        raise NotYet(f"{name}: {text}, but the accuracy fell from {accuracies[0]:.2%} to {accuracies[1]:.2%}")
    tests = [measure.per_class(network, data.test, dense)["damage"][worst] for network in (pruned, repaired)]
    return (
        f"{name}: {text}, accuracy {accuracies[0]:.2%} → {accuracies[1]:.2%}. On the test images, which chose nothing: "
        f"{100 * tests[0]:.1f} → {100 * tests[1]:.1f} points."
    )


def _describe_repair(before, after, place):
    return f"damage {100 * before['damage'][place]:.1f} → {100 * after['damage'][place]:.1f} points"


@exercise("09.memo", points=2)
def check_memo(memo: object) -> str:
    """Write a function that writes a decision memo: the choice, each point's numbers, and the limits it breaks."""
    for points, limits in _make_fronts():
        text = call(memo, points, *limits)
        if not isinstance(text, str) or not text.strip():
            raise NotYet(f"a memo is a text; this is {describe(text)}")
        lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
        case = "limits of {:g} KiB, {:g} ms, {:g} points".format(*limits)
        broken = {name: _list_broken(row, limits) for name, row in points.iterrows()}
        _check_choice(lines[0], points, broken, case)
        for name, row in points.iterrows():
            _check_line(name, row, broken[name], lines[1:], case)
        numbers = "{:.2f} KiB, {:.2f} ms, {:.2f} points".format
        measured = " ".join(
            [case, *points.index, *(numbers(row.kib, row.ms, row.points) for row in points.itertuples())]
        )
        invented = set(_read_numbers(text)) - set(_read_numbers(measured))
        if invented:
            raise NotYet(f"for {case}, your memo says {invented.pop()}, which nobody measured")
    return (
        "Every number in it is measured, and it says when nothing fits. Whoever doubts the choice can move the limits."
    )


def _list_broken(row, limits):
    values = (row.kib, row.ms, row.points)
    return [unit for unit, value, limit in zip(_LIMITS, values, limits, strict=True) if value > limit]


def _check_choice(line, points, broken, case):
    """Refuse a first line that does not name the right row."""
    meets = points[[not broken[name] for name in points.index]].sort_values(["points", "kib"])
    wanted = f"Choice: {meets.index[0]}" if len(meets) else "Choice: none"
    if line == wanted:
        return
    hint = "of the rows within all three limits, which loses fewest points? Of equal ones the smallest file"
    hint = hint if len(meets) else "which of its rows is within all three limits?"
    raise NotYet(f"for {case}, your first line is {describe(line)}; {hint}")


def _check_line(name, row, broken, lines, case):
    """Refuse a row without its three numbers and the limits that it breaks."""
    own_lines = [line for line in lines if line.lstrip("-* ").startswith(f"{name}:")]
    if len(own_lines) != 1:
        raise NotYet(f"for {case}, {len(own_lines)} lines begin with '{name}:'; there should be one for each row")
    numbers, _, breaks = own_lines[0].partition("breaks")
    wanted = f"{row.kib:.2f} KiB, {row.ms:.2f} ms, {row.points:.2f} points"
    if wanted not in numbers:
        raise NotYet(f"the line of {name!r} is {describe(own_lines[0])}; its numbers, with two decimals: {wanted}?")
    if [unit for unit in _LIMITS if unit in breaks] != broken:
        expected = ", ".join(broken) or "nothing"
        raise NotYet(f"for {case}, {name!r} has {wanted}; your line says it breaks{breaks or ' …'}, and not {expected}")


def _read_numbers(text):
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def _make_fronts():
    """Return measured points and limits: an ordinary case, a tie, a limit met exactly, and one that nothing meets."""
    columns = ["kib", "ms", "points"]
    front = pd.DataFrame(
        [[1224.91, 0.34, 0.0], [132.84, 0.16, 0.24], [58.57, 0.09, 0.98], [86.32, 0.33, 0.11]], columns=columns,
        index=["dense", "half, int8", "quarter, int8", "sparse"],
    )  # fmt: skip
    tied = pd.DataFrame(
        [[300.0, 0.25, 0.5], [200.0, 0.25, 0.5], [100.0, 0.2, 1.5]], columns=columns, index=["a", "b", "c"]
    )
    return [(front, (140, 0.2, 1)), (front, (2000, 1, 5)), (tied, (400, 0.25, 0.5)), (front, (50, 0.05, 0.1)),
            (front, (100, 0.4, 0.5))]  # fmt: skip
