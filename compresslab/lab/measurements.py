"""Everything a lab knows, without a single widget: models with their data, measured points, what is still missing.

A point is measured by `sweep.stages`, so that a curve drawn by hand and one made by a sweep are the same numbers.
"""

import warnings
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace

import pandas as pd
from torch import nn

from compresslab import data as datasets
from compresslab import measure, models, train
from compresslab.experiments import journal, sweep, trial
from compresslab.experiments.journal import Result
from compresslab.lab import damage, words
from compresslab.lab.settings import find_widest_gap, list_even_settings, list_neighbours, sort_by_distance
from compresslab.techniques import Technique

DATA = ("mnist", "fashion_mnist")  # with trained baselines
YOURS = "yours"  # name in a chooser for a model or data that a person brought
SUBSET = 2000  # validation images for the accuracies during training
MODEL_ROOM = 8 * 2**20  # bytes of retrained models that are kept
STEPS = 60  # of retraining, unless a person chooses: a measured point within half a second for the MLPs
FEWER_STEPS = {"article_mlp": 40, "lenet_5": 30}  # for slower networks
BATCH_SIZE = {"lenet_5": 64}  # images a step, where many small steps recover more in the same time than few large ones

CHART_COLUMNS = ["accuracy", "file_bytes", "stage", "on_curve", "place", "setting", "text"]


@dataclass(frozen=True)
class Choice:
    """Everything a person has chosen; a measured point depends on model, data, setting, steps and seed alone."""

    model: str  # a name, or YOURS
    data: str
    setting: dict  # by the names of the technique's parameters
    steps: int
    seed: int
    compare: tuple = ()  # labels of the fair controls that are shown
    control: str | None = None  # name of the control moved last: the curve runs along it

    @property
    def last_stage(self) -> str:
        """The stage that a measured point ends with."""
        return "retrained" if self.steps else "one-shot"

    @property
    def conditions(self) -> tuple:
        """Model, data, steps and seed: the same for all points of one chart."""
        return self.model, self.data, self.steps, self.seed

    def at(self, **setting: object) -> "Choice":
        """Return the same choice with some settings changed."""
        return replace(self, setting={**self.setting, **setting})


@dataclass(frozen=True)
class Subject:
    """A loaded model with its data, and what it costs before compression."""

    model: nn.Module
    data: datasets.Data
    names: dict  # of model and data in the journal
    accuracy: float  # of the dense model on the validation images
    sizes: measure.SizeLedger
    subset: datasets.Split  # the first validation images, for accuracies during training


def default_steps(technique: Technique, model: str) -> int:
    """Return the retraining steps to begin with; they never depend on the machine."""
    return FEWER_STEPS.get(model, STEPS) if technique.steps is None else technique.steps


class Measurements:
    """Loads, measures and remembers for a lab; only one thread at a time measures, any thread may read.

    own_model, own_data  what a person brought, or None
    failed     keys of settings that were left out of a curve because they fail
    warnings   the technique's warnings for the newest choice that was compressed
    cleared    whether a person has taken the points known so far off the page
    """

    def __init__(self, technique: Technique, own_model: nn.Module | None, own_data: datasets.Data | None, journal):
        self.technique, self.journal = technique, journal
        self.failed, self.warnings, self.cleared = set(), [], False
        self._own_model, self._own_data = own_model, own_data
        self._subjects, self._blanks, self._dense_logits = {}, {}, {}
        self._points = {}  # conditions of a chart -> {key: Result}, from the journal and measured here
        self._results, self._chosen, self._hidden = {}, (), set()  # on the page: key -> Result, keys, keys
        self._models = {}  # key -> measured model, the newest at the end
        self._recorded = set()  # keys of Results that this lab put into the journal

    def subject(self, choice: Choice) -> Subject:
        """Return the model and data of a choice, loaded and measured the first time."""
        name = choice.model, choice.data
        if name not in self._subjects:
            data = self._own_data if choice.data == YOURS else datasets.load(choice.data)
            model = self._own_model if choice.model == YOURS else models.pretrained(choice.model, data.name)
            names = {"model": trial.name_of(model) if choice.model == YOURS else choice.model, "data": data.name}
            with train.threads(1):
                accuracy, sizes = measure.accuracy(model, data.validation), measure.sizes(model)
            self._subjects[name] = Subject(model, data, names, accuracy, sizes, data.validation.sample(SUBSET))
        return self._subjects[name]

    def stages(self, choice: Choice, until: str | None = None) -> Iterator[sweep.Event]:
        """Yield the sweep's events of a point, up to the stage `until`; keep their results."""
        subject, stage = self.subject(choice), "preparing"
        self.warnings = []
        events = sweep.stages(self._make_trial(choice), subject.model, subject.data, self.journal, subject.names)
        with closing(events):
            while stage != until:
                event = _catch_warnings(events, self.warnings) if stage == "preparing" else next(events, None)
                if event is None:
                    return
                stage = event.stage
                if event.result and stage != "preparing":
                    key = self.key(choice, stage)  # the result's, unless a model of a script was edited meanwhile
                    if key not in self.points(choice):
                        self._recorded.add(event.result.key)
                    self.points(choice)[key] = event.result
                    self.add(event.result)
                if stage == choice.last_stage:
                    self._keep(key, event.model)
                yield event

    def key(self, choice: Choice, stage: str | None = None) -> str:
        """Return a point's key in the journal, at its last stage unless another is named."""
        setting = trial.complete_setting(self.technique, choice.setting)
        return replace(self._blank(choice)[stage or choice.last_stage], setting=setting).key

    def result(self, choice: Choice, stage: str | None = None) -> Result | None:
        """Return a point's measured Result, or None if it is not known."""
        return self.points(choice).get(self.key(choice, stage))

    def results_of(self, choice: Choice) -> list[Result]:
        """Return the known Results of a point: one-shot and, if it was retrained, retrained."""
        results = [self.result(choice, stage) for stage in dict.fromkeys(("one-shot", choice.last_stage))]
        return [result for result in results if result]

    def model(self, choice: Choice) -> nn.Module | None:
        """Return the measured model of a choice if it is still kept."""
        return self._models.get(self.key(choice))

    def picture_damage(self, choice: Choice, model: nn.Module) -> list:
        """Return Pictures of the answers to validation images that a measured model of a choice changed."""
        subject = self.subject(choice)
        split = subject.data.validation
        if split.metric is not None or not isinstance(split, datasets.Split):
            return []
        with train.threads(1):
            if (choice.model, choice.data) not in self._dense_logits:
                self._dense_logits[choice.model, choice.data] = train.evaluate(subject.model, split)
            logits = train.evaluate(model, split)
        return damage.make_pictures(self._dense_logits[choice.model, choice.data], logits, split, subject.data.classes)

    def fair(self, choice: Choice, label: str) -> Choice:
        """Return the choice of a fair control: its settings laid over the chosen ones."""
        return replace(choice.at(**self.technique.fair_controls[label]), compare=())

    def curves(self, choice: Choice) -> list[Choice]:
        """Return the choice and those of the ticked fair controls: a curve runs through each."""
        return [choice, *(self.fair(choice, label) for label in choice.compare)]

    def longer(self, choice: Choice) -> Choice | None:
        """Return the choice trained for longer, if the technique asks for it."""
        times = self.technique.longer
        return replace(choice, steps=times * choice.steps) if times > 1 and choice.steps else None

    def points(self, choice: Choice) -> dict[str, Result]:
        """Return the known points, by key, that share a choice's conditions."""
        return self._points.setdefault(choice.conditions, {})

    def recall(self, choice: Choice) -> None:
        """Add the journal's points with a choice's conditions to the known ones."""
        for stage in {"one-shot", choice.last_stage}:
            self.points(choice).update(self._read_journal(choice, stage, seed=choice.seed))

    def along(self, choice: Choice, points: dict | None = None) -> dict[str, Result]:
        """Return the points (None: all known), by key, that differ in a choice's control alone."""
        points = self.points(choice).copy() if points is None else points
        rest = self._drop_control(choice, choice.setting)
        return {key: result for key, result in points.items() if rest == self._drop_control(choice, result.setting)}

    def family(self, choice: Choice) -> list[Result]:
        """Return the points along a choice's control, with every seed in the journal."""
        points = self._read_journal(choice, choice.last_stage)
        for known in list(self._points.values()):  # what a journal that failed has lost
            points |= self._select(known.copy(), choice, choice.last_stage)
        return list(self.along(choice, points).values())

    def chart(self, choice: Choice) -> list[tuple[str, pd.DataFrame]]:
        """Return (label, points) of the technique's points and of each ticked fair control's.

        The columns are accuracy, file_bytes, stage; on_curve, whether the point is on the curve through the choice;
        place along it; the setting; and a text that says all this to a person.
        """
        curve, points = self.along(choice), self.points(choice).copy()
        fair = {label: self.along(self.fair(choice, label)) for label in self.technique.fair_controls}
        # A fair control's points have a colour of their own, or none: the technique's colour never shows them.
        for label, in_fair in fair.items():
            for key in in_fair.keys() if label in choice.compare else in_fair.keys() - curve.keys():
                points.pop(key, None)
        frames = []
        for label, group in [("", points), *((label, fair[label]) for label in choice.compare)]:
            visible = [(key, point) for key, point in group.items() if key not in self._hidden]
            rows = [self._make_row(choice, point, bool(label) or key in curve) for key, point in visible]
            frames.append((label, pd.DataFrame(rows, columns=CHART_COLUMNS)))
        return frames

    def _make_row(self, choice, point, on_curve):
        place = point.setting.get(choice.control)
        place = float(place) if isinstance(place, int | float) else 0.0
        text = words.describe_measured(self.technique, point, self.subject(choice))
        return point.accuracy, point.file_bytes, point.stage, on_curve, place, point.setting, text

    def missing(self, choice: Choice, longer: bool = False) -> Choice | None:
        """Return the next point that the chart lacks, with `longer` also the longer training."""
        candidates = [candidate for curve in self.curves(choice) for candidate in self._list_curve(curve)]
        candidates += [self.longer(choice)] if longer and self.longer(choice) else []
        wanted = (point for point in candidates if self.result(point) is None and self.key(point) not in self.failed)
        return next(wanted, None)

    def add(self, *results: Result) -> None:
        """Put Results on the page."""
        for result in results:
            self._results.setdefault(result.key, result)
            self._hidden.discard(result.key)

    def choose(self, choice: Choice) -> None:
        """Put a measured point on the page, in the last rows until another is chosen."""
        results = self.results_of(choice)
        self.add(*results)
        self._chosen = tuple(result.key for result in results)

    def visible(self, choice: Choice) -> Result | None:
        """Return a point's measured Result unless it was cleared."""
        result = self.result(choice)
        return result if result and result.key not in self._hidden else None

    def clear(self, undo: bool = False) -> None:
        """Take all known points off the page, or bring them back."""
        self.cleared = not undo
        self._hidden = set() if undo else set().union(*list(self._points.values()))

    def forget(self) -> int:
        """Take everything that this lab measured out of the journal and off the page; return the number of Results."""
        keys, self._recorded = self._recorded, set()
        self.journal.delete(keys)
        for points in [self._results, self._models, *list(self._points.values())]:
            for key in keys & points.keys():
                del points[key]
        return len(keys)

    def release(self) -> None:
        """Let go of all models; they are made again when they are asked for."""
        self._models.clear()
        self._subjects.clear()
        self._dense_logits.clear()

    def to_frame(self) -> pd.DataFrame:
        """Return the Results measured here and not cleared, those of the chosen point last."""
        shown = {key: result for key, result in self._results.copy().items() if key not in self._hidden}
        last = [shown.pop(key) for key in self._chosen if key in shown]
        return journal.frame([*shown.values(), *last])

    def _make_trial(self, choice):
        training = {"steps": choice.steps, "seed": choice.seed, "batch_size": BATCH_SIZE.get(choice.model)}
        return trial.Trial(self.technique, dict(choice.setting), **training)

    def _blank(self, choice):
        """Return stage -> a Result with nothing measured yet, for the conditions of a choice."""
        if choice.conditions not in self._blanks:
            subject = self.subject(choice)
            resolved = trial.resolved(self._make_trial(choice), subject.model, subject.data)
            blank = trial.blank_results(resolved, subject.model, subject.data, subject.names)
            self._blanks[choice.conditions] = {result.stage: result for result in blank}
        return self._blanks[choice.conditions]

    def _read_journal(self, choice, stage, **where):
        """Return the journal's points, by key, of a choice's technique, model, data and steps."""
        blank = self._blank(choice)[stage]
        names = ("technique", "stage", "steps", "model_fingerprint", "data_fingerprint")
        results = self.journal.results(**{name: getattr(blank, name) for name in names}, **where)
        return self._select({result.key: result for result in results}, choice, stage)

    def _select(self, points, choice, stage):
        """Return the points that would have the same key if measured today."""
        selected = {}
        for key, result in points.items():
            with suppress(ValueError):  # a setting that this version of the technique no longer takes
                if key == self.key(replace(choice, setting=result.setting, seed=result.seed), stage):
                    selected[key] = result
        return selected

    def _list_curve(self, choice):
        """List the points of the curve along a choice's control, nearest first."""
        if choice.control is None:
            return []
        control = next(control for control in self.technique.controls if control.name == choice.control)
        value = choice.setting[control.name]
        settings = sort_by_distance([*list_neighbours(control, value), *list_even_settings(control)], value)
        points = [result for result in self.along(choice).values() if result.stage == choice.last_stage]
        gap = find_widest_gap(control, [(point.setting[control.name], point.file_bytes) for point in points])
        return [choice.at(**{control.name: setting}) for setting in (*settings, gap) if setting is not None]

    def _drop_control(self, choice, setting):
        """Split a complete setting: whether it has the curve's control, and the rest."""
        rest = trial.complete_setting(self.technique, setting)
        return choice.control in rest, {name: value for name, value in rest.items() if name != choice.control}

    def _keep(self, key, model):
        """Keep a measured model without its gradients; let the oldest go for room."""
        model.zero_grad(set_to_none=True)
        self._models = {name: old for name, old in self._models.items() if name != key} | {key: model}
        sizes = {name: sum(tensor.nbytes for tensor in old.state_dict().values()) for name, old in self._models.items()}
        while len(self._models) > 1 and sum(sizes[name] for name in self._models) > MODEL_ROOM:
            del self._models[next(iter(self._models))]


def _catch_warnings(events, messages):
    """Return the next event, or None; move its UserWarnings to `messages`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        event = next(events, None)
    messages += [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    return event
