"""A technique layer by layer: each with its own value, by a call or by sliders.

Every technique here is a function with a parameter `layers`, called once for each layer.
"""

import inspect
import json
import math
import numbers
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from compresslab import checks, fingerprints, models, techniques
from compresslab import layers as network
from compresslab.recipe import Recipe
from compresslab.techniques import Control, Technique
from compresslab.trial import complete_setting, name_of, takes_seed

BUDGET = "budget"
TAKEN = (BUDGET, "model", "data", "steps", "seed")  # names that a lab, or the budget, has for itself
USUAL = ("sparsity", "rank", "bits")  # parameters that say how much, in the order in which they are looked for
STRONGER_UPWARDS = ("sparsity", "threshold")  # parameters that compress more as they rise; the others less


@dataclass(frozen=True)
class Size:
    """How much of a layer, a weight of rows x columns, a value of the parameter leaves.

    kept   kept(value, rows, columns) -> fraction of its numbers, or bits, that stay
    value  value(kept, rows, columns) -> the value that leaves so much at most, but never nothing
    """

    kept: Callable
    value: Callable


SIZES = {  # technique -> Size of its usual parameter
    "zero_pruning": Size(
        lambda sparsity, rows, columns: 1 - sparsity,
        lambda kept, rows, columns: 1 - max(1, int(kept * rows * columns + 1e-6)) / (rows * columns),
    ),
    "low_rank": Size(
        lambda rank, rows, columns: min(1, rank * (rows + columns) / (rows * columns)),
        lambda kept, rows, columns: max(1, int(kept * rows * columns / (rows + columns) + 1e-6)),
    ),
    "quantization": Size(
        lambda bits, rows, columns: bits / 32,
        lambda kept, rows, columns: max(1, int(32 * kept + 1e-6)),
    ),
}
SIZES["weight_sharing"] = SIZES["quantization"]


def layerwise(technique):
    """The Technique of a name, a module or a Technique; raises ValueError for one that cannot do single layers."""
    technique = techniques.get(technique)
    if "layers" not in inspect.signature(technique.apply).parameters or technique.training is not None:
        raise ValueError(f"technique is {technique.name!r}, which has no parameter `layers`; give one that has")
    return technique


def parameter_of(technique, parameter=None):
    """The parameter that says how much: `parameter`, checked, or the usual one, or else the first that is a number."""
    numeric = [one.name for one in technique.controls if _is_number(one.default) and not one.choices]
    if parameter is not None:
        return checks.choice("parameter", parameter, numeric)
    if not numeric:
        raise ValueError(f"technique is {technique.name!r}, which declares no number as a control")
    return next((name for name in USUAL if name in numeric), numeric[0])


def apply(model, shares, technique="zero_pruning", images=None, parameter=None, **setting):
    """New model with each layer compressed by its own value; `model` itself is not changed.

    shares     dict of layer -> value; layers that are not in it stay as they are
    technique, parameter  as in `scan`;  setting  what else the technique is called with
    images     calibration images (N, …), for techniques that take them
    raises     ValueError as the technique does
    """
    technique = layerwise(technique)
    if not isinstance(shares, Mapping):
        raise ValueError(f"shares is {checks.words(shares)}; give a dict of layer -> value, as allocate returns")
    checks.module("model", model)
    compressed = network.duplicate(model)
    for one in _calls(parameter_of(technique, parameter), shares, setting):
        compressed = technique.apply(compressed, *([] if images is None else [images]), **one)
    return compressed


def _calls(parameter, shares, setting):
    """The setting of each call, one a layer."""
    return [{parameter: value, "layers": [name], **setting} for name, value in shares.items()]


def per_layer(technique, model, layers=None, parameter=None):
    """A copy of a technique with a slider for each layer, for `cl.lab.explore` and `cl.sweep.run`.

    technique  as in `scan`;  parameter  as there
    model      an nn.Module, or the name of a reference network: the copy is for networks with the same layers
    layers     names of layers, as in model.named_modules(); None for all that hold weights, a shared one once
    returns    Technique whose controls are, in this order:
               one a layer, named as it is, with _ for what no name in Python has ("features.0" is features_0, "3"
               is layer_3); it begins at the end where it compresses least;
               "budget", for zero pruning, low rank, quantization and weight sharing: the fraction that stays, at most,
               of the numbers (or bits) in these layers. Where their sliders keep more, each keeps the same share less,
               so that they say in which ratio the layers divide the budget; at 100% they are taken as they are;
               what else the technique has
    raises     ValueError for names that technique or model do not have

    A layer is left one weight, one rank, one bit at least. Of other techniques than those four it shows no anatomy.
    """
    plan = _plan(layerwise(technique), model, layers, parameter)
    base, sized = plan.technique, plan.size is not None
    own = next(one for one in base.controls if one.name == plan.parameter)
    rest = [one for one in base.controls if one.name not in (plan.parameter, "scope") and not _excludes(one, own)]
    if clash := {one.name for one in rest} & set(plan.sliders):
        raise ValueError(f"model has a layer {clash.pop()!r}, which is a parameter of {base.name} too; rename it")
    return replace(
        base,
        name=f"{base.name} per layer",
        apply=partial(_apply, plan),
        controls=(*plan.controls(), *([_budget()] if sized else []), *rest),
        anatomy=partial(_anatomy, plan) if sized and base.anatomy else None,
        depends=json.dumps([base.name, plan.parameter, plan.sliders, plan.shapes, fingerprints.of_technique(base)]),
        source=partial(_source, plan) if _is_packaged(base) else None,
        fits=plan.fits,
    )


@dataclass(frozen=True)
class _Plan:
    """What a layer by layer technique is made of.

    parameter  the one with a slider for each layer;  shapes  layer -> shape of its weight;  sliders  name -> layer
    made_from  Python expression of the model, and of what else `per_layer` was given
    """

    technique: Technique
    parameter: str
    shapes: dict
    sliders: dict
    made_from: str

    @property
    def size(self):
        """The Size of the parameter, None where there is no formula for it."""
        return SIZES.get(self.technique.name) if self.parameter in USUAL else None

    def fits(self, model):
        """Whether a model has these layers, in these shapes."""
        return all(_shapes(model).get(name) == shape for name, shape in self.shapes.items())

    def controls(self):
        """The Control of each layer."""
        own = next(one for one in self.technique.controls if one.name == self.parameter)
        for slider, layer in self.sliders.items():
            rows, columns = _matrix(self.shapes[layer])
            high = own.high
            if self.technique.name == "low_rank" and self.parameter == "rank":
                high = min(rows, columns, -(-rows * columns // (rows + columns)))  # beyond it stays as it is
            end = own.low if self.parameter in STRONGER_UPWARDS else high
            told = f"{layer}, {rows} × {columns}. {own.help}"
            yield replace(own, name=slider, default=end, high=high, alternative="", help=told)

    def calls(self, setting):
        """Settings of the technique, one for each layer, from the values of the controls."""
        shares = {self.sliders[one.name]: setting.get(one.name, one.default) for one in self.controls()}
        for slider, layer in self.sliders.items():
            checks.real(slider, shares[layer], -math.inf, math.inf)
        shapes = {name: _matrix(shape) for name, shape in self.shapes.items()}
        if self.size is not None and all(0 <= self.size.kept(shares[name], *shapes[name]) <= 1 for name in shares):
            shares = {name: _spared(value, shapes[name], self.size) for name, value in shares.items()}
            shares = _within(checks.fraction(BUDGET, setting.get(BUDGET, 1.0)), shares, shapes, self.size)
        rest = {name: value for name, value in setting.items() if name != BUDGET and name not in self.sliders}
        return _calls(self.parameter, shares, rest)


def _plan(technique, model, layers, parameter):
    name = model if isinstance(model, str) else None
    model = models.build(model, seed=0) if name else model
    checks.module("model", model, also=" or the name of a reference network")
    name = name or (name_of(model) if name_of(model) in models.names() else None)
    shapes, chosen = _shapes(model), parameter_of(technique, parameter)
    names = list(shapes) if layers is None else [one for one in shapes if one in network.weight_layers(model, layers)]
    if not names:
        raise ValueError("model has no layer with weights, such as Linear or Conv2d")
    given = [repr(technique.name), repr(name) if name else "model"]
    given += [f"layers={names!r}"] * (layers is not None) + [f"parameter={chosen!r}"] * (parameter is not None)
    sliders = dict(zip(_sliders(names), names, strict=True))
    return _Plan(technique, chosen, {one: shapes[one] for one in names}, sliders, ", ".join(given))


def _shapes(model):
    """Name of a layer that holds weights -> their shape, shared ones once."""
    return {one.names[0]: tuple(one.value.shape) for one in network.distinct_weights(model) if one.value.numel()}


def _matrix(shape):
    """Rows and columns of a weight as a matrix from a window of its input to its outputs."""
    return shape[0], math.prod(shape[1:])


def _sliders(names):
    """A name in Python for each layer, no two alike."""
    found = []
    for name in names:
        slider = re.sub(r"\W", "_", name) or "layer"
        slider = f"layer_{slider}" if slider[0].isdigit() else slider
        found.append(f"{slider}_" if slider in TAKEN else slider)
    times = Counter(found)
    return [f"{name}_{found[: at + 1].count(name)}" if times[name] > 1 else name for at, name in enumerate(found)]


def _budget():
    told = "What stays of all these layers, at most; where their sliders keep more, each keeps the same share less."
    return Control(BUDGET, 1.0, 0.01, 1.0, 0.01, unit="%", help=told)


def _spared(value, shape, size):
    """A value, or the strongest one that leaves something of the layer where it would not."""
    strongest = size.value(0, *shape)
    return strongest if size.kept(value, *shape) < size.kept(strongest, *shape) else value


def _within(budget, shares, shapes, size):
    """Values that keep this fraction at most: what each keeps is multiplied by one factor, the largest that will do."""
    counts = {name: rows * columns for name, (rows, columns) in shapes.items()}
    kept = {name: size.kept(value, *shapes[name]) for name, value in shares.items()}

    def total(values):
        return sum(count * size.kept(values[name], *shapes[name]) for name, count in counts.items())

    def scaled(factor):
        return {name: size.value(factor * kept[name], *shapes[name]) for name in shares}

    everything = sum(counts.values())
    room = budget * everything + 0.5  # a weight more or less is rounding
    if total(shares) <= room:
        return shares
    if total(scaled(0)) > room:
        least = total(scaled(0)) / everything
        message = f"budget is {budget:.2%}, but with something left in every layer {least:.2%} stay"
        warnings.warn(message, UserWarning, stacklevel=5)
        return scaled(0)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if total(scaled(middle)) <= room else (low, middle)
    return scaled(low)


def _apply(plan, model, *images, seed=0, **setting):
    if not plan.fits(model):
        told = ", ".join(f"{name} {' × '.join(map(str, shape))}" for name, shape in plan.shapes.items())
        raise ValueError(f"model has other layers than {told}; make per_layer for this model")
    _check_names(plan, setting)
    seeded = {"seed": seed} if takes_seed(plan.technique) else {}
    compressed = network.duplicate(model)
    for one in plan.calls(setting):
        compressed = plan.technique.apply(compressed, *images, **seeded | one)
    return compressed


def _check_names(plan, setting):
    """Raise ValueError for a name that is neither a slider nor a parameter of the technique."""
    known = [*plan.sliders, *([BUDGET] if plan.size else [])]
    try:
        complete_setting(plan.technique, {name: value for name, value in setting.items() if name not in known})
    except ValueError as error:
        raise ValueError(f"{error}; and for its layers {', '.join(known)}") from error


def _anatomy(plan, model, compressed, setting, data):
    rest = {name: value for name, value in setting.items() if name not in (*plan.sliders, BUDGET)}
    scope = {"scope": "layer"} if any(one.name == "scope" for one in plan.technique.controls) else {}
    setting = complete_setting(plan.technique, {**rest, **scope, "layers": list(plan.shapes)})
    return techniques.pictures(plan.technique, model, compressed, setting, data)


def _source(plan, setting=None, result=None):
    """The Python expression of this technique; with a setting, of the Recipe that does the same, a step for a layer."""
    if setting is None:
        return f"cl.allocation.per_layer({plan.made_from})"
    recipe = Recipe([(plan.technique.name, one) for one in plan.calls(setting)])
    return recipe.as_technique().source({}, result)


def _is_packaged(technique):
    return technique.name in techniques.names() and techniques.get(technique.name) is technique


def _excludes(control, other):
    return bool(control.alternative) and control.alternative == other.alternative


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
