"""The notebooks keep to their template, and are stored as a reader and nbval need them.

Whether their cells run, and print what they say they print, is nbval's part.
"""

import re
import statistics
from collections import Counter
from pathlib import Path

import nbformat
import pytest

import compresslab as cl

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
SECTIONS = [  # in this order, each a heading of the second level
    *("Setup", "Predict", "The idea", "The same from the package", "On the model", "Explore"),
    *("Accuracy versus size", "Which size, which speed", "Exercises"),
    *("What to remember", "Questions people ask", "Sources"),
]
TEACHING_CELL = {"grade_id", "grade", "solution", "locked", "schema_version", "task"}
CHECKED = "# NBVAL_CHECK_OUTPUT"
FRAGILE = re.compile(r"\d+\.\d{3,}|\b\d+(\.\d+)?\s*(µs|ms|s|seconds)\b|%\|")  # raw floats, times, progress bars


@pytest.fixture(scope="module", params=NAMES)
def notebook(request):
    return nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def graded(notebook):
    return [cell for cell in notebook.cells if "nbgrader" in cell.metadata]


def printed(cell):
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def position(cells, text):
    return next(number for number, cell in enumerate(cells) if text in cell.source)


def test_the_first_notebooks_are_there():
    assert {"00_honest_meter", "02_zero_pruning"} <= set(NAMES)


def test_it_is_valid_and_opens_with_any_python_3_kernel(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids))


def test_it_opens_with_a_title_one_question_what_one_learns_minutes_and_what_to_know(notebook):
    first = notebook.cells[0].source
    assert re.match(r"# \w", first)
    assert first.count("?") == 1
    assert "you can\n" in first and len(re.findall(r"^- ", first, re.M)) >= 3
    assert re.search(r"About \d+ minutes", first)
    assert re.search(r"should know|first:", first)


def test_its_sections_are_those_of_the_template_in_order(notebook):
    assert re.findall(r"^## (.+)$", prose(notebook), re.M) == SECTIONS
    assert len(re.findall(r"^# ", prose(notebook), re.M)) == 1


def test_every_code_cell_has_prose_before_it(notebook):
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown"
    assert ["code", "code"] not in [kinds[start : start + 2] for start in range(len(kinds) - 1)]


def test_prose_and_code_are_in_proportion(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    assert max(lengths) <= 20
    assert 3 <= statistics.median(lengths) <= 6
    assert 30 <= len(prose(notebook).split()) / len(lengths) <= 60


def test_the_setup_imports_three_things_and_fixes_a_seed(notebook):
    setup = code_cells(notebook)[0].source
    assert len(re.findall(r"^(?:import|from) ", setup, re.M)) == 3
    assert "import compresslab as cl" in setup
    assert "manual_seed" in setup


def test_it_was_run_from_top_to_bottom_without_an_error(notebook):
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def test_it_is_the_same_on_every_machine_and_for_every_person(notebook):
    text = nbformat.writes(notebook)
    assert not re.search(r"(?<![\w.:/])/(?:home|Users|root|tmp|work|opt|usr)/", text)
    assert "C:\\\\" not in text


def test_a_guess_comes_before_the_lab_and_is_compared_afterwards(notebook):
    cells = code_cells(notebook)
    (guesses,) = [cell for cell in cells if cell.source.startswith("guess")]
    names = re.findall(r"^(guess\w+) =", guesses.source, re.M)
    assert names
    explored = position(cells, "cl.lab.explore(")
    assert cells.index(guesses) < explored
    later = "\n".join(cell.source for cell in cells[explored:])
    assert all(name in later for name in names)


def test_the_lab_has_its_cell_and_the_next_one_moves_every_control_to_both_ends(notebook):
    cells = code_cells(notebook)
    labs = [number for number, cell in enumerate(cells) if "cl.lab.explore(" in cell.source]
    assert labs
    for number in labs:
        name, _ = cells[number].source.split(" = cl.lab.explore(")
        assert cells[number].source.splitlines()[1:] == [name]
        ends = cells[number + 1]
        assert ends.source.startswith(CHECKED)
        assert f"{name}.controls.items()" in ends.source
        assert "control.min, control.max" in ends.source and "control.options" in ends.source
        assert f"{name}.wait(timeout=60)" in ends.source
        told = re.findall(r"^(\w+) measured at both ends: (\w+)$", printed(ends), re.M)
        assert {"model", "data", "steps", "seed"} < {control for control, _ in told}
        assert {done for _, done in told} == {"True"}


def test_what_nbval_compares_is_words_and_rounded_numbers(notebook):
    compared = [cell for cell in code_cells(notebook) if CHECKED in cell.source]
    assert len(compared) >= 3
    for cell in compared:
        assert printed(cell)
        assert not FRAGILE.search(printed(cell)), printed(cell)


def test_misconceptions_are_met_by_a_measurement(notebook):
    cells = notebook.cells
    heard = [number for number, cell in enumerate(cells) if "> **Heard often:**" in cell.source]
    assert len(heard) >= 3
    for number in heard:
        assert cells[number + 1].cell_type == "code"
        assert "cl.measure." in cells[number + 1].source or "NBVAL" in cells[number + 1].source


def test_every_exercise_is_a_stub_with_its_length_and_a_check(notebook):
    number = int(re.match(r"\d+", code_name(notebook)).group())
    cells = graded(notebook)
    solutions, checks = cells[::2], cells[1::2]
    assert len(solutions) == len(checks) >= 3
    for stub, check in zip(solutions, checks, strict=True):
        assert stub.metadata.nbgrader.solution and not stub.metadata.nbgrader.grade
        handed_out = without_solution(stub.source)
        assert re.search(r"# \d.* lines?", handed_out)
        assert check.metadata.nbgrader.grade and not check.metadata.nbgrader.solution
        assert re.fullmatch(r'cl\.classroom\.check\("\d\d\.\w+", .+\)', check.source)
        assert "right." in printed(check)
    asked = {name for name in cl.classroom.exercises() if name.startswith(f"{number:02}.")}
    assert {re.search(r'"(.+?)"', check.source).group(1) for check in checks} == asked


def test_every_exercise_is_put_in_two_sentences_or_little_more(notebook):
    tasks = re.findall(r"^\*\*\d\. .+?\*\*(.+?)(?=^#|\Z)", prose_of_tasks(notebook), re.M | re.S)
    assert len(tasks) >= 3
    for task in tasks:
        assert len(task.split()) <= 60


def test_what_is_handed_out_is_python_and_asks_for_nothing_yet(notebook):
    for stub, check in zip(graded(notebook)[::2], graded(notebook)[1::2], strict=True):
        space = {"cl": cl}
        exec(compile(without_solution(stub.source), "stub", "exec"), space)
        feedback = eval(check.source, space)
        assert feedback.points == 0 and feedback.possible == check.metadata.nbgrader.points
        assert "not answered yet" in feedback.message


def test_the_grading_metadata_is_what_nbgrader_reads(notebook):
    cells = graded(notebook)
    repeated = [name for name, times in Counter(cell.metadata.nbgrader.grade_id for cell in cells).items() if times > 1]
    assert repeated == []
    for cell in cells:
        told = cell.metadata.nbgrader
        assert set(told) == TEACHING_CELL | ({"points"} if told.grade else set())
        assert told.schema_version == 3
        assert all(isinstance(told[key], bool) for key in ("grade", "solution", "locked", "task"))
        assert re.fullmatch(r"[a-zA-Z0-9_\-]+", told.grade_id)
        assert told.locked == told.grade != told.solution
        assert not told.grade or told.points > 0
        assert told.solution == ("### BEGIN SOLUTION" in cell.source)
        assert cell.source.count("### BEGIN SOLUTION") == cell.source.count("### END SOLUTION")


def test_the_end_has_three_lines_to_remember_answers_and_sources(notebook):
    last = notebook.cells[-1].source
    remember, rest = last.split("## Questions people ask")
    questions, sources = rest.split("## Sources")
    assert len(re.findall(r"^- ", remember, re.M)) == 3
    assert len(re.findall(r"^\*\*.+?\?\*\*", questions, re.M)) >= 4
    assert len(re.findall(r"^- .*\d{4}|^- .*https://", sources, re.M)) >= 3


def test_cells_that_only_test_say_so(notebook):
    tested = {cell.id for cell in notebook.cells if "test" in cell.metadata.get("tags", [])}
    moves = {cell.id for cell in code_cells(notebook) if "control.min, control.max" in cell.source}
    assert moves | {f"{name}-text" for name in moves} <= tested
    assert not tested & {cell.id for cell in graded(notebook)}


def code_name(notebook):
    """The notebook's name, found again by its title."""
    title = notebook.cells[0].source.splitlines()[0].removeprefix("# ").lower().removeprefix("the ").replace(" ", "_")
    (name,) = [name for name in NAMES if name.endswith(title)]
    return name


def prose_of_tasks(notebook):
    """The markdown cells right before a stub."""
    pairs = zip(notebook.cells, notebook.cells[1:], strict=False)
    told = [before.source for before, cell in pairs if cell.metadata.get("nbgrader", {}).get("solution")]
    return "\n# next\n".join(told)


def without_solution(source):
    """What nbgrader hands out: the solution replaced by its stub."""
    return re.sub(r"### BEGIN SOLUTION.*?### END SOLUTION", "...", source, flags=re.S)
