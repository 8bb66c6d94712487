"""Pictures of the answers that compression changed, and of the classes it hurt."""

import numpy as np
import pytest
import torch

import compresslab as cl
from compresslab.lab import damage
from compresslab.lab.anatomy import draw
from tests.lab.conftest import until

CLASSES = ("cat", "dog", "fox")


def make_logits(answers):
    return torch.nn.functional.one_hot(torch.tensor(answers), 3).float() * 5


def make_split():
    return cl.data.Split(torch.rand(6, 1, 4, 4), torch.tensor([0, 0, 0, 0, 1, 2]))


def test_changed_answers_and_points_lost_by_class():
    dense, compressed = make_logits([0, 0, 0, 1, 1, 1]), make_logits([0, 1, 2, 0, 1, 2])
    changes, classes = damage.make_pictures(dense, compressed, make_split(), CLASSES)
    assert changes.labels == ("cat", "cat") and changes.values.argmax(1).tolist() == [1, 2]
    assert changes.images.shape == (2, 4, 4)
    assert "2 were right and are wrong now" in changes.caption and "2 were wrong and are right" in changes.caption
    np.testing.assert_allclose(classes.values, [25, 0, -100])
    assert "the most: cat, 25.0" in classes.caption


def test_without_a_change_it_says_so_and_can_be_drawn():
    from matplotlib.figure import Figure

    logits = make_logits([0, 0, 0, 0, 1, 2])
    changes, classes = damage.make_pictures(logits, logits, make_split(), CLASSES)
    assert changes.title == "No image went from right to wrong" and not np.any(classes.values)
    for picture in (changes, classes):
        draw(picture, Figure().add_subplot())


def test_other_targets_have_no_such_pictures():
    split = cl.data.Split(torch.rand(6, 4), torch.rand(6, 3), metric=lambda outputs, targets: 0.0)
    assert damage.make_pictures(torch.rand(6, 3), torch.rand(6, 3), split, ()) == []


@pytest.mark.slow
@pytest.mark.parametrize("threads", [True, False])
def test_the_lab_shows_the_damage_of_its_point(open_lab, threads):
    lab = open_lab(threads=threads)
    lab.controls["share"].value = 0.9
    assert lab.wait(60) and until(lambda: lab.view.harmed == lab.choice, 60)
    model, subject = lab.measurements.model(lab.choice), lab.measurements.subject(lab.choice)
    changes = cl.measure.changed_predictions(model, subject.model, subject.data.validation)
    panel = lab.view.gallery.panels[damage.NAMES[0]]
    assert until(lambda: panel.caption.value, 30)
    assert f"{changes.broken} were right and are wrong now" in panel.caption.value
    assert f"{changes.repaired} were wrong and are right" in panel.caption.value
