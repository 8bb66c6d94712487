"""A Recipe: techniques and retrainings in any order, as data, run on any model, every beginning of it computed once.

    recipe = cl.Recipe([
        ("zero_pruning", {"sparsity": 0.92}), ("retrain", {"epochs": 2}), ("weight_sharing", {"bits": 5}),
        ("retrain", {"epochs": 1}), ("save", {"path": "small.clab"}),
    ])
    small = recipe.apply(model, data, seed=0)
    recipe.table(model, data)            # accuracy and bytes after each step
    cl.lab.explore(recipe)               # a slider for each step

After each retraining the model goes through its .clab file, which the journal keeps under all that led to it: a recipe
that begins with the same steps goes on from there, to the same numbers. The file is of plain weights: weight_norm or
spectral_norm is baked in by the first retraining, and what a model does not save is after each as it was before.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
from torch import nn

from compresslab import bars, checks, measure, train
from compresslab.data import Data
from compresslab.experiments import sweep
from compresslab.experiments.journal import Journal
from compresslab.experiments.recipe_steps import SAVE, Step, make_step, write_code
from compresslab.experiments.recipe_work import Work, make_technique
from compresslab.experiments.trial import load_subject
from compresslab.techniques import Technique

__all__ = ["PRESETS", "Recipe", "Step"]

# Recipes that are known to work. Their numbers were chosen on the validation images of MNIST and Fashion-MNIST.
PRESETS = {
    # Han et al. 2016, arXiv:1510.00149: prune, retrain, share, train the centroids; the file does the coding.
    "deep compression": [
        ("zero_pruning", {"sparsity": 0.92}),
        ("retrain", {"epochs": 4}),
        ("weight_sharing", {"bits": 5}),
        ("retrain", {"epochs": 1}),
    ],
    # Neurons that go, so that every runtime is faster, then 8 bits, which runtimes for integers like.
    "small and fast": [
        ("activation_pruning", {"sparsity": 0.5, "statistic": "variance"}),
        ("retrain", {"epochs": 3}),
        ("quantization", {"bits": 8}),
        ("retrain", {"epochs": 1}),
    ],
    # First neurons, whose weights need no positions; then weights, little by little; then few values.
    "smallest file": [
        ("activation_pruning", {"sparsity": 0.6, "statistic": "variance"}),
        ("retrain", {"epochs": 2}),
        ("zero_pruning", {"sparsity": 0.8}),
        ("retrain", {"epochs": 2}),
        ("zero_pruning", {"sparsity": 0.9}),
        ("retrain", {"epochs": 5}),
        ("weight_sharing", {"bits": 3, "biases": True}),
        ("retrain", {"epochs": 2}),
    ],
}


@dataclass(frozen=True, repr=False)
class Recipe:
    """Steps in the order in which they are done.

    steps   list of steps: (name, setting), a name alone, a dict {"name": …, "setting": …}, or a Step; kept as Steps
    raises  ValueError for a step that is not known, and for parameters that it does not have
    """

    steps: tuple

    def __post_init__(self):
        items = self.steps
        if isinstance(items, (str, Mapping, Step)) or not isinstance(items, Iterable):
            raise ValueError(f"steps is {checks.words(items)}; give a list of steps, [(name, setting), …]")
        object.__setattr__(self, "steps", tuple(map(make_step, items)))
        if all(step.name == SAVE for step in self.steps):
            raise ValueError(f"steps is {checks.words(items)}; give at least one technique or retraining")

    @classmethod
    def preset(cls, name: str) -> "Recipe":
        """Return a recipe of the names in PRESETS: "deep compression", "small and fast", "smallest file"."""
        return cls(PRESETS[checks.choice("name", name, PRESETS)])

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Return the recipe that `to_json` wrote; raises ValueError for anything else."""
        if not isinstance(text, str):
            raise ValueError(f"text is {checks.words(text)}; give the JSON that to_json writes")
        return cls(json.loads(text))

    def to_json(self) -> str:
        """Write the steps as JSON: [[name, setting], …]."""
        return json.dumps([[step.name, dict(step.setting)] for step in self.steps])

    def __repr__(self):
        return write_code(self.steps)

    def __str__(self):
        return " → ".join(map(str, self.steps))

    def changed(self, index: int, **setting) -> "Recipe":
        """Return a copy in which the step of this index has other settings."""
        index = checks.integer("index", index, -len(self.steps), len(self.steps) - 1)
        steps = list(self.steps)
        steps[index] = steps[index].changed(**setting)
        return Recipe(steps)

    @bars.quiet()
    def apply(
        self, model: nn.Module | str, data: Data | str, seed: int = 0, journal: Journal | str | bool | None = None,
        bar: bool = True,
    ) -> nn.Module:  # fmt: skip
        """Run the recipe and return the new model that comes out.

        model    any nn.Module, or the name of a pretrained network; it is not changed
        data     data.Data, or the name of a data set: trained on .train, measured on .validation
        seed     of every technique that takes one, and of every retraining;  bar  show a tqdm bar over the steps
        journal  a Journal, a path, None for the default one, False for none: beginnings that it holds are not repeated
        raises   ValueError naming the step whose setting is out of range, or which the model does not take;
                 ArithmeticError naming the retraining whose loss is no longer finite
        """
        (last,) = deque(self._run(model, data, seed, journal, None, bar), maxlen=1)
        return last.model

    @bars.quiet()
    def table(
        self, model: nn.Module | str, data: Data | str, seed: int = 0, journal: Journal | str | bool | None = None,
        bar: bool = True,
    ) -> pd.DataFrame:  # fmt: skip
        """Measure the model as it was and after each technique and retraining.

        columns  step, accuracy (fraction of the validation images), points (percentage points won against the first
                 row), file_bytes, saved (bytes, against the row before), ratio (dense bytes by file_bytes)
        """
        model, data, _ = load_subject(model, data)
        events = [event for event in self._run(model, data, seed, journal, None, bar) if event.result]
        with train.threads(1):
            dense = measure.sizes(model)
            rows = [("dense", measure.accuracy(model, data.validation), dense.file_bytes)]
        rows += [(event.note, event.result.accuracy, event.result.file_bytes) for event in events]
        frame = pd.DataFrame(rows, columns=["step", "accuracy", "file_bytes"])
        frame.insert(2, "points", 100 * (frame["accuracy"] - frame["accuracy"][0]))
        frame["saved"] = -frame["file_bytes"].diff().fillna(0).astype(int)
        frame["ratio"] = dense.dense_bytes / frame["file_bytes"]
        return frame

    def stages(
        self, model: nn.Module | str, data: Data | str, seed: int = 0, journal: Journal | str | bool | None = None,
        names: Mapping | None = None,
    ) -> Iterator[sweep.Event]:  # fmt: skip
        """Run the recipe, yielding an Event after every step and every training step.

        Stop iterating to cancel. Events have the stage "compressed" and then "one-shot" (a technique), "training" and
        then "retrained", or "saved"; their `note` is the step in words. "one-shot" and "retrained" carry a Result,
        whose setting are all steps so far. Steps that the journal holds come at once.
        model, data, seed, journal  as in `apply`;  names  as in `sweep.stages`
        """
        return self._run(model, data, seed, journal, names, bar=False)

    def _run(self, model, data, seed, journal, names, bar):
        model, data, names = load_subject(model, data, names)
        journal = sweep.open_journal(journal)

        def _run_steps():  # the preparation, too, takes place in its turn
            yield from Work(self.steps, model, data, seed, journal, names, bar).run()

        return sweep.drive(_run_steps(), journal)

    def as_technique(self) -> Technique:
        """Return the recipe as a Technique with a control for each step."""
        return make_technique(self.steps)
