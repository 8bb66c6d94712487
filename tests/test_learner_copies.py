"""What learners open: no solution can be read in it, it runs to its end, and nobody's work is overwritten."""

import builtins
import copy
import dis
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import v4

from scripts import learner_copies
from scripts.learner_copies import Copies, make_copy, strip_source

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "notebooks"
NAMES = sorted(path.name for path in SOURCES.glob("*.ipynb"))
SOLUTION = re.compile(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", re.DOTALL)


@pytest.fixture(scope="module")
def learn(tmp_path_factory):
    """The folder of the copies of this checkout's notebooks, where it would lie."""
    checkout = tmp_path_factory.mktemp("a checkout")
    (checkout / "notebooks").symlink_to(SOURCES)
    (checkout / "data").symlink_to(ROOT / "data")
    Copies(SOURCES, checkout / "learn").update()
    return checkout / "learn"


def graded(notebook, kind):
    return [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get(kind)]


def solution_lines(notebook):
    """Lines that only a solution has; what is too short to give anything away is left out."""
    regions = [region for cell in notebook.cells for region in SOLUTION.findall(cell.source)]
    return {line.strip() for region in regions for line in region.splitlines() if len(line.strip()) > 12}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_solution_can_be_read_in_a_copy(learn, name):
    source, made = nbformat.read(SOURCES / name, 4), nbformat.read(learn / name, 4)
    nbformat.validate(made)
    text = "\n".join(cell.source for cell in made.cells) + json.dumps([cell.metadata for cell in made.cells])
    assert solution_lines(source)
    assert [line for line in solution_lines(source) if line in text] == []
    assert "SOLUTION" not in text and "NBVAL" not in text
    for cell in made.cells:
        assert set(cell.metadata) <= {"nbgrader", "tags"}
        assert cell.cell_type != "code" or (cell.outputs, cell.execution_count) == ([], None)
    assert set(made.metadata) <= {"kernelspec", "language_info"}


@pytest.mark.parametrize("name", NAMES)
def test_all_but_the_cells_that_only_test_is_there(learn, name):
    source, made = nbformat.read(SOURCES / name, 4), nbformat.read(learn / name, 4)
    assert [cell.id for cell in made.cells] == [
        cell.id for cell in source.cells if "test" not in cell.metadata.get("tags", [])
    ]
    assert [cell.metadata.nbgrader for cell in graded(made, "grade")] == [
        cell.metadata.nbgrader for cell in graded(source, "grade")
    ]
    for cell in made.cells:
        if cell.cell_type == "code":
            compile(cell.source, name, "exec")
    assert ["code", "code"] not in [
        [cell.cell_type for cell in made.cells[start : start + 2]] for start in range(len(made.cells) - 1)
    ]


def names(code, *operations):
    """Names that these bytecode operations of a code object use, functions inside it included."""
    used = {instruction.argval for instruction in dis.get_instructions(code) if instruction.opname in operations}
    return used.union(*(names(inner, *operations) for inner in code.co_consts if hasattr(inner, "co_code")))


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_of_a_copy_needs_a_solution_or_a_cell_that_was_left_out(learn, name):
    defined = {*dir(builtins)}
    for cell in nbformat.read(learn / name, 4).cells:
        if cell.cell_type == "code":
            compiled = compile(cell.source, name, "exec")
            defined |= names(compiled, "STORE_NAME", "STORE_GLOBAL")
            assert names(compiled, "LOAD_NAME", "LOAD_GLOBAL") <= defined, cell.id


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere_from_the_copy(learn, name):
    for cell in nbformat.read(learn / name, 4).cells:
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\(([^)#\s]+)", cell.source):
                assert re.match(r"https?:|attachment:", link) or (learn / link).exists(), link


def code(source, **metadata):
    return v4.new_code_cell(source, metadata=metadata)


EXERCISE = {"solution": True, "grade": False, "grade_id": "a", "locked": False, "schema_version": 3, "task": False}
STRIPPED = {
    "in a function": (
        code(
            "def f(x):\n    '''Twice.'''\n    ### BEGIN SOLUTION\n    y = 2 * x\n\n    return y\n    ### END SOLUTION"
        ),
        "def f(x):\n    '''Twice.'''\n    ...  # your code here",
    ),
    "two, and code behind": (
        code(
            "a = None\n### BEGIN SOLUTION\na = 1\n### END SOLUTION\n"
            "if a:\n    #BEGIN SOLUTION\n    b\n    #END SOLUTION\nc"
        ),
        "a = None\n# your code here\nif a:\n    ...  # your code here\nc",
    ),
    "hidden tests": (code("check(f)\n### BEGIN HIDDEN TESTS\nassert f\n### END HIDDEN TESTS"), "check(f)"),
    "a solution cell without a region": (code("a = 42", nbgrader=EXERCISE), "# your code here"),
    "an answer in words": (
        v4.new_markdown_cell("Why?\n### BEGIN SOLUTION\nSo.\n### END SOLUTION"),
        "Why?\n*Your answer here.*",
    ),
    "the marker of nbval": (code("# NBVAL_CHECK_OUTPUT\nprint(1)\n# NBVAL_SKIP"), "print(1)"),
    "a link to a source": (v4.new_markdown_cell("[02](../notebooks/02_x.ipynb#a)"), "[02](02_x.ipynb#a)"),
}


@pytest.mark.parametrize("cell, expected", STRIPPED.values(), ids=STRIPPED.keys())
def test_solutions_become_stubs_that_run(cell, expected):
    assert strip_source(cell) == expected


@pytest.mark.parametrize("source", ["### BEGIN SOLUTION\na", "a\n### END SOLUTION", "### BEGIN HIDDEN TESTS"])
def test_half_a_region_is_refused_rather_than_handed_out(source):
    with pytest.raises(ValueError, match="BEGIN or END without its counterpart"):
        strip_source(code(source))


def test_metadata_outputs_and_cells_with_solutions_stay_behind():
    ran = code("1", nbgrader={**EXERCISE, "answer": "secret"}, answer="secret", tags=["nbval-check-output", "mine"])
    ran.update(execution_count=3, outputs=[v4.new_output("stream", text="secret")])
    notebook = v4.new_notebook(
        cells=[ran, code("secret", tags=["solution"]), v4.new_markdown_cell("secret", metadata={"tags": ["test"]})],
        metadata={"widgets": {"state": "secret"}, "kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    before = copy.deepcopy(notebook)
    made = make_copy(notebook)
    assert notebook == before
    assert "secret" not in json.dumps(made)
    assert made["cells"][0]["metadata"]["tags"] == ["mine", "raises-exception"]


@pytest.fixture
def copies(tmp_path):
    """A function that reads a workbook of two notebooks and a picture anew, as the next `make lab` does."""
    sources = tmp_path / "my work" / "notebooks"
    (sources / "pictures").mkdir(parents=True)
    (sources / ".ipynb_checkpoints").mkdir()
    for name in ("01_one", "02_two"):
        change_source(sources / f"{name}.ipynb", "first")
    shutil.copy(sources / "01_one.ipynb", sources / ".ipynb_checkpoints/01_one-checkpoint.ipynb")
    (sources / "pictures/bytes.svg").write_text("<svg/>")
    (sources / "compresslab-zero_pruning.csv").write_text("a\n1\n")
    return lambda: Copies(sources, tmp_path / "my work" / "learn")


def change_source(path, text):
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell(f"'{text}'", id="only")]), path)


def test_copies_are_made_once_with_the_files_beside_them(copies):
    (news,) = copies().update()
    assert news == "learn/ has your copies now: 01_one.ipynb, 02_two.ipynb, pictures/bytes.svg"
    made = copies().folder
    assert sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()) == [
        *(".made.json", "01_one.ipynb", "02_two.ipynb", "pictures/bytes.svg")
    ]
    assert copies().update() == []


def test_a_source_that_changes_reaches_a_copy_that_was_never_touched(copies):
    copies().update()
    change_source(copies().sources / "01_one.ipynb", "second")
    assert copies().update() == ["made anew, since the workbook has changed and you had not: 01_one.ipynb"]
    assert "second" in (copies().folder / "01_one.ipynb").read_text()


def run_only(path):
    notebook = nbformat.read(path, 4)
    notebook.cells[0].outputs, notebook.cells[0].execution_count = [v4.new_output("stream", text="mine")], 1
    nbformat.write(notebook, path)


def edit(path):
    path.write_text(path.read_text().replace("first", "mine"))


def damage(path):
    path.write_text("mine")


@pytest.mark.parametrize("touch", [run_only, edit, damage], ids=lambda touch: touch.__name__)
@pytest.mark.parametrize("record_is_lost", [False, True], ids=["recorded", "record lost"])
def test_work_is_never_overwritten(copies, touch, record_is_lost):
    copies().update()
    path = copies().folder / "01_one.ipynb"
    touch(path)
    work = path.read_bytes()
    if record_is_lost:
        copies().record.unlink()
    else:
        assert copies().update() == []
    change_source(copies().sources / "01_one.ipynb", "second")
    news = copies().update()
    assert path.read_bytes() == work and b"mine" in work
    assert news == [
        "01_one.ipynb has changed since you began; yours is kept. "
        "For the new one, and yours beside it: make reset NOTEBOOK=01_one"
    ]


def test_a_record_that_cannot_be_read_counts_everything_as_edited(copies):
    copies().update()
    copies().record.write_text("[]")
    change_source(copies().sources / "01_one.ipynb", "second")
    assert "yours is kept" in copies().update()[0]
    copies().record.write_text("{torn")
    assert "yours is kept" in copies().update()[0]


@pytest.mark.parametrize("wanted", ["01", "01_one", "01_one.ipynb", "learn/01_one.ipynb", " notebooks/01_one "])
def test_a_reset_lays_work_beside_a_new_copy(copies, wanted):
    copies().update()
    path = copies().folder / "01_one.ipynb"
    made = path.read_bytes()
    for beside in ("01_one-before-reset.ipynb", "01_one-before-reset-2.ipynb"):
        edit(path)
        work = path.read_bytes()
        assert f"learn/01_one.ipynb is new; yours lies beside it, as {beside}." in copies().reset(wanted)
        assert path.read_bytes() == made
        assert path.with_name(beside).read_bytes() == work
    assert "beside" not in copies().reset(wanted)  # it was not touched
    assert copies().update() == []


@pytest.mark.parametrize("wanted", ["", "0", "three", "pictures/bytes.svg"], ids=repr)
def test_a_reset_of_no_notebook_names_those_there_are(copies, wanted):
    copies().update()
    with pytest.raises(ValueError, match="NOTEBOOK is .*; give one of 01_one, 02_two"):
        copies().reset(wanted)


def test_a_broken_source_is_named_and_nothing_is_written(copies):
    (copies().sources / "02_two.ipynb").write_text("{")
    with pytest.raises(ValueError, match="02_two.ipynb cannot be copied"):
        copies().update()
    assert not copies().folder.exists()


def test_where_nothing_can_be_written_a_sentence_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(learner_copies, "ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    change_source(tmp_path / "notebooks/01_one.ipynb", "first")
    (tmp_path / "learn").write_text("a file where the folder should be")
    sentence = learner_copies.main([])
    assert re.match(r"compresslab: the learner's copies cannot be written \(.*learn.*\)\. Put the checkout", sentence)
    (tmp_path / "learn").unlink()
    assert learner_copies.main([]) is None
    assert learner_copies.main(["--reset", "01"]) is None
    assert "learn/01_one.ipynb is new" in capsys.readouterr().out
    assert "NOTEBOOK is 'x'" in learner_copies.main(["--reset", "x"])


def test_working_and_saving_leaves_git_status_clean(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    if shutil.which("git") is None:
        pytest.skip("no git on this machine")
    git("init", "-q")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    change_source(tmp_path / "01_one.ipynb", "first")
    git("add", ".")
    git("commit", "-qm", "a")
    Copies(SOURCES, tmp_path / "learn").update()
    written = ["learn/Untitled.ipynb", "learn/.ipynb_checkpoints/a.ipynb", "learn/x.csv", "learn/small.clab"]
    written += [".ipynb_checkpoints/a.ipynb", "notebooks/compresslab-zero_pruning.csv", "notebooks/small.clab"]
    for name in written:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert git("status", "--porcelain") == ""


def scored(cell):
    """Points that nbgrader 0.9.6 gives a cell: 0 for an error, the number that it ends with, else all of them."""
    points = cell.metadata.nbgrader.points
    for output in cell.outputs:
        if output.output_type == "error" or output.get("name") == "stderr":
            return 0
        if output.output_type == "execute_result":
            return float(output.data["text/plain"])
    return points


def run(notebook, folder):
    NotebookClient(notebook, timeout=600, startup_timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return graded(notebook, "grade")


def test_a_copy_runs_to_its_end_and_open_exercises_score_nothing(learn):
    notebook = nbformat.read(learn / "05_low_rank.ipynb", 4)
    for cell in notebook.cells:
        cell.metadata.pop("tags", None)  # nothing may raise, tolerated or not
    checks = run(notebook, learn)
    assert len(checks) >= 3
    for cell in checks:
        box = cell.outputs[0].data
        assert "not answered yet" in box["text/plain"] and "border" in box["text/html"]
        assert scored(cell) == 0


def test_answers_that_fail_get_words_and_do_not_stop_the_rest(learn):
    notebook = nbformat.read(learn / "00_honest_meter.ipynb", 4)
    setup, exercises = notebook.cells[2], [*graded(notebook, "solution"), *graded(notebook, "grade")]
    notebook.cells = [setup, *[cell for cell in notebook.cells if cell in exercises]]
    answers = {
        "file-bytes": "def file_bytes(shapes):\n    return 1 / 0",
        "halving": "def halving_batch_size(times)\n    return 1",  # a syntax error
        "apart": "1 / 0",
        "pareto": "def pareto(points):\n"
        "    return [p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)]",
    }
    for cell in graded(notebook, "solution"):
        cell.source = answers[cell.metadata.nbgrader.grade_id]
    failing, _, _, right = run(notebook, learn)
    assert "stopped with ZeroDivisionError" in failing.outputs[0].data["text/plain"]
    assert [output.output_type for output in failing.outputs] == ["display_data", "execute_result"]
    assert [scored(cell) for cell in graded(notebook, "grade")] == [0, 0, 0, right.metadata.nbgrader.points]


def test_the_script_needs_nothing_but_python():
    """It runs at every `make lab`, so it must not wait for the package or for nbformat to be imported."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); import learner_copies; print(*sys.modules)"
    arguments = [sys.executable, "-c", program, str(ROOT / "scripts")]
    loaded = subprocess.run(arguments, capture_output=True, text=True, check=True, env=os.environ).stdout.split()
    assert not {"nbformat", "torch", "compresslab"} & set(loaded)
