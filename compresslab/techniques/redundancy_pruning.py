"""Redundancy pruning: of neurons that say the same thing, keep one and let it speak for the others.

Two neurons of a layer are redundant when their activations over calibration images are nearly affine images of one
another, b = slope * a + offset, that is when |correlation| reaches `similarity`. The one with the smaller outgoing norm
goes. With merge on, its outgoing weights times the slope are added to those of the neuron that stands for it, and the
offset goes to the next bias: for exact twins the network computes the same function with fewer neurons.

The fit is least squares on the one neuron that stands in, measured on the unpruned model: one run over the images, and
what goes in one layer does not depend on what goes before it. Exact twins are exact in all layers at once. (Measuring
each layer anew behind the merged ones, `prune(…, layers=[name])` one after the other, takes a run for each layer and
came out better as often as worse.)

Sources: Srinivas and Babu 2015, arXiv:1507.06149 (alike neurons, outgoing weights merged); Mariet and Sra 2016,
arXiv:1511.05077 (outgoing weights refitted after neurons are pruned).
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import nn

from compresslab import checks, structure
from compresslab.activations import checked_images
from compresslab.data import Split
from compresslab.grids import Half
from compresslab.layers import Mask, duplicate, get_mask, set_mask, unsupported, weight_layers
from compresslab.numerics.correlation import ROUNDING, readings, weakest
from compresslab.techniques.contract import Control, Picture, Technique, warn_left_alone

CRITERIA = ("correlation", "random")
SIMILARITY = 0.95  # without a similarity or a sparsity
CALIBRATION = 1000  # images that the lab gives
PICTURED = 300  # images that the pictures are made from
FEW = 32  # samples below which neurons look alike by chance


def prune(
    model,
    images,
    similarity=None,
    merge=True,
    sparsity=None,
    layers=None,
    calibration_size=None,
    criterion="correlation",
    constant=False,
    fresh=False,
    seed=0,
):
    """New model without redundant neurons and channels, really smaller; `model` itself is not changed.

    model       any nn.Module; pruned are the outputs of Linear and Conv layers that only other such layers read
    images      (N, …) calibration images, a tensor or a Split, at least 2; some hundreds tell twins from chance
    similarity  above 0, up to 1: neurons with |correlation| >= similarity are twins (up to rounding, a 1e-6th of it);
                0.95 if neither this nor a sparsity is given. 1: exact affine twins only
    merge       True: the outgoing weights of a neuron that goes, times the fitted slope, are added to those of the
                neuron that stands for it, and the fitted offset to the next bias. False: it is deleted, that is all
    sparsity    instead of a similarity: fraction of all neurons that go, 0 to 1, the most redundant first, with one
                cut for all layers: round(sparsity * neurons) of them, but one neuron of each layer stays
    layers      names of the layers whose neurons may go, as in model.named_modules(), each with the layers that are
                coupled to it (by a residual connection); None for all
    calibration_size  use the first so many images at most; None for all
    criterion   "correlation"; or "random": as many neurons of each layer go, drawn with `seed`, each merged (or not)
                into the one most like it that stays: the control for any claim about redundancy
    constant    what becomes of neurons that never vary over the images. False: they have no correlation, 0, and only a
                sparsity that needs them takes them, but for copies of one another, made by equal weights, which are
                twins on any images. True: they go first, for they are affine images of any other, with
                slope 0 and their value as the offset. Off, for who is silent on these images may speak on others
    fresh       True: draw all weights of the smaller model anew, with `seed`: the control that trains it from scratch
    seed        whole number, 0 or more, for criterion "random" and for `fresh`; the global random state is not touched
    returns     model with smaller layers, which trains on, saves and loads like any other
    raises      ValueError for a setting out of range, both similarity and sparsity, images that are missing, too few,
                not finite or not what the model takes, layers that are unknown or cannot lose neurons, and a model
                without Linear and Conv layers
    warns       UserWarning that names what is left alone and why, and where there are too few samples

    Which neurons go: see `clusters`. Where several layers read a neuron, each along a path of its own, the fits are
    made for each, and twins must be twins for all. Masked weights that receive merged ones are unmasked.
    """
    _check_setting(similarity, sparsity, criterion, seed)
    for name, value in (("merge", merge), ("constant", constant), ("fresh", fresh)):
        checks.choice(name, value, (True, False))
    studies, left_alone = _studies(model, images, layers, calibration_size, merge)
    stands = _stands(studies, similarity, sparsity, criterion, constant, seed)
    twin, groups = duplicate(model), [study.group for study in studies]
    removed = {group.name: _gone(stand) for group, stand in zip(groups, stands, strict=True)}
    if merge and not fresh:
        for study, stand in zip(studies, stands, strict=True):
            _merge(twin, study, stand)
    structure.remove(twin, groups, removed)
    if fresh:
        structure.reset(twin, seed)
    _warn(studies, left_alone)
    return twin


def similarities(model, images, layers=None, calibration_size=None):
    """Correlation of every two neurons of a layer, over images and, for channels, positions.

    model, images, layers, calibration_size  as in `prune`; so are the errors
    returns  dict of layer name -> float32 tensor (neurons, neurons), -1 to 1, symmetric, 1 on the diagonal. A neuron
             that never varies has 0 in its row and column, on the diagonal too, but 1 with its exact copies. Where
             several layers read the neurons, each along a path of its own, the correlation of the smallest magnitude

    Measured where the next layers read: the zeros of a padded convolution belong to what it reads.
    """
    studies, left_alone = _studies(model, images, layers, calibration_size, merge=False)
    _warn(studies, left_alone)
    return {study.group.name: study.correlation for study in studies}


def clusters(correlation, similarity, importance, constant=False):
    """Which neuron stands for which; a greedy choice in which nothing is left to chance.

    correlation  (neurons, neurons), as from `similarities`
    similarity   above 0, up to 1
    importance   (neurons,) norms of the outgoing weights
    constant     whether neurons that never vary (0 on the diagonal) go as well
    returns      (neurons,) int64: for each neuron the index of the one that stands for it, its own where it stays

    In the order of falling importance, equal ones by index, a neuron stays unless it is a twin of one that stays
    already. Of the ones that stay, the most alike stands for it. So nothing is merged into a neuron that goes, every
    neuron that goes is a twin of the one that stands for it, and it had a twin no less important. In a chain a ~ b ~ c
    with a and c unlike, both ends go if b is the most important; else b goes, and both ends stay.
    """
    stays = _stays(*_ranked(correlation, importance, constant), similarity)
    return _assigned(correlation, stays)


def _ranked(correlation, importance, constant):
    """Order of the neurons, the most important first, and for each the |correlation| with those that come later.

    returns  (neurons,) int64, neurons that never vary last; float32 (neurons, neurons) in that order, -1 where the
             column does not come later, and 1 where one of the two never varies and `constant` says that it goes
    """
    strength, still = correlation.abs(), correlation.diagonal() == 0
    order = importance.double().sort(descending=True, stable=True).indices
    order = order[still[order].byte().sort(stable=True).indices]
    if constant:
        strength.masked_fill_(still[:, None] | still[None, :], 1)
    place = torch.arange(len(order))
    return order, strength[order[:, None], order].masked_fill_(place <= place[:, None], -1)


def _stays(order, strength, similarity):
    """Which neurons stay, (neurons,) bool, of those ranked by `_ranked`; see `clusters`.

    The same as one by one, in a few rounds: who has no twin left before it stays, and its twins go.
    """
    twins = (strength >= similarity * (1 - ROUNDING)).float()
    left, stays = torch.ones(len(twins)), torch.zeros(len(twins), dtype=torch.bool)
    while left.any():
        leaders = left * (left @ twins == 0)
        stays |= leaders > 0
        left *= (leaders == 0) & (leaders @ twins == 0)
    return torch.empty(len(order), dtype=torch.bool).scatter_(0, order, stays)


def _assigned(correlation, stays):
    """For each neuron the one that stands for it: itself if it stays, else the most alike of those that stay."""
    stand, kept, gone = torch.arange(len(stays)), stays.nonzero().flatten(), (~stays).nonzero().flatten()
    if len(gone):
        stand[gone] = kept[correlation[gone][:, kept].abs().argmax(1)]
    return stand


def _gone(stand):
    return stand != torch.arange(len(stand))


@dataclass(frozen=True, eq=False)
class _Study:
    """A group of neurons and what is known about them.

    readings     one Reading for each of the group's consumers
    correlation  as `similarities` gives it
    importance   float64 (neurons,), norm of the outgoing weights
    copies       int64 (neurons,), as `_copies` gives it
    """

    group: structure.Group
    readings: tuple
    correlation: torch.Tensor
    importance: torch.Tensor
    copies: torch.Tensor


def _studies(model, images, layers, calibration_size, merge):
    """A _Study of each group of neurons that can be pruned, and layer name -> reason for what is left alone."""
    checks.module("model", model)
    images = _calibration(images, calibration_size)
    if not weight_layers(model, layers):
        raise ValueError("model has no Linear or Conv layer, whose neurons could be removed")
    _refuse_nan(model)
    if any(weight.dtype in (torch.float16, torch.bfloat16) for weight in model.parameters()):
        model = duplicate(model).float()  # activations in half precision would blur the fits
    groups, left_alone = _groups(model, images, layers, merge)
    return [_study(model, *one) for one in readings(model, images, groups)], left_alone


def _study(model, group, seen):
    correlation = weakest(seen)
    copies = _copies(model, group, (correlation.diagonal() == 0).nonzero().flatten())
    one, other = ((copies[:, None] == copies) & ~torch.eye(group.size, dtype=torch.bool)).nonzero().unbind(1)
    correlation[one, other] = 1
    return _Study(group, seen, correlation, _importance(model, group), copies)


def _copies(model, group, still):
    """For each neuron the first one that is made by the same numbers, (neurons,) int64, its own index if none is.

    still  (k,) indices of the neurons that never vary, whose activations cannot tell: only these are looked at
    """
    copies, numbers = torch.arange(group.size), []
    makers = [(model.get_submodule(cut.name), cut.channels[still]) for cut in group.cuts if cut.side == "out"]
    if len(still) < 2 or any(getattr(module, "groups", 1) > 1 for module, _ in makers):
        return copies  # groups of a convolution read channels of their own
    for module, channels in makers:
        for name in ("weight", "bias", "running_mean", "running_var"):
            values = getattr(module, name, None)
            if values is not None and len(values) > 1:
                values = _inputs_first(values, module).transpose(0, 1) if values.dim() > 1 else values
                numbers.append(values.detach()[channels].flatten(1).cpu().double())  # (k, numbers of a neuron)
    _, kinds = torch.cat(numbers, 1).unique(dim=0, return_inverse=True)
    copies[still] = still.new_full((len(still),), group.size).scatter_reduce(0, kinds, still, "amin")[kinds]
    return copies


def _refuse_nan(model):
    for name, weight in model.named_parameters():
        if not weight.sum(dtype=torch.float32).isfinite() and not weight.isfinite().all():  # the sum is quick
            raise ValueError(f"parameter {name!r} of the model has values that are not finite (nan or inf)")


def _calibration(images, calibration_size):
    """The calibration images, (N, …), N at least 2; that all are finite is checked when they are run."""
    checked_images(images, 2)
    images = images.images if isinstance(images, Split) else images
    images = images[: None if calibration_size is None else checks.integer("calibration_size", calibration_size, 2)]
    if len(images) < 2:
        raise ValueError(f"images holds {len(images)} image; a correlation takes 2 at least, better some hundreds")
    return images


def _groups(model, images, layers, merge):
    """The groups to look at, and layer name -> reason for what is left alone."""
    groups, left_alone = structure.find_groups(model, images)
    reasons = {group.name: _obstacle(model, group, merge) for group in groups}
    left_alone |= {name: reason for group in groups for name in group.producers if (reason := reasons[group.name])}
    groups = [group for group in groups if not reasons[group.name]]
    if layers is not None:
        groups = [group for group in groups if set(layers) & set(group.producers)]
        left_alone = {name: reason for name, reason in left_alone.items() if name in set(layers)}
        if not groups:
            told = "; ".join(f"{name!r}: {reason}" for name, reason in left_alone.items())
            raise ValueError(f"layers is {checks.words(list(layers))}, of which no neuron can be removed ({told})")
    elif groups:
        left_alone = {name: reason for name, reason in left_alone.items() if reason != structure.OUTPUT}
    if layers is None:
        left_alone |= {
            name: f"it is a kind of layer that keeps its neurons, {kind}" for name, kind in unsupported(model).items()
        }
    return groups, left_alone


def _obstacle(model, group, merge):
    """Why the neurons of a group cannot be pruned by what is read of them, or None."""
    for consumer in group.consumers:
        module = model.get_submodule(consumer.name)
        if merge and getattr(module, "transposed", False):
            return f"{consumer.name}, a transposed convolution, reads it, and no bias makes up for an offset there"
        if merge and not _is_writable(module):
            return (
                f"{consumer.name} reads it, whose weights keep to few values, merged ones not; prune first, or delete"
            )
    return None if group.consumers else "no ordinary layer reads it"


def _is_writable(module):
    """Whether merged weights can be put into a layer: an ordinary one, or behind a mask or a rounding to 16 bits."""
    made = getattr(module, "parametrizations", {})
    return "weight" not in made or all(isinstance(one, Mask | Half) for one in made["weight"])


def _inputs_first(weight, module):
    """A weight, or its mask, as (inputs, outputs, *kernel); a view."""
    return weight if getattr(module, "transposed", False) else weight.transpose(0, 1)


def _importance(model, group):
    """Norm of all outgoing weights of each neuron, float64 (neurons,)."""
    squares = torch.zeros(group.size).double()
    for consumer in group.consumers:
        module = model.get_submodule(consumer.name)
        weight = _inputs_first(module.weight.detach(), module)
        norms = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), dtype=torch.float64)
        squares += norms.cpu()[consumer.inputs].square().sum(1)
    return squares.sqrt()


def _warn(studies, left_alone):
    """Say what is left alone, and where neurons are judged by few samples."""
    warn_left_alone("redundancy_pruning", left_alone)
    counts = {study.group.name: reading.samples for study in studies for reading in study.readings}
    name = min(counts, key=counts.get, default=None)
    if name is not None and counts[name] < FEW:
        message = f"layer {name!r} is judged by {counts[name]} samples, among which neurons look alike by chance"
        warnings.warn(f"{message}; give some hundreds of calibration images", UserWarning, stacklevel=3)


def _stands(studies, similarity, sparsity, criterion, constant, seed):
    """For each study, which neuron stands for which, as in `clusters`."""
    if sparsity is None:
        stands = _clustered(studies, SIMILARITY if similarity is None else similarity, constant)
    else:
        stands = _most_redundant(studies, sparsity, constant)
    return stands if criterion == "correlation" else _at_random(studies, stands, seed)


def _clustered(studies, similarity, constant):
    return [clusters(study.correlation, similarity, study.importance, constant) for study in studies]


def _most_redundant(studies, sparsity, constant, rounds=12):
    """Clusters at a similarity at which as many neurons go as asked for, or as many as can.

    The largest one, found to a 4096th; where it takes too many, those least like who stands for them are put back.
    """
    wanted = round(sparsity * sum(study.group.size for study in studies))
    ranked = [_ranked(study.correlation, study.importance, constant) for study in studies]
    low, high = 0.0, 1.0
    for _ in range(rounds):
        middle = (low + high) / 2
        gone = sum(len(one[0]) - int(_stays(*one, middle).sum()) for one in ranked)
        low, high = (middle, high) if gone >= wanted else (low, middle)
        if gone == wanted:
            break
    chosen = _clustered(studies, low, constant)
    scores = [_likeness(study, stand, constant) for study, stand in zip(studies, chosen, strict=True)]
    goes = torch.zeros(sum(map(len, scores)), dtype=torch.bool)
    goes[torch.cat([torch.empty(0), *scores]).sort(descending=True, stable=True).indices[:wanted]] = True
    parts = goes.split([len(stand) for stand in chosen])
    return [torch.where(part, stand, torch.arange(len(stand))) for part, stand in zip(parts, chosen, strict=True)]


def _likeness(study, stand, constant):
    """|correlation| of each neuron with the one that stands for it, float32; -1 where it stands for itself."""
    likeness = study.correlation[torch.arange(len(stand)), stand].abs()
    if constant:
        likeness[study.correlation.diagonal() == 0] = 1
    return likeness.masked_fill(~_gone(stand), -1)


def _at_random(studies, stands, seed):
    """As many neurons of each layer gone as in `stands`, but drawn."""
    generator, drawn = torch.Generator().manual_seed(seed), []
    for study, stand in zip(studies, stands, strict=True):
        stays = torch.ones(len(stand), dtype=torch.bool)
        stays[torch.randperm(len(stand), generator=generator)[: int(_gone(stand).sum())]] = False
        drawn.append(_assigned(study.correlation, stays))
    return drawn


def _merge(model, study, stand):
    """Move what the neurons that go have to say to those that stand for them, in every layer that reads them."""
    gone = _gone(stand).nonzero().flatten()
    for consumer, reading in zip(study.group.consumers if len(gone) else (), study.readings, strict=False):
        module = model.get_submodule(consumer.name)
        slope, offset = reading.fit(gone, stand[gone])
        copied = study.copies[gone] == study.copies[stand[gone]]
        slope, offset = slope.masked_fill(copied, 1), offset.masked_fill(copied, 0)
        weight = _inputs_first(module.weight.detach(), module).cpu().double().clone()
        outgoing = weight[consumer.inputs[gone]]  # (gone, inputs of a neuron, outputs, *kernel)
        moved = outgoing * slope.reshape(-1, *[1] * (outgoing.dim() - 1))
        targets = consumer.inputs[stand[gone]]
        weight.index_add_(0, targets.flatten(), moved.flatten(0, 1))
        _unmask(module, consumer.inputs[gone], targets)
        _write(module, weight)
        answer = outgoing.transpose(1, 2).flatten(2).sum(2)  # (gone, outputs): to an input of 1 everywhere
        if (amount := offset @ answer).any():
            structure.add_to_bias(model, consumer.name, amount)


def _unmask(module, sources, targets):
    """Let inputs `targets` of a masked layer keep, beside their own weights, those that `sources` (same shape) have."""
    if (mask := get_mask(module)) is None:
        return
    mask = mask.clone()
    view = _inputs_first(mask, module)
    for source, target in zip(sources.flatten().tolist(), targets.flatten().tolist(), strict=True):
        view[target] |= view[source]
    set_mask(module, mask)


def _write(module, weight):
    """Put a weight (inputs, outputs, *kernel) into a layer, below its mask."""
    made = getattr(module, "parametrizations", {})
    holder = made["weight"].original if "weight" in made else module.weight
    with torch.no_grad():
        _inputs_first(holder, module).copy_(weight)


def _check_setting(similarity, sparsity, criterion, seed):
    if similarity is not None and sparsity is not None:
        raise ValueError(f"give similarity or sparsity, one of them; got {similarity!r} and {sparsity!r}")
    if similarity is not None:
        hint = " (0.95; at 0 all neurons would be twins)"
        if checks.real("similarity", similarity, 0, 1, hint) == 0:
            raise ValueError(f"similarity is {similarity!r}; give a number above 0, up to 1{hint}")
    if sparsity is not None:
        checks.fraction("sparsity", sparsity)
    checks.choice("criterion", criterion, CRITERIA)
    checks.integer("seed", seed, 0)


def anatomy(model, compressed, setting, data):
    """Pictures of what a pruning saw: correlations ordered by clusters, the likest other of each neuron, what is left.

    model, compressed  before and after;  setting  what `prune` was called with
    data     Data; correlations are those over its first 300 training images, which is quick enough for every move of a
             slider; `prune` may have looked at more
    returns  list of Picture; an empty one where no neurons can be removed
    """
    own = {name: setting.get(name) for name in ("similarity", "sparsity")}
    images = data.train.images[:PICTURED]
    merge, constant = setting.get("merge", True), setting.get("constant", False)
    studies, _ = _studies(model, images, setting.get("layers"), setting.get("calibration_size"), merge)
    stands = _stands(studies, **own, criterion="correlation", constant=constant, seed=0)
    cut = own["similarity"] or _cut(studies, stands, own["sparsity"])
    if not studies:
        return []
    counts = [int(_gone(stand).sum()) for stand in stands]
    shown = studies[int(np.argmax(counts))]
    return [_matrix(shown, cut), _histogram(studies, cut, setting), _bars(model, compressed, studies)]


def _outputs(model, name):
    module = model.get_submodule(name)
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def _cut(studies, stands, sparsity):
    """The similarity at which a neuron went, or would go."""
    if sparsity is None:
        return SIMILARITY
    likeness = torch.cat([torch.ones(1), *(_likeness(*pair, False) for pair in zip(studies, stands, strict=True))])
    return float(likeness[likeness >= 0].min())


def _likest(study):
    """|correlation| of each neuron with the other most like it, float32 (neurons,)."""
    return study.correlation.abs().fill_diagonal_(0).amax(1)


def _matrix(study, cut, most=128):
    """Correlations of a layer's neurons, the likest ones of many, ordered by hierarchical clustering."""
    shown = _likest(study).sort(descending=True, stable=True).indices[:most]
    values = study.correlation[shown][:, shown].double().numpy()
    if len(values) > 2:
        distances = squareform(np.clip(1 - np.abs(values), 0, 1), checks=False)
        order = leaves_list(linkage(distances, "average"))
        values = values[order][:, order]
    below = np.tril(np.ones(values.shape, bool), -1)
    values = np.where(below & (np.abs(values) < cut * (1 - ROUNDING)), 0.0, values)
    among = f"the {len(values)} likest neurons" if len(values) < study.group.size else "neurons"
    caption = (
        f"Each row and column one of {among}, alike ones side by side. Above the diagonal every correlation, below it "
        f"only those from {cut:.2f} on: blocks there are neurons that one of them can speak for."
    )
    return Picture("correlation", "matrix", values, f"Correlation in {study.group.name}", caption)


def _histogram(studies, cut, setting):
    """How alike every neuron is to its likest other."""
    values = torch.cat([_likest(study) for study in studies]).numpy()
    is_random = setting.get("criterion", "correlation") == "random"
    caption = "One of every two twins right of the cut goes. Neurons at 0 never vary on the calibration images."
    if is_random:
        caption = "No cut: as many neurons as have twins go, but at random."
    title = "Each neuron's largest |correlation|"
    cut = None if is_random else cut
    return Picture("likeness", "histogram", values, title, caption, cut, axis="|correlation|", above=True)


def _bars(model, compressed, studies):
    """Fraction of the neurons of each layer that is left."""
    layers = [study.group.producers[0] for study in studies]
    left = [_outputs(compressed, name) / _outputs(model, name) for name in layers]
    names = tuple(study.group.name for study in studies)
    caption = "Late layers are narrow and say the same in many ways; they lose most."
    return Picture(
        "layers", "bars", np.array(left), "Neurons left in each layer", caption, labels=names, axis="neurons"
    )


TECHNIQUE = Technique(
    name="redundancy_pruning",
    apply=prune,
    controls=(
        Control(
            "similarity",
            0.8,
            0.5,
            1.0,
            0.01,
            alternative="amount",
            help="Neurons with at least this |correlation| are twins.",
        ),
        Control(
            "sparsity",
            0.3,
            0.0,
            0.95,
            0.01,
            unit="%",
            alternative="amount",
            help="Share of the neurons that go, likest first.",
        ),
        Control("merge", True, help="Move a twin's outgoing weights to the neuron that stays, or just delete it."),
        Control("criterion", "correlation", choices=CRITERIA, help="Twins go, or as many neurons at random."),
        Control("constant", False, help="Also remove neurons that never vary on the calibration images."),
        Control(
            "calibration_size", CALIBRATION, 50, CALIBRATION, 50, unit=" images", help="Images that are looked at."
        ),
    ),
    fair_controls={
        "delete, not merge": {"merge": False},
        "random neurons": {"criterion": "random"},
        "from scratch": {"fresh": True},
    },
    anatomy=anatomy,
    calibration=CALIBRATION,
)
