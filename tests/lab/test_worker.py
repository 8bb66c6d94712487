import sys
import threading
import time

import pytest

from compresslab.lab import worker as workers
from compresslab.lab.worker import HOLD, Worker
from tests.lab.conftest import until


@pytest.fixture
def make():
    """Makes workers, and closes them at the end."""
    made = []

    def make_one(**options):
        made.append(Worker(**options))
        return made[-1]

    yield make_one
    for worker in made:
        worker.close()


class Log:
    """Jobs that write down what they do; a job waits at `gate` before its second step."""

    def __init__(self):
        self.lines, self.gate = [], threading.Event()

    def job(self, name, steps=3, waits=False):
        def run():
            try:
                for step in range(steps):
                    self.lines.append((name, step))
                    if waits and step == 0:
                        self.gate.wait(10)
                    yield HOLD
                self.lines.append((name, "end"))
            finally:
                self.lines.append((name, "closed"))

        return run

    def ended(self):
        return [name for name, what in self.lines if what == "end"]


def test_a_job_runs_to_its_end(make):
    log, worker = Log(), make()
    worker.submit(log.job("a"))
    assert worker.wait(5) is True
    assert log.lines == [("a", 0), ("a", 1), ("a", 2), ("a", "end"), ("a", "closed")]


def test_of_many_jobs_the_newest_wins_and_the_rest_is_cancelled(make):
    log, worker = Log(), make()
    worker.submit(log.job(0, waits=True))
    assert until(lambda: log.lines)
    for number in range(1, 13):
        worker.submit(log.job(number))
    log.gate.set()
    assert worker.wait(5) is True
    assert log.ended() == [12]
    assert (0, 1) not in log.lines
    assert [name for name, what in log.lines if what == "closed"] == [0, 12]


def test_jobs_handed_over_by_many_threads_lose_none_but_older_ones(make):
    log, worker = Log(), make()
    threads = [threading.Thread(target=worker.submit, args=[log.job(number)]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.submit(log.job("last"))
    assert worker.wait(5)
    assert log.ended()[-1] == "last"


def test_wait_gives_up_at_the_timeout_and_counts_only_the_newest(make):
    log, worker = Log(), make()
    worker.submit(log.job("slow", waits=True))
    assert worker.wait(0.05) is False
    worker.submit(log.job("quick"))
    assert worker.wait(0.05) is False
    log.gate.set()
    assert worker.wait(5) is True
    assert log.ended() == ["quick"]


def test_wait_is_true_where_nothing_was_asked_for(make):
    assert make().wait(0) is True


def test_an_error_is_handed_on_and_the_worker_lives(make):
    problems, log = [], Log()
    worker = make(on_error=problems.append)

    def broken():
        yield
        raise ValueError("rank is 0")

    worker.submit(broken)
    assert worker.wait(5) is False
    assert [str(problem) for problem in problems] == ["rank is 0"]
    worker.submit(log.job("after"))
    assert worker.wait(5) is True


def test_a_job_that_fails_before_its_first_step_is_an_error_too(make):
    problems = []
    worker = make(on_error=problems.append)
    worker.submit(lambda: 1 / 0)
    assert worker.wait(5) is False
    assert isinstance(problems[0], ZeroDivisionError)


def test_the_worker_outlives_a_display_that_fails(make):
    def fails(problem):
        raise RuntimeError("no display")

    log, worker = Log(), make(on_error=fails)
    worker.submit(lambda: 1 / 0)
    assert worker.wait(5) is False
    worker.submit(log.job("after"))
    assert worker.wait(5) is True


def test_pause_step_and_resume(make):
    log, worker = Log(), make()
    worker.pause()
    worker.submit(log.job("a", steps=4))
    assert until(lambda: log.lines == [("a", 0)])
    assert worker.wait(0.05) is False
    worker.step()
    assert until(lambda: log.lines == [("a", 0), ("a", 1)])
    time.sleep(0.03)
    assert len(log.lines) == 2
    worker.resume()
    assert worker.wait(5) is True
    assert log.ended() == ["a"]


def test_step_pauses_a_job_that_runs(make):
    log, worker = Log(), make()
    worker.step()
    worker.submit(log.job("a"))
    assert worker.wait(0.05) is False
    assert worker.paused
    assert log.lines == [("a", 0)]


def test_a_newer_job_takes_over_from_a_paused_one(make):
    log, worker = Log(), make()
    worker.pause()
    worker.submit(log.job("old"))
    assert until(lambda: log.lines)
    worker.submit(log.job("new"))
    worker.resume()
    assert worker.wait(5) is True
    assert log.ended() == ["new"]


def test_background_jobs_run_when_idle_and_give_way(make, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.01)
    log, waiting = Log(), []
    worker = make(background=lambda: waiting.pop() if waiting else None)
    waiting += [log.job("behind"), log.job("before", waits=True)]
    worker.submit(log.job("asked"))
    assert worker.wait(5)
    assert until(lambda: ("before", 0) in log.lines)
    worker.submit(log.job("asked again"))
    log.gate.set()
    assert worker.wait(5) is True
    assert until(lambda: "behind" in log.ended())
    assert log.ended() == ["asked", "asked again", "behind"]


def test_a_background_that_fails_is_shown_and_not_asked_again_until_the_next_job(make, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.01)
    problems, asked = [], []

    def background():
        asked.append(1)
        raise ValueError("no curve")

    worker = make(background=background, on_error=problems.append)
    worker.submit(Log().job("asked"))
    assert until(lambda: problems)
    time.sleep(0.05)
    assert len(asked) == len(problems) == 1


def test_without_threads_a_job_ends_inside_submit(make):
    log, worker = Log(), make(threaded=False)
    worker.pause()
    worker.submit(log.job("a"))
    assert log.ended() == ["a"]
    assert worker.wait(0) is True


def test_without_threads_a_job_that_asks_for_another_is_cancelled_by_it(make):
    log, worker = Log(), make(threaded=False)

    def asks():
        worker.submit(log.job("newer"))
        yield
        log.lines.append(("asks", "end"))

    worker.submit(asks)
    assert log.ended() == ["newer"]


def test_an_interrupt_without_threads_reaches_the_notebook_and_the_worker_goes_on(make):
    log, worker = Log(), make(threaded=False)

    def interrupted():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        worker.submit(interrupted)
    assert worker.wait(0) is False
    worker.submit(log.job("after"))
    assert worker.wait(0) is True


def test_a_closed_worker_stops_and_takes_no_more(make):
    log, worker = Log(), make()
    worker.submit(log.job("a", waits=True))
    assert until(lambda: log.lines)
    log.gate.set()
    worker.close()
    assert threading.active_count() == 1 or not any(t.name == "compresslab lab" for t in threading.enumerate())
    with pytest.raises(RuntimeError, match="closed"):
        worker.submit(log.job("b"))


@pytest.mark.parametrize(
    ("variable", "module", "expected"), [("1", False, True), ("0", False, False), ("1", True, False)]
)
def test_where_threads_show_something(variable, module, expected, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_THREADS", variable)
    if module:
        monkeypatch.setitem(sys.modules, "google.colab", object())
    assert workers.threads_work() is expected
