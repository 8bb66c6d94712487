"""Bars: for long work, one at a time, in the main thread alone; the items come whatever is shown."""

import threading
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab import bars


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Everything takes long."""
    monkeypatch.setattr(bars, "DELAY", -1)
    monkeypatch.delenv("COMPRESSLAB_BARS", raising=False)


def test_a_bar_counts_and_goes(capsys):
    seen = []
    for item in bars.over("abc", "reading"):
        seen.append(item)
    shown = capsys.readouterr().err
    assert seen == ["a", "b", "c"]
    assert "reading" in shown and "1/3" in shown and shown.endswith("\r")


def test_short_work_shows_nothing(capsys, monkeypatch):
    monkeypatch.setattr(bars, "DELAY", 60)
    assert list(bars.over([1, 2], "reading")) == [1, 2]
    assert capsys.readouterr().err == ""


def test_all_can_be_hidden(capsys, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_BARS", "0")
    assert list(bars.over([1, 2], "reading")) == [1, 2]
    assert capsys.readouterr().err == ""


def test_items_without_a_length(capsys):
    assert list(bars.over(iter([1, 2]), "reading")) == [1, 2]
    assert list(bars.over(iter([1, 2]), "reading", total=2)) == [1, 2]
    shown = capsys.readouterr().err
    assert "1it" in shown and "1/2" in shown


def test_one_bar_at_a_time(capsys):
    for _ in bars.over([1, 2], "outer"):
        list(bars.over([1, 2], "inner"))
    with bars.quiet():
        list(bars.over([1, 2], "hidden"))
    list(bars.over([1, 2], "next"))
    shown = capsys.readouterr().err
    assert "outer" in shown and "next" in shown and "inner" not in shown and "hidden" not in shown


def test_after_a_break_or_an_error_bars_appear_again(capsys):
    for _ in bars.over([1, 2], "first"):
        break
    with pytest.raises(ZeroDivisionError):
        for _ in bars.over([1, 2], "second"):
            1 / 0  # noqa: B018
    list(bars.over([1, 2], "third"))
    assert "third" in capsys.readouterr().err


def test_other_threads_show_none_and_do_not_silence_the_main_one(capsys):
    def work():
        with bars.quiet():
            inside.set()
            leave.wait()
        list(bars.over([1, 2], "in a thread"))

    inside, leave = threading.Event(), threading.Event()
    worker = threading.Thread(target=work)
    worker.start()
    inside.wait()
    list(bars.over([1, 2], "main"))
    leave.set()
    worker.join()
    shown = capsys.readouterr().err
    assert "main" in shown and "thread" not in shown


def consume(count):
    return list(bars.over(range(count), "in a process"))


def test_worker_processes_show_none(capfd):
    with ProcessPoolExecutor(1) as pool:
        assert pool.submit(consume, 3).result() == [0, 1, 2]
    assert "process" not in capfd.readouterr().err


NET = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3))
IMAGES, LABELS = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


@pytest.mark.parametrize(
    ("work", "description"),
    [
        (lambda: cl.measure.accuracy(NET, (IMAGES, LABELS)), "evaluating"),
        (lambda: cl.measure.latency(NET, 1, (1, 8, 8), runs=3), "timing"),
        (lambda: cl.measure.compare_latency(NET, NET, 1, (1, 8, 8), runs=40, seconds=0), "timing"),
        (lambda: cl.measure.sizes(NET), "zipping"),
        (lambda: cl.measure.sizes(NET), "sparse rows"),
        (lambda: cl.storage.dumps(NET), "encoding tensors"),
        (lambda: cl.storage.loads(cl.storage.dumps(NET)), "reading tensors"),
        (lambda: cl.quantization.quantize(NET, bits=4), "quantizing layers"),
        (lambda: cl.quantization.quantize(NET, IMAGES, bits=4), "calibrating"),
        (lambda: cl.zero_pruning.prune(NET, 0.5), "ranking weights"),
        (lambda: cl.zero_pruning.prune(NET, 0.5), "masking layers"),
        (lambda: cl.activation_pruning.prune(NET, IMAGES, sparsity=0.3), "calibrating"),
        (lambda: cl.redundancy_pruning.prune(NET, IMAGES), "calibrating"),
        (lambda: cl.low_rank.factorize(NET, rank=2), "factorizing layers"),
        (lambda: cl.low_rank.factorize(NET, IMAGES, rank=2, method="activation"), "factorizing layers"),
        (lambda: cl.weight_sharing.share(NET, bits=3), "sharing weights"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_long_work_shows_what_it_does(work, description, capsys):
    work()
    assert f"{description}:" in capsys.readouterr().err
    with bars.quiet():
        work()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "work",
    [
        lambda data: list(
            cl.sweep.run("zero_pruning", NET, data, {"sparsity": 0.5}, steps=1, journal=False, bar=False)
        ),
        lambda data: cl.train.finetune(NET, data.train, steps=2, bar=False),
        lambda data: list(cl.zero_pruning.gradual(NET, data, (0.5,), steps=2, bar=False)),
        lambda data: cl.decide.data_type(NET, data, points=100, candidates=[{"bits": 8}], bar=False),
        lambda data: cl.allocation.scan(NET, data, "zero_pruning", [0.5], journal=False, bar=False),
        lambda data: cl.Recipe([("zero_pruning", {"sparsity": 0.5})]).table(NET, data, journal=False, bar=False),
    ],
    ids=["sweep", "training", "gradual", "decision", "scan", "recipe"],
)
@pytest.mark.filterwarnings("ignore")
def test_no_bar_beside_that_of_a_longer_task(work, capsys):
    work(cl.data.from_tensors(IMAGES.repeat(3, 1, 1, 1), LABELS.repeat(3)))
    assert capsys.readouterr().err == ""
