"""Imports point one way, and each part keeps to its purpose. Read from the source, nothing is imported."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "compresslab"

# From the bottom up: a part imports only what stands before it. CONTRIBUTING draws the same line.
ORDER = [
    "bars",
    "checks",
    "paths",
    "writing",
    "data",
    "models",
    "weights",
    "calibration",
    "train",
    "numerics",
    "channels",
    "storage",
    "measure",
    "export",
    "techniques",
    "experiments",
    "lab",
    "classroom",
]
RANKS = {name: rank for rank, name in enumerate(ORDER)}
SHARED_BY_TECHNIQUES = {"base", "distillation_losses", "input_grids"}  # what techniques may import of one another
PLOTS = {"matplotlib", "PIL"}
WIDGETS = {"ipywidgets", "IPython", "anywidget"}


def imports(source, module):
    """Full names of what the source of `module` ("compresslab.lab.worker") imports, at any depth."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    yield from (alias.name for alias in plain)
    whole = {alias.asname or "compresslab" for alias in plain if alias.name == "compresslab"}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in whole:
            yield f"compresslab.{node.attr}"  # its parts are imported as they are named
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, base] if base else parents)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def part(name):
    """ "lab" of "compresslab.lab.worker"; None for other packages and for compresslab itself."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "compresslab" and len(pieces) > 1 else None


def technique(name):
    """ "low_rank" of "compresslab.techniques.low_rank.factorize"; None outside compresslab.techniques."""
    pieces = name.split(".")
    return pieces[2] if pieces[:2] == ["compresslab", "techniques"] and len(pieces) > 2 else None


def violations(source, module):
    """What the source of `module` imports and must not, as sentences."""
    own = part(module)
    for name in imports(source, module):
        other, package = part(name), name.split(".")[0]
        if other in RANKS and own in RANKS and RANKS[other] > RANKS[own]:
            yield f"{module} ({own}) imports {name} ({other})"
        if package in WIDGETS and own not in {"lab", "classroom"}:
            yield f"{module} imports {name}; only lab may use widgets"
        if package == "ipywidgets" and own == "classroom":
            yield f"{module} imports {name}; only lab may use widgets"
        if package in PLOTS and own not in {"lab", "classroom"}:
            yield f"{module} imports {name}; plots are drawn above, in lab"
        mine, theirs = technique(module), technique(name)
        if mine not in {None, "__init__"} and theirs not in {None, mine, *SHARED_BY_TECHNIQUES}:
            yield f"{module} imports {name}; techniques do not import each other"


# (name, path) of every source file; a package's own file keeps its __init__, where relative imports count from
MODULES = [
    (".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts), path) for path in sorted(PACKAGE.rglob("*.py"))
]


@pytest.mark.parametrize("module, path", MODULES, ids=[name for name, _ in MODULES])
def test_imports_point_one_way(module, path):
    assert list(violations(path.read_text(), module)) == []


def test_every_part_has_its_rank():
    parts = {part(name) for name, _ in MODULES} - {None, "__init__"}
    assert parts == set(ORDER), f"ORDER and the package differ in {sorted(parts ^ set(ORDER))}"


def test_contributing_draws_the_same_order():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    drawn = re.findall(r"[a-z]+", text.split("A part imports only what stands left of it:")[1].split("`tests/")[0])
    assert drawn == ORDER


def test_few_modules_stand_at_top_level():
    assert len([path for path in PACKAGE.glob("*.py") if path.stem != "__init__"]) <= 8


def test_no_two_modules_have_the_same_name():
    """Exercises are named after their technique, as its notebook and its tests are."""
    stems = [path.stem for _, path in MODULES if path.parent.name != "classroom" and path.stem != "__init__"]
    assert sorted(set(stems)) == sorted(stems)


PLANTED = {
    "upwards": ("compresslab.data.sets", "from compresslab import train"),
    "upwards, by module": ("compresslab.storage.container", "import compresslab.measure.sizes"),
    "upwards, inside a function": ("compresslab.train", "def f():\n    from compresslab.lab import explore"),
    "upwards, relative": ("compresslab.measure.accuracy", "from ..experiments.sweep import run"),
    "through the whole": ("compresslab.measure.accuracy", "import compresslab as cl\ncl.experiments.sweep.run"),
    "another technique": ("compresslab.techniques.low_rank", "from compresslab.techniques import zero_pruning"),
    "another, relative": ("compresslab.techniques.low_rank", "from .zero_pruning import prune"),
    "plots in a technique": ("compresslab.techniques.low_rank", "from matplotlib.figure import Figure"),
    "widgets in a technique": ("compresslab.techniques.low_rank", "import ipywidgets as w"),
    "widgets in a sweep": ("compresslab.experiments.sweep", "from ipywidgets import HBox"),
    "widgets in the classroom": ("compresslab.classroom.checks", "import ipywidgets"),
}


@pytest.mark.parametrize("module, source", PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_violation_is_found(module, source):
    assert len(list(violations(source, module))) == 1


ALLOWED = {
    "downwards": ("compresslab.lab.worker", "from compresslab import experiments, measure\nimport ipywidgets"),
    "the contract": ("compresslab.techniques.low_rank", "from compresslab.techniques.base import Control"),
    "the bottom": ("compresslab.techniques.low_rank", "from compresslab import checks, weights, train"),
    "its own part": ("compresslab.measure.sizes", "from .macs import macs"),
    "the version": ("compresslab.storage.container", "import compresslab\ncompresslab.__version__"),
}


@pytest.mark.parametrize("module, source", ALLOWED.values(), ids=ALLOWED.keys())
def test_what_is_allowed_is_not_complained_about(module, source):
    assert list(violations(source, module)) == []
