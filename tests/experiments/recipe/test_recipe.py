"""Recipes as data: what may stand in them, how they are written and changed."""

import copy
import json
import pickle

import pytest

import compresslab as cl
from compresslab.experiments.recipe import PRESETS, Step

STEPS = [("zero_pruning", {"sparsity": 0.5}), ("retrain", {"steps": 4}), ("quantization", {"bits": 4})]


def test_the_same_steps_in_all_spellings():
    one = cl.Recipe(STEPS)
    spelt = [["zero_pruning", {"sparsity": 0.5}], Step("retrain", {"steps": 4}),
             {"name": "quantization", "setting": {"bits": 4}}]  # fmt: skip
    assert cl.Recipe(spelt) == one == cl.Recipe(one.steps)
    assert cl.Recipe(["quantization"]) == cl.Recipe([("quantization",)]) == cl.Recipe([{"name": "quantization"}])


def test_it_is_data_and_code():
    recipe = cl.Recipe(STEPS)
    assert cl.Recipe.from_json(recipe.to_json()) == recipe
    assert json.loads(recipe.to_json())[0] == ["zero_pruning", {"sparsity": 0.5}]
    assert eval(repr(recipe), {"cl": cl}) == recipe
    assert str(recipe) == "zero_pruning(sparsity=0.5) → retrain(steps=4) → quantization(bits=4)"


def test_changed_is_a_copy():
    recipe = cl.Recipe(STEPS)
    assert recipe.changed(-1, bits=3).steps[2].setting == {"bits": 3}
    assert recipe.changed(1, epochs=0.5).steps[1].setting == {"epochs": 0.5}
    assert recipe.changed(0, threshold=0.1).steps[0].setting == {"threshold": 0.1}
    assert recipe.changed(0, scope="layer").steps[0].setting == {"sparsity": 0.5, "scope": "layer"}
    assert recipe == cl.Recipe(STEPS)
    saved = cl.Recipe([*STEPS, ("save", {"path": "x.clab"})])
    assert saved.changed(-1, path="y.clab").steps[-1].setting == {"path": "y.clab"}
    with pytest.raises(ValueError, match="index is 3"):
        recipe.changed(3, bits=2)


def test_a_path_is_a_path(tmp_path):
    spelt = [cl.Recipe(["quantization", ("save", {"path": one})]) for one in (tmp_path / "x", str(tmp_path / "x"))]
    assert spelt[0] == spelt[1] and json.loads(spelt[0].to_json())[1][1] == {"path": str(tmp_path / "x")}


def test_it_stays_as_it_was_checked():
    recipe = cl.Recipe(STEPS)
    with pytest.raises(TypeError):
        recipe.steps[0].setting["sparsity"] = 7
    assert (
        hash(recipe) == hash(cl.Recipe(STEPS)) and len({recipe, cl.Recipe(STEPS), recipe.changed(0, sparsity=0)}) == 2
    )
    assert pickle.loads(pickle.dumps(recipe)) == copy.deepcopy(recipe) == recipe


def test_what_is_left_out_is_what_the_lab_begins_with():
    for given in ("zero_pruning", ("zero_pruning", {"sparsity": None}), ("zero_pruning", {"threshold": None})):
        assert cl.Recipe([given]).steps[0].setting == {"sparsity": 0.9}
    assert cl.Recipe(["quantization"]).steps[0].setting == {"bits": 4}
    assert cl.Recipe([("quantization", {"dtype": "fp16"})]).steps[0].setting == {"dtype": "fp16"}
    assert cl.Recipe([("retrain", {"epochs": None, "steps": 2})]).steps[0].setting == {"steps": 2}


@pytest.mark.parametrize(
    "steps, told",
    [
        ([], "steps is"),
        ([("save", {"path": "x.clab"})], "at least one technique"),
        ("zero_pruning", "give a list of steps"),
        ({"zero_pruning": {}}, "give a list of steps"),
        (None, "give a list of steps"),
        ([("prune", {})], "step is 'prune'"),
        ([("zero_pruning", 0.5)], "give a dict of parameters"),
        ([3], "a step is 3"),
        ([("zero_pruning", {"bits": 4})], "no parameter 'bits'"),
        ([("zero_pruning", {"sparsity": 0.5, "threshold": 0.1})], "exclude one another"),
        ([("zero_pruning", {"sparsity": object()})], "a setting holds numbers"),
        ([("retrain", {"epoch": 1})], "retrain is 'epoch'"),
        ([("retrain", {"epochs": 1, "steps": 2})], "give one of them"),
        ([("retrain", {"epochs": "2"})], r"retrain\(epochs='2'\): epochs is '2'"),
        ([("retrain", {"steps": 2.5})], r"steps is 2\.5"),
        ([("retrain", {"batch_size": 0})], "batch_size is 0"),
        ([("retrain", {"teacher": True, "alpha": 2})], "alpha is 2"),
        ([("retrain", {"teacher": "lenet_5"})], "give True"),
        ([("retrain", {"alpha": 0.5})], "add teacher=True"),
        (["retrain", ("save", {})], "save has the setting"),
        (["retrain", ("save", {"path": 3})], "save has the setting"),
    ],
)
def test_what_is_not_a_recipe(steps, told):
    with pytest.raises(ValueError, match=told):
        cl.Recipe(steps)


@pytest.mark.parametrize("text", ["[", "[[1]]", '{"a": 1}', "[]", None, 3])
def test_json_that_is_not_a_recipe(text):
    with pytest.raises(ValueError):
        cl.Recipe.from_json(text)


def test_presets(net, data):
    assert set(PRESETS) == {"deep compression", "small and fast", "smallest file"}
    with pytest.raises(ValueError, match="name is 'tiny'"):
        cl.Recipe.preset("tiny")
    few = cl.data.from_tensors(data.train.images[:96], data.train.labels[:96])  # 4 batches an epoch
    for name in PRESETS:
        recipe = cl.Recipe.preset(name)
        assert recipe.as_technique().controls
        small = recipe.apply(net, few, journal=False, bar=False)
        assert cl.storage.file_bytes(small) < cl.storage.file_bytes(net), name


def test_the_exported_names():
    assert cl.Recipe is cl.recipe.Recipe
