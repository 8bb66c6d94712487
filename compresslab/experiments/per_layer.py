"""Each layer with a value of its own: a call of the technique for each layer, and sliders with a budget."""

import inspect
import json
import math
import numbers
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from compresslab import checks, models, techniques
from compresslab.experiments import fingerprints
from compresslab.experiments.recipe import Recipe
from compresslab.experiments.recipe_work import number_names
from compresslab.experiments.trial import complete_setting, name_of, takes_seed
from compresslab.techniques import Control, Technique
from compresslab.weights import layers as network

BUDGET = "budget"
RESERVED = (BUDGET, "model", "data", "steps", "seed")  # names that a lab, or the budget, has for itself
USUAL = ("sparsity", "rank", "bits")  # parameters that say how much, in the order in which they are looked for
STRONGER_UPWARDS = ("sparsity", "threshold")  # parameters that compress more as they rise; the rest less


def get_layerwise(technique: Technique | str) -> Technique:
    """Return a Technique by its name; raises ValueError for one that cannot compress single layers."""
    technique = techniques.get(technique)
    if "layers" not in inspect.signature(technique.apply).parameters or technique.training is not None:
        raise ValueError(f"technique is {technique.name!r}, which has no parameter `layers`; give one that has")
    return technique


def choose_parameter(technique: Technique, parameter: str | None = None) -> str:
    """Choose the parameter that says how much: the usual one, or the first number."""
    numeric = [control.name for control in technique.controls if _is_number(control.default) and not control.choices]
    if parameter is not None:
        return checks.choice("parameter", parameter, numeric)
    if not numeric:
        raise ValueError(f"technique is {technique.name!r}, which declares no number as a control")
    return next((name for name in USUAL if name in numeric), numeric[0])


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def apply(
    model: nn.Module, shares: Mapping, technique: Technique | str = "zero_pruning", images: torch.Tensor | None = None,
    parameter: str | None = None, **setting,
) -> nn.Module:  # fmt: skip
    """Return a new model with each layer compressed by its own value.

    shares     dict of layer -> value; layers that are not in it stay as they are
    technique, parameter  as in `scan`;  setting  what else the technique is called with
    images     calibration images (N, …), for techniques that take them
    raises     ValueError as the technique does
    """
    technique = get_layerwise(technique)
    if not isinstance(shares, Mapping):
        raise ValueError(f"shares is {checks.words(shares)}; give a dict of layer -> value, as allocate returns")
    calls = _list_calls(choose_parameter(technique, parameter), shares, setting)
    return _call_for_each(technique, checks.module("model", model), [] if images is None else [images], calls)


def _list_calls(parameter, shares, setting):
    """List the settings of the technique, a call for each layer."""
    return [{parameter: value, "layers": [name], **setting} for name, value in shares.items()]


def _call_for_each(technique, model, images, calls):
    compressed = network.duplicate(model)
    for call in calls:
        compressed = technique.apply(compressed, *images, **call)
    return compressed


class _Size(NamedTuple):
    """Compute how much of a layer (rows x columns) a value of the parameter leaves."""

    fraction: Callable  # fraction(value, rows, columns) of its numbers, or bits, that stay
    value: Callable  # value(fraction, rows, columns) that leaves so much at most, but never nothing


_BITS = _Size(
    lambda bits, rows, columns: bits / 32,
    lambda fraction, rows, columns: max(1, int(32 * fraction + 1e-6)),
)
_SIZES = {  # technique -> size of its usual parameter
    "zero_pruning": _Size(
        lambda sparsity, rows, columns: 1 - sparsity,
        lambda fraction, rows, columns: 1 - max(1, int(fraction * rows * columns + 1e-6)) / (rows * columns),
    ),
    "low_rank": _Size(
        lambda rank, rows, columns: min(1, rank * (rows + columns) / (rows * columns)),
        lambda fraction, rows, columns: max(1, int(fraction * rows * columns / (rows + columns) + 1e-6)),
    ),
    "quantization": _BITS,
    "weight_sharing": _BITS,
}


def per_layer(
    technique: Technique | str,
    model: nn.Module | str,
    layers: Iterable[str] | None = None,
    parameter: str | None = None,
) -> Technique:
    """Make a copy of a technique with a slider for each layer.

    technique, parameter  as in `scan`
    model      an nn.Module, or the name of a reference network: the copy is for networks with the same layers
    layers     names of layers, as in model.named_modules(); None for all that hold weights, a shared one once
    returns    Technique whose controls are: one a layer, named as it is, with _ for what no name in Python has
               ("features.0" is features_0, "3" is layer_3), which begins where it compresses least;
               "budget", for zero pruning, low rank, quantization and weight sharing: the fraction that stays, at most,
               of the numbers (or bits) in these layers. Where their sliders keep more, each keeps the same share less;
               what else the technique has
    raises     ValueError for names that technique or model do not have

    A layer is left one weight, one rank, one bit at least. Of other techniques than those four it shows no anatomy.
    """
    base, model_name = get_layerwise(technique), model if isinstance(model, str) else None
    model = models.build(model, seed=0) if model_name else model
    checks.module("model", model, also=" or the name of a reference network")
    model_name = model_name or (name_of(model) if name_of(model) in models.names() else None)
    shapes, chosen = _find_shapes(model), choose_parameter(base, parameter)
    chosen_layers = shapes if layers is None else network.weight_layers(model, layers)
    names = [layer for layer in shapes if layer in chosen_layers]
    if not names:
        raise ValueError("model has no layer with weights, such as Linear or Conv2d")
    made_from = [repr(base.name), repr(model_name) if model_name else "model"]
    made_from += [f"layers={names!r}"] * (layers is not None) + [f"parameter={chosen!r}"] * (parameter is not None)
    sliders = dict(zip(_name_sliders(names), names, strict=True))
    plan = _Plan(base, chosen, {name: shapes[name] for name in names}, sliders, ", ".join(made_from))

    moved = next(control for control in base.controls if control.name == chosen)
    rest = [control for control in base.controls if control.name not in (chosen, "scope")]
    rest = [control for control in rest if not control.alternative or control.alternative != moved.alternative]
    if clash := {control.name for control in rest} & set(sliders):
        raise ValueError(f"model has a layer {clash.pop()!r}, which is a parameter of {base.name} too; rename it")
    words = "What stays of all these layers, at most; where their sliders keep more, each keeps the same share less."
    budget = [Control(BUDGET, 1.0, 0.01, 1.0, 0.01, unit="%", help=words)] if plan.size else []
    packaged = base.name in techniques.names() and techniques.get(base.name) is base
    return replace(
        base,
        name=f"{base.name} per layer",
        apply=plan.apply,
        controls=(*plan.controls(), *budget, *rest),
        anatomy=plan.anatomy if plan.size and base.anatomy else None,
        depends=json.dumps([base.name, chosen, sliders, plan.shapes, fingerprints.of_technique(base)]),
        source=plan.source if packaged else None,
        fits=plan.fits,
    )


@dataclass(frozen=True, eq=False)
class _Plan:
    """The functions of a technique that goes layer by layer.

    parameter  the one with a slider for each layer;  shapes  layer -> shape of its weight;  sliders  name -> layer
    made_from  Python expression of the model, and of what else `per_layer` was called with
    """

    technique: Technique
    parameter: str
    shapes: dict
    sliders: dict
    made_from: str

    @property
    def size(self):
        """The _Size of the parameter, None where there is no formula for it."""
        return _SIZES.get(self.technique.name) if self.parameter in USUAL else None

    def fits(self, model: nn.Module) -> bool:
        """Tell whether a model has these layers, in these shapes."""
        return self.shapes.items() <= _find_shapes(model).items()

    def controls(self) -> Iterator[Control]:
        """Yield the Control of each layer."""
        control = next(control for control in self.technique.controls if control.name == self.parameter)
        for slider, layer in self.sliders.items():
            rows, columns = _to_matrix(self.shapes[layer])
            high = control.high
            if self.technique.name == "low_rank" and self.parameter == "rank":
                high = min(rows, columns, -(-rows * columns // (rows + columns)))  # beyond it stays as it is
            weakest = control.low if self.parameter in STRONGER_UPWARDS else high
            words = f"{layer}, {rows} × {columns}. {control.help}"
            yield replace(control, name=slider, default=weakest, high=high, alternative="", help=words)

    def calls(self, setting: Mapping) -> list[dict]:
        """List the settings of the technique, one call for each layer."""
        defaults, size = {control.name: control.default for control in self.controls()}, self.size
        shares = {layer: setting.get(slider, defaults[slider]) for slider, layer in self.sliders.items()}
        for slider, layer in self.sliders.items():
            checks.real(slider, shares[layer], -math.inf, math.inf)
        shapes = {name: _to_matrix(shape) for name, shape in self.shapes.items()}
        if size is not None and all(0 <= size.fraction(shares[name], *shapes[name]) <= 1 for name in shares):
            for name, shape in shapes.items():  # something stays of each layer
                strongest = size.value(0, *shape)
                if size.fraction(shares[name], *shape) < size.fraction(strongest, *shape):
                    shares[name] = strongest
            shares = _fit_budget(checks.fraction(BUDGET, setting.get(BUDGET, 1.0)), shares, shapes, size)
        return _list_calls(self.parameter, shares, self._without_sliders(setting))

    def _without_sliders(self, setting):
        return {name: value for name, value in setting.items() if name != BUDGET and name not in self.sliders}

    def apply(self, model: nn.Module, *images, seed: int = 0, **setting) -> nn.Module:
        """Compress each layer by the value of its control."""
        if not self.fits(model):
            wanted = ", ".join(f"{name} {' × '.join(map(str, shape))}" for name, shape in self.shapes.items())
            raise ValueError(f"model has other layers than {wanted}; make per_layer for this model")
        known = [*self.sliders, *([BUDGET] if self.size else [])]
        try:
            complete_setting(self.technique, {name: value for name, value in setting.items() if name not in known})
        except ValueError as error:
            raise ValueError(f"{error}; and for its layers {', '.join(known)}") from error
        seeded = {"seed": seed} if takes_seed(self.technique) else {}
        return _call_for_each(self.technique, model, images, [seeded | call for call in self.calls(setting)])

    def anatomy(self, model: nn.Module, compressed: nn.Module, setting: Mapping, data) -> list:
        """Return the technique's pictures of these layers."""
        scope = {"scope": "layer"} if any(control.name == "scope" for control in self.technique.controls) else {}
        setting = self._without_sliders(setting) | scope | {"layers": list(self.shapes)}
        return techniques.pictures(self.technique, model, compressed, complete_setting(self.technique, setting), data)

    def source(self, setting: Mapping | None = None, result=None) -> str:
        """Write this technique as Python code; with a setting, the equivalent Recipe."""
        if setting is None:
            return f"cl.allocation.per_layer({self.made_from})"
        recipe = Recipe([(self.technique.name, call) for call in self.calls(setting)])
        return recipe.as_technique().source({}, result)


def _find_shapes(model):
    """Map names of layers that hold weights to their shapes, shared ones once."""
    weights = network.distinct_weights(model)
    return {weight.names[0]: tuple(weight.value.shape) for weight in weights if weight.value.numel()}


def _to_matrix(shape):
    """Return the rows and columns of a weight as a matrix."""
    return shape[0], math.prod(shape[1:])


def _name_sliders(names):
    """Return a name in Python for each layer, no two alike."""
    sliders = []
    for name in names:
        slider = re.sub(r"\W", "_", name) or "layer"
        slider = f"layer_{slider}" if slider[0].isdigit() else slider
        sliders.append(f"{slider}_" if slider in RESERVED else slider)
    return number_names(sliders)


def _fit_budget(budget, shares, shapes, size):
    """Multiply what each layer keeps by the largest factor within the budget."""
    counts = {name: rows * columns for name, (rows, columns) in shapes.items()}
    fractions = {name: size.fraction(value, *shapes[name]) for name, value in shares.items()}
    room = budget * sum(counts.values()) + 0.5  # a weight more or less is rounding

    def _count(values):
        return sum(count * size.fraction(values[name], *shapes[name]) for name, count in counts.items())

    def _scale(factor):
        return {name: size.value(factor * fractions[name], *shapes[name]) for name in shares}

    if _count(shares) <= room:
        return shares
    least = _count(_scale(0))
    if least > room:
        message = (
            f"budget is {budget:.2%}, but with something left in every layer {least / sum(counts.values()):.2%} stay"
        )
        warnings.warn(message, UserWarning, stacklevel=5)
        return _scale(0)
    low, high = 0.0, 1.0
    for _ in range(60):  # halve the interval of the factor
        middle = (low + high) / 2
        low, high = (middle, high) if _count(_scale(middle)) <= room else (low, middle)
    return _scale(low)
