"""Exercises of notebook 05: break-even ranks, a convolution as two, ranks under a budget, factors for the outputs."""

import math

import torch
from torch import nn

from compresslab import layers
from compresslab.classroom.feedback import NotYet, call, exercise, number, shown

_SHAPES = ((256, 128), (300, 784), (10, 100), (64, 64), (40, 1000))


@exercise(
    "05.break_even",
    "Write a function that gives the rank below which two, three or more factors are smaller.",
    points=2,
)
def check_break_even(break_even):
    """break_even(rows, columns, factors) -> rank below which so many factors hold fewer numbers than the matrix."""
    for factors in (2, 3, 4, 6):
        for rows, columns in _SHAPES:
            answer = number(call(break_even, rows, columns, factors), "the break-even rank")
            real = _measured_break_even(rows, columns, factors)
            if abs(answer - real) > 1e-3 * real:
                raise NotYet(
                    f"for {factors} factors of {rows} × {columns}, {_rank_hint(answer, rows, columns, factors)}"
                )
    two, three = (_measured_break_even(256, 128, factors) for factors in (2, 3))
    return (
        f"Counted on real layers: a 256 × 128 matrix pays below rank {two:.1f} as two factors, below {three:.1f} as "
        "three. The full rank is 128, so the upper third of all ranks makes it larger."
    )


def _called(function, *arguments):
    """What the learner's function returns; None counts as a stub."""
    answer = call(function, *arguments)
    return number(answer) if answer is None else answer


def _numbers(rows, columns, factors, rank):
    """Numbers in a chain of so many matrices with this inner size, as real layers count them."""
    sizes = [columns, *[rank] * (factors - 1), rows]
    chain = [nn.Linear(one, other, bias=False, device="meta") for one, other in zip(sizes, sizes[1:], strict=False)]
    return layers.count_parameters(nn.Sequential(*chain))


def _measured_break_even(rows, columns, factors):
    """Where the count of numbers passes that of the matrix, between two whole ranks by the curve through them."""
    dense, below = rows * columns, 0
    while _numbers(rows, columns, factors, below + 1) < dense:
        below += 1
    low, high = float(below), float(below + 1)
    points = [(rank, _numbers(rows, columns, factors, rank)) for rank in (below + 1, below + 2, below + 3)]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _through(points, middle) < dense else (low, middle)
    return low


def _through(points, place):
    """Value at `place` of the parabola through three points; counts are parabolas in the rank."""
    total = 0.0
    for number_, (x, y) in enumerate(points):
        others = [other for place_, (other, _) in enumerate(points) if place_ != number_]
        total += y * math.prod((place - other) / (x - other) for other in others)
    return total


def _rank_hint(answer, rows, columns, factors):
    if answer <= 0:
        return f"{answer:.4g} is no rank"
    if answer >= min(rows, columns):
        return f"{answer:.4g} is not below the full rank, {min(rows, columns)}, where factors are larger for certain"
    rank = max(1, round(answer))
    count = _numbers(rows, columns, factors, rank)
    return (
        f"you answer {answer:.4g}; at rank {rank} they hold {count:,} numbers and the matrix {rows * columns:,}: "
        "which sizes has each factor?"
    )


@exercise(
    "05.two_convolutions", "Write a function that turns a Conv2d into two that compute nearly the same.", points=3
)
def check_two_convolutions(two_convolutions):
    """two_convolutions(conv, rank) -> nn.Sequential of a Conv2d with `rank` filters and a 1 x 1 one."""
    for told, conv, images in _convolutions():
        matrix = conv.weight.detach().flatten(1)
        full = min(matrix.shape)
        for rank in (full, 2):
            pair = _checked_pair(_called(two_convolutions, conv, rank), conv, rank, told)
            with torch.no_grad():
                wanted = conv(images)
                _compare_outputs(pair, images, wanted, told, rank == full)
            product = pair[1].weight.detach().flatten(1) @ pair[0].weight.detach().flatten(1)
            best = float(torch.linalg.svdvals(matrix)[rank:].norm())
            if float((matrix - product).norm()) > 1.001 * best + 1e-4:
                raise NotYet(
                    f"for {told}, another pair of rank {rank} is nearer to the weight; take the SVD's first ones"
                )
    return (
        "A convolution is a matrix from its windows to its filters: few filters with the old kernel, then a 1 × 1 "
        "convolution that mixes them. Stride, padding and dilation belong to the first, the bias to the second."
    )


def _convolutions():
    """(in words, Conv2d, images) that differ in kernel, stride, padding, dilation and bias."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [
            ("a plain convolution", nn.Conv2d(3, 8, 3), torch.randn(2, 3, 9, 9)),
            ("one with a stride and padding", nn.Conv2d(4, 6, 5, stride=2, padding=2), torch.randn(2, 4, 11, 11)),
            ("one with dilation", nn.Conv2d(3, 7, 3, dilation=2), torch.randn(2, 3, 9, 9)),
            ("one without a bias", nn.Conv2d(5, 9, 3, padding=1, bias=False), torch.randn(2, 5, 7, 7)),
            ("one with a kernel of 2 × 3", nn.Conv2d(4, 6, (2, 3), stride=(1, 2)), torch.randn(2, 4, 8, 9)),
        ]


def _checked_pair(pair, conv, rank, told):
    if not isinstance(pair, nn.Sequential) or len(pair) != 2 or not all(isinstance(one, nn.Conv2d) for one in pair):
        raise NotYet(f"give an nn.Sequential of two nn.Conv2d; this is {shown(pair)}")
    shapes = [tuple(one.weight.shape) for one in pair]
    wanted = [(rank, conv.in_channels, *conv.kernel_size), (conv.out_channels, rank, 1, 1)]
    if shapes != wanted:
        raise NotYet(f"for {told} and rank {rank}, the weights have shapes {shapes}; they should have {wanted}")
    if pair[0].bias is not None:
        raise NotYet("the first convolution has a bias, which costs numbers and changes the output; bias=False")
    if (pair[1].bias is None) != (conv.bias is None):
        raise NotYet(f"for {told}, the second convolution should have a bias exactly if the old one has")
    if set(pair[1].stride) != {1}:
        raise NotYet(f"for {told}, the second convolution skips places that the first has computed; who should skip?")
    return pair


def _compare_outputs(pair, images, wanted, told, exact):
    try:
        found = pair(images)
    except RuntimeError as error:
        raise NotYet(f"for {told}, the two do not run one after the other: {error}") from error
    if found.shape != wanted.shape:
        sizes = f"{tuple(found.shape)}, the old one's {tuple(wanted.shape)}"
        raise NotYet(f"for {told}, the output has shape {sizes}; which of the two moves the window, and how far?")
    if exact and not torch.allclose(found, wanted, atol=1e-4):
        raise NotYet(f"for {told}, even the full rank changes the output; where do scale, bias and dilation go?")


@exercise(
    "05.share_ranks", "Write a function that shares a budget of numbers out among layers, as a rank for each.", points=3
)
def check_share_ranks(share_ranks):
    """share_ranks(spectra, shapes, budget) -> {name: rank}, whose lost squared singular values are few."""
    for told, spectra, shapes in _networks():
        cost = {name: sum(shape) for name, shape in shapes.items()}
        for share in (0.1, 0.25, 0.5):
            budget = int(share * sum(math.prod(shape) for shape in shapes.values()))
            ranks = _checked_ranks(_called(share_ranks, spectra, shapes, budget), spectra, told)
            spent = sum(cost[name] * rank for name, rank in ranks.items())
            if spent > budget:
                raise NotYet(f"for {told}, your ranks hold {spent:,} numbers, more than the budget of {budget:,}")
            lost, least = _lost(spectra, ranks), _lost(spectra, _shared(spectra, cost, budget))
            if lost > 1.02 * least + 1e-9:
                raise NotYet(f"for {told} and {budget:,} numbers, {lost / least:.2f} times as much is lost as need be; "
                             f"{_sharing_hint(spectra, ranks, cost, budget)}")  # fmt: skip
    return (
        "Always buy the singular value that brings most for what it costs: its square over rows + columns. "
        "Large layers whose spectrum is flat give, small ones whose spectrum is steep take."
    )


def _networks():
    """(in words, name -> singular values, name -> shape): steep and flat spectra, large and small layers."""

    def spectrum(shape, scale, decay):
        return scale * decay ** torch.arange(min(shape), dtype=torch.float64)

    alike = {"fc1": (300, 784), "fc2": (100, 300)}
    tall = {"first": (40, 2000), "second": (60, 60), "third": (200, 50)}
    return [
        (
            "two layers of like decay",
            {"fc1": spectrum((300, 784), 6.0, 0.97), "fc2": spectrum((100, 300), 4.0, 0.95)},
            alike,
        ),
        (
            "a flat and a steep layer",
            {"fc1": spectrum((300, 784), 2.0, 0.995), "fc2": spectrum((100, 300), 20.0, 0.9)},
            alike,
        ),
        (
            "three layers of very different prices",
            {
                "first": spectrum((40, 2000), 4.0, 0.93),
                "second": spectrum((60, 60), 3.0, 0.97),
                "third": spectrum((200, 50), 2.0, 0.95),
            },
            tall,
        ),
    ]


def _checked_ranks(ranks, spectra, told):
    if not isinstance(ranks, dict) or set(ranks) != set(spectra):
        raise NotYet(f"for {told}, give a dict with a rank for each of {', '.join(spectra)}; this is {shown(ranks)}")
    for name, rank in ranks.items():
        value = number(rank, f"the rank of {name!r}")
        if value != int(value) or not 1 <= value <= len(spectra[name]):
            raise NotYet(
                f"for {told}, the rank of {name!r} is {value:g}; give a whole number from 1 to {len(spectra[name])}"
            )
    return {name: int(rank) for name, rank in ranks.items()}


def _lost(spectra, ranks):
    """Sum of the squared singular values that are left out."""
    return sum(float(values[ranks[name] :].square().sum()) for name, values in spectra.items())


def _shared(spectra, cost, budget):
    """Ranks bought one by one, the best value for its price first; at least 1 each."""
    ranks = dict.fromkeys(spectra, 1)
    left = budget - sum(cost.values())
    offers = [(float(value) ** 2 / cost[name], name) for name, values in spectra.items() for value in values[1:]]
    for _, name in sorted(offers, reverse=True):
        if cost[name] <= left:
            ranks[name] += 1
            left -= cost[name]
    return ranks


def _sharing_hint(spectra, ranks, cost, budget):
    """The best single change: which layer should give, and which take."""
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
def check_weighted_factors(weighted_factors):
    """weighted_factors(weight, inputs, rank) -> (left, right), with the least error of inputs @ weight.T."""
    ratios = []
    for told, weight, inputs in _weighted():
        outputs = inputs @ weight.T
        values = torch.linalg.svdvals(outputs.double())
        for rank in (1, 4):
            left, right = _checked_factors(_called(weighted_factors, weight, inputs, rank), weight, rank, told)
            error = float((outputs - inputs @ (left @ right).T).double().norm())
            best = float(values[rank:].norm())
            plain = _plain_error(weight, inputs, rank)
            if error > 1.02 * best + 1e-6 * float(values[0]):
                raise NotYet(f"for {told} and rank {rank}, {_error_hint(error, best, plain)}")
            ratios.append(plain / error)
    return (
        f"On these layers the plain SVD's outputs are up to {max(ratios):.1f} times as wrong. What is "
        "never given to a layer need not be computed well; the principal components of its outputs say what is."
    )


def _weighted():
    """(in words, weight, inputs): inputs of different size, correlated, and some that are always zero."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    scales = torch.logspace(0, -1.5, 20)
    dead = draw(300, 30) * (torch.arange(30) % 3 > 0)
    return [
        ("inputs of different scale", draw(12, 20), draw(400, 20) * scales),
        ("correlated inputs", draw(30, 16), draw(500, 5) @ draw(5, 16) + 0.1 * draw(500, 16)),
        ("inputs a third of which is always zero", draw(10, 30), dead),
        ("fewer inputs seen than there are", draw(12, 40), draw(25, 40)),
    ]


def _checked_factors(factors, weight, rank, told):
    if not isinstance(factors, (tuple, list)) or len(factors) != 2:
        raise NotYet(f"give two matrices, (left, right); this is {shown(factors)}")
    left, right = factors
    for matrix in factors:
        if not isinstance(matrix, torch.Tensor):
            raise NotYet(f"left and right should be tensors; one of them is {shown(matrix)}")
    wanted = [(weight.shape[0], rank), (rank, weight.shape[1])]
    if [tuple(left.shape), tuple(right.shape)] != wanted:
        raise NotYet(f"for {told} and rank {rank}, the shapes are {tuple(left.shape)} and {tuple(right.shape)}; "
                     f"they should be {wanted[0]} and {wanted[1]}")  # fmt: skip
    if not (left.isfinite().all() and right.isfinite().all()):
        raise NotYet(f"for {told}, there are values that are not finite; is a matrix inverted that has no inverse?")
    return left.detach().to(weight.dtype), right.detach().to(weight.dtype)


def _plain_error(weight, inputs, rank):
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    product = (left[:, :rank] * values[:rank]) @ right[:rank]
    return float((inputs @ (weight - product).T).double().norm())


def _error_hint(error, best, plain):
    if abs(error - plain) < 1e-3 * plain:
        return f"this is the plain SVD, whose outputs are {error / best:.2f} times as wrong as need be"
    side = "worse than" if error > plain else "better than"
    return (
        f"your outputs are {error / best:.2f} times as wrong as need be, {side} the plain SVD's; "
        "in which directions do the outputs spread?"
    )
