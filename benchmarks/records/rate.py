"""Training for the length of the file: a loss that charges each weight the bits that its code will take.

    loss = task + price * bits,      bits = sum over weights of  -log2 p(code | its row, its column, its kernel)

A weight is a code times the step of its tensor, which is trained as well. Its code costs what an adaptive coder would
ask: a flag for zero, whose probability follows from how full its row, its column and its kernel are, a sign, and a
magnitude of a geometric distribution. The costs are looked up in a table that is made anew every so many steps from the
codes as they are, and run linearly from one code to the next, so that they have a gradient. Rows that are nearly empty
become empty: whole units go, and with them all that the file would have to say of them.

Rate-distortion optimisation: Sullivan and Wiegand 1998; entropy-penalised weights: Oktay et al. 2020, arXiv:1906.06624;
straight-through: Bengio et al. 2013, arXiv:1308.3432.
"""

import contextlib
import math

import torch
from torch import nn
from torch.nn.utils import parametrize

from compresslab import checks, train
from compresslab.weights import layers

FULLEST = 0.35  # highest probability of "not zero" in the table; above a half, zeros would cost more than others
RAREST = 0.004
PULL = 2.0  # counts of a row or column are pulled towards the tensor's average by so many entries
MARGIN = 0.45  # of a step beyond the last code: a weight farther out would not come back
PACE = 0.2  # of the learning rate with which steps are trained
REFRESH = 20  # training steps between two tables
UNIT = 1e-4  # what a price of 1 charges for a bit


def charge(
    model,
    data,
    *,
    price,
    top=7,
    width=1.0,
    rise=0.4,
    settle=0.7,
    loss=train.cross_entropy,
    steps=None,
    epochs=None,
    seed=0,
    bar=True,
    **training,
):
    """Train `model` in place, charged for the bits of its weights, yielding a `train.Progress` after each step.

    model    any nn.Module whose Linear and Conv layers have plain weights (`layers.plain` makes them plain); trained
             for some epochs before, or fresh. Frozen tensors stay as they are
    data     a Split or a pair (images, labels)
    price    loss for 10,000 bits, 0 or more
    top      largest code: a weight is one of -top to top steps
    width    first step, in standard deviations of the tensor (in mean magnitudes, where those are out of its reach)
    rise     share of the steps over which the price rises to its full height
    settle   share of the steps after which what is zero stays zero, and nothing is charged any more
    loss, steps, epochs, seed, bar, training  as in `train.fit`
    returns  generator; at its end weights and biases are ordinary tensors, multiples of their layer's step
    raises   ValueError for settings out of range, a model without such layers or with weights that are not plain
             or all frozen; the model is then as it was
    """
    checks.real("price", price, 0, 1e6)
    checks.integer("top", top, 1, 2**14)
    for name, value, low, high in (("width", width, 1e-3, 100), ("rise", rise, 0, 1), ("settle", settle, 0, 1)):
        checks.real(name, value, low, high)
    found = trained_layers(model)
    options = {"steps": steps, "epochs": epochs, "seed": seed, "bar": bar, **training}
    return _charged(model, data, found, _Charge(loss, price, rise, settle), top, width, options)


def _charged(model, data, found, loss, top, width, options):
    loss.steps = [_on_steps(layer, top, width) for layer in found]
    with rounded(found, model, data, loss=loss, **options) as run:
        for progress in run:
            loss.total = progress.steps
            yield progress


def trained_layers(model):
    """The layers of `layers.plain_weight_layers` that have weights to train, as a list; same errors."""
    found = [one for one in layers.plain_weight_layers(model) if one.weight.requires_grad and one.weight.numel()]
    if not found:
        raise ValueError("all weights of the model are frozen; give it one that requires a gradient")
    return found


@contextlib.contextmanager
def rounded(found, model, data, **options):
    """The run of `train.fit(model, data, **options)` for layers that were given parametrizations; lr 2e-3 by default.

    At the end their tensors are ordinary ones of the values they had; where fit refuses the options, as before.
    """
    begun = False
    try:
        with contextlib.closing(train.fit(model, data, **{"lr": 2e-3} | options)) as run:
            begun = True
            yield run
    finally:
        for layer in found:
            for name in list(layer.parametrizations):
                parametrize.remove_parametrizations(layer, name, leave_parametrized=begun)
                with torch.no_grad():
                    getattr(layer, name).add_(0.0)  # no -0


def _on_steps(layer, top, width):
    """Put a layer's weight on steps, and its bias on multiples of the same; returns (numbers behind it, its steps)."""
    rounding = _Steps(width * _size(layer.weight.detach(), top), top)
    parametrize.register_parametrization(layer, "weight", rounding)
    if layer.bias is not None and layer.bias.requires_grad:
        parametrize.register_parametrization(layer, "bias", _Multiples(rounding))
    return layer.parametrizations.weight.original, rounding


def _size(weight, top):
    """Standard deviation of a weight; its mean magnitude where `top` deviations do not reach that, as where all numbers
    are equal; of zeros, what a fresh layer has.
    """
    deviation, magnitude = float(weight.std(correction=0)), float(weight.abs().mean())
    return deviation if top * deviation > magnitude else magnitude or (3 * weight[0].numel()) ** -0.5


class _Charge:
    """The loss: the task's, and the price of the bits.

    steps  pairs (numbers, _Steps) of all layers;  total  training steps in all, known after the first
    """

    def __init__(self, task, price, rise, settle):
        self.task, self.price, self.rise, self.settle = task, price, rise, settle
        self.steps, self.total, self.done, self._tables, self._kept = [], None, 0, [], None

    def __call__(self, model, images, labels):
        share = self.done / self.total if self.total else 0.0
        with torch.no_grad():
            for numbers, rounding in self.steps:
                numbers.clamp_(-(reach := (rounding.top + MARGIN) * rounding.step), reach)
        if settled := share >= self.settle:
            self._keep_zeros()
        elif self.done % REFRESH == 0:
            self._tables = [table(rounding.codes(numbers), rounding.top) for numbers, rounding in self.steps]
        self.done += 1
        task = self.task(model, images, labels)
        if settled or not self.price:
            return task
        bits = sum(_bits(*one, costs) for one, costs in zip(self.steps, self._tables, strict=True))
        return task + min(1.0, share / self.rise if self.rise else 1.0) * self.price * UNIT * bits

    def _keep_zeros(self):
        if self._kept is None:
            self._kept = [rounding.codes(numbers).ne(0) for numbers, rounding in self.steps]
        with torch.no_grad():
            for (numbers, _), kept in zip(self.steps, self._kept, strict=True):
                numbers.mul_(kept)


class _Steps(nn.Module):
    """Parametrization: a number becomes the nearest of -top to top steps. Straight-through for the numbers; the step is
    trained as the scale of its codes.
    """

    def __init__(self, step, top):
        super().__init__()
        self.growth, self.top = nn.Parameter(torch.tensor(math.log(max(step, 1e-6)) / PACE)), top

    @property
    def step(self):
        return (PACE * self.growth).exp()

    def codes(self, numbers):
        """Whole numbers, as floats."""
        with torch.no_grad():
            return (numbers / self.step).round().clamp(-self.top, self.top)

    def forward(self, numbers):
        free = numbers / self.step.detach()
        return (free + (free.round().clamp(-self.top, self.top) - free).detach()) * self.step


class _Multiples(nn.Module):
    """Parametrization of a bias: whole multiples of the step of its layer's weight, straight-through."""

    def __init__(self, rounding):
        super().__init__()
        self._rounding = (rounding,)  # in a tuple it is no submodule: its parameter belongs to the weight

    def forward(self, numbers):
        step = self._rounding[0].step.detach()
        return numbers + ((numbers / step).round() * step - numbers).detach()


def table(codes, top):
    """Bits of each magnitude, 0 to top, at each place of a tensor.

    codes    tensor (rows, …) of whole numbers
    returns  (top + 1, *shape) float32
    """
    kept = codes.ne(0).float().flatten(1)  # (rows, columns)
    share = (kept.sum() + 0.5) / (kept.numel() + 1)
    rows, columns = _logit(kept, 1, share), _logit(kept, 0, share)
    odds = rows + columns - share.logit()
    if codes.dim() > 2:
        kernels = codes.ne(0).float().flatten(2)  # (rows, inputs, places)
        odds = (rows + columns) / 2 + _logit(kernels, 2, share).expand_as(kernels).flatten(1) - share.logit()
    likely = odds.sigmoid().clamp(RAREST, FULLEST).view(codes.shape)
    sizes = codes.abs().sum()
    more = (1 - (kept.sum() + 1) / (sizes + 1)).clamp(0.02, 0.95)  # probability that a magnitude goes on
    costs = [1 - (size * more.log2() + (1 - more).log2()) for size in range(top)]  # the sign, and the magnitude
    return torch.stack([-(1 - likely).log2(), *(cost - likely.log2() for cost in costs)])


def _logit(kept, axis, share):
    """Log odds of an entry of each row or column being kept, pulled towards those of the whole tensor."""
    count = kept.shape[axis]
    return ((kept.sum(axis, keepdim=True) + PULL * share) / (count + PULL)).logit()


def _bits(numbers, rounding, costs):
    """Bits of a tensor, with the gradient of a straight line between two codes."""
    places = (numbers / rounding.step.detach()).abs()
    lower = places.detach().floor().long().clamp(max=rounding.top - 1)
    low, high = costs.gather(0, lower[None])[0], costs.gather(0, lower[None] + 1)[0]
    return (low + (places - lower) * (high - low)).sum()
