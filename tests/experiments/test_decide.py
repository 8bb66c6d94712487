"""Which data type: every candidate measured, the smallest that meets the constraint, the truth where none does."""

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab.experiments import decide


@pytest.fixture(scope="module")
def trained():
    """A network that knows its task, and the data: four classes by the largest of four noisy inputs."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1500, 12, generator=generator)
    data = cl.data.from_tensors(inputs, inputs[:, :4].argmax(1), seed=0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 4))
    return cl.train.finetune(model, data.train, steps=150, lr=0.02, precision="fp32", bar=False).eval(), data


CANDIDATES = [{"bits": 32}, {"dtype": "fp16"}, {"bits": 8}, {"bits": 4}, {"bits": 1}, {"bits": 8, "activations": 8}]


def answer(trained, **options):
    return decide.data_type(*trained, candidates=CANDIDATES, bar=False, **options)


def test_every_candidate_is_measured(trained):
    model, data = trained
    found = answer(trained, points=2)
    table = found.table
    names = ["float32", "fp16", "8 bits", "4 bits", "1 bit", "8 bits, activations 8 bits"]
    assert list(table.index) == names
    assert table.loc["float32", "points"] == 0 and table.loc["float32", "verdict"] == "can't tell"
    small = cl.quantization.quantize(model, bits=4)
    assert table.loc["4 bits", "accuracy"] == cl.measure.accuracy(small, data.validation)
    assert table.loc["4 bits", "file_bytes"] == cl.storage.file_bytes(small)
    both = cl.quantization.quantize(model, data.train.images[:1000], bits=8, calibration_size=200)
    assert table.loc[names[-1], "accuracy"] == cl.measure.accuracy(both, data.validation)
    lost = 100 * (cl.measure.accuracy(model, data.validation) - table["accuracy"])
    assert table["points"].to_list() == pytest.approx(lost.to_list())
    assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()
    assert table.loc["1 bit", "verdict"] == "worse" and table.loc["1 bit", "p_value"] < 0.05


def test_the_smallest_that_loses_few_enough_points(trained):
    found = answer(trained, points=2)
    good = found.table[found.table["points"] <= 2]
    name = good["file_bytes"].idxmin()
    assert found.met and found.verdict.startswith(f"{name}: ") and "at most 2 points lost asked for" in found.verdict
    assert decide.name_of(found.setting) == name and found.table.loc[name, "meets"]
    assert cl.measure.accuracy(found.model, trained[1].validation) == found.table.loc[name, "accuracy"]
    assert found.table["meets"].to_list() == (found.table["points"] <= 2).to_list()


def test_the_most_accurate_that_is_small_enough(trained):
    sizes = answer(trained, points=100).table["file_bytes"]
    room = (sizes["8 bits"] + 1) / 1024
    found = answer(trained, kib=room)
    small = found.table[found.table["file_bytes"] <= room * 1024]
    assert found.met and found.table.loc[decide.name_of(found.setting), "points"] == small["points"].min()
    assert set(small.index) < set(found.table.index)


def test_both_constraints(trained):
    table = answer(trained, points=100).table
    room = (table.loc["4 bits", "file_bytes"] + 1) / 1024
    lost = max(0, table.loc["4 bits", "points"])
    found = answer(trained, points=lost, kib=room)
    assert found.met and found.setting == {"bits": 4}


def test_nothing_meets_it_and_the_nearest_is_told(trained):
    found = answer(trained, kib=0.001)
    smallest = found.table["file_bytes"].idxmin()
    assert not found.met and not found.table["meets"].any()
    assert found.verdict.startswith(f"Nothing measured meets at most 0.001 KiB; the nearest is {smallest}: ")
    table = found.table
    room = table.loc["1 bit", "file_bytes"] / 1024
    found = answer(trained, points=0, kib=room)
    assert not found.met and found.setting == {"bits": 1} and "0 points lost and at most" in found.verdict


def test_retraining_comes_before_measuring(trained):
    one = decide.data_type(*trained, points=50, candidates=[{"bits": 1}], bar=False)
    other = decide.data_type(*trained, points=50, candidates=[{"bits": 1}], steps=40, bar=False)
    assert other.table["accuracy"].item() > one.table["accuracy"].item()
    assert len(other.model[0].weight[0].unique()) == 2


def test_the_model_is_left_as_it_was(trained):
    model, _ = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    answer(trained, points=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(model[0]) is nn.Linear


NAMES = {
    "float32": {"bits": 32},
    "1 bit": {"bits": 1},
    "bf16": {"dtype": "bf16"},
    "4 bits, activations 8 bits": {"bits": 4, "activations": 8},
    "4 bits, per_channel=False": {"bits": 4, "per_channel": False},
    "3 bits": {"bits": 3, "activations": "fp32"},
}


@pytest.mark.parametrize("name, setting", NAMES.items(), ids=NAMES.keys())
def test_names(name, setting):
    assert decide.name_of(setting) == name


BAD = {
    "no constraint": ({}, "points and kib are None; give a constraint: points=0.2"),
    "negative": ({"points": -1}, "points is -1"),
    "no room": ({"kib": 0}, "kib is 0; give a number above 0"),
    "text": ({"kib": "10"}, "kib is '10'"),
    "none": ({"points": 1, "candidates": []}, "candidates is empty"),
    "one setting": ({"points": 1, "candidates": {"bits": 4}}, "candidates is {'bits': 4}; give a list of settings"),
    "names": ({"points": 1, "candidates": ["fp16"]}, "candidates has 'fp16'; each is a dict"),
    "no format": ({"points": 1, "candidates": [{"symmetric": False}]}, "each needs bits or dtype"),
    "unknown": ({"points": 1, "candidates": [{"bits": 4, "bit": 3}]}, "has no parameter 'bit'"),
    "bits": ({"points": 1, "candidates": [{"bits": 33}]}, "bits is 33"),
}


@pytest.mark.parametrize("options, said", BAD.values(), ids=BAD.keys())
def test_a_bad_question_is_named(trained, options, said):
    with pytest.raises(ValueError, match=said):
        decide.data_type(*trained, bar=False, **options)


def test_names_of_networks_and_data_sets():
    found = decide.data_type("lenet_300_100", "mnist", points=0.5, candidates=[{"bits": 32}, {"bits": 4}], bar=False)
    assert found.met and found.setting == {"bits": 4} and "KiB" in found.verdict
