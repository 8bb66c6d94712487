import time

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab import techniques
from compresslab.lab import canvas


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A journal, a calibration and a working folder of the test's own."""
    monkeypatch.setenv("COMPRESSLAB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture(scope="session")
def tiny_data():
    """600 images of 4 x 4 in 3 classes that a small network learns."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    images = torch.rand(600, 1, 4, 4, generator=generator) + torch.eye(3)[labels].repeat(1, 6)[:, :16].view(
        600, 1, 4, 4
    )
    return cl.data.from_tensors(images, labels, seed=0)


@pytest.fixture(scope="session")
def tiny_model(tiny_data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    return cl.train.finetune(model, tiny_data.train, steps=60, precision="fp32", bar=False).eval()


def zero(model, share=0.5, limit=None, at_random=False, mode="all", seed=0):
    """Pruning as a person outside the package would write it."""
    if share == 0.75:
        raise ValueError("share is 0.75, which this technique cannot do")
    amount = {"sparsity": share} if limit is None else {"threshold": limit}
    return cl.zero_pruning.prune(model, criterion="random" if at_random else "magnitude", seed=seed, **amount)


def look(model, compressed, setting):
    weight = model[1].weight.detach()
    cut = setting.get("limit", setting.get("share", 0) / 4)
    return [
        techniques.Picture("weights", "histogram", weight.numpy().ravel(), "Weights", "What is cut.", cut=cut),
        techniques.Picture("first", "images", compressed[1].weight.detach().view(12, 4, 4).numpy(), "First layer"),
    ]


@pytest.fixture
def technique():
    """A technique from outside the package, with every kind of control."""
    return techniques.Technique(
        name="zero",
        apply=zero,
        controls=(
            techniques.Control("share", 0.5, 0.0, 1.0, 0.05, unit="%", alternative="amount", help="How many go."),
            techniques.Control("limit", 0.1, 0.0, 0.5, 0.01, alternative="amount"),
            techniques.Control("at_random", False),
            techniques.Control("mode", "all", choices=("all", "both")),
        ),
        fair_controls={"random": {"at_random": True}},
        anatomy=look,
    )


@pytest.fixture
def open_lab(technique, tiny_model, tiny_data):
    """Opens labs of the tiny technique, model and data, and closes them at the end."""
    opened = []

    def open_one(technique=technique, model=tiny_model, data=tiny_data, steps=8, **options):
        opened.append(cl.lab.explore(technique, model=model, data=data, steps=steps, **options))
        return opened[-1]

    open_one.opened = opened
    yield open_one
    for lab in opened:
        lab.close()


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out the drawing, which takes most of the time, in tests that say nothing about pictures."""
    for name in ("draw", "move"):
        monkeypatch.setattr(canvas.Panel, name, lambda panel, *arguments, **options: None)


def until(condition, seconds=30):
    """Wait until a condition holds, and say whether it does."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()
