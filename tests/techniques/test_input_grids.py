"""Grids before layers: fitted, placed, refused, taken away; on models of several makes."""

import pytest
import torch
from torch import nn

from compresslab import calibration
from compresslab.techniques import input_grids
from compresslab.weights.grids import InputGrid


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 2))).eval()


def images(count=30):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1))


def fitted(network, names, calibration="minmax", bits=8, **options):
    return input_grids.fit(network, names, images(), bits, calibration, 0.99, options.get("learned", False))


def test_fit_place_remove():
    network, names = model(), ["0", "2.0", "2.1"]
    expected = network(images())
    grids, unreached = fitted(network, names)
    assert list(grids) == names and unreached == {}
    placed, refused = input_grids.place(network, grids, images())
    assert placed is network and refused == {}
    assert [type(network.get_submodule(f"{name}.input")) for name in names] == [InputGrid] * 3
    assert network.get_submodule("2.0.layer").weight.shape == (5, 5)
    assert (network(images()) - expected).abs().max() < 0.05
    bare = input_grids.remove(network, [f"{name}.layer" for name in names])
    assert bare is network and torch.equal(network(images()), expected)


def test_ranges_are_seen_without_the_grids_there_are():
    network = model()
    expected, _ = fitted(network, ["2.1"])
    coarse, _ = fitted(network, ["0", "2.0", "2.1"], bits=1)
    input_grids.place(network, coarse, images())
    again, _ = fitted(network, ["2.1.layer", "0.layer", "2.0.layer"])
    assert torch.equal(again["2.1.layer"].scale, expected["2.1"].scale)
    assert network[0].input is coarse["0"]  # and they are put back
    input_grids.place(network, {"2.1.layer": again["2.1.layer"]}, images())
    assert network.get_submodule("2.1.input") is again["2.1.layer"]


@pytest.mark.parametrize("training", [True, False])
def test_a_grid_takes_over_the_mode_of_its_layer(training):
    network = model().train(training)
    for name in ("0", "0.layer"):  # before a layer, and in the place of a grid
        grids, _ = fitted(network, [name])
        input_grids.place(network, grids, images())
        assert {module.training for module in network.modules()} == {training}


def test_they_are_put_back_when_images_do_not_fit():
    network = model()
    grids, _ = fitted(network, ["0"])
    input_grids.place(network, grids, images())
    with pytest.raises(ValueError, match="does not take images of shape"):
        input_grids.fit(network, ["0.layer"], torch.zeros(3, 9), 8, "mse", 0.99, False)
    assert network[0].input is grids["0"]


def test_layers_that_no_input_reaches():
    network = nn.ModuleDict({"used": nn.Linear(4, 2), "idle": nn.Linear(4, 2)})
    network.forward = lambda inputs: network["used"](inputs)
    grids, reasons = fitted(network, ["used", "idle"])
    assert list(grids) == ["used"] and list(reasons) == ["idle"]


@pytest.mark.parametrize("container", [nn.ModuleList, lambda layers: nn.ModuleDict({"0": layers[0], "1": layers[1]})])
def test_layers_in_lists_and_dicts(container):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = container([nn.Linear(4, 4), nn.Linear(4, 2)])

        def forward(self, inputs):
            first, second = (
                (self.layers[name] for name in self.layers._modules)
                if isinstance(self.layers, nn.ModuleDict)
                else self.layers
            )
            return second(first(inputs))

    network = Network()
    grids, _ = fitted(network, ["layers.0", "layers.1"])
    _, refused = input_grids.place(network, grids, images())
    assert refused == {} and sum(isinstance(one, InputGrid) for one in network.modules()) == 2


def test_inputs_that_are_not_finite():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    network[0].bias.data[0] = torch.inf
    with pytest.raises(ValueError, match="layer '1' gets inputs that are not finite"):
        fitted(network, ["0", "1"])


def test_numbers_are_counted_by_their_upper_bits():
    seen = input_grids._Seen("fc", True)
    numbers = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-38, -3e38, 1.003])
    seen(numbers, None)
    keys = seen.counts.nonzero()[:, 0]
    middle = input_grids._middle_of(keys)
    exact = torch.tensor([0.0, 1.0, -1.0, 1e-38, -3e38])
    assert int(seen.counts.sum()) == len(numbers) and (middle == 0).sum() == 2
    near = (middle[:, None] / exact[None, 1:] - 1).abs().amin(0)
    assert (near < 2**-7).all() and (seen.low, seen.high) == (numbers.min().item(), 1.003000020980835)


def test_few_large_images_are_run_together():
    assert calibration.choose_batch_size(torch.empty(9, 3, 224, 224), 256) == 6
    assert calibration.choose_batch_size(torch.empty(9, 1, 28, 28), 256) == 256
    assert calibration.choose_batch_size(torch.empty(1, 2**22), 256) == 1
