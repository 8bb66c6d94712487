"""Each layer with a value of its own: sparsities by rule, a call for each layer, and sliders with a budget.

A technique that can do this is a function with a parameter `layers`, called once for each layer.

Sources: Evci et al. 2020, arXiv:1911.11134 (Erdős-Rényi-kernel); Lee et al. 2021, arXiv:2010.07611 (LAMP).
"""

import inspect
import json
import math
import numbers
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from compresslab import checks, models, techniques
from compresslab.experiments import fingerprints
from compresslab.experiments.recipe import Recipe
from compresslab.experiments.trial import complete_setting, name_of, takes_seed
from compresslab.numerics.selection import keep_largest
from compresslab.techniques import Control, Technique
from compresslab.weights import layers as network

RULES = ("uniform", "erk", "lamp", "global")
BUDGET = "budget"
RESERVED = (BUDGET, "model", "data", "steps", "seed")  # names that a lab, or the budget, has for itself
USUAL = ("sparsity", "rank", "bits")  # parameters that say how much, in the order in which they are looked for
STRONGER_UPWARDS = ("sparsity", "threshold")  # parameters that compress more as they rise; the rest less
_ROUNDING = 1e-12  # a fraction this near 1 is 1


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

    model      any nn.Module; it is not changed
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
    """The setting of each call, one a layer."""
    return [{parameter: value, "layers": [name], **setting} for name, value in shares.items()]


def _call_for_each(technique, model, images, calls):
    compressed = network.duplicate(model)
    for call in calls:
        compressed = technique.apply(compressed, *images, **call)
    return compressed


@dataclass(frozen=True)
class Size:
    """Return how much of a layer (rows x columns) a value of the parameter leaves.

    fraction  fraction(value, rows, columns) of its numbers, or bits, that stay
    value     value(fraction, rows, columns) that leaves so much at most, but never nothing
    """

    fraction: Callable
    value: Callable


SIZES = {  # technique -> Size of its usual parameter
    "zero_pruning": Size(
        lambda sparsity, rows, columns: 1 - sparsity,
        lambda fraction, rows, columns: 1 - max(1, int(fraction * rows * columns + 1e-6)) / (rows * columns),
    ),
    "low_rank": Size(
        lambda rank, rows, columns: min(1, rank * (rows + columns) / (rows * columns)),
        lambda fraction, rows, columns: max(1, int(fraction * rows * columns / (rows + columns) + 1e-6)),
    ),
    "quantization": Size(
        lambda bits, rows, columns: bits / 32,
        lambda fraction, rows, columns: max(1, int(32 * fraction + 1e-6)),
    ),
}
SIZES["weight_sharing"] = SIZES["quantization"]


def per_layer(
    technique: Technique | str,
    model: nn.Module | str,
    layers: Iterable[str] | None = None,
    parameter: str | None = None,
) -> Technique:
    """Make a copy of a technique with a slider for each layer.

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
    plan = _make_plan(get_layerwise(technique), model, layers, parameter)
    base, sized = plan.technique, plan.size is not None
    moved = next(control for control in base.controls if control.name == plan.parameter)
    rest = [control for control in base.controls if control.name not in (plan.parameter, "scope")]
    rest = [control for control in rest if not control.alternative or control.alternative != moved.alternative]
    if clash := {control.name for control in rest} & set(plan.sliders):
        raise ValueError(f"model has a layer {clash.pop()!r}, which is a parameter of {base.name} too; rename it")
    words = "What stays of all these layers, at most; where their sliders keep more, each keeps the same share less."
    budget = [Control(BUDGET, 1.0, 0.01, 1.0, 0.01, unit="%", help=words)] if sized else []
    packaged = base.name in techniques.names() and techniques.get(base.name) is base
    return replace(
        base,
        name=f"{base.name} per layer",
        apply=plan.apply,
        controls=(*plan.controls(), *budget, *rest),
        anatomy=plan.anatomy if sized and base.anatomy else None,
        depends=json.dumps([base.name, plan.parameter, plan.sliders, plan.shapes, fingerprints.of_technique(base)]),
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
        """The Size of the parameter, None where there is no formula for it."""
        return SIZES.get(self.technique.name) if self.parameter in USUAL else None

    def fits(self, model: nn.Module) -> bool:
        """Tell whether a model has these layers, in these shapes."""
        return all(_find_shapes(model).get(name) == shape for name, shape in self.shapes.items())

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
        controls = {control.name: control.default for control in self.controls()}
        shares = {layer: setting.get(slider, controls[slider]) for slider, layer in self.sliders.items()}
        for slider, layer in self.sliders.items():
            checks.real(slider, shares[layer], -math.inf, math.inf)
        shapes, size = {name: _to_matrix(shape) for name, shape in self.shapes.items()}, self.size
        if size is not None and all(0 <= size.fraction(shares[name], *shapes[name]) <= 1 for name in shares):
            shares = {name: _weaken(value, shapes[name], size) for name, value in shares.items()}
            shares = _fit_budget(checks.fraction(BUDGET, setting.get(BUDGET, 1.0)), shares, shapes, size)
        rest = {name: value for name, value in setting.items() if name != BUDGET and name not in self.sliders}
        return _list_calls(self.parameter, shares, rest)

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
        rest = {name: value for name, value in setting.items() if name not in (*self.sliders, BUDGET)}
        scope = {"scope": "layer"} if any(control.name == "scope" for control in self.technique.controls) else {}
        setting = complete_setting(self.technique, {**rest, **scope, "layers": list(self.shapes)})
        return techniques.pictures(self.technique, model, compressed, setting, data)

    def source(self, setting: Mapping | None = None, result=None) -> str:
        """Write this technique as Python code; with a setting, the equivalent Recipe."""
        if setting is None:
            return f"cl.allocation.per_layer({self.made_from})"
        recipe = Recipe([(self.technique.name, call) for call in self.calls(setting)])
        return recipe.as_technique().source({}, result)


def _make_plan(technique, model, layers, parameter):
    name = model if isinstance(model, str) else None
    model = models.build(model, seed=0) if name else model
    checks.module("model", model, also=" or the name of a reference network")
    name = name or (name_of(model) if name_of(model) in models.names() else None)
    shapes, chosen = _find_shapes(model), choose_parameter(technique, parameter)
    chosen_layers = shapes if layers is None else network.weight_layers(model, layers)
    names = [layer for layer in shapes if layer in chosen_layers]
    if not names:
        raise ValueError("model has no layer with weights, such as Linear or Conv2d")
    made_from = [repr(technique.name), repr(name) if name else "model"]
    made_from += [f"layers={names!r}"] * (layers is not None) + [f"parameter={chosen!r}"] * (parameter is not None)
    sliders = dict(zip(_name_sliders(names), names, strict=True))
    return _Plan(technique, chosen, {name: shapes[name] for name in names}, sliders, ", ".join(made_from))


def _find_shapes(model):
    """Map names of layers that hold weights to their shapes, shared ones once."""
    weights = network.distinct_weights(model)
    return {weight.names[0]: tuple(weight.value.shape) for weight in weights if weight.value.numel()}


def _to_matrix(shape):
    """Return the rows and columns of a weight as a matrix."""
    return shape[0], math.prod(shape[1:])


def _name_sliders(names):
    """A name in Python for each layer, no two alike."""
    sliders = []
    for name in names:
        slider = re.sub(r"\W", "_", name) or "layer"
        slider = f"layer_{slider}" if slider[0].isdigit() else slider
        sliders.append(f"{slider}_" if slider in RESERVED else slider)
    times = Counter(sliders)
    return [f"{name}_{sliders[: at + 1].count(name)}" if times[name] > 1 else name for at, name in enumerate(sliders)]


def _weaken(value, shape, size):
    """Weaken a value until it leaves something of the layer."""
    strongest = size.value(0, *shape)
    return strongest if size.fraction(value, *shape) < size.fraction(strongest, *shape) else value


def _fit_budget(budget, shares, shapes, size):
    """Multiply what each layer keeps by the largest factor within the budget."""
    counts = {name: rows * columns for name, (rows, columns) in shapes.items()}
    fractions = {name: size.fraction(value, *shapes[name]) for name, value in shares.items()}

    def total(values):
        return sum(count * size.fraction(values[name], *shapes[name]) for name, count in counts.items())

    def scaled(factor):
        return {name: size.value(factor * fractions[name], *shapes[name]) for name in shares}

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
    for _ in range(60):  # halve the interval of the factor
        middle = (low + high) / 2
        low, high = (middle, high) if total(scaled(middle)) <= room else (low, middle)
    return scaled(low)
