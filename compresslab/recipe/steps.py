"""The steps of a recipe: what each may be, its settings checked, and how it is written."""

import contextlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from compresslab import checks, knowledge, layers, techniques, train
from compresslab.journal import plain
from compresslab.techniques import Technique
from compresslab.trial import Trial, complete_setting

RETRAIN, SAVE = "retrain", "save"
TEACHER = {"temperature": 4.0, "alpha": 0.9}  # of a retraining whose teacher is the model that the recipe was given
TRAINING = ("epochs", "steps", "lr", "batch_size", "precision")
NOTHING = Technique(RETRAIN, layers.duplicate, ())  # a retraining is a Trial of a technique that does nothing


@dataclass(frozen=True)
class Step:
    """One step of a Recipe.

    name     a technique's name, "retrain" or "save"
    setting  its parameters by name: the technique's own; of parameters that exclude one another, the first has the
             lab's default where none is given;
             of "retrain" epochs or steps, lr, batch_size, precision (as in `train.fit`), and teacher: True learns from
             the model that the recipe was given, with temperature and alpha (as in `distillation.loss`);
             of "save" path. Kept as plain values, to be read; None counts as not given
    raises   ValueError for anything else
    """

    name: str
    setting: Mapping = field(default_factory=dict, hash=False)

    def __post_init__(self):
        checks.choice("step", self.name, [*techniques.names(), RETRAIN, SAVE])
        if not isinstance(self.setting, Mapping):
            raise ValueError(f"{self.name} has the setting {self.setting!r}; give a dict of parameters")
        given = {name: os.fspath(one) if isinstance(one, os.PathLike) else one for name, one in self.setting.items()}
        setting = {name: plain(name, value) for name, value in given.items()}
        if self.name == SAVE and (list(setting) != ["path"] or not isinstance(setting["path"], str)):
            raise ValueError(f'save has the setting {setting!r}; give {{"path": "net.clab"}}')
        if self.name == RETRAIN:
            setting = {name: value for name, value in setting.items() if value is not None}
            _check_retraining(setting)
        if self.compresses:
            complete_setting(techniques.get(self.name), setting)
            setting = _one_of_each(techniques.get(self.name), setting)
        object.__setattr__(self, "setting", MappingProxyType(setting))
        if self.name == RETRAIN:
            with about(self):
                _check_values(**setting)

    def __reduce__(self):
        return Step, (self.name, dict(self.setting))

    @property
    def compresses(self):
        """Whether this step is a technique."""
        return self.name not in (RETRAIN, SAVE)

    def trial(self, seed):
        """The step as a Trial: of a technique without retraining, or of a retraining alone."""
        if self.compresses:
            return Trial(self.name, self.setting, steps=0, seed=seed)
        training = {name: self.setting[name] for name in TRAINING if name in self.setting}
        return Trial(NOTHING, seed=seed, **(training if self.name == RETRAIN else {"steps": 0}))

    @property
    def teaching(self):
        """Of a retraining with a teacher how it teaches, {"temperature": …, "alpha": …}; else empty."""
        given = {name: self.setting[name] for name in TEACHER if name in self.setting}
        return TEACHER | given if self.setting.get("teacher") else {}

    def told(self, trial):
        """The step and its complete setting, as the key of what it leads to holds them; `trial` is its resolved one."""
        taught = {"teacher": True} | self.teaching if self.teaching else {}
        return [self.name, trial.setting if self.compresses else length(trial) | taught]

    def changed(self, **setting):
        """The step with other settings; one that excludes another (epochs, steps; sparsity, threshold) replaces it."""
        gone = {"epochs", "steps"} if self.name == RETRAIN else set()
        gone = _alternatives(self.name, setting) if self.compresses else gone
        gone = gone if gone & set(setting) else set()
        return Step(self.name, {name: value for name, value in self.setting.items() if name not in gone} | setting)

    def __str__(self):
        told = ", ".join(f"{name}={value!r}" for name, value in self.setting.items())
        return f"{self.name}({told})"


def length(trial):
    """How a Trial was trained, or a Result, by the names that both have for it."""
    return {name: getattr(trial, name) for name in ("steps", "lr", "batch_size", "precision")}


@contextlib.contextmanager
def about(step):
    """An error over a setting, a model or a loss in here says which step it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{step}: {error}") from error
    except ArithmeticError as error:
        raise ArithmeticError(f"{step}: {error}") from error


def step_of(given):
    """The Step of one item of a recipe's list; raises ValueError."""
    if isinstance(given, Step):
        return given
    if isinstance(given, str):
        return Step(given)
    if isinstance(given, Mapping) and "name" in given and set(given) <= {"name", "setting"}:
        return Step(**given)
    if isinstance(given, (list, tuple)) and len(given) in (1, 2) and isinstance(given[0], str):
        return Step(*given)
    raise ValueError(f"a step is {checks.words(given)}; give (name, setting): ('zero_pruning', {{'sparsity': 0.9}})")


def written(steps):
    """Steps as the Python expression of their Recipe."""
    lines = (f"    ({step.name!r}, {dict(step.setting)!r}),\n" for step in steps)
    return f"cl.Recipe([\n{''.join(lines)}])"


def _alternatives(name, setting):
    """The parameters of a technique that exclude one of a setting, that one included."""
    controls = {control.name: control.alternative for control in techniques.get(name).controls}
    groups = {controls[one] for one in setting if controls.get(one)}
    return {one for one, group in controls.items() if group in groups}


def _one_of_each(technique, setting):
    """The setting with the first of each parameters that exclude one another, where none of them has a value."""
    controls = [one for one in technique.controls if one.alternative]
    absent = {one.name for one in controls if setting.get(one.name) is None}
    chosen = {one.alternative for one in controls if one.name not in absent}
    first = {one.alternative: one for one in reversed(controls) if one.default is not None}
    added = {one.name: one.default for group, one in first.items() if group not in chosen}
    return {name: value for name, value in setting.items() if name not in absent} | added


def _check_retraining(setting):
    for name in setting:
        checks.choice("retrain", name, [*TRAINING, "teacher", *TEACHER])
    if "epochs" in setting and "steps" in setting:
        raise ValueError(f"retrain has epochs={setting['epochs']!r} and steps={setting['steps']!r}; give one of them")
    teacher = setting.get("teacher", False)
    if not isinstance(teacher, bool):
        raise ValueError(f"retrain has teacher={teacher!r}; give True to learn from the model that the recipe is given")
    if not teacher and (lost := [name for name in TEACHER if name in setting]):
        raise ValueError(f"retrain has {lost[0]}={setting[lost[0]]!r} and no teacher; add teacher=True")


def _check_values(epochs=0, steps=0, lr=None, batch_size=1, precision="auto", teacher=False, **teaching):
    """Raise ValueError for what `train.fit` and `knowledge.loss` do not take."""
    checks.real("epochs", epochs, 0, math.inf)
    checks.integer("steps", steps, 0)
    if lr is not None:
        checks.real("lr", lr, 0, math.inf)
    checks.integer("batch_size", batch_size, 1)
    if precision != "auto":
        train.Precision.named(precision)
    knowledge.check_setting(**TEACHER | teaching, knowledge="response", label_smoothing=0)
