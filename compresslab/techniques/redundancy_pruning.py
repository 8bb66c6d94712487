"""Redundancy pruning: of neurons with nearly the same activations, keep one that stands for the others.

Two neurons of a layer are redundant when their activations over calibration images are nearly affine functions of each
other, b = slope * a + offset, that is when |correlation| reaches `similarity`. The neuron with the smaller outgoing
norm is removed. With merge on, its outgoing weights times the slope are added to those of the neuron that stands for
it, and the offset goes to the next bias: for exact twins the network computes the same function with fewer neurons.
The fits are least squares on the unpruned model: what goes in one layer does not depend on what goes before it.

Sources: Srinivas and Babu 2015, arXiv:1507.06149 (alike neurons, outgoing weights merged); Mariet and Sra 2016,
arXiv:1511.05077 (outgoing weights refitted after neurons are pruned).
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import nn

from compresslab import channels, checks
from compresslab.calibration import checked_images
from compresslab.channels.slicing import count_channels
from compresslab.data import Data, Split
from compresslab.numerics.correlation import ROUNDING, readings, weakest
from compresslab.techniques import base
from compresslab.techniques.base import Control, Picture, Technique
from compresslab.weights.grids import Half
from compresslab.weights.layers import Mask, duplicate, get_mask, set_mask

CRITERIA = ("correlation", "random")
SIMILARITY = 0.95  # without a similarity or a sparsity
CALIBRATION = 1000  # images that the lab gives
PICTURED = 300  # images that the pictures are made from
FEW = 32  # samples below which neurons look alike by chance


def prune(
    model: nn.Module,
    images: torch.Tensor | Split,
    similarity: float | None = None,
    merge: bool = True,
    sparsity: float | None = None,
    layers: Iterable[str] | None = None,
    calibration_size: int | None = None,
    criterion: str = "correlation",
    constant: bool = False,
    fresh: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Return a new model without redundant neurons and channels.

    model       any nn.Module; pruned are the outputs of Linear and Conv layers that only other such layers read
    images      (N, …) calibration images, a tensor or a Split, at least 2; some hundreds tell twins from chance
    similarity  above 0, up to 1: neurons with |correlation| >= similarity are twins (up to rounding); 0.95 if neither
                this nor a sparsity is given. 1: exact affine twins only
    merge       True: the outgoing weights of a removed neuron, times the fitted slope, are added to those of the
                neuron that stands for it, and the fitted offset to the next bias. False: the neuron is only deleted
    sparsity    instead of a similarity: fraction of all neurons to remove, 0 to 1, the most redundant first, with a
                single cut for all layers; at least one neuron of each layer stays
    layers      names of the layers whose neurons may go, with the layers coupled to them; None for all
    calibration_size  use at most the first so many images; None for all
    criterion   "correlation"; or "random": as many neurons of each layer go, drawn with `seed`: the fair control
    constant    True: neurons that never vary over the images go first, as affine functions of any other neuron, with
                slope 0. False: they have correlation 0, and go last; neurons silent here may be active on other images
    fresh       True: draw all weights of the smaller model anew, with `seed`: the control that trains it from scratch
    seed        whole number, 0 or more; the global random state is not touched
    returns     model with smaller layers; masked weights that receive merged ones are unmasked
    raises      ValueError for a setting out of range, both similarity and sparsity, images that are missing, too few,
                not finite or not what the model takes, layers that are unknown or cannot lose neurons, and a model
                without Linear and Conv layers
    warns       UserWarning that names what is left alone and why, and where there are too few samples

    Which neurons go: see `clusters`. Where several layers read a neuron, the fits are made for each, and twins must be
    twins for all.
    """
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
    base.check_flags(merge=merge, constant=constant, fresh=fresh)
    studies, left_alone = _studies(model, images, layers, calibration_size, merge)
    stands = _stands(studies, similarity, sparsity, criterion, constant, seed)
    twin, groups = duplicate(model), [study.group for study in studies]
    removed = {group.name: _is_removed(stand) for group, stand in zip(groups, stands, strict=True)}
    if merge and not fresh:
        for study, stand in zip(studies, stands, strict=True):
            _merge(twin, study, stand)
    channels.remove(twin, groups, removed)
    if fresh:
        channels.reset(twin, seed)
    base.warn_left_alone("redundancy_pruning", left_alone)
    _warn_of_few_samples(studies)
    return twin


def similarities(
    model: nn.Module,
    images: torch.Tensor | Split,
    layers: Iterable[str] | None = None,
    calibration_size: int | None = None,
) -> dict[str, torch.Tensor]:
    """Return the correlation of every two neurons of a layer.

    model, images, layers, calibration_size  as in `prune`; so are the errors
    returns  dict of layer name -> float32 tensor (neurons, neurons), -1 to 1, symmetric, 1 on the diagonal. A neuron
             that never varies has 0 in its row and column, on the diagonal too. Where several layers read the neurons,
             the correlation of the smallest magnitude
    """
    studies, left_alone = _studies(model, images, layers, calibration_size, merge=False)
    base.warn_left_alone("redundancy_pruning", left_alone)
    _warn_of_few_samples(studies)
    return {study.group.name: study.correlation for study in studies}


def clusters(
    correlation: torch.Tensor, similarity: float, importance: torch.Tensor, constant: bool = False
) -> torch.Tensor:
    """Choose, greedily and without chance, which neuron stands for which.

    correlation  (neurons, neurons), as from `similarities`
    similarity   above 0, up to 1
    importance   (neurons,) norms of the outgoing weights
    constant     whether neurons that never vary (0 on the diagonal) go as well
    returns      (neurons,) int64: for each neuron the index of the one that stands for it, its own where it stays

    In the order of falling importance, equal ones by index, a neuron stays unless it is a twin of a neuron that stays
    already; the most alike of those that stay stands for it. So nothing is merged into a neuron that is removed, and
    every removed neuron has a twin at least as important. In a chain a ~ b ~ c with a and c unlike, both ends go if b
    is the most important; otherwise b goes, and both ends stay.
    """
    stays = _stays(*_rank(correlation, importance, constant), similarity)
    return _assign(correlation, stays)


def _rank(correlation, importance, constant):
    """Order the neurons by importance, and list the |correlation| with later ones.

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
    """Choose which of the neurons ranked by `_rank` stay, (neurons,) bool; see `clusters`."""
    twins = (strength >= similarity * (1 - ROUNDING)).numpy()
    goes = np.zeros(len(twins), bool)
    for rank, later_twins in enumerate(twins):
        if not goes[rank]:
            goes |= later_twins
    return torch.empty(len(order), dtype=torch.bool).scatter_(0, order, torch.from_numpy(~goes))


def _assign(correlation, stays):
    """Return for each neuron the one that stands for it, perhaps itself."""
    stand, remaining, removed = torch.arange(len(stays)), stays.nonzero().flatten(), (~stays).nonzero().flatten()
    if len(removed):
        stand[removed] = remaining[correlation[removed][:, remaining].abs().argmax(1)]
    return stand


def _is_removed(stand):
    return stand != torch.arange(len(stand))


@dataclass(frozen=True, eq=False)
class _Study:
    """A group of neurons, a Reading for each consumer, the `similarities`, and norms of the outgoing weights."""

    group: channels.Group
    readings: tuple
    correlation: torch.Tensor
    importance: torch.Tensor


def _studies(model, images, layers, calibration_size, merge):
    """Return a _Study of each prunable group, and the reasons for layers left alone."""
    checked_images(images, 2)
    images = images.images if isinstance(images, Split) else images
    images = images[: None if calibration_size is None else checks.integer("calibration_size", calibration_size, 2)]
    if len(images) < 2:
        raise ValueError(f"images holds {len(images)} image; a correlation takes 2 at least, better some hundreds")
    base.check_model(model, layers, "remove neurons of")
    for name, weight in model.named_parameters():
        base.check_finite(name, weight)
    if any(weight.dtype in (torch.float16, torch.bfloat16) for weight in model.parameters()):
        model = duplicate(model).float()  # activations in half precision would blur the fits
    groups, left_alone = base.find_neurons(model, images, layers)
    for group in groups if merge else ():
        if obstacle := _find_obstacle(model, group):
            left_alone |= dict.fromkeys(group.producers, obstacle)
    groups = [group for group in groups if group.producers[0] not in left_alone]
    if layers is not None and not groups:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in left_alone.items())
        raise ValueError(f"layers is {checks.words(list(layers))}, of which no neuron can be removed ({reasons})")
    studies = [
        _Study(group, seen, weakest(seen), _importance(model, group)) for group, seen in readings(model, images, groups)
    ]
    return studies, left_alone


def _find_obstacle(model, group):
    """Return why the outgoing weights of a group cannot be merged, or None."""
    for consumer in group.consumers:
        module = model.get_submodule(consumer.name)
        if getattr(module, "transposed", False):
            return f"{consumer.name}, a transposed convolution, reads it, and no bias makes up for an offset there"
        made = getattr(module, "parametrizations", {})
        if "weight" in made and not all(isinstance(part, Mask | Half) for part in made["weight"]):
            return f"the weights of {consumer.name}, which reads it, keep to few values; prune first, or delete"
    return None


def _importance(model, group):
    """Return the norm of all outgoing weights of each neuron, float64 (neurons,)."""
    squares = torch.zeros(group.size).double()
    for consumer in group.consumers:
        module = model.get_submodule(consumer.name)
        weight = base.inputs_first(module.weight.detach(), module)
        norms = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), dtype=torch.float64)
        squares += norms.cpu()[consumer.inputs].square().sum(1)
    return squares.sqrt()


def _warn_of_few_samples(studies):
    counts = {study.group.name: reading.samples for study in studies for reading in study.readings}
    name = min(counts, key=counts.get, default=None)
    if name is not None and counts[name] < FEW:
        message = f"layer {name!r} is judged by {counts[name]} samples, among which neurons look alike by chance"
        warnings.warn(f"{message}; give some hundreds of calibration images", UserWarning, stacklevel=3)


def _stands(studies, similarity, sparsity, criterion, constant, seed):
    """Choose for each study which neuron stands for which, as in `clusters`."""
    if sparsity is None:
        cut = SIMILARITY if similarity is None else similarity
        stands = [clusters(study.correlation, cut, study.importance, constant) for study in studies]
    else:
        stands = _most_redundant(studies, sparsity, constant)
    if criterion == "random":  # as many neurons of each layer
        generator = torch.Generator().manual_seed(seed)
        for number, stand in enumerate(stands):
            stays = torch.ones(len(stand), dtype=torch.bool)
            stays[torch.randperm(len(stand), generator=generator)[: int(_is_removed(stand).sum())]] = False
            stands[number] = _assign(studies[number].correlation, stays)
    return stands


def _most_redundant(studies, sparsity, constant, rounds=12):
    """Cluster so that as many neurons go as asked for, or as can.

    It is the largest such similarity, to a 4096th. Where it removes too many neurons, those least like the neuron that
    stands for them are put back.
    """
    wanted = round(sparsity * sum(study.group.size for study in studies))
    ranked = [_rank(study.correlation, study.importance, constant) for study in studies]
    low, high = 0.0, 1.0
    for _ in range(rounds):
        middle = (low + high) / 2
        count = sum(len(order) - int(_stays(order, strength, middle).sum()) for order, strength in ranked)
        low, high = (middle, high) if count >= wanted else (low, middle)
        if count == wanted:
            break
    chosen = [_assign(study.correlation, _stays(*pair, low)) for study, pair in zip(studies, ranked, strict=True)]
    scores = [_likeness(study, stand, constant) for study, stand in zip(studies, chosen, strict=True)]
    goes = torch.zeros(sum(map(len, scores)), dtype=torch.bool)
    goes[torch.cat([torch.empty(0), *scores]).sort(descending=True, stable=True).indices[:wanted]] = True
    parts = goes.split([len(stand) for stand in chosen])
    return [torch.where(part, stand, torch.arange(len(stand))) for part, stand in zip(parts, chosen, strict=True)]


def _likeness(study, stand, constant):
    """Return |correlation| of each neuron with its stand-in, -1 for itself."""
    likeness = study.correlation[torch.arange(len(stand)), stand].abs()
    if constant:
        likeness[study.correlation.diagonal() == 0] = 1
    return likeness.masked_fill(~_is_removed(stand), -1)


def _merge(model, study, stand):
    """Add outgoing weights of removed neurons to those that stand for them."""
    removed = _is_removed(stand).nonzero().flatten()
    if not len(removed):
        return
    for consumer, reading in zip(study.group.consumers, study.readings, strict=True):
        # Fit each removed neuron on the one that stands for it.
        module = model.get_submodule(consumer.name)
        slope, offset = reading.fit(removed, stand[removed])
        # Move the outgoing weights, times the slope, and unmask where they go.
        sources, targets = consumer.inputs[removed], consumer.inputs[stand[removed]]
        weight = base.inputs_first(module.weight.detach(), module).cpu().double().clone()
        outgoing = weight[sources]  # (removed, inputs of a neuron, outputs, *kernel)
        moved = outgoing * slope.reshape(-1, *[1] * (outgoing.dim() - 1))
        weight.index_add_(0, targets.flatten(), moved.flatten(0, 1))
        if (mask := get_mask(module)) is not None:
            mask = mask.clone()
            view = base.inputs_first(mask, module)
            for source, target in zip(sources.flatten().tolist(), targets.flatten().tolist(), strict=True):
                view[target] |= view[source]
            set_mask(module, mask)
        made = getattr(module, "parametrizations", {})
        holder = made["weight"].original if "weight" in made else module.weight
        with torch.no_grad():
            base.inputs_first(holder, module).copy_(weight)
        # Move the offsets into the bias: what the layer answers to them.
        answer = outgoing.transpose(1, 2).flatten(2).sum(2)  # (removed, outputs): to an input of 1 everywhere
        if (amount := offset @ answer).any():
            channels.add_to_bias(model, consumer.name, amount)


def anatomy(model: nn.Module, compressed: nn.Module, setting: dict, data: Data) -> list[Picture]:
    """Picture a pruning: correlations ordered by clusters, each neuron's nearest twin, what is left.

    The correlations are those over the first 300 training images; `prune` may have looked at more.
    """
    similarity, sparsity = setting.get("similarity"), setting.get("sparsity")
    images, merge = data.train.images[:PICTURED], setting.get("merge", True)
    studies, _ = _studies(model, images, setting.get("layers"), setting.get("calibration_size"), merge)
    if not studies:
        return []
    stands = _stands(studies, similarity, sparsity, "correlation", setting.get("constant", False), seed=0)
    cut = similarity or SIMILARITY
    if sparsity is not None:  # the similarity at which a neuron went, or would go
        likeness = torch.cat([torch.ones(1), *(_likeness(*pair, False) for pair in zip(studies, stands, strict=True))])
        cut = float(likeness[likeness >= 0].min())
    shown = studies[int(np.argmax([int(_is_removed(stand).sum()) for stand in stands]))]
    producers = [study.group.producers[0] for study in studies]
    before, after = (
        np.array([count_channels(network.get_submodule(name), "out") for name in producers])
        for network in (model, compressed)
    )
    title, names = "Neurons left in each layer", tuple(study.group.name for study in studies)
    caption = "Late layers are narrow and say the same in many ways; they lose most."
    layer_bars = Picture("layers", "bars", after / before, title, caption, labels=names, axis="neurons")
    return [_matrix(shown, cut), _histogram(studies, cut, setting), layer_bars]


def _nearest_twin(study):
    """Return |correlation| of each neuron with the neuron most like it, float32 (neurons,)."""
    return study.correlation.abs().fill_diagonal_(0).amax(1)


def _matrix(study, cut, most=128):
    """Picture the correlations of a layer's most similar neurons, ordered by hierarchical clustering."""
    shown = _nearest_twin(study).sort(descending=True, stable=True).indices[:most]
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
        f"only those from {cut:.2f} on: blocks there are neurons that one of them can stand for."
    )
    return Picture("correlation", "matrix", values, f"Correlation in {study.group.name}", caption)


def _histogram(studies, cut, setting):
    """Picture how alike every neuron is to the neuron most like it."""
    values = torch.cat([_nearest_twin(study) for study in studies]).numpy()
    is_random = setting.get("criterion", "correlation") == "random"
    caption = "One of every two twins right of the cut goes. Neurons at 0 never vary on the calibration images."
    if is_random:
        caption = "No cut: as many neurons as have twins go, but at random."
    title = "Each neuron's largest |correlation|"
    cut = None if is_random else cut
    return Picture("likeness", "histogram", values, title, caption, cut, axis="|correlation|", above=True)


_TWINS = "Neurons with at least this |correlation| are twins."
_SHARE = "Share of the neurons that go, likest first."
TECHNIQUE = Technique(
    name="redundancy_pruning",
    apply=prune,
    controls=(
        Control("similarity", 0.8, 0.5, 1.0, 0.01, alternative="amount", help=_TWINS),
        Control("sparsity", 0.3, 0.0, 0.95, 0.01, unit="%", alternative="amount", help=_SHARE),
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
