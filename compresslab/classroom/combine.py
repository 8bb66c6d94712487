"""Exercises of notebook 08: the best network in 10 KiB, the order of two steps, a small net as rival, a gap code."""

import functools
import math
import time

import numpy as np
import torch
from torch import nn

from compresslab import data as datasets
from compresslab import measure, models, storage, train
from compresslab.classroom import feedback
from compresslab.classroom.feedback import NotYet, call, exercise, read_number
from compresslab.experiments.sweep import seed_global
from compresslab.techniques import quantization, zero_pruning
from compresslab.weights import layers

_KIB = 1024
_MOST, _LEAST = 10 * _KIB, 0.975  # bytes, and accuracy, of the first exercise
_RIVAL_MOST = 12 * _KIB  # bytes of the network that is to beat a small one
_SPARSITY, _BITS = 0.95, 4  # of the order exercise
_CLOSE = 0.001  # of all weights
_CODE = 4  # bits of a weight of the small rival


@exercise("08.ten_kib", points=3)
def check_ten_kib(network: object) -> str:
    """Give a network for MNIST whose .clab file is 10 KiB at most, as accurate as you can."""
    split = datasets.load("mnist").validation
    blob, loaded = feedback.pass_through_file(network, split)
    right, kib = measure.accuracy(loaded, split), f"{len(blob) / _KIB:.2f} KiB"
    if len(blob) > _MOST:
        raise NotYet(f"the file has {kib}; 10 KiB are the limit. Which of your steps saves most?")
    if right < _LEAST:
        hint = "how long, and at which learning rate, do you retrain between the steps?"
        few = f"{kib} are few enough, but only {right:.2%} of the validation images are right"
        raise NotYet(f"{few}; {_LEAST:.1%} are within reach: {hint}")
    return (
        f"{right:.2%} in a file of {kib} that loads without the class and predicts the same. "
        "What would the next 2 KiB cost?"
    )


@exercise("08.order", points=2)
def check_order(answer: object) -> str:
    """Give two networks, 95% sparse, of 4 bits, and a verdict: (prune_first, quantize_first, verdict).

    Which of the two wins depends on the training, so the verdict asked for is the one that is measured.
    """
    *networks, verdict = feedback.split_answer(answer, "(prune_first, quantize_first, verdict)")
    dense = models.pretrained("lenet_300_100", "mnist")
    largest = _masks(zero_pruning.prune(dense, sparsity=_SPARSITY))
    as_pruned = []  # whether the weights that stay are exactly the largest of the dense network
    for name, network in zip(("the network pruned first", "the network quantized first"), networks, strict=True):
        pairs, masks = feedback.pair_layers(name, network, dense), _masks(network)
        share = 1 - float(torch.cat(masks).double().mean())
        if abs(share - _SPARSITY) > _CLOSE:
            raise NotYet(f"{name} has masks that remove {share:.1%} of the weights; both should remove {_SPARSITY:.0%}")
        values = max(len(row.unique()) for layer, _ in pairs for row in layer.weight.detach())
        if values > 2**_BITS + 1:
            raise NotYet(f"{name} has neurons with {values} different weights; {_BITS} bits are {2**_BITS} values")
        if all(torch.equal(layer.bias, original.bias) for layer, original in pairs):
            raise NotYet(f"{name} has not been retrained: its biases are those of the dense network")
        as_pruned.append(all(map(torch.equal, masks, largest)))
    exact = "kept exactly the largest weights of the dense network"
    if as_pruned == [False, True]:
        raise NotYet(f"these two look exchanged: the second one {exact}")
    if as_pruned == [True, True]:
        raise NotYet(f"both {exact}, so both were pruned before anything else")
    if as_pruned == [False, False]:
        hint = "prune it before anything else is done"
        raise NotYet(f"the first one did not keep the largest weights of the dense network; {hint}")
    test, (before, after) = feedback.check_verdict(verdict, networks, datasets.load("mnist").validation)
    return (
        f"Pruned first {before:.2%}, quantized first {after:.2%}: {test.verdict} (a: pruned first, "
        f"p = {test.p_value:.1g}). On a coarse grid magnitudes are equal or zero: a poor ranking to prune by."
    )


def _masks(network):
    """Return a flat mask for each layer, False where a weight is masked."""
    masks = []
    for layer in layers.weight_layers(network).values():
        mask = layers.get_mask(layer)
        masks.append((torch.ones_like(layer.weight) if mask is None else mask).bool().flatten())
    return masks


@exercise("08.small_net", points=2)
def check_small_net(shrink: object) -> str:
    """Write a function that compresses a network, and beats a small one trained in the same time."""
    data, start = datasets.load("mnist"), time.process_time()
    usable = callable(shrink) and not isinstance(shrink, nn.Module)
    # The data set is handed over as it is: `call` copies its arguments.
    network = call((lambda net: shrink(net, data)) if usable else shrink, models.pretrained("lenet_300_100", "mnist"))
    seconds = time.process_time() - start
    blob, loaded = feedback.pass_through_file(network, data.validation)
    if len(blob) > _RIVAL_MOST:
        raise NotYet(f"the file has {len(blob) / _KIB:.2f} KiB; 12 KiB are the limit")
    rival = _rival(len(blob), seconds, data.train)
    test = measure.mcnemar(loaded, rival, data.validation)
    ours, theirs = (measure.accuracy(model, data.validation) for model in (loaded, rival))
    text = f"{ours:.2%} in {len(blob) / _KIB:.1f} KiB; a small net, {storage.file_bytes(rival) / _KIB:.1f} KiB"
    text += f", trained from scratch for as long or longer: {theirs:.2%}"
    if test.verdict != "a is better":
        raise NotYet(f"{text} ({test.verdict}). What costs the most points, and is it retrained?")
    return f"{text}. The dense net's training came before that, and is not counted: who pays for it?"


def _rival(size, seconds, split):
    """Train a small 4-bit network from scratch, of as many bytes and seconds.

    It has 300 steps at the least, since after fewer its accuracy says more of the seed than of the size.
    """
    hidden = max(2, round(8 * size / _CODE / (28 * 28 + 10)))
    with seed_global(0):
        small = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    start = time.process_time()
    small = train.finetune(small, split, steps=20, lr=0.02, bar=False)
    pace = max(1e-5, (time.process_time() - start) / 20)
    steps = int(min(5000, max(300, seconds / pace)))
    small = train.finetune(small, split, steps=round(0.7 * steps), bar=False)
    small = quantization.quantize(small, bits=_CODE)
    return train.finetune(small, split, steps=round(0.3 * steps), bar=False)


@exercise("08.gap_code", points=2)
def check_gap_code(gap_bytes: object) -> str:
    """Write a function that counts the bytes of a sparse layer as Deep Compression writes it."""
    for name, weight in _sparse_layers().items():
        for bits, gap_bits in ((5, 5), (4, 3), (2, 8)):
            answer = read_number(call(gap_bytes, weight, bits, gap_bits), "the number of bytes")
            count = functools.partial(_gap_bytes, weight, bits, gap_bits)
            if answer == count():
                continue
            mistakes = {
                "is the codebook in it, 4 bytes for each of 2**bits centroids?": count(codebook=False),
                "a run of 2**gap_bits zeros or more needs a filler, an entry of its own": count(fillers=False),
                "neither fillers nor codebook are in it": count(fillers=False, codebook=False),
            }
            hint = "each entry is a code and the number of zeros before it; zeros behind the last entry need none"
            if abs(answer - 8 * count()) <= 8 or answer > 4 * count():
                hint = "are these bits? Bytes are asked for"
            hint = next((slip for slip, wrong in mistakes.items() if abs(answer - wrong) <= 1), hint)
            what = f"for {name}, {bits} bits a code, {gap_bits} bits a gap"
            raise NotYet(f"{what}, you count {answer:g} bytes; {hint}")
    weight = _sparse_layers()["a layer, 95% of it zeros"]
    return (
        f"{weight.numel()} weights, 95% zeros, 4 bits: {_gap_bytes(weight, 4, 5):,} bytes with gaps of 5 bits, "
        f"{_gap_bytes(weight, 4, 3):,} with 3. Positions cost about as much as codes; '40 times' is such a count."
    )


def _gap_bytes(weight, bits, gap_bits, fillers=True, codebook=True):
    """Count bytes: a code and a gap for each entry, 4 for each centroid."""
    places = np.flatnonzero(weight.numpy().ravel())
    zeros = np.diff(places, prepend=-1) - 1  # before each nonzero
    entries = len(places) + (int((zeros >> gap_bits).sum()) if fillers else 0)
    return math.ceil(entries * (bits + gap_bits) / 8) + (4 * 2**bits if codebook else 0)


def _sparse_layers():
    drawn = torch.Generator().manual_seed(0)
    weight = torch.randn(60, 50, generator=drawn)
    far, ends = torch.zeros(1, 1000), torch.zeros(4, 16)
    far[0, [0, 31, 63, 64, 128, 900]] = 1.0
    ends[0, 8], ends[2, 1] = -1.0, 2.0
    return {
        "a layer, 95% of it zeros": weight * (weight.abs() > 1.96),
        "a layer without zeros": weight[:5],
        "a layer with long runs of zeros": far,
        "a layer with zeros at both ends": ends,
        "a layer of zeros": torch.zeros(3, 3),
    }
