"""Replacing layers: in every place, hooks and modes kept, and not where a forward reads the weight itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from compresslab.structure.replacing import read_from_outside, replace


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.block = nn.Sequential(self.one, nn.ReLU())

    def forward(self, images):
        return self.block(self.one(images))


def test_a_module_is_replaced_wherever_it_is():
    model, new = Shared(), nn.Identity()
    assert replace(model, {model.one: new}) is model
    assert model.one is new and model.block[0] is new


def test_the_model_itself_can_be_replaced():
    model, new = nn.Linear(2, 2), nn.Identity()
    assert replace(model, {model: new}) is new


def test_hooks_and_mode_go_over():
    model, seen = nn.Sequential(nn.Linear(2, 2)).eval(), []
    handle = model[0].register_forward_hook(lambda module, inputs, output: seen.append(module))
    model[0].register_forward_pre_hook(lambda module, inputs, options: seen.append(options), with_kwargs=True)
    new = nn.Sequential(nn.Linear(2, 2)).train()
    replace(model, {model[0]: new})
    model(torch.ones(1, 2))
    assert seen == [{}, new] and not new.training and not new[0].training
    handle.remove()
    model(torch.ones(1, 2))
    assert len(seen) == 3


class Reads(nn.Module):
    """A forward for each way to get at a weight."""

    def __init__(self, forward):
        super().__init__()
        self.fc, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.inner = nn.ModuleDict({"deep": nn.Linear(3, 3)})
        self.scale = nn.Parameter(torch.ones(3))
        type(self).forward = forward

    @property
    def matrix(self):
        return self.fc.weight

    def helper(self, images):
        return functional.linear(images, self.fc.weight)


def through_a_loop(self, images):
    for layer in self.inner.values():
        images = functional.linear(images, layer.weight)
    return images


FORWARDS = {
    "calls": (lambda self, images: self.other(self.fc(images)) * self.scale, set()),
    "reads": (lambda self, images: functional.linear(images, self.fc.weight) + self.other(images), {"fc"}),
    "reads a bias": (lambda self, images: self.fc(images) + self.other.bias, {"other"}),
    "reads a size": (lambda self, images: images.reshape(-1, self.fc.in_features), {"fc"}),
    "a method": (lambda self, images: self.helper(images), {"fc"}),
    "a property": (lambda self, images: images @ self.matrix, {"fc"}),
    "deeper": (lambda self, images: images @ self.inner.deep.weight, {"inner.deep"}),
    "a dtype": (lambda self, images: self.fc(images.to(self.other.weight.dtype)), {"other"}),
    "a loop": (through_a_loop, {"fc", "other", "inner", "inner.deep"}),
    "other attributes": (lambda self, images: self.fc(images).sum() if self.fc.training else images.shape, set()),
}


@pytest.mark.parametrize("forward, expected", FORWARDS.values(), ids=FORWARDS.keys())
@pytest.mark.parametrize("prefix", ["", "0.1."], ids=["root", "nested"])
def test_what_a_forward_reads(forward, expected, prefix):
    kind = type("Reader", (Reads,), {})
    model = kind(forward)
    model = nn.Sequential(nn.Sequential(nn.ReLU(), model)) if prefix else model
    assert read_from_outside(model) == {prefix + name: "Reader" for name in expected}


def test_torchs_own_readers():
    assert set(read_from_outside(nn.MultiheadAttention(4, 2))) == {"out_proj"}
    layer = nn.TransformerEncoderLayer(4, 2, 8)
    assert {"self_attn.out_proj", "linear1", "linear2"} <= set(read_from_outside(layer))
    assert {"layers.1.linear1", "layers.0.linear2"} <= set(
        read_from_outside(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    )
    decoder = nn.TransformerDecoderLayer(4, 2, 8)
    assert set(read_from_outside(decoder)) == {"self_attn.out_proj", "multihead_attn.out_proj"}
    assert read_from_outside(nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2), nn.BatchNorm1d(2))) == {}
