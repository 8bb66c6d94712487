"""What a measurement depends on, written down completely: setting with its defaults, training, fingerprints.

Two Trials that lead to the same numbers have the same `Result.key`, whoever computes them and wherever; two that may
not differ in it. Hence digests of the network, of the data and of the technique's own code.
"""

import functools
import inspect
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

import compresslab
from compresslab import checks, fingerprints, layers, models, techniques, train
from compresslab.journal import Result, plain

LARGEST_SEED = 2**63 - 1  # what SQLite keeps and torch takes


@dataclass(frozen=True)
class Trial:
    """One technique with one setting, and the retraining after it, without the model.

    technique       a technique's name, or a Technique of your own
    setting         its parameters by name
    steps, epochs   length of the retraining: one of the two, or neither for one epoch; 0 for none
    seed            of the retraining, and of a technique that takes one
    precision       "auto" or a name that `train.fit` knows
    lr, batch_size  as in `train.fit`; no lr for the technique's own, or else the one that is found there
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


def checked(trial, data):
    """The Trial with its technique looked up, its setting complete and its length in steps.

    raises  ValueError for anything that the technique does not have, or `train.fit` does not take
    """
    technique = techniques.get(trial.technique)
    batch_size, steps = _length(trial, len(data.train))
    seed = checks.integer("seed", trial.seed, 0, LARGEST_SEED)
    if trial.precision != "auto":
        train.Precision.named(trial.precision)
    lr = technique.lr if trial.lr is None else trial.lr
    lr = None if lr is None else float(checks.real("lr", lr, 0, math.inf))
    setting = complete_setting(technique, trial.setting)
    length = {"steps": steps, "epochs": None, "batch_size": batch_size}
    return replace(trial, technique=technique, setting=setting, seed=seed, lr=lr, **length)


def resolved(trial, model, data):
    """The `checked` Trial with "auto" replaced by the precision that training will run in on this machine."""
    trial = checked(trial, data)
    if trial.precision != "auto" or trial.steps == 0:
        return trial
    return replace(trial, precision=train.choose_precision(model, _device(model)).name)


def blank_results(trial, model, data, names):
    """The Results of a `resolved` Trial, one-shot and retrained, with nothing measured yet: their keys are final."""
    one_shot = Result(
        technique=trial.technique.name,
        setting=trial.setting,
        stage="one-shot",
        accuracy=math.nan,
        file_bytes=0,
        parameters=0,
        nonzeros=0,
        seconds=0.0,
        seed=trial.seed,
        steps=0,
        model=names.get("model") or name_of(model),
        data=names.get("data") or data.name,
        versions=_versions(trial.technique, _device(model)),
        model_fingerprint=fingerprints.of_model(model),
        data_fingerprint=data.fingerprint,
    )
    training = {"precision": trial.precision, "lr": trial.lr, "batch_size": trial.batch_size}
    return one_shot, replace(one_shot, stage="retrained", steps=trial.steps, **training)


def complete_setting(technique, setting):
    """A setting as plain values, with the defaults of the controls that are not given, in the controls' order.

    raises  ValueError for a parameter that the technique does not have, a choice that is not one of the control's,
            or two parameters that exclude one another
    """
    setting = {name: plain(name, value) for name, value in setting.items()}
    defaults, open_ended = _parameters(technique)
    controls = {control.name: control for control in technique.controls}
    known = [*controls, *(name for name in defaults if name not in controls)]
    if not open_ended and (unknown := [name for name in setting if name not in known]):
        raise ValueError(f"{technique.name} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
    alternatives = {name for name, control in controls.items() if control.alternative}
    setting = {name: value for name, value in setting.items() if value is not None or name not in alternatives}
    _refuse_both(setting, controls)
    full = {}
    for name, control in controls.items():
        if name in setting or name not in alternatives:
            default = defaults.get(name, inspect.Parameter.empty)
            full[name] = setting.get(name, control.default if default in (inspect.Parameter.empty, None) else default)
        if control.choices and isinstance(full.get(name), str):
            checks.choice(name, full[name], control.choices)
    others = {name: value for name, value in setting.items() if name not in controls}
    return full | {name: value for name, value in others.items() if name not in defaults or value != defaults[name]}


def _refuse_both(setting, controls):
    """Raise ValueError where two parameters are given that exclude one another."""
    groups = {}
    for name in setting:
        if name in controls and (group := controls[name].alternative):
            groups.setdefault(group, []).append(name)
    for names in groups.values():
        if len(names) > 1:
            given = " and ".join(f"{name}={setting[name]!r}" for name in names)
            hint = f"[{{{names[0]!r}: …}}, {{{names[1]!r}: …}}]"
            raise ValueError(f"{given} exclude one another; give one in a setting, or a list of settings: {hint}")


def takes_seed(technique):
    """Whether the technique's function has a parameter `seed`."""
    return "seed" in inspect.signature(technique.apply).parameters


def name_of(model):
    """The name of the reference network that `model` is an example of, or else of its class."""
    shape = _shape(model)
    return next((name for name in models.names() if _reference_shape(name) == shape), type(model).__name__)


@functools.cache
def _reference_shape(name):
    return _shape(models.build(name, seed=0))


def _shape(model):
    state = {name: tuple(getattr(one, "shape", ())) for name, one in layers.effective_state(model).items()}
    return state, [
        (name, fingerprints.kind_of(one)) for name, one in model.named_modules() if "parametrizations" not in name
    ]


def _length(trial, images):
    """Batch size and number of training steps, as `train.fit` makes them from the same arguments."""
    if trial.steps is not None and trial.epochs is not None:
        raise ValueError(f"steps is {trial.steps!r} and epochs is {trial.epochs!r}; give one of the two")
    batch_size = train.batch_size_for(images, trial.batch_size)
    if trial.steps is not None:
        return batch_size, checks.integer("steps", trial.steps, 0)
    epochs = checks.real("epochs", 1 if trial.epochs is None else trial.epochs, 0, math.inf)
    return batch_size, math.ceil(epochs * (images // batch_size))


def _device(model):
    """Where `train.fit` trains the model."""
    return "cuda" if torch.cuda.is_available() else str(next(model.parameters(), torch.empty(0)).device)


def _versions(technique, device):
    versions = {"compresslab": compresslab.__version__, "python": platform.python_version()}
    return versions | {
        "torch": str(torch.__version__),
        "device": device,
        "technique": fingerprints.of_technique(technique),
    }


def _parameters(technique):
    """Defaults of the function's parameters behind model (and images), by name; whether it takes others as well."""
    given = list(inspect.signature(technique.apply).parameters.values())
    named = [one for one in given if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    defaults = {one.name: one.default for one in named[1 + bool(technique.calibration) :]}
    return defaults, any(one.kind == one.VAR_KEYWORD for one in given)
