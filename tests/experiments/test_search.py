"""A search finds a recipe that meets its limits, repeats what it measured from the journal, and says why."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab.experiments import search as module


@pytest.fixture
def problem():
    """A network and data on which a training takes a tenth of a second."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = torch.rand(3000, 1, 6, 6)
        labels = (images.flatten(1)[:, :18].sum(1) > 9).long()
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 2))
    data = cl.data.from_tensors(images[:2600], labels[:2600], images[2600:], labels[2600:])
    return cl.train.finetune(net, data.train, epochs=4, seed=0), data


def find(problem, journal, **settings):
    net, data = problem
    return cl.search(net, data, **{"trials": 6, "steps": 40, "journal": journal, "bar": False} | settings)


def test_the_smallest_file_at_an_accuracy(problem, tmp_path):
    net, data = problem
    dense = cl.measure.accuracy(net, data.validation)
    result = find(problem, tmp_path / "journal.db", min_accuracy=dense - 0.03)
    meeting = result.trials[result.trials["meets_limits"]]
    assert result.file_bytes == meeting["file_bytes"].min() < cl.measure.sizes(net).file_bytes
    assert result.accuracy >= dense - 0.03
    assert cl.measure.accuracy(result.model, data.validation) == result.accuracy
    assert cl.measure.sizes(result.model).file_bytes == result.file_bytes
    assert "Tried 6 recipes" in result.why and str(result.recipe) in result.why


def test_the_best_accuracy_below_a_size(problem, tmp_path):
    limit = 0.5 * cl.measure.sizes(problem[0]).file_bytes
    result = find(problem, tmp_path / "journal.db", max_bytes=limit)
    meeting = result.trials[result.trials["meets_limits"]]
    assert result.file_bytes <= limit and result.accuracy == meeting["accuracy"].max()


def test_time_is_a_limit(problem, tmp_path):
    result = find(problem, tmp_path / "journal.db", max_ms=1000.0, trials=2)
    assert 0 < result.milliseconds < 1000 and (result.trials["milliseconds"] > 0).all()


def test_a_search_goes_on_where_it_was_interrupted(problem, tmp_path, monkeypatch):
    whole = find(problem, tmp_path / "whole.db", min_accuracy=0.7)
    measure, count = module._measure, []

    def stop_after_three(*arguments):
        if len(count) == 3:
            raise KeyboardInterrupt
        count.append(measure(*arguments))
        return count[-1]

    monkeypatch.setattr(module, "_measure", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        find(problem, tmp_path / "parts.db", min_accuracy=0.7)
    monkeypatch.undo()
    trained = []
    fit = cl.train.fit
    monkeypatch.setattr(cl.train, "fit", lambda *args, **settings: trained.append(1) or fit(*args, **settings))
    resumed = find(problem, tmp_path / "parts.db", min_accuracy=0.7)
    again = len(trained)
    assert list(map(str, resumed.trials["recipe"])) == list(map(str, whole.trials["recipe"]))
    assert resumed.file_bytes == whole.file_bytes and resumed.accuracy == whole.accuracy
    trained.clear()
    find(problem, tmp_path / "none.db", min_accuracy=0.7)
    assert again < len(trained)


def test_other_limits_use_what_is_measured(problem, tmp_path):
    first = find(problem, tmp_path / "journal.db", min_accuracy=0.7)
    second = find(problem, tmp_path / "journal.db", max_bytes=first.file_bytes + 500)
    assert second.file_bytes <= first.file_bytes + 500


def test_limits_that_nothing_meets_say_what_came_nearest(problem, tmp_path):
    with pytest.raises(ValueError, match=r"none of them meets max_bytes=10\. Nearest came .* bytes: ") as caught:
        find(problem, tmp_path / "journal.db", max_bytes=10, trials=3)
    assert len(caught.value.trials) == 3


def test_an_executor_measures_the_same_points(problem, tmp_path):
    with ThreadPoolExecutor(2) as executor:
        result = find(problem, tmp_path / "journal.db", min_accuracy=0.5, trials=5, executor=executor)
    net, data = problem
    assert len(result.trials) == 5
    assert math.isclose(cl.measure.accuracy(result.model, data.validation), result.accuracy)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "are None; give a limit"),
        ({"max_bytes": 0}, "max_bytes is 0"),
        ({"max_ms": -1}, "max_ms"),
        ({"min_accuracy": 97}, "min_accuracy is 97"),
        ({"min_accuracy": 0.9, "trials": 0}, "trials is 0"),
        ({"min_accuracy": 0.9, "epochs": 1, "steps": 2}, "give one of them"),
    ],
)
def test_bad_limits_are_refused(problem, tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        find(problem, tmp_path / "journal.db", **settings)


def test_without_optuna_it_says_how_to_install_it(problem, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ImportError, match="optuna is not installed"):
        find(problem, tmp_path / "journal.db", min_accuracy=0.9)


def test_a_resumed_search_gives_the_executor_only_what_the_journal_lacks(problem, tmp_path):
    limits = {"min_accuracy": 0.5, "trials": 4}
    with ThreadPoolExecutor(1) as executor:
        first = find(problem, tmp_path / "journal.db", executor=executor, **limits)
        asked = []
        executor.submit = lambda *arguments: asked.append(arguments)
        again = find(problem, tmp_path / "journal.db", executor=executor, **limits)
    assert not asked and list(map(str, again.trials["recipe"])) == list(map(str, first.trials["recipe"]))
