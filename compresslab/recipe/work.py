"""Running the steps of a recipe, and going on from where the journal has been before."""

import contextlib
import json
from dataclasses import replace

from compresslab import fingerprints, knowledge, layers, storage, sweep, techniques, train
from compresslab.recipe import skeletons
from compresslab.recipe.steps import NOTHING, RETRAIN, SAVE, about, length
from compresslab.sweep import Event
from compresslab.trial import Trial, blank_results, checked, complete_setting, resolved

ANY = 2**62  # bytes that a model from the journal may have: it is our own


class Work:
    """One run of some steps on a model; `events` is what it does. Whoever drives it records the Results.

    blanks  of each step the Result with nothing measured, None for "save": its key says all that led to it
    """

    def __init__(self, steps, model, data, seed, journal, names):
        self.steps, self.model, self.data, self.seed, self.journal = steps, model, data, seed, journal
        self.trials = self._resolved()
        self.blanks = self._blanks(names)

    def events(self):
        """Yields an Event after every step and every step of training, those that the journal holds at once."""
        done, models = self._found()
        for at, step in enumerate(self.steps[:done]):
            if step.name == SAVE:
                yield _saved(step, self._again(at, models))
            else:
                blank = self.blanks[at]
                yield Event(blank.stage, models[done], self.journal.find(blank.key), note=str(step))
        model, technique = models[done], None  # the step of the last one
        for at, step in list(enumerate(self.steps))[done:]:
            if step.name == SAVE:
                yield _saved(step, model)
            elif step.name == RETRAIN:
                technique = technique or self._technique_before(at)
                model = yield from self._retrained(at, model, technique)
                yield self._measured(at, model)
            else:
                start, technique = model, step
                with about(step):
                    model = sweep.compress(self.trials[at], start, self.data)
                yield Event("compressed", model, start=start, note=str(step))
                yield self._measured(at, model)

    def _retrained(self, at, model, technique):
        """Train a copy of the model as a step says; returns what comes back from its file, as it will another time."""
        step, trial, skeleton, model = self.steps[at], self.trials[at], layers.plain(model), layers.duplicate(model)
        if trial.steps:
            with about(step):
                split, loss = lesson(step, technique, self.model, model, self.data.train, trial.seed)
                options = length(trial) | {"seed": trial.seed}
                with contextlib.closing(train.fit(model, split, loss=loss, bar=False, **options)) as training:
                    for progress in training:
                        yield Event("training", model, progress=progress, note=str(step))
        blob = storage.dumps(model, fold=False)  # what is trained next is what there was, dead units too
        if self.journal is not None:
            self.journal.keep_model(self.blanks[at].key, blob)
            if _has_own_classes(skeleton):
                skeletons.keep(self.blanks[at].key, layers.duplicate(skeleton))
        return _with_modes(storage.loads(blob, into=skeleton, max_bytes=ANY), self.model)

    def _measured(self, at, model):
        """The Event of a step that is done."""
        blank = self.blanks[at]
        return Event(blank.stage, model, sweep.measured(blank, model, self.data), note=str(self.steps[at]))

    def _resolved(self):
        """Of each step its Trial, all retrainings in the arithmetic that is the fastest for the model as it was."""
        trials = []
        for step in self.steps:
            with about(step):
                trials.append(checked(step.trial(self.seed), self.data))
        automatic = [trial for trial in trials if trial.steps and trial.precision == "auto"]
        if not automatic:
            return trials
        precision = resolved(automatic[0], self.model, self.data).precision
        return [replace(trial, precision=precision) if trial in automatic else trial for trial in trials]

    def _blanks(self, names):
        nothing = checked(Trial(NOTHING, steps=0, seed=self.seed), self.data)
        first, _ = blank_results(nothing, self.model, self.data, names)
        done, digests, blanks = [], {}, []
        for step, trial in zip(self.steps, self.trials, strict=True):
            if step.name == SAVE:
                blanks.append(None)
                continue
            done.append(step.told(trial))
            if step.compresses:
                digests[step.name] = fingerprints.of_technique(trial.technique)
            versions = first.versions | {"technique": json.dumps(digests, sort_keys=True)}
            blank = replace(first, technique="recipe", setting={"steps": list(done)}, versions=versions)
            trained = {} if step.compresses else {"stage": "retrained"} | length(trial)
            blanks.append(replace(blank, **trained))
        return blanks

    def _found(self):
        """How many steps the journal spares, and models by the number of steps behind them: as given (0), after those
        retrainings that a file to be written goes back to, and after all the steps that are spared.
        """
        ends = [at + 1 for at, step in enumerate(self.steps) if step.name == RETRAIN and self.journal is not None]
        held = [end for end in ends if all(map(self._is_held, self.blanks[:end]))]
        for done in reversed(held):
            saves = [at for at, step in enumerate(self.steps[:done]) if step.name == SAVE]
            needed = {max((end for end in held if end <= at), default=0) for at in saves} | {done}
            models = {end: self._reloaded(end - 1) if end else self.model for end in sorted(needed)}
            if None not in models.values():
                return done, models
        return 0, {0: self.model}

    def _is_held(self, blank):
        return blank is None or self.journal.find(blank.key) is not None

    def _again(self, at, models):
        """The model that comes to a step which is spared: the techniques since the last retraining are done again."""
        begin = max(end for end in models if end <= at)
        model = models[begin]
        for step, trial in zip(self.steps[begin:at], self.trials[begin:at], strict=True):
            if step.compresses:
                with about(step):
                    model = sweep.compress(trial, model, self.data)
        return model

    def _reloaded(self, at):
        """The model after a retraining, from the journal, or None where its class cannot be made again."""
        key = self.blanks[at].key
        if (blob := self.journal.find_model(key)) is None:
            return None
        for into in (skeletons.find(key), layers.plain(self.model)):
            with contextlib.suppress(ValueError):
                if into is not None:
                    return _with_modes(storage.loads(blob, into=into, max_bytes=ANY), self.model)
        with contextlib.suppress(ValueError):
            loaded = storage.loads(blob, max_bytes=ANY)
            return None if _has_own_classes(self.model) else _with_modes(loaded, self.model)
        return None

    def _technique_before(self, at):
        return next((step for step in reversed(self.steps[:at]) if step.compresses), None)


def lesson(step, technique, teacher, model, split, seed):
    """(split, loss) of a retraining.

    step       its Step
    technique  Step of the technique that came last, or None: one with a training of its own has its way
    teacher    the model that the recipe was given;  model  the one that is to be trained
    """
    if step.teaching:
        return split, knowledge.loss(teacher, student=model, images=split.images[:2], seed=seed, **step.teaching)
    own = techniques.get(technique.name) if technique else None
    if own is None or own.training is None:
        return split, train.cross_entropy
    with sweep.seeded(seed):
        return own.training(teacher, model, split, complete_setting(own, technique.setting), seed)


def _saved(step, model):
    """Write a file as a step says; returns the Event."""
    storage.save(model, step.setting["path"])
    return Event("saved", model, note=str(step))


def _with_modes(model, given):
    """A model with every module in the mode of the one of that name in the model that the recipe was given, or, where
    there is none, of the one around it; the same whether it was trained now or comes from the journal.
    """
    modes = {name: one.training for name, one in given.named_modules()}
    for name, one in model.named_modules():
        while name not in modes:
            name = name.rpartition(".")[0]
        one.training = modes[name]
    return model


def _has_own_classes(model):
    """Whether some module is of a class that a file cannot make: neither of torch.nn nor of the workbook."""
    bases = {base for module in model.modules() for base in type(module).__mro__}
    return any(not base.__module__.startswith(("torch.nn.", "compresslab.", "builtins")) for base in bases)
