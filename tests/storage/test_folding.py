"""What no prediction depends on is left out, and no prediction changes; everything else stays as it is."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab import storage
from compresslab.weights import codebooks, grids, layers, masks


def chain(*parts, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(*parts)


def mlp(activation=nn.ReLU, bias=True):
    return chain(nn.Flatten(), nn.Linear(16, 12, bias), activation(), nn.Dropout(), nn.Linear(12, 5, bias)).eval()


def folded(model, *shape):
    """The model that comes back from a file, after checking that it predicts the same and costs less."""
    same, batch = storage.loads(storage.dumps(model)), torch.randn(50, *shape)
    with torch.no_grad():
        assert torch.equal(same(batch), model(batch))
    assert storage.file_bytes(model) <= storage.file_bytes(model, fold=False) + 2  # of some hundred
    exact = layers.effective_state(storage.loads(storage.dumps(model, fold=False)))
    assert all(torch.equal(value, exact[key]) for key, value in layers.effective_state(model).items())
    assert storage.dumps(same) == storage.dumps(model)
    return same


def test_a_unit_without_output_needs_no_weights_and_no_bias():
    model = mlp(nn.Sigmoid)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model[4].weight[:, [2, 7]] = 0
    same = folded(model, 16)
    dead = torch.zeros(12, dtype=torch.bool)
    dead[[2, 7]] = True
    assert not same[1].weight[dead].any() and not same[1].bias[dead].any()
    assert torch.equal(same[1].weight[~dead], before["1.weight"][~dead])
    assert torch.equal(same[1].bias[~dead], before["1.bias"][~dead])
    assert torch.equal(model[1].weight, before["1.weight"])  # the model itself is not changed


@pytest.mark.parametrize(
    ("activation", "silent"),
    [(nn.ReLU, [0, 1]), (nn.Tanh, [1]), (nn.GELU, [1]), (nn.Identity, [1]), (nn.Sigmoid, []), (nn.Softplus, [])],
)
def test_a_unit_without_input_needs_no_output_if_it_is_silent(activation, silent):
    model = mlp(activation)
    with torch.no_grad():
        model[1].weight[[0, 1, 2]] = 0
        model[1].bias[[0, 1, 2]] = torch.tensor([-0.5, 0.0, 0.5])
    same = folded(model, 16)
    gone = [unit for unit in range(12) if not same[4].weight[:, unit].any()]
    assert gone == silent
    assert torch.equal(same[4].weight[:, 3:], model[4].weight[:, 3:])


def test_folding_goes_on_until_nothing_more_is_dead():
    model = chain(*(one for _ in range(4) for one in (nn.Linear(6, 6), nn.ReLU())), nn.Linear(6, 2)).eval()
    with torch.no_grad():
        model[8].weight[:, 3] = 0  # unit 3 of the layer before dies, and with it the one that only it reads
        model[6].weight[:, 1] = 0
        model[6].weight[3, 1] = 1
        model[2].weight[4] = 0
        model[2].bias[4] = -1
    same = folded(model, 6)
    assert not same[6].weight[3].any() and not same[4].weight[1].any() and not same[4].weight[:, 4].any()


def test_channels_of_convolutions_are_folded_through_pooling_norms_and_flattening():
    model = chain(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 4, 5),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[4].weight[:, 2] = 0
        model[8].weight[:, 5 * 4 : 6 * 4] = 0
        model[8].weight[:, 7 * 4] = 0  # one place of another
    same = folded(model, 1, 12, 12)
    assert not same[0].weight[2].any() and not same[4].weight[5].any() and not same[4].bias[5].any()
    assert same[4].weight[7, [0, 1, 3]].all() and same[0].weight[[0, 1, 3, 4, 5]].all()


def test_masks_lose_what_was_folded_and_roundings_stay():
    model = mlp()
    for layer in (model[1], model[4]):
        mask = torch.rand_like(layer.weight) < 0.5
        mask[:, 3] = mask[3] = False
        masks.set_mask(layer, mask)
    masks.set_rounding(model[1], grids.Grid(torch.tensor(0.1), torch.tensor(0.5), 0, 1, 1))  # has no zero
    with torch.no_grad():
        model[1].bias[3] = -1
    same = folded(model, 16)
    expected = masks.get_mask(model[1]).clone()
    expected[~masks.get_mask(model[4]).any(dim=0)] = False
    assert torch.equal(masks.get_mask(same[1]), expected) and isinstance(masks.get_rounding(same[1]), grids.Grid)


def test_what_cannot_be_zero_is_kept():
    model = mlp()
    with torch.no_grad():
        model[4].weight[:, 3] = 0
    masks.set_rounding(model[1], grids.Grid(torch.tensor(0.1), torch.tensor(0.5), 0, 1, 1))
    assert folded(model, 16)[1].weight.all()
    chosen = torch.randint(0, 3, (12, 16))
    for zero, kept in ((torch.tensor([0.0, 1.0, 2.0]), False), (torch.tensor([0.5, 1.0, 2.0]), True)):
        masks.set_rounding(model[1], codebooks.Codebook(zero, chosen))
        same = folded(model, 16)
        assert bool(same[1].weight[3].any()) == kept
        assert isinstance(masks.get_rounding(same[1]), codebooks.Codebook)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x):
        return self.last(self.first(x).relu()) + self.first(x)[:, :5]


def shared():
    layer = nn.Linear(12, 12)
    return chain(nn.Linear(16, 12), nn.ReLU(), layer, nn.ReLU(), layer).eval()


@pytest.mark.parametrize(
    "model",
    [Own(), shared(), chain(nn.Linear(16, 12), nn.LayerNorm(12), nn.Linear(12, 5)).eval(), chain(nn.Linear(16, 12))],
    ids=["own class", "shared layer", "norm across units", "one layer"],
)
def test_what_is_no_chain_is_left_alone(model):
    with torch.no_grad():
        for one in layers.weight_layers(model).values():
            one.weight[:, 3] = 0
            one.weight[4] = 0
    same = folded(model, 16)
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in model.state_dict().items())


MIXING = {
    "max pooling of neurons": ([nn.Linear(16, 16), nn.MaxPool1d(3, 1, 1), nn.Linear(16, 4)], (16,)),
    "average pooling of neurons": ([nn.Linear(16, 16), nn.ReLU(), nn.AvgPool1d(3, 1, 1), nn.Linear(16, 4)], (16,)),
    "pooling of channels in 2": (
        [nn.Conv2d(1, 8, 3), nn.AvgPool3d((3, 1, 1), 1, (1, 0, 0)), nn.Conv2d(8, 4, 3)],
        (1, 9, 9),
    ),
    "pooling of channels in 1": ([nn.Conv1d(1, 8, 3), nn.MaxPool2d((3, 1), 1, (1, 0)), nn.Conv1d(8, 4, 3)], (1, 9)),
    "pooling after flattening": (
        [nn.Conv1d(1, 8, 3), nn.Flatten(), nn.AdaptiveAvgPool1d(8), nn.Linear(8, 4)],
        (1, 9),
    ),
    "a batch taken for channels": (
        [nn.Flatten(), nn.Conv1d(20, 8, 3, padding=1), nn.Flatten(), nn.Linear(8, 4)],
        (2, 4),
    ),
    "statistics of places": ([nn.Linear(8, 16), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(16, 4)], (5, 8)),
    "no running statistics": (
        [nn.Linear(8, 16), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(16, 4)],
        (5, 8),
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_units_that_are_mixed_on_their_way_are_kept(name):
    parts, shape = MIXING[name]
    model = chain(*parts).train(name == "statistics of places")
    batch = torch.randn(20, *shape)
    with torch.no_grad():
        model[-1].weight[:, [3, 5]] = 0
        same = storage.loads(storage.dumps(model))
        assert all(torch.equal(value, same.state_dict()[key]) for key, value in model.state_dict().items())
        assert torch.equal(same(batch), model(batch))


def test_norms_and_pooling_of_their_own_dimension_are_no_hindrance():
    parts = [nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4)]
    images = [nn.Conv3d(1, 12, 2), nn.BatchNorm3d(12), nn.AdaptiveMaxPool3d(2), nn.ReLU(), nn.Conv3d(12, 4, 2)]
    for model, shape in (
        (chain(*parts).eval(), (16,)),
        (chain(*images), (1, 4, 4, 4)),
        (chain(*images).eval(), (1, 4, 4, 4)),
    ):
        with torch.no_grad():
            model[-1].weight[:, 3] = 0
        same = storage.loads(storage.dumps(model))
        assert not same[0].weight[3].any() and same[0].weight[4].any()
        batch = torch.randn(20, *shape)
        assert torch.equal(same(batch), model(batch))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_floats_are_folded(dtype):
    model = mlp().to(dtype)
    with torch.no_grad():
        model[4].weight[:, 3] = 0
    same = storage.loads(storage.dumps(model))
    assert not same[1].weight[3].any() and same[1].weight[4].all()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.uint16, torch.int8, torch.bool], ids=str)
@pytest.mark.parametrize("between", [[], [nn.ReLU()]], ids=["linear", "with ReLU"])
def test_weights_of_other_types_are_left_alone(dtype, between):
    model = chain(nn.Linear(8, 16), *between, nn.Linear(16, 4))
    for name, parameter in list(model.named_parameters()):
        path, _, own = name.rpartition(".")
        some = (torch.rand_like(parameter) > 0.7).to(dtype)
        setattr(model.get_submodule(path), own, nn.Parameter(some, requires_grad=False))
    model[0].weight.data[3] = torch.zeros(8).to(dtype)
    model[-1].weight.data[:, 5] = torch.zeros(4).to(dtype)
    same = storage.loads(storage.dumps(model))
    for one, other in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def test_one_activation_may_serve_several_layers():
    act = nn.ReLU()
    model = chain(nn.Linear(16, 12), act, nn.Linear(12, 12), act, nn.Linear(12, 5)).eval()
    with torch.no_grad():
        model[2].weight[:, 3] = 0
        model[4].weight[:, 7] = 0
    same = folded(model, 16)
    assert not same[0].weight[3].any() and not same[2].weight[7].any() and same[2].weight[6].any()


class Reading(nn.Module):
    """Reads what a layer inside of its Sequential makes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))

    def forward(self, x):
        return self.body(x) + self.body[0](x)[:, :5]


def test_a_chain_inside_of_a_class_is_left_alone():
    """Its forward, and whatever else it has, may read the units that the chain itself does not."""
    model = Reading().eval()
    with torch.no_grad():
        model.body[2].weight[:, 3] = 0
    assert torch.equal(folded(model, 16).body[0].weight, model.body[0].weight)


@pytest.mark.parametrize("below", [[], [nn.Linear(16, 16), nn.ReLU()]], ids=["one layer", "two layers"])
def test_what_is_below_a_head_of_zeros_is_kept(below):
    """It has not begun its work: a fresh head on a backbone that was trained."""
    model = chain(*below, nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))
    with torch.no_grad():
        model[-1].weight.zero_()
        model[-3].weight[2], model[-3].bias[2] = 0, -1  # dead anyhow
    same = folded(model, 16)
    assert all(
        torch.equal(one, other) for one, other in zip(model[:-1].parameters(), same[:-1].parameters(), strict=True)
    )


def test_the_keyword_keeps_everything():
    model = cl.zero_pruning.prune(cl.models.lenet_300_100(seed=0), 0.98, scope="layer")
    same = storage.loads(storage.dumps(model, fold=False))
    for one, other in zip(layers.weight_layers(model).values(), layers.weight_layers(same).values(), strict=True):
        assert torch.equal(masks.get_mask(one), masks.get_mask(other)) and torch.equal(one.bias, other.bias)
    assert storage.file_bytes(model) < storage.file_bytes(model, fold=False)


def test_names_do_not_matter():
    inner = nn.Sequential(OrderedDict(fc=nn.Linear(16, 12), act=nn.ReLU()))
    model = nn.Sequential(OrderedDict(body=inner, head=nn.Linear(12, 5))).eval()
    with torch.no_grad():
        model.head.weight[:, 3] = 0
    assert not folded(model, 16).body.fc.weight[3].any()
