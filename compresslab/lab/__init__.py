"""The live lab: sliders that really compress and retrain a network, and draw what is measured.

lab = cl.lab.explore("zero_pruning", model="lenet_300_100", data="mnist")
lab.controls["sparsity"].value = 0.9
lab.wait()
lab.results
"""

import ipywidgets as widgets
from torch import nn

from compresslab import checks, models, techniques
from compresslab import data as datasets
from compresslab import journal as journals
from compresslab.lab import cells
from compresslab.lab.comparison import compare
from compresslab.lab.controls import Controls
from compresslab.lab.explorer import Lab
from compresslab.lab.plots import curve
from compresslab.lab.session import DATA, YOURS, Session, default_steps
from compresslab.lab.worker import threads_work

__all__ = ["Lab", "compare", "curve", "explore"]

MOST_STEPS = 500  # right end of the slider for retraining steps


def explore(
    technique,
    model="lenet_300_100",
    data="mnist",
    setting=None,
    steps=None,
    seed=0,
    journal=None,
    threads=None,
    compare=(),
):
    """Open a live lab of a technique; let the notebook show what it returns.

    Running a notebook's cell again closes the labs that the cell opened before.

    technique  a name, a module with a TECHNIQUE, or a Technique of your own
    model      name of a pretrained network, or any nn.Module
    data       "mnist", "fashion_mnist", or a data.Data
    setting    values to begin with, by the names of the technique's parameters
    steps      retraining steps; None takes a number by the model's name that leaves a point within a second or two
    seed       of the retraining
    journal    a Journal or a path; None takes the default one. Where that cannot be written, the lab measures all the
               same, and says that nothing is kept
    threads    False computes inside the callback, for places that show nothing from threads (Colab, known by itself)
    compare    labels of the fair controls to begin with
    returns    Lab
    raises     ValueError for names and values that the technique, the models or the data do not have
    """
    technique = techniques.get(technique)
    taken = {"model", "data", "steps", "seed"} & {control.name for control in technique.controls}
    if taken:
        raise ValueError(f"{technique.name} has a control named {taken.pop()!r}, a name that every lab uses itself")
    for label in compare:
        checks.choice("compare", label, technique.fair_controls)
    offered = [name for name in models.names() if technique.fits is None or technique.fits(models.build(name, seed=0))]
    if not isinstance(model, str):
        checks.module("model", model, also=" or the name of a pretrained network")
    own_model, model = _own(model, nn.Module, "model", offered)
    if own_model is not None and technique.fits is not None and not technique.fits(own_model):
        raise ValueError(f"model is a {type(own_model).__name__} with other layers than {technique.name} was made for")
    own_data, data = _own(data, datasets.Data, "data", DATA)
    if own_model is None and own_data is not None and own_data.name not in DATA:
        raise ValueError(
            f"model is {model!r}, which has no trained weights for {own_data.name!r}; give a trained model"
        )
    steps = default_steps(technique, model) if steps is None else checks.integer("steps", steps, 0)
    checks.integer("seed", seed, 0, 2**31 - 1)
    choosers = _choosers(offered, model, own_model, data, own_data, steps, seed)
    controls = Controls(technique, dict(setting or {}))
    fair = {label: _checkbox(label, label in compare) for label in technique.fair_controls}
    session = Session(technique, own_model, own_data, journals.open_or_forget(journal))
    cells.close_earlier()
    lab = Lab(session, controls, choosers, fair, threads_work() if threads is None else bool(threads))
    cells.remember(lab)
    return lab


def _own(given, kind, name, allowed):
    """(what a person brought, YOURS), or (None, the name that was given)."""
    if isinstance(given, kind):
        return given, YOURS
    return None, checks.choice(name, given, allowed)


def _choosers(offered, model, own_model, data, own_data, steps, seed):
    """The widgets that every lab has, by name."""
    style, layout = {"description_width": "initial"}, widgets.Layout(width="auto", margin="2px 8px 2px 2px")
    common = {"style": style, "layout": layout}
    model_names = [*offered, *([YOURS] if own_model is not None else [])]
    data_names = [*DATA, *([YOURS] if own_data is not None else [])]
    wide = {"style": style, "layout": widgets.Layout(width="230px", margin="2px 8px 2px 2px")}
    narrow = {"style": style, "layout": widgets.Layout(width="130px", margin="2px 8px 2px 2px")}
    most = max(MOST_STEPS, steps)
    return {
        "model": widgets.Dropdown(options=model_names, value=model, description="model", **common),
        "data": widgets.Dropdown(options=data_names, value=data, description="data", **common),
        "steps": widgets.IntSlider(
            steps, min=0, max=most, step=5, description="steps", tooltip="Retraining steps; 0 for none", **wide
        ),
        "seed": widgets.BoundedIntText(
            seed, min=0, max=2**31 - 1, description="seed", tooltip="Order of the training images", **narrow
        ),
    }


def _checkbox(label, value):
    tooltip = f"Measure {label} at the same settings, too"
    return widgets.Checkbox(
        value, description=label, indent=False, tooltip=tooltip, layout=widgets.Layout(width="auto")
    )
