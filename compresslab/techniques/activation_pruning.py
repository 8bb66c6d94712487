"""Activation pruning: remove the neurons that do least over calibration images, from every matrix they are part of.

A neuron is a row of one layer and a column of the next. What the next layer reads of it, over calibration images, says
how much it does; when it goes, its mean stays behind in the next layer's bias (W a is about W E[a]). The article's
statistic is the mean activation. It looks at size alone; a neuron that is large but always the same tells nothing.

Sources: Hu et al. 2016, arXiv:1607.03250 (APoZ); Molchanov et al. 2017, arXiv:1611.06440 (mean, standard deviation);
Liu et al. 2019, arXiv:1810.05270 (the small network from scratch).
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from compresslab import channels, checks
from compresslab.calibration import checked_images, watch
from compresslab.data import Data, Split
from compresslab.techniques import base
from compresslab.techniques.base import Control, Picture, Technique
from compresslab.weights.layers import duplicate, unsupported, weight_layers

SCOPES = ("global", "layer")
AXES = {
    "mean": "mean |activation|",
    "apoz": "share of activations that are not 0",
    "std": "standard deviation",
    "variance": "variance × squared norm of outgoing weights",
    "random": "random number",
}
STATISTICS = tuple(AXES)
CALIBRATION = 1000  # images that the lab calibrates with


def prune(
    model: nn.Module,
    images: torch.Tensor | Split,
    threshold: float | None = None,
    sparsity: float | None = None,
    statistic: str = "mean",
    scope: str = "global",
    layers: Iterable[str] | None = None,
    calibration_size: int | None = None,
    fold: bool = True,
    fresh: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Return a new model without the neurons and channels that do least.

    model      any nn.Module; removed are outputs of its Linear and convolution layers, never the model's own
    images     (N, …) calibration images, a tensor or a Split
    threshold  neurons with statistic < threshold go, 0 or more
    sparsity   instead of a threshold: fraction of neurons that go, 0 to 1: exactly round(sparsity * n) of the n neurons
               in the scope, unless a layer would lose all
    statistic  the measure of a neuron, see `statistics`. With "random" as many go, drawn with `seed`: the fair control;
               with a threshold, as many of each layer as by their "mean"
    scope      "global": one ranking, or one threshold, over all layers; "layer": the sparsity in each layer, or each
               layer's threshold in proportion to its average: threshold * average(layer) / average(all neurons)
    layers     names of the layers whose neurons may go, as in model.named_modules(); None for all
    calibration_size  use the first so many of the images, 1 or more; None for all
    fold       put the mean of a removed neuron into the bias of every layer that read it: exact for a constant neuron,
               but for zero padding at the edge and the pixels of a transposed convolution with a stride
    fresh      keep the shape and draw all weights anew with `seed`: the small network from scratch, to be trained
    seed       whole number, 0 or more; the global random state is left alone
    returns    smaller model of the same structure, in which layers that are added, multiplied or convolved group by
               group lose the same neurons
    raises     ValueError for a setting out of range, both or neither of threshold and sparsity, no images, images that
               the model does not take, an unknown layer name, a layer whose neurons cannot go, and a model without
               Linear or convolution layers
    warns      UserWarning that names layers that would lose all neurons, where the one with the highest statistic
               stays, and what is left alone, which may be everything

    Masking and removing give the same logits: the consumers' weights for the removed neurons are 0, and with `fold`
    their biases have the means.
    """
    base.check_flags(fold=fold, fresh=fresh)
    removal, left_alone = _choose(model, images, threshold, sparsity, statistic, scope, layers, calibration_size, seed)
    twin = duplicate(model)
    if fold:
        _fold(twin, removal)
    channels.remove(twin, removal.groups, removal.removed)
    if removal.emptied:
        names = ", ".join(map(repr, removal.emptied))
        message = f"pruning would leave no neuron in layer {names}; the one with the highest statistic stays"
        warnings.warn(message, UserWarning, stacklevel=2)
    base.warn_left_alone("activation_pruning", left_alone)
    if fresh:
        channels.reset(twin, seed)
    return twin


def statistics(
    model: nn.Module,
    images: torch.Tensor | Split,
    statistic: str = "mean",
    layers: Iterable[str] | None = None,
    calibration_size: int | None = None,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Measure how much each neuron does over calibration images, as its readers see it.

    model, images, layers, calibration_size  as in `prune`
    statistic  "mean": mean of |a|, which is the mean activation behind a ReLU; for activations of either sign, whose
               mean may vanish while they do much, that of their size
               "apoz": share of activations that are not 0, which is 1 - APoZ (average percentage of zeros, Hu et al.):
               threshold 0.1 removes what is zero more than 90% of the time. Behind anything but a ReLU all are 1
               "std": standard deviation, in the unit of the activations
               "variance": variance times the squared norm of the outgoing weights: the mean squared change of what the
               next layer computes when the neuron is replaced by its mean (summed over its neurons)
               "random": numbers from 0 to 1, drawn with `seed`
    returns    dict of layer name -> float32 tensor (size,) on the CPU, in module order; a name stands for all layers
               whose neurons go together with it, the first of them. For a channel of a convolution it is taken over
               images and positions, also where a Linear layer reads it position by position; where several layers read
               it, it is the largest ("variance": the sum)
    raises     ValueError as `prune`
    """
    checks.choice("statistic", statistic, STATISTICS)
    checks.integer("seed", seed, 0)
    groups, _ = _find_groups(model, images, layers)
    moments = _measure(model, groups, checked_images(images, calibration_size), statistic)
    return _score(model, groups, moments, statistic, seed)


def _check_setting(threshold, sparsity, statistic, scope, calibration_size, seed):
    base.check_alternatives("threshold (0.4) or sparsity (0.5)", threshold=threshold, sparsity=sparsity)
    if threshold is None:
        checks.fraction("sparsity", sparsity)
    else:
        checks.real("threshold", threshold, 0, math.inf)
    checks.choice("statistic", statistic, STATISTICS)
    checks.choice("scope", scope, SCOPES)
    checks.integer("seed", seed, 0)
    if calibration_size is not None:
        checks.integer("calibration_size", calibration_size, 1)


def _find_groups(model, images, layers):
    """Return the groups whose neurons may go, and the reasons for layers left alone."""
    checks.module("model", model)
    if any(weight.is_meta for weight in model.parameters()):
        raise ValueError("model is on the meta device, its weights have no values; load them first")
    chosen = weight_layers(model, layers)
    groups, reasons = channels.find_groups(model, images)
    if not chosen:
        raise ValueError("model has no neurons that can be removed: no Linear or convolution layer")
    if layers is not None:
        if fixed := [name for name in chosen if name in reasons]:
            raise ValueError(f"layers has {fixed[0]!r}, whose neurons cannot go: {reasons[fixed[0]]}")
        return [group for group in groups if {*group.producers} & {*chosen}], {}
    if groups:
        reasons = {name: reason for name, reason in reasons.items() if reason != channels.OUTPUT}
    return groups, reasons | {name: f"a {kind}" for name, kind in unsupported(model).items()}


class _Moments:
    """Statistics of what a layer reads, feature by feature (or channel by channel), over images and positions."""

    def __init__(self, module, statistic):
        self.linear, self.statistic, self.count = isinstance(module, nn.Linear), statistic, 0
        self.mean = self.variance = self.size = self.active = 0.0  # each (features,), float64 on the CPU

    def add(self, inputs: torch.Tensor, _: object) -> None:
        """Add a batch; means and variances are merged as in Chan, Golub and LeVeque 1983."""
        inputs = inputs.float().flatten(0, -2).unsqueeze(2) if self.linear else inputs.float().flatten(2)
        before, self.count = self.count, self.count + inputs.shape[0] * inputs.shape[2]  # (images, features, …)
        share, mean = 1 - before / self.count, inputs.mean((0, 2))
        change = _to_double(mean) - self.mean
        if self.statistic in ("std", "variance"):
            variance = _to_double((inputs - mean.unsqueeze(1)).square_().mean((0, 2)))
            self.variance = self.variance + (variance - self.variance) * share + change**2 * share * (1 - share)
        elif self.statistic == "apoz":
            self.active = self.active + (_to_double((inputs != 0).float().mean((0, 2))) - self.active) * share
        else:
            self.size = self.size + (_to_double(inputs.abs().mean((0, 2))) - self.size) * share
        self.mean = self.mean + change * share


def _to_double(tensor):
    """Return a tensor as float64 on the CPU, which every machine has."""
    return tensor.detach().cpu().double()


def _measure(model, groups, images, statistic, most=2**21):
    """Return the moments of every consumer of the groups, over the images."""
    modules = dict(model.named_modules())
    names = [consumer.name for group in groups for consumer in group.consumers]
    moments = {name: _Moments(modules[name], statistic) for name in names}
    watchers = {name: entry.add for name, entry in moments.items()}
    if watchers:
        watch(model, images, watchers, max(1, min(500, most // images[0].numel())))
    return moments


def _score(model, groups, moments, statistic, seed):
    """Return the statistic of each group's neurons, dict of group name -> float32 (size,)."""
    if statistic == "random":
        generator = torch.Generator().manual_seed(seed)
        return {group.name: torch.rand(group.size, generator=generator) for group in groups}
    scores = {}
    for group in groups:
        seen = [_score_consumer(model, consumer, moments[consumer.name], statistic) for consumer in group.consumers]
        score = torch.stack(seen).sum(0) if statistic == "variance" else torch.stack(seen).amax(0)
        if not score.isfinite().all():
            raise ValueError(f"layer {group.name!r} has activations or weights that are not finite (nan or inf)")
        scores[group.name] = score.float()
    return scores


def _score_consumer(model, consumer, moments, statistic):
    """Return the statistic of neurons as one consumer sees them, (size,)."""
    places = consumer.inputs
    if statistic == "mean":
        return moments.size[places].mean(1)
    if statistic == "apoz":
        return moments.active[places].mean(1)
    if statistic == "std":
        return (moments.variance[places].mean(1) + moments.mean[places].var(1, correction=0)).sqrt()
    module = model.get_submodule(consumer.name)
    weight = _to_double(module.weight)  # (outputs, inputs, …), or (inputs, outputs, …) of a transposed convolution
    norms = weight.square().movedim(_input_axis(module), 0).flatten(1).sum(1)
    return (moments.variance * norms)[places].sum(1)


def _input_axis(module):
    return 0 if getattr(module, "transposed", False) else 1


@dataclass(frozen=True)
class _Removal:
    """The neurons that a setting removes: by group name the statistic (`scores`) and which neurons go (`removed`).

    means    by consumer, the mean of each of its features;  emptied  groups that would have lost every neuron
    """

    groups: list
    scores: dict
    removed: dict
    means: dict
    emptied: list


def _choose(
    model,
    images,
    threshold=None,
    sparsity=None,
    statistic="mean",
    scope="global",
    layers=None,
    calibration_size=None,
    seed=0,
):
    """Return the _Removal of a setting, and the reasons for layers left alone."""
    _check_setting(threshold, sparsity, statistic, scope, calibration_size, seed)
    groups, left_alone = _find_groups(model, images, layers)
    moments = _measure(model, groups, checked_images(images, calibration_size), statistic)
    scores = _score(model, groups, moments, statistic, seed)
    if not groups:
        removed, emptied = {}, []
    elif threshold is None:
        removed, emptied = _spare_best(scores, partial(_find_lowest, sparsity=sparsity, scope=scope))
    else:
        means = _score(model, groups, moments, "mean", seed) if statistic == "random" else scores
        removed, emptied = _spare_best(means, partial(_find_below, limits=_limits(means, threshold, scope)))
        if statistic == "random":
            removed = {name: _mark_lowest(scores[name], int(which.sum())) for name, which in removed.items()}
    return _Removal(groups, scores, removed, {name: entry.mean for name, entry in moments.items()}, emptied), left_alone


def _spare_best(scores, rule):
    """Return what a rule removes without each group's best neuron, and the groups it empties.

    rule  dict of scores -> dict of bool tensors
    """
    spared = {name: score.index_fill(0, score.argmax(), math.inf) for name, score in scores.items()}
    return rule(spared), [name for name, which in rule(scores).items() if which.all()]


def _find_lowest(scores, sparsity, scope):
    """Mark a fraction of the scores, of each group or of all, as lowest."""
    if scope == "layer":
        return {name: _mark_lowest(score, round(sparsity * len(score))) for name, score in scores.items()}
    together = torch.cat(list(scores.values()))
    lowest = _mark_lowest(together, round(sparsity * len(together)))
    return dict(zip(scores, lowest.split([len(score) for score in scores.values()]), strict=True))


def _mark_lowest(scores, count):
    """Return True at the `count` lowest finite scores, equal ones in their order."""
    lowest = torch.zeros(len(scores), dtype=torch.bool)
    lowest[torch.sort(scores, stable=True).indices[:count]] = True
    return lowest & scores.isfinite()


def _limits(scores, threshold, scope):
    """Return the threshold of each group: the same, or in proportion to its average score."""
    if scope == "global":
        return dict.fromkeys(scores, threshold)
    average = torch.cat(list(scores.values())).mean()
    return {name: threshold * (float(score.mean() / average) if average else 1.0) for name, score in scores.items()}


def _find_below(scores, limits):
    return {name: score < limits[name] for name, score in scores.items()}


def _fold(twin, removal):
    """Add the means of removed neurons to the biases of their consumers."""
    removed_means = {}
    for group in removal.groups:
        for consumer in group.consumers:
            mean = removal.means[consumer.name]
            places = consumer.inputs[removal.removed[group.name]].flatten()
            removed_means.setdefault(consumer.name, torch.zeros_like(mean))[places] = mean[places]
    for name, mean in removed_means.items():
        if mean.count_nonzero():
            channels.add_to_bias(twin, name, _respond(twin.get_submodule(name), mean))


def _respond(module, mean):
    """Return a layer's answer, without its bias, to inputs that are everywhere `mean`.

    Each pixel of a transposed convolution with a stride sees part of the kernel: the average of their answers.
    """
    weight = _to_double(module.weight).movedim(_input_axis(module), 0)  # (inputs, outputs, …)
    taps = weight.reshape(*weight.shape[:2], -1).sum(-1)
    return mean @ taps / (math.prod(module.stride) if getattr(module, "transposed", False) else 1)


def anatomy(model: nn.Module, compressed: nn.Module, setting: dict, data: Data) -> list[Picture]:
    """Picture a pruning: the statistic and its cut, neurons left, weights of the neurons.

    model, compressed  before and after;  setting  what `prune` was called with;  data  Data, calibrated on its training
                       images as in the lab
    returns            list of Picture
    """
    options = {name: value for name, value in setting.items() if name not in ("fold", "fresh")}
    removal, _ = _choose(model, data.train.images[:CALIBRATION], **options)
    if not removal.groups:
        return []
    return [_histogram(removal, setting), _bars(removal), *_receptive(model, removal)]


def _histogram(removal, setting):
    """Picture the statistic of all neurons, and where it is cut."""
    statistic = setting.get("statistic", "mean")
    values, removed = torch.cat(list(removal.scores.values())), torch.cat(list(removal.removed.values()))
    caption = "Neurons left of the cut are removed. Is a neuron that is seldom active, or always the same, of no use?"
    cut = None
    if setting.get("scope", "global") == "layer" or statistic == "random":
        caption = "No single cut: neurons go at random, or each layer has a cut of its own."
    elif setting.get("threshold") is not None:
        cut = float(setting["threshold"])
    elif removed.any():
        cut = float(values[removed].max())
    return Picture("neurons", "histogram", values.numpy(), "Neurons by statistic", caption, cut, axis=AXES[statistic])


def _bars(removal):
    """Picture the share of each layer's neurons that stays."""
    shares = np.array([1 - float(which.float().mean()) for which in removal.removed.values()])
    caption = "At least one neuron stays. Parameters fall faster than neurons: a weight goes with either of its two."
    labels = tuple(removal.removed)
    return Picture("layers", "bars", shares, "Neurons left", caption, labels=labels, axis="share of neurons")


def _receptive(model, removal, most=12):
    """Picture the weights of the first layer's lowest removed and highest remaining neurons."""
    group = removal.groups[0]
    score, removed = removal.scores[group.name], removal.removed[group.name]
    weight = model.get_submodule(group.name.partition("[")[0]).weight.detach().float().cpu()
    side = math.isqrt(weight.shape[1])
    if weight.dim() == 2 and side > 3 and side**2 == weight.shape[1] and group.size == len(weight):
        pixels = weight.view(-1, side, side)  # (neurons, height, width)
    elif weight.dim() == 4 and min(weight.shape[2:]) > 1 and group.size == len(weight):
        pixels = weight.mean(1)  # (channels, height, width), averaged over what they read
    else:
        return []
    order = torch.argsort(score, stable=True)
    lowest, highest = order[removed[order]][:most], order[~removed[order]].flip(0)[:most]
    caption = "Each image shows the weights of one neuron, red where a bright pixel excites it, blue where it inhibits."
    pictures = []
    for name, which, title in (("gone", lowest, "removed"), ("kept", highest, "kept")):
        shown = pixels[which] if len(which) else torch.zeros(1, *pixels.shape[1:])
        title = f"{group.name}: weights of neurons {title}" + ("" if len(which) else " (none)")
        pictures.append(Picture(name, "images", shown.numpy(), title, caption))
    return pictures


TECHNIQUE = Technique(
    name="activation_pruning",
    apply=prune,
    controls=(
        Control("threshold", 0.15, 0.0, 1.0, 0.05, alternative="amount", help="Neurons with a lower statistic go."),
        Control("sparsity", 0.5, 0.0, 0.95, 0.01, unit="%", alternative="amount", help="Share of neurons that go."),
        Control("statistic", "mean", choices=STATISTICS, help="What is measured of a neuron over calibration images."),
        Control("scope", "global", choices=SCOPES, help="One cut for all layers together, or one in each layer."),
        Control("calibration_size", CALIBRATION, 10, CALIBRATION, 10, help="Images the statistic is over."),
        Control("fold", True, help="Leave a removed neuron's mean in the next layer's bias."),
    ),
    fair_controls={"random neurons": {"statistic": "random"}, "from scratch": {"fresh": True}},
    anatomy=anatomy,
    calibration=CALIBRATION,
)
