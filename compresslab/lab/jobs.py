"""What a lab's worker does: jobs that measure a choice and draw it on the way, a small step at a time."""

import html
from contextlib import closing
from dataclasses import replace
from time import perf_counter

from compresslab import measure, techniques, train
from compresslab.lab import split, words
from compresslab.lab.chart import NO_POINT
from compresslab.lab.page import ledger_table
from compresslab.lab.worker import HOLD

PARTIAL = 0.3  # seconds between two accuracies on the way, at least
TICK = 0.1  # seconds between two movements of the progress bar
SHARE = 5  # an accuracy on the way may take one part in so many of the time


class Jobs:
    """The jobs of one lab; each public method that yields is one. Run by one thread at a time.

    opened   model, data, steps and seed that the chart shows
    settled  the newest Choice, once it is measured; None while it is not
    error    the last error shown, or None
    on_rest  called when the newest choice is measured
    """

    def __init__(self, session, page, chart, gallery, record, threaded):
        self._session, self._page, self._chart = session, page, chart
        self._gallery, self._record, self._threaded = gallery, record, threaded
        self.opened = self.settled = self._weighed = self.error = None
        self.on_rest = lambda: None
        self._said, self._caught = "", []  # the status line, and warnings of the technique for the newest choice

    def announce(self, choice):
        """What can be shown of a choice in the moment in which a slider moves, while the worker may be in the middle of
        something: its setting, and its point if that is measured. Called from the slider's callback.
        """
        if self.opened == (choice.model, choice.data, choice.steps, choice.seed):
            self._caught = []
            self._say(choice, "measuring …")
            self._chart.move(**(NO_POINT | self._places(self._results(choice))))
            self._describe(choice)

    def measure(self, choice):
        """Measure a choice: what is known at once, then one-shot, then retrained; then all that goes with it."""
        self.settled, self._caught = None, []
        self._say(choice, "measuring …")
        yield
        yield from self._open(choice)
        if self._session.result(choice):
            self._settle(choice)
            yield
            yield from self._look_inside(choice)
        else:
            yield from self._compute(choice)
        yield from self.redraw(choice)
        if self._session.model(choice) or not self._threaded:
            yield from self._weigh(choice)
        for label in choice.compare:
            yield from self._fill(choice, self.fair(choice, label))
        self._rest(choice)

    def whole_curve(self, choice):
        """Measure a choice and every setting of the curve through it."""
        yield from self.measure(choice)
        self.settled, count = None, 0
        self.tell("")
        while missing := self._missing(choice):
            self._say(choice, f"measuring the whole curve: {self._words(missing)} …")
            yield from self._fill_quietly(choice, missing)
        for _, result in self._session.along(choice):
            self._record.add(result)
            count += result.stage == choice.last_stage
        for label in choice.compare:
            self._record.add(*(result for _, result in self._session.along(self.fair(choice, label))))
        yield from self.redraw(choice)
        self._settle(choice)
        if choice.control:
            self.tell(f"The curve along {choice.control} has {count} measured points.")
        self._rest(choice)

    def report(self, choice):
        """The chosen point on the test images: the one place where they are used."""
        yield from self.measure(choice)
        self.settled = None
        subject = self._session.subject(choice)
        model = yield from self._model(choice)
        self._say(choice, "measuring on the test images …")
        yield
        with train.threads(1):
            found = measure.accuracy_interval(model, subject.data.test)
            yield
            dense = measure.accuracy_interval(subject.model, subject.data.test)
        self._settle(choice)
        self.tell(words.test_report(self._all_words(choice), found, dense, len(subject.data.test)))
        self._rest(choice)

    def show_cleared(self, choice):
        """After a clear, a page that shows nothing measured; after its undo, the page as it was."""
        if not self._record.cleared:
            yield from self.measure(choice)
            return
        self._record.clear_late(self._session.known)
        self.settled, self.error, self._caught = None, None, []
        yield from self._open(choice)
        self._empty()
        self._gallery.empty()
        self._chart.moving = replace(self._chart.moving, **NO_POINT)
        yield from self.redraw(choice)
        self._say(choice, "cleared; move a control to measure, or undo the clear")
        self.on_rest()

    def redraw(self, choice):
        """Draw the still part of the chart anew: the points that are known, less those that were cleared."""
        subject = self._session.subject(choice)
        self._chart.still(subject, self._groups(choice))
        self._describe(choice)
        yield

    def _describe(self, choice):
        """The caption of the chart: the dense model and, where it is on the picture, the chosen point."""
        result = self._session.result(choice)
        shown = result is not None and self._record.shown(result.key)
        self._chart.panel.say(words.chart(self._session.subject(choice), result if shown else None))

    def next_background(self):
        """A job for idle time: the ledger of a point from the journal, then the rest of the curve, nearest first, then
        the point trained for longer where the technique asks for that.
        """
        choice = self.settled
        if choice is None:
            return None
        if self._weighed != choice:
            return lambda: self._weigh(choice)
        if missing := self._missing(choice):
            return lambda: self._fill_quietly(choice, missing)
        return (lambda: self._fill_quietly(choice, self._longer(choice))) if self._waits_for_longer(choice) else None

    def show_error(self, problem):
        """An exception in words, on the page and in `error`, until the next good result."""
        self.error = words.error(problem)
        self._page.progress.value = 0
        self._page.status.value = f"<span class='compresslab-error'>{html.escape(self.error)}</span>"

    def tell(self, text):
        """A line below the buttons."""
        self._page.note.value = text

    def fair(self, choice, label):
        """The choice of a fair control: its settings laid over the chosen ones."""
        return replace(choice.at(**self._session.technique.fair_controls[label]), compare=())

    def _missing(self, choice):
        """The next setting that the curves on the chart lack: that of the choice first, then the fair controls'."""
        chosen = [choice, *(self.fair(choice, label) for label in choice.compare)]
        return next((missing for one in chosen if (missing := self._session.missing(one))), None)

    def _longer(self, choice):
        """The chosen point trained for longer, or None where the technique does not ask for it."""
        times = self._session.technique.longer
        return choice.lengthened(times) if times > 1 and choice.steps else None

    def _waits_for_longer(self, choice):
        longer = self._longer(choice)
        return bool(longer) and self._session.result(longer) is None and not self._session.given_up(longer)

    def _rest(self, choice):
        """The newest choice is measured, with all that goes with it."""
        self.settled = choice
        self.on_rest()

    def _open(self, choice):
        """Load what a choice needs; where the chart shows something else, begin it with what the journal holds."""
        opened = choice.model, choice.data, choice.steps, choice.seed
        if self.opened == opened:
            return
        self.tell("")
        try:
            self._session.subject(choice)
        except Exception:
            self.opened = None  # nothing of the network shown so far is true of this choice
            self._empty()
            self._gallery.reset()
            self._chart.reset()
            self._chart.panel.blank()
            self._chart.panel.say("Nothing is measured yet.")
            raise
        yield
        self._session.recall(choice)
        if self.opened is None or self.opened[:2] != opened[:2]:
            self._empty()
            self._chart.reset()
            self._gallery.reset()
        self._chart.moving = replace(self._chart.moving, **NO_POINT)
        self.opened = opened
        yield from self.redraw(choice)

    def _compute(self, choice):
        """Compress, measure, retrain and measure a choice; draw its inside on the way, or after a short training."""
        last = bar = perf_counter()
        inside, began = iter(()), 0.0
        with closing(self._session.events(choice)) as events:
            for event in events:
                if event.stage == "preparing":
                    bar = self._show_preparing(choice, event, bar)
                elif event.stage == "compressed":
                    self._caught = self._session.warned
                    pictures = self._pictures(choice, event)
                    yield from self._gallery.draw(pictures, moving=True)
                    inside = self._gallery.draw(pictures)
                elif event.stage == "one-shot":
                    self._show_one_shot(choice, event.result)
                    last = bar = perf_counter()
                elif event.stage == "training":
                    began = perf_counter() if event.progress.step == 1 else began
                    if _seconds_left(event.progress, began) > PARTIAL:  # else the point is there before one looks
                        yield from inside
                        last = self._show_partial(choice, event, last)
                    bar = self._show_progress(event.progress, bar)
                yield HOLD if event.progress else None
        self._settle(choice)
        yield
        yield from inside

    def _look_inside(self, choice):
        """The pictures of a choice that is measured already: it has to be compressed again, not retrained."""
        with closing(self._session.events(choice)) as events:
            for event in events:
                if event.stage == "compressed":
                    break
                yield HOLD if event.progress else None
            self._caught = self._session.warned
            self._say(choice, self._said)
            pictures = self._pictures(choice, event)
            yield from self._gallery.draw(pictures, moving=True)
            yield from self._gallery.draw(pictures)

    def _fill(self, choice, wanted):
        """Measure another setting than the chosen one, and put it on the picture."""
        if self._session.result(wanted) is None:
            with closing(self._session.events(wanted)) as events:
                for event in events:
                    yield HOLD if event.progress else None
        self._record.add(*self._results(wanted))
        if wanted == self._longer(choice):
            self._settle(choice)
        yield from self.redraw(choice)

    def _fill_quietly(self, choice, wanted):
        """`_fill` in idle time: a setting that fails is left out of the curve, with a note."""
        try:
            yield from self._fill(choice, wanted)
        except Exception as problem:  # noqa: BLE001 - nobody asked for this setting; what it raises is said, in words
            self._session.give_up(wanted)
            self.tell(html.escape(f"The curve lacks {self._words(wanted)}: {words.error(problem)}"))

    def _model(self, choice):
        """The measured model of a choice, computed again if it is not kept; `yield from` this."""
        if self._session.model(choice) is None:
            with closing(self._session.events(choice)) as events:
                for event in events:
                    yield HOLD if event.progress else None
        return self._session.model(choice)

    def _weigh(self, choice):
        """The ledger of the chosen point, and the picture of its bytes."""
        model = yield from self._model(choice)
        sizes = measure.sizes(model)
        dense_bytes = self._session.subject(choice).sizes.dense_bytes
        self._page.ledger.value = ledger_table(sizes, f"What {self._all_words(choice)} costs", dense_bytes)
        self._weighed = choice
        yield
        yield from self._gallery.draw([split.picture(sizes)])

    def _pictures(self, choice, event):
        """The technique's pictures of what happened inside, with room made for them on the page.

        event  "compressed": the model that the technique was given, and what it made of it
        """
        subject = self._session.subject(choice)
        with train.threads(1):
            pictures = techniques.pictures(
                self._session.technique, event.start, event.model, choice.setting, subject.data
            )
        self._page.show_pictures(self._gallery.arrange([*(picture.name for picture in pictures), split.NAME]))
        return pictures

    def _settle(self, choice):
        """The chosen point is measured: draw it, say it, and compare it with a guess."""
        results = self._results(choice)
        self._record.choose(*results)
        measured = results[-1]
        self._make_room(choice, measured)
        self._chart.move(**(NO_POINT | self._places(results) | {"longer": self._place_of_longer(choice)}))
        self._page.progress.value = 1
        self.error = None
        subject = self._session.subject(choice)
        size = words.size(measured.file_bytes, subject.sizes.dense_bytes)
        text = f"{words.accuracy(measured, subject.accuracy)}; {size}"
        if choice.steps:
            text += f"; {choice.steps} steps in {measured.precision}"
        if self._chart.moving.longer:
            *_, better, steps = self._chart.moving.longer
            text += f"; with {steps} steps {better:.2%}"
        if self._chart.moving.guess:
            text += f"; {words.miss(self._chart.moving.guess, measured)}"
        self._say(choice, text)

    def _results(self, choice):
        """The Results of a measured choice: one-shot and, if it was retrained, retrained."""
        stages = dict.fromkeys(("one-shot", choice.last_stage))
        found = [self._session.result(choice, stage) for stage in stages]
        return [result for result in found if result is not None]

    def _places(self, results):
        """Results as what the chart's moving point is made of."""
        places = {result.stage: (result.file_bytes, result.accuracy) for result in results}
        return {"one_shot": places.get("one-shot"), "retrained": places.get("retrained")}

    def _place_of_longer(self, choice):
        """(file_bytes, accuracy, steps) of the chosen point trained for longer, once that is measured."""
        longer = self._longer(choice)
        result = longer and self._session.result(longer)
        return (result.file_bytes, result.accuracy, result.steps) if result else None

    def _show_one_shot(self, choice, result):
        self._record.add(result)
        self._make_room(choice, result)
        self._chart.move(one_shot=(result.file_bytes, result.accuracy))
        if choice.steps:
            accuracy = words.accuracy(result, self._session.subject(choice).accuracy)
            precision = self._session.precision(choice)
            self._say(choice, f"one-shot {accuracy}; {words.kib(result.file_bytes)}; retraining in {precision} …")

    def _show_partial(self, choice, event, last):
        """An accuracy on the way, on a part of the validation images, at most every 0.3 s; when the last was."""
        started = perf_counter()
        if started - last < PARTIAL:
            return last
        subset = self._session.subject(choice).subset
        with train.threads(1):
            accuracy = train.accuracy_of(train.evaluate(event.model, subset), subset.labels)
        self._chart.move(trail=(*self._chart.moving.trail, accuracy))
        spent = perf_counter() - started
        return perf_counter() + max(0.0, SHARE * spent - PARTIAL)

    def _show_preparing(self, choice, event, last):
        """The step that a recipe is at, before its last technique."""
        text = f"{event.note} …"
        if self._said != text:
            self._say(choice, text)
        return self._show_progress(event.progress, last) if event.progress else last

    def _show_progress(self, progress, last):
        now = perf_counter()
        if now - last >= TICK:
            self._page.progress.value = progress.step / progress.steps
            return now
        return last

    def _make_room(self, choice, result):
        """Widen the chart's limits if a point would lie outside."""
        if not self._chart.fits(result.file_bytes, result.accuracy):
            self._chart.still(self._session.subject(choice), self._groups(choice))

    def _groups(self, choice):
        """What the chart shows: for the chosen settings and each fair control (label, rows of their known points)."""
        chosen = [("", choice), *((label, self.fair(choice, label)) for label in choice.compare)]
        families = [(label, {key for key, _ in self._session.along(one)}) for label, one in chosen]
        fair = set().union(*(keys for _, keys in families[1:]))
        for label in set(self._session.technique.fair_controls) - set(
            choice.compare
        ):  # in a colour of its own, or not at all
            fair |= {key for key, _ in self._session.along(self.fair(choice, label))} - families[0][1]
        groups = []
        for label, family in families:
            known = self._session.alike(choice) if not label else self._session.along(self.fair(choice, label))
            rows = [
                {"accuracy": one.accuracy, "file_bytes": one.file_bytes, "stage": one.stage, "family": key in family}
                for key, one in known
                if self._record.shown(key) and (label or key not in fair)
            ]
            groups.append((label, rows))
        return groups

    def _empty(self):
        """Take from the page what belongs to a point: the ledger, the pictures of its inside, the note."""
        self._page.ledger.value, self._weighed = "", None
        self._page.progress.value = 0
        self._page.show_pictures([])
        self.tell("")

    def _words(self, choice):
        return words.setting(self._session.technique, choice.setting)

    def _all_words(self, choice):
        """A setting with all that its point depends on beside the model and the data."""
        training = f", {choice.steps} steps, seed {choice.seed}" if choice.steps else ", one-shot"
        return self._words(choice) + training

    def _say(self, choice, text):
        """The status line: the setting, and what is known of it."""
        self._said = text
        warned = "".join(f"<br><span class='compresslab-error'>{html.escape(one)}</span>" for one in self._caught)
        self._page.status.value = f"<b>{html.escape(self._words(choice))}</b>: {html.escape(text)}{warned}"


def _seconds_left(progress, began):
    """Seconds that a training will still take at its pace since `began`, when its first step was over."""
    done, left = progress.step - 1, progress.steps - progress.step
    return (perf_counter() - began) * left / done if done else 0.0
