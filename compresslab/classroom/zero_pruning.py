"""Exercises of notebook 02: a threshold for a ratio, the layer that dies first, the CSR break-even, gradual pruning."""

import bisect
import warnings

import numpy as np
import torch
from scipy import sparse
from torch import nn

from compresslab import data as datasets
from compresslab import models
from compresslab.classroom import feedback
from compresslab.classroom.feedback import NotYet, call, exercise, read_number
from compresslab.experiments.sweep import seed_global
from compresslab.techniques import zero_pruning
from compresslab.weights import layers

_CLOSE = 0.001  # of all weights
_SPARSITY = 0.95  # of the gradual exercise


@exercise("02.threshold_for", points=2)
def check_threshold_for(threshold_for: object) -> str:
    """Write a function that turns a sparsity into the threshold that gives it."""
    for name, model in _networks().items():
        for wanted in (0.5, 0.9, 0.99, 0.1):
            threshold = read_number(call(threshold_for, model, wanted), f"the threshold for {name}")
            if threshold < 0:
                raise NotYet(f"for {name} the threshold is {threshold:g}; it is compared with |w|")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # layers may be emptied here, that is another exercise
                sparsity = _sparsity(zero_pruning.prune(model, threshold=threshold))
            if abs(sparsity - wanted) <= _CLOSE:
                continue
            hint = "rank the magnitudes of all weights of all layers together, and of the weights only"
            if abs(sparsity - (1 - wanted)) < 0.02 < abs(wanted - 0.5):
                hint = "that is the share that stays; which share goes?"
            elif abs(sparsity - abs(2 * wanted - 1)) < 0.03:
                hint = "are negative weights ranked by their magnitude?"
            raise NotYet(f"asked for {wanted:.0%} of {name}, your threshold gives {sparsity:.1%}; {hint}")
    return (
        "A sparsity says how many weights go and a threshold says which; one is a quantile of the other, "
        "but only for this one network: the threshold of another network is another number."
    )


def _networks():
    """Make small networks whose layers differ in scale, kind and number of biases."""
    with seed_global(0), torch.no_grad():
        biased = nn.Sequential(nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, 10))
        biased[0].bias.fill_(5.0)
        hidden = nn.Linear(100, 90), nn.ReLU(), nn.Linear(90, 50), nn.ReLU(), nn.Linear(50, 10)
        scaled = nn.Sequential(nn.Flatten(), *hidden)
        scaled[1].weight.mul_(20)
        conv = nn.Sequential(nn.Conv2d(3, 30, 3), nn.ReLU(), nn.Flatten(), nn.Linear(120, 100), nn.Linear(100, 10))
    return {
        "LeNet-300-100": models.lenet_300_100(seed=0),
        "a net with large biases": biased,
        "a net with one large layer": scaled,
        "a convolutional net": conv,
    }


def _sparsity(model):
    """Return the fraction of the weights of a model (not its biases) that are zero."""
    weights = [weight.value for weight in layers.distinct_weights(model)]
    return 1 - sum(int(value.count_nonzero()) for value in weights) / sum(value.numel() for value in weights)


@exercise("02.dies_first", points=2)
def check_dies_first(dies_first: object) -> str:
    """Write a function that names the layer which a rising threshold empties first."""
    for name, model in _mortals().items():
        answer = call(dies_first, model)
        peaks = {key: float(layer.weight.detach().abs().max()) for key, layer in layers.weight_layers(model).items()}
        if answer not in peaks:
            hint = f"give the name of a layer: {', '.join(peaks)}"
            raise NotYet(f"for {name} you answer {feedback.describe(answer)}; {hint}")
        if before := sum(peak < peaks[answer] for peak in peaks.values()):
            earlier = "another layer is" if before == 1 else f"{before} other layers are"
            raise NotYet(f"for {name}, {earlier} empty before {answer!r}; which weight goes last in a layer?")
    return (
        "A layer dies when its largest weight falls below the threshold, and nothing passes a dead layer. "
        "Layers differ in scale, so one threshold for all of them is not one sparsity for all of them."
    )


def _mortals():
    """Make networks whose first dead layer has not the smallest mean, spread or count."""
    nets = _networks()
    wide, last = models.lenet_300_100(seed=1), models.lenet_300_100(seed=2)
    with torch.no_grad():
        peaked = nets["a net with one large layer"]
        peaked[1].weight.mul_(0.001)
        peaked[1].weight[0, 0] = 3.0  # smallest weights and spread but for one
        peaked[3].weight.mul_(4)
        wide.fc1.weight.clamp_(-0.01, 0.01)  # the largest layer
        conv = nets["a convolutional net"]
        conv[3].weight.copy_(conv[3].weight.abs() * -4)  # negative weights only
        conv[4].weight.mul_(3)
        last.fc3.weight.fill_(0.9)  # the smallest spread
    return {
        "a net with one outlier in a layer of small weights": peaked,
        "a net whose first layer was clipped": wide,
        "a convolutional net": conv,
        "a net with equal weights in its last layer": last,
    }


@exercise("02.csr_break_even", points=3)
def check_csr_break_even(break_even: object) -> str:
    """Write a function that gives the sparsity above which CSR is smaller than dense fp32."""
    for rows, columns in ((300, 784), (100, 300), (10, 100), (40, 12)):
        for index_bytes in (2, 4):
            answer = read_number(call(break_even, rows, columns, index_bytes), "the break-even")
            real, room = _measured_break_even(rows, columns, index_bytes), 1.5 / (rows * columns) + 1e-4
            if abs(answer - real) > room:
                raise NotYet(f"for {rows} × {columns}, {index_bytes}-byte indices, {_csr_hint(answer, real)}")
    low, high = (_measured_break_even(300, 784, size) for size in (2, 4))
    return (
        f"Measured on real arrays of 300 × 784: {low:.1%} with int16 indices, {high:.1%} with int32. "
        "Every nonzero brings an index along, so below that CSR is the larger one."
    )


def _csr_hint(answer, real):
    if not 0 <= answer <= 1:
        return f"{answer:.4g} is no sparsity; give a fraction, 0 to 1"
    if abs(answer - (1 - real)) < 0.002:
        return "that is the density; the sparsity is asked for"
    if 0 < real - answer < 0.2:
        return f"CSR is still larger at {answer:.2%}; which third array does it have, and what is in it?"
    side = "larger" if answer < real else "smaller already"
    return f"CSR is {side} at {answer:.2%}; add up the bytes of its three arrays"


def _measured_break_even(rows, columns, index_bytes):
    """Return the sparsity at which a real CSR matrix is as small as the dense."""
    size = rows * columns

    def is_small(zeros: int) -> bool:
        """Return whether values, column indices and row pointers are no larger than fp32."""
        csr = sparse.csr_matrix((np.arange(size) >= zeros).astype(np.float32).reshape(rows, columns))
        indices, pointers = csr.indices.astype(f"int{8 * index_bytes}"), csr.indptr.astype(np.int32)
        return csr.data.nbytes + indices.nbytes + pointers.nbytes <= 4 * size

    return bisect.bisect_left(range(size), True, key=is_small) / size


@exercise("02.gradual", points=3)
def check_gradual(answer: object) -> str:
    """Give two retrained networks at 95% sparsity and a verdict: (at_once, gradually, verdict).

    Which of the two wins depends on the training budget, so the verdict asked for is the one that is measured.
    """
    *networks, verdict = feedback.split_answer(answer, "(at_once, gradually, verdict)")
    dense, split = models.pretrained("lenet_300_100", "mnist"), datasets.load("mnist").validation
    pruned = layers.weight_layers(zero_pruning.prune(dense, sparsity=_SPARSITY)).values()
    as_pruned = []  # whether the zeros of each network are those of pruning at once
    for name, network in zip(("the network pruned at once", "the network pruned gradually"), networks, strict=True):
        pairs = feedback.pair_layers(name, network, dense)
        if abs(_sparsity(network) - _SPARSITY) > _CLOSE:
            raise NotYet(f"{name} is {_sparsity(network):.1%} sparse; both should be {_SPARSITY:.0%}")
        if not any(((layer.weight != 0) & (layer.weight != original.weight)).any() for layer, original in pairs):
            raise NotYet(f"{name} has not been retrained: its surviving weights are those of the dense network")
        zeros = zip(layers.weight_layers(network).values(), pruned, strict=True)
        as_pruned.append(all(torch.equal(layer.weight == 0, small.weight == 0) for layer, small in zeros))
    if as_pruned == [False, True]:
        raise NotYet("these two look exchanged: only the second one kept the largest weights of the dense network")
    if as_pruned != [True, False]:
        which, same = "both" if as_pruned[0] else "neither", "exactly the largest weights of the dense network"
        raise NotYet(f"{which} kept {same}; pruning at once does, gradual pruning does not")
    test, (before, after) = feedback.check_verdict(verdict, networks, split)
    return (
        f"At 95% sparsity {before:.2%} at once, {after:.2%} gradually, on the same {len(split):,} validation images: "
        f"{test.verdict} (a: at once, p = {test.p_value:.1g}). That is for one budget; does it hold for another one?"
    )
