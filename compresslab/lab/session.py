"""What a lab computes, without a single widget: dense baselines, measured points, and which settings are still missing.

A point is measured by `sweep.stages`, as a sweep measures it, so that a curve drawn by hand and one made by a sweep
are the same numbers. The models measured last are kept while there is room, so that a point can be looked at again.
"""

import warnings
from collections import OrderedDict
from contextlib import closing, suppress
from dataclasses import dataclass, replace

from torch import nn

from compresslab import data as datasets
from compresslab import fingerprints, measure, models, sweep, train, trial
from compresslab.lab.span import even_settings, nearest_first, neighbours, widest_gap

DATA = ("mnist", "fashion_mnist")  # with trained baselines
YOURS = "yours"  # how an own model or own data is called in a chooser
SUBSET = 2000  # validation images for the accuracies on the way
MODEL_ROOM = 8 * 2**20  # bytes of retrained models that are kept
STEPS = 60  # of retraining, unless told otherwise: a measured point within half a second for the MLPs
FEWER_STEPS = {"article_mlp": 40, "lenet_5": 30}  # for slower networks
BATCH_SIZE = {"lenet_5": 64}  # images a step, where many small steps recover more in the same time than few large ones


@dataclass(frozen=True)
class Choice:
    """Everything a person has chosen; a measured point depends on model, data, setting, steps and seed alone.

    model, data  names, or YOURS
    setting      the technique's setting, by parameter name
    compare      labels of the fair controls that are shown
    control      name of the control moved last: the curve runs along it
    """

    model: str
    data: str
    setting: dict
    steps: int
    seed: int
    compare: tuple = ()
    control: str | None = None

    @property
    def last_stage(self):
        """The stage that a measured point ends with."""
        return "retrained" if self.steps else "one-shot"

    def lengthened(self, times):
        """The same choice, trained for so many times the steps."""
        return replace(self, steps=times * self.steps)

    def at(self, **setting):
        """The same choice with some settings changed."""
        return replace(self, setting={**self.setting, **setting})


@dataclass(frozen=True)
class Subject:
    """A loaded model with its data, and what it costs before compression.

    names     how the journal calls them
    accuracy  of the dense model on the validation images
    sizes     its SizeLedger
    subset    the first validation images, for accuracies on the way
    """

    model: nn.Module
    data: datasets.Data
    names: dict
    accuracy: float
    sizes: measure.SizeLedger
    subset: datasets.Split


def default_steps(technique, model):
    """Retraining steps of a technique, or of a model by its name: fixed numbers, so that a point does not depend on the
    machine.
    """
    return FEWER_STEPS.get(model, STEPS) if technique.steps is None else technique.steps


class Session:
    """The worker's side of a lab: loads, measures, remembers. Used by one thread at a time.

    technique  a contract Technique
    own_model, own_data  what a person brought, or None
    journal    where every Result goes
    known      key -> Result: what the journal holds and what was measured here
    warned     the technique's warnings for the newest choice that was compressed
    """

    def __init__(self, technique, own_model, own_data, journal):
        self.technique, self.journal, self.known = technique, journal, {}
        self.warned = []
        self._own = own_model, own_data
        self._subjects, self._templates, self._failed = {}, {}, set()
        self._models = OrderedDict()  # key -> measured model, the one used last at the end

    def subject(self, choice):
        """The Subject of a choice, loaded and measured the first time it is asked for."""
        name = choice.model, choice.data
        if name not in self._subjects:
            data = self._own[1] if choice.data == YOURS else datasets.load(choice.data)
            model = self._own[0] if choice.model == YOURS else models.pretrained(choice.model, data.name)
            names = {"model": trial.name_of(model) if choice.model == YOURS else choice.model, "data": data.name}
            with train.threads(1):
                accuracy, sizes = measure.accuracy(model, data.validation), measure.sizes(model)
            self._subjects[name] = Subject(model, data, names, accuracy, sizes, data.validation[:SUBSET])
        return self._subjects[name]

    def release(self):
        """Let go of all models; they are made again when they are asked for."""
        self._models.clear()
        self._subjects.clear()

    def trial(self, choice):
        """The sweep's Trial of a choice."""
        batch_size = BATCH_SIZE.get(choice.model)
        return trial.Trial(
            self.technique, dict(choice.setting), steps=choice.steps, seed=choice.seed, batch_size=batch_size
        )

    def key(self, choice, stage=None):
        """The key that a measured point of this choice has in the journal; by default that of its last stage."""
        setting = trial.complete_setting(self.technique, choice.setting)
        return replace(self._template(choice)[stage or choice.last_stage], setting=setting).key

    def precision(self, choice):
        """Name of the arithmetic in which a choice is retrained on this machine."""
        return self._template(choice)["retrained"].precision

    def _template(self, choice):
        """stage -> a Result with nothing measured yet, for the model, data, steps and seed of a choice."""
        name = choice.model, choice.data, choice.steps, choice.seed
        if name not in self._templates:
            subject = self.subject(choice)
            resolved = trial.resolved(self.trial(choice), subject.model, subject.data)
            blank = trial.blank_results(resolved, subject.model, subject.data, subject.names)
            self._templates[name] = {result.stage: result for result in blank}
        return self._templates[name]

    def result(self, choice, stage=None):
        """The measured Result of a choice, or None if it is not known."""
        return self.known.get(self.key(choice, stage))

    def events(self, choice):
        """The sweep's events of one point: preparing …, compressed, one-shot, training …, retrained. What it measures
        is kept.

        The technique's warnings are in `warned` from "compressed" on: a notebook would show them in any cell.
        """
        subject = self.subject(choice)
        events = sweep.stages(self.trial(choice), subject.model, subject.data, self.journal, subject.names)
        with closing(events):
            self.warned, stage = [], "preparing"
            while stage == "preparing":
                event, warned = _listened(events)
                self.warned += [one for one in warned if one not in self.warned]
                stage = event.stage
                yield event
            for event in events:
                if event.result:
                    self.known[event.result.key] = event.result
                if event.stage == choice.last_stage:
                    self._keep(event.result.key, event.model)
                yield event

    def model(self, choice):
        """The measured model of a choice if it is still kept, or None."""
        return self._models.get(self.key(choice))

    def recall(self, choice):
        """Take into `known` what the journal holds for this technique, model, data, steps and seed."""
        subject = self.subject(choice)
        where = {"technique": self.technique.name, "seed": choice.seed, "data_fingerprint": subject.data.fingerprint}
        where["model_fingerprint"] = fingerprints.of_model(subject.model)
        for stage in ("one-shot", choice.last_stage):
            steps = choice.steps if stage == "retrained" else 0
            for result in self.journal.results(stage=stage, steps=steps, **where):
                with suppress(ValueError):  # a setting that this version of the technique no longer takes
                    if result.key == self.key(replace(choice, setting=result.setting), stage):
                        self.known[result.key] = result

    def alike(self, choice):
        """The known Results with the model, data, steps and seed of a choice, as pairs (key, Result)."""
        subject = self.subject(choice)
        for key, result in list(self.known.items()):
            steps = choice.steps if result.stage == "retrained" else 0
            names = {"model": result.model, "data": result.data}
            if names == subject.names and (result.steps, result.seed) == (steps, choice.seed):
                yield key, result

    def missing(self, choice):
        """The next setting of the curve along `choice.control` that is not measured, or None when it is whole."""
        control = next((one for one in self.technique.controls if one.name == choice.control), None)
        if control is None:
            return None
        value = choice.setting[control.name]
        wanted = nearest_first([*neighbours(control, value), *even_settings(control)], value)
        for setting in (*wanted, *self._gap(choice, control)):
            there = choice.at(**{control.name: setting})
            if self.result(there) is None and self.key(there) not in self._failed:
                return there
        return None

    def along(self, choice):
        """The known Results, of all stages, that differ from a choice in its control alone, as pairs (key, Result)."""
        rest = self._rest(choice, choice.setting)
        for key, result in self.alike(choice):
            if rest == self._rest(choice, result.setting):
                yield key, result

    def family(self, choice):
        """What the journal holds of the curve through a choice, at its last stage, with every seed."""
        subject, stage = self.subject(choice), choice.last_stage
        where = {"technique": self.technique.name, "stage": stage, "data_fingerprint": subject.data.fingerprint}
        where |= {"model_fingerprint": fingerprints.of_model(subject.model)}
        found, rest = [], self._rest(choice, choice.setting)
        measured = self.journal.results(steps=choice.steps if stage == "retrained" else 0, **where)
        keys = {result.key for result in measured}
        for result in (*measured, *(one for key, one in list(self.known.items()) if key not in keys)):
            with suppress(ValueError):  # a setting that this version of the technique no longer takes
                there = replace(choice, setting=result.setting, seed=result.seed)
                if rest == self._rest(choice, result.setting) and result.key == self.key(there, stage):
                    found.append(result)
        return found

    def give_up(self, choice):
        """Do not try this setting for the curve again: it fails."""
        self._failed.add(self.key(choice))

    def given_up(self, choice):
        """Whether this setting failed before."""
        return self.key(choice) in self._failed

    def _rest(self, choice, setting):
        """A complete setting without the control that the curve runs along, and whether it was there."""
        setting = trial.complete_setting(self.technique, setting)
        return choice.control in setting, {name: one for name, one in setting.items() if name != choice.control}

    def _gap(self, choice, control):
        points = [result for _, result in self.along(choice) if result.stage == choice.last_stage]
        gap = widest_gap(control, [(result.setting[control.name], result.file_bytes) for result in points])
        return [] if gap is None else [gap]

    def _keep(self, key, model):
        """Keep a measured model, without its gradients, and let the oldest go when there is no more room."""
        model.zero_grad(set_to_none=True)
        self._models[key] = model
        self._models.move_to_end(key)
        while len(self._models) > 1 and sum(map(_bytes, self._models.values())) > MODEL_ROOM:
            self._models.popitem(last=False)


def _listened(events):
    """The next event, and the UserWarnings that were given on the way to it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        event = next(events)
    return event, [str(one.message) for one in caught if issubclass(one.category, UserWarning)]


def _bytes(model):
    return sum(tensor.nbytes for tensor in model.state_dict().values())
