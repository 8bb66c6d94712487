"""Training for the size of the file: a loss that charges each weight the bits that its code will take.

    loss = task + weight * bits,      bits = sum over weights of  -log2 p(code | its row, its column, its kernel)

A weight on an integer grid (`grids.Grid` with a learned step) costs what an adaptive coder would ask for its code: a
flag for zero, whose probability follows from how full its row, its column and its kernel are, a sign, and a magnitude
of a geometric distribution. The costs are looked up in a table that is made anew every so many steps from the codes as
they are, and run linearly from one code to the next, so that they have a gradient. Rows that are nearly empty become
empty: whole units go, and with them all that the file would have to say of them.

Rate-distortion optimisation: Sullivan and Wiegand 1998; entropy-penalised weights: Oktay et al. 2020, arXiv:1906.06624;
learned step: Esser et al. 2020, arXiv:1902.08153.
"""

import torch
from torch import nn

from compresslab import checks, grids, layers
from compresslab.train import cross_entropy

HALF = 0.5  # highest probability of "not zero" in the table: beyond it zeros would cost more, and full rows lock in
RAREST = 0.004
PULL = 2.0  # counts of a row or column are pulled towards the tensor's average by so many entries
MARGIN = 0.45  # of a step beyond the last code: a weight farther out would not come back
PACE = 0.2  # of the learning rate with which the weights' steps are learned


def on_grids(model, top=7, width=1.0, biases=True):
    """Copy of a model whose weights lie on symmetric grids with a learned step, one for each tensor.

    top      largest code: the values are -top to top steps
    width    first step, in standard deviations of the tensor
    biases   put biases on grids, too, with the step of their layer's weight
    returns  a new model; each Linear and Conv layer carries a `grids.Grid`
    raises   ValueError for settings out of range, or a model without such layers
    """
    checks.integer("top", top, 1, 2**14)
    checks.real("width", width, 0, 100)
    model = layers.duplicate(model)
    for layer in layers.weight_layers(model).values():
        step = (layer.weight.detach().std() * width).clamp(min=1e-6)
        layers.set_rounding(layer, _grid(step, top))
        if biases and layer.bias is not None:
            layers.set_rounding(layer, _grid(step, 2 * top + 1), "bias")
    return model


class RateLoss(nn.Module):
    """A loss for `train.fit`: loss(model, images, labels) -> task(model, images, labels) + weight * bits.

    task     the loss of the predictions, such as `distillation.loss`
    weight   loss per bit, 0 or more: 1e-4 asks for 1e-4 of loss less for every bit more
    ramp     training steps over which the weight grows to its full size, linearly
    settle   training step from which on what is zero stays zero and nothing is charged any more; None for never
    refresh  training steps between two tables
    raises   ValueError for settings out of range; at the first step for a model without learned grids
    """

    def __init__(self, task=cross_entropy, weight=1e-4, ramp=0, settle=None, refresh=20):
        super().__init__()
        self.task = task
        self.weight = checks.real("weight", weight, 0, 1e6)
        self.ramp, self.refresh = checks.integer("ramp", ramp, 0), checks.integer("refresh", refresh, 1)
        self.settle = None if settle is None else checks.integer("settle", settle, 0)
        self.step, self._tables, self._kept = 0, [], None

    def forward(self, model, images, labels):
        settled = self.settle is not None and self.step >= self.settle
        if settled:
            self._keep_zeros(model)
        elif self.step % self.refresh == 0:
            self._tables = [(latent, grid, table(grid.codes(latent))) for latent, grid in _latents(model)]
        share = min(1.0, self.step / self.ramp) if self.ramp else 1.0
        self.step += 1
        with torch.no_grad():
            for latent, grid, _ in self._tables:
                reach = (grid.high + MARGIN) * grid.step_size
                latent.copy_(latent.clamp(-reach, reach))
        task = self.task(model, images, labels)
        return task if settled else task + share * self.weight * sum(_bits(*one) for one in self._tables)

    def _keep_zeros(self, model):
        latents = _latents(model)
        if self._kept is None:
            self._kept = [grid.codes(latent).ne(0) for latent, grid in latents]
        with torch.no_grad():
            for (latent, _), kept in zip(latents, self._kept, strict=True):
                latent.mul_(kept)

    def bits(self, model):
        """Bits of the model's codes by the table of the moment, a float."""
        with torch.no_grad():
            return float(sum(_bits(latent, grid, table(grid.codes(latent))) for latent, grid in _latents(model)))


def table(codes):
    """Bits of each magnitude at each place of a tensor.

    codes    int tensor (rows, …) of codes, 0 for none
    returns  (largest + 2, *shape) float32: of magnitude 0, 1, …, one more than the largest there is
    """
    kept = codes.ne(0).float().reshape(len(codes), -1)  # (rows, columns)
    share = (kept.sum() + 0.5) / (kept.numel() + 1)
    odds = _logit(kept, 1, share) + _logit(kept, 0, share)
    if codes.dim() > 2:
        kernels = kept.reshape(*codes.shape[:2], -1)  # (rows, inputs, places)
        odds = odds / 2 + _logit(kernels, 2, share).expand_as(kernels).reshape(kept.shape)
    else:
        odds = odds - share.logit()
    likely = odds.sigmoid().clamp(RAREST, HALF).reshape(codes.shape)
    sizes = codes.abs()
    more = 1 - (kept.sum() + 1) / (sizes.sum() + 1)  # probability that a magnitude goes on, of a geometric distribution
    more = more.clamp(0.02, 0.95)
    sign_and_size = [1 - (size * more.log2() + (1 - more).log2()) for size in range(int(sizes.max()) + 1)]
    return torch.stack([-(1 - likely).log2(), *(-likely.log2() + one for one in sign_and_size)])


def _logit(kept, axis, share):
    """Log odds of an entry of each row or column being kept, pulled towards those of the whole tensor."""
    count = kept.shape[axis]
    return ((kept.sum(axis, keepdim=True) + PULL * share) / (count + PULL)).logit()


def _bits(latent, grid, costs):
    """Bits of a tensor, with the gradient of a straight line between two codes."""
    places = (latent / grid.step_size.detach()).abs()
    lower = places.detach().floor().long().clamp(max=len(costs) - 2)
    low, high = costs.gather(0, lower[None])[0], costs.gather(0, lower[None] + 1)[0]
    return (low + (places - lower) * (high - low)).sum()


def _latents(model):
    """Pairs (the parameter behind a rounded tensor, its Grid) of a model, in module order."""
    found = []
    for module in model.modules():
        for name in ("weight", "bias"):
            grid = layers.get_rounding(module, name) if name in getattr(module, "parametrizations", {}) else None
            if isinstance(grid, grids.Grid):
                found.append((module.parametrizations[name].original, grid))
    if not found:
        raise ValueError("the model has no weights on grids; put them there with rate.on_grids(model)")
    return found


def _grid(step, top):
    bits = (2 * top).bit_length()
    return grids.Grid(step.clone(), torch.zeros_like(step), -top, top, bits, learned=True, pace=PACE)
