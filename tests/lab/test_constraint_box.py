"""The constraint box: it chooses by hand-made points, at every end of its sliders, and refuses bad tables."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import compresslab as cl
from compresslab.lab import constraint_box, plots

LIMITS = {"kib": 1000.0, "ms": 1.0, "points": 10.0}


@pytest.fixture
def front():
    return pd.DataFrame(
        {"name": ["dense", "half", "eighth"], "file_bytes": [900 * 1024, 400 * 1024, 100 * 1024],
         "latency": [0.9, 0.5, 0.2], "accuracy": [0.9, 0.895, 0.85]}
    )  # fmt: skip


def test_it_opens_with_all_points_allowed_and_names_the_most_accurate(front):
    box = cl.lab.constrain(front)
    assert box.choice == "dense" and "3 of 3" in box.text
    assert box.points["points"].tolist() == pytest.approx([0, 0.5, 5])
    assert set(box.controls) == {"kib", "ms", "points"}
    assert all(control.description for control in box.controls.values())


@pytest.mark.parametrize(
    "limits, choice",
    [({"kib": 500}, "half"), ({"ms": 0.3}, "eighth"), ({"kib": 150, "points": 1}, None), ({"points": 0.1}, "dense")],
)
def test_sliders_choose(front, limits, choice):
    box = cl.lab.constrain(front)
    before = box.panel.image.value
    for name, value in limits.items():
        box.controls[name].value = value
    assert box.choice == choice
    assert box.panel.image.value != before
    assert box.text == box.panel.image.tooltip and (choice or "Nearest comes") in box.text
    assert Image.open(io.BytesIO(box.panel.image.value)).format == "PNG"


def test_both_ends_of_every_slider(front):
    for name in ("kib", "ms", "points"):
        box = cl.lab.constrain(front)
        control = box.controls[name]
        logarithmic = name == "kib"
        control.value = 10**control.min if logarithmic else control.min
        assert box.choice is None and "No point meets all limits" in box.text
        control.value = 10**control.max if logarithmic else control.max
        assert box.choice == "dense"


def test_the_nearest_point_and_the_limits_it_breaks_are_named(front):
    points = cl.lab.constrain(front).points
    choice, text = constraint_box.choose_point(points, LIMITS | {"kib": 390, "points": 1})
    assert choice is None and "half: 400 KiB (at most 390)" in text and "ms" not in text
    _, text = constraint_box.choose_point(points, LIMITS | {"kib": 90, "ms": 0.1})
    assert "eighth: 100 KiB (at most 90) and 0.2 ms (at most 0.1)" in text


def test_a_point_on_its_limit_is_within_it_and_of_equals_the_smallest_is_chosen():
    front = pd.DataFrame({"file_bytes": [2048, 1024], "latency": [1, 1], "points": [3, 3]}, index=["large", "small"])
    box = cl.lab.constrain(front)
    assert box.choice == "small"
    assert constraint_box.choose_point(box.points, {"kib": 1, "ms": 1, "points": 3})[0] == "small"


def test_points_are_lost_against_the_accuracy_of_the_dense_network(front):
    box = cl.lab.constrain(front[1:], dense=0.9)
    assert box.points["points"].tolist() == pytest.approx([0.5, 5])


def test_points_that_remain_are_green_and_the_choice_is_labelled(front):
    box = cl.lab.constrain(front)
    box.controls["ms"].value, box.controls["kib"].value = 0.6, 200
    ax = box.panel.figure.axes[0]
    drawn = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert drawn["meets all limits"].get_color() == plots.GREEN
    assert drawn["meets all limits"].get_ydata().tolist() == pytest.approx([5])
    assert drawn["too slow"].get_ydata().tolist() == pytest.approx([0])
    assert [text.get_text() for text in ax.texts] == ["eighth"]


def test_one_row_is_enough(front):
    assert cl.lab.constrain(front[:1]).choice == "dense"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda front: front[:0], "front is"),
        (lambda front: front.to_dict(), "front is"),
        (lambda front: front.drop(columns="latency"), "no column latency"),
        (lambda front: front.drop(columns="accuracy"), "neither a column accuracy nor points"),
        (lambda front: front.assign(latency=[0.1, np.nan, 0.2]), "a latency that is no finite number"),
        (lambda front: front.assign(latency=["quick", 1, 2]), "a latency that is no finite number"),
        (lambda front: front.assign(file_bytes=[0, 1, 2]), "not above 0"),
        (lambda front: front.assign(name=["a", "a", "b"]), "two rows named 'a'"),
    ],
)
def test_bad_tables_are_refused_in_words(front, change, message):
    with pytest.raises(ValueError, match=message):
        cl.lab.constrain(change(front))


def test_a_dense_accuracy_in_percent_is_refused(front):
    with pytest.raises(ValueError, match="dense is 90"):
        cl.lab.constrain(front, dense=90)
