"""Exercises of notebook 08: the best network in 10 KiB, the order of two steps, a small net as rival, a gap code."""

import math
import time

import numpy as np
import torch
from torch import nn

from compresslab import data as datasets
from compresslab import measure, models, storage, train
from compresslab.classroom.feedback import (
    NotYet,
    call,
    check_verdict,
    describe,
    describe_error,
    exercise,
    pair_layers,
    read_number,
    require,
    split_answer,
)
from compresslab.experiments.sweep import seed_global
from compresslab.techniques import quantization, zero_pruning
from compresslab.weights import layers

_KIB = 1024
_MOST, _LEAST = 10 * _KIB, 0.975  # bytes, and accuracy, of the first exercise
_RIVAL_MOST = 12 * _KIB  # bytes of the network that is to beat a small one
_SPARSITY, _BITS = 0.95, 4  # of the order exercise
_CLOSE = 0.001  # of all weights
_CODE = 4  # bits of a weight of the small rival


@exercise(
    "08.ten_kib", "Give a network for MNIST whose .clab file is 10 KiB at most, as accurate as you can.", points=3
)
def check_ten_kib(network: object) -> str:
    """Check a trained network by its file and the accuracy after loading it."""
    blob, loaded = _through_the_file(network)
    right = measure.accuracy(loaded, _validation())
    if len(blob) > _MOST:
        raise NotYet(f"the file has {len(blob) / _KIB:.2f} KiB; 10 KiB are the limit. Which of your steps saves most?")
    if right < _LEAST:
        raise NotYet(
            f"{len(blob) / _KIB:.2f} KiB are few enough, but only {right:.2%} of the validation images are right; "
            f"{_LEAST:.1%} are within reach: how long, and at which learning rate, do you retrain between the steps?"
        )
    return (
        f"{right:.2%} in a file of {len(blob) / _KIB:.2f} KiB that loads without the class and predicts the same. "
        "What would the next 2 KiB cost?"
    )


def _through_the_file(network):
    """Return the bytes of a network's file, and the network loaded from them."""
    if not isinstance(network, nn.Module):
        hint = "apply the recipe to the network first" if hasattr(network, "apply") else "give the network itself"
        raise NotYet(f"this is {describe(network)}; {hint}")
    try:
        blob = storage.dumps(network)
        loaded = storage.loads(blob)
        train.evaluate(loaded, _validation().images[:2])
    except Exception as error:
        raise NotYet(f"this network has no file that answers to images: {describe_error(error)}") from error
    return blob, loaded


def _validation():
    return datasets.load("mnist").validation


def _dense():
    return models.pretrained("lenet_300_100", "mnist")


@exercise(
    "08.order",
    "Give two networks, 95% sparse, of 4 bits, and a verdict: (prune_first, quantize_first, verdict).",
    points=2,
)
def check_order(answer: object) -> str:
    """Check (pruned then quantized, quantized then pruned, McNemar's verdict): LeNet-300-100, retrained.

    Which of the two wins depends on the training, so the verdict asked for is the one that is measured.
    """
    *networks, verdict = split_answer(answer, "(prune_first, quantize_first, verdict)")
    for name, network in zip(("the network pruned first", "the network quantized first"), networks, strict=True):
        _refuse_unready(name, network)
    first, second = map(_has_the_largest, networks)
    if not first or second:
        raise NotYet(_order_hint(first, second))
    test, (before, after) = check_verdict(verdict, networks, _validation())
    return (
        f"Pruned first {before:.2%}, quantized first {after:.2%}: {test.verdict} (a: pruned first, "
        f"p = {test.p_value:.1g}). On a coarse grid magnitudes are equal or zero: a poor ranking to prune by."
    )


def _refuse_unready(name, network):
    pairs = pair_layers(name, network, _dense())
    share = _masked_share(network)
    if abs(share - _SPARSITY) > _CLOSE:
        raise NotYet(f"{name} has masks that remove {share:.1%} of the weights; both should remove {_SPARSITY:.0%}")
    values = max(len(row.unique()) for layer, _ in pairs for row in layer.weight.detach())
    if values > 2**_BITS + 1:
        raise NotYet(f"{name} has neurons with {values} different weights; {_BITS} bits are {2**_BITS} values")
    if all(torch.equal(layer.bias, original.bias) for layer, original in pairs):
        raise NotYet(f"{name} has not been retrained: its biases are those of the dense network")


def _masks(network):
    """Return name of a layer -> bool tensor, False where a weight is masked."""
    masks = {}
    for name, layer in layers.weight_layers(network).items():
        mask = layers.get_mask(layer)
        masks[name] = torch.ones_like(layer.weight, dtype=torch.bool) if mask is None else mask.bool()
    return masks


def _masked_share(network):
    masks = _masks(network).values()
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def _has_the_largest(network):
    """Return whether the weights that stay are exactly the largest of the dense network."""
    largest = _masks(zero_pruning.prune(_dense(), sparsity=_SPARSITY))
    return all(torch.equal(mask, largest[name]) for name, mask in _masks(network).items())


def _order_hint(first, second):
    """Return a hint; first, second: whether a network has exactly the dense network's largest weights."""
    if second and not first:
        return "these two look exchanged: the second one kept exactly the largest weights of the dense network"
    if first:
        return "both kept exactly the largest weights of the dense network, so both were pruned before anything else"
    return "the first one did not keep the largest weights of the dense network; prune it before anything else is done"


@exercise(
    "08.small_net",
    "Write a function that compresses a network, and beats a small one trained in the same time.",
    points=2,
)
def check_small_net(shrink: object) -> str:
    """Check shrink(net, data) -> a network in 12 KiB that beats a small one."""
    data, start = datasets.load("mnist"), time.process_time()
    usable = callable(shrink) and not isinstance(shrink, nn.Module)
    network = require(call((lambda net: shrink(net, data)) if usable else shrink, _dense()))
    seconds = time.process_time() - start
    blob, loaded = _through_the_file(network)
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


@exercise(
    "08.gap_code", "Write a function that counts the bytes of a sparse layer as Deep Compression writes it.", points=2
)
def check_gap_code(gap_bytes: object) -> str:
    """Check gap_bytes(weight, bits, gap_bits) -> bytes, fillers and codebook included."""
    for name, weight in _sparse_layers().items():
        for bits, gap_bits in ((5, 5), (4, 3), (2, 8)):
            answer = read_number(call(gap_bytes, weight, bits, gap_bits), "the number of bytes")
            wanted = _gap_bytes(weight, bits, gap_bits)
            if answer != wanted:
                what = f"for {name}, {bits} bits a code, {gap_bits} bits a gap"
                raise NotYet(f"{what}, you count {answer:g} bytes; {_gap_hint(answer, weight, bits, gap_bits)}")
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


def _gap_hint(answer, *layer):
    near = {
        "is the codebook in it, 4 bytes for each of 2**bits centroids?": {"codebook": False},
        "a run of 2**gap_bits zeros or more needs a filler, an entry of its own": {"fillers": False},
        "neither fillers nor codebook are in it": {"fillers": False, "codebook": False},
    }
    for hint, without in near.items():
        if abs(answer - _gap_bytes(*layer, **without)) <= 1:
            return hint
    if abs(answer - 8 * _gap_bytes(*layer)) <= 8 or answer > 4 * _gap_bytes(*layer):
        return "are these bits? Bytes are asked for"
    return "each entry is a code and the number of zeros before it; zeros behind the last entry need none"


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
