"""Exercises of notebook 03: channels sliced by hand, a score for a neuron, a network where the mean fails, a report."""

import itertools

import torch
from torch import nn

from compresslab import data as datasets
from compresslab import measure, models
from compresslab.classroom.feedback import NotYet, call, describe, exercise, read_number, split_answer
from compresslab.experiments.sweep import seed_global
from compresslab.techniques import activation_pruning
from compresslab.weights import layers

_ROUNDING = 1e-4  # of the largest logit
_TIE = 0.99  # scores that lead to errors this near to one another may come in either order
_REMOVED = 0.8  # share of article_mlp's parameters that goes, at least
_COST = 0.004  # share of the validation images that it may cost, at most
_SAME = 2e-4  # between two accuracies that are meant to be one


@exercise("03.slice_channels", points=3)
def check_slice_channels(slice_channels: object) -> str:
    """Write a function that takes channels out of a convolution and out of what reads them."""
    for name, (conv, between, linear, images) in _convolutions().items():
        places = torch.arange(conv.out_channels)
        for keep in (places % 2 == 1, places > 0, places == len(places) - 1, places >= 0):
            answer, width = call(slice_channels, conv, linear, keep), linear.in_features // len(keep)
            _refuse_layers(name, answer, conv, linear, keep)
            masked = layers.duplicate(linear)
            with torch.no_grad():
                masked.weight[:, ~keep.repeat_interleave(width)] = 0
                wanted = masked(between(conv(images)))
                logits = answer[1](between(answer[0](images)))
            if torch.allclose(logits, wanted, rtol=0, atol=_ROUNDING * float(wanted.abs().max())):
                continue
            hint = "do rows, biases and columns belong to the same channels, those that stay?"
            if torch.equal(answer[1].weight, linear.weight[:, keep.repeat(width)]):
                hint = "Flatten lays all positions of one channel side by side, then those of the next"
            raise NotYet(f"for {name} the shapes fit, but the logits differ; {hint}")
    return (
        "The logits are those of the network with a mask, and the matrices are smaller. A channel is a row of one "
        "weight and, behind a Flatten, a whole block of columns of the next."
    )


def _convolutions():
    """Return name -> (convolution, what lies between, linear layer, images): of different kernels and strides."""
    with seed_global(0):
        pooled, flat = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), nn.Sequential(nn.ReLU(), nn.Flatten())
        plain = nn.Conv2d(2, 6, 3), pooled, nn.Linear(6 * 16, 5), torch.randn(20, 2, 10, 10)
        padded = nn.Conv2d(1, 5, 5, stride=2, padding=2), flat, nn.Linear(5 * 36, 4), torch.randn(20, 1, 11, 11)
        single = nn.Conv2d(1, 4, 7), flat, nn.Linear(4, 3), torch.randn(20, 1, 7, 7)
    return {
        "a 3 × 3 convolution with pooling behind it": plain,
        "a padded convolution with a stride": padded,
        "a convolution whose channels have one position each": single,
    }


def _refuse_layers(name, answer, conv, linear, keep):
    if not isinstance(answer, (tuple, list)) or [type(layer) for layer in answer] != [nn.Conv2d, nn.Linear]:
        raise NotYet(f"for {name} give two layers, (convolution, linear); this is {describe(answer)}")
    count, width = int(keep.sum()), linear.in_features // len(keep)
    wanted = {
        "the convolution's weight": (answer[0].weight, (count, *conv.weight.shape[1:])),
        "the convolution's bias": (answer[0].bias, (count,)),
        "the linear layer's weight": (answer[1].weight, (linear.out_features, count * width)),
        "the linear layer's bias": (answer[1].bias, (linear.out_features,)),
    }
    for what, (tensor, shape) in wanted.items():
        actual = None if tensor is None else tuple(tensor.shape)
        if actual != shape:
            raise NotYet(f"for {name}, keeping {count} of {len(keep)} channels, {what} is {actual}, not {shape}")
    if answer[0].out_channels != count or answer[1].in_features != count * width:
        raise NotYet(f"for {name} the weights fit; let out_channels and in_features say what they are now")
    if (answer[0].stride, answer[0].padding) != (conv.stride, conv.padding):
        raise NotYet(f"for {name} the convolution has lost its stride or padding")


@exercise("03.score", points=2)
def check_score(score: object) -> str:
    """Write a function that scores neurons by how much the next layer misses them.

    The scores must have the order of the error after removing each neuron, its mean folded into the bias.
    """
    for name, (activations, linear) in _layers().items():
        answer, missed = call(score, activations, linear), _missed(activations, linear)
        if not isinstance(answer, torch.Tensor) or answer.shape != missed.shape:
            shape = f"({len(missed)},)"
            raise NotYet(f"for {name} give a tensor with one score a neuron, {shape}; this is {describe(answer)}")
        for first, second in itertools.pairwise(answer.detach().double().argsort().tolist()):
            if missed[second] < _TIE * missed[first]:
                less = f"neuron {second} is missed less than neuron {first}"
                errors = f"{missed[second]:.3g} against {missed[first]:.3g}"
                raise NotYet(f"for {name}, {less} ({errors}), and scores higher")
    return (
        "Fold the mean, and what is left is w · (h − mean): its mean square is the variance times the squared "
        "outgoing norm, whatever the mean was and however the layer is scaled."
    )


def _layers():
    """Return name -> (activations, next layer): each simpler score goes wrong somewhere."""
    with seed_global(0), torch.no_grad():
        usual = (torch.randn(400, 12) + torch.linspace(-1, 1, 12)).relu(), nn.Linear(12, 6)
        shifted = usual[0] + torch.linspace(9, 0, 12), usual[1]
        scales = 2.0 ** torch.arange(-6.0, 6)
        rescaled = usual[0] * scales, layers.duplicate(usual[1])
        rescaled[1].weight.div_(scales)
        loud = torch.randn(400, 12) * torch.linspace(1, 2, 12), nn.Linear(12, 6)
        loud[1].weight.mul_(torch.linspace(2, 0.5, 12))
        silent = usual[0].clone(), nn.Linear(12, 1)
        silent[0][:, 3], silent[0][:, 7] = 5.0, 0.0
    return {
        "an ordinary layer": usual,
        "a layer whose neurons are always on": shifted,
        "a layer rescaled neuron by neuron, the same function": rescaled,
        "a layer whose loudest neurons are read least": loud,
        "a layer with two neurons that never change": silent,
    }


def _missed(activations, linear):
    """Return the next layer's mean square change after removing each neuron; (neurons,)."""
    activations, weight = activations.double(), linear.weight.detach().double()
    before, missed = activations @ weight.T, []
    for neuron in range(activations.shape[1]):
        keep = torch.arange(activations.shape[1]) != neuron
        folded = activations[:, neuron].mean() * weight[:, neuron]
        after = activations[:, keep] @ weight[:, keep].T + folded
        missed.append((after - before).square().sum(1).mean())
    return torch.stack(missed)


@exercise("03.mean_fails", points=2)
def check_mean_fails(network: object) -> str:
    """Build a network that pruning by mean ruins and pruning by std does not hurt."""
    kinds = [type(layer) for layer in network] if isinstance(network, nn.Sequential) else []
    if kinds != [nn.Linear, nn.ReLU, nn.Linear]:
        raise NotYet(f"give an nn.Sequential of Linear, ReLU and Linear; this is {describe(network)}")
    sizes = network[0].in_features, network[0].out_features, network[2].in_features, network[2].out_features
    if sizes[0] != 2 or sizes[3] != 2 or sizes[1] != sizes[2] or sizes[1] < 2:
        raise NotYet("the network should take 2 numbers, have 2 neurons or more between, and return 2 logits")
    images = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    before = measure.predictions(network, images)
    if not 0.2 < before.double().mean() < 0.8:
        raise NotYet(f"it answers 1 for {before.double().mean():.0%} of the inputs; let it tell two classes apart")
    changed = {}
    for statistic in ("std", "mean"):
        pruned = activation_pruning.prune(network, images, sparsity=0.5, statistic=statistic, scope="layer")
        changed[statistic] = (measure.predictions(pruned, images) != before).double().mean().item()
    if changed["std"] > 0.01:
        raise NotYet(f"pruned by std, {changed['std']:.0%} of its answers change; which neurons never vary?")
    if changed["mean"] < 0.2:
        share = f"{changed['mean']:.0%}"
        raise NotYet(f"pruned by mean, only {share} of its answers change; which neurons have the highest mean?")
    return (
        f"By mean {changed['mean']:.0%} of its answers change, by std {changed['std']:.0%}. "
        "A neuron that is always on says nothing that a bias could not say; a quiet one may decide everything."
    )


@exercise("03.report", points=3)
def check_report(answer: object) -> str:
    """Choose a pruned article_mlp on validation, report it on test: (model, interval)."""
    model, interval = split_answer(answer, "(model, interval)")
    if not isinstance(model, nn.Module):
        raise NotYet(f"the first of the two should be the model; this is {describe(model)}")
    data, dense = datasets.load("mnist"), models.pretrained("article_mlp", "mnist")
    removed = 1 - layers.count_parameters(model) / layers.count_parameters(dense)
    if removed < _REMOVED:
        raise NotYet(f"{removed:.0%} of the parameters are gone, {_REMOVED:.0%} are asked for; a mask removes none")
    right = measure.accuracy(model, data.validation)
    cost = measure.accuracy(dense, data.validation) - right
    if cost > _COST:
        hint = "which statistic leaves the most, and how long was it retrained?"
        points = f"{100 * cost:.2f} points, {100 * _COST:.1f} are allowed"
        raise NotYet(f"on validation it costs {points}; {hint}")
    _refuse_interval(interval, measure.accuracy_interval(model, data.test), right)
    return (
        f"{removed:.0%} fewer parameters, {interval.accuracy:.2%} on test ({interval.low:.2%} to {interval.high:.2%}), "
        "looked at once. Chosen on the test images, it would be the best of many looks, and too high."
    )


def _refuse_interval(interval, wanted, on_validation):
    names = ("accuracy", "low", "high")
    if not all(hasattr(interval, name) for name in names):
        raise NotYet(f"the second should be what cl.measure.accuracy_interval returns; this is {describe(interval)}")
    accuracy, low, high = (read_number(getattr(interval, name), f"the interval's {name}") for name in names)
    same_accuracy = abs(accuracy - wanted.accuracy) < _SAME
    if same_accuracy and abs(low - wanted.low) < _SAME and abs(high - wanted.high) < _SAME:
        return
    if abs(accuracy - on_validation) < _SAME / 2:
        raise NotYet("this is the accuracy on the validation images, on which the model was chosen; report test")
    if same_accuracy:
        raise NotYet(f"the accuracy is right, the ends are not those of a 95% interval: {low:.2%}, {high:.2%}")
    raise NotYet(f"the interval is around {accuracy:.2%}; this model has {wanted.accuracy:.2%} on the test images")
