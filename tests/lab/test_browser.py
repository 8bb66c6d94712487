"""The live lab as a person meets it: in a real JupyterLab, in a real browser, by keyboard and mouse.

One server, one browser and one kernel serve all tests; between two notebooks the kernel forgets all names. Notebook 02
runs from the top to its lab; of the others those cells run that their labs need. Every cell of every notebook is run
by the notebooks' own checks (nbval).
"""

import ast
import os
from pathlib import Path

import nbformat
import pytest

from tests import jupyterlab

pytestmark = pytest.mark.browser
FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
OTHER = """
import ipywidgets
other, answer = ipywidgets.IntSlider(description="other"), ipywidgets.Label("not moved")
other.observe(lambda change: setattr(answer, "value", f"other is {change['new']}"), "value")
ipywidgets.VBox([other, answer, lab])
"""
LAB_ALONE = """import compresslab as cl
lab = cl.lab.explore("zero_pruning", steps=5)
lab"""
PICTURES = 7  # of each view: the curve, three of the technique, the bytes of the file, two of the damage


def opens_lab(cell):
    return cell.cell_type == "code" and cell.source.startswith("lab = cl.lab.explore(")


LABS = [path.name for path in sorted(FOLDER.glob("*.ipynb")) if any(map(opens_lab, nbformat.read(path, 4).cells))]


def names_of(cell):
    """Names that a code cell uses, and names that it makes."""
    source = "\n".join(line for line in cell.source.splitlines() if not line.startswith(("%", "!")))
    nodes = list(ast.walk(ast.parse(source)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    made = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    made |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    imported = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    made |= {(alias.asname or alias.name).split(".")[0] for alias in imported}
    return {node.id for node in names if isinstance(node.ctx, ast.Load)}, made


def cells_up_to_lab(name):
    """The cells of a notebook from the top to the one that opens its lab."""
    cells = nbformat.read(FOLDER / name, 4).cells
    return cells[: next(number for number, cell in enumerate(cells) if opens_lab(cell)) + 1]


def cells_of_lab(name):
    """The code cells of a notebook that its lab needs, the one that opens it last."""
    needed, wanted = [], set()
    for cell in reversed([cell for cell in cells_up_to_lab(name) if cell.cell_type == "code"]):
        used, made = names_of(cell)
        if not needed or made & wanted:
            needed.insert(0, cell)
            wanted = (wanted - made) | used
    return needed


class Place:
    """A JupyterLab with a kernel, and a browser that shows one notebook at a time."""

    def __init__(self, folder, address, token, page):
        self.folder, self.address, self.token, self.page = folder, address, token, page
        self.kernel = jupyterlab.start_kernel(address, token)
        self.opened = None

    def show(self, name, page=None):
        """Open a notebook that is there, in another page if one is given."""
        return jupyterlab.Notebook(page or self.page, self.address, self.token, name)

    def run(self, name, cells):
        """Write a notebook of these cells, open it instead of the one before, and run it."""
        if self.opened:
            self.opened.close()
        content = nbformat.v4.new_notebook(cells=cells)
        content.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(content, self.folder / name)
        jupyterlab.use_kernel(self.address, self.token, self.kernel, name)
        self.opened = self.show(name)
        self.opened.run_all(timeout=300_000)
        return self.opened


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    if jupyterlab.find_chromium() is None:
        if os.environ.get("COMPRESSLAB_REQUIRE_BROWSER"):
            pytest.fail("COMPRESSLAB_REQUIRE_BROWSER is set, but no Chromium was found")
        pytest.skip("no Chromium on this machine")
    folder, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("home")
    with jupyterlab.server(folder, home) as (address, token), jupyterlab.browser() as page:
        yield Place(folder, address, token, page)


def settle(notebook):
    assert notebook.execute("print(lab.wait(300), lab.error)") == "True None"


def sparsity(notebook):
    return float(notebook.execute("print(lab.controls['sparsity'].value)"))


def wait_for_changes(notebook, count=1):
    notebook.page.wait_for_function("count => window.watched.changes.length >= count", arg=count, timeout=120_000)


# A lab whose page is loaded anew, closed and opened, or shown twice, with its kernel alive.


@pytest.fixture(scope="module")
def lab_alone(place):
    """A notebook with nothing but a lab, run and saved."""
    notebook = place.run("reload.ipynb", [nbformat.v4.new_code_cell(LAB_ALONE)])
    assert notebook.errors() == []
    settle(notebook)
    notebook.wait_for_pictures(PICTURES)
    notebook.save()
    return notebook


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
    before = sparsity(moved)
    moved.slider("sparsity").focus()
    moved.page.keyboard.press("ArrowLeft")
    wait_for_changes(moved)
    settle(moved)
    assert sparsity(moved) < before
    curves = set(range(0, pictures, PICTURES))  # the first picture of each view
    for notebook in seen:
        notebook.page.wait_for_function(
            "curves => curves.every(curve => window.watched.changes.some(([time, index]) => index === curve))",
            arg=sorted(curves),
            timeout=120_000,
        )
        assert notebook.watched()["blanks"] == 0


def test_after_a_reload(lab_alone):
    assert_all_well(lab_alone)
    lab_alone.reload()
    assert_all_well(lab_alone)
    assert_a_slider_moves_the_pictures(lab_alone, lab_alone)
    assert_all_well(lab_alone)


def test_after_closing_and_opening_again(lab_alone):
    lab_alone.reopen()
    assert_all_well(lab_alone)
    assert_a_slider_moves_the_pictures(lab_alone, lab_alone)
    assert_all_well(lab_alone)


def test_in_a_second_tab(lab_alone, place):
    second = place.show(lab_alone.name, place.page.context.new_page())
    assert_all_well(lab_alone, second)
    for moved in (lab_alone, second):
        assert_a_slider_moves_the_pictures(moved, lab_alone, second)
    assert_all_well(lab_alone, second)
    second.page.close()


def test_in_a_second_view_of_the_output(lab_alone):
    lab_alone.open_output_view()
    assert_all_well(lab_alone, pictures=2 * PICTURES)
    assert_a_slider_moves_the_pictures(lab_alone, lab_alone, pictures=2 * PICTURES)
    assert_all_well(lab_alone, pictures=2 * PICTURES)


def test_slider_chart_and_status_share_one_small_screen(lab_alone):
    page = lab_alone.page
    before = page.viewport_size
    for width, height in ((1280, 720), (900, 720)):
        page.set_viewport_size({"width": width, "height": height})
        page.locator(".compresslab").first.evaluate("lab => lab.scrollIntoView({block: 'start'})")
        page.wait_for_timeout(500)
        boxes = [lab_alone.slider("sparsity"), page.locator(".compresslab-status").first]
        boxes += [page.get_by_role("button", name=name).first for name in ("whole curve", "pause", "report on test")]
        boxes += [page.locator(".compresslab-chart img").first] if width > 1000 else []
        boxes = [part.bounding_box() for part in boxes]
        assert all(box["y"] >= 0 and box["y"] + box["height"] <= height - 20 for box in boxes)
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    page.set_viewport_size(before)


def test_a_point_of_the_chart_is_read_and_pressed_by_keyboard(lab_alone):
    points = lab_alone.page.locator(".compresslab-touch circle")
    points.nth(1).focus()
    text = points.nth(1).get_attribute("aria-label")
    hint = lab_alone.page.locator(".compresslab-hint").first
    assert hint.is_visible() and hint.inner_text() == text
    lab_alone.page.keyboard.press("Enter")
    share = float(text.split("sparsity ")[1].split("%")[0]) / 100
    lab_alone.page.wait_for_timeout(500)
    settle(lab_alone)
    assert sparsity(lab_alone) == pytest.approx(share)


def test_controls_have_names_and_values_for_screen_readers(lab_alone):
    handle = lab_alone.slider("sparsity")
    assert handle.get_attribute("aria-label") == "sparsity"
    assert handle.get_attribute("aria-valuetext").endswith("%")
    assert lab_alone.page.locator(".compresslab-status").first.get_attribute("aria-live") == "polite"


def test_running_the_cell_again_replaces_its_lab_in_every_view(lab_alone):
    lab_alone.run_all(timeout=300_000)
    settle(lab_alone)
    assert_all_well(lab_alone, pictures=2 * PICTURES)
    assert_a_slider_moves_the_pictures(lab_alone, lab_alone, pictures=2 * PICTURES)
    threads = "import threading; print([thread.name for thread in threading.enumerate()].count('compresslab lab'))"
    assert lab_alone.execute(threads) == "1"
    lab_alone.save()
    lab_alone.reload()
    assert_all_well(lab_alone)


# The lab of notebook 02, with one cell more: another slider, above a second view of its lab.


@pytest.fixture(scope="module")
def notebook_02(place):
    whole = nbformat.read(FOLDER / "02_zero_pruning.ipynb", 4).cells
    cells = [*whole, nbformat.v4.new_code_cell(OTHER)]
    opened = place.run("02_zero_pruning.ipynb", cells)
    opened.page.evaluate("() => window.jupyterapp.commands.execute('notebook:move-cursor-up')")
    opened.scroll_to(".widget-label:text-is('other')")
    return opened


@pytest.fixture
def notebook(notebook_02):
    """Every test begins with a measured 90% and few training steps."""
    notebook_02.execute("lab.controls['steps'].value = 20; lab.controls['sparsity'].value = 0.9")
    settle(notebook_02)
    return notebook_02


def test_no_cell_of_the_notebook_fails(notebook):
    assert notebook.errors() == []


def test_the_keyboard_moves_a_slider_and_the_picture(notebook):
    notebook.watch()
    notebook.slider("sparsity").focus()
    for presses in range(1, 4):
        notebook.page.keyboard.press("ArrowLeft")
        wait_for_changes(notebook, presses)
    settle(notebook)
    seen = notebook.watched()
    assert len(seen["changes"]) > 2
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
        page.wait_for_timeout(40)  # the speed of a hand
    page.mouse.up()
    settle(notebook)
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
    settle(notebook)
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
    status = notebook.page.locator(".compresslab-status").last.inner_text()  # of the newest view of the lab
    assert drawn[1] in status
    assert "sparsity 83%" in status


@pytest.mark.parametrize("name", [name for name in LABS if not name.startswith("02")])
def test_a_slider_moves_and_the_picture_changes(place, name):
    notebook = place.run(name, cells_of_lab(name))
    assert notebook.errors() == []
    assert notebook.execute("print(lab.wait(60))") == "True"
    notebook.scroll_to(".compresslab")
    control = notebook.execute("print(lab.choice.control)")
    before = notebook.execute(f"print(lab.controls[{control!r}].value)")
    at_low_end = notebook.execute(f"print(lab.controls[{control!r}].value == lab.controls[{control!r}].min)") == "True"
    notebook.watch()
    notebook.slider(control).focus()
    notebook.page.keyboard.press("ArrowRight" if at_low_end else "ArrowLeft")
    wait_for_changes(notebook)
    assert notebook.execute("print(lab.wait(60))") == "True"
    seen = notebook.watched()
    assert seen["frames"] > 0 and seen["blanks"] == 0
    assert notebook.execute(f"print(lab.controls[{control!r}].value)") != before
    assert notebook.execute("print(lab.error)") == "None"
    notebook.page.locator(".compresslab-status", has_text="against dense").first.wait_for()


def test_without_its_kernel_a_lab_says_so_and_keeps_its_pictures(place):
    notebook = place.run("kernel.ipynb", [nbformat.v4.new_code_cell(LAB_ALONE)])
    settle(notebook)
    notebook.wait_for_pictures(PICTURES)
    notebook.page.evaluate(
        "() => window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.restart()"
    )
    notebook.page.locator(".compresslab-dead").first.wait_for()
    notebook.wait_for_pictures(PICTURES)
    assert notebook.broken() == 0
