"""The contract of a technique, as plain data, and the checks and warnings that all techniques share.

A technique is a plain function: model and setting in, new model out. Its module declares one `TECHNIQUE`: the controls
that the lab turns into sliders, the fair controls to compare it with, and the anatomy, the arrays that show what
happened inside. The lab draws; a technique never plots.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from compresslab import channels, checks
from compresslab.numerics.rounding_noise import signal_to_noise
from compresslab.weights import layers as network


@dataclass(frozen=True)
class Control:
    """One setting of a technique, named as the function's parameter.

    low, high, step, default  a slider's range, in the parameter's own unit (fractions, not percent)
    choices      the allowed values of a chooser (a drop-down); then low, high and step are not used
    unit         "%" shows a fraction as percent; any other text is shown behind the value
    alternative  controls with the same word here exclude one another; the one moved last is the one used
    help         one sentence, the slider's tooltip
    label        what stands before the slider; the name, where this is empty
    """

    name: str
    default: object
    low: float = 0.0
    high: float = 1.0
    step: float = 0.01
    choices: tuple = ()
    unit: str = ""
    alternative: str = ""
    help: str = ""
    label: str = ""


@dataclass(frozen=True)
class Picture:
    """One named array of a technique's anatomy and the kind of picture it wants.

    kind "histogram"  values: 1-d, what is counted;  cut: where the technique cuts, on the same axis;  above: True where
                      what lies above the cut goes, not what lies below;  marks: values to mark with a line each
         "matrix"     values: 2-d
         "spectrum"   values: 1-d, descending;  cut: how many are kept
         "images"     values: 3-d (count, height, width)
         "bars"       values: 1-d;  labels: one text a bar
         "stack"      values: 2-d (bars, parts), 0 or more;  labels: one text a bar;  classes: the names of the parts
         "targets"    values: 2-d (rows, classes), probabilities;  images: (rows, height, width), 0 to 1, or None;
                      labels: the true class of each row;  classes: the names of the columns
    title, caption    short heading; a sentence that says what to look for (also the text alternative)
    """

    name: str
    kind: str
    values: np.ndarray
    title: str
    caption: str = ""
    cut: float | None = None
    labels: tuple = ()
    axis: str = ""
    classes: tuple = ()
    images: np.ndarray | None = None
    above: bool = False
    marks: np.ndarray | None = None


@dataclass(frozen=True)
class Technique:
    """A technique as the sweep and the lab see it.

    name         the module's name
    apply        apply(model, **setting) -> new model; apply(model, images, **setting) where `calibration` is not 0
    controls     its settings, in the order shown
    fair_controls  label -> settings laid over the chosen ones: the comparison that keeps a claim honest
    anatomy      anatomy(model, compressed, setting) -> list of Picture, or with the Data as a fourth parameter; quick,
                 it runs at every slider move
    calibration  number of training images that `apply` wants as its second argument
    training     training(model, compressed, split, setting, seed) -> (split, loss) to retrain with, made anew for each
                 training; None for all of the split and cross entropy
    steps, lr    of the lab's retraining; None leaves them to the lab and to `train.fit`
    longer       in idle time the lab trains the chosen point again, for so many times the steps; 1 for never
    before       before(model, data, setting, seed, journal), a generator of events that returns the model which `apply`
                 is given: what a Recipe does before its last technique; None for nothing
    depends      what else its numbers depend on, as text; it is part of the journal's key
    source       source(setting=None, result=None) -> the Python expression that makes this technique, or a Recipe that
                 does the same; None for a technique that is called by its name
    fits         fits(model) -> whether the lab offers it for this network; None for any
    """

    name: str
    apply: Callable
    controls: tuple[Control, ...]
    fair_controls: Mapping[str, Mapping] = field(default_factory=dict)
    anatomy: Callable | None = None
    calibration: int = 0
    training: Callable | None = None
    steps: int | None = None
    longer: int = 1
    lr: float | None = None
    before: Callable | None = None
    depends: str = ""
    source: Callable | None = None
    fits: Callable | None = None


def pictures(technique: Technique, model: nn.Module, compressed: nn.Module, setting: Mapping, data: object) -> list:
    """Return the pictures of one compression; none for a technique without an anatomy."""
    if technique.anatomy is None:
        return []
    takes_data = len(inspect.signature(technique.anatomy).parameters) > 3
    return list(technique.anatomy(model, compressed, dict(setting), *([data] if takes_data else [])))


def check_alternatives(hint: str, **values: object) -> None:
    """Refuse settings of which not exactly one is given.

    hint    the two with an example each: "rank (16) or energy (0.9)"
    values  the settings by name, None where it is not given
    """
    present = [f"{name} {checks.words(value)}" for name, value in values.items() if value is not None]
    if len(present) != 1:
        raise ValueError(f"give either {hint}, one of them; got {' and '.join(present) or 'neither'}")


def check_amount(hint: str, **values: float | None) -> None:
    """Refuse a sparsity and a threshold of which not exactly one is given, in range."""
    check_alternatives(hint, **values)
    if values["threshold"] is None:
        checks.fraction("sparsity", values["sparsity"])
    else:
        checks.real("threshold", values["threshold"], 0, math.inf)


def check_flags(**values: object) -> None:
    """Refuse settings that are not True or False."""
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} is {checks.words(value)}; give True or False")


def check_share(name: str, value: float, hint: str) -> float:
    """Return a fraction after checking that it is above 0, up to 1."""
    if checks.fraction(name, value) == 0:
        raise ValueError(f"{name} is {checks.words(value)}; give a fraction above 0, to 1 {hint}")
    return float(value)


def check_model(
    model: nn.Module, layers: Iterable[str] | None, action: str, find: Callable = network.weight_layers
) -> nn.Module:
    """Return a model after checking that it has layers for a technique to `action` ("prune").

    find  `weight_layers`, or `find_matrices` for a technique that treats all weights
    """
    checks.module("model", model)
    if not find(model, layers):
        kinds = ", ".join(kind.__name__ for kind in network.TYPES)
        parts = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
        raise ValueError(f"model has no layer to {action}; those are {kinds}, it is made of {parts}")
    return model


def check_loaded(name: str, value: torch.Tensor) -> None:
    """Refuse a layer whose weights have no values."""
    if value.is_meta:
        raise ValueError(f"layer {name!r} is on the meta device, without values; load the weights first")


def check_weight(weight: network.Weight, action: str) -> None:
    """Refuse weights without values or order; the action is a participle ("quantized")."""
    name, value = weight.names[0], weight.value
    check_loaded(name, value)
    if not value.is_floating_point():
        raise ValueError(f"layer {name!r} has weights of {value.dtype}; only real floating-point ones are {action}")


def check_finite(name: str, value: torch.Tensor) -> None:
    """Refuse a layer whose weights are not finite."""
    if not value.sum().isfinite() and not value.isfinite().all():  # the sum is 20 times faster
        raise ValueError(f"layer {name!r} has weights that are not finite (nan or inf)")


def amounts_by_layer(
    name: str, value: object, layers: Iterable[str] | None, model: nn.Module, find: Callable = network.weight_layers
) -> dict:
    """Return a dict of layer name -> amount, by first names and in module order.

    value   an amount for all `layers`, or a dict of layer name -> amount, and then `layers` must be None
    find    as of `check_model`
    raises  ValueError for no layer, an unknown one, and two amounts for one layer; `name` is the setting's
    """
    if not isinstance(value, Mapping):
        return dict.fromkeys(find(model, layers), value)
    if layers is not None:
        raise ValueError(f"layers is {checks.words(layers)} and {name} is a dict, which names the layers; give one")
    if not value:
        raise ValueError(f"{name} is {checks.words(value)}; name at least one layer")
    wanted, namesakes = {}, {}
    for layer, amount in value.items():
        try:
            firsts = find(model, [layer])
        except ValueError as error:
            raise ValueError(f"{name} has {layer!r}; choose from {', '.join(find(model)) or 'none'}") from error
        for first in firsts:
            if wanted.setdefault(first, amount) != amount:
                pair = f"{namesakes[first]!r} and {layer!r}"
                raise ValueError(f"{name} has {pair}, which are one layer; give it one value")
            namesakes.setdefault(first, layer)
    return {first: wanted[first] for first in find(model, list(value))}


def find_neurons(model: nn.Module, images: torch.Tensor, layers: Iterable[str] | None = None) -> tuple[list, dict]:
    """Return the groups of neurons that may go, and reasons for layers that stay.

    layers  names of the layers whose neurons may go; None for all, the model's outputs being no news then
    """
    groups, reasons = channels.find_groups(model, images)
    if layers is not None:
        groups = [group for group in groups if {*group.producers} & {*layers}]
        return groups, {name: reason for name, reason in reasons.items() if name in layers}
    if groups:
        reasons = {name: reason for name, reason in reasons.items() if reason != channels.OUTPUT}
    return groups, reasons | {name: f"a {kind}" for name, kind in network.unsupported(model).items()}


def warn_left_alone(technique: str, reasons: Mapping[str, str]) -> None:
    """Warn of the parts of a model that a technique leaves as they are.

    reasons  dict of qualified layer name -> reason ("it is an LSTM")
    """
    groups = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name or "the model itself")
    parts = []
    for reason, names in groups.items():
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        parts.append(f"{', '.join(names[:6])}{more} ({reason})")
    if parts:
        warnings.warn(f"{technique} leaves alone {'; '.join(parts)}", UserWarning, stacklevel=3)


def inputs_first(weight: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """Return a layer's weight, or its mask, as a view (inputs, outputs, *kernel)."""
    return weight if getattr(module, "transposed", False) else weight.transpose(0, 1)


def thin_out(values: torch.Tensor, most: int = 1_000_000) -> np.ndarray:
    """Return every k-th number of a tensor, `most` of them at most, for a histogram."""
    step = -(-values.numel() // most) or 1
    return values.reshape(-1)[::step].float().cpu().numpy()


def as_images(weight: torch.Tensor, transposed: bool = False) -> torch.Tensor | None:
    """Return what each output reads as images, (outputs, inputs, height, width), or None.

    A Linear layer has images where it reads a square number of inputs, a convolution where its kernel is above 1 x 1.
    """
    if weight.dim() == 2:
        side = math.isqrt(weight.shape[1])
        return weight.view(len(weight), 1, side, side) if 1 < side**2 == weight.shape[1] else None
    if weight.dim() < 4 or weight[0, 0].numel() == 1:
        return None
    return (weight.transpose(0, 1) if transposed else weight).flatten(1, -3)


def picture_noise(model: nn.Module, before: list, after: list, data: object) -> Picture:
    """Picture the signal to noise of each layer's rounding; arguments as of `signal_to_noise`."""
    ratios, caption = signal_to_noise(model, before, after, data)
    names = tuple(weight.names[0] for weight in before)
    return Picture("noise", "bars", np.array(ratios), "Signal to noise", caption, labels=names, axis="dB")
