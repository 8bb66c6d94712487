"""Numbers in words, for the status line and the captions: percent, KiB, times smaller."""

from compresslab import measure
from compresslab.experiments.journal import Result
from compresslab.lab.settings import makes_curve
from compresslab.techniques import Control, Technique


def describe_setting(technique: Technique, values: dict) -> str:
    """Return a setting as a person reads it: "sparsity 90%", "rank 8, scope layer".

    What is at its default is left out, but for the first slider and those that exclude one another.
    """
    declared = {control.name: control for control in technique.controls}
    first = next((name for name, control in declared.items() if makes_curve(control)), None)
    parts = []
    for name, value in values.items():
        control = declared.get(name)
        stays = control is None or (makes_curve(control) and (name == first or control.alternative))
        if stays or value != control.default:
            parts.append(f"{name} {_format_value(control, value)}")
    return ", ".join(parts) or technique.name


def describe_trial(technique: Technique, choice: object) -> str:
    """Return a choice's setting, steps and seed in words."""
    training = f"{choice.steps} steps, seed {choice.seed}" if choice.steps else "one-shot"
    return f"{describe_setting(technique, choice.setting)}, {training}"


def describe_point(result: Result, subject: object, longer: Result | None = None, guess: tuple | None = None) -> str:
    """Return the status line of a measured point, compared with a guess."""
    parts = [
        format_accuracy(result, subject.accuracy),
        format_size(result.file_bytes, subject.sizes.dense_bytes),
        result.steps and f"{result.steps} steps in {result.precision}",
        longer and f"with {longer.steps} steps {longer.accuracy:.2%}",
        guess and describe_guess(guess, result),
    ]
    return "; ".join(part for part in parts if part)


def describe_measured(technique: Technique, result: Result, subject: object) -> str:
    """Return what is shown beside a point of the chart: setting, accuracy with its interval, bytes, points lost."""
    split, interval = subject.data.validation, ""
    if split.metric is None:
        bounds = measure.estimate_interval(round(result.accuracy * len(split)), len(split))
        interval = f" (95% interval {bounds.low:.2%} to {bounds.high:.2%})"
    accuracy = f"{result.accuracy:.2%}{interval}, {format_points(result.accuracy - subject.accuracy)} against dense"
    return f"{describe_setting(technique, result.setting)}, {result.stage}: {accuracy}; {format_kib(result.file_bytes)}"


def describe_guess(guess: tuple, result: Result) -> str:
    """Return how far a locked-in guess (accuracy, file_bytes or None) lies from a measured point."""
    accuracy, file_bytes = guess
    off = accuracy - result.accuracy
    text = f"your guess {accuracy:.1%} was {abs(100 * off):.2f} points too {'high' if off > 0 else 'low'}"
    if file_bytes:
        ratio = file_bytes / result.file_bytes
        size = f"{max(ratio, 1 / ratio):.3g}× too {'large' if ratio > 1 else 'small'}"
        text += f", {format_kib(file_bytes)} was {size}"
    return text


def describe_difference(pinned: Result, result: Result, test: measure.McNemar) -> str:
    """Return how a point differs from the pinned one, A; `test` is McNemar's, of A and this one."""
    if pinned.file_bytes == result.file_bytes:
        size = "the same size"
    else:
        smaller = "smaller" if result.file_bytes < pinned.file_bytes else "larger"
        size = f"{format_kib(abs(result.file_bytes - pinned.file_bytes))} {smaller}"
    verdicts = {"a is better": "A is better", "b is better": "this one is better"}
    verdict = verdicts.get(test.verdict, "can't tell which is better")
    changes = f"right where A is wrong on {test.only_b:,} images, wrong where A is right on {test.only_a:,}"
    points = format_points(result.accuracy - pinned.accuracy)
    return f"against A: {points}, {size}; {changes}: {verdict} (McNemar's test, p = {test.p_value:.2g})"


def describe_chart(subject: object, result: Result | None) -> str:
    """Return a sentence about the accuracy-versus-size picture; `result` is the chosen point, or None."""
    dense = f"{subject.accuracy:.2%}, {format_kib(subject.sizes.file_bytes)}"
    text = f"Measured accuracy (axis stretched near 100%) and file size. Dense model: {dense} (cross, dashed)"
    if result:
        size = format_size(result.file_bytes, subject.sizes.dense_bytes)
        text += f"; chosen point: {result.accuracy:.2%}, {size}"
    return f"{text}."


def describe_error(problem: BaseException) -> str:
    """Return an exception in words, without its type where the text says enough."""
    text = str(problem).strip()
    if isinstance(problem, ValueError) and text:
        return text
    return f"{type(problem).__name__}: {text}" if text else f"{type(problem).__name__}, without a message"


def format_accuracy(result: Result, dense: float) -> str:
    """Return "97.91% (−0.42 points against dense)"."""
    return f"{result.accuracy:.2%} ({format_points(result.accuracy - dense)} against dense)"


def format_points(difference: float) -> str:
    """Return a difference of two fractions in percentage points, with its sign: "−0.42 points"."""
    if abs(difference) < 5e-5:
        return "±0.00 points"
    return f"{'+' if difference > 0 else '−'}{abs(100 * difference):.2f} points"


def format_size(file_bytes: int, dense_bytes: int) -> str:
    """Return "41.3 KiB, 25.2× smaller than the dense network in fp32"."""
    return f"{format_kib(file_bytes)}, {format_ratio(file_bytes, dense_bytes)} than the dense network in fp32"


def format_ratio(file_bytes: int, dense_bytes: int) -> str:
    """Return the ratio to the dense network in fp32: "25.2× smaller", "1.04× larger"."""
    ratio = max(dense_bytes, file_bytes) / min(dense_bytes, file_bytes)
    return f"{float(f'{ratio:.3g}'):,g}× {'smaller' if dense_bytes >= file_bytes else 'larger'}"


def format_kib(file_bytes: int) -> str:
    """Return bytes in KiB: "41.3 KiB"."""
    return f"{file_bytes / 1024:,.1f} KiB"


def _format_value(control: Control | None, value: object) -> str:
    """Return one value with its unit: 0.905 is "90.5%" where the control's unit is "%"."""
    if control is None or isinstance(value, (str, bool)) or value is None:
        return str(value)
    return f"{100 * value:.6g}%" if control.unit == "%" else f"{value:.6g} {control.unit}".strip()
