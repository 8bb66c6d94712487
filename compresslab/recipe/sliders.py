"""A recipe as a Technique: a control for each step, so that lab and sweep run recipes as they run techniques.

What comes before the last technique is prepared, from the journal where it has been done before; then comes that
technique, and what follows is the retraining that every technique has.
"""

import contextlib
import json
import math
from dataclasses import dataclass, replace

from compresslab import checks, fingerprints, techniques
from compresslab.recipe.steps import RETRAIN, TEACHER, Step, length, written
from compresslab.recipe.work import Work, lesson
from compresslab.sweep import Event
from compresslab.techniques import Control
from compresslab.trial import complete_setting, takes_seed

LONGEST, EPOCHS = 500, 5.0  # steps, or epochs, at the right end of a retraining's slider, unless it begins beyond
USUAL = 50_000 / 256  # steps in an epoch of the data that come with the package


def as_technique(steps):
    """The Technique of some Steps; raises ValueError where there is none, or several retrainings at the end."""
    steps = [step for step in steps if step.name != "save"]
    last = max((at for at, step in enumerate(steps) if step.compresses), default=None)
    if last is None:
        raise ValueError("the recipe has no technique; a lab and a sweep need one")
    steps, tail = tuple(steps[: last + 1]), steps[last + 1 :]
    if len(tail) > 1:
        raise ValueError(f"the recipe ends with {len(tail)} retrainings; in a lab and a sweep it has one at the end")
    name = " → ".join(step.name for step in (*steps, *tail))
    tail = tail[0] if tail else Step(RETRAIN, {"steps": 0})
    count = tail.setting.get("steps")
    digests = {step.name: fingerprints.of_technique(techniques.get(step.name)) for step in steps if step.compresses}
    told = [[step.name, dict(step.setting)] for step in (*steps, tail)]
    plan = _Plan(steps, tail)
    return replace(
        techniques.get(steps[-1].name),
        name=name,
        apply=plan.apply,
        controls=tuple(_control(steps, name, *place) for name, place in _places(steps).items()),
        fair_controls={},
        anatomy=plan.anatomy,
        training=plan.training,
        steps=math.ceil(tail.setting.get("epochs", 1) * USUAL) if count is None else count,
        lr=tail.setting.get("lr"),
        longer=1,
        before=plan.before,
        depends=json.dumps([told, digests], sort_keys=True),
        source=plan.source,
    )


@dataclass(frozen=True)
class _Plan:
    """What a recipe's Technique is made of: its steps up to the last technique, and the retraining after it."""

    steps: tuple
    tail: Step

    def apply(self, model, *images, seed=0, **setting):
        technique, setting = _complete(self.last(setting))
        seeded = {"seed": seed} if takes_seed(technique) else {}
        return technique.apply(model, *images, **seeded | setting)

    def before(self, model, data, setting, seed, journal):
        """Events of all steps but the last, as "preparing"; returns the model after them."""
        after, steps = model, laid_over(self.steps, setting)[:-1]
        if steps:
            with contextlib.closing(Work(steps, model, data, seed, journal, {}).events()) as events:
                for event in events:
                    after = event.model
                    yield Event("preparing", after, event.result, event.progress, note=event.note)
        return after

    def training(self, model, compressed, split, setting, seed):
        return lesson(self.tail, self.last(setting), model, compressed, split, seed)

    def anatomy(self, model, compressed, setting, data):
        technique, setting = _complete(self.last(setting))
        return techniques.pictures(technique, model, compressed, setting, data)

    def source(self, setting=None, result=None):
        """The expression of the recipe with a setting, and with the training of a Result at its end."""
        steps, tail = laid_over(self.steps, setting or {}), self.tail
        if result is not None:
            training = length(result)
            kept = {name: value for name, value in tail.setting.items() if name in ("teacher", *TEACHER)}
            tail = Step(RETRAIN, training | kept if result.steps else {"steps": 0})
        return written([*steps, *([tail] if tail.setting.get("steps") != 0 else [])])

    def last(self, setting):
        """The last technique's Step, with a setting."""
        return laid_over(self.steps, setting)[-1]


def laid_over(steps, setting):
    """Steps with the values of their controls, by the controls' names; raises ValueError for others."""
    places, steps = _places(steps), list(steps)
    for name, value in setting.items():
        at, parameter = places[checks.choice("setting", name, places)]
        steps[at] = steps[at].changed(**{parameter: value})
    return steps


def _complete(step):
    """The technique of a step, and its complete setting."""
    technique = techniques.get(step.name)
    return technique, complete_setting(technique, step.setting)


def _places(steps):
    """Name of a control -> (index of its step, parameter), for all steps that have one; those alike are numbered."""
    found = [(at, name) for at, step in enumerate(steps) if (name := _slider(step))]
    names = [RETRAIN if steps[at].name == RETRAIN else name for at, name in found]
    numbered = [f"{name}_{names[: at + 1].count(name)}" if names.count(name) > 1 else name
                for at, name in enumerate(names)]  # fmt: skip
    return dict(zip(numbered, found, strict=True))


def _slider(step):
    """The parameter of a step that a slider moves: one that is set, else the first that the technique declares."""
    if step.name == RETRAIN:
        return "steps" if "steps" in step.setting else "epochs"
    movable = [one.name for one in techniques.get(step.name).controls if not isinstance(one.default, (bool, str))]
    movable = [name for name in movable if not isinstance(step.setting.get(name), (dict, list))]
    return next((name for name in movable if step.setting.get(name) is not None), next(iter(movable), None))


def _control(steps, name, at, parameter):
    """The Control of one step."""
    step, number = steps[at], f"Step {at + 1}, {steps[at].name}"
    if step.name == RETRAIN:
        whole, value = parameter == "steps", step.setting.get(parameter, 1.0)
        high, move = (max(LONGEST, value), 5) if whole else (max(EPOCHS, value), 0.1)
        label = f"{at + 1}. {RETRAIN}"
        return Control(name, value, 0, high, move, unit=parameter, help=f"{number}: how long", label=label)
    own = next(one for one in techniques.get(step.name).controls if one.name == parameter)
    value = _complete(step)[1].get(parameter, own.default)
    ends = {} if own.choices else {"low": min(own.low, value), "high": max(own.high, value)}
    told = {"help": f"{number}: {own.help or parameter}", "label": f"{at + 1}. {step.name}: {parameter}"}
    return replace(own, name=name, default=value, alternative="", **told, **ends)
