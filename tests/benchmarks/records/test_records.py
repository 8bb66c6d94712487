"""The smallest files: each decodes to its reference network, as accurate as the table says, in as many bytes."""

import json
import re
from pathlib import Path

import pytest

import compresslab as cl
from benchmarks.records import __main__ as records

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[3] / "data" / "records"
KNOWN = json.loads((FOLDER / "records.json").read_text())
IMAGES = 3e-4  # of the images may be decided otherwise by another machine's rounding


def test_every_file_is_told_of():
    assert {path.stem for path in FOLDER.glob("*.clab")} == set(KNOWN) and KNOWN


@pytest.mark.parametrize("name", KNOWN)
def test_a_record_decodes_to_what_was_measured(name):
    told, path = KNOWN[name], FOLDER / f"{name}.clab"
    assert path.stat().st_size == told["bytes"]
    model, data = cl.load(path), cl.data.load(told["data"])
    reference = cl.models.build(told["reference"])
    shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (model, reference)]
    assert shapes[0] == shapes[1]
    assert cl.measure.accuracy(model, data.test) == pytest.approx(1 - told["test error"], abs=IMAGES)
    assert cl.storage.file_bytes(model) <= told["bytes"]


def test_the_readme_prints_the_lengths_of_these_files():
    """Bytes and ratios are those of the files, and what words save is true."""
    readme = (FOLDER.parent.parent / "README.md").read_text().replace(",", "")
    rows = {tuple(map(int, row)) for row in re.findall(r"(\d+) bytes \| (\d+)×", readme)}
    for known in KNOWN.values():
        dense = 4 * sum(parameter.numel() for parameter in cl.models.build(known["reference"]).parameters())
        assert (known["bytes"], round(dense / known["bytes"])) in rows
    count = KNOWN["lenet_5-tied-smallest"]["bytes"]
    bare = records.count_without_words((FOLDER / "lenet_5-tied-smallest.clab").read_bytes())
    for number, size in ((count, "1563 bytes and 1103×"), (bare, "1671 and 1032×")):
        assert size.startswith(str(number)) and size in " ".join(readme.split())
