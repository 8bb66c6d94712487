"""The picture of a file's bytes: everything that the file has is on it."""

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab.lab import size_table


def test_the_bars_add_up_to_the_file():
    net = cl.zero_pruning.prune(cl.models.lenet_300_100(0), sparsity=0.9)
    ledger = cl.measure.sizes(net)
    picture = size_table.make_picture(ledger)
    assert 1024 * picture.values.sum() == pytest.approx(ledger.file_bytes)
    assert picture.values.shape == (len(picture.labels), len(picture.classes))
    assert {"fc1.weight", "fc3.bias"} <= set(picture.labels) and {"positions", "values"} <= set(picture.classes)
    assert f"{ledger.file_bytes:,} bytes" in picture.caption and "positions" in picture.caption


def test_very_many_tensors_share_a_bar():
    with torch.random.fork_rng():
        net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(20)))
    ledger = cl.measure.sizes(net)
    picture = size_table.make_picture(ledger)
    assert len(picture.labels) == size_table.MOST_BARS + 1 and picture.labels[-1].endswith("others")
    assert 1024 * picture.values.sum() == pytest.approx(ledger.file_bytes)


def test_a_parameter_named_all_has_its_bar():
    net = nn.Sequential(nn.Linear(4, 4))
    net.register_parameter("all", nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(0))))
    ledger = cl.measure.sizes(net)
    picture = size_table.make_picture(ledger)
    assert {"all", "0.weight", ".header"} <= set(picture.labels)
    assert 1024 * picture.values.sum() == pytest.approx(ledger.file_bytes)
