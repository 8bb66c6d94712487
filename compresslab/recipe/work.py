"""Running the steps of a recipe, and going on from where the journal has been before."""

import contextlib
import json
from dataclasses import replace

from compresslab import knowledge, layers, storage, sweep, techniques, train
from compresslab.recipe.steps import NOTHING, RETRAIN, SAVE, TEACHER
from compresslab.sweep import Event
from compresslab.trial import Trial, blank_results, checked, code_digest, complete_setting, resolved

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
        done, model = self._found()
        for step, blank in zip(self.steps[:done], self.blanks, strict=False):
            yield Event(blank.stage, model, self.journal.find(blank.key), note=str(step))
        technique = None  # the step of the last one
        for at, step in list(enumerate(self.steps))[done:]:
            if step.name == SAVE:
                storage.save(model, step.setting["path"])
                yield Event("saved", model, note=str(step))
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
        step, trial, model = self.steps[at], self.trials[at], layers.duplicate(model)
        if trial.steps:
            with about(step):
                split, loss = lesson(step, technique, self.model, model, self.data.train, self.seed)
                options = {name: getattr(trial, name) for name in ("steps", "seed", "lr", "batch_size", "precision")}
                training = train.fit(model, split, loss=loss, bar=False, **options)
            with contextlib.closing(training):
                for progress in training:
                    yield Event("training", model, progress=progress, note=str(step))
        blob = storage.dumps(model, fold=False)  # what is trained next is what there was, dead units too
        if self.journal is not None:
            self.journal.keep_model(self.blanks[at].key, blob)
        return storage.loads(blob, into=layers.duplicate(model), max_bytes=ANY)

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
            training = {}
            if step.compresses:
                digests[step.name] = code_digest(trial.technique)
                done.append([step.name, trial.setting])
            else:
                training = {name: getattr(trial, name) for name in ("steps", "lr", "batch_size", "precision")}
                taught = (
                    {"teacher": True, **TEACHER, **_only(step.setting, TEACHER)} if step.setting.get("teacher") else {}
                )
                done.append([RETRAIN, training | taught])
            versions = first.versions | {"technique": json.dumps(digests, sort_keys=True)}
            blank = replace(first, technique="recipe", setting={"steps": list(done)}, versions=versions, **training)
            blanks.append(replace(blank, stage="retrained" if training else "one-shot"))
        return blanks

    def _found(self):
        """How many steps the journal spares, and the model after them."""
        saves = next((at for at, step in enumerate(self.steps) if step.name == SAVE), len(self.steps))
        ends = [at for at in range(saves) if self.steps[at].name == RETRAIN]  # a file that is to be written comes after
        for at in reversed(ends if self.journal is not None else []):
            if all(self.journal.find(blank.key) for blank in self.blanks[: at + 1]):
                blob = self.journal.find_model(self.blanks[at].key)
                if blob is not None and (model := _reloaded(blob, self.model)) is not None:
                    return at + 1, model
        return 0, self.model

    def _technique_before(self, at):
        return next((step for step in reversed(self.steps[:at]) if step.compresses), None)


def lesson(step, technique, teacher, model, split, seed):
    """(split, loss) of a retraining.

    step       its Step
    technique  Step of the technique that came last, or None: one with a training of its own has its way
    teacher    the model that the recipe was given;  model  the one that is to be trained
    """
    if step.setting.get("teacher"):
        asked = TEACHER | _only(step.setting, TEACHER)
        return split, knowledge.loss(teacher, student=model, images=split.images[:2], seed=seed, **asked)
    own = techniques.get(technique.name) if technique else None
    if own is None or own.training is None:
        return split, train.cross_entropy
    with sweep.seeded(seed):
        return own.training(teacher, model, split, complete_setting(own, technique.setting), seed)


@contextlib.contextmanager
def about(step):
    """A ValueError in here says which step it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{step}: {error}") from error


def _reloaded(blob, model):
    """A model from the journal as it was when it was kept, or None where its class cannot be made again.

    model  what the recipe was given: its class, where the file fits into it, as after steps that remove nothing
    """
    with contextlib.suppress(ValueError):
        return storage.loads(blob, into=layers.duplicate(model), max_bytes=ANY)
    with contextlib.suppress(ValueError):
        loaded = storage.loads(blob, max_bytes=ANY)
        return loaded if type(loaded) is type(model) else None
    return None


def _only(setting, names):
    return {name: value for name, value in setting.items() if name in names}
