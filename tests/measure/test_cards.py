"""The model card: every number on it is one that was measured."""

import pytest

import compresslab as cl


@pytest.fixture
def measurement(net, data):
    return cl.measure.measure(net, data)


def test_the_card_has_what_was_measured(measurement):
    card = cl.measure.model_card("Bright or dark", measurement)
    assert card.startswith("### Bright or dark\n\n| what | measured |\n|---|---|\n")
    assert f"| accuracy | {measurement.accuracy:.2%} |" in card
    assert f"{measurement.sizes.parameters:,}" in card and f"{measurement.sizes.file_bytes / 1024:,.1f} KiB" in card
    assert f"{1000 * measurement.latency.median:.2g} ms, batch of 1" in card
    assert "harmed" not in card and "calibration" not in card and "export" not in card


def test_what_else_is_given_stands_on_it(measurement, net, data):
    pruned = cl.zero_pruning.prune(net, sparsity=0.9)
    classes = cl.measure.per_class(pruned, data, net)
    facts = {"not for": "medical use"}
    card = cl.measure.model_card(
        "net", measurement, classes=classes, names=("dark", "bright"), calibration=0.0312, facts=facts
    )
    worst = classes["damage"].idxmax()
    assert f"{('dark', 'bright')[worst]}: {classes['accuracy'][worst]:.1%}" in card
    assert f"{100 * classes['damage'].max():.1f} points lost" in card
    assert "| calibration error | 3.1 points |" in card
    assert card.endswith("| not for | medical use |")
    assert f"class {worst}:" in cl.measure.model_card("net", measurement, classes=classes)


def test_an_export_stands_on_it(measurement):
    report = cl.export.Report("net.onnx", 2048, 0.0, 0.995, ())
    assert "| export | 2.0 KiB, same answer for 99.5% of the images |" in cl.measure.model_card(
        "net", measurement, export=report
    )


def test_bad_input(measurement, net, data):
    with pytest.raises(ValueError, match="measurement is 0.98"):
        cl.measure.model_card("net", 0.98)
    with pytest.raises(ValueError, match="no column damage"):
        cl.measure.model_card("net", measurement, classes=cl.measure.per_class(net, data))
