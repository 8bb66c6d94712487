"""Looking techniques up, and what every technique's declaration must hold to, those to come included."""

import inspect
import subprocess
import sys
import types

import pytest

import compresslab as cl
from compresslab.techniques import Control, Picture, Technique


def shrink(model, amount=0.5):
    return model


OWN = Technique("shrink", shrink, (Control("amount", 0.5),))


def test_every_module_beside_the_contract_is_a_technique():
    assert "zero_pruning" in cl.techniques.names()
    assert "contract" not in cl.techniques.names()
    assert cl.techniques.names() == sorted(cl.techniques.names())


def test_a_technique_is_found_by_name_module_and_itself():
    found = cl.techniques.get("zero_pruning")
    assert found is cl.zero_pruning.TECHNIQUE
    assert cl.techniques.get(cl.zero_pruning) is found
    assert cl.techniques.get(found) is found
    assert cl.techniques.get(OWN) is OWN


def test_a_module_of_ones_own_needs_only_a_declaration():
    module = types.ModuleType("shrink")
    module.TECHNIQUE = OWN
    assert cl.techniques.get(module) is OWN


@pytest.mark.parametrize("name", ["zero-pruning", "contract", ""])
def test_an_unknown_name_is_answered_with_the_known_ones(name):
    with pytest.raises(ValueError, match=f"technique is '{name}'; choose one of .*zero_pruning"):
        cl.techniques.get(name)


@pytest.mark.parametrize("thing", [shrink, 3, None, types], ids=["function", "number", "none", "module"])
def test_what_is_no_technique_is_refused(thing):
    with pytest.raises(TypeError, match="give a name, a Technique"):
        cl.techniques.get(thing)


@pytest.mark.parametrize("name", cl.techniques.names())
def test_controls_are_parameters_of_the_function(name):
    technique = cl.techniques.get(name)
    parameters = inspect.signature(technique.apply).parameters
    assert technique.name == name
    assert {control.name for control in technique.controls} <= set(parameters)
    assert all(set(setting) <= set(parameters) for setting in technique.fair_controls.values())


@pytest.mark.parametrize("name", cl.techniques.names())
def test_defaults_lie_in_their_ranges_on_a_step(name):
    for control in cl.techniques.get(name).controls:
        assert control.help, f"{control.name} has no tooltip"
        if control.choices:
            assert control.default in control.choices or (control.default is None and control.alternative)
        else:
            assert control.low <= control.default <= control.high
            steps = (control.default - control.low) / control.step
            assert steps == pytest.approx(round(steps))


@pytest.mark.parametrize("name", cl.techniques.names())
def test_alternatives_come_at_least_in_pairs(name):
    words = [control.alternative for control in cl.techniques.get(name).controls if control.alternative]
    assert all(words.count(word) > 1 for word in words)


def test_declarations_are_plain_data_that_cannot_be_changed():
    for thing, attribute in ((OWN, "name"), (OWN.controls[0], "default"), (Picture("a", "bars", [], "A"), "title")):
        with pytest.raises(AttributeError):
            setattr(thing, attribute, "other")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["weights.codebooks", "calibration"])
def test_any_part_may_be_imported_first(module):
    done = subprocess.run([sys.executable, "-c", f"import compresslab.{module}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
