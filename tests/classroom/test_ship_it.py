"""Exercises of notebook 09: right answers pass, plausible wrong ones do not, and hints fit the mistake."""

import functools

import pytest
import torch
from torch import nn

import compresslab as cl

pytestmark = pytest.mark.slow

LOAD_PROGRAM = "import io\nmodel = torch.export.load(io.BytesIO(open(path, 'rb').read())).module()"
LOAD = "import compresslab as cl\nmodel = cl.load(path)"


@functools.cache
def fashion():
    return cl.data.load("fashion_mnist")


@functools.cache
def dense():
    return cl.models.pretrained("lenet_300_100", "fashion_mnist")


@functools.cache
def pruned():
    tuned = cl.zero_pruning.prune(dense(), sparsity=0.97)
    return cl.train.finetune(tuned, fashion().train, steps=100, precision="fp32", bar=False)


@functools.cache
def damage(network):
    return cl.measure.per_class(network, fashion().validation, dense())["damage"]


@functools.cache
def repair(network, extra, steps=300):
    """Train on with some images of the harmed class twice, as a share of them."""
    split, harmed = fashion().train, int(damage(network).idxmax())
    rows = (split.labels == harmed).nonzero().flatten()
    rows = torch.cat([torch.arange(len(split)), rows[: int(extra * len(rows))]])
    return cl.train.finetune(network, split[rows], steps=steps, precision="fp32", bar=False)


def test_overconfidence_right():
    for answer in (
        lambda confidences, right: confidences.mean() - right.float().mean(),
        lambda confidences, right: (
            sum(c - r for c, r in zip(confidences.tolist(), right.tolist(), strict=True)) / len(right)
        ),
    ):
        result = cl.classroom.check("09.overconfidence", answer)
        assert result, result.message


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda confidences, right: right.float().mean() - confidences.mean(), "other way round"),
        (lambda confidences, right: (confidences.mean() - right.float().mean()).abs(), ""),
        (lambda confidences, right: (confidences - right.float()).abs().mean(), "keep the sign"),
        (lambda confidences, right: confidences.mean(), ""),
        (lambda confidences, right: 0.0, ""),
        (lambda confidences, right: None, "not answered yet"),
        (lambda confidences: 0.0, "stopped with TypeError"),
        (0.1, "the function itself"),
    ],
)
def test_overconfidence_wrong(answer, hint):
    result = cl.classroom.check("09.overconfidence", answer)
    assert result.points == 0 and hint.lower() in result.message.lower(), result.message


def test_round_trip_right():
    result = cl.classroom.check("09.round_trip", (cl.save, LOAD))
    assert result, result.message
    assert "instead of" in result.message and len(result.message) < 320


def save_state(model, path):
    torch.save(model.state_dict(), path)


def save_program(model, path):
    program = torch.export.export(cl.layers.plain(model).eval(), (torch.rand(64, 1, 28, 28),))
    with open(path, "wb") as file:
        torch.export.save(program, file)


def save_another(model, path):
    cl.save(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), path)


@pytest.mark.parametrize(
    "answer, hint",
    [
        ((save_state, "model = torch.load(path)"), "object is not callable"),
        ((save_state, "model = Secret()\nmodel.load_state_dict(torch.load(path))"), "NameError"),
        ((lambda model, path: torch.save(model, path), "model = torch.load(path, weights_only=False)"), "stopped with"),
        ((lambda model, path: None, LOAD), "left no file"),
        ((cl.save, "import compresslab"), "NameError"),
        ((cl.save, "model = ("), "SyntaxError"),
        ((save_another, LOAD), "gives other outputs"),
        ((cl.save, "model = torch.nn.Flatten()"), "should be logits"),
        ((save_program, LOAD_PROGRAM), "which format keeps that saving"),
        ((cl.save, cl.load), "is a text"),
        ((cl.save, None), "not answered yet"),
        (cl.save, "give two things"),
    ],
)
def test_round_trip_wrong(answer, hint):
    result = cl.classroom.check("09.round_trip", answer)
    assert result.points == 0 and hint.lower() in result.message.lower(), result.message


def test_repair_right():
    network = pruned()
    harmed = int(damage(network).idxmax())
    result = cl.classroom.check("09.repair", (network, harmed, repair(network, 0.3)))
    assert result, result.message
    assert fashion().classes[harmed] in result.message and "test images" in result.message
    assert len(result.message) < 320


def test_repair_wrong():
    network = pruned()
    harmed = int(damage(network).idxmax())
    unmasked = cl.train.finetune(cl.layers.plain(network), fashion().train, steps=20, bar=False)
    wrong = {
        "half of it has to go": [(network, harmed, network)],
        "the harm has moved": [(network, harmed, repair(network, 2.0)), (network, harmed, repair(network, 1.0))],
        "is not the one": [(network, (harmed + 1) % 10, repair(network, 0.3))],
        "keep the zeros": [(network, harmed, unmasked), (network, harmed, dense())],
        "prune it to 97%": [(dense(), harmed, network)],
        "no LeNet-300-100": [(network, harmed, nn.Linear(784, 10))],
        "should be a number": [(network, "Shirt", network)],
        "give three things": [(network, harmed), network],
        "not answered yet": [(None, None, None)],
    }
    for hint, answers in wrong.items():
        for answer in answers:
            result = cl.classroom.check("09.repair", answer)
            assert result.points == 0 and hint.lower() in result.message.lower(), result.message


def write_memo(points, kib, ms, lost, order=("points", "kib"), digits=2, limits=("kib", "ms", "points"), none="none"):
    given = {"kib": kib, "ms": ms, "points": lost}
    words = {"kib": "KiB", "ms": "ms", "points": "points"}
    meets = points[(points[list(limits)] <= [given[name] for name in limits]).all(axis=1)]
    lines = [f"Choice: {meets.sort_values(list(order)).index[0] if len(meets) else none}"]
    for name, row in points.iterrows():
        numbers = ", ".join(f"{row[column]:.{digits}f} {unit}" for column, unit in words.items())
        breaks = [unit for column, unit in words.items() if row[column] > given[column]]
        lines.append(f"- {name}: {numbers}; breaks {', '.join(breaks) or 'nothing'}")
    return "\n".join(lines)


def test_memo_right():
    result = cl.classroom.check("09.memo", write_memo)
    assert result, result.message


@pytest.mark.parametrize(
    "answer, hint",
    [
        (functools.partial(write_memo, order=("kib", "points")), "which loses fewest points"),
        (functools.partial(write_memo, order=("points",), limits=("kib", "points")), "your first line"),
        (functools.partial(write_memo, none="dense"), "your first line"),
        (functools.partial(write_memo, digits=1), "with two decimals"),
        (lambda *given: write_memo(*given) + "\nIt is 9.97 times smaller.", "which nobody measured"),
        (lambda *given: write_memo(*given).splitlines()[0], "one for each row"),
        (lambda *given: write_memo(*given).replace("ms, points", "points"), ""),
        (lambda *given: write_memo(*given).replace("breaks", "over"), "it breaks"),
        (lambda points, *limits: points.to_dict(), "a memo is a text"),
        (lambda *given: None, "not answered yet"),
        ("Choice: dense", "the function itself"),
    ],
)
def test_memo_wrong(answer, hint):
    result = cl.classroom.check("09.memo", answer)
    assert result.points == 0 and hint.lower() in result.message.lower(), result.message
