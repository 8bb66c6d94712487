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
from compresslab.weights.layers import duplicate, weight_layers

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
    returns    smaller model of the same structure; coupled layers (added, multiplied, depthwise) lose the same neurons
    raises     ValueError for a setting out of range, both or neither of threshold and sparsity, images that are missing
               or that the model does not take, an unknown layer name, a layer whose neurons cannot go, and a model
               without Linear or convolution layers
    warns      UserWarning that names layers that would lose all neurons, where the one with the highest statistic
               stays, and what is left alone, which may be everything
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

    model, images, layers, calibration_size  as in `prune`; so are the errors
    statistic  "mean": mean of |a|, which is the mean activation behind a ReLU
               "apoz": share of activations that are not 0, 1 - APoZ (average percentage of zeros, Hu et al.): threshold
               0.1 removes what is zero more than 90% of the time. Behind anything but a ReLU all are 1
               "std": standard deviation, in the unit of the activations
               "variance": variance times the squared norm of the outgoing weights: the mean squared change of what the
               next layer computes when the neuron is replaced by its mean (summed over its neurons)
               "random": numbers from 0 to 1, drawn with `seed`
    returns    dict of layer name -> float32 tensor (size,) on the CPU, in module order; a name stands for all layers
               whose neurons go together with it. For a channel of a convolution it is taken over images and positions;
               where several layers read it, it is the largest ("variance": the sum)
    """
    return _measure(model, images, statistic, layers, calibration_size, seed)[1]


class _Means:
    """Means of what a layer reads, feature by feature (or channel by channel), over images and positions.

    mean    (features,) float64, of the activations a;  second  the mean of what the statistic is about: (a - c)**2 of
            "std" and "variance", whether a is not 0 of "apoz", |a| of all others
    centre  c, the first activations: a neuron that never varies has no rounding errors; 0 of the other statistics
    """

    def __init__(self, module, statistic):
        self.is_linear, self.statistic, self.count = isinstance(module, nn.Linear), statistic, 0
        self.centre, self._first, self._second = torch.zeros(1), 0.0, 0.0

    def add(self, inputs: torch.Tensor, _: object) -> None:
        """Add a batch of inputs."""
        inputs = inputs.float().flatten(0, -2).unsqueeze(2) if self.is_linear else inputs.float().flatten(2)
        if self.statistic in ("std", "variance"):  # (images, features, positions)
            self.centre = self.centre if self.count else inputs[:1, :, :1].clone()
            inputs = inputs - self.centre
            seconds = inputs.square()
        else:
            seconds = (inputs != 0).float() if self.statistic == "apoz" else inputs.abs()
        self.count += inputs.shape[0] * inputs.shape[2]
        self._first = self._first + _to_double(inputs.sum((0, 2)))
        self._second = self._second + _to_double(seconds.sum((0, 2)))

    @property
    def mean(self) -> torch.Tensor:
        """Return E[a] of each feature."""
        return _to_double(self.centre).flatten() + self._first / self.count

    @property
    def second(self) -> torch.Tensor:
        """Return the mean size, or share of activations that are not 0."""
        return self._second / self.count

    @property
    def variance(self) -> torch.Tensor:
        """Return the variance of each feature."""
        return (self.second - (self._first / self.count) ** 2).clamp(min=0)


def _to_double(tensor):
    """Return a tensor as float64 on the CPU, which every machine has."""
    return tensor.detach().cpu().double()


def _measure(model, images, statistic, layers, calibration_size, seed, most=2**21):
    """Return groups, their scores, dict of consumer -> _Means, and reasons for layers left alone."""
    checks.choice("statistic", statistic, STATISTICS)
    checks.integer("seed", seed, 0)
    if calibration_size is not None:
        checks.integer("calibration_size", calibration_size, 1)
    checks.module("model", model)
    if any(weight.is_meta for weight in model.parameters()):
        raise ValueError("model is on the meta device, its weights have no values; load them first")
    chosen = weight_layers(model, layers)
    groups, reasons = base.find_neurons(model, images, None if layers is None else [*chosen])
    if not chosen:
        raise ValueError("model has no neurons that can be removed: no Linear or convolution layer")
    for name, reason in reasons.items() if layers is not None else ():
        raise ValueError(f"layers has {name!r}, whose neurons cannot go: {reason}")
    modules = dict(model.named_modules())
    names = {consumer.name for group in groups for consumer in group.consumers}
    means = {name: _Means(modules[name], statistic) for name in names}
    images = checked_images(images, calibration_size)
    if groups:
        watchers = {name: entry.add for name, entry in means.items()}
        watch(model, images, watchers, max(1, min(500, most // images[0].numel())))
    return groups, _score(model, groups, means, statistic, seed), means, reasons


def _score(model, groups, means, statistic, seed):
    """Return the statistic of each group's neurons, dict of group name -> float32 (size,)."""
    if statistic == "random":
        generator = torch.Generator().manual_seed(seed)
        return {group.name: torch.rand(group.size, generator=generator) for group in groups}
    scores = {}
    for group in groups:
        seen = [_score_consumer(model, consumer, means[consumer.name], statistic) for consumer in group.consumers]
        score = torch.stack(seen).sum(0) if statistic == "variance" else torch.stack(seen).amax(0)
        if not score.isfinite().all():
            raise ValueError(f"layer {group.name!r} has activations or weights that are not finite (nan or inf)")
        scores[group.name] = score.float()
    return scores


def _score_consumer(model, consumer, means, statistic):
    """Return the statistic of neurons as one consumer sees them, (size,)."""
    places = consumer.inputs
    if statistic in ("mean", "apoz"):
        return means.second[places].mean(1)
    if statistic == "std":
        return (means.variance[places].mean(1) + means.mean[places].var(1, correction=0)).sqrt()
    module = model.get_submodule(consumer.name)
    norms = base.inputs_first(_to_double(module.weight), module).square().flatten(1).sum(1)
    return (means.variance * norms)[places].sum(1)


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
    base.check_amount("threshold (0.4) or sparsity (0.5)", threshold=threshold, sparsity=sparsity)
    checks.choice("scope", scope, SCOPES)
    groups, scores, means, left_alone = _measure(model, images, statistic, layers, calibration_size, seed)
    if not groups:
        removed, emptied = {}, []
    elif threshold is None:
        removed, emptied = _spare_best(scores, partial(_find_lowest, sparsity=sparsity, scope=scope))
    else:
        sizes = _score(model, groups, means, "mean", seed) if statistic == "random" else scores
        limits = _limits(sizes, threshold, scope)
        removed, emptied = _spare_best(
            sizes, lambda scores: {name: score < limits[name] for name, score in scores.items()}
        )
        if statistic == "random":
            removed = {name: _mark_lowest(scores[name], int(which.sum())) for name, which in removed.items()}
    return _Removal(groups, scores, removed, {name: entry.mean for name, entry in means.items()}, emptied), left_alone


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
            # Add what the layer answers, without its bias, to inputs that are everywhere the mean. A pixel of a
            # transposed convolution with a stride sees part of the kernel: the average of their answers.
            module = twin.get_submodule(name)
            weight = base.inputs_first(_to_double(module.weight), module)  # (inputs, outputs, *kernel)
            taps = weight.reshape(*weight.shape[:2], -1).sum(2)
            parts = math.prod(module.stride) if getattr(module, "transposed", False) else 1
            channels.add_to_bias(twin, name, mean @ taps / parts)


def anatomy(model: nn.Module, compressed: nn.Module, setting: dict, data: Data) -> list[Picture]:
    """Picture a pruning: the statistic and its cut, neurons left, weights of the neurons."""
    options = {name: value for name, value in setting.items() if name not in ("fold", "fresh")}
    removal, _ = _choose(model, data.train.images[:CALIBRATION], **options)
    if not removal.groups:
        return []
    shares = np.array([1 - float(which.float().mean()) for which in removal.removed.values()])
    caption = "At least one neuron stays. Parameters fall faster than neurons: a weight goes with either of its two."
    names = tuple(removal.removed)
    layer_bars = Picture("layers", "bars", shares, "Neurons left", caption, labels=names, axis="share of neurons")
    return [_histogram(removal, setting), layer_bars, *_receptive(model, removal)]


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


def _receptive(model, removal, most=12):
    """Picture the weights of the first layer's lowest removed and highest remaining neurons."""
    group = removal.groups[0]
    score, removed = removal.scores[group.name], removal.removed[group.name]
    weight = model.get_submodule(group.name.partition("[")[0]).weight.detach().float().cpu()
    images = base.as_images(weight)
    if images is None or group.size != len(weight):
        return []
    images = images.mean(1)  # (neurons, height, width), averaged over what they read
    order = torch.argsort(score, stable=True)
    lowest, highest = order[removed[order]][:most], order[~removed[order]].flip(0)[:most]
    caption = "Each image shows the weights of one neuron, red where a bright pixel excites it, blue where it inhibits."
    pictures = []
    for name, which, title in (("gone", lowest, "removed"), ("kept", highest, "kept")):
        shown = images[which] if len(which) else torch.zeros(1, *images.shape[1:])
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
