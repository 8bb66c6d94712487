"""Latency: the time that a model takes, with its spread, and whether a model is really faster than another.

A shared machine gets slower and faster by the second, so one timing means little: two models are timed in turns, in the
order A B B A, which cancels a drift. And where a model's weights happen to lie in memory makes it up to 4% faster or
slower for as long as it stays there, so a comparison is made of rounds, each with fresh copies of both.
"""

import copy
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from scipy import stats
from torch import nn

from compresslab import bars, checks, train
from compresslab.calibration import run
from compresslab.measure.examples import batch, sample_shape
from compresslab.weights import layers

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


def latency(
    model: nn.Module, batch_size: int = 1, shape: Sequence[int] | None = None, *, runs: int = 100, threads: int = 1,
    seconds: float = 2.0,
) -> Latency:  # fmt: skip
    """Time the model's forward pass: in eval mode, without gradients, masks baked in.

    A mask is a device for training (it multiplies at every call); a masked model is timed as `layers.plain` makes it,
    which is also why the model itself is not touched. Random inputs; warmed up; a graphics card is waited for.

    shape    of one sample, without the batch; None: (1, 28, 28), or what a first Linear layer takes
    runs     number of timings, each of one call or, for a quick model, of as many as fill 0.2 ms
    threads  of torch within an operation; put back afterwards
    seconds  budget: where `runs` would take longer, fewer are made, at least 5
    raises   ValueError for a setting out of range or a shape that the model does not take
    """
    batch_size, runs, threads, seconds = _checked(batch_size, runs, threads, seconds)
    with train.threads(threads), torch.inference_mode():
        timer = _ready(model, batch_size, shape)
        times = _repeat(timer.per_call, runs, _FEWEST, seconds)
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75]).tolist()
    return Latency(median, low, high, len(times), batch_size, threads, str(timer.inputs.device), timer.shape)


def compare_latency(
    a: nn.Module, b: nn.Module, batch_size: int = 1, shape: Sequence[int] | None = None, *, runs: int = 400,
    threads: int = 1, seconds: float = 4.0,
) -> LatencyComparison:  # fmt: skip
    """Test whether `b` is faster than `a` by timing both in turns.

    They are timed in up to 20 rounds, each with fresh copies at another place in memory. A round's ratio is that of the
    lower quartiles; the ratio is the rounds' median, and its interval the sign test's, which holds whatever the noise
    looks like. The verdict is "can't tell" unless the whole interval lies more than 2% from 1.

    runs     number of timings of each model, rounded up to a multiple of 40
    seconds  budget for all of them: where it is too short, fewer are made, at least two of each model in 6 rounds
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
    def shape(self) -> tuple:
        """Shape of one sample."""
        return tuple(self.inputs.shape[1:])

    def per_call(self) -> float:
        """Return the seconds of a call, from one timing."""
        self._wait()
        start = time.perf_counter_ns()
        for _ in range(self.calls):
            self.model(self.inputs)
        self._wait()
        return (time.perf_counter_ns() - start) / self.calls / 1e9

    def moved(self) -> "_Timer":
        """Make a copy at another place in memory, and call it once."""
        twin = _Timer(copy.deepcopy(self.model), self.inputs.clone(), self.calls)
        twin.model(twin.inputs)
        return twin

    def _wait(self):
        if self.inputs.device.type != "cpu":
            torch.accelerator.synchronize(self.inputs.device)


def _ready(model, batch_size, shape):
    """Make a warm `_Timer` of the plain model in eval mode."""
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
    """Collect `most` values of `make()`, or as many as the seconds allow."""
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
        self.earlier = deque(maxlen=_KEPT_BYTES // max(1, _tensor_bytes(first.model) + _tensor_bytes(second.model)))

    def ratio(self) -> float:
        """Time a round; return the log of the first time / the second.

        Of each model the lower quartile: beside a busy process half of the timings can hold somebody else's work.
        """
        pair = [timer.moved() for timer in self.models]
        self.earlier.append(pair)  # held back, so that the next copies get another place
        times = np.concatenate(_repeat(lambda: self._turn(pair), self.turns, 1, self.seconds), axis=1)
        self.runs += times.shape[1]
        first, second = np.quantile(times, 0.25, axis=1)
        return math.log(first / second)

    def _turn(self, pair):
        """Time both models twice, A B B A or B A A B by lot: (2 models, 2)."""
        head = int(self.lot.integers(2))
        times = ([], [])
        for who in (head, 1 - head, 1 - head, head):
            times[who].append(pair[who].per_call())
        return times


def _sign_interval(values):
    """Return (low, median, high): the median with the 95% interval of the sign test.

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
