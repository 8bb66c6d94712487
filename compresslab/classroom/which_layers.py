"""Exercises of notebook 07: rank layers, a score that empties none, the 25% challenge, where greedy goes wrong."""

import functools
import warnings

import torch

from compresslab import data as datasets
from compresslab import measure, models, storage
from compresslab.classroom.feedback import NotYet, call, describe, exercise, read_number, require, split_answer
from compresslab.experiments import allocation
from compresslab.experiments.sweep import seed_global
from compresslab.techniques import zero_pruning
from compresslab.weights import layers

_NETWORK = "lenet_300_100"
_SPARSITY = 0.9  # of the ranking
_IMAGES = 1000  # validation images that rankings are made on
_SHARE = 0.25  # of the dense bytes, in the challenge
_POINT = 0.01  # by how much an allocation has to be better


@exercise("07.ranking", points=2)
def check_ranking(answer: object) -> str:
    """Predict in which order the layers of lenet_5 are sensitive, and write a function that ranks."""
    predicted, ranking = split_answer(answer, "(predicted, ranking)")
    predicted = _names(predicted, ["conv1", "conv2", "fc1", "fc2"], "your prediction")
    for network, data in ((_NETWORK, "mnist"), (_NETWORK, "fashion_mnist"), ("lenet_5", "mnist")):  # all rank otherwise
        model, split, where = models.pretrained(network, data), datasets.load(data).validation, f"{network} on {data}"
        split, drops = split[:_IMAGES], {}  # layer -> fraction of the images lost when it alone is pruned
        dense = measure.accuracy(model, split)
        for name in layers.weight_layers(model):
            drops[name] = dense - measure.accuracy(zero_pruning.prune(model, _SPARSITY, layers=[name]), split)
        order = _names(call(ranking, model, split, _SPARSITY), list(drops), f"the ranking of {where}")
        right = sorted(drops, key=drops.get, reverse=True)
        if order != right:
            wrong = next(name for name, measured in zip(order, right, strict=True) if name != measured)
            alone = f"{wrong} alone loses {100 * drops[wrong]:.1f} points; measure each layer alone"
            hint = "the most sensitive comes first" if order == right[::-1] else f"at {_SPARSITY:.0%} sparsity {alone}"
            raise NotYet(f"for {where} you say {' > '.join(order)}; {hint}")
    places = f"your prediction had {sum(map(str.__eq__, predicted, right))} of 4 places right"
    return f"For lenet_5 measured: {' > '.join(right)}; {places}. It is not the order of size."


def _names(answer, allowed, what):
    """Return an answer as a list of layer names, each once."""
    if not isinstance(require(answer), (list, tuple)) or sorted(map(str, answer)) != sorted(allowed):
        raise NotYet(f"{what} should be a list of {', '.join(allowed)}, each once; this is {describe(answer)}")
    return list(answer)


@exercise("07.lamp", points=2)
def check_lamp(lamp: object) -> str:
    """Write LAMP's score: the square of a weight by the sum of all squares that are no smaller."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    for weight in (torch.tensor([[3.0, -1.0], [2.0, -5.0]]), draw(6), draw(5, 7), draw(4, 3, 3, 3)):
        scores, shape = call(lamp, weight), tuple(weight.shape)
        if not isinstance(scores, torch.Tensor) or scores.shape != weight.shape:
            raise NotYet(f"for a weight of shape {shape} you return {describe(scores)}; give its shape back")
        wanted = _lamp(weight)
        if not torch.allclose(scores.double(), wanted, rtol=1e-3, atol=1e-9):
            raise NotYet(_score_hint(scores.double(), wanted, weight.double().square()))
    by_size, by_score = _count_left_at_scales(lamp)
    return (
        f"Of two layers that differ a thousandfold in scale, 80% sparse together, |w| leaves {by_size} weights in the "
        f"second and your score {by_score}: the largest weight of each layer has score 1, the top of the ranking."
    )


def _lamp(weight):
    """Return the scores by their definition, every pair compared."""
    squares = weight.double().square().flatten()
    return torch.stack([square / squares[squares >= square].sum() for square in squares]).reshape(weight.shape)


def _score_hint(scores, wanted, squares):
    if torch.allclose(scores, squares / squares.sum(), rtol=1e-3):
        return "each square is divided by the sum of all; only those that are no smaller count, itself among them"
    if torch.allclose(scores.flatten().sort().values, wanted.flatten().sort().values, rtol=1e-3):
        return "the scores are right, but not in place: each belongs where its weight is"
    if float(scores.max()) > 1 + 1e-3 or not scores.isfinite().all():
        return "the largest weight should have score 1: its own square is among those that are no smaller"
    return f"the smallest weight's score should be {float(wanted.min()):.3g}; yours is {float(scores.min()):.3g}"


def _count_left_at_scales(lamp):
    """Count the second layer's remaining weights by |w| and by the learner's scores."""
    with seed_global(0):
        weights = torch.randn(20, 20), 1e-3 * torch.randn(20, 20)
    left = []
    for score in (torch.abs, lamp):
        scores = [score(weight.clone()).float().flatten() for weight in weights]
        cut = torch.cat(scores).sort().values[640]
        left.append(int((scores[1] >= cut).sum()))
    return left


@exercise("07.challenge", points=3)
def check_challenge(shares: object) -> str:
    """Give a sparsity for each layer of lenet_300_100, Fashion-MNIST, for 25% of the dense bytes."""
    model, split = models.pretrained(_NETWORK, "fashion_mnist"), datasets.load("fashion_mnist").validation
    small = _pruned(model, shares)
    size, room = storage.file_bytes(small), int(_SHARE * measure.sizes(model).dense_bytes)
    if size > room:
        raise NotYet(f"the file has {size:,} bytes, and {room:,} are 25% of the dense ones; something has to go")
    right, uniform, dense = (measure.accuracy(net, split) for net in (small, _uniform(model, room), model))
    if right < uniform + _POINT:
        hint = f"be {100 * _POINT:g} point better: which layer is dear, and how many bytes does it have?"
        raise NotYet(f"{right:.2%} right with {size:,} bytes, {uniform:.2%} by the same sparsity everywhere; {hint}")
    return f"Score: {right:.2%} right in {size:,} bytes, not retrained; uniform {uniform:.2%}, dense {dense:.2%}."


def _uniform(model, room):
    """Prune to the same sparsity everywhere, so that the file just fits, within a thousandth."""
    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        fits = storage.file_bytes(zero_pruning.prune(model, middle, scope="layer")) <= room
        low, high = (low, middle) if fits else (middle, high)
    return zero_pruning.prune(model, high, scope="layer")


def _pruned(model, shares):
    """Return the model pruned by the learner's dict."""
    if not isinstance(shares, dict):
        raise NotYet(f"give a dict of layer -> sparsity; this is {describe(shares)}")
    names = list(layers.weight_layers(model))
    for name, share in shares.items():
        if name not in names:
            raise NotYet(f"there is no layer {describe(name)}; the layers are {', '.join(names)}")
        if not 0 <= read_number(share, f"the sparsity of {name}") <= 1:
            raise NotYet(f"the sparsity of {name} is {describe(share)}; give a fraction, 0 to 1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        small = allocation.apply(model, {name: float(share) for name, share in shares.items()})
    empty = [name for name, layer in layers.weight_layers(small).items() if not layer.weight.any()]
    if empty:
        raise NotYet(f"{empty[0]} has no weight left, so that nothing passes it")
    return small


@exercise("07.break_greedy", points=3)
def check_break_greedy(answer: object) -> str:
    """Give a budget (bytes) and an allocation that beats the greedy one: (budget, shares)."""
    budget, shares = split_answer(answer, "(budget, shares)")
    split, model = datasets.load("mnist").validation, models.pretrained(_NETWORK, "mnist")
    better = _pruned(model, require(shares))
    try:
        usual = allocation.apply(model, allocation.allocate(_scan(), read_number(budget, "the budget")))
    except ValueError as error:
        raise NotYet(f"{error}") from error
    my_size, greedy_size = (storage.file_bytes(network) for network in (better, usual))
    if my_size > greedy_size:
        raise NotYet(f"your file has {my_size:,} bytes and the greedy one {greedy_size:,}; it may not be larger")
    mine, theirs = (measure.accuracy(network, split) for network in (better, usual))
    if mine < theirs + _POINT:
        hint = "be a point better: where do losses that were measured alone not add up?"
        raise NotYet(f"{mine:.2%} against {theirs:.2%} by greedy, in {my_size:,} and {greedy_size:,} bytes; {hint}")
    return (
        f"{mine:.2%} against {theirs:.2%}, in {my_size:,} and {greedy_size:,} bytes. The scan measured layers alone, "
        "at few values, and adding up is an assumption: the whole has to be measured."
    )


@functools.cache
def _scan():
    return allocation.scan(_NETWORK, "mnist", bar=False)
