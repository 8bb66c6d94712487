"""Bars: for long work, one at a time, in the main thread alone; the items come whatever is shown."""

import threading
from concurrent.futures import ProcessPoolExecutor

import pytest

from compresslab import bars


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Everything takes long."""
    monkeypatch.setattr(bars, "DELAY", -1)


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
