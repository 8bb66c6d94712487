"""Imports point one way, and every part keeps to its trade. Read from the source, nothing is imported."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "compresslab"

# Lower ranks never import higher ones. Parts of one rank may import each other, but techniques never do.
RANKS = {
    **dict.fromkeys(["bars", "checks", "paths", "writing", "datafiles", "layers", "grids", "codebooks"], 0),
    **dict.fromkeys(["data", "models"], 1),
    **dict.fromkeys(["train", "activations", "structure", "numerics", "knowledge", "input_grids", "augmentation"], 2),
    **dict.fromkeys(["shrinking", "rate", "techniques"], 3),
    "storage": 4,
    "measure": 5,
    **dict.fromkeys(["fingerprints", "trial", "sweep", "workers", "journal", "decide", "recipe", "allocation"], 6),
    **dict.fromkeys(["lab", "classroom", "baselines"], 7),
}
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
        if mine not in {None, "__init__"} and theirs not in {None, mine, "contract"}:
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
    assert parts <= set(RANKS), f"give {sorted(parts - set(RANKS))} a rank"


PLANTED = {
    "upwards": ("compresslab.data", "from compresslab import train"),
    "upwards, by module": ("compresslab.storage.container", "import compresslab.measure.sizes"),
    "upwards, inside a function": ("compresslab.train", "def f():\n    from compresslab.lab import explore"),
    "upwards, relative": ("compresslab.measure.accuracy", "from ..sweep import run"),
    "through the whole": ("compresslab.measure.accuracy", "import compresslab as cl\ncl.sweep.run"),
    "another technique": ("compresslab.techniques.low_rank", "from compresslab.techniques import zero_pruning"),
    "another, relative": ("compresslab.techniques.low_rank", "from .zero_pruning import prune"),
    "plots in a technique": ("compresslab.techniques.low_rank", "from matplotlib.figure import Figure"),
    "widgets in a technique": ("compresslab.techniques.low_rank", "import ipywidgets as w"),
    "widgets in a sweep": ("compresslab.sweep", "from ipywidgets import HBox"),
    "widgets in the classroom": ("compresslab.classroom.checks", "import ipywidgets"),
}


@pytest.mark.parametrize("module, source", PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_violation_is_found(module, source):
    assert len(list(violations(source, module))) == 1


ALLOWED = {
    "downwards": ("compresslab.lab.worker", "from compresslab import sweep, measure\nimport ipywidgets"),
    "the contract": ("compresslab.techniques.low_rank", "from compresslab.techniques.contract import Control"),
    "the bottom": ("compresslab.techniques.low_rank", "from compresslab import checks, layers, train"),
    "its own part": ("compresslab.measure.sizes", "from .macs import macs"),
    "the version": ("compresslab.storage.container", "import compresslab\ncompresslab.__version__"),
    "baselines": ("compresslab.baselines", "from compresslab import data, measure, models, train"),
}


@pytest.mark.parametrize("module, source", ALLOWED.values(), ids=ALLOWED.keys())
def test_what_is_allowed_is_not_complained_about(module, source):
    assert list(violations(source, module)) == []
