"""The live lab as a person meets it: notebook 02 in a real JupyterLab, in a real browser, by keyboard and mouse."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest

from tests import jupyterlab

pytestmark = pytest.mark.browser
NOTEBOOK = "02_zero_pruning.ipynb"
ROOT = Path(__file__).resolve().parents[2]
OTHER = """
import ipywidgets
other, answer = ipywidgets.IntSlider(description="other"), ipywidgets.Label("not moved")
other.observe(lambda change: setattr(answer, "value", f"other is {change['new']}"), "value")
ipywidgets.VBox([other, answer, lab])
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """Notebook 02, run from top to bottom, with one cell more: another slider, above a second view of its lab."""
    if jupyterlab.find_chromium() is None:
        if os.environ.get("COMPRESSLAB_REQUIRE_BROWSER"):
            pytest.fail("COMPRESSLAB_REQUIRE_BROWSER is set, but no Chromium was found")
        pytest.skip("no Chromium on this machine")
    folder, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("home")
    shutil.copy(ROOT / "notebooks" / NOTEBOOK, folder)
    content = nbformat.read(folder / NOTEBOOK, 4)
    content.cells.append(nbformat.v4.new_code_cell(OTHER))
    nbformat.write(content, folder / NOTEBOOK)
    with jupyterlab.server(folder, home) as (address, token), jupyterlab.browser() as page:
        opened = jupyterlab.Notebook(page, address, token, NOTEBOOK)
        opened.run_all(timeout=240_000)
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:move-cursor-up')")
        opened.scroll_to(".widget-label:text-is('other')")
        yield opened


@pytest.fixture(autouse=True)
def known_state(notebook):
    """Every test begins with a measured 90% and few training steps."""
    notebook.execute("lab.controls['steps'].value = 20; lab.controls['sparsity'].value = 0.9")
    assert settle(notebook) == "True"


def settle(notebook):
    return notebook.execute("print(lab.wait(timeout=60))")


def sparsity(notebook):
    return float(notebook.execute("print(lab.controls['sparsity'].value)"))


def status(notebook):
    """The status line as the browser shows it; the newest view of the lab is the last."""
    return notebook.page.locator(".compresslab-status").last.inner_text()


def test_no_cell_of_the_notebook_fails(notebook):
    assert notebook.errors() == []


def test_the_keyboard_moves_a_slider_and_the_picture(notebook):
    notebook.watch()
    notebook.slider("sparsity").focus()
    for _ in range(3):
        notebook.page.keyboard.press("ArrowLeft")
        notebook.page.wait_for_timeout(150)
    assert settle(notebook) == "True"
    notebook.page.wait_for_function("() => window.watched.changes.length > 2")
    seen = notebook.watched()
    assert sparsity(notebook) == pytest.approx(0.87)
    assert seen["blanks"] == 0
    assert seen["frames"] > 0


def test_the_mouse_drags_a_slider_and_the_picture_never_blanks(notebook):
    notebook.watch()
    handle = notebook.slider("sparsity")
    box, page = handle.bounding_box(), notebook.page
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 16):
        page.mouse.move(x - 12 * step, y)
        page.wait_for_timeout(40)
    page.mouse.up()
    assert settle(notebook) == "True"
    seen = notebook.watched()
    assert sparsity(notebook) < 0.87
    assert len(seen["changes"]) >= 5
    assert seen["blanks"] == 0


def test_another_widget_answers_while_a_retraining_runs(notebook):
    notebook.execute("lab.controls['steps'].value = 1000; lab.controls['sparsity'].value = 0.95")
    notebook.page.locator(".compresslab-status", has_text="retraining").last.wait_for()
    notebook.slider("other").focus()
    notebook.page.keyboard.press("ArrowRight")
    notebook.page.wait_for_function("() => document.body.innerText.includes('other is 1')", timeout=10_000)
    assert notebook.execute("print(lab.wait(timeout=0))") == "False"  # the retraining is still running
    notebook.execute("lab.controls['steps'].value = 20")


def test_the_last_point_drawn_is_the_last_row_of_the_journal(notebook):
    notebook.execute("lab.controls['seed'].value += 1; lab.controls['sparsity'].value = 0.83")
    assert settle(notebook) == "True"
    accuracy, file_bytes, found = notebook.execute(
        "row = lab.results.iloc[-1]\n"
        "frame = cl.journal.open().to_frame()\n"
        "frame = frame[(frame.stage == 'retrained') & (frame.sparsity == 0.83) & (frame.seed == row.seed)]\n"
        "last = frame.iloc[-1]\n"
        "print(row.accuracy, row.file_bytes, (last.accuracy, last.file_bytes) == (row.accuracy, row.file_bytes))"
    ).split()
    assert found == "True"
    drawn = f"{float(accuracy):.2%}", f"{int(file_bytes) / 1024:,.1f} KiB"
    notebook.page.locator(".compresslab-status", has_text=drawn[0]).last.wait_for()
    assert drawn[1] in status(notebook)
    assert "sparsity 83%" in status(notebook)
