import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab import measure

# nn.Identity as the model: the images are the logits, so every answer is known by hand
LOGITS = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 5.0], [9.0, 1.0, 0.0]])  # answers 0 1 2 0
LABELS = torch.tensor([0, 1, 1, 2])


class Log(nn.Module):
    """nan for every negative logit."""

    def forward(self, images):
        return images.log()


class Swap(nn.Module):
    """Exchanges the answers 0 and 2."""

    def forward(self, images):
        return images.flip(1)


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, images):
        return self.make(images)


def busy_model():
    """Everything that a careless evaluation would change: batch norm, dropout, mixed modes, gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )
    model(torch.rand(4, 1, 4, 4)).sum().backward()
    model[2].eval()
    return model


@pytest.fixture
def split():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(50, 1, 4, 4, generator=generator), torch.randint(0, 3, (50,), generator=generator)


def test_accuracy_by_hand():
    assert measure.accuracy(nn.Identity(), (LOGITS, LABELS)) == 0.5
    assert measure.accuracy(nn.Identity(), cl.data.Split(LOGITS, LABELS)) == 0.5
    assert type(measure.accuracy(nn.Identity(), (LOGITS, LABELS))) is float


def test_accuracy_is_the_plain_computation(split):
    model = busy_model().eval()
    with torch.no_grad():
        expected = (model(split[0]).argmax(1) == split[1]).double().mean().item()
    assert measure.accuracy(model.train(), split) == expected


@pytest.mark.parametrize("count", [1, 999, 1000, 1001])
def test_all_images_count_whatever_the_slices(count):
    labels = torch.arange(count) % 3
    images = nn.functional.one_hot(labels, 3).float()
    assert measure.accuracy(nn.Identity(), (images, labels)) == 1
    assert torch.equal(measure.predictions(nn.Identity(), images), labels)


def test_predictions_are_answers():
    answers = measure.predictions(nn.Identity(), LOGITS)
    assert answers.dtype == torch.int64
    assert answers.tolist() == [0, 1, 2, 0]


def test_predictions_scale_bytes_as_the_data_does():
    model = Returns(lambda images: torch.stack([images[:, 0], torch.full((len(images),), 0.5)], 1))
    assert measure.predictions(model, torch.tensor([[255], [0]], dtype=torch.uint8)).tolist() == [0, 1]


def test_per_class_by_hand():
    frame = measure.per_class(nn.Identity(), (LOGITS, LABELS))
    expected = pd.DataFrame({"class": [0, 1, 2], "count": [1, 2, 1], "accuracy": [1.0, 0.5, 0.0]})
    pd.testing.assert_frame_equal(frame, expected)


def test_per_class_damage_by_hand():
    frame = measure.per_class(Swap(), (LOGITS, LABELS), reference=nn.Identity())  # answers 2 1 0 2
    assert frame["accuracy"].tolist() == [0.0, 0.5, 1.0]
    assert frame["reference_accuracy"].tolist() == [1.0, 0.5, 0.0]
    assert frame["damage"].tolist() == [1.0, 0.0, -1.0]


def test_per_class_without_images_of_a_class():
    frame = measure.per_class(nn.Identity(), (LOGITS[:1], LABELS[:1]))
    assert frame["count"].tolist() == [1, 0, 0]
    assert np.isnan(frame["accuracy"][1:]).all()


def test_per_class_agrees_with_accuracy(split):
    model = busy_model()
    frame = measure.per_class(model, split)
    assert (frame["accuracy"] * frame["count"]).sum() / 50 == pytest.approx(measure.accuracy(model, split))


def test_changed_predictions_by_hand():
    changes = measure.changed_predictions(Swap(), nn.Identity(), (LOGITS, LABELS))  # 2 1 0 2 after 0 1 2 0
    assert (changes.count, changes.fraction, changes.broken, changes.repaired) == (3, 0.75, 1, 1)
    assert changes.indices.tolist() == [0, 2, 3]


def test_nothing_changes_against_itself(split):
    model = busy_model()
    changes = measure.changed_predictions(copy.deepcopy(model), model, split)
    assert (changes.count, changes.fraction, changes.broken, changes.repaired) == (0, 0.0, 0, 0)
    assert changes.indices.shape == (0,)


def test_accuracy_difference_is_broken_minus_repaired(split):
    model, reference = busy_model(), nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    changes = measure.changed_predictions(model, reference, split)
    lost = measure.accuracy(reference, split) - measure.accuracy(model, split)
    assert (changes.broken - changes.repaired) / 50 == pytest.approx(lost)
    assert changes.broken + changes.repaired <= changes.count == len(changes.indices)


def test_nan_output_is_wrong_and_said():
    images = torch.tensor([[-1.0, 2.0], [-1.0, -1.0], [1.0, 2.0]])
    with pytest.warns(UserWarning, match="nan for 2 of 3 images; they count as wrong"):
        assert measure.predictions(Log(), images).tolist() == [-1, -1, 1]
    for label in (0, 1):  # torch's argmax would call both nan images class 0 or 1
        with pytest.warns(UserWarning, match="nan"):
            assert measure.accuracy(Log(), (images[:2], torch.full((2,), label))) == 0


def test_infinite_logits_are_answers():
    assert measure.predictions(
        Returns(lambda images: images / 0), torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    ).tolist() == [0, 1]


@pytest.mark.parametrize("call", ["accuracy", "per_class", "accuracy_interval", "predictions"])
def test_model_is_left_as_it_was(call, split):
    model = busy_model()
    state, modes = copy.deepcopy(model.state_dict()), [part.training for part in model.modules()]
    gradients, chance = [weight.grad.clone() for weight in model.parameters()], torch.get_rng_state()
    getattr(measure, call)(model, split[0] if call == "predictions" else split)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert modes == [part.training for part in model.modules()]
    assert all(torch.equal(a, b.grad) for a, b in zip(gradients, model.parameters(), strict=True))
    assert torch.equal(chance, torch.get_rng_state())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype, split):
    model = busy_model()
    assert abs(measure.accuracy(copy.deepcopy(model).to(dtype), split) - measure.accuracy(model, split)) <= 0.04


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ((LOGITS[:0], LABELS[:0]), "at least one image"),
        ((LOGITS, LABELS[:3]), r"labels have shape \(3,\) for 4 images"),
        ((LOGITS, torch.tensor([0, 1, 2, 3])), "labels run from 0 to 3; the model has 3 outputs"),
        ((LOGITS, torch.tensor([0, 1, 2, -1])), "labels hold -1"),
        (LOGITS, r"pair \(images, labels\)"),
    ],
    ids=["empty", "lengths", "too high", "negative", "no labels"],
)
@pytest.mark.parametrize(
    "call", [measure.accuracy, measure.per_class, measure.accuracy_interval], ids=lambda f: f.__name__
)
def test_bad_splits(call, bad, message):
    with pytest.raises(ValueError, match=message):
        call(nn.Identity(), bad)


def test_an_empty_split_object():
    with pytest.raises(ValueError, match="at least one image"):
        measure.accuracy(nn.Identity(), cl.data.Split(LOGITS[:0], LABELS[:0]))


def test_no_images_to_predict():
    with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
        measure.predictions(nn.Identity(), LOGITS[:0])


@pytest.mark.parametrize(
    "make",
    [
        lambda images: images[:, 0],
        lambda images: images[:, None],
        lambda images: images[:1],
        lambda images: images[:, :0],
        lambda images: (images,),
    ],
    ids=["one number", "3 dimensions", "one row", "no classes", "tuple"],
)
def test_outputs_that_are_no_logits(make):
    with pytest.raises(ValueError, match=r"logits,? \(N, classes\)"):
        measure.accuracy(Returns(make), (LOGITS, LABELS))


def test_images_that_the_model_does_not_take(split):
    with pytest.raises(ValueError, match=r"\(50, 1, 4, 4\)"):
        measure.accuracy(nn.Linear(3, 3), split)


def test_a_reference_of_another_task():
    wider = Returns(lambda images: torch.cat([images, images], 1))
    with pytest.raises(ValueError, match="reference has 6 classes and model has 3"):
        measure.per_class(nn.Identity(), (LOGITS, LABELS), wider)
