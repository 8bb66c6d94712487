"""Exercises of notebook 00: bytes from shapes, latency per sample, timings told apart or not, a Pareto front."""

import io
import math
import statistics

import numpy as np
import torch

from compresslab import measure, models
from compresslab.classroom.feedback import NotYet, call, describe, exercise, read_number, read_truth

_TOLERANCE = 0.02  # of the file's real length
_NETWORKS = {
    "LeNet-300-100": [(300, 784), (300,), (100, 300), (100,), (10, 100), (10,)],
    "a convolutional network": [(32, 1, 5, 5), (32,), (64, 32, 5, 5), (64,), (120, 1024), (120,), (10, 120), (10,)],
    "a network with many biases": [(60_000, 4), (60_000,), (10, 60_000), (10,)],
    "a network with a single number in a tensor": [(400, 400), (400,), ()],
    "a network in one dimension": [(250, 16, 9), (250,), (500, 250), (500,)],
}
_SLIPS = (  # (prediction / real length, what it looks like)
    (1 / 4, "that is how many numbers there are; how many bytes does one fp32 number take?"),
    (1 / 2, "that is 2 bytes a number, half precision; these files hold fp32"),
    (2.0, "that is 8 bytes a number, double precision; these files hold fp32"),
    (8.0, "that is bits; a file is counted in bytes"),
    (1 / 1024, "that is KiB; give bytes"),
    (1 / 1000, "that is kB; give bytes"),
    (1 / 2**20, "that is MiB; give bytes"),
)


@exercise("00.file_bytes", points=2)
def check_file_bytes(predict: object) -> str:
    """Write a function that predicts the bytes of a dense file from its tensors' shapes."""
    worst = 0.0
    for name, shapes in _NETWORKS.items():
        predicted, real = read_number(call(predict, shapes), f"the prediction for {name}"), _saved_bytes(shapes)
        if abs(predicted / real - 1) > _TOLERANCE:
            raise NotYet(f"for {name} {_bytes_hint(predicted, real, shapes)}")
        worst = max(worst, abs(predicted / real - 1))
    return (
        f"At most {worst:.1%} off on {len(_NETWORKS)} real files. A dense file depends on shapes alone: "
        "what the weights are, zero or not, makes no difference to it."
    )


def _saved_bytes(shapes):
    buffer = io.BytesIO()
    torch.save({str(index): torch.zeros(shape) for index, shape in enumerate(shapes)}, buffer)
    return len(buffer.getvalue())


def _bytes_hint(predicted, real, shapes):
    matrices = 4 * sum(math.prod(shape) for shape in shapes if len(shape) > 1)
    if abs(predicted - matrices) <= 4:
        return "the matrices are right; which tensors are left out?"
    for ratio, hint in _SLIPS:
        if abs(predicted / real / ratio - 1) < 0.05:
            return hint
    if predicted <= 0:
        return f"you predict {predicted:g} bytes; a file has more than that"
    off = f"{max(predicted, real) / min(predicted, real):.3g} times too {'large' if predicted > real else 'small'}"
    return f"your number is {off}; how many numbers has a tensor?"


@exercise("00.halving_batch_size", points=2)
def check_halving_batch_size(find: object) -> str:
    """Write a function that finds the smallest batch size that halves latency per sample.

    find(times), with times a dict of batch size -> seconds; None where no batch size halves it.
    """
    for name, times in _tables():
        answer = call(find, times, none_allowed=True)
        halving = [size for size, seconds in times.items() if seconds / size <= times[1] / 2]
        right = min(halving, default=None)
        if right is None and answer is not None:
            raise NotYet(f"on a table {name}, no batch size halves it; return None there, not {describe(answer)}")
        if right is None or (size := read_number(answer, f"the batch size on a table {name}")) == right:
            continue
        hint = f"{size:g} is not one of its batch sizes; give a key of the table"
        if size in halving:
            hint = f"batch size {size:g} does it, but a smaller one does too"
        elif size in times:
            share = f"{times[size] / size / times[1]:.0%} of the time per sample of batch size 1"
            hint = f"batch size {size:g} takes {share}; divide by the batch size"
        raise NotYet(f"on a table {name}, {hint}")
    here = f"On this machine LeNet-300-100 gets there at batch size {right}" if right else "Here none gets there"
    return f"{here}. A latency says nothing without its batch size."


def _tables():
    """Yield name and table (batch size -> seconds); the last is measured now."""
    yield "where a batch costs little more than one image", {1: 20e-6, 2: 24e-6, 4: 30e-6, 8: 48e-6, 16: 80e-6}
    yield "where two images take exactly as long as one", {1: 10e-6, 2: 10e-6, 4: 10e-6}
    yield "that is not in order", {64: 90e-6, 1: 16e-6, 8: 24e-6, 2: 17e-6, 4: 19e-6}
    yield "where a larger batch is slower again", {1: 10e-6, 2: 15e-6, 4: 18e-6, 8: 60e-6, 16: 150e-6}
    yield "where nothing is gained", {1: 10e-6, 2: 20e-6, 4: 39e-6, 8: 81e-6}
    model, sizes = models.lenet_300_100(seed=0), (1, 2, 4, 8, 16, 32)
    yield "measured here", {size: measure.latency(model, size, runs=30, seconds=0.1).median for size in sizes}


@exercise("00.told_apart", points=3)
def check_told_apart(told_apart: object) -> str:
    """Write a function that says whether two models, timed in turns, can be told apart.

    They can if the quartiles of a / b exclude 1.
    """
    for name, (a, b, apart, hint) in _timings().items():
        answers = [read_truth(call(told_apart, *pair), f"the answer for {name}") for pair in ((a, b), (b, a))]
        if answers[0] != answers[1]:
            raise NotYet(f"for {name} your answer changes when a and b are swapped; a difference may go either way")
        if answers[0] != apart:
            medians = f"medians {statistics.median(a) * 1e6:.1f} and {statistics.median(b) * 1e6:.1f} µs"
            raise NotYet(f"{name} ({medians}) {'can' if apart else 'cannot'} be told apart: {hint}")
    model = models.lenet_300_100(seed=0)
    first, second = (1e6 * measure.latency(model, runs=50, seconds=0.2).median for _ in range(2))
    return (
        f"One and the same network, timed twice here just now: {first:.1f} and {second:.1f} µs. "
        "Two numbers that differ are no finding; the spread decides."
    )


def _timings():
    """Return name -> (seconds of a, seconds of b, whether they differ, hint)."""
    noise = np.random.default_rng(0)
    usual, again, twice, paused = (20e-6 * noise.lognormal(0, 0.1, 200) for _ in range(4))
    drift = np.linspace(10e-6, 40e-6, 200)
    near, far = (drift * noise.lognormal(0, 0.02, 200) for _ in range(2))
    paused[::20] += 2e-3
    spread = "medians always differ a little; what does their spread say?"
    middle = "the middle half of the ratios counts, not the extremes"
    neighbours = "both drift together, so compare each timing with its neighbour, not two separate spreads"
    pauses = "a few long pauses move the mean, they do not move the middle half"
    return {
        "one network timed twice": (usual, again, False, spread),
        "two identical lists": (usual, usual, False, "every ratio is exactly 1"),
        "a network a quarter slower": (1.25 * usual, again, True, middle),
        "a network twice as fast": (usual, 2 * twice, True, "the difference may go either way"),
        "a network 10% faster on a machine that slows down": (near, 0.9 * far, True, neighbours),
        "one network, with pauses in some timings": (paused, usual, False, pauses),
    }


@exercise("00.pareto", points=3)
def check_pareto(pareto: object) -> str:
    """Write a function that keeps the points of an accuracy-versus-size plot that no other one beats."""
    noise, low, high = np.random.default_rng(1), (10, 0.9), (99, 1)
    clouds = {
        "three points, one of them beaten": [(100, 0.98), (50, 0.97), (80, 0.96)],
        "one point": [(10, 0.5)],
        "points of one size": [(50, 0.9), (50, 0.95), (20, 0.8)],
        "points of one accuracy": [(50, 0.9), (30, 0.9), (40, 0.9)],
        "a point beaten only by a much smaller one": [(10, 0.97), (90, 0.98), (80, 0.969), (85, 0.968)],
        "twenty points": [(int(size), round(float(right), 3)) for size, right in noise.uniform(low, high, (20, 2))],
        "no points": [],
    }
    for name, points in clouds.items():
        answer = call(pareto, points)
        try:
            answer = {(float(size), float(right)) for size, right in answer}
        except (TypeError, ValueError) as error:
            raise NotYet(f"for {name}, give a list of (bytes, accuracy) pairs; this is {describe(answer)}") from error
        front = {(s, a) for s, a in points if not any(t <= s and b >= a and (t, b) != (s, a) for t, b in points)}
        if beaten := sorted(answer & set(points) - front):
            raise NotYet(f"for {name}, {beaten[0]} is kept, but another point is no larger and no less accurate")
        if missing := sorted(front - answer):
            raise NotYet(f"for {name}, {missing[0]} is missing: nothing is both no larger and no less accurate than it")
        if strange := sorted(answer - front):
            raise NotYet(f"for {name}, {strange[0]} is not one of the points given")
    return "What is left is all that anyone needs to choose from: every other point is beaten on both axes at once."
