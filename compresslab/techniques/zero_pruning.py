"""Zero pruning: set the weights that matter least to zero, and keep them there while the rest trains on.

Magnitude pruning removes the weights with the smallest |w|; the fair control removes as many at random. The shape of
the layers does not change: what shrinks is the compressed file, not the tensor.

Sources: Han et al. 2015, arXiv:1506.02626 (threshold, prune and retrain); Zhu and Gupta 2017, arXiv:1710.01878
(the cubic schedule of `gradual`).
"""

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from compresslab import bars, checks, train
from compresslab.data import Data
from compresslab.numerics.selection import chunks, common_dtype, keep_largest
from compresslab.techniques import base
from compresslab.techniques.base import Control, Picture, Technique
from compresslab.weights.layers import TRANSPOSED, distinct_weights, duplicate, find_matrices, set_mask, unsupported

SCOPES = ("global", "layer")
CRITERIA = ("magnitude", "random")
GRADUAL_LR = 2e-3  # nothing to find it by: the network is intact when the run begins
LEVELS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)


def prune(
    model: nn.Module,
    sparsity: float | None = None,
    threshold: float | None = None,
    scope: str = "global",
    criterion: str = "magnitude",
    layers: Iterable[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return a new model with weights set to zero.

    model      any nn.Module with Linear, Conv, ConvTranspose, recurrent or attention layers; biases are never pruned
    sparsity   fraction of weights that are zero afterwards, 0 to 1: exactly round(sparsity * n) of the n weights in
               the scope, a shared weight counted once. Weights that are zero already count first
    threshold  instead of a sparsity: weights with |w| < threshold go (|w| == threshold stays)
    scope      "global": one ranking, or one threshold, over all layers;
               "layer": the sparsity in each layer; each layer's threshold in proportion to the spread of its weights,
               threshold * std(layer) / std(all layers), as Han et al. choose it
    criterion  "magnitude": the smallest |w| go, equal ones in the order of layers and indices;
               "random": as many go, drawn with `seed`: the control for any claim about magnitude
    layers     names of the layers to prune, as in model.named_modules(); None for all
    seed       whole number, 0 or more, for criterion "random"; the global random state is not touched
    returns    model whose pruned layers carry a mask (weights.layers.Mask), so that training keeps the zeros. Pruning
               again goes on from them: prune(prune(net, 0.5), 0.9) is 90% sparse in all
    raises     ValueError for a setting out of range, both or neither of sparsity and threshold, an unknown layer name,
               a model without prunable layers, and weights that are nan
    warns      UserWarning that names a layer losing all its weights, and embeddings that are left alone, as they are
               unless `layers` names them; and when more is pruned already than asked for
    """
    _check_setting(sparsity, threshold, scope, criterion, seed)
    base.check_model(model, layers, "prune", find_matrices)
    if layers is None:
        base.warn_left_alone(
            "zero_pruning", {name: f"{kind} weights" for name, kind in unsupported(model, matrices=True).items()}
        )
    twin = duplicate(model)
    _prune_in_place(twin, sparsity, threshold, scope, criterion, layers, seed)
    return twin


def cubic_sparsity(progress: float, final: float, initial: float = 0.0) -> float:
    """Return the sparsity of the cubic schedule; `progress` is 0 (start) to 1 (end).

    It rises fast while weights are plenty and slowly towards the end. Zhu and Gupta 2017, equation 1.
    """
    progress = checks.fraction("progress", progress)
    return final + (initial - final) * (1 - progress) ** 3


@dataclass(frozen=True)
class Snapshot:
    """One level of a gradual run: the model as it was then, and its accuracy, measured on the validation images.

    sparsity  fraction of prunable weights that are zero;  accuracy  fraction, 0 to 1
    step      training steps taken so far, of `steps` in all;  model  independent of the run and of other snapshots
    """

    sparsity: float
    model: nn.Module
    accuracy: float
    step: int
    steps: int


def gradual(
    model: nn.Module,
    data: Data,
    levels: Iterable[float] | None = None,
    steps: int = 1300,
    seed: int = 0,
    *,
    scope: str = "global",
    criterion: str = "magnitude",
    layers: Iterable[str] | None = None,
    interval: int = 25,
    bar: bool = True,
    **training: object,
) -> Iterator[Snapshot]:
    """Prune little by little while training, and yield a Snapshot at every level.

    data      Data: trained on data.train, measured on data.validation
    levels    rising sparsities, 0 to 1; None for LEVELS from the model's own sparsity on. The first snapshot is at the
              first level; a level equal to the model's own sparsity shows the model as it is, untrained
    steps     training steps in all, shared out by the cubic schedule; fewer are left out near the dense end
    seed      whole number, 0 or more: order of the batches (and criterion "random"); same seed, same run
    scope, criterion, layers  as in `prune`
    interval  training steps between two prunings, at most
    training  lr, batch_size, loss, precision, device: as in compresslab.train.fit, in one run with one optimizer;
              its learning rate falls to half of `lr`, 0.002 by default: the damage is still to come
    returns   generator of Snapshot; closing it, or leaving its loop, cancels the run
    raises    ValueError, at once, for a setting out of range or levels that do not rise
    """
    _check_setting(1.0, None, scope, criterion, seed)
    base.check_model(model, layers, "prune", find_matrices)
    checks.integer("steps", steps, 1)
    checks.integer("interval", interval, 1)
    weights = distinct_weights(model, layers)
    initial = _count_masked(weights) / max(1, _total(weights))
    plan = _plan(_check_levels(levels, initial), initial, steps, interval)
    model = duplicate(model)
    run = train.fit(model, data.train, steps=2 * steps, seed=seed, bar=False, **{"lr": GRADUAL_LR} | training)
    options = {"scope": scope, "criterion": criterion, "layers": layers, "seed": seed}
    return _run_gradual(model, data, plan, options, run, bar)


def _run_gradual(model, data, plan, options, run, bar):
    """Prune, train on, and measure at the levels, event by event; see `gradual`."""
    done, total, origin = 0, sum(steps for _, steps, _ in plan), next(model.parameters()).device
    modes = [(name, module.training) for name, module in model.named_modules()]
    with (
        contextlib.closing(run),
        bars.quiet(),
        tqdm(total=total, desc="gradual pruning", delay=1, leave=False, disable=not bar) as shown,
    ):
        for sparsity, steps, is_level in plan:
            _prune_in_place(model, sparsity, **options)
            for _ in itertools.islice(run, steps):
                shown.update()
            done += steps
            if is_level:
                twin = prune(model, sparsity, **options).to(origin, memory_format=torch.contiguous_format)
                for name, training in modes:
                    twin.get_submodule(name).training = training
                accuracy = train.judge(twin, data.validation)
                yield Snapshot(sparsity, twin, accuracy, done, total)


def _plan(levels, initial, steps, interval):
    """Return the events of a gradual run: (sparsity, steps after it, whether a level).

    Every level is reached when the cubic schedule says so; the way to it is cut into equal parts of `interval` steps
    or a little more or less. Pruning comes at the beginning of each part, so that a level is measured after recovery.
    """
    final, plan, past = levels[-1], [], 0.0
    for level in levels:
        left = min(1.0, (final - level) / (final - initial)) if final > initial else 0.0
        progress = 1 - left ** (1 / 3)
        parts = max(1, round((progress - past) * steps / interval))
        for part in range(1, parts + 1):
            start, end = (past + (progress - past) * (part - 1 + back) / parts for back in (0, 1))
            sparsity = level if part == parts else cubic_sparsity(end, final, initial)
            plan.append((sparsity, round(end * steps) - round(start * steps), part == parts))
        past = progress
    return plan


def _check_levels(levels, initial, slack=1e-3):
    """Return `levels` as rising fractions, none below the model's own sparsity."""
    if levels is None:
        return tuple(level for level in LEVELS if level > initial + slack or not initial) or (initial,)
    levels = tuple(checks.fraction("levels", level) for level in levels)
    if not levels or any(late <= early for early, late in zip(levels, levels[1:], strict=False)):
        raise ValueError(f"levels is {levels!r}; give one or more rising sparsities, such as (0.5, 0.9, 0.95)")
    if levels[0] < initial - slack:
        raise ValueError(
            f"levels starts at {levels[0]:g}, but the model is pruned to {initial:.4g}; start there or above"
        )
    return levels


def _check_setting(sparsity, threshold, scope, criterion, seed):
    base.check_amount("sparsity (0.9) or threshold (0.05)", sparsity=sparsity, threshold=threshold)
    checks.choice("scope", scope, SCOPES)
    checks.choice("criterion", criterion, CRITERIA)
    checks.integer("seed", seed, 0)


def _prune_in_place(model, sparsity=None, threshold=None, scope="global", criterion="magnitude", layers=None, seed=0):
    """Rank the weights and mask those that go, in place; arguments as in `prune`."""
    weights = distinct_weights(model, layers)
    for weight in weights:
        base.check_loaded(weight.names[0], weight.value)
        if weight.value.sum().isnan() and weight.value.isnan().any():  # the sum is 8 times faster
            raise ValueError(f"layer {weight.names[0]!r} has weights that are nan, which have no magnitude to rank")
    groups = [weights] if scope == "global" else [[weight] for weight in weights]
    spread = _spread(weights) if sparsity is None and scope == "layer" else 0.0
    generator, masks = torch.Generator().manual_seed(seed), []
    for group in groups:
        # Count the weights that are to be zero, with those that are pruned already.
        total, masked = _total(group), _count_masked(group)
        if sparsity is None:
            count = max(masked, _count_below(group, threshold * (_spread(group) / spread if spread else 1.0)))
        else:
            count = round(sparsity * total)
        if count < masked:
            where = "the model" if scope == "global" or len(weights) == 1 else f"layer {group[0].names[0]!r}"
            message = f"sparsity is {sparsity:g}, but {where} is pruned to {masked / total:.4g} already; that stays"
            warnings.warn(message, UserWarning, stacklevel=3)
        # Rank them, in each layer or all together.
        scores = [weight.value for weight in group] if criterion == "magnitude" else _random_scores(group, generator)
        masks += keep_largest(scores, [weight.mask for weight in group], max(count, masked))
    # Name the layers that lose all their weights here: nothing passes through such a layer.
    pairs = list(zip(weights, masks, strict=True))
    emptied = [pair[0] for pair in pairs if pair[1].numel() > _count_masked(pair[:1]) and not pair[1].any()]
    if emptied:
        names = ", ".join(repr(name) for weight in emptied for name in weight.names)
        message = f"pruning leaves no weight in layer {names}; its output no longer depends on its input"
        warnings.warn(message, UserWarning, stacklevel=3)
    for weight, mask in bars.over(pairs, "masking layers"):
        if weight.mask is not None or not mask.all():
            for module, name in weight.holders:
                set_mask(module, mask, name)


def _count_below(weights, limit):
    """Count the weights with |w| < limit."""
    count = 0
    for weight in weights:
        dtype = common_dtype([weight.value])
        count += sum(int((chunk.to(dtype).abs() < limit).sum()) for chunk in chunks(weight.value))
    return count


def _spread(weights):
    """Return the standard deviation of all weights together, in double precision."""
    sums, total = torch.zeros(2, dtype=torch.float64), max(1, _total(weights))
    for chunk in (chunk.double() for weight in weights for chunk in chunks(weight.value)):
        sums += torch.stack([chunk.sum(), chunk.square().sum()]).cpu()
    mean, square = (sums / total).tolist()
    return math.sqrt(max(0.0, square - mean**2))


def _total(weights):
    return sum(weight.value.numel() for weight in weights)


def _count_masked(weights):
    masks = [weight.mask for weight in weights if weight.mask is not None]
    return sum(mask.numel() - int(mask.count_nonzero()) for mask in masks)


def _random_scores(weights, generator):
    """Draw a score for each weight, uniform in (0, 1), and 0 for zeros."""
    scores = []
    for weight in weights:
        score = torch.rand(weight.value.shape, generator=generator, dtype=torch.float32).clamp_(min=2**-25)
        scores.append(score.to(weight.value.device).mul_(weight.value != 0))
    return scores


def anatomy(model: nn.Module, compressed: nn.Module, setting: dict) -> list[Picture]:
    """Picture a pruning: weights and cut, the first mask, sparsity per layer."""
    before, after = distinct_weights(model, setting.get("layers")), distinct_weights(compressed, setting.get("layers"))
    zeros = [1 - int(weight.value.count_nonzero()) / max(1, weight.value.numel()) for weight in after]
    caption = "A global cut takes most where weights are small; a layer near 100% is about to be emptied."
    title, names = "Sparsity of each layer", tuple(weight.names[0] for weight in after)
    layer_bars = Picture("layers", "bars", np.array(zeros), title, caption, labels=names, axis="sparsity")
    return [_histogram(before, after, setting), _mask_picture(after[0]), layer_bars]


def _histogram(before, after, setting, most=1_000_000):
    """Picture the magnitudes before pruning and the largest that went."""
    step = -(-_total(before) // most) or 1
    sizes = torch.cat([weight.value.reshape(-1)[::step].abs().float().cpu() for weight in before])
    removed = ~torch.cat([_mask_of(weight).reshape(-1)[::step].cpu() for weight in after])
    cut, caption = None, "No single cut: weights go at random, or each layer has a cut of its own."
    if setting.get("scope", "global") == "global" and setting.get("criterion", "magnitude") == "magnitude":
        caption = "Everything left of the cut is set to zero. Most weights are small: see how many go before it hurts."
        cut = setting.get("threshold")
        if cut is None and removed.any():
            cut = float(sizes[removed].max())
    return Picture("weights", "histogram", sizes.numpy(), "Weights by size", caption, cut=cut, axis="|weight|")


def _mask_picture(weight, most=64):
    """Picture the mask of a layer, as images or a matrix."""
    mask, title = _mask_of(weight).float().cpu(), f"Mask of {weight.names[0]}"
    images = base.as_images(mask, isinstance(weight.holders[0][0], TRANSPOSED))
    if images is None:
        caption = "A row for each output, light where the weight from an input is still there."
        return Picture("mask", "matrix", mask.flatten(1).numpy(), title, caption)
    caption = "One image for each filter, light where its weights are still there, averaged over its inputs."
    if mask.dim() == 2:
        most, caption = 25, "One image for each of the first 25 neurons, light where an input pixel is still connected."
    return Picture("mask", "images", images[:most].mean(1).numpy(), f"{title}, seen as images", caption)


def _mask_of(weight):
    return torch.ones_like(weight.value, dtype=torch.bool) if weight.mask is None else weight.mask


TECHNIQUE = Technique(
    name="zero_pruning",
    apply=prune,
    controls=(
        Control(
            "sparsity", 0.9, 0.0, 0.99, 0.01, unit="%", alternative="amount", help="Share of the weights set to zero."
        ),
        Control(
            "threshold", 0.15, 0.0, 0.3, 0.005, alternative="amount", help="Weights smaller than this are set to zero."
        ),
        Control("scope", "global", choices=SCOPES, help="One cut for all layers together, or one in each layer."),
        Control("criterion", "magnitude", choices=CRITERIA, help="The smallest weights go, or as many at random."),
    ),
    fair_controls={"random pruning": {"criterion": "random"}},
    anatomy=anatomy,
)
