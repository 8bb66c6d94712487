"""A Recipe: techniques and retrainings in any order, as data, run on any model, every beginning of it computed once.

    recipe = cl.Recipe([
        ("zero_pruning", {"sparsity": 0.92}),
        ("retrain", {"epochs": 2}),
        ("weight_sharing", {"bits": 5}),
        ("retrain", {"epochs": 1}),
        ("save", {"path": "small.clab"}),
    ])
    small = recipe.apply(model, data, seed=0)
    recipe.table(model, data)            # accuracy and bytes after each step
    cl.lab.explore(recipe)               # a slider for each step

After each retraining the model goes through its .clab file, whose bytes the journal keeps under all that led to them: a
recipe that begins with the same steps goes on from there, to the same numbers as one that is run from the start.
That file is of plain weights: the norm that torch's weight_norm or spectral_norm keeps is baked in by the first
retraining, and what a model does not save, such as a buffer that is not persistent, is after each as it was before.

steps    what a step may be;  work  running them;  sliders  a recipe as lab and sweep see it;  presets  ready-made ones
"""

import contextlib
import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd
from tqdm.auto import tqdm

from compresslab import bars, checks, measure, models, sweep, train
from compresslab import data as datasets
from compresslab.recipe.presets import PRESETS
from compresslab.recipe.sliders import as_technique
from compresslab.recipe.steps import SAVE, Step, step_of, written
from compresslab.recipe.work import Work

__all__ = ["PRESETS", "Recipe", "Step"]


@dataclass(frozen=True, repr=False)
class Recipe:
    """Steps in the order in which they are done.

    steps   list of steps: (name, setting), a name alone, a dict {"name": …, "setting": …}, or a Step; kept as Steps
    raises  ValueError for a step that is not known, and for parameters that it does not have
    """

    steps: tuple

    def __post_init__(self):
        given = self.steps
        if isinstance(given, (str, Mapping, Step)) or not isinstance(given, Iterable):
            raise ValueError(f"steps is {checks.words(given)}; give a list of steps, [(name, setting), …]")
        object.__setattr__(self, "steps", tuple(map(step_of, given)))
        if all(step.name == SAVE for step in self.steps):
            raise ValueError(f"steps is {checks.words(given)}; give at least one technique or retraining")

    @classmethod
    def preset(cls, name):
        """A recipe of the names in PRESETS: "deep compression", "small and fast", "smallest file"."""
        return cls(PRESETS[checks.choice("name", name, PRESETS)])

    @classmethod
    def from_json(cls, text):
        """The recipe that `to_json` wrote; raises ValueError for anything else."""
        if not isinstance(text, str):
            raise ValueError(f"text is {checks.words(text)}; give the JSON that to_json writes")
        return cls(json.loads(text))

    def to_json(self):
        """The steps as JSON: [[name, setting], …]."""
        return json.dumps([[step.name, dict(step.setting)] for step in self.steps])

    def __repr__(self):
        return written(self.steps)

    def __str__(self):
        return " → ".join(map(str, self.steps))

    def changed(self, index, **setting):
        """A copy in which the step of this index has other settings; those that are not named stay."""
        index = checks.integer("index", index, -len(self.steps), len(self.steps) - 1)
        steps = list(self.steps)
        steps[index] = steps[index].changed(**setting)
        return Recipe(steps)

    def apply(self, model, data, seed=0, journal=None, bar=True):
        """The model that comes out at the end; a new one, `model` is not changed.

        model    any nn.Module, or the name of a pretrained network
        data     data.Data, or the name of a data set: trained on .train, measured on .validation
        seed     of every technique that takes one, and of every retraining
        journal  a Journal, a path, None for the default one, False for none: beginnings that it holds are not repeated
        bar      show a tqdm bar over the training steps
        raises   ValueError naming the step whose setting is out of range, or which the model does not take;
                 ArithmeticError naming the retraining whose loss is no longer finite
        """
        (last,) = deque(_shown(self.stages(model, data, seed, journal), bar), maxlen=1)
        return last.model

    @bars.quiet()
    def table(self, model, data, seed=0, journal=None, bar=True):
        """What each step does: a DataFrame, a row for the model as it was and one for each technique and retraining.

        columns  step, accuracy (fraction of the validation images), points (won or, below 0, lost against the first
                 row, in percentage points), file_bytes, saved (bytes, against the row before), ratio (dense bytes by
                 file_bytes)
        """
        model, data, _ = _loaded(model, data, {})
        done = [event for event in _shown(self.stages(model, data, seed, journal), bar) if event.result]
        with train.threads(1):
            dense = measure.sizes(model)
            rows = [("dense", measure.accuracy(model, data.validation), dense.file_bytes)]
        rows += [(event.note, event.result.accuracy, event.result.file_bytes) for event in done]
        frame = pd.DataFrame(rows, columns=["step", "accuracy", "file_bytes"])
        frame.insert(2, "points", 100 * (frame["accuracy"] - frame["accuracy"][0]))
        frame["saved"] = -frame["file_bytes"].diff().fillna(0).astype(int)
        frame["ratio"] = dense.dense_bytes / frame["file_bytes"]
        return frame

    def stages(self, model, data, seed=0, journal=None, names=None):
        """Run the recipe, yielding a sweep.Event after every step and every training step; stop iterating to cancel.

        Events have the stage "compressed" and then "one-shot" (a technique), "training" and then "retrained", or
        "saved"; their `note` is the step in words. "one-shot" and "retrained" carry a Result, whose setting are all
        steps so far. Steps that the journal holds come at once.
        model, data, seed, journal  as in `apply`;  names  as in `sweep.stages`
        """
        model, data, names = _loaded(model, data, names or {})
        journal = sweep.open_journal(journal)
        return sweep.driven(_events(self.steps, model, data, seed, journal, names), journal)

    def as_technique(self):
        """The recipe as the Technique that lab and sweep make of it: a control for each step; the last retraining is
        the one that they do themselves.
        """
        return as_technique(self.steps)


def _loaded(model, data, names):
    """Model and data, looked up where they are names; raises ValueError for anything else."""
    data = datasets.load(data) if isinstance(data, str) else data
    if not hasattr(data, "train") or not hasattr(data, "validation"):
        raise ValueError(f"data is a {type(data).__name__}; give a whole data set, as cl.data.load returns")
    if isinstance(model, str):
        names, model = {"model": model} | names, models.pretrained(model, data.name)
    checks.module("model", model, also=" or the name of a pretrained network")
    return model, data, names


def _events(*arguments):
    yield from Work(*arguments).events()


def _shown(events, bar):
    """All events but those of training steps, which move a tqdm bar."""
    with contextlib.closing(events), bars.quiet(), tqdm(delay=0.5, leave=False, disable=not bar) as shown:
        for event in events:
            if event.stage != "training":
                yield event
                continue
            if event.progress.step == 1:
                shown.reset(event.progress.steps)
                shown.set_description(event.note, refresh=False)
            shown.update()
