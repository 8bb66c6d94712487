"""Activation pruning: remove the neurons that do least over calibration images, from every matrix they are part of.

A neuron is a row of one layer and a column of the next. What the next layer reads of it, over calibration images, says
how much it does; when it goes, its mean stays behind in the next layer's bias (W a is about W E[a]). The article's
statistic is the mean activation. It looks at size alone; a neuron that is large but always the same tells nothing.

Sources: Hu et al. 2016, arXiv:1607.03250 (APoZ); Molchanov et al. 2017, arXiv:1611.06440 (mean, standard deviation);
Liu et al. 2019, arXiv:1810.05270 (the small network from scratch).
"""

import math
import warnings
import weakref
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from compresslab import checks, structure
from compresslab.activations import checked_images, watch
from compresslab.layers import duplicate, unsupported, weight_layers
from compresslab.techniques.contract import Control, Picture, Technique, warn_left_alone

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

_REMOVALS = weakref.WeakKeyDictionary()  # pruned model -> _Removal: the anatomy shows what was measured for it


def prune(
    model,
    images,
    threshold=None,
    sparsity=None,
    statistic="mean",
    scope="global",
    layers=None,
    calibration_size=None,
    fold=True,
    fresh=False,
    seed=0,
):
    """New model without the neurons, and convolution channels, that do least; `model` itself is not changed.

    model      any nn.Module; removed are outputs of its Linear and convolution layers, never the model's own
    images     (N, …) calibration images, a tensor or a Split
    threshold  neurons with statistic < threshold go (statistic == threshold stays), 0 or more
    sparsity   instead of a threshold: fraction of neurons that go, 0 to 1: exactly round(sparsity * n) of the n neurons
               in the scope, unless a layer would lose all
    statistic  what is measured of a neuron, see `statistics`. With "random" as many go, drawn with `seed`: the control
               for any claim about a statistic; with a threshold, as many of each layer as by their "mean"
    scope      "global": one ranking, or one threshold, over all layers; "layer": the sparsity in each layer; each
               layer's threshold in proportion to its average, threshold * average(layer) / average(all neurons), so
               that multiplying a layer's activations changes nothing in it
    layers     names of the layers whose neurons may go, as in model.named_modules(); None for all
    calibration_size  use the first so many of the images, 1 or more; None for all
    fold       put the mean of a removed neuron into the bias of every layer that read it: exact for a neuron that is
               constant, but for the outermost pixels of a convolution with zero padding, where it read zeros as well,
               and a transposed convolution with a stride, which answers differently from pixel to pixel
    fresh      keep the shape and draw all weights anew with `seed`: the small network from scratch, to be trained
    seed       whole number, 0 or more; the global random state is left alone
    returns    smaller model of the same structure, in which layers that are added, multiplied or convolved group by
               group lose the same neurons
    raises     ValueError for a setting out of range, both or neither of threshold and sparsity, no images, images that
               the model does not take, an unknown layer name, one whose neurons cannot go, and a model without Linear
               or convolution layers
    warns      UserWarning that names layers that would lose all neurons, where the one with the highest statistic
               stays, and what is left alone, which may be everything

    Masking and removing are the same: the logits are those of the model in which the consumers' weights for the removed
    neurons are 0 and, with `fold`, their biases have the means.
    """
    _check_setting(threshold, sparsity, statistic, scope, calibration_size, seed)
    _check_bool("fold", fold)
    _check_bool("fresh", fresh)
    groups, left = _groups(model, images, layers)
    setting = (threshold, sparsity, statistic, scope, seed)
    images = checked_images(images, calibration_size)
    if groups:
        twin = _without(model, _removal(model, groups, images, *setting), fold, left)
    else:
        twin = duplicate(model)
        warn_left_alone("activation_pruning", left)
    if fresh:
        structure.reset(twin, seed)
    return twin


def statistics(model, images, statistic="mean", layers=None, calibration_size=None, seed=0):
    """How much each neuron does over calibration images, as the layers that read it see it; higher is worth more.

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
    groups, _ = _groups(model, images, layers)
    return _scores(
        model, groups, _seen(model, groups, checked_images(images, calibration_size), statistic), statistic, seed
    )


def _check_setting(threshold, sparsity, statistic, scope, calibration_size, seed):
    if (sparsity is None) == (threshold is None):
        found = "neither" if sparsity is None else f"threshold {threshold!r} and sparsity {sparsity!r}"
        raise ValueError(f"give either threshold (0.4) or sparsity (0.5), one of them; got {found}")
    if threshold is None:
        checks.fraction("sparsity", sparsity)
    else:
        checks.real("threshold", threshold, 0, math.inf)
    checks.choice("statistic", statistic, STATISTICS)
    checks.choice("scope", scope, SCOPES)
    checks.integer("seed", seed, 0)
    if calibration_size is not None:
        checks.integer("calibration_size", calibration_size, 1)


def _check_bool(name, value):
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is {checks.words(value)}; give True or False")


def _groups(model, images, layers):
    """The groups whose neurons may go, and what is left alone with the reason: dict of name -> reason."""
    checks.module("model", model)
    if any(weight.is_meta for weight in model.parameters()):
        raise ValueError("model is on the meta device, its weights have no values; load them first")
    chosen = weight_layers(model, layers)
    groups, reasons = structure.find_groups(model, images)
    left = {name: reason for name, reason in reasons.items() if reason != structure.OUTPUT}
    left |= {name: f"a {kind}" for name, kind in unsupported(model).items()}
    if layers is not None:
        if fixed := [name for name in chosen if name in reasons]:
            raise ValueError(f"layers has {fixed[0]!r}, whose neurons cannot go: {reasons[fixed[0]]}")
        groups, left = [group for group in groups if {*group.producers} & {*chosen}], {}
    if not chosen:
        raise ValueError("model has no neurons that can be removed: no Linear or convolution layer")
    return groups, left if groups else {**reasons, **left}


class _Moments:
    """What a layer reads, feature by feature (or channel by channel), over calibration images and positions."""

    def __init__(self, module, statistic):
        self.linear, self.statistic, self.count = isinstance(module, nn.Linear), statistic, 0
        self.mean = self.variance = self.size = self.active = 0.0  # each (features,), float64 on the CPU

    def add(self, given, _):
        """Take in a batch; means and variances are merged as in Chan, Golub and LeVeque 1983."""
        given = given.float().flatten(0, -2).unsqueeze(2) if self.linear else given.float().flatten(2)
        before, self.count = self.count, self.count + given.shape[0] * given.shape[2]  # given: (images, features, …)
        share, mean = 1 - before / self.count, given.mean((0, 2))
        change = _exact(mean) - self.mean
        if self.statistic in ("std", "variance"):
            variance = _exact((given - mean.unsqueeze(1)).square_().mean((0, 2)))
            self.variance = self.variance + (variance - self.variance) * share + change**2 * share * (1 - share)
        elif self.statistic == "apoz":
            self.active = self.active + (_exact((given != 0).float().mean((0, 2))) - self.active) * share
        else:
            self.size = self.size + (_exact(given.abs().mean((0, 2))) - self.size) * share
        self.mean = self.mean + change * share


def _exact(tensor):
    """As float64 on the CPU, which every machine has."""
    return tensor.detach().cpu().double()


def _seen(model, groups, images, statistic, most=2**21):
    """Moments of every consumer of the groups; images go through the model few at a time where they are large."""
    modules = dict(model.named_modules())
    seen = {one.name: _Moments(modules[one.name], statistic) for group in groups for one in group.consumers}
    watch(model, images, {name: one.add for name, one in seen.items()}, max(1, min(500, most // images[0].numel())))
    return seen


def _scores(model, groups, seen, statistic, seed):
    """The statistic of each group's neurons, dict of group name -> float32 (size,)."""
    if statistic == "random":
        generator = torch.Generator().manual_seed(seed)
        return {group.name: torch.rand(group.size, generator=generator) for group in groups}
    scores = {}
    for group in groups:
        each = [_score(model, one, seen[one.name], statistic) for one in group.consumers]
        score = torch.stack(each).sum(0) if statistic == "variance" else torch.stack(each).amax(0)
        if not score.isfinite().all():
            raise ValueError(f"layer {group.name!r} has activations or weights that are not finite (nan or inf)")
        scores[group.name] = score.float()
    return scores


def _score(model, consumer, moments, statistic):
    """The statistic of neurons as one consumer sees them, (size,); several features of one are taken together."""
    places = consumer.inputs
    if statistic == "mean":
        return moments.size[places].mean(1)
    if statistic == "apoz":
        return moments.active[places].mean(1)
    if statistic == "std":
        return (moments.variance[places].mean(1) + moments.mean[places].var(1, correction=0)).sqrt()
    module = model.get_submodule(consumer.name)
    weight = _exact(module.weight)  # (outputs, inputs, …), or (inputs, outputs, …) of a transposed convolution
    norms = weight.square().movedim(_input_axis(module), 0).flatten(1).sum(1)
    return (moments.variance * norms)[places].sum(1)


def _input_axis(module):
    return 0 if getattr(module, "transposed", False) else 1


@dataclass(frozen=True)
class _Removal:
    """What a setting removes from a model: groups, and by group name the statistic and which neurons go.

    means    by consumer, what each of its features is on average;  emptied  groups that would have lost every neuron
    setting  (threshold, sparsity, statistic, scope, seed) that chose them
    """

    groups: list
    scores: dict
    removed: dict
    means: dict
    emptied: list
    setting: tuple


def _removal(model, groups, images, threshold, sparsity, statistic, scope, seed):
    """Measure the neurons of the groups and choose."""
    seen = _seen(model, groups, images, statistic)
    scores = _scores(model, groups, seen, statistic, seed)
    if threshold is None:
        removed, emptied = _spared(scores, partial(_lowest, sparsity=sparsity, scope=scope))
    else:
        means = _scores(model, groups, seen, "mean", seed) if statistic == "random" else scores
        removed, emptied = _spared(means, partial(_below, limits=_limits(means, threshold, scope)))
        if statistic == "random":
            removed = {name: _first(scores[name], int(which.sum())) for name, which in removed.items()}
    means = {name: moments.mean for name, moments in seen.items()}
    return _Removal(groups, scores, removed, means, emptied, (threshold, sparsity, statistic, scope, seed))


def _without(model, removal, fold, left):
    """A copy of the model without the neurons that are to go; what is not done is said."""
    twin = duplicate(model)
    if fold:
        _fold(twin, removal)
    structure.remove(twin, removal.groups, removal.removed)
    _REMOVALS[twin] = removal
    if removal.emptied:
        named = ", ".join(map(repr, removal.emptied))
        message = f"pruning would leave no neuron in layer {named}; the one with the highest statistic stays"
        warnings.warn(message, UserWarning, stacklevel=3)
    warn_left_alone("activation_pruning", left)
    return twin


def _spared(scores, rule):
    """What a rule removes when the best neuron of each group is out of its reach, and the groups where it would not be.

    rule  dict of scores -> dict of bool tensors
    """
    spared = {name: score.index_fill(0, score.argmax(), math.inf) for name, score in scores.items()}
    return rule(spared), [name for name, which in rule(scores).items() if which.all()]


def _lowest(scores, sparsity, scope):
    """True at a fraction of the scores, of each group or of all; those that are infinite are counted, and stay."""
    if scope == "layer":
        return {name: _first(score, round(sparsity * len(score))) for name, score in scores.items()}
    together = torch.cat(list(scores.values()))
    lowest = _first(together, round(sparsity * len(together)))
    return dict(zip(scores, lowest.split([len(score) for score in scores.values()]), strict=True))


def _first(scores, count):
    """True at the `count` lowest finite scores; equal ones in the order of layers and neurons."""
    lowest = torch.zeros(len(scores), dtype=torch.bool)
    lowest[torch.sort(scores, stable=True).indices[:count]] = True
    return lowest & scores.isfinite()


def _limits(scores, threshold, scope):
    """The threshold of each group: the same, or in proportion to its average score."""
    if scope == "global":
        return dict.fromkeys(scores, threshold)
    average = torch.cat(list(scores.values())).mean()
    return {name: threshold * (float(score.mean() / average) if average else 1.0) for name, score in scores.items()}


def _below(scores, limits):
    return {name: score < limits[name] for name, score in scores.items()}


def _fold(twin, removal):
    """Put what removed neurons are on average into the biases of their consumers."""
    gone = {}
    for group in removal.groups:
        for one in group.consumers:
            mean = removal.means[one.name]
            places = one.inputs[removal.removed[group.name]].flatten()
            gone.setdefault(one.name, torch.zeros_like(mean))[places] = mean[places]
    for name, mean in gone.items():
        if mean.count_nonzero():
            structure.add_to_bias(twin, name, _response(twin.get_submodule(name), mean))


def _response(module, mean):
    """What a layer answers, without its bias, to inputs that are everywhere `mean` (inputs,): (outputs,), float64.

    Each pixel of a transposed convolution with a stride sees some of the kernel: the average of their answers.
    """
    weight = _exact(module.weight).movedim(_input_axis(module), 0)  # (inputs, outputs, …)
    taps = weight.reshape(*weight.shape[:2], -1).sum(-1)
    return mean @ taps / (math.prod(module.stride) if getattr(module, "transposed", False) else 1)


def anatomy(model, compressed, setting, data):
    """Pictures of what a pruning did: the statistic and the cut, neurons left in each layer, what those that went saw.

    model, compressed  before and after;  setting  what `prune` was called with;  data  Data, calibrated on its training
                       images as in the lab
    returns            list of Picture
    """
    names = {"threshold": None, "sparsity": None, "statistic": "mean", "scope": "global", "seed": 0}
    chosen = tuple(setting.get(name, default) for name, default in names.items())
    removal = _REMOVALS.get(compressed)
    same = 4 if "seed" not in setting else 5  # a seed that is not told is the sweep's own
    if removal is None or removal.setting[:same] != chosen[:same]:
        groups, _ = _groups(model, data.train.images, setting.get("layers"))
        images = checked_images(data.train.images[:CALIBRATION], setting.get("calibration_size"))
        removal = _removal(model, groups, images, *chosen)
    return [_histogram(removal), _bars(removal), *_receptive(model, removal)]


def _histogram(removal):
    """The statistic of all neurons, and where it is cut."""
    threshold, _, statistic, scope, _ = removal.setting
    values, gone = torch.cat(list(removal.scores.values())), torch.cat(list(removal.removed.values()))
    caption = "Neurons left of the cut are removed. Is a neuron that is seldom active, or always the same, of no use?"
    cut = None
    if scope == "layer" or statistic == "random":
        caption = "No single cut: neurons go at random, or each layer has a cut of its own."
    elif threshold is not None:
        cut = float(threshold)
    elif gone.any():
        cut = float(values[gone].max())
    return Picture("neurons", "histogram", values.numpy(), "Neurons by statistic", caption, cut, axis=AXES[statistic])


def _bars(removal):
    """Share of each layer's neurons that stays."""
    kept = np.array([1 - float(which.float().mean()) for which in removal.removed.values()])
    caption = "At least one neuron stays. Parameters fall faster than neurons: a weight goes with either of its two."
    labels = tuple(removal.removed)
    return Picture("layers", "bars", kept, "Neurons left", caption, labels=labels, axis="share of neurons")


def _receptive(model, removal, most=12):
    """Weights of the first layer's neurons as images: the first of those that go, the best of those that stay."""
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
    gone, kept = order[removed[order]][:most], order[~removed[order]].flip(0)[:most]
    caption = "Each image shows the weights of one neuron, red where a bright pixel excites it, blue where it inhibits."
    pictures = []
    for name, which, title in (("gone", gone, "removed"), ("kept", kept, "kept")):
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
