"""Running the steps of a recipe, going on from where the journal has been before; a recipe as a Technique.

As a Technique, what comes before the last technique is prepared, from the journal where it can be; what follows is the
retraining that every technique has.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from compresslab import checks, storage, techniques
from compresslab.data import Data, Split
from compresslab.experiments import fingerprints, sweep
from compresslab.experiments.executors import UNLIMITED
from compresslab.experiments.journal import Journal, Result, training_of
from compresslab.experiments.recipe_steps import NOTHING, RETRAIN, SAVE, TEACHER, Step, name_in_errors, write_code
from compresslab.experiments.sweep import Event
from compresslab.experiments.trial import Trial, blank_results, check_trial, complete_setting, resolved, takes_seed
from compresslab.techniques import Control, Technique, distillation_losses
from compresslab.weights import layers

LONGEST, EPOCHS = 500, 5.0  # steps, or epochs, at the right end of a retraining's slider, unless it begins beyond
STEPS_PER_EPOCH = 50_000 / 256  # of the data that come with the package


class _LostModelError(Exception):
    """The journal's bytes of a model do not suffice to make it again."""


class Work:
    """One run of some steps on a model. Whoever drives `run` records the Results.

    trials  of each step its Trial, all retrainings in the arithmetic that is the fastest for the model as it was
    blanks  of each step the Result with nothing measured, None for "save": its key covers all steps up to it
    """

    def __init__(
        self, steps: Sequence[Step], model: nn.Module, data: Data, seed: int, journal: Journal | None,
        names: Mapping | None = None, bar: bool = False,
    ):  # fmt: skip
        self.steps, self.model, self.data, self.seed, self.bar = steps, model, data, seed, bar
        self.trials = self._resolve_trials()
        self.blanks = self._make_blanks(names or {})
        reusable = all(blank.reusable for blank in self.blanks if blank is not None)
        self.journal = journal if reusable else None

    def run(self) -> Iterator[Event]:
        """Yield an Event after every step and every step of training."""
        done, models = self._find_prefix()
        model, technique = models[done], None  # the step of the last technique
        for position, step in enumerate(self.steps):
            note, blank = str(step), self.blanks[position]
            if step.name == SAVE:
                content = models[position] if position < done else model
                storage.save(content, step.setting["path"])
                yield Event("saved", content, note=note)
            elif position < done:
                yield Event(blank.stage, model, self.journal.find(blank.key), note=note)
            else:
                if step.compresses:
                    start, model = model, self._compress(position, model)
                    yield Event("compressed", model, start=start, note=note)
                else:
                    model = yield from self._retrain(position, model, technique)
                yield Event(blank.stage, model, sweep.measure_result(blank, model, self.data), note=note)
            technique = step if step.compresses else technique

    def _compress(self, position, model):
        with name_in_errors(self.steps[position]):
            return sweep.compress(self.trials[position], model, self.data)

    def _retrain(self, position, model, technique):
        """Train a copy of the model; return it as it comes back from its file."""
        step, trial, trained = self.steps[position], self.trials[position], layers.duplicate(model)
        if trial.steps:
            with name_in_errors(step):
                split, loss = prepare_training(step, technique, self.model, trained, self.data.train, trial.seed)
                yield from sweep.retrain(trial, trained, split, loss, note=str(step), bar=self.bar)
        content = storage.dumps(trained, fold=False)  # what is trained next is what there was, dead units too
        if self.journal is not None:
            self.journal.keep_model(self.blanks[position].key, content)
        return self._load(content, model)

    def _resolve_trials(self):
        """Check the Trial of each step; all are trained in the precision of the first."""
        trials = []
        for step in self.steps:
            with name_in_errors(step):
                trials.append(check_trial(step.trial(self.seed), self.data))
        automatic = [trial for trial in trials if trial.steps and trial.precision == "auto"]
        if not automatic:
            return trials
        precision = resolved(automatic[0], self.model, self.data).precision
        return [replace(trial, precision=precision) if trial in automatic else trial for trial in trials]

    def _make_blanks(self, names):
        nothing = check_trial(Trial(NOTHING, steps=0, seed=self.seed), self.data)
        first, _ = blank_results(nothing, self.model, self.data, names)
        described, digests, blanks = [], {}, []
        for step, trial in zip(self.steps, self.trials, strict=True):
            if step.name == SAVE:
                blanks.append(None)
                continue
            described.append(step.describe(trial))
            if step.compresses:
                digests[step.name] = fingerprints.of_technique(trial.technique)
            versions = first.versions | {"technique": json.dumps(digests, sort_keys=True)}
            training = {} if step.compresses else {"stage": "retrained"} | training_of(trial)
            setting = {"steps": list(described)}
            blanks.append(replace(first, technique="recipe", setting=setting, versions=versions, **training))
        return blanks

    def _find_prefix(self):
        """Find the longest prefix, up to a retraining, that is already in the journal.

        returns  its length; dict of length of a prefix -> the model after it: for all of it, and for each of its files
        """
        if self.journal is not None:
            missing = (at for at, blank in enumerate(self.blanks) if blank and self.journal.find(blank.key) is None)
            reached = next(missing, len(self.steps))
            for done in range(reached, 0, -1):
                if self.steps[done - 1].name == RETRAIN:
                    files = [position for position in range(done) if self.steps[position].name == SAVE]
                    with contextlib.suppress(_LostModelError):
                        return done, {length: self._restore(length) for length in (*files, done)}
        return 0, {0: self.model}

    def _restore(self, length):
        """Return the model after the first steps, from the journal's file of their last retraining.

        raises  _LostModelError where the journal has no such file, or the file does not suffice
        """
        if length == 0:
            return self.model
        step = self.steps[length - 1]
        if step.name != RETRAIN:
            before = self._restore(length - 1)
            return self._compress(length - 1, before) if step.compresses else before
        content = self.journal.find_model(self.blanks[length - 1].key)
        if content is None:
            raise _LostModelError
        with contextlib.suppress(ValueError):  # a technique has changed the shapes
            return self._load(content, self.model)
        try:  # a file cannot make classes of the user's own: they come from the step before
            return self._load(content, self._restore(length - 1) if _has_own_classes(self.model) else None)
        except ValueError as error:
            raise _LostModelError from error

    def _load(self, content, skeleton):
        """Return the model of a file, its modules in the modes that they had.

        skeleton  a model of the same shapes, or None for one that the file makes
        """
        skeleton = None if skeleton is None else layers.plain(skeleton)
        model = storage.loads(content, into=skeleton, max_bytes=UNLIMITED)
        modes = {name: module.training for name, module in self.model.named_modules()}
        for name, module in model.named_modules():
            while name not in modes:  # made by a technique: the mode of the module around it
                name = name.rpartition(".")[0]
            module.training = modes[name]
        return model


def prepare_training(
    step: Step, technique: Step | None, teacher: nn.Module, model: nn.Module, split: Split, seed: int
) -> tuple:
    """Return (split, loss) of a retraining.

    technique  Step of the technique that came last, or None: one that has its own way of training is trained so
    teacher    the model that the recipe is applied to;  model  the one that is to be trained
    """
    if step.teaching:
        images = split.images[:2]
        return split, distillation_losses.loss(teacher, student=model, images=images, seed=seed, **step.teaching)
    if technique is None:
        return split, None
    last, setting = _complete(technique)
    return sweep.prepare_training(last, setting, teacher, model, split, seed)


def _has_own_classes(model):
    """Tell whether a module has a class that is neither torch.nn's nor the workbook's."""
    bases = {base for module in model.modules() for base in type(module).__mro__}
    return any(not base.__module__.startswith(("torch.nn.", "compresslab.", "builtins")) for base in bases)


def make_technique(steps: Sequence[Step]) -> Technique:
    """Make the Technique of a recipe's steps."""
    steps = [step for step in steps if step.name != SAVE]
    last = max((position for position, step in enumerate(steps) if step.compresses), default=None)
    if last is None:
        raise ValueError("the recipe has no technique; a lab and a sweep need one")
    steps, tail = tuple(steps[: last + 1]), steps[last + 1 :]
    if len(tail) > 1:
        raise ValueError(f"the recipe ends with {len(tail)} retrainings; in a lab and a sweep it has one at the end")
    name = " → ".join(step.name for step in (*steps, *tail))
    tail = tail[0] if tail else Step(RETRAIN, {"steps": 0})
    digests = {step.name: fingerprints.of_technique(techniques.get(step.name)) for step in steps if step.compresses}
    written = [[step.name, dict(step.setting)] for step in (*steps, tail)]
    plan = _Plan(steps, tail)
    return replace(
        techniques.get(steps[-1].name),
        name=name,
        apply=plan.apply,
        controls=tuple(_make_control(steps, name, *place) for name, place in _name_controls(steps).items()),
        fair_controls={},
        anatomy=plan.anatomy,
        training=plan.training,
        steps=tail.setting.get("steps", math.ceil(tail.setting.get("epochs", 1) * STEPS_PER_EPOCH)),
        lr=tail.setting.get("lr"),
        longer=1,
        before=plan.before,
        depends=json.dumps([written, digests], sort_keys=True),
        source=plan.source,
    )


@dataclass(frozen=True)
class _Plan:
    """The functions of a recipe's Technique: its steps up to the last technique, and the retraining after it."""

    steps: tuple
    tail: Step

    def apply(self, model: nn.Module, *images, seed: int = 0, **setting) -> nn.Module:
        """Apply the last technique to the prepared model."""
        technique, setting = _complete(self.place(setting)[-1])
        seeded = {"seed": seed} if takes_seed(technique) else {}
        return technique.apply(model, *images, **seeded | setting)

    def before(self, model: nn.Module, data: Data, setting: Mapping, seed: int, journal: Journal | None):
        """Run all steps but the last; yield their Events as "preparing"."""
        prepared, steps = model, self.place(setting)[:-1]
        if steps:
            with contextlib.closing(Work(steps, model, data, seed, journal).run()) as events:
                for event in events:
                    prepared = event.model
                    yield Event("preparing", prepared, event.result, event.progress, note=event.note)
        return prepared

    def training(self, model: nn.Module, compressed: nn.Module, split, setting: Mapping, seed: int) -> tuple:
        """Return (split, loss) of the retraining at the end."""
        return prepare_training(self.tail, self.place(setting)[-1], model, compressed, split, seed)

    def anatomy(self, model: nn.Module, compressed: nn.Module, setting: Mapping, data: Data) -> list:
        """Return the pictures of the last technique."""
        technique, setting = _complete(self.place(setting)[-1])
        return techniques.pictures(technique, model, compressed, setting, data)

    def source(self, setting: Mapping | None = None, result: Result | None = None) -> str:
        """Write the recipe as Python code, with a setting and a Result's training."""
        tail = self.tail
        if result is not None:
            teaching = {name: value for name, value in tail.setting.items() if name in ("teacher", *TEACHER)}
            tail = Step(RETRAIN, training_of(result) | teaching if result.steps else {"steps": 0})
        return write_code([*self.place(setting or {}), *([tail] if tail.setting.get("steps") != 0 else [])])

    def place(self, setting: Mapping) -> list[Step]:
        """Put the values of controls into the steps; raises ValueError for unknown names."""
        places, steps = _name_controls(self.steps), list(self.steps)
        for name, value in setting.items():
            position, parameter = places[checks.choice("setting", name, places)]
            steps[position] = steps[position].changed(**{parameter: value})
        return steps


def _complete(step):
    """Return the technique of a step, and its complete setting."""
    technique = techniques.get(step.name)
    return technique, complete_setting(technique, step.setting)


def _name_controls(steps):
    """Map names of controls to (position of the step, parameter), equal names numbered."""
    places = [(position, name) for position, step in enumerate(steps) if (name := _choose_parameter(step))]
    names = [RETRAIN if steps[position].name == RETRAIN else name for position, name in places]
    return dict(zip(number_names(names), places, strict=True))


def number_names(names: Sequence[str]) -> list[str]:
    """Return names of which no two are alike: "a", "b", "a" become "a_1", "b", "a_2"."""
    return [f"{name}_{names[: at + 1].count(name)}" if names.count(name) > 1 else name for at, name in enumerate(names)]


def _choose_parameter(step):
    """Choose the parameter that a slider moves, preferably one that is set, or None."""
    if step.name == RETRAIN:
        return "steps" if "steps" in step.setting else "epochs"
    controls = techniques.get(step.name).controls
    movable = [control.name for control in controls if not isinstance(control.default, (bool, str))]
    movable = [name for name in movable if not isinstance(step.setting.get(name), (dict, list))]
    return next(iter(sorted(movable, key=lambda name: step.setting.get(name) is None)), None)


def _make_control(steps, name, position, parameter):
    """Return the Control of a step."""
    step, number = steps[position], f"Step {position + 1}, {steps[position].name}"
    if step.name == RETRAIN:
        value, (end, move) = step.setting.get(parameter, 1.0), (LONGEST, 5) if parameter == "steps" else (EPOCHS, 0.1)
        words = {"unit": parameter, "help": f"{number}: how long", "label": f"{position + 1}. {RETRAIN}"}
        return Control(name, value, 0, max(end, value), move, **words)
    control = next(control for control in techniques.get(step.name).controls if control.name == parameter)
    value = _complete(step)[1].get(parameter, control.default)
    ends = {} if control.choices else {"low": min(control.low, value), "high": max(control.high, value)}
    words = {"help": f"{number}: {control.help or parameter}", "label": f"{position + 1}. {step.name}: {parameter}"}
    return replace(control, name=name, default=value, alternative="", **words, **ends)
