"""A lab where nothing can be kept, labs that a cell opened before, and what many moves leave in memory."""

import gc
import json
import shutil
from types import SimpleNamespace

import IPython
import ipywidgets as widgets
import pytest
import torch
from jupyter_client.manager import start_new_kernel
from torch.nn.parameter import is_lazy

import compresslab as cl
from compresslab.lab import measurements
from compresslab.lab.comparison import compare
from tests.experiments.test_journal import RESULT
from tests.lab.test_explorer import pictures, text

pytestmark = pytest.mark.slow

UNKEPT = "Nothing is kept from now on"


def unkept(lab):
    """What the page says about keeping; empty where it says nothing."""
    return lab.view.unkept.value if lab.view.unkept.layout.display is None else ""


@pytest.fixture
def no_home(tmp_path, monkeypatch):
    """A home folder that cannot be made."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESSLAB_HOME", str(tmp_path / "file" / "home"))


@pytest.mark.usefixtures("undrawn")
def test_without_a_home_a_lab_measures_and_says_that_nothing_is_kept(open_lab, no_home):
    lab = open_lab(threads=False, steps=2)
    lab.controls["share"].value = 0.9
    assert lab.error is None and list(lab.results["share"]) == [0.5, 0.5, 0.9, 0.9]
    assert UNKEPT in unkept(lab) and "COMPRESSLAB_HOME" in unkept(lab)
    lab.buttons["whole curve"].click()
    assert lab.error is None and len(lab.family()) > 9
    assert compare(lab).get_legend_handles_labels()[1]


@pytest.mark.usefixtures("undrawn")
def test_where_a_journal_can_be_written_the_page_says_nothing_of_it(open_lab):
    assert unkept(open_lab(threads=False)) == ""


@pytest.mark.usefixtures("undrawn")
def test_a_lab_goes_on_when_its_journal_can_be_written_no_longer(open_lab, tmp_path):
    lab = open_lab(threads=False, steps=2, journal=tmp_path / "gone" / "j.sqlite")
    assert unkept(lab) == ""
    shutil.rmtree(tmp_path / "gone")
    lab.controls["share"].value = 0.9
    assert lab.error is None and "share 90%" in text(lab)
    assert UNKEPT in unkept(lab) and "j.sqlite" in unkept(lab)
    assert set(lab.family()["share"]) == {0.5, 0.9}  # what was measured before is not lost


def test_a_journal_that_a_person_names_must_be_writable(open_lab, no_home, tmp_path):
    with pytest.raises(OSError, match=r"file/j.sqlite cannot be used"):
        open_lab(journal=tmp_path / "file" / "j.sqlite")


def test_a_journal_in_memory_does_what_a_file_does(no_home):
    journal, said = cl.journal.open_or_forget(), []
    journal.tell_problem(said.append)
    assert len(said) == 1
    assert journal.record(RESULT) == journal.record(RESULT) == journal.find(RESULT.key) == RESULT
    assert (
        journal.results(stage=RESULT.stage) == [RESULT]
        and journal.results(stage="one-shot") == []
        and len(journal) == 1
    )
    for number in range(3):
        journal.keep_model(str(number), bytes(3 * 2**20))  # two fit in 8 MiB
    assert [journal.find_model(name) is None for name in "012"] == [True, False, False]


HALVE = cl.techniques.Technique("halve", lambda model: cl.zero_pruning.prune(model, sparsity=0.5), ())


@pytest.fixture
def run_cell(monkeypatch, open_lab):
    """Runs a function as a notebook runs a cell: with the cell's id, as JupyterLab sends it, and an id of the run."""
    shell = SimpleNamespace(get_parent=lambda: None)
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    runs = iter(range(100))

    def run(cell, function, kind="execute_request"):
        metadata = {} if cell is None else {"cellId": cell}
        message = {"header": {"msg_type": kind, "msg_id": f"run {next(runs)}"}, "metadata": metadata}
        shell.get_parent = lambda: message
        return function()

    return run


@pytest.mark.usefixtures("undrawn")
def test_a_cell_run_again_closes_the_lab_that_it_opened_before_and_no_other(open_lab, run_cell):
    def open_two():
        return open_one(), open_one()

    def open_one():
        return open_lab(HALVE, steps=2)

    other = run_cell("b", open_one)
    unnamed = run_cell(None, open_one)
    before = run_cell("a", open_two)
    assert not any(lab._worker._closed for lab in before)  # two of one run live side by side
    assert all(lab.wait(60) for lab in before)
    after = run_cell("a", open_two)
    run_cell(None, open_one)
    run_cell("b", open_one, kind="comm_msg")  # a button's callback is no run of a cell
    assert all(lab._worker._closed and not lab._worker._thread.is_alive() for lab in before)
    assert not any(lab._worker._closed for lab in (*after, other, unnamed))
    assert len(before[0].results) >= 2  # as after `close`
    with pytest.raises(RuntimeError, match="closed"):
        before[0].controls["seed"].value = 1


@pytest.mark.usefixtures("undrawn")
def test_a_refused_call_closes_nothing(open_lab, run_cell):
    lab = run_cell("a", open_lab)
    with pytest.raises(ValueError, match="steps"):
        run_cell("a", lambda: open_lab(steps=-1))
    assert not lab._worker._closed


def test_a_discarded_lab_leaves_no_widget_and_no_figure(open_lab):
    def count(kind):
        gc.collect()
        return sum(issubclass(type(one), kind) for one in gc.get_objects())

    before = count(widgets.Widget)
    lab = open_lab(threads=False, steps=2)
    shown = pictures(lab)
    lab.discard()
    assert all(one.comm is None for one in (*shown, shown[0].layout, *lab.controls.values()))
    assert lab.view.chart.panel.figure is None and not lab.measurements._models and not lab.measurements._subjects
    assert len(lab.family()) == 1 and "share=0.5" in lab.code  # what was measured can still be asked for
    del lab, shown
    open_lab.opened.clear()
    assert count(widgets.Widget) <= before


KERNEL = """
import threading, ipywidgets, compresslab as cl
lab = cl.lab.explore("zero_pruning", steps=2)
lab.wait(300)
print([thread.name for thread in threading.enumerate()].count("compresslab lab"))
"""


def test_in_a_kernel_a_cell_run_again_leaves_one_thread(tmp_path):
    manager, client = start_new_kernel(startup_timeout=300)
    try:
        printed = [run_in_kernel(client, KERNEL, cell) for cell in ("a", "a", "b", "a")]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert printed == ["1", "1", "2", "2"]


def run_in_kernel(client, code, cell):
    """What a cell prints, run with its id in the metadata as JupyterLab sends it."""
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    message = client.session.msg("execute_request", content, metadata={"cellId": cell})
    client.shell_channel.send(message)
    printed = ""
    while True:
        answer = client.get_iopub_msg(timeout=600)
        if answer["parent_header"].get("msg_id") != message["header"]["msg_id"]:
            continue
        assert answer["msg_type"] != "error", json.dumps(answer["content"]["traceback"])
        if answer["msg_type"] == "stream":
            printed += answer["content"]["text"]
        if answer["msg_type"] == "status" and answer["content"]["execution_state"] == "idle":
            return printed.strip()


@pytest.mark.usefixtures("undrawn")
def test_many_moves_keep_few_models_and_no_gradients(open_lab, monkeypatch):
    monkeypatch.setattr(measurements, "MODEL_ROOM", 4000)
    lab = open_lab(threads=False, steps=1)

    def count_numbers():
        gc.collect()
        tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
        return sum(one.numel() for one in tensors if not is_lazy(one))  # another test may have left a lazy one

    counts = []
    for start in (0.1, 0.5):
        for step in range(7):
            lab.controls["share"].value = start + 0.05 * step
        counts.append(count_numbers())
    models = list(lab.measurements._models.values())
    assert 1 < len(models) < 7
    assert all(weight.grad is None for model in models for weight in model.parameters())
    assert counts[0] == counts[1]
