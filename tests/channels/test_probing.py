"""Networks that split, mix and branch: what can be removed leaves the outputs as they are, the rest is left alone."""

import copy
import dataclasses
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import compresslab as cl
from compresslab import channels
from compresslab.channels import probing

pytestmark = pytest.mark.slow


@dataclasses.dataclass
class Outputs:
    logits: torch.Tensor
    features: torch.Tensor


def halves(self, x):
    left, right = self.a(x).relu().chunk(2, 1)
    return self.b(left) + self.c(right)


def halves_swapped(self, x):
    left, right = self.a(x).relu().split(6, 1)
    return self.b(right) + self.c(left)


def thirds(self, x):
    first, second, third = self.a(x).relu().tensor_split(3, 1)
    return self.d(third) + self.e(first) + self.d(second)


def half_of_the_width(self, x):
    z = self.a(x).relu()
    return self.b(z[:, z.shape[1] // 2 :]) + self.c(z[:, : z.shape[1] // 2])


def every_second(self, x):
    z = self.a(x).relu()
    return self.b(z[:, ::2]) + self.c(z[:, 1::2])


def unbound(self, x):
    left, right = self.a(x).relu().reshape(len(x), 2, -1).unbind(1)
    return self.b(left) + self.c(right)


def halves_of_two(self, x):
    left, right = torch.cat([self.f(x).relu(), self.g(x).relu()], 1).chunk(2, 1)
    return self.b(right) + self.c(left)


def flipped(self, x):
    return self.wide(self.a(x).relu().flip(1))


def rolled(self, x):
    return self.wide(self.a(x).relu().roll(3, 1))


def reordered(self, x):
    left, right = self.a(x).relu().chunk(2, 1)
    return self.wide(torch.cat([right, left], 1))


def shuffled(self, x):
    return self.wide(self.a(x).relu().view(len(x), 3, -1).transpose(1, 2).reshape(len(x), -1))


def sorted_values(self, x):
    return self.wide(self.a(x).relu().sort(1).values)


def few_of_them(self, x):
    return self.d(self.a(x).relu()[:, [7, 2, 9, 0]])


def gated(self, x):
    value, gate = self.a(x).chunk(2, 1)
    return self.b(value.relu() * gate.sigmoid())


def coupled_halves(self, x):
    left, right = self.a(x).relu().chunk(2, 1)
    right = right + self.h(left).relu()
    return self.wide(torch.cat([right, left], 1))


def attention(self, x):
    query, key, value = self.a(x.view(len(x), 2, 8).repeat(1, 1, 2)).chunk(3, 2)
    return self.d(((query @ key.mT).softmax(-1) @ value).mean(1))


def width_in_a_number(self, x):
    z = self.a(x).relu()
    return self.wide(z) / z.shape[1] ** 0.5


def weight_elsewhere(self, x):
    return self.wide(self.a(x).relu()) / self.a.weight.norm()


def functional_use(self, x):
    z = self.a(x).relu()
    return self.wide(z) + functional.linear(z, self.other.weight)


def scales_in_a_buffer(self, x):
    return self.wide(self.a(x).relu() * self.scales)


def auxiliary_head(self, x):
    z = self.a(x).relu()
    return (self.wide(z), self.other(z)) if self.training else self.wide(z)


def flipped_in_training(self, x):
    z = self.a(x).relu()
    return self.wide(z.flip(1) if self.training else z)


def halves_in_training(self, x):
    z = self.a(x).relu()
    left, right = z.chunk(2, 1) if self.training else (z[:, :6], z[:, 6:])
    return self.b(left) + self.c(right)


def average_in_training(self, x):
    z = self.a(x).relu()
    if self.training:
        self.scales.mul_(0.9).add_(z.mean(0).detach(), alpha=0.1)
    return self.wide(z)


def twice(self, x):
    return self.b(self.h(self.h(self.f(x).relu()).relu()).relu())


def as_often_as_the_data_say(self, x):
    z = self.f(x).relu()
    for _ in range(1 + int(x.sum() > 8 * len(x))):
        z = self.h(z).relu()
    return self.b(z)


def flipped_for_many_images(self, x):
    z = self.a(x).relu()
    return self.wide(z.flip(1) if len(x) > 4 else z)


def in_an_object(self, x):
    z = self.a(x).relu()
    return Outputs(self.wide(z), z)


LEFT_ALONE = [halves, thirds, half_of_the_width, every_second, unbound, halves_of_two, flipped, rolled]
LEFT_ALONE += [reordered, shuffled, sorted_values, few_of_them, coupled_halves, attention, width_in_a_number]
LEFT_ALONE += [weight_elsewhere, functional_use, scales_in_a_buffer, auxiliary_head, flipped_in_training]
LEFT_ALONE += [halves_in_training, average_in_training, twice, as_often_as_the_data_say, flipped_for_many_images]
LEFT_ALONE += [in_an_object]


def summed(self, x):
    return self.wide(torch.stack([self.a(x).relu(), self.i(x).relu()], 1).amax(1))


def called_by_name(self, x):
    return self.wide(input=self.a(input=x).relu())


def negated_beside(self, x):
    z = self.a(x)
    return self.twofold(torch.cat([z, -z], 1).relu())


def largest_of_two(self, x):
    return self.b(self.a(x).view(len(x), -1, 2).amax(2))


def dropped(self, x):
    return self.wide(functional.dropout(self.norm(self.a(x)).relu(), 0.5, self.training))


def noisy_in_training(self, x):
    z = functional.rrelu(self.a(x), training=self.training)
    return self.wide(z + torch.randn_like(z) if self.training else z)


def twice_in_training(self, x):
    z = self.a(x).relu()
    return self.wide(z) + self.wide(z * 0.5) if self.training else self.wide(z)


def checked_for_nan(self, x):
    z = self.a(x).relu()
    if z.isnan().any():
        raise ValueError("nan")
    return self.wide(z)


def the_second_half(self, x):
    z = self.a(x).relu()
    return self.b(z[:, :6]) + self.c(z[:, 6:])


REMOVED = [summed, called_by_name, negated_beside, largest_of_two, dropped, noisy_in_training, twice_in_training]
REMOVED += [checked_for_nan, the_second_half, halves_swapped, gated]


def made(forward, seed=0):
    """A network with that forward: layers of many widths, of which it uses a few."""
    sizes = {"a": (16, 12), "b": (6, 5), "c": (6, 5), "d": (4, 5), "e": (4, 5), "f": (16, 6), "g": (16, 6), "h": (6, 6)}
    sizes |= {"i": (16, 12), "wide": (12, 5), "other": (12, 5), "twofold": (24, 5)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type("Model", (nn.Module,), {"forward": forward})()
        for name, size in sizes.items():
            setattr(model, name, nn.Linear(*size))
        model.norm = nn.BatchNorm1d(12)
        model.register_buffer("scales", torch.rand(12))
        return model.eval(), torch.rand(12, 16)


def difference(model, small, images):
    with torch.no_grad():
        one, two = (probing.tensors_of(copy.deepcopy(net)(images)) for net in (model, small))
    return max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("forward", LEFT_ALONE, ids=lambda one: one.__name__)
def test_what_is_mixed_is_left_alone_and_the_reason_is_given(forward):
    model, images = made(forward)
    groups, reasons = channels.find_groups(model, images)
    assert groups == [] and all(reasons.values())


@pytest.mark.parametrize("forward", REMOVED, ids=lambda one: one.__name__)
def test_what_only_looks_mixed_is_removed(forward):
    model, images = made(forward)
    groups, _ = channels.find_groups(model, images)
    assert [group.producers[0] for group in groups] == ["a"]


@pytest.mark.parametrize("forward", LEFT_ALONE + REMOVED, ids=lambda one: one.__name__)
@pytest.mark.parametrize("technique", ["activation_pruning", "redundancy_pruning"])
def test_dead_and_doubled_neurons_go_without_a_trace(forward, technique):
    model, images = made(forward, 1)
    with torch.no_grad():
        for layer in (model.a, model.f, model.g, model.h, model.i):
            layer.bias.fill_(2.0)
            dead = torch.randperm(len(layer.weight))[: len(layer.weight) // 3]
            layer.weight[dead], layer.bias[dead] = 0.0, -1.0
            layer.weight[-1], layer.bias[-1] = layer.weight[0], layer.bias[0]
        model.norm.bias.fill_(-0.1)
    setting = {"threshold": 1e-9} if technique == "activation_pruning" else {"similarity": 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        small = getattr(cl, technique).prune(model, images, **setting)
    for batch in (images, images[:1], torch.rand(5, 16)):
        assert difference(model, small, batch) < 1e-4
    copy.deepcopy(model).train()(images)
    small.train()(images)


@given(seed=st.integers(0, 2**20), forward=st.sampled_from(REMOVED))
@settings(max_examples=20, deadline=None)
def test_any_removal_is_a_masking(seed, forward):
    model, images = made(forward, seed)
    groups, _ = channels.find_groups(model, images)
    generator, removed, masked = torch.Generator().manual_seed(seed), {}, copy.deepcopy(model)
    for group in groups:
        removed[group.name] = torch.rand(group.size, generator=generator) < 0.5
        removed[group.name][torch.randint(group.size, (), generator=generator)] = False
        for consumer in group.consumers:
            masked.get_submodule(consumer.name).weight.data[:, consumer.inputs[removed[group.name]].flatten()] = 0.0
    small = cl.layers.duplicate(model)
    channels.remove(small, groups, removed)
    assert difference(masked, small, images) < 1e-4
    small.train()(images)


def test_a_module_twice_in_a_sequential_is_left_alone():
    again = nn.Linear(8, 8)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), again, nn.ReLU(), again, nn.Linear(8, 6), nn.Linear(6, 5))
    groups, reasons = channels.find_groups(model, torch.rand(4, 16))
    assert [group.name for group in groups] == ["5"]
    assert "'2' is used more than once" in reasons["0"] and "'2' is used more than once" in reasons["2"]
    cl.redundancy_pruning.prune(model, torch.rand(64, 16), sparsity=0.2)(torch.rand(3, 16))


@pytest.mark.parametrize("seed", [0, 17, 25, 70, 154])  # in some of them most neurons are dead for all images
def test_a_layer_of_another_class_is_tried_like_any_network(seed):
    torch.manual_seed(seed)

    class Flipping(nn.Linear):
        def forward(self, x):
            return super().forward(x.flip(1))

    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Flipping(8, 8), nn.ReLU(), nn.Linear(8, 3))
    groups, reasons = channels.find_groups(model, torch.rand(4, 8))
    assert [group.name for group in groups] == ["2"] and "mixed" in reasons["0"]


def test_trying_leaves_no_trace():
    model, images = made(dropped)
    state, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    channels.find_groups(model, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_of_two_groups_of_one_size_each_loses_more_in_a_trial(sizes):
    names = {str(number): size for number, size in enumerate(sizes)}
    ahead, behind = probing.patterns(names)
    counts = [{name: int(which.sum()) for name, which in each.items()} for each in ahead + behind]
    assert all(count < names[name] for each in counts for name, count in each.items())
    for one in names:
        for two in names:
            if one != two and names[one] == names[two] > 1:
                assert any(each[one] < each[two] for each in counts)


def test_random_numbers_are_the_same_everywhere_and_values_are_noted():
    x = torch.rand(4, 6)
    layers = nn.Sequential(nn.Dropout(0.5), nn.AlphaDropout(0.5), nn.RReLU())
    with probing.steady(layers) as mode:
        assert torch.allclose(nn.Dropout(0.5)(x), 2 * x) and torch.equal(layers(x), layers(x))
        noise = torch.randn_like(x)
        assert (noise == noise[0, 0]).all() and torch.equal(torch.randperm(9), torch.randperm(9))
    with probing.steady(layers) as mode:
        assert bool(x.sum() > 0) and mode.answers == [True]


def test_disturbed_weights_have_no_zeros_and_no_copies():
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 6))
    with torch.no_grad():
        model[0].weight[2:] = 0.0
        model[2].weight.fill_(1.0)
    probing.disturb(model)
    for layer in (model[0], model[2]):
        assert len(layer.weight.unique(dim=0)) == 6 and (layer.weight != 0).all()
    assert (model[1].running_var > 0).all() and len(model[1].weight.unique()) == 6


def test_tensors_are_found_in_any_object():
    one, two = torch.zeros(2), torch.ones(3)
    found = probing.tensors_of({"a": [Outputs(one, (two,))], "b": 3, "c": "text", "d": None})
    assert sorted(tensor.numel() for tensor in found) == [1, 2, 3]
