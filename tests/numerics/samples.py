"""What the tests of layers' inputs share."""

import torch

from compresslab.numerics import moments


def input_rows(module, inputs):
    """Return all rows that a Linear or ungrouped Conv layer is given, (rows, columns)."""
    windows = moments._windows(module, inputs)
    return torch.cat(list(moments._chosen(windows, torch.arange(moments._count(windows)))))
