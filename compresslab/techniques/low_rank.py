"""Low-rank factorization: one layer becomes two thinner ones in a row, which together are smaller.

A weight W of m outputs and n inputs is replaced by A B, with A of m x r and B of r x n numbers: r (m + n) in place of
m n, which is fewer below the break-even rank m n / (m + n). The two stay two real layers; multiplied back into one
matrix they would take as much room as before. A convolution is treated as the matrix from its windows to its outputs:
its own kernel with r filters, then r -> outputs with a 1 x 1 kernel.

Sources: Eckart and Young 1936 (the truncated SVD is best); Zhang et al. 2015, arXiv:1505.06798 (two convolutions, and
least error of the outputs in place of the weights); SVD-LLM, arXiv:2403.07378 (the same for transformers).
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from compresslab import bars, checks
from compresslab.activations import checked_images
from compresslab.layers import distinct_weights, duplicate, plain, unsupported, weight_layers
from compresslab.numerics.decomposition import break_even, decompose
from compresslab.numerics.moments import CONVOLUTIONS, input_moments
from compresslab.structure.replacing import read_from_outside, replace
from compresslab.techniques.contract import Control, Picture, Technique, warn_left_alone

__all__ = ["TECHNIQUE", "anatomy", "break_even", "factorize", "singular_values"]

METHODS = ("svd", "activation")
DAMPING = 1e-2  # of the inputs' mean square, added to every input: what calibration never saw still counts a little


def factorize(model, images=None, rank=None, energy=None, method="svd", layers=None, fresh=False, seed=0):
    """New model with Linear and convolution layers as two thinner layers each; `model` itself is not changed.

    model    any nn.Module; Linear, Conv1d, Conv2d and Conv3d layers are factorized. A layer "fc1" becomes an
             nn.Sequential of Linear(inputs, rank, bias=False) and Linear(rank, outputs), "fc1.0" and "fc1.1"; a
             convolution of one with the same kernel, stride, padding and dilation, and one with a kernel of 1
    images   calibration images (N, …), for method "activation" alone; "svd" looks at none
    rank     whole number, 1 or more, for every layer; or a dict of layer name -> rank for those layers alone
    energy   instead of a rank: in each layer the smallest rank that keeps this fraction, above 0 to 1, of the squared
             singular values; or a dict of layer name -> energy
    method   "svd": nearest to the weight; "activation": nearest to the layer's outputs for the images, with the mean of
             what is lost added to the bias, and energy a fraction of the outputs' variance
    layers   names of the layers to factorize, as in model.named_modules(); None for all
    fresh    True draws all weights of the factorized model anew: the same shape, trained from scratch, is the control
    seed     whole number, 0 or more, for `fresh` and for the random directions by which large layers are decomposed;
             the global random state is not touched
    returns  the model; frozen weights stay frozen
    raises   ValueError for a setting out of range, both or neither of rank and energy, a rank above the full rank of
             the named layer or of all layers, an unknown layer name, a named layer in a dict that cannot be
             factorized, a model without such layers, weights that are not finite, and no images for "activation"
    warns    UserWarning that names the layers left alone and why: those that two factors of this rank would not make
             smaller (never done unless a dict asks for it, which is warned of too), grouped and transposed
             convolutions, weights that are shared or read by other code; and layers whose mask or grid is lost
    """
    setting = _checked_setting(images, rank, energy, method, layers, fresh, seed)
    twin = duplicate(_checked_model(model))
    sites, reasons = _sites(twin, setting, layers)
    pairs, ranks = {}, {}
    for site, moments in _looked_at(twin, sites, images, method, seed, reasons):
        found = decompose(site.matrix, **site.wanted, moment=_weighting(site.module, moments), seed=seed)
        ranks[site.name] = site.wanted.get("rank") or found.rank_for(site.wanted["energy"])
        if site.pays(ranks[site.name]) or setting.by_layer:
            pairs[site] = _pair(site, found, ranks[site.name], moments)
        else:
            reasons[site.name] = site.too_large(ranks[site.name])
    _report(reasons, pairs, ranks)
    twin = replace(twin, {site.module: pair for site, pair in pairs.items()})
    return _drawn_anew(twin, seed) if fresh else twin


def singular_values(model, images=None, layers=None):
    """The spectrum of every layer that can be factorized.

    images   calibration images (N, …): then the values are those of method "activation", whose squares sum to the
             variance of the layer's outputs (to their mean square, where it has no bias); None for the weights' own
    layers   names of layers; None for all
    returns  dict of layer name -> (full rank,) float64, descending; as many as min(rows, columns) of the weight as a
             matrix. Names as in model.named_modules(), in module order
    raises   ValueError as `factorize` does
    """
    method = "svd" if images is None else "activation"
    setting = _checked_setting(images, None, 1.0, method, layers, False, 0)
    sites, _ = _sites(_checked_model(model), setting, layers)
    seen = _looked_at(model, sites, images, method, 0, {})
    return {site.name: decompose(site.matrix, moment=_weighting(site.module, moments)).values for site, moments in seen}


@dataclass(frozen=True)
class _Setting:
    """What was asked for: "rank" or "energy", one value for all layers or a dict of them."""

    kind: str
    value: object

    @property
    def by_layer(self):
        return isinstance(self.value, Mapping)


@dataclass(frozen=True, eq=False)
class _Site:
    """A layer to factorize: its name, its module, its weight as a matrix (outputs, inputs), what is wanted of it."""

    name: str
    module: nn.Module
    weight: torch.Tensor
    wanted: dict

    @property
    def matrix(self):
        """(rows, columns) float32 or float64, where double precision is to be had: not on Apple's GPUs."""
        matrix = self.weight.flatten(1)
        matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
        return matrix.cpu() if matrix.device.type == "mps" else matrix

    @property
    def break_even(self):
        return break_even(len(self.weight), self.weight[0].numel())

    @property
    def full(self):
        return min(len(self.weight), self.weight[0].numel())

    def pays(self, rank):
        return rank < self.break_even

    def too_large(self, rank):
        return f"rank {rank} would not make it smaller, its break-even rank is {self.break_even:.4g}"


def _checked_setting(images, rank, energy, method, layers, fresh, seed):
    """The `_Setting` of arguments that are in range, whatever the model."""
    if (rank is None) == (energy is None):
        found = "neither" if rank is None else f"rank {rank!r} and energy {energy!r}"
        raise ValueError(f"give either rank (16) or energy (0.9), one of them; got {found}")
    setting = _Setting("rank", rank) if energy is None else _Setting("energy", energy)
    if setting.by_layer and layers is not None:
        raise ValueError(f"layers is {checks.words(layers)} and {setting.kind} is a dict, which names layers; give one")
    if setting.by_layer and not setting.value:
        raise ValueError(f"{setting.kind} is {checks.words(setting.value)}; name at least one layer")
    for name, value in setting.value.items() if setting.by_layer else [("", setting.value)]:
        where = f"{setting.kind}[{name!r}]" if setting.by_layer else setting.kind
        if setting.kind == "rank":
            checks.integer(where, value, 1)
        elif checks.fraction(where, value) == 0:
            raise ValueError(f"{where} is {checks.words(value)}; give a fraction above 0, to 1 (0.9 for 90%)")
    if checks.choice("method", method, METHODS) == "activation" or images is not None:
        checked_images(images)
    checks.choice("fresh", fresh, (False, True))
    checks.integer("seed", seed, 0)
    return setting


def _checked_model(model):
    checks.module("model", model)
    return model


def _sites(model, setting, layers):
    """The layers to factorize, as a list, and name -> reason for those that are not.

    raises  ValueError where none can be, a dict names one that cannot be, or a rank is above the full rank
    """
    wanted, readers = _wanted(model, setting, layers), read_from_outside(model)
    weights = {id(module): weight for weight in distinct_weights(model) for module, _ in weight.holders}
    reasons, sites = {}, []
    for name, value in wanted.items():
        module = model.get_submodule(name)
        weight = weights[id(module)]
        reasons[name] = _reason_against(module, weight, readers.get(name))
        sites.append(_Site(name, module, weight.value, {setting.kind: value}))
    sites = [site for site in sites if reasons[site.name] is None]
    reasons = {name: reason for name, reason in reasons.items() if reason is not None}
    if setting.by_layer and reasons:
        name, reason = next(iter(reasons.items()))
        raise ValueError(f"{setting.kind} has {name!r}, which cannot be factorized: {reason}")
    if not setting.by_layer and layers is None:
        reasons |= {name: f"of type {kind}" for name, kind in unsupported(model).items()}
    if not sites:
        told = "; ".join(f"{name or 'the model itself'} is left alone ({reason})" for name, reason in reasons.items())
        raise ValueError(f"model has no layer to factorize, such as Linear or Conv2d{told and ': '}{told}")
    return _that_pay(sites, setting, reasons), reasons


def _wanted(model, setting, layers):
    """First name of each layer that is asked for -> its rank or energy, in module order."""
    names = {id(module): name for name, module in weight_layers(model).items()}
    if not setting.by_layer:
        return dict.fromkeys(weight_layers(model, layers), setting.value)
    every, wanted = dict(model.named_modules(remove_duplicate=False)), {}
    for name, value in setting.value.items():
        if id(every.get(name)) not in names:
            raise ValueError(f"{setting.kind} has {name!r}; choose from {', '.join(names.values()) or 'none'}")
        first = names[id(every[name])]
        if wanted.setdefault(first, value) != value:
            raise ValueError(f"{setting.kind} has {first!r} and {name!r}, which are one layer; give it one value")
    return {name: wanted[name] for name in names.values() if name in wanted}


def _reason_against(module, weight, reader):
    """Why a layer cannot be factorized, or None. `weight` is its Weight, `reader` the class that reads it directly."""
    base = next((kind for kind in (nn.Linear, *CONVOLUTIONS) if isinstance(module, kind)), None)
    if base is None:
        return "a transposed convolution"
    if getattr(module, "groups", 1) > 1:
        return "a grouped convolution"
    if reader:
        return f"{reader} reads its weight without calling it"
    if type(module).forward is not base.forward or "forward" in vars(module):
        return f"{type(module).__name__} has a forward of its own"
    if len(weight.holders) > 1:
        return "its weight is shared with another layer"
    if weight.value.is_complex():
        return "its weight is complex"
    return None if weight.value.numel() else "it has no weights"


def _that_pay(sites, setting, reasons):
    """The sites that an equal rank makes smaller; reasons are added for the others. All of them for other settings."""
    if setting.kind == "energy":
        return sites
    over = [site for site in sites if site.wanted["rank"] > site.full]
    if setting.by_layer and over:
        site = over[0]
        raise ValueError(f"rank[{site.name!r}] is {site.wanted['rank']}; the full rank of this layer is {site.full}")
    if len(over) == len(sites):
        most = max(sites, key=lambda site: site.full)
        raise ValueError(f"rank is {setting.value}; the largest full rank of a layer is {most.full} ({most.name!r})")
    paying = [site for site in sites if setting.by_layer or site.pays(setting.value)]
    reasons |= {site.name: site.too_large(setting.value) for site in sites if site not in paying}
    return paying


def _looked_at(model, sites, images, method, seed, reasons):
    """Yield each site with the Moments of its inputs (None for method "svd"); those never run get a reason instead."""
    for site in sites:
        if site.weight.is_meta:
            raise ValueError(f"layer {site.name!r} is on the meta device, without values; load the weights first")
        if not site.weight.sum().isfinite() and not site.weight.isfinite().all():  # the sum is 20 times faster
            raise ValueError(f"layer {site.name!r} has weights that are not finite (nan or inf)")
    if method == "svd":
        yield from ((site, None) for site in bars.over(sites, "factorizing layers"))
        return
    waiting = {site.name: site for site in sites}
    for name, moments in input_moments(model, images, list(waiting), seed):
        yield waiting.pop(name), moments
    reasons |= dict.fromkeys(waiting, "the calibration images do not run it")


def _weighting(module, moments):
    """What the columns of a weight are weighted by: the inputs' covariance, as a bias takes up the mean, or their
    second moment where there is no bias; damped, and None if there is nothing in it.
    """
    if moments is None:
        return None
    moment = moments.second.clone() if module.bias is None else moments.covariance()
    spread = moment.diagonal().mean()
    moment.diagonal().add_(DAMPING * spread)
    return moment if spread > 0 else None


def _pair(site, found, rank, moments):
    """The two layers that stand in for one, as an nn.Sequential."""
    left, right = found.factors(rank)  # (outputs, rank), (rank, inputs)
    module, weight = site.module, site.weight
    first, second = _empty_pair(module, len(weight), weight.shape[1], rank)
    trained, ones = _is_trained(module, "weight"), (1,) * (weight.dim() - 2)
    first.weight = nn.Parameter(right.reshape(rank, *weight.shape[1:]).to(weight), trained)
    second.weight = nn.Parameter(left.reshape(len(weight), rank, *ones).to(weight), trained)
    if module.bias is not None:
        second.bias = _bias(site, left, right, moments)
    return nn.Sequential(first, second)


def _empty_pair(module, outputs, inputs, rank):
    """Two layers of the right sizes on the meta device, so that no random number is drawn."""
    there = {"bias": module.bias is not None, "device": "meta"}
    if isinstance(module, nn.Linear):
        return nn.Linear(inputs, rank, bias=False, device="meta"), nn.Linear(rank, outputs, **there)
    kind = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))
    same = {name: getattr(module, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    return kind(inputs, rank, **same, bias=False, device="meta"), kind(rank, outputs, 1, **there)


def _bias(site, left, right, moments):
    """The bias of the second layer: the old one, and with `moments` what the factors lose of the mean output."""
    bias = site.module.bias
    if moments is None and isinstance(bias, nn.Parameter):
        return bias
    value = bias.detach()
    if moments is not None:
        mean = moments.mean.to(left)
        value = value + (site.matrix @ mean - left @ (right @ mean)).to(value)
    return nn.Parameter(value, _is_trained(site.module, "bias"))


def _is_trained(module, name):
    """Whether a parameter of a module, parametrized or not, requires a gradient."""
    if parametrize.is_parametrized(module, name):
        return any(one.requires_grad for one in module.parametrizations[name].parameters())
    return getattr(module, name).requires_grad


def _report(reasons, pairs, ranks):
    """Warn of layers left alone, of layers that grow, and of masks and grids that the factors do not have."""
    warn_left_alone("low_rank", reasons)
    larger = [
        f"{site.name} (rank {ranks[site.name]}, break-even rank {site.break_even:.4g})"
        for site in pairs
        if not site.pays(ranks[site.name])
    ]
    if larger:
        warnings.warn(f"low_rank makes no smaller, as asked for: {', '.join(larger)}", UserWarning, stacklevel=3)
    forms = {site.name: type(one).__name__ for site in pairs for one in _parametrizations(site.module)}
    if forms:
        kinds, names = ", ".join(sorted(set(forms.values()))), ", ".join(forms)
        message = (
            f"low_rank takes the weights of {names} as they act; their factors are free of {kinds}, zeros are lost"
        )
        warnings.warn(message, UserWarning, stacklevel=3)


def _parametrizations(module):
    return module.parametrizations["weight"] if parametrize.is_parametrized(module, "weight") else []


def _drawn_anew(model, seed):
    """The model with every layer that can initialise itself initialised again, in place; the same on every device."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)  # the generators of other devices stay as they are
        for module in model.modules():
            reset = "reset_parameters" if hasattr(module, "reset_parameters") else "_reset_parameters"
            if hasattr(module, reset):
                drawn = plain(module).cpu()
                getattr(drawn, reset)()
                for name, value in [*drawn.named_parameters(recurse=False), *drawn.named_buffers(recurse=False)]:
                    parametrized = parametrize.is_parametrized(module, name)
                    own = module.parametrizations[name].original if parametrized else getattr(module, name)
                    own.copy_(value)
    return model


CALIBRATION = 500  # training images that the lab and the sweep hand over


def anatomy(model, compressed, setting, data):
    """Pictures of a factorization: the largest layer's spectrum with the cut, the rank of each layer as a share of its
    break-even rank, and the first factorized layer's weights as they are now.

    model, compressed  before and after;  setting  what `factorize` was called with
    data               Data, of which method "activation" looks at the first training images
    returns            list of Picture, quick enough for every move of a slider
    """
    sites, _ = _sites(model, _Setting("energy", 1.0), None)
    ranks = {site.name: _rank_of(compressed, site.name) for site in sites}
    largest = max(sites, key=lambda site: site.weight.numel())
    images = data.train.images[:CALIBRATION] if setting.get("method") == "activation" else None
    values = singular_values(model, images, [largest.name])[largest.name]
    shown = max(sites, key=lambda site: (_image_of(site) is not None, site.break_even))
    return [_spectrum(largest, values, ranks[largest.name]), _share_bars(sites, ranks), _weights(shown, compressed)]


def _rank_of(compressed, name):
    """Rank of a layer in the compressed model, None where it was left alone."""
    layer = compressed.get_submodule(name)
    return len(layer[0].weight) if isinstance(layer, nn.Sequential) else None


def _spectrum(site, values, rank):
    """Singular values of a layer, cut at its rank; where two factors begin to be smaller stands in the title."""
    rows, columns = len(site.weight), site.weight[0].numel()
    kept = "The layer is left as it is." if rank is None else f"Rank {rank}: what is left of the cut is kept."
    caption = (
        f"{kept} Two factors of rank r hold r × ({rows} + {columns}) numbers in place of {rows} × {columns}: "
        f"fewer below rank {site.break_even:.1f}."
    )
    title = f"Spectrum of {site.name}, smaller below rank {site.break_even:.1f}"
    values = values.cpu().numpy()
    return Picture("spectrum", "spectrum", values, title, caption, cut=rank, axis="number of the singular value")


def _share_bars(sites, ranks):
    """Weights of each layer's factors as a fraction of the layer's own, which is its rank / break-even rank."""
    shares = [1.0 if ranks[site.name] is None else ranks[site.name] / site.break_even for site in sites]
    caption = "Rank divided by break-even rank: at 100% two factors are as large as the layer, or it was left alone."
    names = tuple(site.name for site in sites)
    title = "Weights left in each layer"
    return Picture("layers", "bars", np.array(shares), title, caption, cut=1.0, labels=names, axis="rank / break-even")


def _image_of(site):
    """Height and width of what one output of a layer looks at, None where that is no image."""
    kernel, side = site.weight.shape[2:], math.isqrt(site.weight.shape[1])
    if len(kernel) == 2 and kernel.numel() > 1:
        return tuple(kernel)
    return (side, side) if site.weight.dim() == 2 and 1 < side**2 == site.weight.shape[1] else None


def _weights(site, compressed, most=25):
    """A layer's weights, its factors multiplied for looking at only: an image a neuron or filter, or a matrix."""
    layer = compressed.get_submodule(site.name)
    factors = layer if isinstance(layer, nn.Sequential) else [layer]
    factors = [one.weight.detach().float().flatten(1) for one in factors]
    product = factors[0] if len(factors) == 1 else factors[1] @ factors[0]  # (outputs, inputs)
    title, size = f"Weights of {site.name}", _image_of(site)
    if size is None:
        caption = "A row for each output. At a low rank all rows are mixtures of few patterns."
        return Picture("weights", "matrix", product.cpu().numpy(), title, caption)
    images = product[:most].reshape(min(most, len(product)), -1, *size).mean(1)  # (outputs, height, width)
    caption = (
        "One image for each of the first 25 outputs: at rank 1 all are one pattern, each rank adds another to mix."
    )
    return Picture("weights", "images", images.cpu().numpy(), f"{title}, seen as images", caption)


TECHNIQUE = Technique(
    name="low_rank",
    apply=factorize,
    controls=(
        Control("rank", 20, 1, 100, 1, alternative="size", help="Directions that each factorized layer keeps."),
        Control(
            "energy", 0.7, 0.1, 0.99, 0.01, unit="%", alternative="size", help="Share of the squared values to keep."
        ),
        Control("method", "svd", choices=METHODS, help="Nearest to the weights, or to the outputs for images."),
    ),
    fair_controls={"from scratch": {"fresh": True}},
    anatomy=anatomy,
    steps=100,  # two factors are quick, and learn from more images in the same time
    calibration=CALIBRATION,
)
