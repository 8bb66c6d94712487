"""Notes which notebook cell opened which labs: running a cell again closes the labs that it opened before.

This needs the id of the cell, which JupyterLab sends with every run as `cellId`; elsewhere labs stay open until they
are closed by hand.
"""

import sys
import threading
import weakref

from ipywidgets import Widget

_runs = {}  # cell's id -> (id of its newest run, the labs that this run opened)


def replace_earlier(lab: Widget) -> None:
    """Note the lab under the running cell; close those of the cell's earlier runs."""
    shell = "IPython" in sys.modules and sys.modules["IPython"].get_ipython()
    # Another thread is told the cell that runs at the moment, which need not be the one that started the thread.
    if not hasattr(shell, "get_parent") or threading.current_thread() is not threading.main_thread():
        return
    message = shell.get_parent() or {}
    header, cell = message.get("header", {}), message.get("metadata", {}).get("cellId")
    if cell is None or header.get("msg_type") != "execute_request":  # a button's callback is no run of a cell
        return
    run, labs = _runs.get(cell, (None, ()))
    if run != header["msg_id"]:
        _runs[cell] = header["msg_id"], weakref.WeakSet()
        for earlier in list(labs):
            earlier.discard()
    _runs[cell][1].add(lab)
