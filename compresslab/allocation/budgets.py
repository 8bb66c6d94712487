"""Sharing a budget out over layers: by what a scan measured, or by their weights and shapes alone.

Sources: Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers" (the convex hull); Evci
et al. 2020, arXiv:1911.11134 (Erdős-Rényi-kernel); Lee et al. 2021, arXiv:2010.07611 (LAMP).
"""

import itertools
import math

import numpy as np
import pandas as pd
import torch

from compresslab import checks
from compresslab import layers as network
from compresslab.numerics.selection import keep_largest

RULES = ("uniform", "erk", "lamp", "global")
_ROUNDING = 1e-12  # a fraction this near 1 is 1
AS_IT_IS = {"sparsity": 0.0, "threshold": 0.0, "energy": 1.0}  # values that leave a layer as it is


def allocate(scan, budget, rule="greedy"):
    """Share a budget of bytes out over the layers, from what a scan measured.

    scan     DataFrame, as `scan` returns it
    budget   bytes that the file may have, above 0
    rule     "greedy": at every turn the step that loses the fewest points for the bytes it saves, along the lower
             convex hull of each layer (Shoham and Gersho 1988), until the budget is met: of the values scanned, no
             others that save as many bytes lose fewer points. "uniform": the same value in every layer, the control
    returns  dict of layer -> value; a layer that is not in it stays as it is. Where values are fractions the last step
             is taken in part, so that the budget is used up; whole numbers (bits, ranks) end at it or below. Steps that
             win points are all taken
    raises   ValueError for a budget that the values scanned do not reach, and for anything but a scan

    A value that leaves a layer without weights is never chosen. Bytes and points of the layers are added up; the file
    and the accuracy of all of them together are to be measured (see `expected`).
    """
    table, parameter = _checked_scan(scan)
    checks.choice("rule", rule, ("greedy", "uniform"))
    dense = int(table["dense_file"].iloc[0])
    need = dense - checks.real("budget", budget, 1, math.inf)
    table = table[(table["zeros"] < 1) & (table["saved"] > 0)]
    fractions = not pd.api.types.is_integer_dtype(table[parameter])
    share = _uniform if rule == "uniform" else _greedy
    chosen = share(table, parameter, need, fractions)
    if chosen is None:
        least = dense - int(table.groupby("layer")["saved"].max().sum())
        raise ValueError(f"budget is {budget!r} bytes; with the values scanned the least is about {least} bytes")
    return chosen


def _checked_scan(scan):
    """The scan, and the name of its parameter."""
    if not isinstance(scan, pd.DataFrame) or not {"layer", "points", "saved", "dense_file", "zeros"} <= set(scan):
        raise ValueError("scan is not the DataFrame of a scan; give what allocation.scan returns")
    if scan.empty:
        raise ValueError("scan has no row; give what allocation.scan returns")
    return scan, scan.columns[1]


def _curve(rows, parameter):
    """What a layer's values save and lose, by bytes saved; begun with the layer as it is, where a value says so."""
    if parameter in AS_IT_IS:
        start = pd.DataFrame({parameter: [AS_IT_IS[parameter]], "saved": [0.0], "points": [0.0]})
        rows = pd.concat([start, rows[rows[parameter] != AS_IT_IS[parameter]]])
    return rows.sort_values("saved", kind="stable")


def _greedy(table, parameter, need, fractions):
    """Layer -> value: steps along the hulls, the fewest points a byte first; None if they do not suffice."""
    curves = {name: _curve(rows, parameter) for name, rows in table.groupby("layer", sort=False)}
    steps = [(slope, name, before, after) for name, rows in curves.items() for slope, before, after in _hull(rows)]
    chosen = {}
    for slope, name, before, after in sorted(steps, key=lambda step: step[0]):
        if need <= 0 and slope >= 0:
            break
        in_part = fractions and slope >= 0 and (name in chosen or parameter in AS_IT_IS)
        taken = min(after - before, need) if in_part else after - before
        chosen[name] = _value_at(curves[name], parameter, before + taken, fractions)
        need -= taken
    return chosen if need <= 0 else None


def _hull(rows):
    """Steps along the lower convex hull of points over bytes saved, from (0, 0) on: (slope, bytes before, after)."""
    corners = [(0.0, 0.0)]
    for saved, points in rows.loc[rows["saved"] > 0, ["saved", "points"]].itertuples(index=False):
        while len(corners) > 1 and _slope(corners[-1], (saved, points)) <= _slope(corners[-2], corners[-1]):
            corners.pop()
        corners.append((float(saved), float(points)))
    return [(_slope(one, other), one[0], other[0]) for one, other in itertools.pairwise(corners)]


def _slope(one, other):
    return (other[1] - one[1]) / max(other[0] - one[0], 1e-9)


def _value_at(rows, parameter, saved, fractions):
    """The value of a layer that saves so many bytes, between two that were scanned where they are fractions."""
    if fractions:
        return round(float(np.interp(saved, rows["saved"], rows[parameter])), 6)
    return int(rows[parameter].iloc[(rows["saved"] - saved).abs().argmin()])


def _uniform(table, parameter, need, fractions):
    """Layer -> the same value, the weakest that saves enough; layers that do not take it stay as they are."""
    total = _curve(table.groupby(parameter)[["saved", "points"]].sum().reset_index(), parameter)
    enough = total[total["saved"] >= need]
    if need <= 0 or enough.empty:
        return {} if need <= 0 else None
    saved = max(need, total["saved"].iloc[0]) if fractions else enough["saved"].iloc[0]
    taken = table.loc[table[parameter] == enough[parameter].iloc[0], "layer"]
    return dict.fromkeys(taken, _value_at(total, parameter, saved, fractions))


def expected(scan, shares):
    """What an allocation costs if layers neither help nor harm each other: the scan's points and bytes, added up.

    scan     DataFrame, as `scan` returns it;  shares  dict of layer -> value, inside what was scanned
    returns  {"points": lost, in percentage points, "file_bytes": bytes}; between two values scanned a straight line
    raises   ValueError for a layer, or a value, that was not scanned
    """
    table, parameter = _checked_scan(scan)
    file_bytes, points = float(table["dense_file"].iloc[0]), 0.0
    for name, value in shares.items():
        checks.choice("shares", name, table["layer"].unique())
        rows = _curve(table[table["layer"] == name], parameter).sort_values(parameter)
        checks.real(f"shares[{name!r}]", value, rows[parameter].min(), rows[parameter].max())
        file_bytes -= np.interp(value, rows[parameter], rows["saved"])
        points += np.interp(value, rows[parameter], rows["points"])
    return {"points": float(points), "file_bytes": round(file_bytes)}


def sparsities(model, sparsity, rule="lamp", layers=None):
    """How sparse each layer is to be, when so many of all weights are zero; by the weights and shapes alone.

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
    weights = {one.names[0]: one.value for one in _weights(model, layers)}
    if rule == "uniform":
        return dict.fromkeys(weights, sparsity)
    if rule == "erk":
        kept = _erk({name: tuple(value.shape) for name, value in weights.items()}, 1 - sparsity)
        return {name: 1 - share for name, share in kept.items()}
    scores = [_score(name, value, rule) for name, value in weights.items()]
    count = round(sparsity * sum(value.numel() for value in scores))
    masks = keep_largest(scores, [None] * len(scores), count)
    return {name: 1 - int(mask.count_nonzero()) / mask.numel() for name, mask in zip(weights, masks, strict=True)}


def _weights(model, names):
    checks.module("model", model)
    return [one for one in network.distinct_weights(model, names) if one.value.numel()]


def _score(name, value, rule):
    """What "lamp" or "global" rank a layer's weights by; raises ValueError where that is no number."""
    if value.is_meta:
        raise ValueError(f"layer {name!r} is on the meta device, without values; load the weights first")
    score = _lamp(value) if rule == "lamp" else value
    if score.isnan().any():
        raise ValueError(f"layer {name!r} has weights that rule {rule!r} cannot rank (nan or inf)")
    return score


def _lamp(value):
    """The score of each weight, the shape of `value`: its square by the sum of all squares that are no smaller."""
    squares, order = value.double().square().flatten().sort()
    score = torch.empty_like(squares)
    score[order] = squares / squares.flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(torch.float64).tiny)
    return score.reshape(value.shape)


def _erk(shapes, density):
    """Name -> fraction of weights that stay: in proportion to sum(shape) / prod(shape), and at most 1."""
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
