"""The lab as a program uses it, with a tiny technique from outside the package."""

import base64
import io
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import compresslab as cl
from compresslab import techniques
from compresslab.lab.controls import UNUSED
from tests.lab.conftest import until

pytestmark = pytest.mark.slow
ROOT = str(Path(__file__).resolve().parents[2])


def text(lab):
    """What the status line says."""
    return re.sub("<[^>]*>", "", lab.view.status.value)


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image.value)))


def chart(lab):
    return lab.view.chart.panel.image


def pictures(lab):
    """Every Image widget on the page."""
    found, waiting = [], [lab]
    while waiting:
        one = waiting.pop()
        waiting += getattr(one, "children", ())
        found += [one] if isinstance(one, widgets.Image) else []
    return found


def test_a_lab_is_shown_by_ipython_and_measures_its_first_setting(open_lab):
    lab = open_lab()
    assert lab.wait(60) is True
    assert "application/vnd.jupyter.widget-view+json" in lab._repr_mimebundle_()
    assert lab.error is None
    last = lab.results.iloc[-1]
    assert (last["share"], last["stage"], last["steps"], last["seed"]) == (0.5, "retrained", 8, 0)
    assert {"accuracy", "file_bytes", "at_random", "mode", "stage"} <= set(lab.results.columns)


def test_its_controls_are_named_as_the_parameters(open_lab):
    lab = open_lab()
    assert list(lab.controls) == ["share", "limit", "at_random", "mode", "model", "data", "steps", "seed"]
    assert lab.controls["share"].readout_format == ".0%"
    assert lab.controls["share"].tooltip == "How many go."
    assert isinstance(lab.controls["mode"], widgets.Dropdown)
    assert isinstance(lab.controls["at_random"], widgets.Checkbox)


@pytest.mark.usefixtures("undrawn")
def test_a_point_is_the_one_a_sweep_measures(open_lab, technique, tiny_model, tiny_data):
    lab = open_lab(setting={"share": 0.8}, seed=3)
    assert lab.wait(60)
    settings = [{"share": 0.8}]
    (swept,) = cl.sweep.run(technique, tiny_model, tiny_data, settings, steps=8, seed=3, journal=False, bar=False)
    last = lab.results.iloc[-1]
    assert (last["accuracy"], last["file_bytes"], last["key"]) == (swept.accuracy, swept.file_bytes, swept.key)


@pytest.mark.usefixtures("undrawn")
def test_a_point_does_not_depend_on_the_way_the_slider_came(open_lab):
    first = open_lab(setting={"share": 0.8}, journal="a.sqlite")
    assert first.wait(60)
    wandering = open_lab(journal="b.sqlite", compare=("random",))
    for value in (0.1, 0.95, 0.3, 0.8):
        wandering.controls["share"].value = value
        time.sleep(0.01)
    assert wandering.wait(60)
    columns = ["share", "stage", "accuracy", "file_bytes"]
    pd.testing.assert_frame_equal(
        wandering.results.tail(2)[columns].reset_index(drop=True), first.results.tail(2)[columns].reset_index(drop=True)
    )


@pytest.mark.usefixtures("undrawn")
def test_without_threads_the_same_numbers_come_inside_the_callback(open_lab, tiny_model):
    threaded, direct = open_lab(journal="a.sqlite"), open_lab(journal="b.sqlite", threads=False)
    for lab in (threaded, direct):
        lab.controls["share"].value = 0.9
        lab.controls["share"].value = 0.7
    assert direct.wait(0) is True
    assert threaded.wait(60) is True
    assert threaded.results.iloc[-1]["accuracy"] == direct.results.iloc[-1]["accuracy"]
    assert set(direct.results["share"]) == {0.5, 0.9, 0.7}
    assert "csr" in direct.view.ledger.value.lower()


@pytest.mark.usefixtures("undrawn")
def test_the_last_row_is_the_point_that_is_drawn(open_lab):
    lab = open_lab()
    for value in (0.9, 0.2, 0.9):
        lab.controls["share"].value = value
        assert lab.wait(60)
        last = lab.results.iloc[-1]
        assert last["share"] == value
        assert lab.view.chart.moving.retrained == (last["file_bytes"], last["accuracy"])
        assert "share 90%" in text(lab) or value == 0.2


def test_every_control_works_at_both_ends(open_lab):
    lab = open_lab(threads=False, steps=2)
    for name, widget in lab.controls.items():
        for end in ("min", "max") if hasattr(widget, "min") else ():
            lab.controls[name].value = 2 if (name, end) == ("steps", "max") else getattr(widget, end)
            assert lab.error is None, (name, end)
    for value in ("both", "all"):
        lab.controls["mode"].value = value
        assert lab.results.iloc[-1]["mode"] == value
    assert lab.results["share"].dropna().isin([0.0, 1.0, 0.5]).all()


@pytest.mark.usefixtures("undrawn")
def test_of_alternatives_the_one_moved_last_counts_and_the_other_is_dimmed(open_lab):
    lab = open_lab(threads=False)
    assert UNUSED in lab.controls["limit"]._dom_classes
    lab.controls["limit"].value = 0.2
    last = lab.results.iloc[-1]
    assert last["limit"] == 0.2
    assert np.isnan(last["share"])
    assert UNUSED in lab.controls["share"]._dom_classes
    assert UNUSED not in lab.controls["limit"]._dom_classes
    lab.controls["share"].value = 0.4
    assert np.isnan(lab.results.iloc[-1]["limit"])
    assert lab.results.iloc[-1]["share"] == 0.4


def shape(model, amount=None, kind=None):
    amount = {"one": 0.1, "two": 0.2, None: amount}[kind]
    return cl.zero_pruning.prune(model, sparsity=amount)


KINDS = techniques.Technique(
    name="shape",
    apply=shape,
    controls=(
        techniques.Control("amount", 0.5, alternative="how"),
        techniques.Control("kind", None, choices=("one", "two"), alternative="how"),
    ),
)


@pytest.mark.usefixtures("undrawn")
def test_a_chooser_among_alternatives_is_empty_until_it_is_used(open_lab):
    lab = open_lab(KINDS, threads=False)
    assert lab.controls["kind"].value is None
    lab.controls["kind"].value = "two"
    assert lab.results.iloc[-1]["kind"] == "two" and np.isnan(lab.results.iloc[-1]["amount"])
    lab.controls["amount"].value = 0.3
    assert lab.controls["kind"].value is None
    assert lab.results.iloc[-1]["amount"] == 0.3
    lab.controls["kind"].value = "two"
    lab.controls["kind"].value = None  # emptied by hand: the other is in use again
    assert lab.results.iloc[-1]["amount"] == 0.3
    assert lab.error is None


@pytest.mark.usefixtures("undrawn")
def test_an_anatomy_that_takes_the_data_is_given_it(open_lab, technique, tiny_data):
    given = []

    def look(model, compressed, setting, data):
        given.append(data)
        return [techniques.Picture("bars", "bars", np.array([0.5, 1.0]), "Bars", "What is left.")]

    lab = open_lab(replace(technique, anatomy=look), threads=False)
    assert lab.error is None
    assert given and all(one is tiny_data for one in given)


def distance(model, compressed, split, setting, seed):
    """A training of one's own, on half of the images: squared distance to the model's own logits."""

    def loss(student, images, labels):
        return (student(images) - model(images).detach()).square().mean()

    return split[: len(split) // 2], loss


@pytest.mark.usefixtures("undrawn")
def test_the_code_reproduces_a_training_of_ones_own(open_lab, technique, tiny_model, tiny_data, capsys):
    own = replace(technique, training=distance, steps=17)
    lab = open_lab(own, steps=None, threads=False, setting={"share": 0.8}, seed=2)
    assert lab.controls["steps"].value == 17
    assert run_code(lab, own, tiny_model, tiny_data, capsys) == tuple(lab.results.iloc[-1][["accuracy", "file_bytes"]])


def test_the_rounding_of_a_browser_is_not_a_move(open_lab):
    lab = open_lab(threads=False)
    before = len(lab.results)
    lab.controls["limit"].value = 0.1 + 1e-16  # its own value, as a browser computes it
    assert lab.choice.setting["share"] == 0.5 and len(lab.results) == before
    lab.controls["limit"].value = 0.10000000000000002
    assert "limit" not in lab.choice.setting and len(lab.results) == before


def test_the_pictures_are_png_and_change_with_the_slider(open_lab):
    lab = open_lab(threads=False)
    before = [pixels(image) for image in pictures(lab)]
    assert len(before) == 6  # the curve, two of the technique, the bytes of the file, two of the damage
    assert len({image.shape for image in before}) == 1
    lab.controls["share"].value = 0.9
    after = [pixels(image) for image in pictures(lab)]
    for old, new in zip(before, after, strict=True):
        assert new.std() > 5
        assert (old != new).any()


def test_the_picture_already_there_is_used_when_only_the_cut_moves(open_lab):
    lab = open_lab(threads=False)
    panel = lab.view.gallery.panels["weights"]
    background = panel._background
    lab.controls["share"].value = 0.9
    assert panel._background is background


def test_an_own_model_is_listed_beside_the_packaged_ones(open_lab):
    lab = open_lab(threads=False, steps=0)
    assert lab.controls["model"].options == (*cl.models.names(), "yours")


def test_an_error_is_shown_in_words_and_the_next_good_setting_clears_it(open_lab):
    lab = open_lab()
    lab.controls["share"].value = 0.75
    assert lab.wait(60) is False
    assert lab.error == "share is 0.75, which this technique cannot do"
    assert lab.error in text(lab)
    lab.controls["share"].value = 0.7
    assert lab.wait(60) is True
    assert lab.error is None
    assert "share 70%" in text(lab)


def test_a_model_that_does_not_take_the_images_is_an_error_in_words(open_lab):
    lab = open_lab(model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5, 3)))
    assert lab.wait(60) is False
    assert "(" in lab.error
    assert "images" in lab.error


@pytest.mark.usefixtures("undrawn")
def test_a_setting_of_the_curve_that_fails_is_left_out_and_said(open_lab):
    lab = open_lab(setting={"share": 0.7})
    assert lab.wait(60)
    until(lambda: "lacks" in lab.view.note.value)
    assert "share 75%" in lab.view.note.value
    assert lab.error is None


@pytest.mark.usefixtures("undrawn")
def test_idle_time_fills_in_the_curve_and_the_chosen_point_stays_last(open_lab):
    lab = open_lab()
    assert lab.wait(60)
    until(lambda: len(lab.results) >= 20)
    results = lab.results
    assert len(results) >= 20
    assert {0.0, 1.0} <= set(results["share"]) or len(set(results["share"])) >= 8
    assert results.iloc[-1]["share"] == 0.5


@pytest.mark.usefixtures("undrawn")
def test_whole_curve_goes_from_one_end_to_the_other(open_lab, technique):
    lab = open_lab(threads=False, setting={"limit": 0.1}, steps=2)
    assert not lab.curve_is_complete
    lab.buttons["whole curve"].click()
    assert lab.curve_is_complete
    limits = sorted(set(lab.results["limit"]))
    assert (limits[0], limits[-1]) == (0.0, 0.5)
    assert len(limits) >= 9
    assert "measured points" in lab.view.note.value
    assert lab.results.iloc[-1]["limit"] == 0.1


@pytest.mark.usefixtures("undrawn")
def test_the_curve_of_a_journal_is_there_when_a_lab_is_opened_again(open_lab):
    first = open_lab(threads=False, journal="j.sqlite")
    first.buttons["whole curve"].click()
    again = open_lab(threads=False, journal="j.sqlite", setting={"share": 0.9})
    assert len(again.results) == 2
    keys = again.measurements.along(again.choice).keys()
    assert len(keys) >= 14  # two stages of every setting that does not fail
    created = first.results.set_index("key")["created"]
    row = again.results.iloc[-1]
    assert row["created"] == created.get(row["key"], row["created"])


@pytest.mark.usefixtures("undrawn")
def test_a_setting_in_the_journal_is_not_trained_again(open_lab):
    first = open_lab(journal="j.sqlite")
    assert first.wait(60)
    again = open_lab(journal="j.sqlite", steps=8)
    assert again.wait(60)
    assert again.results.iloc[-1]["created"] == first.results.iloc[-1]["created"]
    assert again.view.chart.moving.one_shot is not None


def test_fair_control_is_measured_at_the_same_setting_after_the_point(open_lab):
    lab = open_lab(threads=False, setting={"share": 0.8})
    lab.fair["random"].value = True
    results = lab.results
    assert set(results[results["share"] == 0.8]["at_random"]) == {True, False}
    assert not results.iloc[-1]["at_random"]
    labels = [line.get_label() for line in lab.view.chart.panel.figure.axes[0].lines]
    assert "random" in labels
    assert "compare=('random',)" in lab.state


@pytest.mark.usefixtures("undrawn")
def test_pause_step_resume(open_lab):
    lab = open_lab(steps=30)
    assert lab.wait(60)
    lab.buttons["pause"].click()
    lab.controls["share"].value = 0.9
    until(lambda: lab.view.chart.moving.one_shot is not None)
    assert lab.wait(0.2) is False
    assert lab.view.chart.moving.retrained is None
    assert lab.results.iloc[-1]["share"] != 0.9 or lab.results.iloc[-1]["stage"] == "one-shot"
    lab.buttons["step"].click()
    assert lab.wait(0.2) is False
    lab.buttons["resume"].click()
    assert lab.wait(60) is True
    assert lab.results.iloc[-1]["share"] == 0.9


@pytest.mark.usefixtures("undrawn")
def test_steps_zero_ends_with_the_one_shot_point(open_lab):
    lab = open_lab(threads=False)
    lab.controls["steps"].value = 0
    last = lab.results.iloc[-1]
    assert (last["stage"], last["steps"]) == ("one-shot", 0)
    assert lab.view.chart.moving.retrained is None
    assert "KiB" in text(lab)


@pytest.mark.usefixtures("undrawn")
def test_state_reopens_the_lab(open_lab, technique, tiny_model, tiny_data):
    lab = open_lab(threads=False, setting={"limit": 0.2, "at_random": True}, steps=7, seed=5, journal="j.sqlite")
    lab.controls["mode"].value = "both"
    assert "\n" not in lab.state
    names = {"cl": cl, "technique": technique, "model": tiny_model, "data": tiny_data}
    again = eval(lab.state, names)  # noqa: S307 - the line is meant to be run
    try:
        assert again.state == lab.state
        assert again.wait(60)
        measured = ["limit", "accuracy", "file_bytes"]
        assert again.results.iloc[-1][measured].equals(lab.results.iloc[-1][measured])
    finally:
        again.close()


@pytest.mark.usefixtures("undrawn")
def test_the_code_reproduces_the_point(open_lab, technique, tiny_model, tiny_data, capsys):
    lab = open_lab(threads=False, setting={"share": 0.8}, seed=2)
    measured = run_code(lab, technique, tiny_model, tiny_data, capsys)
    assert measured == tuple(lab.results.iloc[-1][["accuracy", "file_bytes"]])


def run_code(lab, technique, tiny_model, tiny_data, capsys):
    """(accuracy, file_bytes) that the lines of *show the code* print."""
    code = lab.code
    for name, value in (("model", "tiny_model"), ("data", "tiny_data"), ("technique", "technique")):
        code = re.sub(rf"^{name} = \.\.\..*$", f"{name} = {value}", code, flags=re.MULTILINE)
    exec(code, {"technique": technique, "tiny_model": tiny_model, "tiny_data": tiny_data})  # noqa: S102
    accuracy, size = capsys.readouterr().out.split()
    return float(accuracy), int(size)


@pytest.mark.usefixtures("undrawn")
def test_show_the_code_opens_and_closes(open_lab):
    lab = open_lab(threads=False)
    lab.buttons["show the code"].click()
    assert lab.view.code.layout.display is None
    assert lab.state in lab.view.code.value
    lab.controls["share"].value = 0.85
    assert "0.85" in lab.view.code.value
    lab.buttons["show the code"].click()
    assert lab.view.code.layout.display == "none"


@pytest.mark.usefixtures("undrawn")
def test_export_writes_a_file_and_never_over_an_older_one(open_lab, tmp_path):
    lab = open_lab(threads=False)
    lab.buttons["export CSV"].click()
    lab.controls["share"].value = 0.9
    lab.buttons["export CSV"].click()
    first, second = (pd.read_csv(tmp_path / f"compresslab-zero{end}.csv") for end in ("", "-2"))
    assert (len(first), len(second)) == (2, 4)
    assert str(tmp_path / "compresslab-zero-2.csv") in lab.view.note.value
    packed = re.search("base64,([^']*)'", lab.view.note.value).group(1)
    assert pd.read_csv(io.BytesIO(base64.b64decode(packed))).equals(second)


@pytest.mark.usefixtures("undrawn")
def test_a_folder_that_cannot_be_written_is_an_error_in_words(open_lab, tmp_path, monkeypatch):
    lab = open_lab(threads=False)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    lab.buttons["export CSV"].click()
    assert lab.error
    assert len(lab.results) == 2


def test_clear_empties_the_lab_but_not_the_journal_and_can_be_undone(open_lab):
    lab = open_lab(threads=False, journal="j.sqlite")
    lab.controls["share"].value = 0.9
    before, shown = lab.results, pixels(chart(lab))
    lab.buttons["clear"].click()
    assert lab.results.empty
    assert (pixels(chart(lab)) != shown).any()
    assert len(cl.journal.open("j.sqlite")) == 4
    lab.buttons["clear"].click()
    pd.testing.assert_frame_equal(lab.results, before)
    assert (pixels(chart(lab)) == shown).all()


@pytest.mark.usefixtures("undrawn")
def test_after_clear_new_points_come_and_undo_keeps_them(open_lab):
    lab = open_lab(threads=False)
    lab.buttons["clear"].click()
    lab.controls["share"].value = 0.9
    assert set(lab.results["share"]) == {0.9}
    assert lab.buttons["clear"].description == "undo clear"
    lab.buttons["clear"].click()
    assert set(lab.results["share"]) == {0.5, 0.9}
    assert lab.results.iloc[-1]["share"] == 0.9


def test_a_locked_guess_is_drawn_and_compared_with_the_measurement(open_lab):
    lab = open_lab(threads=False)
    before = pixels(chart(lab))
    lab.guess["accuracy"].value, lab.guess["size"].value = 70, 1
    lab.buttons["lock in"].click()
    assert (pixels(chart(lab)) != before).any()
    assert lab.guess["accuracy"].disabled
    lab.controls["share"].value = 0.9
    accuracy = lab.results.iloc[-1]["accuracy"]
    assert "your guess 70.0% was" in text(lab)
    assert f"{abs(100 * (0.7 - accuracy)):.2f} points" in text(lab)
    lab.buttons["lock in"].click()
    assert not lab.guess["accuracy"].disabled
    lab.controls["share"].value = 0.8
    assert "guess" not in text(lab)


@pytest.mark.usefixtures("undrawn")
def test_report_shows_the_test_images_with_an_interval(open_lab, tiny_data):
    lab = open_lab(threads=False, setting={"share": 0.8})
    assert "est" not in lab.view.note.value
    lab.buttons["report on test"].click()
    said = lab.view.note.value
    assert f"{len(tiny_data.test)} images" in said
    low, high = (float(value) for value in re.search(r"interval ([\d.]+)% to ([\d.]+)%", said).groups())
    shown = float(re.search(r"\): ([\d.]+)%", said).group(1))
    assert 0 <= low <= shown <= high <= 100
    assert "test" not in set(lab.results["split"])


def test_a_technique_without_controls_or_pictures_still_has_a_lab(tiny_model, tiny_data):
    bare = cl.techniques.Technique("halve", lambda model: cl.zero_pruning.prune(model, sparsity=0.5), ())
    lab = cl.lab.explore(bare, model=tiny_model, data=tiny_data, steps=2, threads=False)
    assert lab.wait(0) is True
    assert len(lab.results) == 2
    lab.buttons["whole curve"].click()
    assert lab.error is None


@pytest.mark.usefixtures("undrawn")
def test_the_setting_with_its_warning_is_said(open_lab):
    lab = open_lab(threads=False)
    lab.controls["share"].value = 1.0
    assert "leaves no weight" in text(lab)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"setting": {"rank": 3}}, "setting is 'rank'; choose one of 'share'"),
        ({"setting": {"share": 90}}, "share is 90; give a number from 0 to 1"),
        ({"setting": {"share": 0.5, "limit": 0.1}}, "both share and limit"),
        ({"setting": {"mode": "half"}}, "mode is 'half'; choose one of"),
        ({"model": "lenet"}, "model is 'lenet'; choose one of"),
        ({"model": "lenet_5"}, "no trained weights for 'custom'"),
        ({"data": "imagenet"}, "data is 'imagenet'; choose one of"),
        ({"steps": -1}, "steps is -1; give a whole number 0 or more"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"compare": ("dense",)}, "compare is 'dense'"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:20],
)
def test_bad_arguments_are_named_at_once(open_lab, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_lab(**options)


def test_a_control_with_a_name_that_the_lab_uses_is_refused(tiny_model, tiny_data):
    control = cl.techniques.Control("seed", 0)
    with pytest.raises(ValueError, match="control named 'seed'"):
        cl.lab.explore(cl.techniques.Technique("own", lambda model, seed: model, (control,)), tiny_model, tiny_data)


def test_a_closed_lab_keeps_its_results(open_lab):
    lab = open_lab()
    assert lab.wait(60)
    lab.close()
    assert len(lab.results) >= 2


@pytest.mark.usefixtures("undrawn")
def test_in_idle_time_the_chosen_point_is_trained_for_longer_where_the_technique_asks(open_lab, technique):
    lab = open_lab(replace(technique, longer=3), steps=5)
    assert lab.wait(30)
    assert until(lambda: "with 15 steps" in text(lab))
    results = lab.results
    assert set(results["steps"]) == {0, 5, 15}
    assert results.iloc[-1]["steps"] == 5  # the chosen point stays the last row
    assert lab.view.chart.moving.longer[2] == 15
    lab.controls["share"].value = 0.7
    assert lab.wait(30) and until(lambda: "with 15 steps" in text(lab))
    assert lab.error is None


@pytest.mark.usefixtures("undrawn")
def test_without_steps_there_is_nothing_to_train_for_longer(open_lab, technique):
    lab = open_lab(replace(technique, longer=3), steps=0)
    assert lab.wait(30) and until(lambda: len(lab.results) > 3)
    assert set(lab.results["steps"]) == {0}


SCRIPT = """import torch
from torch import nn
import compresslab as cl

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, images):
        return self.layer(images.flatten(1))

torch.manual_seed(0)
count = 0
lab = cl.lab.explore("zero_pruning", model=Net(), data="mnist", steps=0, threads=False)
for count in range(1, 3):
    lab.controls["sparsity"].value = 0.5 + 0.1 * count
    print(lab.error, lab.results["sparsity"].iloc[-1])
"""


def test_a_script_may_change_its_variables_beside_a_lab_of_its_own_model(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": ROOT})
    assert answer.stdout.split() == ["None", "0.6", "None", "0.7"], answer.stderr[-1500:]
