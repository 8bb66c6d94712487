"""Moments of what layers are given: torch's own convolutions as the oracle for the windows, bounded work."""

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab.numerics import moments
from compresslab.numerics.moments import input_moments
from tests.numerics.samples import input_rows

LAYERS = {
    "linear": (nn.Linear(6, 4), (5, 6)),
    "linear over tokens": (nn.Linear(6, 4), (2, 3, 6)),
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 11)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 3)), (2, 3, 9, 10)),
    "conv2d one by one": (nn.Conv2d(3, 4, 1, stride=2), (2, 3, 5, 5)),
    "conv3d": (nn.Conv3d(2, 3, (1, 2, 3), padding=1), (2, 2, 4, 5, 6)),
    "same": (nn.Conv2d(2, 3, (4, 3), padding="same", dilation=(1, 2)), (2, 2, 7, 8)),
    "valid": (nn.Conv2d(2, 3, 3, padding="valid"), (2, 2, 7, 8)),
    "circular": (nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="circular"), (2, 2, 7, 8)),
    "reflect": (nn.Conv2d(2, 3, 3, padding="same", padding_mode="reflect"), (2, 2, 7, 8)),
    "replicate": (nn.Conv1d(2, 3, 3, padding=2, padding_mode="replicate"), (2, 2, 7)),
    "no batch": (nn.Conv2d(2, 3, 3), (2, 7, 8)),
}


@pytest.mark.parametrize("layer, shape", LAYERS.values(), ids=LAYERS.keys())
def test_a_row_times_the_weight_is_an_output(layer, shape):
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = input_rows(layer, inputs)
    outputs = layer(inputs).detach()
    if not isinstance(layer, nn.Linear):
        outputs = outputs.reshape(shape[0] if len(shape) == layer.weight.dim() else 1, len(layer.weight), -1).transpose(
            1, 2
        )
    expected = outputs.reshape(len(rows), -1)
    assert torch.allclose(rows @ layer.weight.detach().flatten(1).T + layer.bias.detach(), expected, atol=1e-5)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5)).eval()


def test_moments_of_all_batches_together(monkeypatch):
    model, images = network(), torch.rand(50, 1, 6, 6)
    monkeypatch.setattr(moments, "BATCH", 16)
    found = dict(input_moments(model, images, ["0", "3"]))
    for name, given in (("0", images), ("3", model[:3](images).detach())):
        rows = input_rows(model[int(name)], given).double()
        assert found[name].rows == len(rows)
        assert torch.allclose(found[name].mean, rows.mean(0), atol=1e-6)
        assert torch.allclose(found[name].second, rows.T @ rows / len(rows), atol=1e-5)
        assert torch.allclose(found[name].covariance(), rows.T.cov(correction=0), atol=1e-5)


def test_too_many_rows_are_sampled(monkeypatch):
    model, images = network(), torch.rand(200, 1, 6, 6)
    monkeypatch.setattr(moments, "WORK", 81 * 1000)
    one, same, other = (dict(input_moments(model, images, ["0"], seed))["0"] for seed in (0, 0, 1))
    assert one.rows == 1001 and torch.equal(one.second, same.second) and not torch.equal(one.second, other.second)
    every = input_rows(model[0], images).double()
    assert torch.allclose(one.second, every.T @ every / len(every), atol=0.05)


def test_layers_whose_moments_do_not_fit_together_take_further_runs(monkeypatch):
    model, images, runs = network(), torch.rand(8, 1, 6, 6), []
    together = dict(input_moments(model, images, ["0", "3"]))
    monkeypatch.setattr(moments, "TOGETHER", 8 * 81)
    model[1].register_forward_hook(lambda *_: runs.append(1))
    apart = dict(input_moments(model, images, ["0", "3"]))
    assert len(runs) == 2
    assert all(torch.equal(apart[name].second, together[name].second) for name in together)


def test_a_layer_used_twice_sees_both_and_one_not_used_is_left_out():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, images):
            return self.layer(self.layer(images))

    model, images = Twice(), torch.rand(10, 4)
    found = dict(input_moments(model, images, ["layer", "unused"]))
    assert list(found) == ["layer"] and found["layer"].rows == 20
    rows = torch.cat([images, model.layer(images).detach()]).double()
    assert torch.allclose(found["layer"].second, rows.T @ rows / 20, atol=1e-6)


def test_half_precision_is_summed_in_full():
    model = nn.Sequential(nn.Linear(4, 2)).half()
    (found,) = dict(input_moments(model, torch.full((3000, 4), 60.0), ["0"])).values()
    assert torch.allclose(found.second, torch.full((4, 4), 3600.0).double())


def test_inputs_that_are_not_finite_are_named():
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    model[0].bias.data[1] = torch.inf
    with pytest.raises(ValueError, match="layer '1' is given values that are not finite"):
        dict(input_moments(model, torch.rand(3, 4), ["0", "1"]))


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="images"):
        dict(input_moments(cl.models.lenet_300_100(), torch.rand(3, 5), ["fc1"]))
