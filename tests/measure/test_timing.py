import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import compresslab as cl
from compresslab import measure
from compresslab.measure import timing

MS = 1_000_000  # ns


class Clock:
    """A clock that only a model's forward pass moves, so that nothing here depends on the machine."""

    def __init__(self):
        self.now, self.used, self.calls, self.disturb = 0, 0, [], lambda now, cost: cost

    def spend(self, name, cost):
        self.calls.append(name)
        self.now += round(self.disturb(self.now, cost))

    def reset(self):
        self.__init__()


CLOCK = Clock()


class Costly(nn.Module):
    """Takes `cost` ns by the clock; `place` is how much the place in memory of a copy adds, a fraction."""

    def __init__(self, cost, name="model", place=0.0):
        super().__init__()
        self.cost, self.name, self.place = cost, name, place
        self.factor = 1 + random.uniform(-place, place)

    def forward(self, inputs):
        CLOCK.spend(self.name, self.cost * self.factor)
        return inputs

    def __deepcopy__(self, memo):
        return Costly(self.cost, self.name, self.place)


class Witness(nn.Module):
    """Notes under which conditions it is called."""

    seen = []

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, inputs):
        modes = self.training, torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        self.seen.append((*modes, torch.get_num_threads(), tuple(inputs.shape), inputs.dtype))
        return self.layer(inputs)


@pytest.fixture
def clock(monkeypatch):
    CLOCK.reset()
    random.seed(0)
    fake = SimpleNamespace(perf_counter_ns=lambda: CLOCK.now, perf_counter=lambda: CLOCK.now / 1e9)
    monkeypatch.setattr(timing, "time", fake)
    return CLOCK


def compare(cost_a, cost_b, **settings):
    return measure.compare_latency(Costly(cost_a, "a"), Costly(cost_b, "b"), shape=(1,), **settings)


def test_a_steady_model(clock):
    result = measure.latency(Costly(2 * MS), batch_size=3, shape=(4,))
    assert (result.median, result.low, result.high) == pytest.approx((0.002, 0.002, 0.002))
    assert (result.runs, result.batch_size, result.threads, result.device, result.shape) == (100, 3, 1, "cpu", (4,))


def test_a_quick_model_is_called_in_a_loop(clock):
    result = measure.latency(Costly(1000), shape=(1,), runs=10)
    warm_up = 2 + 50_000  # a trial of the shape, one whose error is worded, then 50 ms
    assert result.median == pytest.approx(1e-6)
    assert len(clock.calls) == warm_up + 10 * 200


def test_quartiles(clock):
    clock.disturb = lambda now, cost: cost * (1 + len(clock.calls) % 4)
    result = measure.latency(Costly(MS), shape=(1,))
    assert (result.low, result.median, result.high) == pytest.approx((0.00175, 0.0025, 0.00325))


@pytest.mark.parametrize(
    ("runs", "seconds", "expected"), [(100, 2, 5), (3, 2, 3), (100, 10, 10), (1, 0, 1), (100, 0, 5)]
)
def test_a_slow_model_keeps_to_its_budget(clock, runs, seconds, expected):
    assert measure.latency(Costly(1000 * MS), shape=(1,), runs=runs, seconds=seconds).runs == expected


def test_models_take_turns(clock):
    result = compare(MS, MS, runs=40)
    rounds = "".join(clock.calls)[-(2 + 4) * 20 :]  # a call to settle each copy, then one turn, 20 times
    assert {rounds[start : start + 6] for start in range(0, 120, 6)} == {"ababba", "abbaab"}
    assert result.runs == 40


@pytest.mark.parametrize(
    ("cost_a", "cost_b", "ratio", "verdict"),
    [
        (MS, MS, 1, "can't tell"),
        (MS, 2 * MS, 0.5, "slower"),
        (3 * MS, MS, 3, "faster"),
        (1.01 * MS, MS, 1.01, "can't tell"),
        (MS, 1.01 * MS, 1 / 1.01, "can't tell"),
        (1.05 * MS, MS, 1.05, "faster"),
        (1000, 5 * MS, 0.0002, "slower"),
    ],
)
def test_verdict_speaks_of_the_second(clock, cost_a, cost_b, ratio, verdict):
    result = compare(cost_a, cost_b)
    assert (result.ratio, result.low, result.high) == pytest.approx((ratio, ratio, ratio), rel=2e-3)
    assert result.verdict == verdict


def test_the_other_way_round_is_the_inverse(clock):
    clock.disturb = lambda now, cost: cost * random.uniform(1, 1.5)
    one, other = compare(MS, 2 * MS), compare(2 * MS, MS)
    assert one.ratio == pytest.approx(1 / other.ratio, rel=0.05)
    assert (one.verdict, other.verdict) == ("slower", "faster")


def time_slices(now, cost):
    """Another process gets 4 ms after every 3 ms of ours."""
    before, CLOCK.used = CLOCK.used, CLOCK.used + cost
    return cost + 4 * MS * (CLOCK.used // (3 * MS) - before // (3 * MS))


NOISE = {
    "drift": lambda now, cost: cost * (1 + now / 1e9),
    "spikes": lambda now, cost: cost * random.choice([1, 1, 1, 1, 8]),
    "bursts": lambda now, cost: cost * (5 if now // (30 * MS) % 3 == 0 else 1),
    "time slices": time_slices,
    "steps": lambda now, cost: cost * (1 if now < 400 * MS else 1.7),
}


@pytest.mark.parametrize("noise", NOISE)
def test_noise_makes_no_difference_and_hides_none(clock, noise):
    clock.disturb = NOISE[noise]
    verdicts = [compare(MS, MS).verdict for _ in range(8)]
    assert verdicts == ["can't tell"] * 8
    assert [compare(MS, 2 * MS).verdict for _ in range(4)] == ["slower"] * 4


def test_a_place_in_memory_is_no_difference(clock):
    models = Costly(MS, "a", place=0.04), Costly(MS, "b", place=0.04)
    verdicts = [measure.compare_latency(*models, shape=(1,), runs=40).verdict for _ in range(60)]
    assert verdicts.count("can't tell") >= 59


def test_a_slow_comparison_keeps_to_its_budget(clock):
    result = compare(1000 * MS, 3000 * MS, seconds=2)
    assert (result.runs, result.verdict) == (12, "slower")
    assert result.low <= result.ratio <= result.high


@pytest.mark.parametrize("count", range(6, 21))
def test_sign_interval_covers_95_percent(count):
    low, middle, high = timing._sign_interval(list(range(count)))
    outside = 2 * stats.binom.cdf(low, count, 0.5)  # the median beyond value number `low`
    assert outside <= 0.05
    assert 2 * stats.binom.cdf(low + 1, count, 0.5) > 0.05
    assert middle == (count - 1) / 2
    assert low + high == count - 1


@pytest.mark.parametrize(
    "call",
    [
        lambda model, **how: measure.latency(model, **how),
        lambda model, **how: measure.compare_latency(model, model, **how),
    ],
)
def test_how_a_model_is_called(call):
    Witness.seen.clear()
    before = torch.get_num_threads()
    model = Witness().half().train()
    call(model, batch_size=3, shape=(4,), threads=2, runs=2, seconds=0)
    assert torch.get_num_threads() == before
    assert model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert {one[:4] for one in Witness.seen} == {(False, True, False, 2)}
    assert Witness.seen[-1][4:] == ((3, 4), torch.float16)


def test_threads_come_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="does not take"):
        measure.latency(nn.Linear(4, 2), shape=(5,), threads=before + 1)
    assert torch.get_num_threads() == before


def test_masks_are_baked_in(monkeypatch):
    model, calls = nn.Linear(8, 4), []
    cl.layers.set_mask(model, torch.rand(4, 8) > 0.5)
    monkeypatch.setattr(cl.layers.Mask, "forward", lambda self, weight: calls.append(1) or weight * self.mask)
    measure.latency(model, shape=(8,), runs=20)
    assert 0 < len(calls) < 10
    assert torch.nn.utils.parametrize.is_parametrized(model)


def test_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout()).train()
    state, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    measure.latency(model, shape=(8,), runs=3)
    measure.compare_latency(model, model, shape=(8,), runs=1, seconds=0)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert all(part.training for part in model.modules())
    assert torch.equal(chance, torch.get_rng_state())
    assert np.isfinite(measure.latency(model, shape=(8,), runs=3).median)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; give a whole number 1 or more"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"runs": 0}, "runs is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"seconds": -1}, "seconds is -1"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"shape": (5,)}, r"does not take a batch of shape \(1, 5\): .*; give another shape"),
        ({"shape": 4}, "shape is 4; give the shape of one sample"),
    ],
)
def test_bad_settings(settings, message):
    for call in (
        lambda **how: measure.latency(nn.Linear(4, 2), **how),
        lambda **how: measure.compare_latency(nn.Linear(4, 2), nn.Linear(4, 2), **how),
    ):
        with pytest.raises(ValueError, match=message):
            call(**{"shape": (4,), **settings})


def test_shape_unknown():
    with pytest.raises(ValueError, match=r"shape is None, and the model takes neither \(1, 28, 28\); give the shape"):
        measure.latency(nn.Conv2d(3, 4, 5))


def test_models_of_different_tasks():
    with pytest.raises(ValueError, match=r"does not take a batch of shape \(1, 4\)"):
        measure.compare_latency(nn.Linear(4, 2), nn.Linear(5, 2), shape=(4,))
