"""The page docs/own_technique.md does what it says: a technique from outside gets lab, journal, code and comparison."""

import re
from pathlib import Path

import pytest

import compresslab as cl

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own_technique.md"
pytestmark = pytest.mark.slow


def test_the_toy_technique_of_the_page_gets_a_lab_a_journal_and_a_comparison():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    space = {}
    exec(compile(block, str(PAGE), "exec"), space)
    lab = space["lab"]
    assert lab.wait(60) and lab.error is None
    lab.controls["step"].value = 0.1
    assert lab.wait(60) and lab.results["file_bytes"].iloc[-1] < lab.results["file_bytes"].iloc[0]
    assert set(cl.journal.open().to_frame()["technique"]) == {"rounding"}
    lab.close()
    second = cl.lab.explore("quantization", steps=0, threads=False)
    labels = [line.get_label() for line in cl.lab.compare(lab, second, stage="one-shot").lines]
    assert any("rounding" in label for label in labels) and any("quantization" in label for label in labels)
    second.close()
