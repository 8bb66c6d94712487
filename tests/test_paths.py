"""Folders for what is written: who needs none asks for none, and who does says what to set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compresslab import paths

pytestmark = pytest.mark.slow

# A user whom the system does not know: no HOME, no entry in the list of users
UNKNOWN_USER = """
import pwd
def refuse(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = refuse
"""
WORK = """
import torch
from torch import nn
import compresslab as cl
import compresslab.lab, compresslab.classroom.zero_pruning

images, labels = torch.rand(90, 1, 8, 8), torch.arange(90) % 10
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
data = cl.data.from_tensors(images, labels)
small = cl.train.finetune(cl.zero_pruning.prune(model, 0.5), (images, labels), steps=1, bar=False)
small = cl.weight_sharing.share(small, bits=2)
cl.save(small, "small.clab")
assert torch.equal(cl.load("small.clab")(images), small(images))
cl.measure.measure(small, (images, labels))
next(cl.sweep.run("zero_pruning", model, data, {"sparsity": 0.5}, steps=0, journal=False, bar=False))
cl.models.pretrained("lenet_300_100", "mnist")
try:
    cl.journal.open()
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no list of users")
def test_a_user_without_a_home(tmp_path):
    hidden = ("HOME", "COMPRESSLAB_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "IPYTHONDIR", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PYTHONPATH"] = str(Path(paths.PACKAGE).parent)
    command = [sys.executable, "-W", "ignore", "-c", UNKNOWN_USER + WORK]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no home folder" in done.stdout and "COMPRESSLAB_HOME" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["small.clab"]  # no folder named "~"


def test_a_home_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("COMPRESSLAB_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(OSError, match=r"file/home cannot be made \(.*\); set COMPRESSLAB_HOME"):
        paths.home()


def test_home_is_made_at_its_first_use(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_HOME", str(tmp_path / "a" / "b"))
    assert paths.home() == tmp_path / "a" / "b" and paths.home().is_dir()
