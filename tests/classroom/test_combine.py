"""Exercises of notebook 08: right answers pass, plausible wrong ones do not, and hints fit the mistake."""

import functools
import math

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab.classroom import combine as exercises

pytestmark = pytest.mark.slow

PRUNE, GRID = ("zero_pruning", {"sparsity": 0.95}), ("quantization", {"bits": 4})
LONG, SHORT = ("retrain", {"steps": 60, "lr": 0.004}), ("retrain", {"steps": 20, "lr": 0.004})


@functools.cache
def dense():
    return cl.models.pretrained("lenet_300_100", "mnist")


@functools.cache
def mnist():
    return cl.data.load("mnist")


@functools.cache
def cooked(*steps):
    """What a recipe makes of LeNet-300-100; steps as (name, parameter, value)."""
    recipe = cl.Recipe([(name, dict(setting)) for name, setting in steps])
    return recipe.apply(dense(), mnist(), journal=False, bar=False)


def cook(*steps):
    return cooked(*((name, tuple(setting.items())) for name, setting in steps))


def loop_bytes(weight, bits, gap_bits):
    """The same count as an encoder makes it, one weight after another."""
    entries, zeros = 0, 0
    pending = 0  # fillers that the next nonzero will need
    for value in weight.flatten().tolist():
        if value != 0:
            entries, zeros, pending = entries + pending + 1, 0, 0
        else:
            zeros += 1
            if zeros == 2**gap_bits:
                pending, zeros = pending + 1, 0
    return math.ceil(entries * (bits + gap_bits) / 8) + 4 * 2**bits


def counted(weight, bits, gap_bits, *, per_zero=False, codebook=True):
    """Without fillers; or a code for every weight."""
    entries = weight.numel() if per_zero else int(weight.count_nonzero())
    return math.ceil(entries * (bits + gap_bits) / 8) + codebook * 4 * 2**bits


def shrunk(net, data):
    steps = [("zero_pruning", {"sparsity": 0.95}), LONG, ("weight_sharing", {"bits": 3, "biases": True}), SHORT]
    return cl.Recipe(steps).apply(net, data, journal=False, bar=False)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, images):
        return self.fc(images.flatten(1)) if images.sum() > -1 else None


def test_gap_code_right():
    for answer in (exercises._gap_bytes, loop_bytes, lambda *layer: torch.tensor(float(loop_bytes(*layer)))):
        result = cl.classroom.check("08.gap_code", answer)
        assert result and "right." in result.message and len(result.message) < 320


@pytest.mark.parametrize(
    "answer, hint",
    [
        (counted, "needs a filler"),
        (lambda *layer: loop_bytes(*layer) - 4 * 2 ** layer[1], "is the codebook in it"),
        (lambda *layer: counted(*layer, codebook=False), "neither fillers nor codebook"),
        (lambda *layer: 8 * loop_bytes(*layer), "Bytes are asked for"),
        (lambda *layer: counted(*layer, per_zero=True), ""),
        (lambda weight, bits, gap_bits: loop_bytes(weight, bits, gap_bits) + 1, "zeros behind the last"),
        (lambda weight, bits, gap_bits: loop_bytes(weight, bits, gap_bits + 1), ""),
        (lambda weight, bits, gap_bits: loop_bytes(weight, gap_bits, bits), ""),
        (lambda weight, bits, gap_bits: 4 * weight.numel(), ""),
        (lambda weight: 0, "stopped with TypeError"),
        (1200, "the function itself"),
    ],
)
def test_gap_code_wrong(answer, hint):
    result = cl.classroom.check("08.gap_code", answer)
    assert not result and hint in result.message


def test_ten_kib_right():
    steps = [("zero_pruning", {"sparsity": 0.96}), ("retrain", {"epochs": 2, "lr": 0.008}),
             ("weight_sharing", {"bits": 3}), SHORT]  # fmt: skip
    result = cl.classroom.check("08.ten_kib", cook(*steps))
    assert result, result.message
    assert "KiB" in result.message and len(result.message) < 320


def test_ten_kib_wrong():
    one_shot = cl.weight_sharing.share(cl.zero_pruning.prune(dense(), sparsity=0.96), bits=3)
    wrong = {
        "10 KiB are the limit": [dense(), cook(PRUNE, LONG)],
        "are within reach": [one_shot, nn.Sequential(nn.Flatten(), nn.Linear(784, 2), nn.Linear(2, 10))],
        "apply the recipe": [cl.Recipe([PRUNE, LONG])],
        "give the network itself": [0.98, "small.clab", cl.storage.dumps(one_shot)],
        "no file that answers": [Untraceable(), nn.Linear(3, 10)],
    }
    for hint, answers in wrong.items():
        for answer in answers:
            result = cl.classroom.check("08.ten_kib", answer)
            assert not result and hint in result.message


def test_order():
    first, second = cook(PRUNE, LONG, GRID, SHORT), cook(GRID, LONG, PRUNE, SHORT)
    verdict = cl.measure.mcnemar(first, second, mnist().validation).verdict
    for kind in (tuple, list):
        result = cl.classroom.check("08.order", kind((first, second, verdict)))
        assert result, result.message
        assert f"{cl.measure.accuracy(second, mnist().validation):.2%}" in result.message
    untrained = cl.quantization.quantize(cl.zero_pruning.prune(dense(), sparsity=0.95), bits=4)
    wrong = {
        "look exchanged": [(second, first, verdict)],
        "both kept": [(first, first, "can't tell")],
        "the first one did not": [(second, second, "can't tell")],
        "verdict does not hold": [
            (first, second, other) for other in ({"a is better", "b is better", "can't tell"} - {verdict}) | {"prune"}
        ],
        "not been retrained": [(untrained, second, verdict)],
        "4 bits are 16": [(cook(PRUNE, LONG), second, verdict)],
        "masks that remove 0.0%": [(first, cook(GRID, LONG), verdict)],
        "masks that remove 90.0%": [(cl.zero_pruning.prune(dense(), sparsity=0.9), second, verdict)],
        "no LeNet-300-100": [(nn.Linear(784, 10), second, verdict), (first, 0.97, verdict)],
        "give three things": [first, (first, second), (first, second, verdict, 1)],
    }
    for hint, answers in wrong.items():
        for answer in answers:
            result = cl.classroom.check("08.order", answer)
            assert not result and hint.lower() in result.message.lower(), result.message


def test_small_net_right():
    result = cl.classroom.check("08.small_net", shrunk)
    assert result, result.message
    assert "trained from scratch for as long or longer" in result.message and len(result.message) < 320


def from_scratch(net, data):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        small = nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 10))
    small = cl.train.finetune(small, data.train, steps=60, bar=False)
    return cl.quantization.quantize(small, bits=4)


def one_shot(net, data):
    return cl.weight_sharing.share(cl.zero_pruning.prune(net, sparsity=0.97), bits=3)


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda net, data: net, "12 KiB are the limit"),
        (lambda net, data: cl.zero_pruning.prune(net, sparsity=0.95), "12 KiB are the limit"),
        (one_shot, "is it retrained"),
        (from_scratch, "trained from scratch for as long or longer"),
        (lambda net, data: cl.Recipe([PRUNE]), "apply the recipe"),
        (lambda net, data: 0.98, "give the network itself"),
        (lambda net: net, "stopped with TypeError"),
        (lambda net, data: None, "not answered yet"),
        (0.98, "the function itself"),
        (Untraceable(), "the function itself"),
    ],
)
def test_small_net_wrong(answer, hint):
    result = cl.classroom.check("08.small_net", answer)
    assert not result and hint in result.message, result.message
