"""Everything that a lab shows, drawn from its Measurements: status line, chart, pictures, ledger, note and code."""

import html
from time import monotonic

import ipywidgets as widgets
from torch import nn

from compresslab import techniques, train
from compresslab.experiments.sweep import Event
from compresslab.lab import damage, page, size_table, words
from compresslab.lab.chart import Chart
from compresslab.lab.gallery import Gallery
from compresslab.lab.measurements import Choice, Measurements
from compresslab.lab.plots import BLUE
from compresslab.measure import SizeLedger

TICK = 0.1  # seconds between two movements of the progress bar
PARTIAL = 0.3  # seconds between two accuracies during training, at least
LONG = 1.0  # seconds that a training has left for its inside to be drawn before it is over
SHARE = 5  # such an accuracy may take one part in so many of the time
FEW = 3  # choosers and boxes that have room beside the chart; more of them fill a tab


class View:
    """The widgets of a lab; `children` is the page from top to bottom.

    fair      label -> checkbox of a fair control;  buttons, guess  name -> button or field
    opened    `conditions` of the Choice whose points the chart shows, or None
    weighed   the Choice whose ledger is shown, or None
    harmed    the Choice whose changed answers are shown, or None
    compared  the Choice that is compared with the pinned one, or None
    """

    def __init__(self, measurements: Measurements, controls: list, choosers: list, compare: tuple = ()):
        self._measurements, self._technique = measurements, measurements.technique
        self._said, self._warnings = (None, ""), []
        self.opened = self.weighed = self.harmed = self.compared = None
        self._ticked = self._began = self._look_at = 0.0  # times, as `monotonic` counts
        self.chart = Chart()
        self.gallery = Gallery()
        self.status = page.make_html("status", margin="2px 0", min_height="48px")
        bar = {"width": "100%", "height": "10px", "margin": "0"}
        self.progress = widgets.FloatProgress(max=1, layout=bar, style={"bar_color": BLUE})
        self.ledger, self.note = widgets.HTML(), page.make_html("note", margin="4px 0")
        self.difference = page.make_html("note", margin="0", display="none")
        self.unkept = page.make_html("note", margin="0", display="none")
        self.code = widgets.Textarea(layout=widgets.Layout(width="100%", height="240px", display="none"))
        self.guess = page.make_guess_fields()
        self.fair = {}
        for label in self._technique.fair_controls:
            tooltip, fits = f"Measure {label} at the same settings, too", {"layout": {"width": "auto"}, "indent": False}
            self.fair[label] = widgets.Checkbox(label in compare, description=label, tooltip=tooltip, **fits)
        button = widgets.Layout(width="auto", min_width="84px")
        self.buttons = {
            name: widgets.Button(description=name, icon=icon, tooltip=tooltip, layout=button)
            for name, (icon, tooltip) in page.BUTTONS.items()
        }
        self.children = self._lay_out(controls, choosers)

    def _lay_out(self, controls, choosers):
        """Return the page: controls and status beside the chart, all else in tabs below."""
        sliders = [control for control in controls if isinstance(control, widgets.IntSlider | widgets.FloatSlider)]
        small = [control for control in controls if control not in sliders]
        model, data, steps, seed = choosers
        buttons = page.make_row(self.buttons[name] for name in page.BUTTONS if name not in page.IN_TABS)
        beside = small if len(small) <= FEW else []
        left = [*sliders, *beside, steps, buttons, self.unkept]
        top = [
            page.make_column([*left, self.status, self.progress, self.difference], page.NARROW),
            page.make_column([self.chart.panel.widget], page.WIDE),
        ]
        fair = [page.make_row([page.make_label("compare with"), *self.fair.values()])] if self.fair else []
        guess = page.make_row([page.make_label("your guess"), *self.guess.values(), self.buttons["lock in"]])
        subject = page.make_row(
            [model, data, seed, *(self.buttons[name] for name in ("export CSV", "clear", "forget"))]
        )
        pages = {"Inside": [self.gallery.inside], "Size and bytes": [self.ledger, self.gallery.bytes]}
        pages |= {"Damage": [self.gallery.damage]}
        pages |= {"Compare, guess": [*fair, guess], "Model and data": [subject]}
        if small and not beside:
            pages = {"Settings": [page.make_row(small)], **pages}
        style = widgets.HTML(page.STYLE, layout=widgets.Layout(display="none"))
        tabs = page.make_tabs(pages)
        tabs.selected_index = list(pages).index("Inside")
        return [style, page.make_row(top), self.note, self.code, tabs]

    def begin(self, choice: Choice) -> None:
        """Say that a choice is being measured."""
        self._warnings = []
        self.say(choice, "measuring …")
        self.show_difference(None, "")  # it was said of the point before

    def say(self, choice: Choice, text: str) -> None:
        """Set the status line: the setting, what is known of it, and the technique's warnings."""
        self._said = choice, text
        setting = html.escape(words.describe_setting(self._technique, choice.setting))
        warnings = "".join(f"<br>{_mark_error(warning)}" for warning in dict.fromkeys(self._warnings))
        self.status.value = f"<b>{setting}</b>: {html.escape(text)}{warnings}"

    def show_error(self, text: str) -> None:
        """Show an error in the status line."""
        self.progress.value = 0
        self.status.value = _mark_error(text)

    def show_unkept(self, problem: Exception) -> None:
        """Say that what is measured is no longer kept, and why."""
        self.unkept.value = _mark_error(f"Nothing is kept from now on: {problem}.")
        self.unkept.layout.display = None

    def show_stage(self, choice: Choice, event: Event) -> None:
        """Show an event: a recipe's step, the inside, the one-shot point, a training step."""
        seconds_left = self._show_progress(event.progress) if event.progress else 0.0
        if event.stage == "preparing":
            self.say(choice, f"{event.note} …")
        elif event.stage == "compressed":
            self.show_inside(choice, event)
        elif event.stage == "one-shot":
            self.chart.show_point([event.result])
            self._look_at = monotonic() + PARTIAL
            if choice.steps:
                accuracy = words.format_accuracy(event.result, self._measurements.subject(choice).accuracy)
                self.say(choice, f"one-shot {accuracy}; {words.format_kib(event.result.file_bytes)}; retraining …")
        # A long training is watched: the pictures that wait are drawn first, then accuracies.
        elif seconds_left > LONG and self.gallery.draw_next():
            return
        elif seconds_left > PARTIAL and monotonic() > self._look_at:
            self._show_accuracy(choice, event.model)

    def show_inside(self, choice: Choice, event: Event) -> None:
        """Show a compressed model: warnings, pictures, and room for the picture of its bytes."""
        if event.stage != "compressed":
            return
        self._warnings = self._measurements.warnings
        self.say(*self._said)
        data = self._measurements.subject(choice).data
        with train.threads(1):
            pictures = techniques.pictures(self._technique, event.start, event.model, choice.setting, data)
        self.gallery.arrange([*(picture.name for picture in pictures), size_table.BYTES, *damage.NAMES])
        self.gallery.show(pictures)

    def _show_accuracy(self, choice, model):
        """Draw an accuracy during the training, on a part of the validation images."""
        started, subset = monotonic(), self._measurements.subject(choice).subset
        with train.threads(1):
            accuracy = train.judge(model, subset)
        self.chart.move(trail=(*self.chart.moving.trail, accuracy))
        self._look_at = monotonic() + max(PARTIAL, SHARE * (monotonic() - started))

    def _show_progress(self, progress):
        """Move the bar of a training; return the seconds left at its pace."""
        now, done = monotonic(), progress.step - 1  # since the first step was over
        if done == 0:
            self._began = now
        if now > self._ticked + TICK:
            self.progress.value, self._ticked = progress.step / progress.steps, now
        return (now - self._began) * (progress.steps - progress.step) / max(1, done)

    def lock_guess(self) -> None:
        """Draw the guess and lock its fields, or withdraw it."""
        locking = self.chart.moving.guess is None
        size = 1024 * self.guess["size"].value or None
        self.chart.move(guess=(self.guess["accuracy"].value / 100, size) if locking else None)
        for field in self.guess.values():
            field.disabled = locking
        self.buttons["lock in"].description = "withdraw" if locking else "lock in"

    def show_point(self, choice: Choice) -> None:
        """Show a measured point on the chart and in the status line."""
        results, longer = self._measurements.results_of(choice), self._measurements.longer(choice)
        longer = longer and self._measurements.result(longer)
        self.chart.show_point(results, longer)
        self.progress.value = 1
        subject, guess = self._measurements.subject(choice), self.chart.moving.guess
        self.say(choice, words.describe_point(results[-1], subject, longer, guess))

    def show_pin(self, choice: Choice | None) -> None:
        """Mark a measured point as A on the chart; None takes the mark off."""
        result = choice and self._measurements.result(choice)
        self.chart.move(pinned=result and (result.file_bytes, result.accuracy))
        self.buttons["pin"].description = "unpin" if result else "pin"
        self.show_difference(None, "")

    def show_difference(self, choice: Choice | None, text: str) -> None:
        """Say how the chosen point differs from the pinned one."""
        self.compared = choice
        self.difference.value, self.difference.layout.display = html.escape(text), None if text else "none"

    def draw_chart(self, choice: Choice) -> None:
        """Draw the still part of the chart anew: all known points not cleared."""
        self.chart.draw(self._measurements.subject(choice), self._measurements.chart(choice))
        self._describe_chart(choice)

    def announce(self, choice: Choice) -> None:
        """Show at once what is known of a choice, before the worker turns to it."""
        if self.opened == choice.conditions:
            self.begin(choice)
            self.chart.show_point(self._measurements.results_of(choice))
            self._describe_chart(choice)

    def _describe_chart(self, choice):
        subject, result = self._measurements.subject(choice), self._measurements.visible(choice)
        self.chart.panel.say(words.describe_chart(subject, result))

    def show_ledger(self, choice: Choice, sizes: SizeLedger) -> None:
        """Show the ledger of a point as a table, and the picture of its bytes."""
        title = f"What {words.describe_trial(self._technique, choice)} costs"
        dense_bytes = self._measurements.subject(choice).sizes.dense_bytes
        self.ledger.value, self.weighed = size_table.make_table(sizes, title, dense_bytes), choice
        self.gallery.show([size_table.make_picture(sizes)])

    def show_damage(self, choice: Choice, model: nn.Module) -> None:
        """Show the answers that a measured model of a choice changed."""
        pictures = self._measurements.picture_damage(choice, model)
        self.gallery.show(pictures)
        self.harmed = choice

    def empty(self, forget_limits: bool = False) -> None:
        """Take off the page the point, its ledger, its pictures and the note.

        forget_limits  also the limits of the pictures: for another model or other data
        """
        self.ledger.value, self.note.value, self.weighed, self.harmed = "", "", None, None
        self.progress.value = 0
        self.gallery.empty(forget_limits)
        self.chart.show_point()
        if forget_limits:
            self.chart.reset()
            self.opened = None

    def release(self) -> None:
        """Let go of all pictures; nothing is drawn any more."""
        self.opened = None
        self.gallery.empty()
        self.chart.panel.release()


def _mark_error(text):
    return f"<span class='compresslab-error'>{html.escape(text)}</span>"
