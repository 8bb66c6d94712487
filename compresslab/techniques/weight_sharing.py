"""Weight sharing: the weights of a layer take few values, wherever on the line they fit best.

k-means finds 2**bits centroids for a layer's weights, and each weight becomes the nearest: a codebook and, for every
weight, a short code. The codebook is a parametrization of the layer (weights.codebooks.Codebook): training moves
the centroids, by the sum of the gradients of their weights, and leaves the codes. A grid of as many bits
(quantization) has its values evenly spaced; these lie closer together where weights are many.

Sources: Han et al. 2016, arXiv:1510.00149, section 3 (Deep Compression); Gong et al. 2014, arXiv:1412.6115 (k-means
of the weights of a layer).
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

from compresslab import bars, checks
from compresslab.data import Data
from compresslab.numerics.clustering import INITS, ROUNDS, kmeans
from compresslab.techniques import base
from compresslab.techniques.base import Control, Picture, Technique
from compresslab.weights import layers as network
from compresslab.weights.codebooks import Codebook, nearest
from compresslab.weights.masks import is_trained

MOST_BITS = 8


def share(
    model: nn.Module,
    bits: int | Mapping[str, int] = 4,
    init: str = "linear",
    biases: bool | int = False,
    iterations: int = ROUNDS,
    layers: Iterable[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return a new model whose layers have few distinct weights each.

    model       any nn.Module with Linear, Conv or ConvTranspose layers
    bits        1 to 8: each layer's weights take 2**bits values at most; or a dict of layer name -> bits for those
                layers alone. Zeros, masked or not, stay exactly zero and have a code of their own beside these
    init        where k-means begins: "linear", evenly spaced from the smallest weight to the largest, which leaves
                centroids for the few large ones; "density", at quantiles; "random", at some of the weights
    biases      False leaves them as they are; True gives each layer's a codebook of as many bits; or bits
    iterations  of k-means, at most; 0 takes the centroids where they begin: "linear" is then an even grid
    layers      names of the layers, as in model.named_modules(); None for all
    seed        whole number, 0 or more, of init "random"
    returns     model whose shared weights carry a codebooks.Codebook, so that training moves their values alone; masks
                stay. A layer with no more distinct weights than codes keeps them exactly
    raises      ValueError for a setting out of range, an unknown layer, a model without such layers, weights that are
                not finite
    warns       UserWarning that names what is left alone: embeddings that are not named in `layers`
    """
    checks.choice("init", init, INITS)
    checks.integer("iterations", iterations, 0)
    generator = np.random.default_rng(checks.integer("seed", seed, 0))
    for name, value in bits.items() if isinstance(bits, Mapping) else [("", bits)]:
        checks.integer(f"bits[{name!r}]" if name else "bits", value, 1, MOST_BITS)
    if not isinstance(biases, bool):
        checks.integer("biases", biases, 1, MOST_BITS)
    twin = network.duplicate(base.check_model(model, layers, "share the weights of", network.find_matrices))
    wanted = base.amounts_by_layer("bits", bits, layers, twin, network.find_matrices)
    for tensor in ("weight", "bias") if biases else ("weight",):
        for weight in bars.over(network.distinct_weights(twin, list(wanted), tensor), "sharing weights"):
            width = _find_bits(weight, wanted) if tensor == "weight" or isinstance(biases, bool) else biases
            base.check_weight(weight, "shared")
            base.check_finite(weight.names[0], weight.value)
            if weight.value.numel():
                codebook = _make_codebook(weight.value, 2**width, init, iterations, generator)
                trained = is_trained(*weight.holders[-1])
                for module, name in weight.holders:
                    network.set_rounding(module, codebook, name)
                codebook.centroids.requires_grad_(trained)
    if layers is None and not isinstance(bits, Mapping):
        reasons = {name: f"weights of {kind}" for name, kind in network.unsupported(twin, matrices=True).items()}
        base.warn_left_alone("weight_sharing", reasons)
    return twin


def _make_codebook(value, count, init, iterations, generator):
    """Return the Codebook of a tensor, with a code of its own for zero."""
    zeros = value == 0
    has_zeros = bool(zeros.any())
    nonzeros = (value[~zeros] if has_zeros else value).to(torch.promote_types(value.dtype, torch.float32)).cpu().numpy()
    centroids = np.zeros(1)  # without a weight, and left out below
    if nonzeros.size:
        centroids = kmeans(nonzeros, count, init, iterations, generator)
    centroids = torch.from_numpy(centroids).to(value.device, value.dtype)
    codes = nearest(value, centroids)
    if has_zeros:
        centroids = torch.cat([centroids.new_zeros(1), centroids])
        codes = (codes + 1).masked_fill_(zeros, 0)
    used = torch.bincount(codes.flatten(), minlength=len(centroids)) > 0
    if not used.all():
        centroids, codes = centroids[used], (used.cumsum(0) - 1)[codes]
    return Codebook(centroids, codes, zero=has_zeros)


def _find_bits(weight, wanted):
    """Return the bits of a Weight; refuse different bits for layers that share it."""
    values = {wanted[name] for name in weight.names}
    if len(values) > 1:
        pairs = ", ".join(f"{name!r}: {wanted[name]}" for name in weight.names)
        raise ValueError(f"bits has {pairs}, but these layers share their weight; give them one value")
    return values.pop()


def anatomy(model: nn.Module, compressed: nn.Module, setting: dict, data: Data | None = None) -> list[Picture]:
    """Picture a sharing: the largest layer's weights, its codes' use, noise by layer."""
    names = setting["bits"] if isinstance(setting.get("bits"), Mapping) else setting.get("layers")
    before = [weight for weight in network.distinct_weights(model, names) if weight.value.numel()]
    after = [weight for weight in network.distinct_weights(compressed, names) if weight.value.numel()]
    if not before:
        return []
    largest = max(range(len(before)), key=lambda index: before[index].value.numel())
    codebook = network.get_rounding(*after[largest].holders[0])
    weights, use = _histogram(before[largest], codebook), _use_bars(before[largest], codebook)
    return [weights, use, base.picture_noise(model, before, after, data)]


def _histogram(weight, codebook):
    """Picture the weights of a layer before, and the centroids."""
    values = base.thin_out(weight.value)
    marks = codebook.centroids.detach().float().cpu().numpy()
    if codebook.zero:
        values, marks = values[values != 0], marks[1:]
    caption = f"Each weight becomes the nearest of {len(marks)} values, the lines. Training moves the lines."
    caption += " Zeros stay zeros, and are left out." if codebook.zero else ""
    title = f"Weights of {weight.names[0]} before"
    return Picture("weights", "histogram", values, title, caption, axis="weight", marks=marks)


def _use_bars(weight, codebook):
    """Picture how many weights take each centroid, centroids ascending; the zero is left out."""
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
