"""Exercises of notebook 05: right answers pass, plausible wrong ones do not, and hints fit the mistake."""

import math

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab.classroom import low_rank as exercises


def break_even(rows, columns, factors):
    """Positive root of (factors - 2) r² + (rows + columns) r = rows * columns."""
    a, b, c = factors - 2, rows + columns, rows * columns
    return c / b if not a else (math.sqrt(b * b + 4 * a * c) - b) / (2 * a)


def bisected(rows, columns, factors):
    low, high = 0.0, float(min(rows, columns))
    for _ in range(50):
        rank = (low + high) / 2
        larger = rank * (rows + columns) + (factors - 2) * rank**2 > rows * columns
        low, high = (low, rank) if larger else (rank, high)
    return low


def two_convolutions(conv, rank):
    left, values, right = torch.linalg.svd(conv.weight.detach().flatten(1), full_matrices=False)
    options = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
    first = nn.Conv2d(conv.in_channels, rank, conv.kernel_size, **options, bias=False)
    second = nn.Conv2d(rank, conv.out_channels, 1, bias=conv.bias is not None)
    first.weight.data = (values[:rank, None] * right[:rank]).reshape(first.weight.shape)
    second.weight.data = left[:, :rank].reshape(second.weight.shape)
    second.bias = conv.bias
    return nn.Sequential(first, second)


def by_the_package(conv, rank):
    return cl.low_rank.factorize(nn.Sequential(conv), rank={"0": rank})[0]


def changed(change):
    """`two_convolutions` with something done to its result."""

    def answer(conv, rank):
        pair = two_convolutions(conv, rank)
        change(pair, conv)
        return pair

    return answer


def moved_to_the_second(name):
    def change(pair, conv):
        value = getattr(conv, name)
        setattr(pair[0], name, (0, 0) if name == "padding" else (1, 1))
        setattr(pair[1], name, value)

    return change


def share_ranks(spectra, shapes, budget):
    cost = {name: sum(shape) for name, shape in shapes.items()}
    ranks = dict.fromkeys(spectra, 1)
    offers = [(value**2 / cost[name], name) for name, values in spectra.items() for value in values.tolist()[1:]]
    for _, name in sorted(offers, reverse=True):
        if sum(cost[one] * rank for one, rank in ranks.items()) + cost[name] <= budget:
            ranks[name] += 1
    return ranks


def largest_that_fits(ranks_of):
    """Raise a level from 0 to 1 as far as the budget allows; ranks_of(spectra, shapes, level) gives ranks."""

    def answer(spectra, shapes, budget):
        best = dict.fromkeys(spectra, 1)
        for step in range(1, 401):
            ranks = {
                name: max(1, min(len(spectra[name]), int(rank)))
                for name, rank in ranks_of(spectra, shapes, step / 400).items()
            }
            if sum(sum(shapes[name]) * rank for name, rank in ranks.items()) <= budget:
                best = ranks
        return best

    return answer


def uniform(spectra, shapes, level):
    return dict.fromkeys(spectra, level * max(map(len, spectra.values())))


def same_share(spectra, shapes, level):
    return {name: level * len(values) for name, values in spectra.items()}


def same_energy(spectra, shapes, level):
    shares = {name: values.square().cumsum(0) / values.square().sum() for name, values in spectra.items()}
    return {name: int((share < level).sum()) + 1 for name, share in shares.items()}


def same_cut(spectra, shapes, level):
    """One threshold for all singular values: the price is forgotten."""
    top = max(float(values[0]) for values in spectra.values())
    return {name: int((values >= top * (1 - level) ** 4).sum()) for name, values in spectra.items()}


def weighted_factors(weight, inputs, rank):
    _, _, right = torch.linalg.svd(inputs @ weight.T, full_matrices=False)
    basis = right[:rank].T  # (outputs, rank)
    return basis, basis.T @ weight


def whitened(weight, inputs, rank):
    moment = (inputs.T @ inputs / len(inputs)).double()
    root = torch.linalg.cholesky(moment + 1e-6 * moment.trace() / len(moment) * torch.eye(len(moment)))
    left, values, right = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    return (left[:, :rank] * values[:rank]).float(), (right[:rank] @ torch.linalg.inv(root)).float()


def plain(weight, inputs, rank):
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return left[:, :rank] * values[:rank], right[:rank]


def scaled_columns(weight, inputs, rank):
    scale = inputs.square().mean(0).sqrt().clamp(min=1e-6)
    left, right = plain(weight * scale, inputs, rank)
    return left, right / scale


def scale_left_in(weight, inputs, rank):
    return plain(weight * inputs.square().mean(0).sqrt(), inputs, rank)


def inverted(weight, inputs, rank):
    moment = inputs.T @ inputs
    left, right = plain(weight @ moment, inputs, rank)
    return left, right @ torch.linalg.inv(moment)


RIGHT = {
    "05.break_even": [break_even, bisected],
    "05.two_convolutions": [two_convolutions, by_the_package],
    "05.share_ranks": [share_ranks],
    "05.weighted_factors": [weighted_factors, whitened],
}
WRONG = {
    "05.break_even": [
        (lambda m, n, k: min(m, n), "not below the full rank"),
        (lambda m, n, k: m * n / (m + n), "for 3 factors"),
        (lambda m, n, k: m * n / (k * (m + n)), "for 2 factors"),
        (lambda m, n, k: min(m, n) / 2, "for 2 factors"),
        (lambda m, n, k: break_even(m, n, 3), "for 2 factors"),
        (lambda m, n, k: break_even(m, n, min(k, 3)), "for 4 factors"),
        (lambda m, n, k: int(break_even(m, n, k)), "which sizes has each factor"),
        (lambda m, n, k: m * n / (m + n + 1), "for 2 factors"),
        (lambda m, n, k: -1, "is no rank"),
        (85.3, "the function itself"),
    ],
    "05.two_convolutions": [
        (lambda conv, rank: conv, "nn.Sequential of two"),
        (lambda conv, rank: tuple(two_convolutions(conv, rank)), "nn.Sequential of two"),
        (lambda conv, rank: two_convolutions(conv, 2), "have shapes"),
        (lambda conv, rank: two_convolutions(conv, rank)[::-1], "have shapes"),
        (changed(moved_to_the_second("stride")), "skips places"),
        (changed(moved_to_the_second("padding")), "the output has shape"),
        (changed(lambda pair, conv: setattr(pair[0], "padding", (0, 0))), "the output has shape"),
        (changed(lambda pair, conv: setattr(pair[0], "dilation", (1, 1))), "the output has shape"),
        (changed(lambda pair, conv: setattr(pair[1], "bias", None)), "a bias exactly if"),
        (
            changed(lambda pair, conv: setattr(pair[1], "bias", nn.Parameter(torch.zeros(conv.out_channels)))),
            "full rank changes",
        ),
        (
            changed(lambda pair, conv: setattr(pair[0], "bias", nn.Parameter(torch.zeros(len(pair[0].weight))))),
            "has a bias, which costs",
        ),
        (changed(lambda pair, conv: pair[0].weight.data.mul_(0.5)), "full rank changes the output"),
        (
            lambda conv, rank: by_the_package(
                nn.Conv2d(
                    conv.in_channels,
                    conv.out_channels,
                    conv.kernel_size,
                    conv.stride,
                    conv.padding,
                    conv.dilation,
                    bias=conv.bias is not None,
                ),
                rank,
            ),
            "full rank changes the output",
        ),
        (lambda conv, rank: rank_last(conv, rank), "is nearer to the weight"),
    ],
    "05.share_ranks": [
        (lambda spectra, shapes, budget: dict.fromkeys(spectra, 1), "are not used"),
        (
            lambda spectra, shapes, budget: {name: len(values) for name, values in spectra.items()},
            "more than the budget",
        ),
        (lambda spectra, shapes, budget: share_ranks(spectra, shapes, 2 * budget), "more than the budget"),
        (largest_that_fits(uniform), "times as much is lost"),
        (largest_that_fits(same_share), "times as much is lost"),
        (largest_that_fits(same_energy), "times as much is lost"),
        (largest_that_fits(same_cut), "times as much is lost"),
        (lambda spectra, shapes, budget: share_ranks(spectra, shapes, budget // 2), ""),
        (lambda spectra, shapes, budget: list(spectra.values()), "give a dict"),
        (lambda spectra, shapes, budget: {name: 0 for name in spectra}, "whole number from 1"),
        (lambda spectra, shapes, budget: {name: 1.5 for name in spectra}, "whole number from 1"),
    ],
    "05.weighted_factors": [
        (plain, "this is the plain SVD"),
        (scaled_columns, "times as wrong"),
        (scale_left_in, "times as wrong"),
        (inverted, ""),
        (lambda weight, inputs, rank: weighted_factors(weight, inputs, rank)[::-1], "the shapes are"),
        (lambda weight, inputs, rank: weighted_factors(weight, inputs, rank + 1), "the shapes are"),
        (lambda weight, inputs, rank: weight, "two things, (left, right)"),
        (lambda weight, inputs, rank: (weight[:, :rank], weight[:rank] / 0), "not finite"),
        (lambda weight, inputs, rank: (weight[:, :rank] * 0, weight[:rank]), "worse than the plain"),
        (lambda weight, inputs, rank: (1, 2), "should return tensors"),
    ],
}


def rank_last(conv, rank):
    """A pair of the right shape at any rank, exact at the full one, that keeps the last singular values."""
    left, values, right = torch.linalg.svd(conv.weight.detach().flatten(1), full_matrices=False)
    pair = two_convolutions(conv, rank)
    pair[0].weight.data = (values[-rank:, None] * right[-rank:]).reshape(pair[0].weight.shape)
    pair[1].weight.data = left[:, -rank:].reshape(pair[1].weight.shape)
    return pair


@pytest.mark.parametrize("name, answer", [(name, answer) for name in RIGHT for answer in RIGHT[name]])
@pytest.mark.filterwarnings("ignore:low_rank makes no smaller")
def test_right_answers_pass(name, answer):
    result = cl.classroom.check(name, answer)
    assert result, result.message
    assert "right." in result.message and len(result.message) < 320


@pytest.mark.parametrize("name, answer, hint", [(name, *one) for name in WRONG for one in WRONG[name]])
@pytest.mark.filterwarnings("ignore:low_rank makes no smaller")
def test_wrong_answers_fail_with_a_hint_that_fits(name, answer, hint):
    result = cl.classroom.check(name, answer)
    assert not result
    assert hint in result.message.lower() or hint in result.message, result.message


@pytest.mark.parametrize("rows, columns, factors", [(256, 128, 2), (256, 128, 3), (300, 784, 5), (10, 100, 2)])
def test_the_break_even_is_counted_on_real_layers(rows, columns, factors):
    assert exercises._measured_break_even(rows, columns, factors) == pytest.approx(break_even(rows, columns, factors))
    if factors == 2:
        assert cl.low_rank.break_even(rows, columns) == pytest.approx(break_even(rows, columns, 2))


@pytest.mark.parametrize("name", RIGHT)
def test_a_stub_is_told_from_a_wrong_answer(name):
    assert "not answered yet" in cl.classroom.check(name, lambda *given: None).message


def test_no_change_of_two_ranks_improves_what_is_held_against_an_answer():
    for _, spectra, shapes in exercises._networks():
        cost = {name: sum(shape) for name, shape in shapes.items()}
        budget = sum(math.prod(shape) for shape in shapes.values()) // 4
        ranks = exercises._shared(spectra, cost, budget)
        least = exercises._lost(spectra, ranks)
        for giver in ranks:
            for taker in ranks.keys() - {giver}:
                fewer = ranks | {giver: ranks[giver] - 1}
                spare = budget - sum(cost[name] * rank for name, rank in fewer.items())
                more = fewer | {taker: ranks[taker] + spare // cost[taker]}
                if min(more.values()) >= 1:
                    assert exercises._lost(spectra, more) > 0.99 * least
