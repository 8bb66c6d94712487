"""Latency: the time that a model takes, with its spread, and whether a model is really faster than another.

A shared machine gets slower and faster by the second, so two models are timed in turns, in the order A B B A, which
cancels a drift. Where a model's weights lie in memory makes it up to 4% faster or slower, so a comparison is made of
rounds, each with fresh copies of both.
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
    """Time of one call on one batch, in seconds: the median and the quartiles.

    runs  number of timings;  threads  of torch within an operation;  shape  of one sample
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
    """Time the model's forward pass on random inputs, in evaluation mode, without gradients.

    A mask multiplies at every call and is a device for training; so the model is timed as `layers.plain` makes it.
    shape    of one sample, without the batch; None: (1, 28, 28), or what a first Linear layer takes
    runs     number of timings, each of one call or, for a quick model, of as many as fill 0.2 ms
    threads  of torch within an operation; put back afterwards
    seconds  budget: where `runs` would take longer, fewer are made, at least 5
    raises   ValueError for a setting out of range or a shape that the model does not take
    """
    _check(batch_size, runs, threads, seconds)
    with train.threads(threads), torch.inference_mode():
        timer = _prepare(model, batch_size, shape)
        times = _repeat(timer.time_call, runs, _FEWEST, seconds)
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75]).tolist()
    return Latency(median, low, high, len(times), batch_size, threads, str(timer.inputs.device), timer.shape)


def compare_latency(
    a: nn.Module, b: nn.Module, batch_size: int = 1, shape: Sequence[int] | None = None, *, runs: int = 400,
    threads: int = 1, seconds: float = 4.0,
) -> LatencyComparison:  # fmt: skip
    """Test whether `b` is faster than `a` by timing both in turns.

    There are up to 20 rounds, each with fresh copies at another place in memory. A round's ratio is that of the lower
    quartiles: beside a busy process half of the timings can hold its work. The ratio is the rounds' median, its
    interval the sign test's. The verdict is "can't tell" unless the whole interval lies more than 2% from 1.

    runs     number of timings of each model, rounded up to a multiple of 40
    seconds  budget for all of them: where it is too short, fewer are made, at least two of each model in 6 rounds
    raises   ValueError as `latency`
    """
    _check(batch_size, runs, threads, seconds)
    turns, lot, counts = math.ceil(runs / (2 * _ROUNDS)), np.random.default_rng(0), []
    with train.threads(threads), torch.inference_mode():
        first = _prepare(a, batch_size, shape)
        models = first, _prepare(b, batch_size, first.shape)
        earlier = deque(maxlen=_KEPT_BYTES // max(1, sum(timer.count_bytes() for timer in models)))

        def time_round() -> float:
            """Time a round; return the log of the first time / the second."""
            pair = [timer.move() for timer in models]
            earlier.append(pair)  # held back, so that the next copies get another place
            times = np.concatenate(_repeat(lambda: _time_turn(pair, lot), turns, 1, seconds / _ROUNDS), axis=1)
            counts.append(times.shape[1])
            return math.log(np.divide(*np.quantile(times, 0.25, axis=1)))

        ratios = _repeat(time_round, _ROUNDS, _FEWEST_ROUNDS, seconds)
    low, ratio, high = np.exp(_sign_interval(ratios)).tolist()
    verdict = "faster" if low > 1 + _MINIMAL_EFFECT else "can't tell"
    verdict = "slower" if high < 1 / (1 + _MINIMAL_EFFECT) else verdict
    return LatencyComparison(ratio, low, high, verdict, sum(counts), batch_size, threads)


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

    def time_call(self) -> float:
        """Return the seconds of a call, from one timing."""
        self._wait()
        start = time.perf_counter_ns()
        for _ in range(self.calls):
            self.model(self.inputs)
        self._wait()
        return (time.perf_counter_ns() - start) / self.calls / 1e9

    def move(self) -> "_Timer":
        """Make a copy at another place in memory, and call it once."""
        twin = _Timer(copy.deepcopy(self.model), self.inputs.clone(), self.calls)
        twin.model(twin.inputs)
        return twin

    def count_bytes(self) -> int:
        """Count the bytes of the model's tensors."""
        return sum(tensor.nbytes for tensor in chain(self.model.parameters(), self.model.buffers()))

    def _wait(self):
        if self.inputs.device.type != "cpu":
            torch.accelerator.synchronize(self.inputs.device)


def _prepare(model, batch_size, shape):
    """Make a warm `_Timer` of the plain model in eval mode."""
    model = layers.plain(checks.module("model", model, wrapped=True)).eval()
    timer = _Timer(model, batch(model, sample_shape(model, shape), batch_size))
    run(model, timer.inputs)
    quickest, start = math.inf, time.perf_counter_ns()
    while quickest == math.inf or time.perf_counter_ns() - start < _WARM_UP:
        quickest = min(quickest, timer.time_call())
    timer.calls = max(1, math.ceil(_SHORTEST / max(1, quickest * 1e9)))
    return timer


def _check(batch_size, runs, threads, seconds):
    for name, value in {"batch_size": batch_size, "runs": runs, "threads": threads}.items():
        checks.integer(name, value, 1)
    checks.real("seconds", seconds, 0, math.inf)


def _repeat(make, most, fewest, seconds):
    """Collect `most` values of `make()`, or as many as the seconds allow."""
    end, values = time.perf_counter() + seconds, []
    for _ in bars.over(range(most), "timing"):
        values.append(make())
        if len(values) >= fewest and time.perf_counter() >= end:
            break
    return values


def _time_turn(pair, lot):
    """Time both models twice, A B B A or B A A B by lot."""
    head = int(lot.integers(2))
    times = ([], [])
    for index in (head, 1 - head, 1 - head, head):
        times[index].append(pair[index].time_call())
    return times


def _sign_interval(values):
    """Return (low, median, high): the median with the 95% interval of the sign test.

    Holds for any distribution; low and high are two of the values. Conover 1999, section 3.2.
    """
    values = np.sort(values)
    cut = int(stats.binom.ppf(0.025, len(values), 0.5))  # values below this one: under 2.5% likely for the median
    return values[cut - 1], np.median(values), values[len(values) - cut]
