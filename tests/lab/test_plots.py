import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import compresslab as cl
from compresslab.lab import plots


@pytest.fixture
def ax():
    return Figure(figsize=(6, 4)).add_subplot()


@pytest.fixture
def results():
    return pd.DataFrame(
        {
            "sparsity": [0.9, 0.5, 0.9, 0.5],
            "stage": ["one-shot", "one-shot", "retrained", "retrained"],
            "accuracy": [0.80, 0.97, 0.96, 0.98],
            "file_bytes": [100_000, 500_000, 100_100, 500_100],
            "seed": 0,
        }
    )


def lines(ax, label):
    return [line for line in ax.lines if line.get_label() == label]


def test_curve_draws_what_was_measured_joined_in_the_order_of_size(ax, results):
    assert cl.lab.curve(results, ax=ax, label="magnitude") is ax
    (retrained,), (one_shot,) = lines(ax, "magnitude"), lines(ax, "magnitude, one-shot")
    assert retrained.get_xdata().tolist() == [100_100, 500_100]
    assert retrained.get_ydata() == pytest.approx([96, 98])
    assert retrained.get_markerfacecolor() == plots.BLUE
    assert one_shot.get_markerfacecolor() == "white"
    assert one_shot.get_ydata() == pytest.approx([80, 97])


def test_a_second_curve_has_another_colour_and_marker(ax, results):
    cl.lab.curve(results, ax=ax, label="a")
    cl.lab.curve(results.assign(accuracy=0.5), ax=ax, label="b")
    (first,), (second,) = lines(ax, "a"), lines(ax, "b")
    assert first.get_color() != second.get_color()
    assert first.get_marker() != second.get_marker()


@pytest.mark.parametrize("dense", [0.985, (0.985, 900_000)], ids=["accuracy", "pair"])
def test_the_dense_model_is_a_dashed_line_at_its_accuracy(ax, results, dense):
    cl.lab.curve(results, ax=ax, dense=dense)
    (line,) = lines(ax, "dense 98.5%")
    assert line.get_ydata()[0] == pytest.approx(98.5)
    assert line.get_linestyle() == "--"
    assert bool(lines(ax, "_dense file")) is isinstance(dense, tuple)


def test_several_seeds_give_their_mean_and_a_band(ax, results):
    retrained = results[results["stage"] == "retrained"]
    both = pd.concat([retrained, retrained.assign(seed=1, accuracy=retrained["accuracy"] - 0.02)])
    cl.lab.curve(both, ax=ax, label="two")
    (line,) = lines(ax, "two")
    assert line.get_ydata() == pytest.approx([95, 97])
    (band,) = ax.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((94, 98))


def test_curve_says_which_column_is_missing(ax):
    with pytest.raises(ValueError, match="no column accuracy"):
        cl.lab.curve(pd.DataFrame({"file_bytes": [1]}), ax=ax)


def test_curve_of_nothing_is_an_empty_picture(ax, results):
    cl.lab.curve(results[:0], ax=ax)
    assert ax.get_xlabel().startswith("file size (KiB")


def test_without_ax_it_makes_a_picture_of_its_own(results):
    from matplotlib import pyplot

    ax = cl.lab.curve(results)
    assert ax.figure.number in pyplot.get_fignums()
    pyplot.close(ax.figure)


def test_the_accuracy_axis_stretches_towards_100(ax):
    plots.accuracy_axis(ax, 50)
    heights = ax.transData.transform([(0, p) for p in (90, 91, 98, 99)])[:, 1]
    assert heights[3] - heights[2] > 3 * (heights[1] - heights[0])
    assert [tick.get_text() for tick in ax.get_yticklabels()][:3] == ["50", "75", "90"]
    assert np.isfinite(ax.transData.transform([(0, 100), (0, 0)])).all()


def test_sizes_are_labelled_in_kib(ax):
    plots.size_axis(ax, 5 * 1024, 2000 * 1024)
    ax.figure.draw_without_rendering()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10", "30", "100", "300", "1000"]


def test_size_limits_hold_all_and_only_grow():
    low, high = plots.size_limits([1000, 50_000])
    assert low < 1000 and high > 50_000
    assert plots.size_limits([20_000], low, high) == (low, high)
    assert plots.size_limits([100], low, high)[0] < 100
    assert plots.size_limits([low, high], low, high)[1] > high


def test_a_point_is_hollow_before_retraining(ax):
    plots.frame(ax, 1000, 1_000_000)
    *_, hollow = plots.point(ax, 5000, 0.9, hollow=True)
    *_, filled = plots.point(ax, 5000, 0.9)
    assert hollow.get_markerfacecolor() == "white"
    assert filled.get_markerfacecolor() == plots.BLUE
    assert filled.get_ydata() == [90]


def test_a_guess_without_a_size_is_a_line(ax):
    plots.frame(ax, 1000, 1_000_000)
    (line,), (star,) = plots.guess(ax, 0.97), plots.guess(ax, 0.97, 5000)
    assert line.get_linestyle() == "-."
    assert star.get_marker() == "*"
    assert star.get_xdata() == [5000]


@pytest.mark.parametrize("worst", [0.0, 0.3, 0.6, 0.99, 1.0])
def test_the_frame_shows_the_worst_point(ax, worst):
    plots.frame(ax, 1000, 1_000_000, worst)
    assert ax.get_ylim()[0] <= 100 * worst


def test_a_later_curve_is_inside_the_axes():
    ax = cl.lab.curve(pd.DataFrame({"accuracy": [0.97, 0.98], "file_bytes": [40_000, 80_000]}), dense=0.98)
    cl.lab.curve(pd.DataFrame({"accuracy": [0.2, 0.9], "file_bytes": [2_000, 900_000]}), ax, label="random")
    low, high = ax.get_xlim()
    assert low < 2_000 and high > 900_000
    assert ax.get_ylim()[0] < 20
