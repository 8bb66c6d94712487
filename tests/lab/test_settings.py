"""Controls, the settings of a curve, and numbers in words: what needs neither a model nor a page."""

from types import SimpleNamespace

import pytest

from compresslab.lab import settings as spans
from compresslab.lab import words
from compresslab.lab.controls import choose_readout, drop_dust, make_widget
from compresslab.techniques import Control, Technique

SHARE = Control("share", 0.5, 0.0, 0.99, 0.01, unit="%")
RANK = Control("rank", 8, 1, 64, 1, unit="columns")
BITS = Control("bits", 4, choices=(2, 4, 8))
SCOPE = Control("scope", "global", choices=("global", "layer"))
FLAG = Control("merge", True)


def test_a_fraction_is_shown_in_percent_with_the_decimals_of_its_step():
    assert choose_readout(SHARE) == ".0%"
    assert choose_readout(Control("s", 0.5, step=0.005, unit="%")) == ".1%"
    assert choose_readout(Control("t", 0.05, step=0.002)) == ".3f"


@pytest.mark.parametrize(
    ("control", "kind"),
    [(SHARE, "FloatSlider"), (RANK, "IntSlider"), (BITS, "Dropdown"), (FLAG, "Checkbox")],
    ids=lambda value: getattr(value, "name", value),
)
def test_each_kind_of_control_has_its_widget(control, kind):
    widget = make_widget(control)
    assert type(widget).__name__ == kind
    assert widget.value == control.default
    assert widget.description.startswith(control.name)


def test_a_control_without_a_default_begins_at_its_low_end():
    assert make_widget(Control("threshold", None, 0.1, 0.5)).value == 0.1


def test_values_lose_the_dust_of_binary_fractions():
    assert drop_dust(0.1 + 0.2) == 0.3
    assert drop_dust(3) == 3
    assert drop_dust("layer") == "layer"


@pytest.mark.parametrize("control", [SHARE, RANK], ids=["fraction", "whole"])
def test_even_settings_go_from_end_to_end_on_steps(control):
    settings = spans.list_even_settings(control)
    assert (settings[0], settings[-1]) == (control.low, control.high)
    assert settings == sorted(settings)
    assert all(spans.round_to_step(control, one) == one for one in settings)
    assert {type(one) for one in settings} == {type(control.low)}


def test_choices_are_settings_themselves():
    assert spans.list_even_settings(BITS) == [2, 4, 8]
    assert spans.list_even_settings(FLAG) == [False, True]
    assert spans.list_neighbours(BITS, 4) == []


def test_neighbours_stay_inside_the_range():
    assert spans.list_neighbours(SHARE, 0.5) == [0.51, 0.49]
    assert spans.list_neighbours(SHARE, 0.99) == [0.98]


def test_the_nearest_settings_come_first():
    assert spans.sort_by_distance([0.0, 0.5, 1.0], 0.6) == [0.5, 1.0, 0.0]
    assert spans.sort_by_distance(["a", "b"], "b") == ["a", "b"]


def test_the_widest_gap_is_between_the_sizes_that_differ_most():
    assert spans.find_widest_gap(SHARE, [(0.0, 1000), (0.5, 900), (0.9, 100)]) == 0.7
    assert spans.find_widest_gap(SHARE, [(0.0, 1000), (0.5, 990), (0.9, 980)]) is None
    assert spans.find_widest_gap(SHARE, [(0.5, 1000), (0.51, 10)]) is None
    assert spans.find_widest_gap(BITS, [(2, 1000), (8, 10)]) is None
    assert spans.find_widest_gap(SHARE, []) is None


def test_filling_gaps_ends():
    measured = [(setting, 1000 * (1.0001 - setting)) for setting in spans.list_even_settings(SHARE)]
    while (gap := spans.find_widest_gap(SHARE, measured)) is not None:
        measured.append((gap, 1000 * (1.0001 - gap)))
        assert len(measured) < 40
    assert len(measured) >= 13


def test_settings_in_words_leave_out_choices_at_their_default():
    technique = Technique("t", lambda model: model, (SHARE, RANK, SCOPE))
    assert (
        words.describe_setting(technique, {"share": 0.905, "rank": 3, "scope": "global"})
        == "share 90.5%, rank 3 columns"
    )
    assert words.describe_setting(technique, {"share": 0.9, "scope": "layer"}) == "share 90%, scope layer"
    assert words.describe_setting(technique, {}) == "t"


def test_differences_in_words():
    assert words.format_points(-0.0042) == "−0.42 points"
    assert words.format_points(0.0042) == "+0.42 points"
    assert words.format_points(0.0) == "±0.00 points"
    assert words.format_size(1024, 10240) == "1.0 KiB, 10× smaller than the dense network in fp32"
    assert words.format_size(2048, 1024) == "2.0 KiB, 2× larger than the dense network in fp32"
    assert words.format_ratio(1000, 1_234_567) == "1,230× smaller"


def test_a_guess_is_compared_in_points_and_kib():
    result = SimpleNamespace(accuracy=0.98, file_bytes=2048)
    assert words.describe_guess((0.97, None), result) == "your guess 97.0% was 1.00 points too low"
    assert words.describe_guess((0.97, 1024), result).endswith("1.0 KiB was 2× too small")


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (ValueError("rank is 0"), "rank is 0"),
        (KeyError("fc9"), "KeyError: 'fc9'"),
        (MemoryError(), "MemoryError, without a message"),
    ],
    ids=["value", "key", "silent"],
)
def test_errors_in_words(problem, text):
    assert words.describe_error(problem) == text
