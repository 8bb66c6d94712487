"""The live lab: sliders that really compress and retrain a network, and draw what is measured.

lab = cl.lab.explore("zero_pruning", model="lenet_300_100", data="mnist")
lab.controls["sparsity"].value = 0.9
lab.wait()
lab.results
"""

from collections.abc import Iterable

from torch import nn

from compresslab import checks, models, techniques
from compresslab import data as datasets
from compresslab.experiments import journal as journals
from compresslab.lab import cells, page, sharing
from compresslab.lab.comparison import compare
from compresslab.lab.constraint_box import constrain
from compresslab.lab.controls import Controls
from compresslab.lab.explorer import Lab
from compresslab.lab.measurements import DATA, YOURS, Measurements, default_steps
from compresslab.lab.plots import curve
from compresslab.lab.worker import threads_work

__all__ = ["Lab", "compare", "constrain", "curve", "explore", "open"]


def explore(
    technique,
    model: str | nn.Module = "lenet_300_100",
    data: str | datasets.Data = "mnist",
    setting: dict | None = None,
    steps: int | None = None,
    seed: int = 0,
    journal=None,
    threads: bool | None = None,
    compare: Iterable[str] = (),
) -> Lab:
    """Open a live lab of a technique; let the notebook show what it returns.

    technique  a name, a module with a TECHNIQUE, or a Technique of your own
    model      name of a pretrained network, or any nn.Module
    data       "mnist", "fashion_mnist", or a data.Data
    setting    values to begin with, by the names of the technique's parameters
    steps      retraining steps; None takes a number that leaves a point within a second or two
    seed       of the retraining
    journal    a Journal or a path; None takes the default one, or none where that cannot be written
    threads    False computes inside the callback, for places that show nothing from threads (Colab, known by itself)
    compare    labels of the fair controls to begin with
    raises     ValueError for names and values that the technique, the models or the data do not have

    Running a notebook's cell again closes the labs that the cell opened before.
    """
    technique = techniques.get(technique)
    taken = {"model", "data", "steps", "seed"} & {control.name for control in technique.controls}
    if taken:
        raise ValueError(f"{technique.name} has a control named {taken.pop()!r}, a name that every lab uses itself")
    for label in compare:
        checks.choice("compare", label, technique.fair_controls)
    fits, own_model, own_data = technique.fits or (lambda network: True), None, None
    model_names, data_names = [name for name in models.names() if fits(models.build(name, seed=0))], list(DATA)
    if isinstance(model, str):
        checks.choice("model", model, model_names)
    else:
        own_model, model = checks.module("model", model, also=" or the name of a pretrained network"), YOURS
        model_names.append(YOURS)
        if not fits(own_model):
            kind = type(own_model).__name__
            raise ValueError(f"model is a {kind} with other layers than {technique.name} was made for")
    if isinstance(data, datasets.Data):
        own_data, data = data, YOURS
        data_names.append(YOURS)
        if own_model is None and own_data.name not in DATA:
            hint = f"which has no trained weights for {own_data.name!r}; give a trained model"
            raise ValueError(f"model is {model!r}, {hint}")
    checks.choice("data", data, data_names)
    steps = default_steps(technique, model) if steps is None else checks.integer("steps", steps, 0)
    checks.integer("seed", seed, 0, page.LARGEST_SEED)
    chosen = {"model": model, "data": data, "steps": steps, "seed": seed}
    lab = Lab(
        Measurements(technique, own_model, own_data, journals.open_or_forget(journal)),
        Controls(technique, dict(setting or {})),
        page.make_choosers({"model": model_names, "data": data_names}, chosen),
        tuple(compare),
        threads_work() if threads is None else bool(threads),
    )
    cells.replace_earlier(lab)
    return lab


def open(code: str, model: nn.Module | None = None, data: datasets.Data | None = None) -> Lab:  # noqa: A001
    """Open the lab that a short code stands for: the word that a neighbour's *show the code* prints.

    model, data  what the code calls "yours": a model and data of your own
    raises       ValueError for a word that is no code, and for a model or data that it needs
    """
    settings = sharing.read_short_code(code)
    for name, value in (("model", model), ("data", data)):
        if settings[name] == YOURS and value is None:
            raise ValueError(f"{name} is None; this lab was opened with {name} of a person's own, so give yours")
        settings[name] = settings[name] if value is None else value
    return explore(**settings)
