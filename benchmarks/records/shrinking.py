"""Training a network for the smallest file: few weights, where they are cheap to write down, of few values.

One run from fresh or trained weights, in three parts.

1. Prune little by little, on a cubic schedule (Zhu and Gupta 2017, arXiv:1710.01878). A weight's score is its
   saliency, w**2 * sqrt(E[gradient**2]) (a softened diagonal Fisher information, LeCun et al. 1990, Theis et al. 2018,
   arXiv:1801.05787), over the bits that it takes in the file to a power: among many in its row and column it is cheap,
   alone it is dear. So whole rows and columns go.
2. Settle (incremental quantization, Zhou et al. 2017, arXiv:1702.03044): each layer gets a codebook by k-means; a
   growing share of its weights, the largest first, takes the nearest value for good, while the rest makes up for it and
   the values train on.
3. Only the values and the biases train to the end. Biases lie on a coarse grid since the second part.
"""

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

from benchmarks.records.rate import rounded, trained_layers
from compresslab import checks, train
from compresslab.data import split_of
from compresslab.numerics.clustering import kmeans
from compresslab.weights.layers import TRANSPOSED

EVERY = 16  # training steps between two prunings, or settlings
MEMORY = 0.98  # of the running mean of squared gradients, from step to step
VALUE_BITS = 2.5  # that a kept weight costs beside its position, about
MANTISSA = 5  # bits that the values of a codebook are rounded to at the end: they have to be written down as well
BIAS_STEPS = 8  # of a bias' grid, to the largest bias of the layer


def shrink(
    model,
    data,
    *,
    kept,
    codes=6,
    rate=2.0,
    steps=None,
    epochs=None,
    parts=(0.05, 0.6, 0.9),
    seed=0,
    bar=True,
    **training,
):
    """Train `model` in place to few weights of few values, yielding a `train.Progress` after each step.

    model     any nn.Module whose Linear and Conv layers have plain weights (`layers.plain` makes them plain); frozen
              tensors stay as they are
    data      a Split or a pair (images, labels)
    kept      weights that are left, of all layers together, 1 or more; biases and frozen weights are not counted
    codes     values that a layer's kept weights may have, 2 to 256
    rate      power of a weight's bits in its score; 0 prunes by saliency alone
    steps, epochs, seed, bar, training  as in `train.fit`: lr, batch_size, loss, precision, device; 2 steps at least
    parts     shares of the steps after which pruning begins, pruning ends, and the last weight has settled; a step
              apart at least
    returns   generator; at its end the weights are ordinary tensors of zeros and `codes` values, the biases multiples
              of a power of two
    raises    ValueError for settings out of range, a model without such layers or with weights that are not plain
              or all frozen
    """
    checks.integer("codes", codes, 2, 256)
    checks.real("rate", rate, 0, 10)
    if len(parts) != 3 or not 0 <= parts[0] < parts[1] < parts[2] <= 1:
        raise ValueError(f"parts is {parts!r}; give three rising shares of the steps, such as (0.05, 0.6, 0.9)")
    _check_steps(data, steps, epochs, training.get("batch_size"))
    found = trained_layers(model)
    checks.integer("kept", kept, 1, sum(layer.weight.numel() for layer in found))
    return _shrinking(
        model, data, found, kept, codes, rate, parts, seed, bar, {"steps": steps, "epochs": epochs, **training}
    )


def _check_steps(data, steps, epochs, batch_size):
    """Raise ValueError where there are too few steps for the parts; `train.fit` checks the rest."""
    _, per_epoch = train.plan_batches(split_of(data), batch_size)
    checks.integer("steps", steps if steps is not None else train.count_steps(epochs, None, per_epoch), 2)


def _shrinking(model, data, found, kept, codes, rate, parts, seed, bar, training):
    cells = [_Cell(layer, codes) for layer in found]
    with rounded(found, model, data, seed=seed, bar=bar, **training) as run:
        try:
            for progress in run:
                _follow(cells, progress.step, *_turns(progress.steps, parts), kept, rate)
                yield progress
        finally:
            for cell in cells:
                cell.round_values()


def _turns(steps, parts):
    """The steps at which the parts end: three whole numbers, rising, up to `steps`, 2 or more."""
    begin, pruned, settled = (int(steps * share) for share in parts)
    pruned = min(max(pruned, 1), steps - 1)
    return min(begin, pruned - 1), pruned, max(settled, pruned + 1)


def _follow(cells, step, begin, pruned, settled, kept, rate):
    """What is to be done after a training step."""
    if step <= pruned:
        for cell in cells:
            cell.learn()
    if begin <= step <= pruned and (step % EVERY == 0 or step == pruned):
        total, left = sum(len(cell.kept) for cell in cells), (pruned - step) / (pruned - begin)
        _prune(cells, kept + int((total - kept) * left**3), rate)
    if step == pruned:
        for cell in cells:
            cell.begin_to_settle()
    if step >= pruned and (step % EVERY == 0 or step == settled):
        for cell in cells:
            cell.settle(min(1.0, (step - pruned) / (settled - pruned)))


def _prune(cells, keep, rate):
    """Keep the `keep` weights with the best scores of all layers."""
    scores = [cell.scores(rate) for cell in cells]
    every = torch.cat(scores)
    cut = every.kthvalue(len(every) - keep).values if keep < len(every) else -1.0
    for cell, score in zip(cells, scores, strict=True):
        cell.keep(score > cut)


class _Cell:
    """One layer while it shrinks.

    kept         bool (weights,), which are left
    sensitivity  running mean of the weights' squared gradients, (weights,)
    """

    def __init__(self, layer, codes):
        self.layer, self.shape = layer, layer.weight.shape
        self.rounding = _Settling(layer.weight.detach().flatten(), codes)
        parametrize.register_parametrization(layer, "weight", self.rounding)
        self.weight = layer.parametrizations.weight.original
        self.kept = torch.ones(self.weight.numel(), dtype=torch.bool)
        self.sensitivity = torch.zeros(self.weight.numel())
        self.bias = None
        if layer.bias is not None and layer.bias.requires_grad:
            parametrize.register_parametrization(layer, "bias", _Coarse(len(layer.bias)))
            self.bias = layer.parametrizations.bias[0]

    @property
    def numbers(self):
        """The weights as they are trained, flat."""
        return self.weight.detach().reshape(-1)

    def learn(self):
        """Take the gradient of the last step into account; a layer that the loss does not depend on has none."""
        if self.weight.grad is not None:
            gradient = self.weight.grad.reshape(-1).float()
            self.sensitivity = self.sensitivity.to(gradient).mul_(MEMORY).addcmul_(gradient, gradient, value=1 - MEMORY)

    def scores(self, rate):
        """Score of each weight, 0 for those that are gone: (weights,)."""
        numbers = self.numbers.float()
        kept = self.kept.to(numbers).reshape(self.shape[0], -1)  # (rows, columns)
        saliency = numbers.square() * (self.sensitivity.to(numbers) + 1e-12).sqrt() * kept.reshape(-1)
        odds = (kept.sum(1) + 0.5)[:, None] * (kept.sum(0) + 0.5) / kept.sum().clamp(min=1)
        return saliency / (1 + (1 + 1 / odds).log2() + VALUE_BITS).reshape(-1) ** rate

    def keep(self, kept):
        """Let all other weights go; a unit that is left without weights loses its bias, and soon its readers."""
        self.kept = kept
        self.rounding.loose = kept.to(self.weight)
        if self.bias is not None:
            self.bias.alive = _alive(self.layer, kept.reshape(self.shape)).to(self.weight)

    def begin_to_settle(self):
        """Make the codebook, and the grid of the biases."""
        values = self.numbers[self.kept]
        if len(values):
            centroids = kmeans(values.float().cpu().numpy(), len(self.rounding.centroids), "density", 100)
            with torch.no_grad():
                self.rounding.centroids[: len(centroids)] = torch.as_tensor(centroids).to(values)
                self.rounding.centroids[len(centroids) :] = float(centroids[-1])
        if self.bias is not None:
            largest = float(self.layer.parametrizations.bias.original.detach().abs().max())
            self.bias.step = 2.0 ** math.ceil(math.log2(max(largest, 1e-6) / BIAS_STEPS))

    def settle(self, share):
        """Let the largest weights that are loose take their values, until `share` of those kept has."""
        rounding, numbers = self.rounding, self.numbers
        more = int(share * int(self.kept.sum()) + 1e-6) - len(rounding.places)
        if more > 0:
            new = torch.where(rounding.loose > 0, numbers.abs(), -1.0).topk(more).indices
            values, order = rounding.centroids.detach().sort()
            nearest = torch.bucketize(numbers[new], (values[1:] + values[:-1]) / 2)
            rounding.places = torch.cat([rounding.places.to(new), new])
            rounding.codes = torch.cat([rounding.codes.to(new), order[nearest]])
            rounding.loose[new] = 0

    def round_values(self):
        """Give the values of the codebook few bits."""
        with torch.no_grad():
            fraction, exponent = torch.frexp(self.rounding.centroids)
            self.rounding.centroids.copy_(torch.ldexp((fraction * 2**MANTISSA).round(), exponent - MANTISSA))


def _alive(layer, kept):
    """Which units of a layer have weights left, (units,); kept is of the weight's shape."""
    if not isinstance(layer, TRANSPOSED):
        return kept.flatten(1).any(1)
    return kept.view(layer.groups, -1, *kept.shape[1:]).flatten(3).any(3).any(1).flatten()  # (groups, inputs, units, …)


class _Settling(nn.Module):
    """Parametrization: loose weights as they are, settled ones their value of the codebook, the others 0.

    loose          1 where loose, else 0, (weights,);  places, codes  of settled weights, and of their values
    """

    def __init__(self, weights, codes):
        super().__init__()
        self.centroids = nn.Parameter(weights.new_zeros(codes))
        self.register_buffer("loose", torch.ones_like(weights))
        for name in ("places", "codes"):
            self.register_buffer(name, weights.new_empty(0, dtype=torch.long))

    def forward(self, weight):
        return _Settle.apply(weight, self.centroids, self.loose, self.places, self.codes)


class _Settle(torch.autograd.Function):
    """The gradient of a value of the codebook is the sum of those of its weights (Han et al. 2016, section 3.3)."""

    @staticmethod
    def forward(ctx, weight, centroids, loose, places, codes):
        ctx.save_for_backward(loose, places, codes)
        ctx.values = len(centroids)
        numbers = weight.reshape(-1) * loose
        numbers[places] = centroids[codes]
        return numbers.view(weight.shape)

    @staticmethod
    def backward(ctx, gradient):
        loose, places, codes = ctx.saved_tensors
        flat = gradient.reshape(-1)
        sums = flat.new_zeros(ctx.values).index_add_(0, codes, flat[places])
        return (flat * loose).view(gradient.shape), sums, None, None, None


class _Coarse(nn.Module):
    """Parametrization of a bias: multiples of `step`, once that is above 0, straight-through; 0 where not `alive`."""

    def __init__(self, units):
        super().__init__()
        self.step, self.alive = 0.0, torch.ones(units)

    def forward(self, bias):
        if self.step > 0:
            bias = bias + ((bias / self.step).round() * self.step - bias).detach()
        return bias * self.alive.to(bias)
