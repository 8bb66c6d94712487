"""The jobs of a lab's worker: generators that measure a choice a small step at a time and draw it on the way.

Each takes the lab and a Choice; at every yield the worker may turn to a newer choice.
"""

import html
from collections.abc import Callable, Iterator
from contextlib import closing

import ipywidgets as widgets

from compresslab import measure as measures
from compresslab import train
from compresslab.lab import words
from compresslab.lab.measurements import Choice
from compresslab.lab.worker import HOLD


def measure(lab: widgets.Widget, choice: Choice) -> Iterator:
    """Measure a choice and draw it, then its inside, the chart, ledger and fair controls."""
    view, measurements = lab.view, lab.measurements
    lab.settled = None
    view.begin(choice)
    yield
    yield from _open(lab, choice)
    if measurements.result(choice):  # it is compressed again, not retrained, for the pictures of its inside
        _show_point(lab, choice)
        yield
        yield from _compute(lab, choice, view.show_inside, until="compressed")
    else:
        yield from _compute(lab, choice, view.show_stage)
        _show_point(lab, choice)
        yield
    while view.gallery.draw_next():
        yield
    view.draw_chart(choice)
    yield
    if measurements.model(choice) or not lab.threaded:
        yield from weigh(lab, choice)
    for fair in measurements.curves(choice)[1:]:
        yield from fill(lab, choice, fair)
    lab.settle(choice)
    if not lab.threaded:
        yield from show_damage(lab, choice)
        yield from draw_still(lab, choice)


def measure_whole_curve(lab: widgets.Widget, choice: Choice) -> Iterator:
    """Measure a choice and every setting of the curve through it."""
    view, measurements = lab.view, lab.measurements
    yield from measure(lab, choice)
    lab.settled = None
    view.note.value = ""
    while missing := measurements.missing(choice):
        setting = words.describe_setting(measurements.technique, missing.setting)
        view.say(choice, f"measuring the whole curve: {setting} …")
        yield from fill(lab, choice, missing)
    for curve in measurements.curves(choice):
        measurements.add(*measurements.along(curve).values())
    view.draw_chart(choice)
    _show_point(lab, choice)
    if choice.control:
        count = sum(result.stage == choice.last_stage for result in measurements.along(choice).values())
        view.note.value = f"The curve along {choice.control} has {count} measured points."
    lab.settle(choice)


def report(lab: widgets.Widget, choice: Choice) -> Iterator:
    """Measure the chosen point on the test images: the one place where they are used."""
    yield from measure(lab, choice)
    lab.settled = None
    subject = lab.measurements.subject(choice)
    model = yield from _find_model(lab, choice)
    lab.view.say(choice, "measuring on the test images …")
    yield
    with train.threads(1):
        compressed = measures.accuracy_interval(model, subject.data.test)
        yield
        dense = measures.accuracy_interval(subject.model, subject.data.test)
    _show_point(lab, choice)
    trial = html.escape(words.describe_trial(lab.measurements.technique, choice))
    point, baseline = (
        f"{interval.accuracy:.2%} (95% interval {interval.low:.2%} to {interval.high:.2%})"
        for interval in (compressed, dense)
    )
    images = f"{len(subject.data.test):,} images"
    lab.view.note.value = f"<b>Test</b> ({images}, {trial}): {point}; dense {baseline}."
    lab.settle(choice)


def pin(lab: widgets.Widget, choice: Choice) -> Iterator:
    """Keep the chosen point as the one that others are compared with."""
    yield from measure(lab, choice)
    model = yield from _find_model(lab, choice)
    lab.pinned = choice, model
    lab.view.show_pin(choice)


def compare_with_pin(lab: widgets.Widget, choice: Choice) -> Iterator:
    """Say in points, bytes and by McNemar's test how the chosen point differs from the pinned one."""
    model = yield from _find_model(lab, choice)
    if not lab.pinned:
        return
    pinned, pinned_model = lab.pinned
    results, text = (lab.measurements.result(pinned), lab.measurements.result(choice)), ""
    validation = lab.measurements.subject(choice).data.validation
    if all(results) and results[0] is not results[1] and validation.metric is None:
        with train.threads(1):
            test = measures.mcnemar(pinned_model, model, validation)
        text = words.describe_difference(*results, test)
    lab.view.show_difference(choice, text)


def show_cleared(lab: widgets.Widget, choice: Choice) -> Iterator:
    """Show an empty page after a clear, the full page after its undo."""
    if not lab.measurements.cleared:
        yield from measure(lab, choice)
        return
    lab.measurements.clear()
    lab.settled = lab.error = None
    lab.view.begin(choice)
    yield from _open(lab, choice)
    lab.view.empty()
    lab.view.draw_chart(choice)
    lab.view.say(choice, "cleared; move a control to measure, or undo the clear")
    lab.write_code()


def forget(lab: widgets.Widget, choice: Choice) -> Iterator:
    """Take what this lab measured out of the journal, and show an empty page."""
    count = lab.measurements.forget()
    lab.settled = lab.error = None
    yield from _open(lab, choice)
    lab.view.empty()
    lab.view.draw_chart(choice)
    lab.view.say(choice, f"forgotten: {count} results of this lab; move a control to measure")
    lab.write_code()


def choose_background(lab: widgets.Widget) -> Callable[[], Iterator] | None:
    """Return a job for idle time: the ledger, the curve, a longer training."""
    choice = lab.settled
    if choice is None:
        return None
    if lab.view.weighed != choice:
        return lambda: weigh(lab, choice)
    if lab.view.harmed != choice:
        return lambda: show_damage(lab, choice)
    if lab.pinned and lab.view.compared != choice:
        return lambda: compare_with_pin(lab, choice)
    missing = lab.measurements.missing(choice, longer=True)
    if missing and lab.drawn[0] == choice:
        return lambda: fill(lab, choice, missing)
    return None if lab.drawn == (choice, lab.view.chart.panel.image.value) else lambda: draw_still(lab, choice)


def draw_still(lab: widgets.Widget, choice: Choice) -> Iterator:
    """Bring the picture for pages without a kernel up to date: at a new point, and when its curve is complete."""
    panel = lab.view.chart.panel
    lab.drawn = choice, panel.image.value
    lab.still.update(panel.image.value, lab.view.status.value, panel.image.tooltip or "")
    yield


def weigh(lab: widgets.Widget, choice: Choice) -> Iterator:
    """Show the ledger of the chosen point, and the picture of its bytes."""
    model = yield from _find_model(lab, choice)
    lab.view.show_ledger(choice, measures.sizes(model))
    yield
    lab.view.gallery.draw_next()


def show_damage(lab: widgets.Widget, choice: Choice) -> Iterator:
    """Show the answers that changed, image by image and class by class."""
    model = yield from _find_model(lab, choice)
    lab.view.show_damage(choice, model)
    yield
    while lab.view.gallery.draw_next():
        yield


def fill(lab: widgets.Widget, choice: Choice, missing: Choice) -> Iterator:
    """Put a missing point on the chart, or a note where it fails."""
    measurements = lab.measurements
    try:
        if measurements.result(missing) is None:
            yield from _compute(lab, missing)
    except Exception as problem:  # noqa: BLE001 - nobody chose this setting; its error is only a note
        measurements.failed.add(measurements.key(missing))
        setting = words.describe_setting(measurements.technique, missing.setting)
        lab.view.note.value = html.escape(f"The curve lacks {setting}: {words.describe_error(problem)}")
        return
    measurements.add(*measurements.results_of(missing))
    if missing == measurements.longer(choice):
        _show_point(lab, choice)
    lab.view.draw_chart(choice)
    yield


def _open(lab, choice):
    """Load what a choice needs; a new chart begins with the journal's points."""
    view, measurements = lab.view, lab.measurements
    if view.opened == choice.conditions:
        return
    view.note.value = ""
    try:
        measurements.subject(choice)
    except Exception:
        view.empty(forget_limits=True)
        view.chart.panel.blank()
        view.chart.panel.say("Nothing is measured yet.")
        raise
    yield
    measurements.recall(choice)
    if view.opened is None or view.opened[:2] != (choice.model, choice.data):
        view.empty(forget_limits=True)
        lab.unpin()
    view.chart.show_point()
    view.opened = choice.conditions
    view.draw_chart(choice)
    yield


def _show_point(lab, choice):
    """Make a measured point the last of the results, and show it."""
    lab.measurements.choose(choice)
    lab.view.show_point(choice)
    lab.error = None


def _find_model(lab, choice):
    """Return the measured model of a choice, computed again if it is not kept."""
    if lab.measurements.model(choice) is None:
        yield from _compute(lab, choice)
    return lab.measurements.model(choice)


def _compute(lab, choice, show=lambda choice, event: None, until=None):
    """Measure a point and `show` its events; HOLD lets a person pause the training."""
    with closing(lab.measurements.stages(choice, until)) as events:
        for event in events:
            show(choice, event)
            yield HOLD if event.progress else None
