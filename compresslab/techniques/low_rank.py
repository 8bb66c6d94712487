"""Low-rank factorization: one layer becomes two thinner ones in a row, which together are smaller.

A weight W of m outputs and n inputs is replaced by A B, with A of m x r and B of r x n numbers: r (m + n) in place of
m n, which is fewer below the break-even rank m n / (m + n). The two stay two real layers; multiplied back into one
matrix they would take as much room as before. A convolution is treated as the matrix from its windows to its outputs:
its own kernel with r filters, then r -> outputs with a 1 x 1 kernel.

Sources: Eckart and Young 1936 (the truncated SVD is best); Zhang et al. 2015, arXiv:1505.06798 (two convolutions, and
least error of the outputs in place of the weights); SVD-LLM, arXiv:2403.07378 (the same for transformers).
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from compresslab import bars, channels, checks
from compresslab.calibration import checked_images, watch
from compresslab.data import Data, Split
from compresslab.numerics.decomposition import Decomposition, break_even, decompose
from compresslab.numerics.moments import Moments, input_moments
from compresslab.techniques import base
from compresslab.techniques.base import Control, Picture, Technique
from compresslab.weights import layers as network
from compresslab.weights.masks import find_source, is_trained, list_parametrizations

__all__ = ["TECHNIQUE", "anatomy", "break_even", "factorize", "singular_values"]

METHODS = ("svd", "activation")
CALIBRATION = 500  # training images that the lab and the sweep hand over
DAMPING = 1e-2  # of the inputs' mean square, added to every input: what calibration never saw still counts a little
# Classes whose forward reads the weights of layers that it holds, where two layers have no such weight.
READERS = ("MultiheadAttention", "TransformerEncoderLayer", "ShiftedWindowAttention")


def factorize(
    model: nn.Module,
    images: torch.Tensor | Split | None = None,
    rank: int | Mapping[str, int] | None = None,
    energy: float | Mapping[str, float] | None = None,
    method: str = "svd",
    layers: Iterable[str] | None = None,
    fresh: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Return a new model with layers as two thinner layers each.

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
    seed     whole number, 0 or more, for `fresh` and for the random directions by which large layers are decomposed
    returns  the model; frozen weights stay frozen
    raises   ValueError for a setting out of range, both or neither of rank and energy, a rank above the full rank, an
             unknown layer name, a dict that names a layer which cannot be factorized, a model without such layers,
             weights that are not finite, no images for "activation", and, where images are given, a model that no
             longer runs because its own code reads the weight of a layer
    warns    UserWarning that names the layers left alone and why: those that two factors of this rank would not make
             smaller (done only where a dict asks for it, with a warning), grouped and transposed convolutions, weights
             that are shared, or read by attention; and layers whose mask or grid is lost
    """
    kind, value = _check_setting(images, rank, energy, method, fresh, seed)
    checks.module("model", model)
    twin = network.duplicate(model)
    sites, reasons = _find_sites(twin, kind, value, layers)
    pairs, ranks = {}, {}
    for site, moments in _measure_inputs(twin, sites, images, method, seed, reasons):
        parts = decompose(site.matrix, **{kind: site.wanted}, moment=_weighting(site.module, moments), seed=seed)
        ranks[site.name] = site.wanted if kind == "rank" else parts.rank_for(site.wanted)
        if ranks[site.name] < site.break_even or isinstance(value, Mapping):
            pairs[site] = _make_pair(site, parts, ranks[site.name], moments)
        else:
            reasons[site.name] = site.explain_size(ranks[site.name])
    base.warn_left_alone("low_rank", reasons)
    _warn(pairs, ranks)
    twin = channels.replace(twin, {site.module: pair for site, pair in pairs.items()})
    if images is not None:
        _check_runs(model, twin, checked_images(images, 1))
    if fresh:
        channels.reset(twin, seed)
    return twin


def singular_values(
    model: nn.Module, images: torch.Tensor | Split | None = None, layers: Iterable[str] | None = None
) -> dict[str, torch.Tensor]:
    """Return the spectrum of every layer that can be factorized, in module order.

    images   calibration images (N, …): then the values are those of method "activation", whose squares sum to the
             variance of the layer's outputs (to their mean square, where it has no bias); None for the weights' own
    layers   names of layers; None for all
    returns  dict of layer name -> (full rank,) float64, descending: min(rows, columns) values of the weight as a matrix
    raises   ValueError as `factorize` does
    """
    method = "svd" if images is None else "activation"
    _check_setting(images, None, 1.0, method, False, 0)
    checks.module("model", model)
    sites, _ = _find_sites(model, "energy", 1.0, layers)
    measured = _measure_inputs(model, sites, images, method, 0, {})
    return {site.name: decompose(site.matrix, moment=_weighting(site.module, m)).values for site, m in measured}


@dataclass(frozen=True, eq=False)
class _Site:
    """A layer to factorize: its name, module, weight (outputs, inputs, *kernel) and the rank or energy wanted of it."""

    name: str
    module: nn.Module
    weight: torch.Tensor
    wanted: float

    @property
    def matrix(self) -> torch.Tensor:
        """Return the weight as (rows, columns), in single precision at least."""
        matrix = self.weight.flatten(1)
        matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
        return matrix.cpu() if matrix.device.type == "mps" else matrix

    @property
    def break_even(self) -> float:
        """Return the rank below which two factors are smaller."""
        return break_even(len(self.weight), self.weight[0].numel())

    @property
    def full_rank(self) -> int:
        """Return the smaller side of the matrix."""
        return min(len(self.weight), self.weight[0].numel())

    def explain_size(self, rank: int) -> str:
        """Say that two factors of this rank are not smaller than the layer."""
        return f"rank {rank} would not make it smaller, its break-even rank is {self.break_even:.4g}"


def _check_setting(images, rank, energy, method, fresh, seed):
    """Return "rank" or "energy" and its value, after checks without the model."""
    base.check_alternatives("rank (16) or energy (0.9)", rank=rank, energy=energy)
    kind, value = ("rank", rank) if energy is None else ("energy", energy)
    entries = {f"{kind}[{name!r}]": number for name, number in value.items()} if isinstance(value, Mapping) else None
    for name, number in ({kind: value} if entries is None else entries).items():
        if kind == "rank":
            checks.integer(name, number, 1)
        else:
            base.check_share(name, number, "(0.9 for 90%)")
    if checks.choice("method", method, METHODS) == "activation" or images is not None:
        checked_images(images)
    base.check_flags(fresh=fresh)
    checks.integer("seed", seed, 0)
    return kind, value


def _find_sites(model, kind, value, layers):
    """Return the layers to factorize, and name -> reason for those that are not.

    kind, value  "rank" or "energy", one for all layers or a dict
    raises       ValueError where none can be, a dict names one that cannot be, or a rank is above the full rank
    """
    is_dict = isinstance(value, Mapping)
    weights = {id(module): weight for weight in network.distinct_weights(model) for module, _ in weight.holders}
    reasons, sites = {}, []
    for name, number in base.amounts_by_layer(kind, value, layers, model).items():
        module = model.get_submodule(name)
        if reason := _reason_against(model, name, module, weights[id(module)]):
            if is_dict:
                raise ValueError(f"{kind} has {name!r}, which cannot be factorized: {reason}")
            reasons[name] = reason
        else:
            sites.append(_Site(name, module, weights[id(module)].value, number))
    if not is_dict and layers is None:
        reasons |= {name: f"of type {part}" for name, part in network.unsupported(model).items()}
    if not sites:
        parts = "; ".join(f"{name or 'the model itself'} is left alone ({reason})" for name, reason in reasons.items())
        raise ValueError(f"model has no layer to factorize, such as Linear or Conv2d{parts and ': '}{parts}")
    if kind == "rank":
        # Refuse a rank above the full rank, of the named layer or of all layers.
        over = [site for site in sites if site.wanted > site.full_rank]
        if over and is_dict:
            message = f"rank[{over[0].name!r}] is {over[0].wanted}; the full rank of this layer is {over[0].full_rank}"
            raise ValueError(message)
        if len(over) == len(sites):
            most = max(sites, key=lambda site: site.full_rank)
            raise ValueError(f"rank is {value}; the largest full rank of a layer is {most.full_rank} ({most.name!r})")
        if not is_dict:
            reasons |= {site.name: site.explain_size(value) for site in sites if value >= site.break_even}
            sites = [site for site in sites if value < site.break_even]
    return sites, reasons


def _reason_against(model, name, module, weight):
    """Return why a layer cannot be factorized, or None. `weight` is its Weight."""
    layer_type = next((kind for kind in (nn.Linear, *network.CONVOLUTIONS) if isinstance(module, kind)), None)
    if layer_type is None:
        return "a transposed convolution"
    if getattr(module, "groups", 1) > 1:
        return "a grouped convolution"
    parent = type(model.get_submodule(name.rpartition(".")[0]))
    if reader := next((kind.__name__ for kind in parent.__mro__ if kind.__name__ in READERS), None):
        return f"{reader} reads its weight without calling it"
    if type(module).forward is not layer_type.forward or "forward" in vars(module):
        return f"{type(module).__name__} has a forward of its own"
    if len(weight.holders) > 1:
        return "its weight is shared with another layer"
    if weight.value.is_complex():
        return "its weight is complex"
    return None if weight.value.numel() else "it has no weights"


def _measure_inputs(model, sites, images, method, seed, reasons):
    """Yield each site with the Moments of its inputs, None for method "svd"."""
    for site in sites:
        base.check_loaded(site.name, site.weight)
        base.check_finite(site.name, site.weight)
    if method == "svd":
        yield from ((site, None) for site in bars.over(sites, "factorizing layers"))
        return
    waiting = {site.name: site for site in sites}
    for name, moments in input_moments(model, images, list(waiting), seed):
        yield waiting.pop(name), moments
    reasons |= dict.fromkeys(waiting, "the calibration images do not run it")


def _weighting(module: nn.Module, moments: Moments | None):
    """Return the damped moment that weights the columns, or None.

    It is the inputs' covariance, because a bias takes up their mean, or their second moment where there is no bias.
    """
    if moments is None:
        return None
    moment = moments.second.clone() if module.bias is None else moments.covariance()
    spread = moment.diagonal().mean()
    moment.diagonal().add_(DAMPING * spread)
    return moment if spread > 0 else None


def _make_pair(site: _Site, parts: Decomposition, rank: int, moments: Moments | None):
    """Return the two layers that stand in for one, as an nn.Sequential."""
    left, right = parts.factors(rank)  # (outputs, rank), (rank, inputs)
    module, weight, bias = site.module, site.weight, site.module.bias
    outputs, inputs, *kernel = weight.shape
    # Make two layers on the meta device, without random numbers.
    options = {"bias": bias is not None, "device": "meta"}
    if isinstance(module, nn.Linear):
        first, second = nn.Linear(inputs, rank, bias=False, device="meta"), nn.Linear(rank, outputs, **options)
    else:
        kind = next(kind for kind in network.CONVOLUTIONS if isinstance(module, kind))
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        same = {name: getattr(module, name) for name in names}
        first, second = kind(inputs, rank, **same, bias=False, device="meta"), kind(rank, outputs, 1, **options)
    # Give them the factors, and the bias with what the factors lose of the mean output.
    trained = is_trained(module, "weight")
    first.weight = nn.Parameter(right.reshape(rank, inputs, *kernel).to(weight), trained)
    second.weight = nn.Parameter(left.reshape(outputs, rank, *[1] * len(kernel)).to(weight), trained)
    if isinstance(bias, nn.Parameter) and moments is None:
        second.bias = bias
    elif bias is not None:
        value = bias.detach()
        if moments is not None:
            mean = moments.mean.to(left)
            value = value + (site.matrix @ mean - left @ (right @ mean)).to(value)
        second.bias = nn.Parameter(value, is_trained(module, "bias"))
    return nn.Sequential(first, second)


def _check_runs(model, twin, images):
    """Refuse a factorization after which a model that took these images no longer runs."""
    for candidate in (model, twin):
        try:
            watch(candidate, images, {})
        except ValueError as error:
            if candidate is model:
                return
            hint = "its code may read the weight of a layer: name the layers to factorize without it (layers=…)"
            message = f"the model does not run with two layers in the place of one; {hint}: {error}"
            raise ValueError(message) from None


def _warn(pairs, ranks):
    """Warn of layers that grow, and of masks and grids that are lost."""
    larger = [
        f"{site.name} (rank {ranks[site.name]}, break-even rank {site.break_even:.4g})"
        for site in pairs
        if ranks[site.name] >= site.break_even
    ]
    if larger:
        warnings.warn(f"low_rank makes no smaller, as asked for: {', '.join(larger)}", UserWarning, stacklevel=3)
    kinds = {}
    for site in pairs:
        for part in list_parametrizations(find_source(site.module, "weight")):
            kinds[site.name] = type(part).__name__
    if kinds:
        names, forms = ", ".join(kinds), ", ".join(sorted(set(kinds.values())))
        message = f"low_rank takes the weights of {names} as they act; their factors are free of {forms}"
        warnings.warn(f"{message}, zeros are lost", UserWarning, stacklevel=3)


def anatomy(model: nn.Module, compressed: nn.Module, setting: dict, data: Data) -> list[Picture]:
    """Picture a factorization: the largest spectrum, each layer's rank, the first weights."""
    sites, _ = _find_sites(model, "energy", 1.0, None)
    ranks = {site.name: None for site in sites}
    for name in ranks:
        if isinstance(pair := compressed.get_submodule(name), nn.Sequential):
            ranks[name] = len(pair[0].weight)
    largest = max(sites, key=lambda site: site.weight.numel())
    images = data.train.images[:CALIBRATION] if setting.get("method") == "activation" else None
    values = singular_values(model, images, [largest.name])[largest.name]
    shown = max(sites, key=lambda site: (base.as_images(site.weight) is not None, site.break_even))
    shares = np.array([1.0 if ranks[site.name] is None else ranks[site.name] / site.break_even for site in sites])
    caption = "Rank divided by break-even rank: at 100% two factors are as large as the layer, or it was left alone."
    names, title = tuple(site.name for site in sites), "Weights left in each layer"
    layer_bars = Picture("layers", "bars", shares, title, caption, cut=1.0, labels=names, axis="rank / break-even")
    return [_spectrum(largest, values, ranks[largest.name]), layer_bars, _weights(shown, compressed)]


def _spectrum(site, values, rank):
    """Picture the singular values of a layer, cut at its rank."""
    rows, columns = len(site.weight), site.weight[0].numel()
    state = "The layer is left as it is." if rank is None else f"Rank {rank}: what is left of the cut is kept."
    caption = (
        f"{state} Two factors of rank r hold r × ({rows} + {columns}) numbers in place of {rows} × {columns}: "
        f"fewer below rank {site.break_even:.1f}."
    )
    title = f"Spectrum of {site.name}, smaller below rank {site.break_even:.1f}"
    values = values.cpu().numpy()
    return Picture("spectrum", "spectrum", values, title, caption, cut=rank, axis="number of the singular value")


def _weights(site, compressed, most=25):
    """Picture a layer's weights, its factors multiplied, as images or a matrix."""
    layer = compressed.get_submodule(site.name)
    factors = layer if isinstance(layer, nn.Sequential) else [layer]
    factors = [part.weight.detach().float().flatten(1).cpu() for part in factors]
    product = factors[0] if len(factors) == 1 else factors[1] @ factors[0]  # (outputs, inputs)
    title, images = f"Weights of {site.name}", base.as_images(product.view(site.weight.shape))
    if images is None:
        caption = "A row for each output. At a low rank all rows are mixtures of few patterns."
        return Picture("weights", "matrix", product.numpy(), title, caption)
    caption = (
        "One image for each of the first 25 outputs: at rank 1 all are one pattern, each rank adds another to mix."
    )
    return Picture("weights", "images", images[:most].mean(1).numpy(), f"{title}, seen as images", caption)


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
