"""The smallest files: each decodes to its reference network, as accurate as the table says, in as many bytes."""

import json
from pathlib import Path

import pytest

import compresslab as cl

FOLDER = Path(__file__).parent.parent / "data" / "records"
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
