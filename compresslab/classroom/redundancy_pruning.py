"""Exercises of notebook 04: planted twins found again, the merge of an affine twin, redundancy against activity."""

import functools

import torch
from torch import nn

from compresslab import data as datasets
from compresslab import measure, models
from compresslab.classroom.feedback import NotYet, call, describe, exercise, read_tensors, split_answer
from compresslab.techniques import activation_pruning, redundancy_pruning
from compresslab.weights import layers

_ERROR = 1e-5  # of a logit, relative to the largest one
_TARGET = 227_000  # parameters of the contest's networks
_ROOM = 0.01  # of the target
_SEEDS = 3  # of the contest, at least
_CALIBRATION = 1000  # training images that the contest is judged by
_VERDICTS = ("redundancy is better", "activation is better", "can't tell")


@exercise("04.plant", points=2)
def check_plant(plant: object) -> str:
    """Write a function that plants twins into a hidden layer without changing what a network computes."""
    worst, planted = 0.0, 0
    cases = ((6, 8, 4), [0, 3], 2.0), ((20, 30, 10), [29, 5, 12], 0.5), ((5, 7, 3), [2], 1.0)
    for (inputs, size, outputs), neurons, scale in cases:
        tensors, wider = _hidden(inputs, size, outputs), size + len(neurons)
        case = f"for {size} neurons, twins of {neurons}, scale {scale:g}"
        shapes = [(wider, inputs), (wider,), (outputs, wider)]
        wide = read_tensors(call(plant, *tensors, neurons, scale), "(weight, bias, outgoing)", shapes, case)
        images = _rand(400, inputs)
        _check_planted(case, tensors, wide, neurons, scale, images)
        merged = redundancy_pruning.prune(_network(*wide), images, similarity=1)
        if merged[0].out_features != size:
            raise NotYet(f"{case}, {wider - merged[0].out_features} are found to be twins of others")
        worst = max(worst, _error(_network(*tensors)(images), merged(images)))
        planted += len(neurons)
    return (
        f"All {planted} planted twins were found at similarity 1 and merged again; the logits moved by {worst:.0e} at "
        "most. Twins that share the work are merged without loss; deleting one would lose its share."
    )


def _check_planted(case, tensors, wide, neurons, scale, images):
    """Refuse twins that change the function, are no twins, or have no outgoing weights."""
    before, after = _network(*tensors), _network(*wide)
    old, new = (torch.relu(network[0](images)) for network in (before, after))
    for neuron in neurons:
        twins, alike = ((new - factor * old[:, [neuron]]).abs().amax(0) <= 1e-4 * old.max() for factor in (scale, 1))
        if not twins.any() or (twins | alike).sum() < 2:
            raise NotYet(f"{case}, no neuron is {scale:g} times neuron {neuron}; scale its weights and its bias")
        if not wide[2][:, twins | alike].abs().sum(0).all():
            raise NotYet(f"{case}, a twin of neuron {neuron} has no outgoing weights: nothing is lost without it")
    if (error := _error(before(images), after(images))) > _ERROR:
        doubled = all(torch.equal(wide[2][:, neuron], tensors[2][:, neuron]) for neuron in neurons)
        hint = "what neuron and twin say together must be what one said" if doubled else "how large is a twin's word"
        raise NotYet(f"{case}, the logits move by {error:.1g}; {hint}: what do outgoing weights have to be?")


def _hidden(inputs, size, outputs):
    """Return weight, bias and outgoing weights of a hidden layer without silent neurons and twins."""
    chance = torch.Generator().manual_seed(size)
    weight = torch.randn(size, inputs, generator=chance) / inputs**0.5
    return weight, 0.5 + torch.rand(size, generator=chance), torch.randn(outputs, size, generator=chance)


def _rand(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def _network(weight, bias, outgoing):
    """Return the network of a hidden layer: images (N, inputs) to logits (N, outputs)."""
    first, second = nn.utils.skip_init(nn.Linear, *weight.T.shape), nn.utils.skip_init(nn.Linear, *outgoing.T.shape)
    first.weight, first.bias = nn.Parameter(weight), nn.Parameter(bias)
    second.weight, second.bias = nn.Parameter(outgoing), nn.Parameter(torch.zeros(len(outgoing)))
    return nn.Sequential(first, nn.ReLU(), second).requires_grad_(False)


def _error(wanted, actual):
    """Return the largest difference, relative to the largest number."""
    return float((wanted - actual).abs().max() / wanted.abs().max())


@exercise("04.merge", points=3)
def check_merge(merge: object) -> str:
    """Write a function that merges one neuron's outgoing weights into those of its affine twin."""
    worst = 0.0
    cases = ((2.0, 1.0, 0, 4, 0.0), (-0.5, 3.0, 3, 1, 0.0), (0.25, 0.0, 5, 0, 0.0))
    cases += ((1.5, 2.0, 1, 2, 0.5), (-2.0, 6.0, 4, 5, 1.0))
    for slope, offset, stays, goes, noise in cases:
        activations, weight, bias = _affine(slope, offset, stays, goes, noise)
        case = f"for a neuron {goes} that is {slope:g} times neuron {stays} plus {offset:g}"
        case += " and some noise" if noise else ""
        outputs, inputs = weight.shape
        answer = call(merge, activations, weight, bias, stays, goes)
        less, moved = read_tensors(answer, "(weight, bias)", [(outputs, inputs - 1), (outputs,)], case)
        rest = torch.arange(inputs) != goes
        change = activations[:, rest] @ less.T + moved - (activations @ weight.T + bias)
        _check_merged(case, change, activations, weight, stays, goes)
        worst = worst if noise else max(worst, float(change.abs().max()))
    return (
        f"For exact twins the next layer's sums moved by {worst:.0e} at most, whatever the slope, its sign and the "
        "offset; with noise no other slope and offset come closer. Slope into the weights, offset into the bias."
    )


def _check_merged(case, change, activations, weight, stays, goes):
    """Refuse a merge that changes what the next layer computes by more than it must."""
    known = torch.stack([activations[:, stays], torch.ones(len(activations))], 1).double()
    rest = activations[:, [goes]].double()
    residual = rest - known @ torch.linalg.lstsq(known, rest).solution
    least, error, varies = (
        float(part.square().sum(1).mean().sqrt())
        for part in (residual.float() * weight[:, goes], change, change - change.mean(0))
    )
    most = least * 1.0005 + 2e-5
    if error <= most:
        return
    hint = "from image to image; which slope, sign included, and into which column? Which column goes?"
    if varies <= most:
        hint = "by the same amount for every image; where does the offset go?"
    elif least > 1e-3 and error < 1.5 * least:
        hint = f"a little more than the {least:.3f} that least squares leave; how is its slope computed?"
    raise NotYet(f"{case}, the next layer's sums are off by {error:.3f}, {hint}")


def _affine(slope, offset, stays, goes, noise):
    """Return activations (300, 6) with an affine twin, and the next weight and bias."""
    chance = torch.Generator().manual_seed(10 * stays + goes)
    activations = 2 * torch.rand(300, 6, generator=chance)
    extra = noise * torch.randn(300, generator=chance)
    activations[:, goes] = slope * activations[:, stays] + offset + extra
    return activations, torch.randn(4, 6, generator=chance) / 2, torch.randn(4, generator=chance)


@exercise("04.contest", points=3)
def check_contest(answer: object) -> str:
    """Give two lists of retrained networks of equal size and a verdict: (by_redundancy, by_activation, verdict).

    The networks are article_mlp for MNIST; a verdict for one side must hold by McNemar's test for every seed.
    """
    *teams, verdict = split_answer(answer, "(by_redundancy, by_activation, verdict)")
    data, dense = datasets.load("mnist"), models.pretrained("article_mlp", "mnist")
    names = ("by_redundancy", "by_activation")
    neurons = [_find_neurons(name, team, dense) for name, team in zip(names, teams, strict=True)]
    _check_chosen(*neurons, dense, data.train.images[:_CALIBRATION])
    if len(teams[0]) != len(teams[1]):
        raise NotYet(f"{len(teams[0])} networks against {len(teams[1])}; give one of each for every seed")
    measured = _contest_verdict(*teams, data.validation)
    if verdict != measured:
        test = "does not decide for the same one" if measured == _VERDICTS[2] else "decides for the same one"
        hint = f"McNemar's test {test} in every seed (validation)"
        raise NotYet(f"your verdict {describe(verdict)} does not hold: {hint}")
    means = [sum(measure.accuracy(network, data.validation) for network in team) / len(team) for team in teams]
    return (
        f"At {layers.count_parameters(teams[0][0]):,} parameters, means of {len(teams[0])} seeds: {means[0]:.2%} by "
        f"redundancy, {means[1]:.2%} by activation: {measured}. Who says the same as others may still say it loudest."
    )


def _contest_verdict(by_redundancy, by_activation, split):
    verdicts = {measure.mcnemar(*pair, split).verdict for pair in zip(by_redundancy, by_activation, strict=True)}
    return {("a is better",): _VERDICTS[0], ("b is better",): _VERDICTS[1]}.get(tuple(verdicts), _VERDICTS[2])


def _find_neurons(name, team, dense):
    """Return which neurons of the dense fc1 a team's networks have, (512,) bool."""
    if not isinstance(team, (tuple, list)) or len(team) < _SEEDS:
        actual = f"a list of {len(team)}" if isinstance(team, (tuple, list)) else describe(team)
        raise NotYet(f"the answer's {name} should be a list of {_SEEDS} networks at least, one a seed; it is {actual}")
    first, *rest = [_find_neurons_of(name, network, dense) for network in team]
    if not all(torch.equal(first, neurons) for neurons in rest):
        raise NotYet(f"the networks of {name} did not keep the same neurons; prune once, retrain with several seeds")
    if any(torch.equal(team[0].fc1.weight, network.fc1.weight) for network in team[1:]):
        raise NotYet(f"two networks of {name} are the same; retrain each with a seed of its own")
    return first


def _find_neurons_of(name, network, dense):
    """Return which neurons of the dense network's fc1 a network has, (512,) bool.

    They are recognised by their weights for pixels that are 0 in every image, which no training moves.
    """
    original = dense.fc1.weight.detach()
    weight = getattr(getattr(network, "fc1", None), "weight", None) if isinstance(network, nn.Module) else None
    if not isinstance(weight, torch.Tensor) or weight.shape[1:] != original.shape[1:] or len(weight) > len(original):
        raise NotYet(f"{name} holds {describe(network)} that is not article_mlp, pruned; start from the pretrained one")
    size = layers.count_parameters(network)
    if abs(size - _TARGET) > _ROOM * _TARGET:
        raise NotYet(f"a network of {name} has {size:,} parameters; all should have {_TARGET:,}, give or take 1%")
    still = _still_pixels()
    distance = torch.cdist(weight.detach()[:, still], original[:, still])
    neurons = torch.zeros(len(original), dtype=torch.bool).index_fill_(0, distance.argmin(1), True)
    if neurons.sum() < len(weight) or distance.amin(1).max() > 0.01:
        raise NotYet(f"a network of {name} was not made from the pretrained article_mlp; prune that one, then retrain")
    if torch.equal(weight, original[neurons]):
        raise NotYet(f"a network of {name} has not been retrained: fc1 has the weights that it had")
    return neurons


@functools.cache
def _still_pixels():
    return datasets.load("mnist").train.images.flatten(1).amax(0) == 0


def _check_chosen(by_redundancy, by_activation, dense, images):
    """Refuse teams whose neurons were chosen in another way than their name says."""
    correlation = redundancy_pruning.similarities(dense, images, layers=["fc1"])["fc1"].abs().fill_diagonal_(0)
    means = activation_pruning.statistics(dense, images, layers=["fc1"])["fc1"]
    alike = [float(correlation[team][:, team].max()) < 0.65 for team in (by_redundancy, by_activation)]
    loud = [float(means[team].mean() / means[~team].mean()) > 1.5 for team in (by_redundancy, by_activation)]
    if alike[1] and loud[0]:
        raise NotYet("these two look exchanged: by_activation is the one without twins")
    if not alike[0]:
        raise NotYet("the networks of by_redundancy kept neurons of fc1 that are twins; was it pruned by similarity?")
    if not loud[1]:
        hint = "was it pruned by activation?"
        raise NotYet(f"the networks of by_activation kept quiet neurons of fc1 and gave up louder ones; {hint}")
