"""Notes which notebook cell opened which labs: running a cell again closes the labs that it opened before.

This needs the id of the cell, which JupyterLab sends with every run as `cellId`; elsewhere labs stay open until they
are closed by hand.
"""

import sys
import threading
import weakref

from ipywidgets import Widget

_runs = {}  # cell's id -> (id of its newest run, the labs that this run opened)


def close_earlier() -> None:
    """Close the labs that earlier runs of the running cell opened."""
    cell, run = _find_running_cell()
    if cell is not None and _runs.get(cell, (run,))[0] != run:
        for lab in list(_runs.pop(cell)[1]):
            lab.discard()


def remember(lab: Widget) -> None:
    """Note that the running cell opened this lab."""
    cell, run = _find_running_cell()
    if cell is not None:
        _runs.setdefault(cell, (run, weakref.WeakSet()))[1].add(lab)


def _find_running_cell():
    """Return the ids of the running cell and of this run, or (None, None)."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    # Another thread is told the cell that runs at the moment, which need not be the one that started the thread.
    if not hasattr(shell, "get_parent") or threading.current_thread() is not threading.main_thread():
        return None, None
    message = shell.get_parent() or {}
    header, metadata = message.get("header", {}), message.get("metadata", {})
    cell = metadata.get("cellId") if header.get("msg_type") == "execute_request" else None
    return (cell, header.get("msg_id")) if cell else (None, None)
