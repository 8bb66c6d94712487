"""A small problem to train on: which half of an image is bright."""

import pytest
import torch
from torch import nn


@pytest.fixture
def data():
    images = torch.rand(600, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return images, (images.flatten(1)[:, :18].sum(1) > 9).long()


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
