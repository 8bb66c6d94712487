"""The lab that a learner opens: the real technique, network and data."""

import subprocess
import sys

import pytest

import compresslab as cl
from compresslab.lab.measurements import FEWER_STEPS, STEPS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    journal = tmp_path_factory.mktemp("lab") / "journal.sqlite"
    lab = cl.lab.explore("zero_pruning", setting={"sparsity": 0.5}, steps=20, journal=journal)
    yield lab
    lab.close()


def test_a_drag_ends_at_the_newest_setting(lab):
    assert lab.wait(60)
    for percent in range(60, 91):
        lab.controls["sparsity"].value = percent / 100
    assert lab.wait(60) is True
    last = lab.results.iloc[-1]
    assert (last["sparsity"], last["stage"], last["split"]) == (0.9, "retrained", "validation")
    assert last["accuracy"] > 0.9
    assert last["file_bytes"] < 150_000
    one_shot = lab.results[(lab.results["sparsity"] == 0.9) & (lab.results["stage"] == "one-shot")]
    assert one_shot.iloc[0]["accuracy"] < last["accuracy"]


def test_the_code_reproduces_the_number_in_a_fresh_process(lab):
    lab.controls["sparsity"].value = 0.85
    assert lab.wait(60)
    last = lab.results.iloc[-1]
    printed = subprocess.run([sys.executable, "-c", lab.code], capture_output=True, text=True, check=True, timeout=120)
    accuracy, size = printed.stdout.split()
    assert (float(accuracy), int(size)) == (last["accuracy"], last["file_bytes"])


def test_the_pictures_inside_are_the_techniques(lab):
    assert lab.wait(60)
    names = list(lab.view.gallery.panels)
    assert names[0] == "weights" or "histogram" in names[0] or len(names) >= 2
    assert len(lab.view.gallery.inside.children) == len(names) - 3
    assert ".clab file" in lab.view.ledger.value


def test_the_state_is_one_line_that_opens_the_same_lab(lab):
    assert lab.state.startswith("cl.lab.explore('zero_pruning', model='lenet_300_100', data='mnist', setting={")
    again = eval(lab.state, {"cl": cl})  # noqa: S307 - the line is meant to be run
    again.close()
    assert again.state == lab.state


def test_another_network_comes_with_its_own_steps():
    lab = cl.lab.explore("zero_pruning")
    lab.close()
    assert lab.controls["steps"].value == STEPS
    with pytest.raises(RuntimeError, match="closed"):
        lab.controls["model"].value = "lenet_5"
    assert lab.controls["steps"].value == FEWER_STEPS["lenet_5"] != STEPS
