"""Models of one's own classes, kept in this process beside the journal, whose files hold their tensors alone.

A file does not make a class again, nor the shapes that a technique has cut it to. A copy of the model as it was takes
the file's tensors; where there is none, as in a new process, the steps are done again.
"""

from collections import OrderedDict

from compresslab import layers

ROOM = 2**28  # bytes of tensors that are kept; the model that was not used for longest goes first
_kept = OrderedDict()  # key of a Result -> module


def keep(key, model):
    """Keep a model, as it is, under a key; those not used for long make room."""
    _kept[key] = model
    _kept.move_to_end(key)
    while sum(map(_bytes, _kept.values())) > ROOM:
        _kept.popitem(last=False)


def find(key):
    """A copy of the model that was kept under this key, or None."""
    if key not in _kept:
        return None
    _kept.move_to_end(key)
    return layers.duplicate(_kept[key])


def _bytes(model):
    return sum(one.numel() * one.element_size() for one in [*model.parameters(), *model.buffers()])
