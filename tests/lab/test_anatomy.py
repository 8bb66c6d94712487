from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from compresslab.lab import anatomy
from compresslab.lab.canvas import Panel
from compresslab.lab.gallery import Gallery
from compresslab.techniques import Picture

GENERATOR = np.random.default_rng(0)
PICTURES = [
    Picture("h", "histogram", GENERATOR.normal(size=500), "Weights", "caption", cut=0.5, axis="weight"),
    Picture("m", "matrix", GENERATOR.normal(size=(4, 6)), "Matrix"),
    Picture("s", "spectrum", np.exp(-np.arange(20.0)), "Spectrum", cut=5),
    Picture("i", "images", GENERATOR.normal(size=(7, 3, 3)), "Images"),
    Picture("b", "bars", np.array([0.2, 0.9]), "Bars", labels=("fc1", "fc2"), axis="sparsity"),
    Picture(
        *("t", "targets", np.array([[0.7, 0.2, 0.1], [0.001, 0.5, 0.499]]), "Targets"),
        labels=("cat", "dog"),
        classes=("cat", "dog", "bird"),
        images=GENERATOR.random((2, 5, 5)),
    ),
    Picture("k", "stack", np.array([[3, 1], [0, 2]]), "Stack", labels=("fc1", "fc2"), classes=("values", "codebook")),
]


@pytest.fixture
def ax():
    return Figure(figsize=(5, 4)).add_subplot()


@pytest.mark.parametrize("picture", PICTURES, ids=lambda one: one.kind)
def test_every_kind_is_drawn(ax, picture):
    assert anatomy.draw(picture, ax) is ax
    assert ax.get_title(loc="left") == picture.title
    ax.figure.draw_without_rendering()


@pytest.mark.parametrize("kind", list(anatomy.KINDS))
@pytest.mark.parametrize("fill", [0.0, np.nan, 1e30], ids=["zeros", "nan", "huge"])
def test_every_kind_bears_a_constant(ax, kind, fill):
    shape = {"matrix": (2, 3), "images": (4, 2, 2), "targets": (2, 3), "stack": (2, 3)}.get(kind, (5,))
    picture = Picture("x", kind, np.full(shape, fill), "Constant", cut=1.0)
    anatomy.draw(picture, ax, anatomy.limits(picture))
    anatomy.cut(picture, ax)
    ax.figure.draw_without_rendering()
    assert np.isfinite(ax.get_xlim()).all()


def test_an_unknown_kind_is_named(ax):
    with pytest.raises(ValueError, match="kind 'pie'; choose one of histogram, matrix"):
        anatomy.draw(Picture("p", "pie", np.ones(3), "Pie"), ax)


def test_the_parts_of_a_bar_lie_beside_one_another(ax):
    anatomy.bars(next(one for one in PICTURES if one.kind == "stack"), ax)
    places = [(bar.get_x(), bar.get_width()) for bar in ax.patches]
    assert places == [(0, 3), (0, 0), (3, 1), (0, 2)]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["values", "codebook"]


def test_a_histogram_counts_every_value(ax):
    anatomy.histogram(PICTURES[0], ax)
    assert ax.patches[0].get_data().values.sum() == 500


def test_the_cut_of_a_histogram_lies_on_both_sides_of_zero(ax):
    anatomy.histogram(PICTURES[0], ax)
    _, *lines = anatomy.cut(PICTURES[0], ax)
    assert sorted(line.get_xdata()[0] for line in lines) == [-0.5, 0.5]


def test_the_cut_of_magnitudes_lies_on_one(ax):
    picture = Picture("h", "histogram", np.abs(PICTURES[0].values), "Magnitudes", cut=0.5)
    anatomy.histogram(picture, ax)
    _, *lines = anatomy.cut(picture, ax)
    assert [line.get_xdata()[0] for line in lines] == [0.5]


def test_targets_are_a_bar_for_each_class_orange_for_the_true_one(ax):
    anatomy.targets(PICTURES[5], ax)
    (bars,) = [one for one in ax.collections if hasattr(one, "get_facecolors") and len(one.get_paths()) == 6]
    heights = [np.ptp(path.vertices[:, 1]) / anatomy.BAR for path in bars.get_paths()]
    assert heights == pytest.approx(PICTURES[5].values.ravel())
    orange = [tuple(color) == to_rgba(anatomy.ORANGE) for color in bars.get_facecolors()]
    assert orange == [True, False, False, False, True, False]
    assert [text.get_text() for text in ax.texts] == ["70%", "20%", "50%", "50%"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["cat", "dog"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["cat", "dog", "bird"]


def test_the_images_beside_targets_are_square_and_each_in_its_row(ax):
    ax.figure.set_layout_engine("constrained")
    anatomy.targets(PICTURES[5], ax)
    ax.figure.draw_without_rendering()
    left, right, bottom, top = ax.images[0].get_extent()
    corners = ax.transData.transform([(left, bottom), (right, top)])
    width, height = np.ptp(corners[:, 0]), np.ptp(corners[:, 1])
    assert (bottom, top) == (2, 0)
    assert width == pytest.approx(height / 2, rel=0.02)


def test_targets_without_images_leave_no_room_for_them(ax):
    anatomy.targets(replace(PICTURES[5], images=None), ax)
    assert not ax.images and ax.get_xlim() == (-0.6, 2.6)


def test_tile_keeps_every_image_and_leaves_gaps():
    stack = np.arange(7 * 6.0).reshape(7, 2, 3)
    sheet = anatomy.tile(stack, np.nan)
    assert sheet[1:3, 1:4].tolist() == stack[0].tolist()
    assert sorted(sheet[np.isfinite(sheet)]) == sorted(stack.ravel())
    assert np.isnan(sheet[0]).all() and np.isnan(sheet[:, 0]).all()


def test_tile_of_one_hundred_leaves_no_empty_place():
    sheet = anatomy.tile(np.ones((100, 5, 5)), np.nan)
    rows, columns = ((length - 1) // 6 for length in sheet.shape)
    assert rows * columns == 100


def test_a_cut_through_bars_is_a_line_that_stays(ax):
    picture = Picture("b", "bars", np.array([0.2, 0.9]), "Bars", labels=("fc1", "fc2"), cut=1.0)
    anatomy.bars(picture, ax, None)
    assert ax.lines[-1].get_xdata()[0] == 1.0
    assert anatomy.cut(picture, ax) == []


def test_bars_of_fractions_are_in_percent(ax):
    anatomy.bars(PICTURES[4], ax, anatomy.limits(PICTURES[4]))
    ax.figure.draw_without_rendering()
    assert "100%" in [tick.get_text() for tick in ax.get_xticklabels()]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["fc1", "fc2"]


def test_a_panel_keeps_its_size_and_its_layout():
    panel = Panel(300, 200)
    places = []
    for picture in PICTURES[1], PICTURES[1]:
        panel.draw(lambda ax, picture=picture: anatomy.draw(picture, ax))
        places.append([ax.get_position().bounds for ax in panel.figure.axes])
        assert bytes(panel.image.value).startswith(b"\x89PNG")
    assert places[0] == places[1]
    chart, bar = places[0]
    assert chart[0] + chart[2] < bar[0]  # the colour bar stands beside the matrix


def test_what_moves_leaves_no_trace():
    panel = Panel(300, 200)
    panel.draw(lambda ax: anatomy.draw(PICTURES[0], ax))
    still = panel.image.value
    panel.move(lambda ax: anatomy.cut(PICTURES[0], ax))
    assert panel.image.value != still
    panel.move()
    assert panel.image.value == still


def test_a_caption_is_text_not_markup():
    panel = Panel(300, 200)
    panel.say("1 < 2 & so on")
    assert panel.caption.value == "1 &lt; 2 &amp; so on"
    assert panel.image.tooltip == "1 < 2 & so on"


def make_gallery(picture):
    """A gallery in which a picture is drawn."""
    gallery = Gallery()
    gallery.arrange([picture.name])
    gallery.show([picture])
    assert gallery.draw_next() and not gallery.draw_next()
    return gallery, gallery.panels[picture.name]


def test_a_gallery_only_moves_the_cut_where_the_values_stay():
    first = PICTURES[0]
    gallery, panel = make_gallery(first)
    background, drawn = panel._background, panel.image.value
    gallery.show([Picture("h", "histogram", first.values.copy(), "Weights", "caption", cut=1.0, axis="weight")])
    assert panel._background is background and not gallery.draw_next()
    assert panel.image.value != drawn
    gallery.show([Picture("h", "histogram", first.values * 0.5, "Weights", "caption", cut=1.0)])
    assert panel._background is background
    assert gallery.draw_next()
    assert panel._background is not background


def test_a_newer_picture_takes_the_place_of_the_one_that_waits():
    gallery, panel = make_gallery(PICTURES[0])
    gallery.show([replace(PICTURES[0], values=PICTURES[0].values * 0.5)])
    gallery.arrange([PICTURES[0].name])
    assert not gallery.draw_next()


@pytest.mark.parametrize("above", [False, True])
def test_the_band_of_a_cut_lies_over_what_goes(above):
    ax = Figure().add_subplot()
    shown = Picture("h", "histogram", np.linspace(0, 1, 50), "Values", cut=0.8, above=above)
    anatomy.draw(shown, ax)
    band = anatomy.cut(shown, ax)[0].get_bbox()
    low, high = sorted((band.x0, band.x1))
    assert (low, high) == pytest.approx((0.8, ax.get_xlim()[1]) if above else (0, 0.8))


def test_marks_of_a_histogram_move_over_it(ax):
    picture = replace(PICTURES[0], cut=None, marks=np.array([-1.0, 0.25, 2.0]))
    anatomy.histogram(picture, ax)
    (lines,) = anatomy.cut(picture, ax)
    assert [segment[0, 0] for segment in lines.get_segments()] == [-1.0, 0.25, 2.0]
    assert all(segment[:, 1].tolist() == list(ax.get_ylim()) for segment in lines.get_segments())
    assert len(anatomy.cut(replace(picture, cut=0.5), ax)) == 4  # a band and two lines beside
    assert anatomy.cut(replace(picture, marks=np.empty(0)), ax)[0].get_segments() == []


def test_a_gallery_moves_marks_over_the_same_weights():
    picture = replace(PICTURES[0], cut=None, marks=np.array([-1.0, 1.0]))
    gallery, panel = make_gallery(picture)
    shown = [panel.image.value]
    gallery.show([replace(picture, marks=np.array([-0.5, 1.0]))])
    shown.append(panel.image.value)
    assert shown[0] != shown[1]
