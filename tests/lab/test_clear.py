"""What the page says of a point that is there and, after *clear*, of one that is gone."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab import techniques
from compresslab.experiments import trial
from compresslab.lab import jobs
from compresslab.lab.chart import Moving
from tests.lab.conftest import until
from tests.lab.test_explorer import text

pytestmark = pytest.mark.slow


def drawn(lab):
    """How many measured points are on the chart, beside the dense model's."""
    lines = [line for line in lab.view.chart.panel.figure.axes[0].lines if line.get_label() not in ("_dense file",)]
    return sum(len(line.get_xdata()) for line in lines if line.get_marker() not in ("None", "X"))


def assert_nothing_is_shown(lab):
    assert lab.results.empty
    assert drawn(lab) == 0 and lab.view.chart.moving == Moving(guess=lab.view.chart.moving.guess)
    assert "cleared" in text(lab) and "×" not in text(lab) and "against dense" not in text(lab)
    assert "chosen point" not in lab.view.chart.panel.caption.value
    assert "chosen point" not in lab.view.chart.panel.image.tooltip
    assert lab.view.ledger.value == "" and lab.view.note.value == ""
    assert len(lab.view.gallery.inside.children) == 0  # no picture of a network that is gone
    assert lab.view.progress.value == 0
    assert "not measured yet" in lab.code
    assert lab.error is None


def assert_all_agree(lab):
    """Status, caption and ledger speak of the point in the table's last row."""
    last = lab.results.iloc[-1]
    dense = lab.measurements.subject(lab.choice).sizes.dense_bytes
    size = f"{last['file_bytes'] / 1024:,.1f} KiB"
    times = re.search(r"([\d.,]+)× (smaller|larger) than the dense network", text(lab)).groups()
    expected = max(dense / last["file_bytes"], last["file_bytes"] / dense)
    assert float(times[0].replace(",", "")) == pytest.approx(expected, rel=0.005)
    assert times[1] == ("smaller" if last["file_bytes"] <= dense else "larger")
    caption = lab.view.chart.panel.caption.value
    assert caption == lab.view.chart.panel.image.tooltip
    (row,) = re.findall(r"<tr class='file'>(.*?)</tr>", lab.view.ledger.value)
    for place in (text(lab), caption):
        assert size in place and f"{times[0]}× {times[1]}" in place and f"{last['accuracy']:.2%}" in place
    assert f"<td>{size.removesuffix(' KiB')}</td><td>{times[0]}× {times[1]}</td>" in row
    assert f"dense network in fp32 ({dense / 1024:,.1f} KiB)" in lab.view.ledger.value
    assert lab.view.chart.moving.retrained == (last["file_bytes"], last["accuracy"])
    assert drawn(lab) > 0


def remove_neurons(model, share=0.5):
    """A network of its own shape: its own dense size is not that of the network before."""
    keep = max(1, round(12 * (1 - share)))
    small = nn.Sequential(nn.Flatten(), nn.Linear(16, keep), nn.ReLU(), nn.Linear(keep, 3))
    with torch.no_grad():
        small[1].weight.copy_(model[1].weight[:keep])
        small[1].bias.copy_(model[1].bias[:keep])
        small[3].weight.copy_(model[3].weight[:, :keep])
        small[3].bias.copy_(model[3].bias)
    return small


NEURONS = techniques.Technique("neurons", remove_neurons, (techniques.Control("share", 0.5, 0.0, 0.9, 0.1, unit="%"),))


def test_times_smaller_means_the_same_in_status_caption_and_ledger(open_lab):
    lab = open_lab(NEURONS, threads=False)
    for share in (0.9, 0.0):
        lab.controls["share"].value = share
        assert_all_agree(lab)


@pytest.mark.parametrize("threads", [True, False], ids=["threads", "callback"])
@pytest.mark.parametrize("compare", [("random",), ()], ids=["fair", "alone"])
def test_after_clear_nothing_is_said_of_a_point_that_is_gone(open_lab, threads, compare):
    lab = open_lab(threads=threads, compare=compare)
    assert lab.wait(60) and until(lambda: lab.view.ledger.value, 60)
    lab.buttons["clear"].click()
    assert lab.wait(60)
    assert not jobs.choose_background(lab)  # nothing is measured by itself on an empty page
    assert_nothing_is_shown(lab)
    lab.buttons["clear"].click()
    assert lab.wait(60) and until(lambda: lab.view.ledger.value, 60)
    assert_all_agree(lab)
    assert len(lab.view.gallery.inside.children) == 2


def test_a_clear_during_the_whole_curve_leaves_nothing(open_lab):
    lab = open_lab(steps=40, compare=("random",))
    assert lab.wait(60)
    lab.buttons["whole curve"].click()
    assert until(lambda: "whole curve" in text(lab), 60)
    lab.buttons["clear"].click()
    assert lab.wait(60)
    assert_nothing_is_shown(lab)


def test_a_point_that_was_still_being_measured_at_a_clear_is_cleared_too(open_lab):
    lab = open_lab(threads=False)
    late = lab.measurements.result(lab.choice)
    lab.measurements.clear()
    later = replace(late, seed=99)
    lab.measurements.points(lab.choice)[later.key] = later  # as the step that was at work adds it
    lab.measurements.add(later)
    lab._worker.submit(lambda: jobs.show_cleared(lab, lab.choice))
    assert_nothing_is_shown(lab)
    lab.buttons["clear"].click()
    assert set(lab.results["seed"]) == {0, 99}


def test_after_clear_every_way_on_shows_what_is_there(open_lab):
    lab = open_lab(threads=False, steps=2, compare=("random",))
    actions = {
        "fair control unticked": lambda: setattr(lab.fair["random"], "value", False),
        "fair control ticked": lambda: setattr(lab.fair["random"], "value", True),
        "report": lab.buttons["report on test"].click,
        "another setting": lambda: setattr(lab.controls["share"], "value", 0.9),
        "whole curve": lab.buttons["whole curve"].click,
    }
    for name, action in actions.items():
        lab.buttons["clear"].click()
        assert_nothing_is_shown(lab)
        action()
        assert_all_agree(lab)
        if name == "whole curve":
            shown = set(lab.results["at_random"])
            assert shown == {True, False}
        lab.buttons["clear"].click()  # undo
        assert_all_agree(lab)


def test_an_unticked_fair_control_leaves_no_points_in_the_techniques_colour(open_lab):
    lab = open_lab(threads=False, setting={"share": 0.8})
    before = drawn(lab)
    lab.fair["random"].value = True
    assert drawn(lab) > before
    lab.fair["random"].value = False
    assert drawn(lab) == before


def test_another_network_takes_the_page_of_the_first_with_it(open_lab, tiny_data):
    lab = open_lab(threads=False)
    lab.buttons["report on test"].click()
    lab.controls["data"].value = "mnist"  # its images do not fit the model: nothing can be measured
    assert lab.error and lab.error in text(lab)
    assert lab.view.chart.moving == Moving() and lab.view.ledger.value == "" and lab.view.note.value == ""
    assert not lab.view.chart.panel.figure.axes and "Nothing" in lab.view.chart.panel.caption.value
    assert len(lab.view.gallery.inside.children) == 0
    lab.controls["data"].value = "yours"
    assert_all_agree(lab)
    assert len(lab.view.gallery.inside.children) == 2


@pytest.mark.usefixtures("undrawn")
def test_ledger_and_report_name_steps_and_seed(open_lab):
    lab = open_lab(threads=False, steps=8, seed=3)
    lab.buttons["report on test"].click()
    assert "8 steps, seed 3" in lab.view.note.value and "8 steps, seed 3" in lab.view.ledger.value


@pytest.mark.usefixtures("undrawn")
def test_the_precision_is_on_the_page_and_in_the_journal(open_lab):
    lab = open_lab(threads=False, journal="j.sqlite")
    (kept,) = cl.journal.open("j.sqlite").results(stage="retrained")
    subject = lab.measurements.subject(lab.choice)
    assert (
        kept.precision
        == trial.resolved(lab.measurements._make_trial(lab.choice), subject.model, subject.data).precision
    )
    assert f"8 steps in {kept.precision}" in text(lab)
    assert lab.results.iloc[-1]["precision"] == kept.precision
