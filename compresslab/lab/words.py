"""Numbers in words, for the status line and the captions: percent, KiB, times smaller."""

import html

from compresslab.lab.span import makes_curve


def setting(technique, values):
    """A setting as a person reads it: "sparsity 90%", "rank 8, scope layer".

    What is at its default is left out, but for the first slider and those that exclude one another.
    """
    declared = {control.name: control for control in technique.controls}
    first = next((name for name, control in declared.items() if makes_curve(control)), None)
    told = {
        name: value
        for name, value in values.items()
        if name not in declared
        or value != declared[name].default
        or (makes_curve(declared[name]) and (name == first or declared[name].alternative))
    }
    return ", ".join(f"{name} {value_of(declared.get(name), value)}" for name, value in told.items()) or technique.name


def value_of(control, value):
    """One value with its unit: 0.905 is "90.5%" where the control's unit is "%"."""
    if control is None or isinstance(value, (str, bool)) or value is None:
        return str(value)
    if control.unit == "%":
        return f"{100 * value:.6g}%"
    return f"{value:.6g} {control.unit}".strip()


def accuracy(result, dense):
    """Accuracy and how far it is from the dense model's: "97.91% (−0.42 points against dense)"."""
    return f"{result.accuracy:.2%} ({points(result.accuracy - dense)} against dense)"


def points(difference):
    """A difference of two fractions in percentage points, with its sign: "−0.42 points"."""
    if abs(difference) < 5e-5:
        return "±0.00 points"
    return f"{'+' if difference > 0 else '−'}{abs(100 * difference):.2f} points"


def size(file_bytes, dense_bytes):
    """A file's size against the dense network's: "41.3 KiB, 25.2× smaller than the dense network in fp32"."""
    return f"{kib(file_bytes)}, {times(file_bytes, dense_bytes)} than the dense network in fp32"


def times(file_bytes, dense_bytes):
    """How many times smaller than the dense network, 4 bytes a number: "25.2× smaller", "1.04× larger".

    The only ratio of sizes on the page: status line, captions and ledger all say this one.
    """
    ratio = dense_bytes / file_bytes
    rounded = float(f"{max(ratio, 1 / ratio):.3g}")
    return f"{rounded:,g}× {'smaller' if ratio >= 1 else 'larger'}"


def kib(file_bytes):
    """Bytes in KiB: "41.3 KiB"."""
    return f"{file_bytes / 1024:,.1f} KiB"


def miss(guess, result):
    """How far a locked-in guess (accuracy, file_bytes or None) lies from a measured point."""
    off = guess[0] - result.accuracy
    text = f"your guess {guess[0]:.1%} was {abs(100 * off):.2f} points too {'high' if off > 0 else 'low'}"
    if guess[1] is None:
        return text
    ratio = guess[1] / result.file_bytes
    return f"{text}, {kib(guess[1])} was {max(ratio, 1 / ratio):.3g}× too {'large' if ratio > 1 else 'small'}"


def error(problem):
    """An exception in words; the kind of error only where its text alone would not be a sentence."""
    text = str(problem).strip()
    if isinstance(problem, ValueError) and text:
        return text
    return f"{type(problem).__name__}: {text}" if text else f"{type(problem).__name__}, without a message"


def chart(subject, result):
    """A sentence that says what the accuracy-versus-size picture shows; `result` is the chosen point, or None."""
    dense = f"{subject.accuracy:.2%}, {kib(subject.sizes.file_bytes)}"
    text = f"Measured accuracy (axis stretched near 100%) and file size. Dense model: {dense} (cross, dashed)"
    if result is None:
        return f"{text}."
    return f"{text}; chosen point: {result.accuracy:.2%}, {size(result.file_bytes, subject.sizes.dense_bytes)}."


def test_report(setting_words, found, dense, images):
    """The chosen point on the test images, with its interval, beside the dense model."""
    one, other = (f"{each.accuracy:.2%} (95% interval {each.low:.2%} to {each.high:.2%})" for each in (found, dense))
    return f"<b>Test</b> ({images:,} images, {html.escape(setting_words)}): {one}; dense {other}."
