"""The live lab: a page of widgets that really compresses, retrains and measures while a slider moves.

A control hands a job to the worker (`worker.Worker`: the newest wins). The job (`jobs.measure`) draws the stages of a
point (`measurements.Measurements.stages`) on the page (`view.View`).
"""

import gc
from contextlib import suppress
from functools import partial

import ipywidgets as widgets
import pandas as pd
from IPython.display import display

from compresslab.experiments import journal
from compresslab.lab import jobs, sharing, words
from compresslab.lab.controls import Controls
from compresslab.lab.measurements import Choice, Measurements, default_steps
from compresslab.lab.page import close_widgets
from compresslab.lab.still import StillPicture
from compresslab.lab.view import View
from compresslab.lab.worker import Worker


class Lab(widgets.VBox):
    """The lab that `explore` returns; IPython shows it as a page of widgets.

    controls  name -> widget: each parameter of the technique, and "model", "data", "steps", "seed"
    buttons   name -> button, as in `page.BUTTONS`
    fair      label -> checkbox of a fair control
    guess     "accuracy" (percent), "size" (KiB; 0 for none) -> field
    settled   the newest Choice, once it is measured with all that goes with it; None before
    pinned    (Choice, model) that others are compared with, or None
    still     the picture for pages without a kernel;  drawn  the Choice and the chart, PNG, that it shows
    error     the last error shown to the person, or None; the next good result clears it
    """

    def __init__(self, measurements: Measurements, controls: Controls, choosers: dict, compare: tuple, threaded: bool):
        self.measurements, self.threaded, self._setting = measurements, threaded, controls
        self.controls = {**controls.widgets, **choosers}
        self.settled = self.error = self.pinned = None
        self._history, self._place, self._moving = [], -1, False  # settled Choices, for undo and redo
        self.still, self.drawn = StillPicture(), (None, b"")
        self.view = View(measurements, controls.widgets.values(), choosers.values(), compare)
        self.buttons, self.guess, self.fair = self.view.buttons, self.view.guess, self.view.fair
        self._worker = Worker(lambda: jobs.choose_background(self), self.show_error, threaded)
        super().__init__(self.view.children, layout=widgets.Layout(width="100%"))
        self.add_class("compresslab")
        self._listen()
        measurements.journal.tell_problem(self.view.show_unkept)
        self.measure()

    @property
    def choice(self) -> Choice:
        """Everything that is chosen on the page now."""
        chosen = {name: self.controls[name].value for name in ("model", "data", "steps", "seed")}
        compare = tuple(label for label, box in self.fair.items() if box.value)
        return Choice(setting=self._setting.values(), compare=compare, control=self._setting.moved, **chosen)

    @property
    def results(self) -> pd.DataFrame:
        """Everything measured here, the chosen point last: setting columns, accuracy, file_bytes, …"""
        return self.measurements.to_frame()

    def family(self) -> pd.DataFrame:
        """Return the curve through the chosen point, with every seed of the journal."""
        return journal.frame(self.measurements.family(self.choice))

    @property
    def curve_is_complete(self) -> bool:
        """Tell if the curves on the chart have no setting left to measure."""
        return self.measurements.missing(self.choice) is None

    @property
    def title(self) -> str:
        """The technique, and what is chosen beside the slider of the curve: "zero_pruning, criterion random"."""
        technique, choice = self.measurements.technique, self.choice
        rest = {name: value for name, value in choice.setting.items() if name != choice.control}
        return ", ".join(dict.fromkeys([technique.name, words.describe_setting(technique, rest)]))

    @property
    def state(self) -> str:
        """One line of Python that opens a lab like this one."""
        return sharing.write_state(self.measurements.technique, self.choice)

    @property
    def short_code(self) -> str:
        """A word that `cl.lab.open` turns into a lab like this one, on another machine too."""
        return sharing.write_short_code(self.measurements.technique, self.choice)

    @property
    def code(self) -> str:
        """Lines of Python that reproduce the chosen point and reopen this lab."""
        choice, lines = self.choice, "# not measured yet"
        if self.settled == choice:
            lines = sharing.write_code(self.measurements.technique, choice, self.measurements.result(choice))
        word = sharing.write_open(self.measurements.technique, self.choice)
        return f"{lines}\n\n# this lab as it is now:\n# {self.state}\n# the same, short: {word}"

    def measure(self) -> None:
        """Measure what is chosen on the page, as a slider's move does."""
        if self._moving:
            return
        with suppress(ValueError):  # the worker meets it again, and shows it
            self.view.announce(self.choice)
        self._submit(jobs.measure)

    def wait(self, timeout: float = 30) -> bool:
        """Wait for the newest setting; return False at the timeout (seconds) or an error."""
        return self._worker.wait(timeout)

    def _ipython_display_(self):
        """Show the lab, and below it the picture for pages without a kernel."""
        display(self._repr_mimebundle_(), raw=True)
        self.still.show()

    def close(self) -> None:
        """Stop measuring and end the lab's thread; the page stays as it is."""
        self._worker.close()

    def discard(self) -> None:
        """Close the lab and take it off every page; its results stay."""
        self.close()
        self.pinned = None
        self.measurements.release()
        self.view.release()
        close_widgets(self)
        gc.collect()  # figures and their canvases hold one another

    def settle(self, choice: Choice) -> None:
        """Note that the newest choice is measured, with all that goes with it."""
        self.settled = choice
        self.write_code()
        if self._place < 0 or _list_moves(choice) != _list_moves(self._history[self._place]):
            self._history[self._place + 1 :] = [choice]
            self._place += 1
        self.buttons["undo"].disabled = self._place == 0
        self.buttons["redo"].disabled = self._place == len(self._history) - 1

    def go_to_point(self, number: int) -> None:
        """Set the controls as a point of the chart has them (its place in `chart.touch.points`), and measure it."""
        points = self.view.chart.list_points()
        if 0 <= number < len(points):
            self._move_to(points[number].setting)

    def _move_to(self, setting, **choosers):
        """Set controls all at once, and measure what they stand for."""
        self._moving = True
        try:
            for name, value in choosers.items():
                self.controls[name].value = value
            self._setting.move_to(setting)
        finally:
            self._moving = False
        self.measure()

    def _go_through_history(self, places):
        """Set the controls as they were some places back, or forward."""
        place = self._place + places
        if 0 <= place < len(self._history):
            self._place, choice = place, self._history[place]
            choosers = {name: getattr(choice, name) for name in ("model", "data", "steps", "seed")}
            self._move_to(choice.setting, **choosers)

    def show_error(self, problem: Exception) -> None:
        """Show an exception in words until the next good result."""
        self.error = words.describe_error(problem)
        self.view.show_error(self.error)

    def write_code(self) -> None:
        """Renew the lines of *show the code*, where they are open."""
        if self.view.code.layout.display is None:
            self.view.code.value = self.code

    def _submit(self, job):
        """Hand over a job; it takes the choice on the page when it begins."""
        self._worker.submit(lambda: job(self, self.choice))

    def _listen(self):
        """Connect every widget with what it does."""
        self._setting.on_change = self.measure
        for widget in (*self.fair.values(), *(self.controls[name] for name in ("data", "steps", "seed"))):
            widget.observe(lambda change: self.measure(), "value")
        self.controls["model"].observe(self._change_model, "value")
        self.view.chart.touch.on_press(self.go_to_point)
        actions = {
            "undo": lambda: self._go_through_history(-1),
            "redo": lambda: self._go_through_history(1),
            "pin": self._pin,
            "whole curve": lambda: self._submit(jobs.measure_whole_curve),
            "report on test": lambda: self._submit(jobs.report),
            "export CSV": lambda: sharing.export(self.results, self.measurements.technique.name, self.view.note),
            "show the code": self._toggle_code,
            "clear": self._clear,
            "forget": self._forget,
            "lock in": self.view.lock_guess,
            "pause": self._worker.pause,
            "step": self._worker.step,
            "resume": self._worker.resume,
        }
        for name, action in actions.items():
            self.buttons[name].on_click(partial(self._press, action))
            self.buttons[name].disabled = name in ("pause", "step", "resume") and not self.threaded

    def _press(self, action, button):
        try:
            action()
        except (OSError, ValueError) as error:
            self.show_error(error)

    def _pin(self):
        """Pin the chosen point, or let go of the pinned one."""
        if self.pinned is None:
            self._submit(jobs.pin)
        else:
            self.unpin()

    def _change_model(self, change):
        """Measure another model, with its own number of retraining steps unless a person chose one."""
        steps = self.controls["steps"]
        before, after = (default_steps(self.measurements.technique, change[when]) for when in ("old", "new"))
        if steps.value == before != after:
            steps.value = after  # this measures, too
        else:
            self.measure()

    def _toggle_code(self):
        layout = self.view.code.layout
        layout.display = "none" if layout.display is None else None
        self.write_code()

    def unpin(self) -> None:
        """Let go of the pinned point."""
        self.pinned = None
        self.view.show_pin(None)

    def _forget(self):
        self.unpin()
        self._submit(jobs.forget)

    def _clear(self):
        self.unpin()
        self.measurements.clear(undo=self.measurements.cleared)
        self.buttons["clear"].description = "undo clear" if self.measurements.cleared else "clear"
        self._submit(jobs.show_cleared)


def _list_moves(choice):
    """Return what undo and redo bring back."""
    return choice.model, choice.data, choice.setting, choice.steps, choice.seed
