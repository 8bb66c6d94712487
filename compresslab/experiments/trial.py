"""A trial: a technique, its complete setting and the retraining, with all that the measured numbers depend on.

Two Trials have the same `Result.key` only if they lead to the same numbers, whoever computes them and wherever; hence
fingerprints of the network, of the data and of the technique's own code.
"""

import functools
import inspect
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

import compresslab
from compresslab import checks, models, techniques, train
from compresslab import data as datasets
from compresslab.experiments import fingerprints
from compresslab.experiments.journal import Result, plain, training_of
from compresslab.techniques import Technique
from compresslab.weights import layers

LARGEST_SEED = 2**63 - 1  # what SQLite keeps and torch takes


@dataclass(frozen=True)
class Trial:
    """One technique with one setting, and the retraining after it, without the model.

    technique, setting  a technique's name, or a Technique of your own; its parameters by name
    steps, epochs   length of the retraining: one of the two, or neither for one epoch; 0 for none
    seed            of the retraining, and of a technique that takes one
    precision, lr, batch_size  as in `train.fit`; without lr the technique's own, or else the one that `train.fit` finds
    """

    technique: object
    setting: Mapping = field(default_factory=dict)
    steps: int | None = None
    epochs: float | None = None
    seed: int = 0
    precision: str = "auto"
    lr: float | None = None
    batch_size: int | None = None

    def __str__(self):
        shown = "".join(f"{name}={value!r}, " for name, value in self.setting.items())
        return f"{techniques.get(self.technique).name}({shown}seed={self.seed})"


def load_subject(
    model: nn.Module | str, data: datasets.Data | str, names: Mapping | None = None
) -> tuple[nn.Module, datasets.Data, dict]:
    """Return (model, data, names), looked up where model or data are given by name.

    names    {"model": …, "data": …}: how Results call them, instead of their own names
    raises   ValueError for an unknown name, and for anything that is no model or no whole data set
    """
    data = datasets.load(data) if isinstance(data, str) else data
    if not hasattr(data, "train") or not hasattr(data, "validation"):
        raise ValueError(f"data is a {type(data).__name__}; give a whole data set, as cl.data.load returns")
    names = dict(names or {})
    if isinstance(model, str):
        names, model = {"model": model} | names, models.pretrained(model, data.name)
    checks.module("model", model, also=" or the name of a pretrained network")
    return model, data, names


def check_trial(trial: Trial, data: datasets.Data) -> Trial:
    """Look up the technique of a Trial, and complete its setting and length.

    raises  ValueError for anything that the technique does not have, or `train.fit` does not take
    """
    technique = techniques.get(trial.technique)
    batch_size, per_epoch = train.plan_batches(data.train, trial.batch_size)
    steps = train.count_steps(trial.epochs, trial.steps, per_epoch)
    seed = checks.integer("seed", trial.seed, 0, LARGEST_SEED)
    if trial.precision != "auto":
        train.Precision.named(trial.precision)
    lr = technique.lr if trial.lr is None else trial.lr
    lr = None if lr is None else float(checks.real("lr", lr, 0, math.inf))
    setting = complete_setting(technique, trial.setting)
    training = {"seed": seed, "lr": lr, "steps": steps, "epochs": None, "batch_size": batch_size}
    return replace(trial, technique=technique, setting=setting, **training)


def resolved(trial: Trial, model: nn.Module, data: datasets.Data) -> Trial:
    """Check a Trial, and replace "auto" by the precision of this machine."""
    trial = check_trial(trial, data)
    if trial.precision != "auto" or trial.steps == 0:
        return trial
    return replace(trial, precision=train.choose_precision(model, _find_device(model)).name)


def blank_results(trial: Trial, model: nn.Module, data: datasets.Data, names: Mapping) -> tuple[Result, Result]:
    """Make the Results of a resolved Trial with nothing measured; their keys are final."""
    versions = {"compresslab": compresslab.__version__, "python": platform.python_version()}
    versions |= {"torch": str(torch.__version__), "device": _find_device(model)}
    versions |= {"technique": fingerprints.of_technique(trial.technique)}
    one_shot = Result(
        trial.technique.name, trial.setting, "one-shot", accuracy=math.nan, file_bytes=0, parameters=0, nonzeros=0,
        seconds=0.0, seed=trial.seed, steps=0, model=names.get("model") or name_of(model),
        data=names.get("data") or data.name, versions=versions, model_fingerprint=fingerprints.of_model(model),
        data_fingerprint=data.fingerprint,
    )  # fmt: skip
    return one_shot, replace(one_shot, stage="retrained", **training_of(trial))


def complete_setting(technique: Technique, setting: Mapping) -> dict:
    """Complete a setting by the defaults of missing controls, in the controls' order.

    raises  ValueError for an unknown parameter or choice, and for two parameters that exclude one another
    """
    setting = {name: plain(name, value) for name, value in setting.items()}
    controls = {control.name: control for control in technique.controls}
    parameters = list(inspect.signature(technique.apply).parameters.values())
    named = [entry for entry in parameters if entry.kind not in (entry.VAR_KEYWORD, entry.VAR_POSITIONAL)]
    defaults = {entry.name: entry.default for entry in named[1 + bool(technique.calibration) :]}  # after model, images
    unknown = [name for name in setting if name not in {**controls, **defaults}]
    if unknown and not any(entry.kind == entry.VAR_KEYWORD for entry in parameters):
        raise ValueError(
            f"{technique.name} has no parameter {unknown[0]!r}; it has {', '.join({**controls, **defaults})}"
        )
    alternatives = {name: control.alternative for name, control in controls.items() if control.alternative}
    setting = {name: value for name, value in setting.items() if value is not None or name not in alternatives}
    _refuse_alternatives(setting, alternatives)
    complete = {}
    for name, control in controls.items():
        if name in setting or name not in alternatives:
            default = defaults.get(name, inspect.Parameter.empty)
            default = control.default if default in (inspect.Parameter.empty, None) else default
            complete[name] = setting.get(name, default)
        if control.choices and isinstance(complete.get(name), str):
            checks.choice(name, complete[name], control.choices)
    rest = {name: value for name, value in setting.items() if name not in controls}
    return complete | {name: value for name, value in rest.items() if name not in defaults or value != defaults[name]}


def _refuse_alternatives(setting, alternatives):
    """Raise ValueError for two parameters of one group (name -> group)."""
    first = {}  # group -> the parameter of it that is set
    for name in setting:
        if name in alternatives and (before := first.setdefault(alternatives[name], name)) != name:
            values = f"{before}={setting[before]!r} and {name}={setting[name]!r}"
            hint = f"[{{{before!r}: …}}, {{{name!r}: …}}]"
            raise ValueError(f"{values} exclude one another; give one in a setting, or a list of settings: {hint}")


def takes_seed(technique: Technique) -> bool:
    """Tell whether the technique's function has a parameter `seed`."""
    return "seed" in inspect.signature(technique.apply).parameters


def name_of(model: nn.Module) -> str:
    """Return the name of the reference network that a model is, or else its class."""
    structure = _find_structure(model)
    matches = (name for name in models.names() if _find_reference_structure(name) == structure)
    return next(matches, type(model).__name__)


@functools.cache
def _find_reference_structure(name):
    return _find_structure(models.build(name, seed=0))


def _find_structure(model):
    """Shapes of a model's tensors and kinds of its modules, by name."""
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in layers.effective_state(model).items()}
    modules = [(name, module) for name, module in model.named_modules() if "parametrizations" not in name]
    return shapes, [(name, fingerprints.kind_of(module)) for name, module in modules]


def _find_device(model):
    """Return the device on which `train.fit` trains the model."""
    return "cuda" if torch.cuda.is_available() else str(next(model.parameters(), torch.empty(0)).device)
