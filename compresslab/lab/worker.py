"""The lab's worker: one job at a time, away from the notebook's own thread; the newest request wins.

A job is a function that returns a generator. At each of its yields the worker looks for a newer request and, if there
is one, closes the generator and starts the newer. Where a job yields HOLD (between two training steps) a person may
pause, step and resume it. When nothing is asked for, the worker runs background jobs, which give way at once. Without
threads (Colab shows nothing from them) the same code runs to the end inside `submit`.
"""

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import closing, contextmanager

from compresslab import bars

HOLD = "hold"
PATIENCE = 0.4  # seconds without a request before a background job starts
BREATH = 0.001  # seconds of rest in a background job: whoever waits for torch or a core comes first
WORK = 0.02  # seconds from one rest to the next

_open = weakref.WeakSet()


def threads_work() -> bool:
    """Tell if threads can show anything: not in Colab or where COMPRESSLAB_THREADS is 0."""
    return "google.colab" not in sys.modules and os.environ.get("COMPRESSLAB_THREADS", "1") != "0"


class Worker:
    """Runs jobs; see the module.

    background  function that returns the next background job, or None when there is nothing left to do
    on_error    called with the exception of a job that failed
    threaded    False runs each job to its end inside `submit`, and no background jobs
    """

    def __init__(
        self, background: Callable = lambda: None, on_error: Callable = lambda error: None, threaded: bool = True
    ):
        self.threaded, self.paused = threaded, False
        self._background, self._on_error = background, on_error
        self._changed = threading.Condition()
        self._newest = self._thread = None  # the newest job, until it begins
        self._pending, self._measured = False, True  # the newest job waits or runs; it came to its end
        self._running = self._more = self._closed = False  # more: background jobs may be left
        self._granted = 0  # steps a person asked for while paused
        _open.add(self)

    def submit(self, job: Callable) -> None:
        """Hand a job over; the one at work is cancelled at its next yield."""
        with self._changed:
            if self._closed:
                raise RuntimeError("this lab is closed; open another with cl.lab.explore(...)")
            self._newest, self._pending, self._measured = job, True, False
            self._changed.notify_all()
            if self.threaded and self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="compresslab lab", daemon=True)
                self._thread.start()
        if not self.threaded:
            with bars.quiet():  # the page has a bar of its own
                self._drain()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the newest job; return whether it came to its end in time."""
        with self._changed:
            self._changed.wait_for(lambda: not self._pending or self._closed, timeout)
            return self._measured and not self._pending

    def pause(self) -> None:
        """Hold the job at its next training step."""
        with self._changed:
            self.paused, self._granted = True, 0

    def step(self) -> None:
        """Let a held job take one training step; pauses a job that is not held."""
        with self._changed:
            self._granted = self._granted + 1 if self.paused else 0
            self.paused = True
            self._changed.notify_all()

    def resume(self) -> None:
        """Let a held job go on."""
        with self._changed:
            self.paused = False
            self._changed.notify_all()

    def close(self, timeout: float = 5) -> None:
        """Cancel what runs and wait up to `timeout` seconds for the thread to end."""
        with self._changed:
            self._closed, self._newest = True, None
            self._changed.notify_all()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _loop(self):
        while not self._closed:
            self._drain()
            with self._changed:
                self._changed.wait_for(self._called, PATIENCE)
            while self._more and not self._called() and not self.paused:
                self._more = self._run_background()
            with self._changed:
                self._changed.wait_for(lambda: self._called() or (self._more and not self.paused))

    def _called(self):
        return self._newest is not None or self._closed

    def _drain(self):
        """Run jobs until none is waiting, unless another callback is doing so."""
        with self._changed:
            if self._running:
                return
            self._running = True
        try:
            while job := self._take():
                self._finish(self._run(job))
        except BaseException:
            self._finish(False, interrupted=True)
            raise

    def _take(self):
        with self._changed:
            job, self._newest = self._newest, None
            self._running = job is not None
            return job

    def _finish(self, measured, interrupted=False):
        with self._changed:
            self._more = True
            if interrupted:
                self._running = False
            if self._newest is None:
                self._pending, self._measured = False, measured
            self._changed.notify_all()

    def _run_background(self):
        """Run a background job; return False when there is none left."""
        with self._shows_errors():
            if job := self._background():
                self._run(job, rests=True)
                return True
        return False

    def _run(self, job, rests=False):
        """Run a job until its end or a newer job; return whether it ended."""
        rested = 0.0
        with self._shows_errors(), closing(job()) as steps:
            for mark in steps:
                if mark == HOLD and self.threaded:
                    self._hold()
                if rests and time.monotonic() > rested + WORK:
                    time.sleep(BREATH)
                    rested = time.monotonic()
                if self._called():
                    return False
            return True
        return False

    def _hold(self):
        """Wait while paused, until a step is granted or a newer job comes."""
        with self._changed:
            self._changed.wait_for(lambda: not self.paused or self._granted or self._called())
            self._granted = max(0, self._granted - 1)

    @contextmanager
    def _shows_errors(self):
        """Hand on any exception, whatever a technique raises; the worker outlives a display that fails."""
        try:
            yield
        except Exception as error:
            try:
                self._on_error(error)
            except Exception:
                logging.getLogger(__name__).exception("could not show %r", error)


@atexit.register
def _close_all():
    for worker in list(_open):
        worker.close(timeout=2)
