import pandas as pd
import pytest
from matplotlib.figure import Figure

import compresslab as cl
from compresslab.lab import comparison, plots

pytestmark = pytest.mark.slow


@pytest.fixture
def ax():
    return Figure(figsize=(6, 4)).add_subplot()


def results(sizes, accuracies, **columns):
    frame = {"share": range(len(sizes)), "file_bytes": sizes, "accuracy": accuracies, "stage": "retrained", "seed": 0}
    return pd.DataFrame({**frame, **columns})


def lines(ax, label):
    return [line for line in ax.lines if line.get_label() == label]


def test_the_front_holds_what_nothing_beats_in_both_size_and_accuracy():
    points = results([100, 200, 300, 400, 400], [0.9, 0.8, 0.95, 0.95, 0.94])
    assert comparison.find_front(points)["file_bytes"].tolist() == [100, 300]


def test_files_that_differ_by_some_bytes_are_of_one_size_on_the_front():
    assert comparison.find_front(results([1000, 1002, 1003, 2000], [0.90, 0.95, 0.93, 0.97]))[
        "file_bytes"
    ].tolist() == [
        1002,
        2000,
    ]


def test_of_equals_the_smaller_is_on_the_front():
    assert comparison.find_front(results([1000, 1002, 1002], [0.95, 0.95, 0.9]))["file_bytes"].tolist() == [1000]


def test_a_point_alone_is_its_own_front():
    assert len(comparison.find_front(results([100], [0.0]))) == 1


def test_seeds_are_brought_together_and_training_lengths_are_not():
    same = {"share": [1, 1, 1], "seed": [0, 1, 2], "steps": [5, 5, 9]}
    together = plots.average_seeds(results([100, 110, 120], [0.9, 0.8, 0.7], **same))
    assert together["seeds"].tolist() == [2, 1]
    assert together.loc[0, ["file_bytes", "accuracy", "low", "high"]].tolist() == pytest.approx([105, 0.85, 0.8, 0.9])


def test_settings_that_are_no_numbers_are_told_apart():
    ranks = {"rank": [{"fc1": 3}, {"fc1": 4}, {"fc1": 3}], "seed": [0, 0, 1], "share": 1}
    assert plots.average_seeds(results([1, 2, 1], [0.5, 0.6, 0.7], **ranks))["seeds"].tolist() == [2, 1]


def test_any_number_of_curves_have_their_own_colour_and_marker(ax):
    frames = [(f"curve {number}", results([1000, 2000], [0.9, 0.95])) for number in range(9)]
    cl.lab.compare(*frames, ax=ax)
    drawn = [lines(ax, label)[0] for label, _ in frames]
    assert len({(line.get_color(), line.get_marker()) for line in drawn}) == 9


def test_several_seeds_have_a_band_and_the_front_lies_under_all(ax):
    seeds = pd.concat([results([1000, 2000], [0.9, 0.95]), results([1000, 2000], [0.8, 0.97], seed=1)])
    cl.lab.compare(("two seeds", seeds), ("better", results([900], [0.99])), ax=ax)
    assert len(ax.collections) == 1
    (front,) = lines(ax, "Pareto front")
    assert front.get_xdata().tolist() == [900]
    assert front.get_zorder() < lines(ax, "better")[0].get_zorder()
    assert not lines(cl.lab.compare(seeds, front=False, ax=Figure().add_subplot()), "Pareto front")


@pytest.mark.usefixtures("undrawn")
def test_a_lab_gives_the_curve_of_its_slider_with_every_seed_of_the_journal(open_lab, ax):
    lab = open_lab(threads=False)
    for seed, share in ((0, 0.2), (0, 0.9), (1, 0.2)):
        lab.controls["seed"].value = seed
        lab.controls["share"].value = share
    lab.controls["at_random"].value = True  # another curve
    lab.controls["at_random"].value = False
    family = lab.family()
    assert set(family["share"]) >= {0.2, 0.5, 0.9}
    assert set(family["at_random"]) == {False}
    assert set(family["seed"]) == {0, 1}
    assert set(family["stage"]) == {"retrained"}
    cl.lab.compare(lab, ax=ax)
    assert lines(ax, "zero") and [one for one in ax.lines if one.get_label().startswith("dense ")]


@pytest.mark.usefixtures("undrawn")
def test_two_labs_of_one_technique_are_told_apart_by_their_settings(open_lab, ax):
    first, second = open_lab(threads=False), open_lab(threads=False, setting={"at_random": True})
    cl.lab.compare(first, second, ax=ax)
    assert lines(ax, "zero") and lines(ax, "zero, at_random True")


def test_a_technique_by_name_is_what_the_journal_holds_of_it(tiny_model, tiny_data, ax):
    names = {"model": "own", "data": "tiny"}
    runs = cl.sweep.run(
        "zero_pruning", tiny_model, tiny_data, {"sparsity": [0.2, 0.8]}, steps=2, names=names, bar=False
    )
    sizes = sorted(run.file_bytes for run in runs)
    cl.lab.compare("zero_pruning", **names, ax=ax)
    assert lines(ax, "zero_pruning")[0].get_xdata().tolist() == sizes
    again = cl.lab.compare(**names, ax=Figure().add_subplot())
    assert lines(again, "zero_pruning")[0].get_xdata().tolist() == sizes


@pytest.mark.parametrize(
    "sources, message",
    [
        (("zero_pruning",), "nothing is measured of 'zero_pruning'"),
        ((), "the journal holds nothing for model 'lenet_300_100' and data 'mnist'"),
        ((3,), "source is a int; give a Lab, a technique's name or a DataFrame"),
        (("zero-pruning",), "technique is 'zero-pruning'; choose one of"),
        ((pd.DataFrame({"accuracy": [1.0]}),), "results has no column file_bytes"),
    ],
)
def test_what_cannot_be_compared_is_said(sources, message, home):
    with pytest.raises(ValueError, match=message):
        cl.lab.compare(*sources)
