"""Calibration, by hand: nn.Identity as the model, so the images are the logits."""

import math

import pytest
import torch
from torch import nn

import compresslab as cl


def logits_of(confidences):
    """Logits of two classes whose answer is 0, with these confidences."""
    return torch.tensor([[math.log(value), math.log(1 - value)] for value in confidences])


MODEL = nn.Identity()
SPLIT = logits_of([0.95, 0.95, 0.95, 0.95, 0.62, 0.62]), torch.tensor([0, 0, 0, 1, 0, 1])


class Endless(nn.Module):
    """Answers with infinite logits."""

    def forward(self, images):
        return images + math.inf


def test_the_error_by_hand():
    # bin of 0.95: 3 of 4 right; bin of 0.62: 1 of 2 right
    by_hand = (4 * abs(0.75 - 0.95) + 2 * abs(0.5 - 0.62)) / 6
    assert cl.measure.calibration_error(MODEL, SPLIT, bins=10) == pytest.approx(by_hand, abs=1e-6)


def test_one_bin_compares_the_means():
    mean = (4 * 0.95 + 2 * 0.62) / 6
    assert cl.measure.calibration_error(MODEL, SPLIT, bins=1) == pytest.approx(mean - 4 / 6, abs=1e-6)


def test_over_and_under_confidence_do_not_cancel_across_bins():
    split = logits_of([0.95, 0.95, 0.55, 0.55]), torch.tensor([0, 1, 0, 0])
    assert cl.measure.calibration_error(MODEL, split) == pytest.approx((0.45 + 0.45) / 2, abs=1e-6)


def test_ends():
    sure = torch.tensor([[200.0, 0.0]] * 4)
    assert cl.measure.calibration_error(MODEL, (sure, torch.zeros(4).long())) == 0
    assert cl.measure.calibration_error(MODEL, (sure, torch.ones(4).long())) == 1
    even = torch.zeros(4, 2)
    assert cl.measure.calibration_error(MODEL, (even, torch.tensor([0, 1, 0, 1]))) == 0


def test_the_table_has_every_image_once():
    table = cl.measure.reliability(MODEL, SPLIT, bins=10)
    assert list(table.columns) == ["low", "high", "count", "confidence", "accuracy"]
    assert table["count"].sum() == 6 and len(table) == 10
    rows = table[table["count"] > 0]
    assert rows["count"].tolist() == [2, 4]
    assert rows["accuracy"].tolist() == [0.5, 0.75]
    assert rows["confidence"].tolist() == pytest.approx([0.62, 0.95])
    assert ((rows["low"] < rows["confidence"]) & (rows["confidence"] <= rows["high"])).all()


def test_a_confidence_at_an_end_belongs_to_the_bin_below():
    table = cl.measure.reliability(MODEL, (torch.zeros(3, 2), torch.zeros(3).long()), bins=2)
    assert table["count"].tolist() == [3, 0]


def test_a_shuffled_loader_gives_the_same():
    pairs = torch.utils.data.TensorDataset(*SPLIT)
    loader = torch.utils.data.DataLoader(pairs, batch_size=2, shuffle=True)
    stream = cl.data.from_loader(loader, loader, loader).validation
    expected = cl.measure.calibration_error(MODEL, SPLIT)
    assert cl.measure.calibration_error(MODEL, stream) == pytest.approx(expected)


def test_temperature_moves_the_error_and_not_the_accuracy():
    torch.manual_seed(0)
    labels = torch.randint(3, (3000,))
    logits = torch.randn(3000, 3) + 2 * nn.functional.one_hot(labels, 3)  # calibrated by construction at a scale of 2
    errors = [cl.measure.calibration_error(MODEL, (scale * logits, labels)) for scale in (0.3, 2.0, 9.0)]
    assert errors[1] < 0.03 < min(errors[0], errors[2])


@pytest.mark.parametrize("bins", [0, 2.5, "15"])
def test_bad_bins(bins):
    with pytest.raises(ValueError, match="bins is"):
        cl.measure.calibration_error(MODEL, SPLIT, bins=bins)


def test_outputs_without_numbers_and_labels_out_of_range():
    with pytest.raises(ValueError, match="not finite"):
        cl.measure.calibration_error(Endless(), SPLIT)
    with pytest.raises(ValueError, match="labels run from"):
        cl.measure.calibration_error(MODEL, (SPLIT[0], SPLIT[1] + 5))
