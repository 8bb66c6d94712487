"""Points of the chart that are pressed, pinned and gone back to, and the picture that stays without a kernel."""

import base64
import io
import re

import pytest
from PIL import Image

import compresslab as cl
from compresslab.lab.still import SENTENCE
from tests.lab.conftest import until

pytestmark = pytest.mark.slow


@pytest.fixture
def lab(open_lab):
    """A lab with two measured points, 50% and 80%."""
    lab = open_lab(threads=False)
    lab.controls["share"].value = 0.8
    return lab


def find_spot(lab, words):
    """Return the number of the first point of the chart whose text begins so."""
    return next(number for number, spot in enumerate(lab.view.chart.touch.points) if spot["text"].startswith(words))


def test_each_point_says_setting_accuracy_interval_bytes_and_loss(lab):
    spots = lab.view.chart.touch.points
    assert len(spots) == len(lab.view.chart.list_points()) >= 4
    pattern = r".+: [\d.]+% \(95% interval [\d.]+% to [\d.]+%\), .+ points against dense; [\d.]+ KiB"
    assert all(re.fullmatch(pattern, spot["text"]) for spot in spots)
    assert {spot["text"].split(":")[0] for spot in spots} >= {"share 50%, retrained", "share 80%, one-shot"}


def test_points_lie_where_the_picture_has_them(lab):
    lab.controls["share"].value = 0.95
    points = lab.view.chart.list_points()
    number = next(place for place, point in enumerate(points) if point.stage == "retrained" and point.accuracy < 0.99)
    spot, picture = lab.view.chart.touch.points[number], Image.open(io.BytesIO(lab.view.chart.panel.image.value))
    assert list(picture.size) == lab.view.chart.touch.size
    red, _, blue = picture.getpixel((round(spot["x"]), round(spot["y"])))
    assert blue > red + 80  # the point is blue


def test_a_pressed_point_sets_the_controls_and_is_measured_at_once(lab):
    count = len(lab.results)
    lab.view.chart.touch.pressed = [find_spot(lab, "share 50%"), 1]
    assert lab.controls["share"].value == 0.5 and lab.choice.setting["share"] == 0.5
    assert lab.settled == lab.choice and len(lab.results) == count


def test_pressing_what_is_not_there_does_nothing(lab):
    lab.view.chart.touch.pressed = [10_000, 1]
    assert lab.choice.setting["share"] == 0.8 and lab.error is None


def test_undo_and_redo_go_through_the_settings(lab):
    lab.controls["steps"].value = 4
    assert not lab.buttons["undo"].disabled and lab.buttons["redo"].disabled
    lab.buttons["undo"].click()
    assert lab.controls["steps"].value == 8 and lab.choice.setting["share"] == 0.8
    lab.buttons["undo"].click()
    assert lab.choice.setting["share"] == 0.5 and lab.buttons["undo"].disabled
    lab.buttons["redo"].click()
    lab.buttons["redo"].click()
    assert lab.controls["steps"].value == 4 and lab.choice.setting["share"] == 0.8 and lab.buttons["redo"].disabled


def test_the_pinned_point_is_compared_by_mcnemars_test(open_lab):
    lab = open_lab(threads=True)
    assert lab.wait(60)
    lab.buttons["pin"].click()
    assert lab.wait(60) and lab.buttons["pin"].description == "unpin"
    pinned, first = lab.pinned[1], lab.measurements.result(lab.pinned[0])
    lab.controls["share"].value = 0.95
    assert lab.wait(60) and until(lambda: "against A" in lab.view.difference.value, 60)
    test = cl.measure.mcnemar(
        pinned, lab.measurements.model(lab.choice), lab.measurements.subject(lab.choice).data.validation
    )
    second = lab.measurements.result(lab.choice)
    assert f"right where A is wrong on {test.only_b} images" in lab.view.difference.value
    assert f"{(first.file_bytes - second.file_bytes) / 1024:,.1f} KiB smaller" in lab.view.difference.value
    assert f"p = {test.p_value:.2g}" in lab.view.difference.value
    lab.buttons["pin"].click()
    assert lab.pinned is None and lab.view.difference.value == "" and lab.buttons["pin"].description == "pin"


def test_clear_lets_go_of_the_pinned_point(lab):
    lab.buttons["pin"].click()
    assert lab.pinned is not None and lab.view.chart.moving.pinned
    lab.buttons["clear"].click()
    assert lab.pinned is None and lab.view.chart.moving.pinned is None


def test_a_picture_stays_for_pages_without_a_kernel(lab, monkeypatch):
    shown = []

    class Handle:
        def update(self, content):
            shown.append(content.data)

    def record(content, display_id=None, raw=False):
        shown.append(content if raw else content.data)
        return Handle()

    monkeypatch.setattr("compresslab.lab.explorer.display", record)
    monkeypatch.setattr("compresslab.lab.still.display", record)
    lab._ipython_display_()
    assert "application/vnd.jupyter.widget-view+json" in shown[0]
    lab.controls["share"].value = 0.9
    source = re.search(r'base64,([^"]+)" alt="([^"]+)"', shown[-1])
    assert Image.open(io.BytesIO(base64.b64decode(source.group(1)))).size == tuple(lab.view.chart.touch.size)
    assert "chosen point" in source.group(2) and SENTENCE in shown[-1] and "share 90%" in shown[-1]


def test_forget_takes_what_the_lab_measured_out_of_the_journal(lab, open_lab):
    journal = lab.measurements.journal
    mine = {key for key in lab.results["key"]}
    assert mine and all(journal.find(key) for key in mine)
    second = open_lab(threads=False)
    second.controls["share"].value = 0.3
    theirs = second.results["key"].iloc[-1]
    lab.buttons["forget"].click()
    assert not any(journal.find(key) for key in mine) and journal.find(theirs)
    assert lab.results.empty and "forgotten" in lab.view.status.value and lab.error is None
    lab.measure()
    assert len(lab.results) == 2 and journal.find(lab.results["key"].iloc[-1])


def test_a_short_code_opens_the_same_lab():
    lab = cl.lab.explore("zero_pruning", setting={"sparsity": 0.8}, steps=0, seed=2, threads=False)
    again = cl.lab.open(lab.short_code)
    assert again.wait(60) and again.state == lab.state
    assert f"cl.lab.open({lab.short_code!r})" in lab.code and len(lab.short_code) < 200
    lab.close()
    again.close()


@pytest.mark.parametrize("code", ["", "nonsense", None, "a" * 5000])
def test_a_word_that_is_no_code_is_refused(code):
    with pytest.raises(ValueError, match="code is"):
        cl.lab.open(code)


def test_a_code_for_a_model_of_ones_own_asks_for_it(lab, tiny_model, tiny_data, technique):
    with pytest.raises(ValueError, match="not one of the package's"):
        _ = lab.short_code
    own = cl.lab.explore("zero_pruning", model=tiny_model, data=tiny_data, steps=0, threads=False)
    with pytest.raises(ValueError, match="model is None"):
        cl.lab.open(own.short_code)
    again = cl.lab.open(own.short_code, model=tiny_model, data=tiny_data)
    assert again.choice == own.choice
    own.close()
    again.close()


def test_undo_brings_back_the_control_that_excludes_another(open_lab, monkeypatch):
    lab = open_lab(threads=False)
    lab.controls["limit"].value = 0.2
    assert "limit" in lab.choice.setting
    measured = []
    monkeypatch.setattr(lab, "_submit", lambda job: measured.append(lab.choice))
    lab.buttons["undo"].click()
    assert lab.choice.setting["share"] == 0.5 and "limit" not in lab.choice.setting
    assert len(measured) == 1  # all controls are set before anything is measured


def test_another_network_or_data_lets_go_of_the_pinned_point(lab):
    lab.buttons["pin"].click()
    assert lab.pinned is not None
    lab.view.opened = ("another", lab.choice.data, 8, 0)
    lab.measure()
    assert lab.pinned is None and lab.buttons["pin"].description == "pin"


def test_a_difference_is_not_said_of_the_next_point(lab):
    lab.view.show_difference(lab.choice, "against A: +0.10 points")
    lab.view.begin(lab.choice)
    assert lab.view.difference.value == "" and lab.view.compared is None
