"""The steps of a recipe: what each may be, its settings checked, and how it is written."""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from compresslab import checks, techniques, train
from compresslab.experiments.journal import plain, training_of
from compresslab.experiments.trial import Trial, complete_setting
from compresslab.techniques import Technique, distillation_losses
from compresslab.weights import layers

RETRAIN, SAVE = "retrain", "save"
TEACHER = {"temperature": 4.0, "alpha": 0.9}  # of a retraining whose teacher is the model that the recipe is applied to
TRAINING = ("epochs", "steps", "lr", "batch_size", "precision")
NOTHING = Technique(RETRAIN, layers.duplicate, ())  # a retraining is a Trial of a technique that does nothing


@dataclass(frozen=True)
class Step:
    """One step of a Recipe.

    name     a technique's name, "retrain" or "save"
    setting  its parameters by name, as plain values; None counts as not set. Of a technique its own: of parameters that
             exclude one another, the first has the lab's default where none is set. Of "retrain" epochs or steps, lr,
             batch_size, precision (as in `train.fit`), and teacher: True learns from the model that the recipe is
             applied to, with temperature and alpha (as in `distillation.loss`). Of "save" path
    raises   ValueError for anything else
    """

    name: str
    setting: Mapping = field(default_factory=dict, hash=False)

    def __post_init__(self):
        checks.choice("step", self.name, [*techniques.names(), RETRAIN, SAVE])
        if not isinstance(self.setting, Mapping):
            raise ValueError(f"{self.name} has the setting {self.setting!r}; give a dict of parameters")
        setting = {
            name: os.fspath(value) if hasattr(value, "__fspath__") else value for name, value in self.setting.items()
        }
        setting = {name: plain(name, value) for name, value in setting.items()}
        if self.compresses:
            complete_setting(techniques.get(self.name), setting)
            setting = _choose_alternatives(techniques.get(self.name), setting)
        elif self.name == RETRAIN:
            setting = {name: value for name, value in setting.items() if value is not None}
        elif list(setting) != ["path"] or not isinstance(setting["path"], str):
            raise ValueError(f'save has the setting {setting!r}; give {{"path": "net.clab"}}')
        object.__setattr__(self, "setting", MappingProxyType(setting))
        if self.name == RETRAIN:
            _check_retraining(self)

    def __reduce__(self):
        return Step, (self.name, dict(self.setting))

    @property
    def compresses(self) -> bool:
        """Tell whether this step is a technique."""
        return self.name not in (RETRAIN, SAVE)

    @property
    def teaching(self) -> dict:
        """Temperature and alpha of a retraining with a teacher; else empty."""
        values = {name: self.setting[name] for name in TEACHER if name in self.setting}
        return TEACHER | values if self.setting.get("teacher") else {}

    def trial(self, seed: int) -> Trial:
        """Return the step as a Trial, of a technique or of a retraining alone."""
        if self.compresses:
            return Trial(self.name, self.setting, steps=0, seed=seed)
        training = {name: self.setting[name] for name in TRAINING if name in self.setting}
        return Trial(NOTHING, seed=seed, **(training if self.name == RETRAIN else {"steps": 0}))

    def describe(self, trial: Trial) -> list:
        """Return the step with its complete setting, for a key; `trial` is its resolved Trial."""
        teaching = {"teacher": True} | self.teaching if self.teaching else {}
        return [self.name, trial.setting if self.compresses else training_of(trial) | teaching]

    def changed(self, **setting) -> "Step":
        """Return the step with other settings; one that excludes another (epochs, steps) replaces it."""
        groups = dict.fromkeys(("epochs", "steps"), "length") if self.name == RETRAIN else {}
        if self.compresses:
            groups = {control.name: control.alternative for control in techniques.get(self.name).controls}
        replaced = {groups.get(name) for name in setting} - {None, ""}
        rest = {name: value for name, value in self.setting.items() if groups.get(name) not in replaced}
        return Step(self.name, rest | setting)

    def __str__(self):
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.setting.items())})"


@contextlib.contextmanager
def name_in_errors(step: Step) -> Iterator[None]:
    """Let an error over a setting, a model or a loss name its step."""
    try:
        yield
    except (ValueError, ArithmeticError) as error:
        kind = ValueError if isinstance(error, ValueError) else ArithmeticError
        raise kind(f"{step}: {error}") from error


def make_step(item: object) -> Step:
    """Return the Step of one item of a recipe's list; raises ValueError."""
    if isinstance(item, (Step, str)):
        return item if isinstance(item, Step) else Step(item)
    if isinstance(item, Mapping) and "name" in item and set(item) <= {"name", "setting"}:
        return Step(**item)
    if isinstance(item, (list, tuple)) and len(item) in (1, 2) and isinstance(item[0], str):
        return Step(*item)
    raise ValueError(f"a step is {checks.words(item)}; give (name, setting): ('zero_pruning', {{'sparsity': 0.9}})")


def write_code(steps: Iterable[Step]) -> str:
    """Write steps as the Python expression of their Recipe."""
    lines = (f"    ({step.name!r}, {dict(step.setting)!r}),\n" for step in steps)
    return f"cl.Recipe([\n{''.join(lines)}])"


def _choose_alternatives(technique, setting):
    """Set the first of parameters that exclude one another, where none is set."""
    controls = [control for control in technique.controls if control.alternative]
    absent = [control for control in controls if setting.get(control.name) is None]
    groups = {control.alternative for control in controls if control not in absent}
    setting = {name: value for name, value in setting.items() if name not in {control.name for control in absent}}
    for control in absent:
        if control.default is not None and control.alternative not in groups:
            groups.add(control.alternative)
            setting[control.name] = control.default
    return setting


def _check_retraining(step):
    """Raise ValueError for parameters that a retraining does not take."""
    setting = dict(step.setting)
    for name in setting:
        checks.choice("retrain", name, [*TRAINING, "teacher", *TEACHER])
    if "epochs" in setting and "steps" in setting:
        raise ValueError(f"retrain has epochs={setting['epochs']!r} and steps={setting['steps']!r}; give one of them")
    teacher = setting.get("teacher", False)
    if not isinstance(teacher, bool):
        raise ValueError(f"retrain has teacher={teacher!r}; give True to learn from the model before compression")
    teaching = {name: setting[name] for name in TEACHER if name in setting}
    if teaching and not teacher:
        name, value = next(iter(teaching.items()))
        raise ValueError(f"retrain has {name}={value!r} and no teacher; add teacher=True")
    with name_in_errors(step):
        checks.real("epochs", setting.get("epochs", 0), 0, math.inf)
        checks.integer("steps", setting.get("steps", 0), 0)
        checks.real("lr", setting.get("lr", 0), 0, math.inf)
        checks.integer("batch_size", setting.get("batch_size", 1), 1)
        if setting.get("precision", "auto") != "auto":
            train.Precision.named(setting["precision"])
        distillation_losses.check_setting(**TEACHER | teaching, knowledge="response", label_smoothing=0)
