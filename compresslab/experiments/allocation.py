"""Which layers, how much? Scan how sensitive each layer is, share a budget out over them, and move them by sliders.

    scan = cl.allocation.scan(net, data, "zero_pruning")            # every layer alone, measured
    shares = cl.allocation.allocate(scan, budget=40_000)            # layer -> sparsity, for a file of 40,000 bytes
    small = cl.allocation.apply(net, shares, "zero_pruning")
    cl.lab.explore(cl.allocation.per_layer("zero_pruning", net))    # a slider for each layer, and a budget

A scan sees each layer alone and adds up what they lose; what they lose together is another measurement.

Sources: Li et al. 2017, arXiv:1608.08710, section 3.2 (sensitivity, layer by layer); Shoham and Gersho 1988, "Efficient
bit allocation for an arbitrary set of quantizers" (the convex hull); Evci et al. 2020, arXiv:1911.11134
(Erdős-Rényi-kernel); Lee et al. 2021, arXiv:2010.07611 (LAMP).
"""

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from compresslab import bars, checks, measure, storage
from compresslab.data import Data
from compresslab.experiments import sweep
from compresslab.experiments.journal import Journal
from compresslab.experiments.per_layer import apply, choose_parameter, get_layerwise, per_layer
from compresslab.experiments.trial import check_trial, load_subject
from compresslab.numerics.selection import keep_largest
from compresslab.techniques import Technique
from compresslab.weights import layers as network

__all__ = ["RULES", "VALUES", "allocate", "apply", "expected", "per_layer", "scan", "sparsities"]

RULES = ("uniform", "erk", "lamp", "global")
VALUES = {  # what is scanned by default
    "sparsity": (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99),
    "energy": (0.99, 0.95, 0.9, 0.8, 0.6, 0.4),
    "rank": (1, 2, 4, 8, 16, 32, 64),
    "bits": (8, 6, 5, 4, 3, 2, 1),
}
UNCHANGED = {"sparsity": 0.0, "threshold": 0.0, "energy": 1.0}  # values that leave a layer as it is
_ROUNDING = 1e-12  # a fraction this near 1 is 1


@bars.quiet()
def scan(
    model: nn.Module | str, data: Data | str, technique: Technique | str = "zero_pruning",
    values: Iterable | float | None = None, layers: Iterable[str] | None = None, parameter: str | None = None, *,
    setting: Mapping | None = None,
    steps: int = 0, seed: int = 0, journal: Journal | str | bool | None = None, bar: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Measure how sensitive each layer is by compressing it alone.

    model      an nn.Module, or the name of a pretrained network;  data  a Data, or the name of a data set
    technique  a technique's name, or a Technique of your own, whose function has a parameter `layers`
    values     of the parameter, a list or a single value; None for those in VALUES
    layers     names of layers, as in model.named_modules(); None for all that hold weights
    parameter  of the technique; None for the first that it declares as a number (sparsity, rank, bits)
    setting    what else the technique is called with, as a dict
    steps      of retraining before a layer is measured, 0 for none;  seed  of that retraining and of the technique
    journal    as in `sweep.run`: what it holds comes at once;  bar  show a tqdm bar
    returns    DataFrame with a row for each layer and value, in columns layer; the parameter's name; accuracy (fraction
               of the validation images); points (lost against the model as it is, in percentage points); file_bytes
               (before retraining, which moves the bytes of all layers); saved (bytes of this layer alone: a file leaves
               out neurons whose outputs nobody reads); dense_file (bytes of the model's file as it is); zeros (fraction
               of the layer's weights that are zero). Of a technique that takes numbers away, saved is that of the
               model's file and zeros 0
    raises     ValueError for names and values that technique, model or data do not have
    warns      UserWarning that names layers and values which the technique refuses; they have no row
    """
    technique = get_layerwise(technique)
    parameter = choose_parameter(technique, parameter)
    model, data, _ = load_subject(model, data)
    nonzeros, values = _count_nonzeros(model, layers), _list_values(parameter, values)
    with sweep.take_turn():
        accuracy, dense = measure.accuracy(model, data.validation), storage.file_bytes(model)
        before = {name: storage.file_bytes(model.get_submodule(name)) for name in nonzeros}
    parameters, total = network.count_parameters(model), network.count_nonzeros(model)
    rows, refused = [], {}
    for name, value in tqdm(list(itertools.product(nonzeros, values)), desc="layers", leave=False, disable=not bar):
        call = {**(setting or {}), parameter: value, "layers": [name]}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # what became of the layer stands in its row
                results = [
                    next(sweep.run(technique, model, data, [call], steps=n, seed=seed, journal=journal, bar=False))
                    for n in dict.fromkeys((0, steps))
                ]
                layer_bytes = _count_layer_bytes(sweep.Trial(technique, call, steps=0, seed=seed), name, model, data)
        except ValueError as error:
            refused[name, value] = error
            continue
        one_shot, last = results[0], results[-1]
        saved, zeros = dense - one_shot.file_bytes, 0.0
        if one_shot.parameters == parameters:  # no numbers were taken away
            saved, zeros = before[name] - layer_bytes, (total - one_shot.nonzeros) / max(1, nonzeros[name])
        points = 100 * (accuracy - last.accuracy)
        rows.append((name, value, last.accuracy, points, one_shot.file_bytes, saved, dense, zeros))
    if refused:
        first = next(iter(refused.values()))
        if not rows:
            raise first
        places = ", ".join(f"{name} at {value!r}" for name, value in refused)
        warnings.warn(f"scan leaves out {places}; the first because {first}", UserWarning, stacklevel=3)
    columns = ["layer", parameter, "accuracy", "points", "file_bytes", "saved", "dense_file", "zeros"]
    return pd.DataFrame(rows, columns=columns)


def _count_layer_bytes(trial, name, model, data):
    """Count the bytes of a layer as a file of its own, after a Trial."""
    with sweep.take_turn():
        compressed = sweep.compress(check_trial(trial, data), model, data)
        return storage.file_bytes(compressed.get_submodule(name))


def _count_nonzeros(model, names):
    """Map names of layers to how many of their weights are not zero."""
    counts = {weight.names[0]: int(weight.value.count_nonzero()) for weight in network.distinct_weights(model, names)}
    if not counts:
        raise ValueError(f"layers is {checks.words(names)}; the model has no such layer with weights (Linear, Conv)")
    return counts


def _list_values(parameter, values):
    if values is None and parameter not in VALUES:
        raise ValueError(f"values is None; give the values of {parameter} to scan, as a list")
    settings = sweep.settings({"values": VALUES[parameter] if values is None else values})
    numbers = [setting["values"] for setting in settings]
    return list(dict.fromkeys(number.item() if hasattr(number, "item") else number for number in numbers))


def allocate(scan: pd.DataFrame, budget: float, rule: str = "greedy") -> dict:
    """Share a budget of bytes out over the layers, from what a scan measured.

    scan     DataFrame, as `scan` returns it
    budget   bytes that the file may have, above 0
    rule     "greedy": the step that loses the fewest points for the bytes it saves, again and again, along the lower
             convex hull of each layer (Shoham and Gersho 1988), until the budget is met. "uniform": the same value in
             every layer, the control
    returns  dict of layer -> value; a layer that is not in it stays as it is. Where values are fractions the last step
             is taken in part, so that the budget is used up. Steps that win points are all taken, and a value that
             leaves a layer without weights never
    raises   ValueError for a budget that the values scanned do not reach, and for anything but a scan
    """
    parameter = _check_scan(scan)
    checks.choice("rule", rule, ("greedy", "uniform"))
    dense = int(scan["dense_file"].iloc[0])
    need = dense - checks.real("budget", budget, 1, math.inf)
    table = scan[(scan["zeros"] < 1) & (scan["saved"] > 0)]
    fractions = not pd.api.types.is_integer_dtype(table[parameter])
    share = _share_uniformly if rule == "uniform" else _share_greedily
    shares = share(table, parameter, need, fractions)
    if shares is None:
        least = dense - int(table.groupby("layer")["saved"].max().sum())
        raise ValueError(f"budget is {budget!r} bytes; with the values scanned the least is about {least} bytes")
    return shares


def _check_scan(scan):
    """Return the name of a scan's parameter; raises ValueError for anything but a scan."""
    if not isinstance(scan, pd.DataFrame) or not {"layer", "points", "saved", "dense_file", "zeros"} <= set(scan):
        raise ValueError("scan is not the DataFrame of a scan; give what allocation.scan returns")
    if scan.empty:
        raise ValueError("scan has no row; give what allocation.scan returns")
    return scan.columns[1]


def _sort_curve(rows, parameter):
    """Sort a layer's rows by the bytes they save, the unchanged layer first."""
    if parameter in UNCHANGED:
        start = pd.DataFrame({parameter: [UNCHANGED[parameter]], "saved": [0.0], "points": [0.0]})
        rows = pd.concat([start, rows[rows[parameter] != UNCHANGED[parameter]]])
    return rows.sort_values("saved", kind="stable")


def _share_greedily(table, parameter, need, fractions):
    """Take steps along the hulls, the cheapest first; None if they do not suffice."""
    curves = {name: _sort_curve(rows, parameter) for name, rows in table.groupby("layer", sort=False)}
    steps = [(slope, name, before, after) for name, rows in curves.items() for slope, before, after in _find_hull(rows)]
    shares = {}
    for slope, name, before, after in sorted(steps, key=lambda step: step[0]):
        if need <= 0 and slope >= 0:
            break
        in_part = fractions and slope >= 0 and (name in shares or parameter in UNCHANGED)
        taken = min(after - before, need) if in_part else after - before
        shares[name] = _value_at(curves[name], parameter, before + taken, fractions)
        need -= taken
    return shares if need <= 0 else None


def _find_hull(rows):
    """List the steps along the lower convex hull: (slope, bytes before, bytes after)."""
    corners = [(0.0, 0.0)]
    for saved, points in rows.loc[rows["saved"] > 0, ["saved", "points"]].itertuples(index=False):
        while len(corners) > 1 and _slope(corners[-1], (saved, points)) <= _slope(corners[-2], corners[-1]):
            corners.pop()
        corners.append((float(saved), float(points)))
    return [(_slope(left, right), left[0], right[0]) for left, right in itertools.pairwise(corners)]


def _slope(left, right):
    return (right[1] - left[1]) / max(right[0] - left[0], 1e-9)


def _value_at(rows, parameter, saved, fractions):
    """Find the value that saves so many bytes, interpolated where values are fractions."""
    if fractions:
        return round(float(np.interp(saved, rows["saved"], rows[parameter])), 6)
    return int(rows[parameter].iloc[(rows["saved"] - saved).abs().argmin()])


def _share_uniformly(table, parameter, need, fractions):
    """Take the weakest value that saves enough, in all layers that take it."""
    total = _sort_curve(table.groupby(parameter)[["saved", "points"]].sum().reset_index(), parameter)
    enough = total[total["saved"] >= need]
    if need <= 0 or enough.empty:
        return {} if need <= 0 else None
    saved = max(need, total["saved"].iloc[0]) if fractions else enough["saved"].iloc[0]
    names = table.loc[table[parameter] == enough[parameter].iloc[0], "layer"]
    return dict.fromkeys(names, _value_at(total, parameter, saved, fractions))


def expected(scan: pd.DataFrame, shares: Mapping) -> dict:
    """Predict the cost of an allocation by adding up the scan's points and bytes.

    It holds if layers do not interact; between two values scanned it is a straight line.
    scan     DataFrame, as `scan` returns it;  shares  dict of layer -> value, inside what was scanned
    returns  {"points": lost, in percentage points, "file_bytes": bytes}
    raises   ValueError for a layer, or a value, that was not scanned
    """
    parameter = _check_scan(scan)
    file_bytes, points = float(scan["dense_file"].iloc[0]), 0.0
    for name, value in shares.items():
        checks.choice("shares", name, scan["layer"].unique())
        rows = _sort_curve(scan[scan["layer"] == name], parameter).sort_values(parameter)
        checks.real(f"shares[{name!r}]", value, rows[parameter].min(), rows[parameter].max())
        file_bytes -= np.interp(value, rows[parameter], rows["saved"])
        points += np.interp(value, rows[parameter], rows["points"])
    return {"points": float(points), "file_bytes": round(file_bytes)}


def sparsities(model: nn.Module, sparsity: float, rule: str = "lamp", layers: Iterable[str] | None = None) -> dict:
    """Choose a sparsity for each layer, by the weights and shapes alone.

    sparsity  fraction of all weights, 0 to 1
    rule      "uniform": the same in every layer;
              "erk": a layer keeps weights in proportion to the sum of its sizes by their product, at most all: small
              layers stay dense (Erdős-Rényi-kernel, Evci et al. 2020, section 3);
              "lamp": one ranking of w**2 / sum of the squares of all weights of the layer that are no smaller: the
              largest weight of each layer has score 1, so that no layer is emptied (Lee et al. 2021, equation 3);
              "global": one ranking of |w|, which may empty a layer
    layers    names, as in model.named_modules(); None for all
    returns   dict of layer -> sparsity; shared weights under their first name, layers of no weights left out
    raises    ValueError for a setting out of range, an unknown layer, and weights that "lamp" or "global" cannot rank
    """
    checks.choice("rule", rule, RULES)
    sparsity = checks.fraction("sparsity", sparsity)
    checks.module("model", model)
    weights = {weight.names[0]: weight.value for weight in network.distinct_weights(model, layers)}
    weights = {name: value for name, value in weights.items() if value.numel()}
    if rule == "uniform":
        return dict.fromkeys(weights, sparsity)
    if rule == "erk":
        densities = _share_by_shape({name: tuple(value.shape) for name, value in weights.items()}, 1 - sparsity)
        return {name: 1 - density for name, density in densities.items()}
    scores = [_score(name, value, rule) for name, value in weights.items()]
    count = round(sparsity * sum(value.numel() for value in scores))
    masks = keep_largest(scores, [None] * len(scores), count)
    return {name: 1 - int(mask.count_nonzero()) / mask.numel() for name, mask in zip(weights, masks, strict=True)}


def _score(name, value, rule):
    """Compute the scores that a layer's weights are ranked by, in the shape of `value`."""
    if value.is_meta:
        raise ValueError(f"layer {name!r} is on the meta device, without values; load the weights first")
    score = value
    if rule == "lamp":  # each square by the sum of all squares that are no smaller
        squares, order = value.double().square().flatten().sort()
        sums = squares.flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(torch.float64).tiny)
        score = torch.empty_like(squares)
        score[order] = squares / sums
        score = score.reshape(value.shape)
    if score.isnan().any():
        raise ValueError(f"layer {name!r} has weights that rule {rule!r} cannot rank (nan or inf)")
    return score


def _share_by_shape(shapes, density):
    """Divide the density in proportion to sum(shape) / prod(shape), at most 1 each."""
    counts = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / counts[name] for name, shape in shapes.items()}
    dense = set()
    while True:
        room = density * sum(counts.values()) - sum(counts[name] for name in dense)
        scale = room / max(1, sum(raw[name] * counts[name] for name in raw if name not in dense))
        over = {name for name in raw if name not in dense and scale * raw[name] > 1 - _ROUNDING}
        if not over:
            return {name: 1.0 if name in dense else scale * raw[name] for name in raw}
        dense |= over
