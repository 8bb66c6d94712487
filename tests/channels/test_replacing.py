"""Replacing layers: in every place, with their hooks and modes."""

import torch
from torch import nn

from compresslab.channels import replace


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
