"""Latency: how long a model takes, with its spread, and whether one model is really faster than another.

A shared machine gets slower and faster by the second, so one timing means little: two models are timed in turns, in the
order A B B A, which cancels a drift. And where a model's weights happen to lie in memory makes it up to 4% faster or
slower for as long as it stays there, so a comparison is made of rounds, each with fresh copies of both.
"""

import copy
import math
import time
from collections import deque
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from scipy import stats
from torch import nn

from compresslab import bars, checks, layers, train
from compresslab.activations import run
from compresslab.measure.inputs import batch, sample_shape

_SHORTEST = 200_000  # ns that a timing lasts at least: a thousand steps of the clock; quick models are called in a loop
_WARM_UP = 50_000_000  # ns of calls before the first timing
_FEWEST = 5  # timings of a latency, however slow the model
_ROUNDS = 20  # of a comparison, each with fresh copies of the models
_FEWEST_ROUNDS = 6  # the fewest whose smallest and largest ratio are a 95% interval
_KEPT_BYTES = 2**28  # copies held back, so that the next ones get another place
_MINIMAL_EFFECT = 0.02  # a ratio this near 1 is not called a difference


@dataclass(frozen=True)
class Latency:
    """Time of one call on one batch.

    median, low, high  seconds; low and high are the quartiles
    runs               number of timings;  threads  of torch within an operation;  shape  of one sample
    """

    median: float
    low: float
    high: float
    runs: int
    batch_size: int
    threads: int
    device: str
    shape: tuple


@dataclass(frozen=True)
class LatencyComparison:
    """Two models timed in turns.

    ratio      time of the first / time of the second: how many times faster the second is (2.0: half the time)
    low, high  95% interval of the ratio
    verdict    of the second against the first: "faster" | "slower" | "can't tell"
    runs       number of timings of each model
    """

    ratio: float
    low: float
    high: float
    verdict: str
    runs: int
    batch_size: int
    threads: int


def latency(model, batch_size=1, shape=None, *, runs=100, threads=1, seconds=2.0):
    """Time the model's forward pass as it would be shipped: in eval mode, without gradients, masks baked in.

    A mask is a device for training (it multiplies at every call); a masked model is timed as `layers.plain` makes it,
    which is also why the model itself is not touched. Random inputs; warmed up; a graphics card is waited for.

    shape    of one sample, without the batch; None: (1, 28, 28), or what a first Linear layer takes
    runs     number of timings, each of one call or, for a quick model, of as many as fill 0.2 ms
    threads  of torch within an operation; put back afterwards
    seconds  budget: where `runs` would take longer, fewer are made, at least 5
    returns  Latency
    raises   ValueError for a setting out of range or a shape that the model does not take
    """
    batch_size, runs, threads, seconds = _checked(batch_size, runs, threads, seconds)
    with train.threads(threads), torch.inference_mode():
        timer = _ready(model, batch_size, shape)
        times = _repeat(timer.per_call, runs, _FEWEST, seconds)
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75]).tolist()
    return Latency(median, low, high, len(times), batch_size, threads, str(timer.inputs.device), timer.shape)


def compare_latency(a, b, batch_size=1, shape=None, *, runs=400, threads=1, seconds=4.0):
    """Is `b` faster than `a`? Both are timed in turns, each as `latency` would time it.

    They are timed in up to 20 rounds, each with fresh copies at another place in memory. A round's ratio is that of the
    lower quartiles; the ratio is the rounds' median, and its interval the sign test's, which holds whatever the noise
    looks like. The verdict is "can't tell" unless the whole interval lies more than 2% from 1.

    runs     number of timings of each model, rounded up to a multiple of 40
    seconds  budget for all of them: where it is too short, fewer are made, at least two of each model in 6 rounds
    returns  LatencyComparison
    raises   ValueError as `latency`
    """
    batch_size, runs, threads, seconds = _checked(batch_size, runs, threads, seconds)
    with train.threads(threads), torch.inference_mode():
        first = _ready(a, batch_size, shape)
        second = _ready(b, batch_size, first.shape)
        rounds = _Rounds(first, second, math.ceil(runs / (2 * _ROUNDS)), seconds / _ROUNDS)
        ratios = _repeat(rounds.ratio, _ROUNDS, _FEWEST_ROUNDS, seconds)
    low, ratio, high = np.exp(_sign_interval(ratios)).tolist()
    return LatencyComparison(ratio, low, high, _verdict(low, high), rounds.runs, batch_size, threads)


@dataclass
class _Timer:
    """A model ready to be timed on inputs (batch_size, *shape), in timings of `calls` calls."""

    model: nn.Module
    inputs: torch.Tensor
    calls: int = 1

    @property
    def shape(self):
        return tuple(self.inputs.shape[1:])

    def per_call(self):
        """Seconds of one call, from one timing."""
        self._wait()
        start = time.perf_counter_ns()
        for _ in range(self.calls):
            self.model(self.inputs)
        self._wait()
        return (time.perf_counter_ns() - start) / self.calls / 1e9

    def moved(self):
        """The same at another place in memory, called once."""
        twin = _Timer(copy.deepcopy(self.model), self.inputs.clone(), self.calls)
        twin.model(twin.inputs)
        return twin

    def _wait(self):
        if self.inputs.device.type != "cpu":
            torch.accelerator.synchronize(self.inputs.device)


def _ready(model, batch_size, shape):
    """A `_Timer` of the plain model in eval mode, warmed up, with as many calls in a timing as it needs."""
    model = layers.plain(checks.module("model", model, wrapped=True)).eval()
    timer = _Timer(model, batch(model, sample_shape(model, shape), batch_size))
    run(model, timer.inputs)
    quickest, start = math.inf, time.perf_counter_ns()
    while quickest == math.inf or time.perf_counter_ns() - start < _WARM_UP:
        quickest = min(quickest, timer.per_call())
    timer.calls = max(1, math.ceil(_SHORTEST / max(1, quickest * 1e9)))
    return timer


def _tensor_bytes(model):
    return sum(tensor.numel() * tensor.element_size() for tensor in chain(model.parameters(), model.buffers()))


def _checked(batch_size, runs, threads, seconds):
    return (
        checks.integer("batch_size", batch_size, 1),
        checks.integer("runs", runs, 1),
        checks.integer("threads", threads, 1),
        checks.real("seconds", seconds, 0, math.inf),
    )


def _repeat(make, most, fewest, seconds):
    """Values of `make()`: `most` of them, or as many as the budget of seconds allows, but not under `fewest`."""
    end, values = time.perf_counter() + seconds, []
    for _ in bars.over(range(most), "timing"):
        values.append(make())
        if len(values) >= fewest and time.perf_counter() >= end:
            break
    return values


class _Rounds:
    """Rounds of a comparison, each with copies of the two models that lie elsewhere in memory than those before."""

    def __init__(self, first, second, turns, seconds):
        self.models, self.turns, self.seconds = (first, second), turns, seconds
        self.lot, self.runs = np.random.default_rng(0), 0
        self.kept = deque(maxlen=_KEPT_BYTES // max(1, _tensor_bytes(first.model) + _tensor_bytes(second.model)))

    def ratio(self):
        """Log of time of the first / time of the second in one more round.

        Of each model the lower quartile: beside a busy process half of the timings can hold somebody else's work.
        """
        pair = [timer.moved() for timer in self.models]
        self.kept.append(pair)
        times = np.concatenate(_repeat(lambda: self._turn(pair), self.turns, 1, self.seconds), axis=1)
        self.runs += times.shape[1]
        first, second = np.quantile(times, 0.25, axis=1)
        return math.log(first / second)

    def _turn(self, pair):
        """Times of a turn A B B A, or B A A B (by lot: it must not keep step with another process): (2 models, 2)."""
        head = int(self.lot.integers(2))
        times = ([], [])
        for who in (head, 1 - head, 1 - head, head):
            times[who].append(pair[who].per_call())
        return times


def _sign_interval(values):
    """Median and the 95% interval of it that the sign test gives: (low, median, high).

    Holds for any distribution; low and high are two of the values. Conover 1999, section 3.2.
    """
    values = np.sort(values)
    cut = int(stats.binom.ppf(0.025, len(values), 0.5))  # values below this one: under 2.5% likely for the median
    return values[cut - 1], np.median(values), values[len(values) - cut]


def _verdict(low, high):
    if low > 1 + _MINIMAL_EFFECT:
        return "faster"
    if high < 1 / (1 + _MINIMAL_EFFECT):
        return "slower"
    return "can't tell"
