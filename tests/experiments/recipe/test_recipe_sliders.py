"""A recipe in sweep and lab: a control for each step, the same numbers as the recipe itself."""

import pytest

import compresslab as cl
from compresslab.techniques import Technique

pytestmark = pytest.mark.slow

RECIPE = cl.Recipe(
    [
        ("zero_pruning", {"sparsity": 0.5}),
        ("retrain", {"steps": 3}),
        ("quantization", {"bits": 4}),
        ("retrain", {"steps": 2, "teacher": True, "lr": 1e-3}),
    ]
)


def test_controls():
    technique = RECIPE.as_technique()
    assert isinstance(technique, Technique) and technique.steps == 2 and technique.lr == 1e-3
    assert [control.name for control in technique.controls] == ["sparsity", "retrain", "bits"]
    assert [control.default for control in technique.controls] == [0.5, 3, 4]
    assert technique.controls[0].help.startswith("Step 1, zero_pruning: ")
    twice = cl.Recipe(
        [("zero_pruning", {"threshold": 0.1}), ("retrain", {"epochs": 9}), ("zero_pruning", {"threshold": 0.2})]
    )
    controls = twice.as_technique().controls
    assert [control.name for control in controls] == ["threshold_1", "retrain", "threshold_2"]
    assert (controls[1].default, controls[1].high, controls[1].unit) == (9, 9, "epochs")
    assert (twice.as_technique().steps, twice.as_technique().name.count("retrain")) == (0, 1)
    assert cl.Recipe(["zero_pruning", "retrain"]).as_technique().steps == 196  # an epoch of the data that come along


@pytest.mark.parametrize(
    "steps",
    [
        ["zero_pruning", ("retrain", {"steps": 2})],
        [("zero_pruning", {"sparsity": None}), ("retrain", {"epochs": None, "steps": 2})],
        ["quantization", ("retrain", {"steps": 2})],
        ["weight_sharing", ("retrain", {"steps": None, "lr": 1e-3}), "quantization", ("retrain", {"steps": 2})],
    ],
)
def test_what_is_not_given_means_the_same_in_lab_and_recipe(steps, net, data):
    recipe = cl.Recipe(steps)
    setting = {control.name: control.default for control in recipe.as_technique().controls}
    result = list(cl.sweep.run(recipe, net, data, [setting], steps=2, journal=False, bar=False))[-1]
    small = recipe.apply(net, data, journal=False, bar=False)
    assert cl.storage.file_bytes(small) == result.file_bytes


def test_beyond_the_ends_of_a_slider():
    control = cl.Recipe([("zero_pruning", {"sparsity": 0.998})]).as_technique().controls[0]
    assert control.high == control.default == 0.998


def test_a_setting_for_each_layer_has_no_slider():
    technique = cl.Recipe(
        [("low_rank", {"rank": {"1": 4, "3": 2}}), ("zero_pruning", {"sparsity": 0.5})]
    ).as_technique()
    assert "rank" not in [control.name for control in technique.controls]


def test_it_gives_the_recipes_numbers(net, data, journal, fits):
    setting = {"sparsity": 0.6, "retrain": 3, "bits": 3}
    result = list(cl.sweep.run(RECIPE, net, data, [setting], steps=2, journal=journal, bar=False))[-1]
    expression = RECIPE.as_technique().source(result.setting, result)
    small = eval(expression, {"cl": cl}).apply(net, data, seed=0, journal=False, bar=False)
    assert cl.measure.accuracy(small, data.validation) == result.accuracy
    assert cl.storage.file_bytes(small) == result.file_bytes


def test_the_last_slider_does_not_repeat_the_first_step(net, data, journal, fits):
    grid = {"sparsity": [0.5], "bits": [2, 3, 4]}
    results = list(cl.sweep.run(RECIPE, net, data, grid, steps=2, journal=journal, bar=False))
    assert len({result.file_bytes for result in results}) > 1
    assert [named["steps"] for named in fits] == [3, 2, 2, 2]
    assert len(list(cl.sweep.run(RECIPE, net, data, grid, steps=2, journal=journal, bar=False))) == 3
    assert len(fits) == 4


def test_what_the_numbers_depend_on_is_in_the_key(net, data, journal):
    other = RECIPE.changed(0, scope="layer")
    one, two = (
        next(cl.sweep.run(one, net, data, [{}], steps=2, journal=journal, bar=False)) for one in (RECIPE, other)
    )
    assert one.key != two.key and one.setting == two.setting


@pytest.mark.parametrize("setting", [{"rank": 3}, {"sparsity": 7}])
def test_bad_settings(setting, net, data):
    with pytest.raises(ValueError, match="rank|sparsity"):
        list(cl.sweep.run(RECIPE, net, data, [setting], steps=2, journal=False, bar=False))


@pytest.mark.parametrize(
    "steps, told", [(["retrain"], "no technique"), (["quantization", "retrain", "retrain"], "2 retr")]
)
def test_what_a_lab_cannot_show(steps, told):
    with pytest.raises(ValueError, match=told):
        cl.Recipe(steps).as_technique()


def test_lab(net, data, journal, fits):
    lab = cl.lab.explore(RECIPE, model=net, data=data, journal=journal, threads=False)
    assert set(lab.controls) == {"sparsity", "retrain", "bits", "model", "data", "steps", "seed"}
    assert lab.error is None and lab.results["accuracy"].notna().all()
    fits.clear()
    lab.controls["bits"].value = 2
    assert {named["steps"] for named in fits} == {2}
    chosen = lab.results.iloc[-1]
    lines = lab.code.replace("...  # your model", "model").replace("...  # your Data", "data")
    assert "cl.Recipe([" in lines and chosen["bits"] == 2
    exec(lines, names := {"model": net, "data": data})
    assert cl.storage.file_bytes(names["small"]) == chosen["file_bytes"]
    lab.controls["sparsity"].value = 0.99
    assert lab.error is None and lab.wait(1)
