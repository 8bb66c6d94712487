"""Progress bars for work that takes seconds: one at a time, and none for short work.

Only the main thread of the main process shows them: widgets compute in other threads, sweeps in other processes.
COMPRESSLAB_BARS=0 hides them all, for outputs that are kept or compared.
"""

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from tqdm.auto import tqdm

DELAY = 0.5  # seconds of work before a bar appears

_quiet = 0  # loops and blocks of the main thread inside which no further bar is to appear


def over(items: Iterable, description: str, total: int | None = None) -> Iterator:
    """Iterate over items, with a bar after DELAY seconds, unless another bar stands.

    total  number of items; None for len(items), where they have one
    """
    total = len(items) if total is None and hasattr(items, "__len__") else total
    with steps(description, total) as step:
        for item in items:
            yield item
            step()


@contextlib.contextmanager
def steps(description: str, total: int | None = None) -> Iterator[Callable]:
    """Yield a function to call after each of `total` steps; it moves a bar."""
    if _quiet or not _is_main() or os.environ.get("COMPRESSLAB_BARS") == "0":
        yield lambda: None
        return
    bar, done, start = None, 0, time.monotonic()

    def step() -> None:
        """Count a step."""
        nonlocal bar, done
        done += 1
        if bar is not None:
            bar.update()
        elif time.monotonic() - start > DELAY:
            bar = tqdm(total=total, desc=description, initial=done, leave=False)

    with quiet():
        try:
            yield step
        finally:
            if bar is not None:
                bar.total = bar.n  # a bar that is cut short goes as well
                bar.close()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let no further bar appear inside: another one stands, or none is wanted."""
    global _quiet
    if not _is_main():  # where none appears anyway
        yield
        return
    _quiet += 1
    try:
        yield
    finally:
        _quiet -= 1


def _is_main():
    return threading.current_thread() is threading.main_thread() and multiprocessing.parent_process() is None
