import pytest
import torch
from torch import nn

import compresslab as cl


@pytest.fixture(scope="module")
def data():
    images = torch.rand(600, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return cl.data.from_tensors(images, (images.flatten(1).sum(1) > 8).long())


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2)).eval()


@pytest.fixture
def journal(tmp_path):
    return cl.journal.open(tmp_path / "journal.sqlite")


@pytest.fixture
def fits(monkeypatch):
    """The keyword arguments of each training."""
    calls, fit = [], cl.train.fit
    monkeypatch.setattr(cl.train, "fit", lambda *given, **named: calls.append(named) or fit(*given, **named))
    return calls
