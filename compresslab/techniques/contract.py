"""What a technique tells the rest of the workbook about itself, as plain data.

A technique is a plain function, model and setting in, new model out. Beside it, its module puts one `TECHNIQUE`:
the controls that the lab turns into sliders, the fair controls it is to be compared with, and the anatomy, the arrays
that show what happened inside. The lab draws; a technique never plots.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np


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
    anatomy      anatomy(model, compressed, setting) -> list of Picture; quick, it runs at every slider move
                 with a fourth parameter it is given the Data as well, to run images through both
    calibration  number of training images that `apply` wants as its second argument
    training     training(model, compressed, split, setting, seed) -> (split, loss): on what, and with which loss of
                 `train.fit`, the compressed model is trained; None for all of the split and cross entropy. Called anew
                 for each training, so that a loss with parameters of its own begins fresh
    steps        retraining steps that the lab begins with; None leaves it to the lab
    lr           of that retraining, where the one that `train.fit` finds is not right
    longer       in idle time the lab trains the chosen point once more, for so many times the steps: for models that
                 begin with fresh weights, and have not learned all they can in a second; 1 for never
    before       before(model, data, setting, seed, journal), a generator of events that returns the model which `apply`
                 is given: what a Recipe does before its last technique; None for nothing
    depends      what else its numbers depend on, as text; it is part of the journal's key
    source       source(setting=None, result=None) -> the Python expression that makes this technique; with a setting,
                 that of a Recipe which does the same, followed by the training of a Result; None for a technique that
                 is called by its name
    fits         fits(model) -> whether it is made for such a network: the lab offers those alone; None for any
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


def pictures(technique, model, compressed, setting, data):
    """The technique's anatomy of one compression, as a list of Picture; empty for a technique without one.

    data  the Data, for an anatomy that takes it
    """
    if technique.anatomy is None:
        return []
    takes_data = len(inspect.signature(technique.anatomy).parameters) > 3
    return list(technique.anatomy(model, compressed, dict(setting), *([data] if takes_data else [])))


def warn_left_alone(technique, reasons):
    """Say, in one UserWarning, which parts of a model a technique leaves as they are, and why.

    reasons  dict of qualified layer name -> reason ("it is an LSTM"); empty: nothing is said
    """
    groups = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name or "the model itself")
    told = "; ".join(f"{_listed(names)} ({reason})" for reason, names in groups.items())
    if told:
        warnings.warn(f"{technique} leaves alone {told}", UserWarning, stacklevel=4)


def _listed(names, most=6):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
