"""Networks that were cut and stitched come back: factors for layers, removed channels, new biases, odd layouts."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import compresslab as cl
from compresslab.storage import CorruptFileError, tensors
from compresslab.weights import layers

pytestmark = pytest.mark.slow


def came_back(model, inputs):
    """The loaded model, after checking that it is the saved one to the bit, in both modes."""
    blob = cl.storage.dumps(model)
    same = cl.storage.loads(blob)
    assert list(same.state_dict()) == list(model.state_dict()) and cl.storage.dumps(same) == blob
    for training in (False, True):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            wanted = copy.deepcopy(model).train(training)(inputs)
            torch.manual_seed(0)
            assert torch.equal(copy.deepcopy(same).train(training)(inputs), wanted)
    return same


def parent_of(model, name):
    path, _, own = name.rpartition(".")
    return model.get_submodule(path), own


def factors(layer, rank):
    """Two layers of torch for one, as their SVD gives them: not in order in memory, the bias in the second."""
    weight = layer.weight.detach()
    left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    rank = min(rank, len(values))
    first, second = right[:rank], left[:, :rank] * values[:rank]
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        pair = nn.Linear(weight.shape[1], rank, bias=False), nn.Linear(rank, weight.shape[0], bias=bias)
    else:
        options = {key: getattr(layer, key) for key in ("stride", "padding", "dilation")}
        narrow = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, bias=False, **options)
        pair = narrow, nn.Conv2d(rank, layer.out_channels, 1, bias=bias)
    pair[0].weight = nn.Parameter(first.reshape(rank, *weight.shape[1:]))
    pair[1].weight = nn.Parameter(second if isinstance(layer, nn.Linear) else second[:, :, None, None])
    pair[1].bias = layer.bias
    return nn.Sequential(*pair).train(layer.training)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.lstm, self.out = nn.Embedding(20, 8), nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 20)

    def forward(self, tokens):
        return self.out(self.lstm(self.words(tokens))[0][:, -1])


class Tied(Reader):
    def __init__(self):
        super().__init__()
        self.narrow, self.out = nn.Linear(16, 8), nn.Linear(8, 20, bias=False)
        self.out.weight = self.words.weight

    def forward(self, tokens):
        return self.out(self.narrow(self.lstm(self.words(tokens))[0]))


def foreign(name):
    import torchvision

    torch.manual_seed(0)
    if name in ("reader", "tied"):
        return {"reader": Reader, "tied": Tied}[name]().eval(), torch.randint(0, 20, (3, 5))
    images, sizes = torch.randn(2, 3, 32, 32), dict(num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=48)
    if name == "vit":
        return torchvision.models.VisionTransformer(32, 8, **sizes, num_classes=7).eval(), images
    model = getattr(torchvision.models, name)(num_classes=7)
    if name == "resnet18":  # without its large half
        model.layer3, model.layer4, model.fc = nn.Identity(), nn.Identity(), nn.Linear(128, 7)
    return model.eval(), images


REPLACED = {
    "resnet18": ["layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "fc"],
    "mobilenet_v3_small": ["features.0.0", "features.2.block.0.0", "features.4.block.2.fc1", "classifier.0"],
    "vit": ["encoder.layers.encoder_layer_0.mlp.0", "encoder.layers.encoder_layer_1.mlp.3", "heads.head"],
    "reader": ["out"],
    "tied": ["narrow"],
}


@pytest.mark.parametrize("name", REPLACED)
def test_factors_in_the_place_of_layers_come_back(name):
    model, inputs = foreign(name)
    for path in REPLACED[name]:
        parent, own = parent_of(model, path)
        parent._modules[own] = factors(parent._modules[own], 3)
    same = came_back(model, inputs)
    assert len(same.get_submodule(REPLACED[name][0])) == 2
    if name == "tied":
        assert same.out.weight is same.words.weight


def cut(layer, outputs, inputs):
    """Keep some outputs and inputs of a layer, in place, attributes included."""
    layer.weight = nn.Parameter(layer.weight.detach()[outputs][:, inputs])
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[outputs])
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    else:
        layer.out_channels, layer.in_channels = len(outputs), len(inputs)


def cut_norm(norm, kept):
    norm.num_features = len(kept)
    for name in ("weight", "bias"):
        setattr(norm, name, nn.Parameter(getattr(norm, name).detach()[kept]))
    norm.running_mean, norm.running_var = norm.running_mean[kept], norm.running_var[kept]


def test_a_residual_network_with_channels_removed_comes_back():
    model, inputs = foreign("resnet18")
    kept, every = torch.arange(37) * 3 % 64, torch.arange(64)  # 37 of 64, in another order
    block = model.layer1[0]
    cut(block.conv1, kept, every)
    cut_norm(block.bn1, kept)
    cut(block.conv2, every, kept)
    block.bn2 = nn.Identity()
    block.conv2.bias = nn.Parameter(torch.randn(64))  # which a convolution before a norm has not
    same = came_back(model, inputs)
    assert same.layer1[0].conv1.out_channels == 37 and same.layer1[0].bn1.num_features == 37


def test_depthwise_convolutions_with_channels_removed_come_back():
    model, inputs = foreign("mobilenet_v3_small")
    expand, depthwise, project = model.features[2].block
    kept = torch.arange(0, 72, 5)  # 15 of 72
    cut(expand[0], kept, torch.arange(16))
    cut_norm(expand[1], kept)
    cut(depthwise[0], kept, torch.arange(1))
    depthwise[0].in_channels = depthwise[0].groups = len(kept)
    cut_norm(depthwise[1], kept)
    cut(project[0], torch.arange(24), kept)
    same = came_back(model, inputs)
    assert same.features[2].block[1][0].groups == 15


def test_grouped_convolutions_with_whole_groups_removed_come_back():
    model = nn.Sequential(nn.Conv2d(6, 8, 1), nn.Conv2d(8, 12, 3, groups=4, padding=1, bias=False), nn.Conv2d(12, 3, 1))
    cut(model[0], torch.arange(6), torch.arange(6))
    model[1].weight = nn.Parameter(model[1].weight.detach()[:9])  # three of four groups: 6 channels in, 9 out
    model[1].groups, model[1].in_channels, model[1].out_channels = 3, 6, 9
    model[1].bias = nn.Parameter(torch.randn(9))
    cut(model[2], torch.arange(3), torch.arange(9))
    same = came_back(model, torch.randn(2, 6, 5, 5))
    assert (same[1].groups, same[1].in_channels, same[1].out_channels) == (3, 6, 9) and same[1].bias is not None


LAYOUTS = {
    "transposed": torch.arange(20.0).reshape(4, 5).t(),
    "channels last": torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last),
    "one channel": torch.randn(3, 1, 2, 2).to(memory_format=torch.channels_last),
    "a column": torch.randn(1, 5).t(),
    "turned": torch.randn(2, 3, 4).permute(2, 0, 1),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_tensors_come_back_in_the_order_they_had_in_memory(name):
    tensor = LAYOUTS[name]
    order = tensors.find_memory_order(tensor)
    again = tensors.reorder_memory(tensor.contiguous(), order)
    assert order is not None and again.stride() == tensor.stride() and torch.equal(again, tensor)
    model = nn.Module()
    model.weight = nn.Parameter(tensor)
    target = nn.Module()
    target.weight = nn.Parameter(torch.empty(tensor.shape))
    assert cl.storage.loads(cl.storage.dumps(model), into=target).weight.is_contiguous()
    assert torch.equal(target.weight, tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.randn(()),
        torch.randn(0, 3).t(),
        torch.randn(5, 6)[:, ::2],
        torch.ones(1).expand(3, 4),
    ],
    ids=["in order", "a number", "empty", "not dense", "repeated"],
)
def test_other_tensors_have_no_order(tensor):
    assert tensors.find_memory_order(tensor) is None


def test_layers_compute_the_same_whatever_their_layout():
    """A transposed or channels-last weight gives other last bits: the layout belongs to the model."""
    linear, images = nn.Sequential(nn.Linear(300, 200)), torch.randn(30, 300)
    linear[0].weight = nn.Parameter(torch.randn(300, 200).t())
    assert came_back(linear, images)[0].weight.stride() == (1, 200)
    assert came_back(cl.zero_pruning.prune(linear, sparsity=0.5), images) is not None
    from compresslab.techniques import quantization

    assert came_back(quantization.quantize(linear, bits=4), images)[0].weight.stride() == (1, 200)
    lenet = cl.models.lenet_5(seed=0).to(memory_format=torch.channels_last)
    same = came_back(lenet, torch.rand(9, 1, 28, 28))
    assert [one.stride() for one in same.parameters()] == [one.stride() for one in lenet.parameters()]
    came_back(cl.zero_pruning.prune(lenet, sparsity=0.5), torch.rand(9, 1, 28, 28))


def test_the_header_is_no_longer_for_tensors_in_order():
    plain = nn.Sequential(nn.Linear(6, 5))
    turned = nn.Sequential(OrderedDict({"0": nn.Linear(6, 5)}))
    turned[0].weight = nn.Parameter(plain[0].weight.detach().t().contiguous().t())
    turned[0].bias = plain[0].bias
    assert len(cl.storage.dumps(plain)) < len(cl.storage.dumps(turned)) < len(cl.storage.dumps(plain)) + 40
    assert layers.count_parameters(plain) == 35 and issubclass(CorruptFileError, ValueError)


MADE = {
    "SpectralNorm": parametrizations.spectral_norm,
    "WeightNorm": parametrizations.weight_norm,
    "Orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("name", MADE)
def test_a_parametrization_that_a_file_cannot_hold_is_named_when_it_is_saved(name, tmp_path):
    model, images = nn.Sequential(nn.Flatten(), MADE[name](nn.Linear(9, 4))), torch.rand(5, 9)
    told = f"'1.weight' \\(made by {name}\\) as they are now: what is loaded trains without it"
    with pytest.warns(UserWarning, match=told):
        cl.save(model, tmp_path / "net.clab")
    loaded = cl.load(tmp_path / "net.clab")
    assert type(loaded[1]) is nn.Linear and torch.equal(loaded(images), model.eval()(images))


@pytest.mark.filterwarnings("error")
def test_masks_and_grids_are_in_the_file_and_need_no_warning(tmp_path):
    cl.save(cl.quantization.quantize(cl.zero_pruning.prune(nn.Linear(9, 4), 0.5), bits=4), tmp_path / "net.clab")
