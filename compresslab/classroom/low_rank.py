"""Exercises of notebook 05: break-even ranks, a convolution as two, ranks under a budget, factors for the outputs."""

import functools
import itertools
import math

import torch
from torch import nn

from compresslab.classroom.feedback import NotYet, call, describe, exercise, read_number, read_tensors
from compresslab.experiments.sweep import seed_global
from compresslab.weights import layers

_SHAPES = ((256, 128), (300, 784), (10, 100), (64, 64), (40, 1000))


@exercise("05.break_even", points=2)
def check_break_even(break_even: object) -> str:
    """Write a function that gives the rank below which two, three or more factors are smaller."""
    for factors, (rows, columns) in itertools.product((2, 3, 4, 6), _SHAPES):
        answer = read_number(call(break_even, rows, columns, factors), "the break-even rank")
        real = _measured_break_even(rows, columns, factors)
        if abs(answer - real) <= 1e-3 * real:
            continue
        if answer <= 0:
            hint = f"{answer:.4g} is no rank"
        elif answer >= min(rows, columns):
            hint = (
                f"{answer:.4g} is not below the full rank, {min(rows, columns)}, where factors are larger for certain"
            )
        else:
            rank = max(1, round(answer))
            count = f"{_count_numbers(rows, columns, factors, rank):,} numbers and the matrix {rows * columns:,}"
            hint = f"you answer {answer:.4g}; at rank {rank} they hold {count}: which sizes has each factor?"
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


@exercise("05.two_convolutions", points=3)
def check_two_convolutions(two_convolutions: object) -> str:
    """Write a function that turns a Conv2d into two that compute nearly the same."""
    for case, conv, images in _convolutions():
        matrix = conv.weight.detach().flatten(1)
        full = min(matrix.shape)
        for rank in (full, 2):
            pair = call(two_convolutions, conv, rank)
            _refuse_layers(pair, conv, rank, case)
            with torch.no_grad():
                _compare_outputs(pair, images, conv(images), case, rank == full)
            product = pair[1].weight.detach().flatten(1) @ pair[0].weight.detach().flatten(1)
            best = float(torch.linalg.svdvals(matrix)[rank:].norm())
            if float((matrix - product).norm()) > 1.001 * best + 1e-4:
                hint = "take the SVD's first ones"
                raise NotYet(f"for {case}, another pair of rank {rank} is nearer to the weight; {hint}")
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


def _refuse_layers(pair, conv, rank, case):
    if not isinstance(pair, nn.Sequential) or len(pair) != 2 or not all(isinstance(layer, nn.Conv2d) for layer in pair):
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


@exercise("05.share_ranks", points=3)
def check_share_ranks(share_ranks: object) -> str:
    """Write a function that shares a budget of numbers out among layers, as a rank for each."""
    for case, spectra, shapes in _networks():
        cost = {name: sum(shape) for name, shape in shapes.items()}
        for share in (0.1, 0.25, 0.5):
            budget = int(share * sum(math.prod(shape) for shape in shapes.values()))
            ranks = _read_ranks(call(share_ranks, spectra, shapes, budget), spectra, case)
            spent = sum(cost[name] * rank for name, rank in ranks.items())
            if spent > budget:
                raise NotYet(f"for {case}, your ranks hold {spent:,} numbers, more than the budget of {budget:,}")
            lost, least = _lost(spectra, ranks), _lost(spectra, _shared(spectra, cost, budget))
            if lost > 1.02 * least + 1e-9:
                ratio = f"{lost / least:.2f} times as much is lost as need be"
                hint = _sharing_hint(spectra, ranks, cost, budget - spent)
                raise NotYet(f"for {case} and {budget:,} numbers, {ratio}; {hint}")
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
        spectra, shapes = {}, {}
        for name, (shape, scale, decay) in described.items():
            spectra[name] = scale * decay ** torch.arange(min(shape), dtype=torch.float64)
            shapes[name] = shape
        yield case, spectra, shapes


def _read_ranks(ranks, spectra, case):
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
    ranks, left = dict.fromkeys(spectra, 1), budget - sum(cost.values())
    offers = [(float(value) ** 2 / cost[name], name) for name, values in spectra.items() for value in values[1:]]
    for _, name in sorted(offers, reverse=True):
        if cost[name] <= left:
            ranks[name] += 1
            left -= cost[name]
    return ranks


def _sharing_hint(spectra, ranks, cost, spare):
    """Return the best single change: which layer should give, and which take."""
    if spare > 5 * max(cost.values()):
        return f"{spare:,} numbers of the budget are not used"
    gains = {name: float(spectra[name][min(ranks[name], len(spectra[name]) - 1)]) ** 2 / cost[name] for name in spectra}
    pains = {name: float(spectra[name][ranks[name] - 1]) ** 2 / cost[name] for name in spectra}
    giver, taker = min(pains, key=pains.get), max(gains, key=gains.get)
    return f"{giver!r} should give to {taker!r}: compare what one more rank brings with what it costs"


@exercise("05.weighted_factors", points=3)
def check_weighted_factors(weighted_factors: object) -> str:
    """Write a function that factorizes a weight so that its outputs change least."""
    ratios = []
    for (case, weight, inputs), rank in itertools.product(_weighted(), (1, 4)):
        outputs, (rows, columns) = inputs @ weight.T, weight.shape
        answer, wanted = call(weighted_factors, weight, inputs, rank), [(rows, rank), (rank, columns)]
        left, right = read_tensors(answer, "(left, right)", wanted, f"for {case} and rank {rank}")
        basis, values, directions = torch.linalg.svd(weight, full_matrices=False)
        truncated = (basis[:, :rank] * values[:rank]) @ directions[:rank]
        error, plain = (float((outputs - inputs @ product.T).double().norm()) for product in (left @ right, truncated))
        values = torch.linalg.svdvals(outputs.double())
        best = float(values[rank:].norm())
        if error > 1.02 * best + 1e-6 * float(values[0]):
            times, side = f"{error / best:.2f} times as wrong as need be", "worse" if error > plain else "better"
            hint = f"your outputs are {times}, {side} than the plain SVD's; in which directions do the outputs spread?"
            if abs(error - plain) < 1e-3 * plain:
                hint = f"this is the plain SVD, whose outputs are {times}"
            raise NotYet(f"for {case} and rank {rank}, {hint}")
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
