"""A lab whose page is loaded anew, closed and opened, or shown twice, in a real JupyterLab, with its kernel alive."""

import os

import nbformat
import pytest

from tests import jupyterlab

pytestmark = pytest.mark.browser
NAME = "reload.ipynb"
PICTURES = 5  # of each view: the curve, three of the technique, the bytes of the file
CODE = """import compresslab as cl
lab = cl.lab.explore("zero_pruning", steps=5)
lab"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A JupyterLab with one notebook, and a browser: (address, token, page)."""
    if jupyterlab.find_chromium() is None:
        if os.environ.get("COMPRESSLAB_REQUIRE_BROWSER"):
            pytest.fail("COMPRESSLAB_REQUIRE_BROWSER is set, but no Chromium was found")
        pytest.skip("no Chromium on this machine")
    folder, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("home")
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)])
    content.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(content, folder / NAME)
    with jupyterlab.server(folder, home) as (address, token), jupyterlab.browser() as page:
        yield address, token, page


@pytest.fixture(scope="module")
def notebook(place):
    """The notebook, run and saved."""
    address, token, page = place
    opened = jupyterlab.Notebook(page, address, token, NAME)
    opened.run_all(timeout=300_000)
    assert opened.errors() == []
    settle(opened)
    opened.wait_for_pictures(PICTURES)
    opened.save()
    return opened


def settle(notebook):
    assert notebook.execute("print(lab.wait(300), lab.error)") == "True None"


def assert_all_well(*notebooks, pictures=PICTURES):
    """Every picture is there, with the text that says what it shows; nothing on the page or in the console failed."""
    for notebook in notebooks:
        notebook.wait_for_pictures(pictures)
        notebook.page.wait_for_function(
            "() => [...document.querySelectorAll('img.widget-image')].every(image => image.title)", timeout=120_000
        )
        assert notebook.broken() == 0
        assert notebook.console == []


def assert_a_slider_moves_the_pictures(moved, *seen, pictures=PICTURES):
    """A key on a slider of one page changes the curve in every view of every page."""
    for notebook in seen:
        notebook.watch()
    before = float(moved.execute("print(lab.controls['sparsity'].value)"))
    moved.slider("sparsity").focus()
    moved.page.keyboard.press("ArrowLeft")
    moved.page.wait_for_function("() => window.watched.changes.length > 0", timeout=120_000)
    settle(moved)
    assert float(moved.execute("print(lab.controls['sparsity'].value)")) < before
    curves = set(range(0, pictures, PICTURES))  # the first picture of each view
    for notebook in seen:
        notebook.page.wait_for_function(
            "curves => curves.every(curve => window.watched.changes.some(([time, index]) => index === curve))",
            arg=sorted(curves),
            timeout=120_000,
        )
        assert notebook.watched()["blanks"] == 0


def test_after_a_reload(notebook):
    assert_all_well(notebook)
    notebook.reload()
    assert_all_well(notebook)
    assert_a_slider_moves_the_pictures(notebook, notebook)
    assert_all_well(notebook)


def test_after_closing_and_opening_again(notebook):
    notebook.reopen()
    assert_all_well(notebook)
    assert_a_slider_moves_the_pictures(notebook, notebook)
    assert_all_well(notebook)


def test_in_a_second_tab(notebook, place):
    address, token, page = place
    second = jupyterlab.Notebook(page.context.new_page(), address, token, NAME)
    assert_all_well(notebook, second)
    for moved in (notebook, second):
        assert_a_slider_moves_the_pictures(moved, notebook, second)
    assert_all_well(notebook, second)
    second.page.close()


def test_in_a_second_view_of_the_output(notebook):
    notebook.open_output_view()
    assert_all_well(notebook, pictures=2 * PICTURES)
    assert_a_slider_moves_the_pictures(notebook, notebook, pictures=2 * PICTURES)
    assert_all_well(notebook, pictures=2 * PICTURES)


def test_running_the_cell_again_replaces_its_lab_in_every_view(notebook):
    notebook.run_all(timeout=300_000)
    settle(notebook)
    assert_all_well(notebook, pictures=2 * PICTURES)
    assert_a_slider_moves_the_pictures(notebook, notebook, pictures=2 * PICTURES)
    threads = "import threading; print([one.name for one in threading.enumerate()].count('compresslab lab'))"
    assert notebook.execute(threads) == "1"
    notebook.save()
    notebook.reload()
    assert_all_well(notebook)
