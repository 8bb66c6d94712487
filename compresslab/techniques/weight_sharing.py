"""Weight sharing: the weights of a layer take few values, wherever on the line they fit best.

k-means finds 2**bits centroids for a layer's weights, and each weight becomes the nearest: a codebook and, for every
weight, a short code. The codebook is a parametrization of the layer (compresslab.codebooks.Codebook): training moves
the centroids, by the sum of the gradients of their weights, and leaves the codes. A grid of as many bits
(quantization) has its values evenly spaced; these lie closer together where weights are many.

Sources: Han et al. 2016, arXiv:1510.00149, section 3 (Deep Compression); Gong et al. 2014, arXiv:1412.6115 (k-means
of the weights of a layer).
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch.nn.utils import parametrize

from compresslab import bars, checks
from compresslab.codebooks import Codebook, nearest
from compresslab.layers import (
    TYPES,
    distinct_weights,
    duplicate,
    get_rounding,
    set_rounding,
    unsupported,
    weight_layers,
)
from compresslab.numerics.clustering import INITS, ROUNDS, kmeans
from compresslab.numerics.rounding_noise import signal_to_noise
from compresslab.techniques.contract import Control, Picture, Technique, warn_left_alone

MOST_BITS = 8


def share(model, bits=4, init="linear", biases=False, iterations=ROUNDS, layers=None, seed=0):
    """New model whose layers have few distinct weights each; `model` itself is not changed.

    model       any nn.Module with Linear, Conv or ConvTranspose layers
    bits        1 to 8: each layer's weights take 2**bits values at most; or a dict of layer name -> bits for those
                layers alone. Zeros, masked or not, stay exactly zero and have a code of their own beside these
    init        where k-means begins: "linear", evenly spaced from the smallest weight to the largest, which leaves
                centroids for the few large ones; "density", at quantiles; "random", at some of the weights
    biases      False leaves them as they are; True gives each layer's a codebook of as many bits; or bits
    iterations  of k-means, at most; 0 takes the centroids where they begin: "linear" is then an even grid
    layers      names of the layers, as in model.named_modules(); None for all
    seed        whole number, 0 or more, of init "random"
    returns     model whose shared weights carry a codebooks.Codebook, so that training moves their values alone
    raises      ValueError for a setting out of range, an unknown layer, a model without such layers, weights that are
                not finite
    warns       UserWarning that names what is left alone: embeddings, recurrent layers, attention's projections

    A layer with no more distinct weights than codes keeps them exactly; a code that no weight takes is left out. Masks
    stay. Sharing again, or what was on a grid, begins from the values there are.
    """
    checks.choice("init", init, INITS)
    checks.integer("iterations", iterations, 0)
    generator = np.random.default_rng(checks.integer("seed", seed, 0))
    _check_bits(bits, biases)
    twin = duplicate(_checked_model(model, layers))
    wanted = _wanted(twin, bits, layers)
    for tensor in ("weight", "bias") if biases else ("weight",):
        for weight in bars.over(distinct_weights(twin, list(wanted), tensor), "sharing weights"):
            width = _bits_of(weight, wanted) if tensor == "weight" or isinstance(biases, bool) else biases
            _share(weight, width, init, iterations, generator)
    if layers is None and not isinstance(bits, Mapping):
        warn_left_alone("weight_sharing", _left_alone(twin))
    return twin


def _share(weight, bits, init, iterations, generator):
    """Give a Weight its codebook, in every module that holds it; one without entries stays as it is."""
    _check_values(weight)
    if not weight.value.numel():
        return
    codebook = _codebook(weight.value, 2**bits, init, iterations, generator)
    for module, name in weight.holders:
        trained = _requires_grad(module, name)
        set_rounding(module, codebook, name)
    codebook.centroids.requires_grad_(trained)


def _codebook(value, count, init, iterations, generator):
    """The Codebook of a tensor: `count` centroids at most, and before them a zero if it has zeros."""
    zeros = value == 0
    has_zeros = bool(zeros.any())
    others = (value[~zeros] if has_zeros else value).to(torch.promote_types(value.dtype, torch.float32)).cpu().numpy()
    found = np.zeros(1)  # taken by none, and left out below
    if others.size:
        found = kmeans(others, count, init, iterations, generator)
    centroids = torch.from_numpy(found).to(value.device, value.dtype)
    codes = nearest(value, centroids)
    if has_zeros:
        centroids = torch.cat([centroids.new_zeros(1), centroids])
        codes = (codes + 1).masked_fill_(zeros, 0)
    used = torch.bincount(codes.flatten(), minlength=len(centroids)) > 0
    if not used.all():
        centroids, codes = centroids[used], (used.cumsum(0) - 1)[codes]
    return Codebook(centroids, codes, zero=has_zeros)


def _requires_grad(module, name):
    """Whether a tensor of a module is trained, parametrized or not."""
    if parametrize.is_parametrized(module, name):
        return any(one.requires_grad for one in module.parametrizations[name].parameters(recurse=False))
    return getattr(module, name).requires_grad


def _left_alone(model):
    """Reasons for the parts whose weights stay as they are; an embedding that shares a weight with a layer is not."""
    shared = {id(module) for weight in distinct_weights(model) for module, _ in weight.holders}
    found = unsupported(model)
    return {name: f"weights of {kind}" for name, kind in found.items() if id(model.get_submodule(name)) not in shared}


def _wanted(model, bits, layers):
    """First name of each layer that is asked for -> its bits, in module order."""
    if not isinstance(bits, Mapping):
        return dict.fromkeys(weight_layers(model, layers), bits)
    if layers is not None:
        raise ValueError(f"layers is {checks.words(layers)} and bits is a dict, which names the layers; give one")
    names = {id(module): name for name, module in weight_layers(model).items()}
    every = dict(model.named_modules(remove_duplicate=False))
    wanted = {}
    for name, value in bits.items():
        first = names.get(id(every.get(name)))
        if first is None:
            raise ValueError(f"bits has {name!r}; choose from {', '.join(names.values())}")
        if wanted.setdefault(first, value) != value:
            raise ValueError(f"bits has {first!r} and {name!r}, which are one layer; give it one value")
    return {name: wanted[name] for name in names.values() if name in wanted}


def _bits_of(weight, wanted):
    """Bits of a Weight; raises ValueError where layers that share it are given different ones."""
    found = {wanted[name] for name in weight.names}
    if len(found) > 1:
        told = ", ".join(f"{name!r}: {wanted[name]}" for name in weight.names)
        raise ValueError(f"bits has {told}, but these layers share their weight; give them one value")
    return found.pop()


def _check_bits(bits, biases):
    if isinstance(bits, Mapping) and not bits:
        raise ValueError(f"bits is {checks.words(bits)}; name at least one layer")
    for name, value in bits.items() if isinstance(bits, Mapping) else [("", bits)]:
        checks.integer(f"bits[{name!r}]" if name else "bits", value, 1, MOST_BITS)
    if not isinstance(biases, bool):
        checks.integer("biases", biases, 1, MOST_BITS)


def _checked_model(model, layers):
    checks.module("model", model)
    if not weight_layers(model, layers):
        known = ", ".join(kind.__name__ for kind in TYPES)
        found = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
        raise ValueError(f"model has no layer to share the weights of; those are {known}, it is made of {found}")
    return model


def _check_values(weight):
    """Raise ValueError for weights without values, of a kind that has no order, or not finite."""
    name, value = weight.names[0], weight.value
    if value.is_meta:
        raise ValueError(f"layer {name!r} is on the meta device, without values; load the weights first")
    if not value.is_floating_point():
        raise ValueError(f"layer {name!r} has weights of {value.dtype}; only real floating-point ones are shared")
    if not value.sum().isfinite() and not value.isfinite().all():  # the sum is 20 times faster
        raise ValueError(f"layer {name!r} has weights that are not finite (nan or inf)")


def anatomy(model, compressed, setting, data=None):
    """Pictures of what a sharing did: weights and centroids of the largest layer, its codes' use, noise by layer.

    model, compressed  before and after;  setting  what `share` was called with;  data  as in `signal_to_noise`
    returns            list of Picture, quick enough for every move of a slider; empty if no layer has weights
    """
    names = setting["bits"] if isinstance(setting.get("bits"), Mapping) else setting.get("layers")
    before, after = (
        [weight for weight in distinct_weights(one, names) if weight.value.numel()] for one in (model, compressed)
    )
    if not before:
        return []
    largest = max(range(len(before)), key=lambda index: before[index].value.numel())
    codebook = get_rounding(*after[largest].holders[0])
    weights, use = _histogram(before[largest], codebook), _use_bars(before[largest], codebook)
    ratios, caption = signal_to_noise(model, before, after, data)
    names = tuple(weight.names[0] for weight in before)
    noise = Picture("noise", "bars", np.array(ratios), "Signal to noise", caption, labels=names, axis="dB")
    return [weights, use, noise]


def _histogram(weight, codebook, most=1_000_000):
    """Weights of a layer before, every k-th of a large one, zeros left out where they keep their own code."""
    values = weight.value.reshape(-1)
    values = values[:: -(-values.numel() // most) or 1].float().cpu().numpy()
    marks = codebook.centroids.detach().float().cpu().numpy()
    if codebook.zero:
        values, marks = values[values != 0], marks[1:]
    caption = f"Each weight becomes the nearest of {len(marks)} values, the lines. Training moves the lines."
    caption += " Zeros stay zeros, and are left out." if codebook.zero else ""
    title = f"Weights of {weight.names[0]} before"
    return Picture("weights", "histogram", values, title, caption, axis="weight", marks=marks)


def _use_bars(weight, codebook):
    """How many weights take each centroid, in ascending order of them; the zero is left out."""
    centroids = codebook.centroids.detach().float().cpu()
    counts = torch.bincount(codebook.assignments.flatten(), minlength=len(centroids)).cpu()
    order = centroids.argsort(stable=True)
    order = order[order > 0] if codebook.zero else order
    shares = counts[order] / counts[order].sum()
    entropy = max(0.0, -float(shares.xlogy(shares).sum()) / math.log(2))
    carried = f"these {len(order)} codes carry {entropy:.2f} bits"
    caption = f"Used so unevenly, {carried}: what an entropy coder makes of them."
    labels = tuple(f"{value:.3g}" for value in centroids[order].tolist())
    title = f"Weights of {weight.names[0]} by value"
    return Picture("use", "bars", counts[order].numpy(), title, caption, labels=labels, axis="weights")


TECHNIQUE = Technique(
    name="weight_sharing",
    apply=share,
    controls=(
        Control("bits", 4, 1, MOST_BITS, 1, help="Bits of a code: 2**bits values in each layer."),
        Control("init", "linear", choices=INITS, help="Where k-means begins: evenly spaced, at quantiles, at random."),
        Control("biases", False, help="Biases share values too."),
    ),
    fair_controls={"evenly spaced values": {"init": "linear", "iterations": 0}, "begun at random": {"init": "random"}},
    anatomy=anatomy,
)
