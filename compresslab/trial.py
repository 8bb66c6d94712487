"""What a measurement depends on, written down completely: setting with its defaults, training, fingerprints.

Two Trials that lead to the same numbers have the same `Result.key`, whoever computes them and wherever; two that may
not differ in it. Hence digests of the network, of the data and of the technique's own code.
"""

import functools
import hashlib
import inspect
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import CellType, CodeType

import torch

import compresslab
from compresslab import checks, layers, models, techniques, train
from compresslab.journal import Result, plain

_FIT = inspect.signature(train.fit).parameters
LARGEST_SEED = 2**63 - 1  # what SQLite keeps and torch takes


@dataclass(frozen=True)
class Trial:
    """One technique with one setting, and the retraining after it, without the model.

    technique       a technique's name, or a Technique of your own
    setting         its parameters by name
    steps, epochs   length of the retraining: one of the two, or neither for one epoch; 0 for none
    seed            of the retraining, and of a technique that takes one
    precision       "auto" or a name that `train.fit` knows
    lr, batch_size  as in `train.fit`; no lr for the technique's own, or else the default there
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
    checks.integer("seed", trial.seed, 0, LARGEST_SEED)
    if trial.precision != "auto":
        train.Precision.named(trial.precision)
    lr = checks.real("lr", default_lr(technique) if trial.lr is None else trial.lr, 0, math.inf)
    setting = complete_setting(technique, trial.setting)
    return replace(trial, technique=technique, setting=setting, steps=steps, epochs=None, lr=lr, batch_size=batch_size)


def default_lr(technique):
    """Learning rate of the retraining after a technique, unless a Trial has its own."""
    return _FIT["lr"].default if technique.lr is None else technique.lr


def resolved(trial, model, data):
    """The `checked` Trial with "auto" replaced by the precision that training will run in on this machine."""
    trial = checked(trial, data)
    if trial.precision != "auto" or trial.steps == 0:
        return trial
    chosen = train.calibrate(model, data.train.images, trial.batch_size, _device(model))
    return replace(trial, precision=chosen.name)


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
        seed=int(trial.seed),
        steps=0,
        model=names.get("model") or name_of(model),
        data=names.get("data") or data.name,
        versions=_versions(trial.technique, _device(model)),
        model_fingerprint=fingerprint(model),
        data_fingerprint=data.fingerprint,
    )
    training = {"precision": trial.precision, "lr": float(trial.lr), "batch_size": trial.batch_size}
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


def fingerprint(model):
    """SHA-256 (hex) of a model: its layers with their plain attributes, the code of those that torch did not write, its
    tensors as they act.

    A copy, and the same model saved and loaded, have the same fingerprint; whether it is in training mode is left out.
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        told = (name, kind_of(module), module.extra_repr(), _attributes(module), *_own_code(type(module)))
        digest.update(repr(told).encode())
    for name, tensor in [*layers.effective_state(model).items(), *model.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    digest.update(repr([name for name, weight in model.named_parameters() if not weight.requires_grad]).encode())
    return digest.hexdigest()


def _attributes(module):
    """What a module's forward may read beside parameters and buffers: public attributes, of plain values or tensors."""
    told = {}
    for name, value in sorted(vars(module).items()):
        if isinstance(value, torch.Tensor):
            value = hashlib.sha256(_bytes(value)).hexdigest()
        if not name.startswith("_") and name != "training" and _is_plain(value):
            told[name] = list(value) if isinstance(value, tuple) else value
    return told


def _bytes(tensor):
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _is_plain(value):
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    return value is None or isinstance(value, (bool, int, float, str))


def name_of(model):
    """The name of the reference network that `model` is an example of, or else of its class."""
    shape = _shape(model)
    return next((name for name in models.names() if _reference_shape(name) == shape), type(model).__name__)


@functools.cache
def _reference_shape(name):
    return _shape(models.build(name, seed=0))


def _shape(model):
    state = {name: tuple(tensor.shape) for name, tensor in layers.effective_state(model).items()}
    return state, [(name, kind_of(one)) for name, one in model.named_modules() if "parametrizations" not in name]


def kind_of(module):
    """Name of a module's class, without the "Parametrized" that torch's parametrize puts before it."""
    return type(module).__name__.removeprefix("Parametrized")


def _length(trial, images):
    """Batch size and number of training steps, as `train.fit` makes them from the same arguments."""
    if trial.steps is not None and trial.epochs is not None:
        raise ValueError(f"steps is {trial.steps!r} and epochs is {trial.epochs!r}; give one of the two")
    batch_size = train.batch_size_for(images, trial.batch_size)
    if trial.steps is not None:
        return batch_size, checks.integer("steps", trial.steps, 0)
    epochs = checks.real("epochs", 1 if trial.epochs is None else trial.epochs, 0, math.inf)
    return batch_size, math.ceil(epochs * (images // batch_size))


def code_digest(technique):
    """Digest (16 hex digits) of what a technique's functions do, which changes with their code."""
    seen, functions = set(), [one for one in (technique.apply, technique.training) if one is not None]
    told = technique.depends + "".join(part for function in functions for part in _code(function, seen))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _device(model):
    """Where `train.fit` trains the model."""
    return "cuda" if torch.cuda.is_available() else str(next(model.parameters(), torch.empty(0)).device)


def _versions(technique, device):
    versions = {"compresslab": compresslab.__version__, "python": platform.python_version()}
    return versions | {"torch": str(torch.__version__), "device": device, "technique": code_digest(technique)}


def _parameters(technique):
    """Defaults of the function's parameters behind model (and images), by name; whether it takes others as well."""
    given = list(inspect.signature(technique.apply).parameters.values())
    named = [one for one in given if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    defaults = {one.name: one.default for one in named[1 + bool(technique.calibration) :]}
    return defaults, any(one.kind == one.VAR_KEYWORD for one in given)


def _own_code(kind):
    """What identifies the code of a module's class, if it is neither torch's nor the workbook's."""
    written = [one for one in kind.__mro__ if not one.__module__.startswith(("torch.", "compresslab.", "builtins"))]
    return [part for one in written for method in vars(one).values() for part in _code(method, set())]


def _code(thing, seen):
    """What a function does, as text that changes with it: bytecode, defaults, what it uses of its own module."""
    function = inspect.unwrap(thing.func if isinstance(thing, functools.partial) else thing)
    code = getattr(function, "__code__", None)
    if code is None or function in seen:
        return
    seen.add(function)
    yield from _bytecode(code)
    used = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    used += [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
    used += [function.__globals__[name] for name in code.co_names if name in function.__globals__]
    for value in used:
        if value is None or isinstance(value, (bool, int, float, str, tuple)):
            yield repr(value)
        elif getattr(value, "__module__", None) == function.__module__:
            yield from (part for one in [value, *getattr(value, "__dict__", {}).values()] for part in _code(one, seen))


def _bytecode(code):
    """The instructions and constants of a code object, the same in every process."""
    yield f"{code.co_code.hex()} {code.co_names}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _bytecode(constant)
        else:  # a set's order changes from process to process
            yield str(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)
