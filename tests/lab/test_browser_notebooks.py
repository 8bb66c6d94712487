"""The lab of every notebook, as the notebook opens it, in a real JupyterLab: a slider moves, a picture changes."""

import os
from pathlib import Path

import nbformat
import pytest

from tests import jupyterlab

pytestmark = pytest.mark.browser
FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


def opens_lab(cell):
    return cell.cell_type == "code" and cell.source.startswith("lab = cl.lab.explore(")


NAMES = [
    path.name
    for path in sorted(FOLDER.glob("*.ipynb"))
    if any(map(opens_lab, nbformat.read(path, 4).cells)) and path.stem != "02_zero_pruning"  # see test_browser.py
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A function that opens a notebook, cut off behind its lab, in JupyterLab, and runs it."""
    if jupyterlab.find_chromium() is None:
        if os.environ.get("COMPRESSLAB_REQUIRE_BROWSER"):
            pytest.fail("COMPRESSLAB_REQUIRE_BROWSER is set, but no Chromium was found")
        pytest.skip("no Chromium on this machine")
    folder, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("home")
    with jupyterlab.server(folder, home) as (address, token), jupyterlab.browser() as page:

        def run(name):
            content = nbformat.read(FOLDER / name, 4)
            last = next(number for number, cell in enumerate(content.cells) if opens_lab(cell))
            content.cells = content.cells[: last + 1]
            nbformat.write(content, folder / name)
            notebook = jupyterlab.Notebook(page, address, token, name)
            notebook.run_all(timeout=240_000)
            return notebook

        yield run


@pytest.mark.parametrize("name", NAMES)
def test_a_slider_moves_and_the_picture_changes(opened, name):
    notebook = opened(name)
    assert notebook.errors() == []
    assert notebook.execute("print(lab.wait(60))") == "True"
    notebook.scroll_to(".compresslab")
    control = notebook.execute("print(lab.choice.control)")
    before = notebook.execute(f"print(lab.controls[{control!r}].value)")
    at_low_end = notebook.execute(f"print(lab.controls[{control!r}].value == lab.controls[{control!r}].min)") == "True"
    notebook.watch()
    notebook.slider(control).focus()
    notebook.page.keyboard.press("ArrowRight" if at_low_end else "ArrowLeft")
    notebook.page.wait_for_function("() => window.watched.changes.length > 0", timeout=30_000)
    assert notebook.execute("print(lab.wait(60))") == "True"
    seen = notebook.watched()
    assert seen["frames"] > 0 and seen["blanks"] == 0
    assert notebook.execute(f"print(lab.controls[{control!r}].value)") != before
    assert notebook.execute("print(lab.error)") == "None"
    notebook.page.locator(".compresslab-status", has_text="against dense").first.wait_for()
    notebook.execute("lab.close()")
