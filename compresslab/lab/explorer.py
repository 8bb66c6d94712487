"""The live lab: a page of widgets that really compresses, retrains and measures while a slider moves."""

import functools
import gc
from contextlib import suppress

import ipywidgets as widgets

from compresslab import journal as journals
from compresslab.lab import code, files, words
from compresslab.lab.chart import Chart
from compresslab.lab.gallery import Gallery
from compresslab.lab.jobs import Jobs
from compresslab.lab.page import Page, close_widgets
from compresslab.lab.record import Record
from compresslab.lab.session import Choice, default_steps
from compresslab.lab.worker import Worker


class Lab(widgets.VBox):
    """What `explore` returns; IPython shows it as a page of widgets.

    controls  name -> widget: each parameter of the technique, and "model", "data", "steps", "seed"
    buttons   name -> button: "whole curve", "report on test", "export CSV", "show the code", "clear", "lock in", …
    fair      label -> checkbox of a fair control
    guess     "accuracy" (percent), "size" (KiB; 0 for none) -> field
    """

    def __init__(self, session, controls, choosers, fair, threaded):
        self._session, self._settings, self.fair = session, controls, fair
        self.controls = {**controls.widgets, **choosers}
        self._chart, self._record = Chart(), Record()
        self._page = Page(choosers.values(), controls.widgets.values(), fair, self._chart.panel)
        self.buttons, self.guess = self._page.buttons, self._page.guess
        self._gallery = Gallery()
        self._jobs = Jobs(session, self._page, self._chart, self._gallery, self._record, threaded)
        self._worker = Worker(self._jobs.next_background, self._jobs.show_error, threaded)
        self._jobs.on_rest = self._write_code
        super().__init__(self._page.children, layout=widgets.Layout(width="100%"))
        self.add_class("compresslab")
        self._listen()
        session.journal.tell_problem(self._page.show_unkept)
        self.measure()

    @property
    def results(self):
        """DataFrame of everything measured here, the chosen point last: setting columns, accuracy, file_bytes, …"""
        return self._record.to_frame()

    @property
    def error(self):
        """The last error shown to the person, or None; the next good result clears it."""
        return self._jobs.error

    @property
    def title(self):
        """The technique, and what is chosen beside the slider of the curve: "zero_pruning, criterion random"."""
        technique, choice = self._session.technique, self.choice
        rest = {name: value for name, value in choice.setting.items() if name != choice.control}
        told = words.setting(technique, rest)
        return technique.name if told == technique.name else f"{technique.name}, {told}"

    @property
    def dense_accuracy(self):
        """Fraction of the validation images that the model has right before compression."""
        return self._session.subject(self.choice).accuracy

    def family(self):
        """DataFrame of the curve through the chosen point, along the slider moved last, with every seed that the
        journal holds.
        """
        return journals.frame(self._session.family(self.choice))

    @property
    def choice(self):
        """What is chosen on the page now."""
        chosen = {name: self.controls[name].value for name in ("model", "data", "steps", "seed")}
        compare = tuple(label for label, box in self.fair.items() if box.value)
        return Choice(setting=self._settings.setting(), compare=compare, control=self._settings.moved, **chosen)

    @property
    def state(self):
        """One line of Python that opens a lab like this one."""
        return code.state(self._session.technique, self.choice)

    @property
    def code(self):
        """The lines of Python that reproduce the chosen point, and the line that reopens this lab."""
        choice = self.choice
        measured = self._jobs.settled == choice and self._session.result(choice)
        lines = code.reproduce(self._session.technique, choice, measured) if measured else "# not measured yet"
        return f"{lines}\n\n# this lab as it is now:\n# {self.state}"

    def measure(self):
        """Measure what is chosen on the page; what a slider's move does."""
        with suppress(ValueError):  # the worker meets it again, and shows it
            self._jobs.announce(self.choice)
        self._submit(self._jobs.measure)

    def wait(self, timeout=30):
        """Wait until the newest setting is measured; True, or False at the timeout (seconds) or after an error."""
        return self._worker.wait(timeout)

    def close(self):
        """Stop measuring and end the lab's thread; the page stays as it is."""
        self._worker.close()

    def discard(self):
        """Close the lab, take it off every page, and let go of its models and pictures; its results stay."""
        self.close()
        self._jobs.opened = None
        self._session.release()
        self._gallery.empty()
        self._chart.panel.release()
        close_widgets(self)
        gc.collect()  # figures and their canvases hold one another

    def _submit(self, job):
        """Hand a job over that takes the Choice on the page when it begins, so that the newest is never missed."""
        self._worker.submit(lambda: job(self.choice))

    def _listen(self):
        self._settings.on_change = self.measure
        for widget in (*self.fair.values(), *(self.controls[name] for name in ("data", "steps", "seed"))):
            widget.observe(lambda change: self.measure(), "value")
        self.controls["model"].observe(self._model_chosen, "value")
        actions = {
            "whole curve": lambda: self._submit(self._jobs.whole_curve),
            "report on test": lambda: self._submit(self._jobs.report),
            "export CSV": self._export,
            "show the code": self._show_code,
            "clear": self._clear,
            "lock in": self._lock_in,
            "pause": self._worker.pause,
            "step": self._worker.step,
            "resume": self._worker.resume,
        }
        for name, action in actions.items():
            self.buttons[name].on_click(functools.partial(self._press, action))
        for name in ("pause", "step", "resume"):
            self.buttons[name].disabled = not self._worker.threaded

    def _press(self, action, button):
        try:
            action()
        except (OSError, ValueError) as error:
            self._jobs.show_error(error)

    def _model_chosen(self, change):
        """Another model comes with its own number of retraining steps, unless a person chose one."""
        steps = self.controls["steps"]
        before, after = (default_steps(self._session.technique, change[when]) for when in ("old", "new"))
        if steps.value == before != after:
            steps.value = after  # this measures, too
        else:
            self.measure()

    def _export(self):
        self._jobs.tell(files.export(self.results, self._session.technique.name))

    def _show_code(self):
        layout = self._page.code.layout
        layout.display = "none" if layout.display is None else None
        self._write_code()

    def _write_code(self):
        if self._page.code.layout.display is None:
            self._page.code.value = self.code

    def _clear(self):
        if self._record.cleared:
            self._record.undo()
        else:
            self._record.clear(self._session.known)
        self.buttons["clear"].description = "undo clear" if self._record.cleared else "clear"
        self._submit(self._jobs.show_cleared)

    def _lock_in(self):
        locking = self._chart.moving.guess is None
        size = 1024 * self.guess["size"].value or None
        self._chart.move(guess=(self.guess["accuracy"].value / 100, size) if locking else None)
        for field in self.guess.values():
            field.disabled = locking
        self.buttons["lock in"].description = "withdraw" if locking else "lock in"
