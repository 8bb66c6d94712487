"""Functions compiled by numba; the machine code of those called from Python is kept on disk where that is possible."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import numba

_OPTIONS = {"nogil": True, "error_model": "numpy"}
_PACKAGE = Path(__file__).parent


def compiled(function: Callable) -> Callable:
    """Compile a function at its first call."""
    return numba.njit(**_OPTIONS)(function)


def kept_on_disk(function: Callable) -> Callable:
    """Compile a function at its first call, and keep the machine code for the next process.

    It is compiled fresh where there is no folder for it, the disk is full, or what was kept is damaged.
    """
    fresh = compiled(function)
    if not _has_place():
        return fresh
    try:
        current = numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # numba found no folder that it may write to
        return fresh

    @functools.wraps(function)
    def call(*arguments: object) -> object:
        """Call the compiled function; compile it afresh where what was kept is damaged."""
        nonlocal current
        try:
            return current(*arguments)
        except IndexError:  # of the function itself, where NUMBA_BOUNDSCHECK=1
            raise
        except Exception:  # from reading or keeping machine code, before it ran: damaged files raise errors of any type
            current = fresh
        return fresh(*arguments)

    return call


def _has_place():
    """Whether numba would not make a folder named "~": without a home, it has the package's own folder alone."""
    try:
        Path.home()
    except RuntimeError:  # neither HOME nor an entry in the list of users
        places = [place for place in (_PACKAGE, _PACKAGE / "__pycache__") if place.exists()]
        return all(os.access(place, os.W_OK) for place in places)
    return True
