"""Make the notebooks that learners work in: copies in learn/ without solutions, outputs and cells that only test.

    python scripts/learner_copies.py                 make the copies that are missing, and those whose source changed
    python scripts/learner_copies.py --reset 02      start one notebook anew; the edited one is laid beside it

A copy that is not as it was made, be it edited or only run, is the learner's work and is never overwritten:
learn/.made.json keeps the SHA-256 of every file as it was made.

Sources mark their cells as nbgrader (0.9) reads them: a solution stands between `### BEGIN SOLUTION` and
`### END SOLUTION`. Cells with the tag "test" (they only test) or "solution" are left out of the copies.
"""

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path, PurePath

ROOT = Path(__file__).resolve().parent.parent
STUB, ANSWER = "# your code here", "*Your answer here.*"
REMOVED_TAGS = {"test", "solution"}  # tags of cells that learners do not get
NOTEBOOK_METADATA = {"kernelspec", "language_info"}
NBGRADER_METADATA = {"grade", "grade_id", "locked", "points", "schema_version", "solution", "task"}
REGION = re.compile(
    r"^([ \t]*)[^\n]*BEGIN (SOLUTION|HIDDEN TESTS|MARK SCHEME)\b.*?\bEND \2\b[^\n]*(\n|\Z)", re.MULTILINE | re.DOTALL
)
TORN_REGION = re.compile(r"(BEGIN|END) (SOLUTION|HIDDEN TESTS|MARK SCHEME)\b")
NBVAL_MARKER = re.compile(r"^[ \t]*# *NBVAL_\w+[^\n]*\n?", re.MULTILINE)
WRITTEN_BY_NOTEBOOKS = ("compresslab-*.csv", "*.clab")  # beside a source that was run; nothing for learners


def strip_source(cell):
    """Return the source of a cell with stubs for its solutions, without hidden tests and marks for nbval.

    cell     a dict, as the notebook's JSON has it
    raises   ValueError for a region that begins or ends alone
    """
    code = cell["cell_type"] == "code"

    def replace(region):
        indent, kind, newline = region.groups()
        if kind != "SOLUTION":
            return ""
        if not code:
            return f"{ANSWER}{newline}"
        # a block needs a statement; at the end of a cell `...` would be shown as its result
        return f"{indent}{'...  ' if indent else ''}{STUB}{newline}"

    source, regions = REGION.subn(replace, "".join(cell["source"]))
    if TORN_REGION.search(source):
        raise ValueError(f"cell {cell['id']!r} has a BEGIN or END without its counterpart; give both")
    if cell["metadata"].get("nbgrader", {}).get("solution") and not regions:
        source = STUB if code else ANSWER
    if code:
        return NBVAL_MARKER.sub("", source).rstrip()
    return source.replace("../notebooks/", "")  # a link to another notebook leads to its copy


def make_copy(notebook):
    """Return what a learner gets of a notebook.

    notebook  a dict, the JSON of format 4.5
    returns   a new dict
    raises    ValueError for a solution that begins or ends alone
    """
    cells = []
    for cell in notebook["cells"]:
        tags, teaching = cell["metadata"].get("tags", []), cell["metadata"].get("nbgrader", {})
        if REMOVED_TAGS.intersection(tags):
            continue
        tags = [tag for tag in tags if not tag.startswith("nbval")]
        metadata = {"nbgrader": {key: teaching[key] for key in NBGRADER_METADATA & teaching.keys()}} if teaching else {}
        if teaching.get("solution") or teaching.get("grade"):
            tags.append("raises-exception")  # an answer that fails does not stop Run All
        if tags:
            metadata["tags"] = tags
        copied = {key: cell[key] for key in ("cell_type", "id", "attachments") if key in cell}
        if cell["cell_type"] == "code":
            copied |= {"execution_count": None, "outputs": []}
        source = strip_source(cell).splitlines(keepends=True)
        cells.append({**copied, "metadata": metadata, "source": source})
    metadata = {key: value for key, value in notebook["metadata"].items() if key in NOTEBOOK_METADATA}
    return {**notebook, "metadata": metadata, "cells": cells}


class Copies:
    """The learner's copies, in `folder`, of the notebooks and the files beside them in `sources`."""

    def __init__(self, sources, folder):
        self.sources, self.folder, self.record = Path(sources), Path(folder), Path(folder) / ".made.json"
        self.made = self._read_record()  # name -> SHA-256 of the copy as it was made

    def list_names(self):
        """List the files to copy, relative to the folder, sorted."""
        paths = (path.relative_to(self.sources) for path in self.sources.rglob("*") if path.is_file())
        return sorted(
            path.as_posix()
            for path in paths
            if not any(part.startswith((".", "__")) for part in path.parts)
            and not any(path.match(pattern) for pattern in WRITTEN_BY_NOTEBOOKS)
        )

    def update(self):
        """Make the missing copies, and anew the untouched ones whose source has changed.

        returns  lines to print: what was made, and which edited copies are behind their source
        """
        made, remade, news = [], [], []
        contents = {name: self._make_content(name) for name in self.list_names()}  # all of them, before any is written
        for name, content in contents.items():
            digest, fresh = self._compute_digest(name), hashlib.sha256(content).hexdigest()
            if digest is None or digest == self.made.get(name) != fresh:
                (made if digest is None else remade).append(name)
                self._write(self.folder / name, content)
            elif digest != fresh:  # the learner's work, or a file whose record is lost
                if self.made.get(name) != fresh:
                    news.append(f"{name} has changed since you began; yours is kept. {_advise_reset(name)}")
                continue
            self.made[name] = fresh
        self._write_record()
        if made:
            news.insert(0, f"{self.folder.name}/ has your copies now: {', '.join(made)}")
        if remade:
            news.insert(0, f"made anew, since the workbook has changed and you had not: {', '.join(remade)}")
        return news

    def reset(self, wanted):
        """Make one copy anew, lay the edited one beside it, and return a line that says so.

        wanted  "02", "02_zero_pruning", "learn/02_zero_pruning.ipynb"
        raises  ValueError for a notebook that does not exist
        """
        name = self._find(wanted)
        content, target, news = self._make_content(name), self.folder / name, f"{self.folder.name}/{name} is new"
        if self._compute_digest(name) not in (None, self.made.get(name)):
            number, beside = 1, target.with_stem(f"{target.stem}-before-reset")
            while beside.exists():
                number += 1
                beside = target.with_stem(f"{target.stem}-before-reset-{number}")
            target.rename(beside)
            news += f"; yours lies beside it, as {beside.name}"
        self._write(target, content)
        self.made[name] = hashlib.sha256(content).hexdigest()
        self._write_record()
        return f"{news}. If JupyterLab has it open: File, Reload Notebook from Disk"

    def _find(self, wanted):
        stem = PurePath(wanted.strip()).name.removesuffix(".ipynb")
        notebooks = [name for name in self.list_names() if name.endswith(".ipynb")]
        exact = [name for name in notebooks if PurePath(name).stem == stem]
        matches = exact or [name for name in notebooks if stem and PurePath(name).stem.startswith(stem)]
        if len(matches) != 1:
            stems = ", ".join(PurePath(name).stem for name in notebooks)
            raise ValueError(f"NOTEBOOK is {wanted!r}; give one of {stems} (make reset NOTEBOOK=02)")
        return matches[0]

    def _make_content(self, name):
        path = self.sources / name
        if path.suffix != ".ipynb":
            return path.read_bytes()
        try:
            copy = make_copy(json.loads(path.read_text(encoding="utf-8")))
            # as JupyterLab writes it
            return (json.dumps(copy, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
        except Exception as error:
            raise ValueError(f"{path} cannot be copied: {error}") from error

    def _compute_digest(self, name):
        path = self.folder / name
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None

    def _read_record(self):
        try:
            made = json.loads(self.record.read_text())
        except (FileNotFoundError, ValueError):
            return {}  # every copy that is there counts as edited
        return made if isinstance(made, dict) else {}

    def _write_record(self):
        if self.made != self._read_record():
            self._write(self.record, (json.dumps(self.made, indent=1) + "\n").encode())

    def _write(self, path, content):  # whole or not at all
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_bytes(content)
        unfinished.replace(path)


def _advise_reset(name):
    if not name.endswith(".ipynb"):
        return "Delete it for the new one"
    return f"For the new one, and yours beside it: make reset NOTEBOOK={PurePath(name).stem}"


def main(arguments=None):
    """Update the copies of this checkout, or reset one; returns nothing, or a sentence to stop with."""
    parser = argparse.ArgumentParser(description="Make the notebooks that learners work in, in learn/.")
    parser.add_argument("--reset", metavar="NOTEBOOK", help="make this one anew; the edited one is laid beside it")
    wanted = parser.parse_args(arguments).reset
    try:
        copies = Copies(ROOT / "notebooks", ROOT / "learn")
        for line in copies.update() if wanted is None else [copies.reset(wanted)]:
            print(f"compresslab: {line}")
    except ValueError as error:
        return f"compresslab: {error}"
    except OSError as error:
        return (
            f"compresslab: the learner's copies cannot be written ({error.strerror}: {error.filename}). Put the "
            "checkout into a folder of your own; make lab SOLVED=1 opens the notebooks themselves, with their solutions"
        )


if __name__ == "__main__":
    sys.exit(main())
