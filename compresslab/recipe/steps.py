"""The steps of a recipe: what each may be, its settings checked, and how it is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from compresslab import checks, layers, techniques
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
    setting  its parameters by name: the technique's own;
             of "retrain" epochs or steps, lr, batch_size, precision (as in `train.fit`), and teacher: True learns from
             the model that the recipe was given, with temperature and alpha (as in `distillation.loss`);
             of "save" path
    raises   ValueError for anything else
    """

    name: str
    setting: Mapping = field(default_factory=dict)

    def __post_init__(self):
        checks.choice("step", self.name, [*techniques.names(), RETRAIN, SAVE])
        if not isinstance(self.setting, Mapping):
            raise ValueError(f"{self.name} has the setting {self.setting!r}; give a dict of parameters")
        setting = {name: plain(name, value) for name, value in self.setting.items()}
        object.__setattr__(self, "setting", setting)
        if self.name == SAVE and (list(setting) != ["path"] or not isinstance(setting["path"], str)):
            raise ValueError(f'save has the setting {setting!r}; give {{"path": "net.clab"}}')
        if self.name == RETRAIN:
            _check_retraining(setting)
        if self.compresses:
            complete_setting(techniques.get(self.name), setting)

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

    def changed(self, **setting):
        """The step with other settings; one that excludes another (epochs, steps; sparsity, threshold) replaces it."""
        gone = {"epochs", "steps"} if self.name == RETRAIN else _alternatives(self.name, setting)
        gone = gone if gone & set(setting) else set()
        return Step(self.name, {name: value for name, value in self.setting.items() if name not in gone} | setting)

    def __str__(self):
        told = ", ".join(f"{name}={value!r}" for name, value in self.setting.items())
        return f"{self.name}({told})"


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
    raise ValueError(f"a step is {given!r}; give (name, setting), such as ('zero_pruning', {{'sparsity': 0.9}})")


def written(steps):
    """Steps as the Python expression of their Recipe."""
    lines = (f"    ({step.name!r}, {step.setting!r}),\n" for step in steps)
    return f"cl.Recipe([\n{''.join(lines)}])"


def _alternatives(name, setting):
    """The parameters of a technique that exclude one of a setting, that one included."""
    controls = {control.name: control.alternative for control in techniques.get(name).controls}
    groups = {controls[one] for one in setting if controls.get(one)}
    return {one for one, group in controls.items() if group in groups}


def _check_retraining(setting):
    for name in setting:
        checks.choice("retrain", name, [*TRAINING, "teacher", *TEACHER])
    if setting.get("epochs") is not None and setting.get("steps") is not None:
        raise ValueError(f"retrain has epochs={setting['epochs']!r} and steps={setting['steps']!r}; give one of them")
    teacher = setting.get("teacher", False)
    if not isinstance(teacher, bool):
        raise ValueError(f"retrain has teacher={teacher!r}; give True to learn from the model that the recipe is given")
    if not teacher and (lost := [name for name in TEACHER if name in setting]):
        raise ValueError(f"retrain has {lost[0]}={setting[lost[0]]!r} and no teacher; add teacher=True")
