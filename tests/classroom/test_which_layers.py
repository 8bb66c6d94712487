"""Exercises of notebook 07: right answers pass, plausible wrong ones do not, and hints fit the mistake."""

import functools

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab.classroom import which_layers as exercises

pytestmark = pytest.mark.slow

LAYERS = ["conv1", "conv2", "fc1", "fc2"]


@pytest.fixture(scope="module", autouse=True)
def own_journal(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESSLAB_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def alone(model, split, sparsity):
    """Layer -> accuracy with it alone pruned."""
    names = cl.layers.weight_layers(model)
    pruned = {name: cl.zero_pruning.prune(model, sparsity, layers=[name]) for name in names}
    return {name: cl.measure.accuracy(one, split) for name, one in pruned.items()}


def ranking(model, split, sparsity):
    found = alone(model, split, sparsity)
    return sorted(found, key=found.get)


def by_size(model, split, sparsity):
    sizes = {name: layer.weight.numel() for name, layer in cl.layers.weight_layers(model).items()}
    return sorted(sizes, key=sizes.get)


def lamp(weight):
    squares, order = weight.square().flatten().sort()
    score = squares / squares.flip(0).cumsum(0).flip(0)
    return torch.empty_like(score).scatter(0, order, score).reshape(weight.shape)


def pairwise(weight):
    squares = weight.flatten() ** 2
    return (squares / (squares * (squares >= squares[:, None])).sum(1)).reshape(weight.shape)


def unsorted(weight):
    squares, _ = weight.square().flatten().sort()
    return (squares / squares.flip(0).cumsum(0).flip(0)).reshape(weight.shape)


def strictly_larger(weight):
    squares = weight.flatten() ** 2
    return (squares / (squares * (squares > squares[:, None])).sum(1)).reshape(weight.shape)


@pytest.mark.parametrize("predicted", [["conv1", "fc2", "conv2", "fc1"], LAYERS[::-1]])
def test_a_measured_ranking_passes_whatever_was_predicted(predicted):
    result = cl.classroom.check("07.ranking", (predicted, ranking))
    assert result, result.message
    places = sum(one == other for one, other in zip(predicted, ["conv1", "fc2", "conv2", "fc1"], strict=True))
    assert f"had {places} of 4 places right" in result.message


@pytest.mark.parametrize(
    "answer, hint",
    [
        ((LAYERS, by_size), "measure each layer alone"),
        ((LAYERS, lambda *given: ranking(*given)[::-1]), "most sensitive comes first"),
        ((LAYERS, lambda model, split, sparsity: ranking(model, split, 0.99)), ""),
        ((LAYERS, lambda *given: ["fc3", "fc2", "fc1"]), "lenet_300_100 on fashion_mnist"),
        ((LAYERS, lambda *given: alone(*given)), "should be a list of fc1, fc2, fc3"),
        ((LAYERS, lambda *given: ["fc1"]), "each once"),
        ((LAYERS, lambda *given: 1 / 0), "ZeroDivisionError"),
        ((["fc1"], ranking), "your prediction should be a list"),
        (("conv1", ranking), "your prediction should be a list"),
        (ranking, "give two things"),
        ((None, ranking), "not answered yet"),
        ((LAYERS, lambda *given: None), "not answered yet"),
    ],
)
def test_other_rankings_fail_with_a_hint(answer, hint):
    result = cl.classroom.check("07.ranking", answer)
    assert not result and hint.lower() in result.message.lower()


@pytest.mark.parametrize("score", [lamp, pairwise, lambda weight: lamp(weight.double())])
def test_right_scores_pass(score):
    result = cl.classroom.check("07.lamp", score)
    assert result, result.message
    assert "|w| leaves 0 weights" in result.message


@pytest.mark.parametrize(
    "score, hint",
    [
        (lambda weight: weight.square() / weight.square().sum(), "sum of all; only those"),
        (unsorted, "not in place"),
        (strictly_larger, "should have score 1"),
        (torch.abs, "should have score 1"),
        (lambda weight: lamp(weight).sqrt(), "smallest weight's score"),
        (lambda weight: lamp(weight.abs().sqrt()), "smallest weight's score"),
        (lambda weight: lamp(weight).flatten(), "give its shape back"),
        (lambda weight: lamp(weight).tolist(), "give its shape back"),
        (lambda weight: None, "not answered yet"),
        (3, "the function itself"),
    ],
)
def test_wrong_scores_fail_with_a_hint(score, hint):
    result = cl.classroom.check("07.lamp", score)
    assert not result and hint in result.message


def test_the_score_of_the_check_is_the_packages():
    model = nn.Sequential(*(nn.Linear(9, 9) for _ in range(2)))
    scores = torch.cat([exercises._lamp(layer.weight.detach()).flatten() for layer in model])
    cut = scores.sort().values[81]
    shares = cl.allocation.sparsities(model, 0.5, "lamp")
    assert shares["0"] == pytest.approx((scores[:81] < cut).double().mean().item())


@functools.cache
def clothes():
    return cl.models.pretrained("lenet_300_100", "fashion_mnist"), cl.data.load("fashion_mnist").validation


def test_the_challenge_is_judged_by_measurement():
    model, split = clothes()
    shares = cl.allocation.sparsities(model, 0.73, "lamp")
    result = cl.classroom.check("07.challenge", shares)
    assert result, result.message
    small = cl.allocation.apply(model, shares)
    assert f"{cl.measure.accuracy(small, split):.2%} right in {cl.storage.file_bytes(small):,} bytes" in result.message


@pytest.mark.parametrize(
    "shares, hint",
    [
        ({"fc1": 0.6, "fc2": 0.6}, "something has to go"),
        ({}, "something has to go"),
        ({"fc1": 0.72, "fc2": 0.72, "fc3": 0.72}, "be 1 point better"),
        ({"fc1": 0.95, "fc2": 0.5}, "be 1 point better"),
        ({"fc1": 0.8, "fc3": 1.0}, "fc3 has no weight left"),
        ({"fc1": 80}, "a fraction, 0 to 1"),
        ({"fc1": "most"}, "should be a number"),
        ({"conv1": 0.5}, "the layers are fc1, fc2, fc3"),
        ([0.8, 0.5, 0.1], "give a dict"),
        (None, "not answered yet"),
    ],
)
def test_other_shares_fail_with_a_hint(shares, hint):
    result = cl.classroom.check("07.challenge", shares)
    assert not result and hint.lower() in result.message.lower()


def greedy(budget):
    return cl.allocation.allocate(exercises._scan(), budget)


def test_the_greedy_allocation_is_broken():
    model = cl.models.pretrained("lenet_300_100", "mnist")
    budget = cl.measure.sizes(model).dense_bytes // 20
    counts = {name: layer.weight.numel() for name, layer in cl.layers.weight_layers(model).items()}
    zeros = sum(counts[name] * share for name, share in greedy(budget).items()) / sum(counts.values())
    shares = cl.allocation.sparsities(model, zeros + 0.001, "erk")
    for answer in ((budget, shares), [float(budget), shares]):
        result = cl.classroom.check("07.break_greedy", answer)
        assert result, result.message
    wrong = {
        "may not be larger": (budget, {"fc1": 0.5}),
        "be a point better": (budget, greedy(budget)),
        "no weight left": (budget, {"fc1": 1.0}),
        "budget is 10": (10, {"fc1": 0.99, "fc2": 0.99}),
        "should be a number": ("5%", shares),
        "give two things": (budget,),
        "give a dict": (budget, 0.9),
    }
    for hint, answer in wrong.items():
        result = cl.classroom.check("07.break_greedy", answer)
        assert not result and hint.lower() in result.message.lower(), result.message
    for answer in ((None, None), (budget, None), (None, shares)):
        assert "not answered yet" in cl.classroom.check("07.break_greedy", answer).message
