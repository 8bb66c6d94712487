"""Exercises of notebook 05: break-even ranks, a convolution as two, ranks under a budget, factors for the outputs."""

import functools
import itertools
import math

import torch
from torch import nn

from compresslab.classroom.feedback import NotYet, call, describe, exercise, read_number, require, split_answer
from compresslab.experiments.sweep import seed_global
from compresslab.weights import layers

_SHAPES = ((256, 128), (300, 784), (10, 100), (64, 64), (40, 1000))


@exercise(
    "05.break_even",
    "Write a function that gives the rank below which two, three or more factors are smaller.",
    points=2,
)
def check_break_even(break_even: object) -> str:
    """Check break_even(rows, columns, factors) -> rank below which the factors are smaller than the matrix."""
    for factors in (2, 3, 4, 6):
        for rows, columns in _SHAPES:
            answer = read_number(call(break_even, rows, columns, factors), "the break-even rank")
            real = _measured_break_even(rows, columns, factors)
            if abs(answer - real) > 1e-3 * real:
                hint = _rank_hint(answer, rows, columns, factors)
                raise NotYet(f"for {factors} factors of {rows} × {columns}, {hint}")
    two, three = (_measured_break_even(256, 128, factors) for factors in (2, 3))
    return (
        f"Counted on real layers: a 256 × 128 matrix pays below rank {two:.1f} as two factors, below {three:.1f} as "
        "three. The full rank is 128, so the upper third of all ranks makes it larger."
    )


def _count_numbers(rows, columns, factors, rank):
    """Count the numbers in a chain of real layers with this inner size."""
    sizes = [columns, *[rank] * (factors - 1), rows]
    chain = [nn.Linear(*pair, bias=False, device="meta") for pair in itertools.pairwise(sizes)]
    return layers.count_parameters(nn.Sequential(*chain))


def _measured_break_even(rows, columns, factors):
    """Solve square r² + linear r = dense for the break-even rank r."""
    first, second = (_count_numbers(rows, columns, factors, rank) for rank in (1, 2))
    square, dense = (second - 2 * first) / 2, rows * columns
    linear = first - square
    return 2 * dense / (math.sqrt(linear**2 + 4 * square * dense) + linear)


def _rank_hint(answer, rows, columns, factors):
    if answer <= 0:
        return f"{answer:.4g} is no rank"
    if answer >= min(rows, columns):
        return f"{answer:.4g} is not below the full rank, {min(rows, columns)}, where factors are larger for certain"
    rank = max(1, round(answer))
    count = _count_numbers(rows, columns, factors, rank)
    return (
        f"you answer {answer:.4g}; at rank {rank} they hold {count:,} numbers and the matrix {rows * columns:,}: "
        "which sizes has each factor?"
    )


@exercise(
    "05.two_convolutions", "Write a function that turns a Conv2d into two that compute nearly the same.", points=3
)
def check_two_convolutions(two_convolutions: object) -> str:
    """Check two_convolutions(conv, rank) -> nn.Sequential of two Conv2d."""
    for case, conv, images in _convolutions():
        matrix = conv.weight.detach().flatten(1)
        full = min(matrix.shape)
        for rank in (full, 2):
            pair = _checked_pair(require(call(two_convolutions, conv, rank)), conv, rank, case)
            with torch.no_grad():
                wanted = conv(images)
                _compare_outputs(pair, images, wanted, case, rank == full)
            product = pair[1].weight.detach().flatten(1) @ pair[0].weight.detach().flatten(1)
            best = float(torch.linalg.svdvals(matrix)[rank:].norm())
            if float((matrix - product).norm()) > 1.001 * best + 1e-4:
                raise NotYet(
                    f"for {case}, another pair of rank {rank} is nearer to the weight; take the SVD's first ones"
                )
    return (
        "A convolution is a matrix from its windows to its filters: few filters with the old kernel, then a 1 × 1 "
        "convolution that mixes them. Stride, padding and dilation belong to the first, the bias to the second."
    )


def _convolutions():
    """Return (case, Conv2d, images) that differ in kernel, stride, padding, dilation and bias."""
    with seed_global(0):
        return [
            ("a plain convolution", nn.Conv2d(3, 8, 3), torch.randn(2, 3, 9, 9)),
            ("one with a stride and padding", nn.Conv2d(4, 6, 5, stride=2, padding=2), torch.randn(2, 4, 11, 11)),
            ("one with dilation", nn.Conv2d(3, 7, 3, dilation=2), torch.randn(2, 3, 9, 9)),
            ("one without a bias", nn.Conv2d(5, 9, 3, padding=1, bias=False), torch.randn(2, 5, 7, 7)),
            ("one with a kernel of 2 × 3", nn.Conv2d(4, 6, (2, 3), stride=(1, 2)), torch.randn(2, 4, 8, 9)),
        ]


def _checked_pair(pair, conv, rank, case):
    if not isinstance(pair, nn.Sequential) or len(pair) != 2 or not all(isinstance(conv, nn.Conv2d) for conv in pair):
        raise NotYet(f"give an nn.Sequential of two nn.Conv2d; this is {describe(pair)}")
    shapes = [tuple(layer.weight.shape) for layer in pair]
    wanted = [(rank, conv.in_channels, *conv.kernel_size), (conv.out_channels, rank, 1, 1)]
    if shapes != wanted:
        raise NotYet(f"for {case} and rank {rank}, the weights have shapes {shapes}; they should have {wanted}")
    if pair[0].bias is not None:
        raise NotYet("the first convolution has a bias, which costs numbers and changes the output; bias=False")
    if (pair[1].bias is None) != (conv.bias is None):
        raise NotYet(f"for {case}, the second convolution should have a bias exactly if the old one has")
    if set(pair[1].stride) != {1}:
        raise NotYet(f"for {case}, the second convolution skips places that the first has computed; who should skip?")
    return pair


def _compare_outputs(pair, images, wanted, case, exact):
    try:
        outputs = pair(images)
    except RuntimeError as error:
        raise NotYet(f"for {case}, the two do not run one after the other: {error}") from error
    if outputs.shape != wanted.shape:
        sizes = f"{tuple(outputs.shape)}, the old one's {tuple(wanted.shape)}"
        raise NotYet(f"for {case}, the output has shape {sizes}; which of the two moves the window, and how far?")
    if exact and not torch.allclose(outputs, wanted, atol=1e-4):
        raise NotYet(f"for {case}, even the full rank changes the output; where do scale, bias and dilation go?")


@exercise(
    "05.share_ranks", "Write a function that shares a budget of numbers out among layers, as a rank for each.", points=3
)
def check_share_ranks(share_ranks: object) -> str:
    """Check share_ranks(spectra, shapes, budget) -> {name: rank} by the squared singular values lost."""
    for case, spectra, shapes in _networks():
        cost = {name: sum(shape) for name, shape in shapes.items()}
        for share in (0.1, 0.25, 0.5):
            budget = int(share * sum(math.prod(shape) for shape in shapes.values()))
            ranks = _checked_ranks(require(call(share_ranks, spectra, shapes, budget)), spectra, case)
            spent = sum(cost[name] * rank for name, rank in ranks.items())
            if spent > budget:
                raise NotYet(f"for {case}, your ranks hold {spent:,} numbers, more than the budget of {budget:,}")
            lost, least = _lost(spectra, ranks), _lost(spectra, _shared(spectra, cost, budget))
            if lost > 1.02 * least + 1e-9:
                ratio, hint = f"{lost / least:.2f} times as much", _sharing_hint(spectra, ranks, cost, budget)
                raise NotYet(f"for {case} and {budget:,} numbers, {ratio} is lost as need be; {hint}")
    return (
        "Always buy the singular value that brings most for what it costs: its square over rows + columns. "
        "Large layers whose spectrum is flat give, small ones whose spectrum is steep take."
    )


def _networks():
    """Yield (case, name -> singular values, name -> shape) of different layers."""
    large, small = (300, 784), (100, 300)
    cases = {  # layers by name: shape, largest singular value, decay from each to the next
        "two layers of like decay": {"fc1": (large, 6.0, 0.97), "fc2": (small, 4.0, 0.95)},
        "a flat and a steep layer": {"fc1": (large, 2.0, 0.995), "fc2": (small, 20.0, 0.9)},
        "three layers of very different prices": {
            **{"first": ((40, 2000), 4.0, 0.93), "second": ((60, 60), 3.0, 0.97), "third": ((200, 50), 2.0, 0.95)},
        },
    }
    for case, described in cases.items():
        ranks = {name: torch.arange(min(shape), dtype=torch.float64) for name, (shape, *_) in described.items()}
        spectra = {name: scale * decay ** ranks[name] for name, (_, scale, decay) in described.items()}
        yield case, spectra, {name: shape for name, (shape, *_) in described.items()}


def _checked_ranks(ranks, spectra, case):
    if not isinstance(ranks, dict) or set(ranks) != set(spectra):
        raise NotYet(f"for {case}, give a dict with a rank for each of {', '.join(spectra)}; this is {describe(ranks)}")
    for name, rank in ranks.items():
        value, most = read_number(rank, f"the rank of {name!r}"), len(spectra[name])
        if value != int(value) or not 1 <= value <= most:
            raise NotYet(f"for {case}, the rank of {name!r} is {value:g}; give a whole number from 1 to {most}")
    return {name: int(rank) for name, rank in ranks.items()}


def _lost(spectra, ranks):
    """Return the sum of the squared singular values that are left out."""
    return sum(float(values[ranks[name] :].square().sum()) for name, values in spectra.items())


def _shared(spectra, cost, budget):
    """Buy ranks one by one, the best value for its price first."""
    ranks = dict.fromkeys(spectra, 1)
    left = budget - sum(cost.values())
    offers = [(float(value) ** 2 / cost[name], name) for name, values in spectra.items() for value in values[1:]]
    for _, name in sorted(offers, reverse=True):
        if cost[name] <= left:
            ranks[name] += 1
            left -= cost[name]
    return ranks


def _sharing_hint(spectra, ranks, cost, budget):
    """Return the best single change: which layer should give, and which take."""
    spare = budget - sum(cost[name] * rank for name, rank in ranks.items())
    if spare > 5 * max(cost.values()):
        return f"{spare:,} numbers of the budget are not used"
    gains = {name: float(spectra[name][min(ranks[name], len(spectra[name]) - 1)]) ** 2 / cost[name] for name in spectra}
    pains = {name: float(spectra[name][ranks[name] - 1]) ** 2 / cost[name] for name in spectra}
    giver, taker = min(pains, key=pains.get), max(gains, key=gains.get)
    return f"{giver!r} should give to {taker!r}: compare what one more rank brings with what it costs"


@exercise(
    "05.weighted_factors", "Write a function that factorizes a weight so that its outputs change least.", points=3
)
def check_weighted_factors(weighted_factors: object) -> str:
    """Check weighted_factors(weight, inputs, rank) -> (left, right) by the error of inputs @ weight.T."""
    ratios = []
    for case, weight, inputs in _weighted():
        outputs = inputs @ weight.T
        values = torch.linalg.svdvals(outputs.double())
        for rank in (1, 4):
            left, right = _checked_factors(require(call(weighted_factors, weight, inputs, rank)), weight, rank, case)
            error = float((outputs - inputs @ (left @ right).T).double().norm())
            best, plain = float(values[rank:].norm()), _plain_error(weight, inputs, rank)
            if error > 1.02 * best + 1e-6 * float(values[0]):
                raise NotYet(f"for {case} and rank {rank}, {_error_hint(error, best, plain)}")
            ratios.append(plain / error)
    return (
        f"On these layers the plain SVD's outputs are up to {max(ratios):.1f} times as wrong. What is "
        "never given to a layer need not be computed well; the principal components of its outputs say what is."
    )


def _weighted():
    """Return (case, weight, inputs): inputs of different size, correlated, and some that are always zero."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    scales = torch.logspace(0, -1.5, 20)
    dead = draw(300, 30) * (torch.arange(30) % 3 > 0)
    return [
        ("inputs of different scale", draw(12, 20), draw(400, 20) * scales),
        ("correlated inputs", draw(30, 16), draw(500, 5) @ draw(5, 16) + 0.1 * draw(500, 16)),
        ("inputs a third of which is always zero", draw(10, 30), dead),
        ("fewer inputs seen than there are", draw(12, 40), draw(25, 40)),
    ]


def _checked_factors(factors, weight, rank, case):
    left, right = split_answer(factors, "(left, right)")
    for matrix in (left, right):
        if not isinstance(matrix, torch.Tensor):
            raise NotYet(f"left and right should be tensors; one of them is {describe(matrix)}")
    wanted = [(weight.shape[0], rank), (rank, weight.shape[1])]
    if [tuple(left.shape), tuple(right.shape)] != wanted:
        shapes = f"{tuple(left.shape)} and {tuple(right.shape)}; they should be {wanted[0]} and {wanted[1]}"
        raise NotYet(f"for {case} and rank {rank}, the shapes are {shapes}")
    if not (left.isfinite().all() and right.isfinite().all()):
        raise NotYet(f"for {case}, there are values that are not finite; is a matrix inverted that has no inverse?")
    return left.detach().to(weight.dtype), right.detach().to(weight.dtype)


def _plain_error(weight, inputs, rank):
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    product = (left[:, :rank] * values[:rank]) @ right[:rank]
    return float((inputs @ (weight - product).T).double().norm())


def _error_hint(error, best, plain):
    if abs(error - plain) < 1e-3 * plain:
        return f"this is the plain SVD, whose outputs are {error / best:.2f} times as wrong as need be"
    against = (
        f"{'worse' if error > plain else 'better'} than the plain SVD's; in which directions do the outputs spread?"
    )
    return f"your outputs are {error / best:.2f} times as wrong as need be, {against}"
