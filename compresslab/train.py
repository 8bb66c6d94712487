"""The one training loop of the workbook, and the evaluation that goes with it.

`fit` is a generator: it hands over after every step, so that whoever drives it can draw, measure, pause, or stop.
Compression (a mask, a grid) is part of the model and stays. Arithmetic (fp32, bf16, channels_last) goes by what the
processor has and is named. The learning rate fits the model: a line search on the first batches finds it.
"""

import contextlib
import functools
import inspect
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm

from compresslab import bars, calibration, checks
from compresslab.data import Split, Stream, split_of
from compresslab.models import choose_output
from compresslab.weights.layers import (
    DROPOUTS,
    as_inputs,
    detach_left_behind,
    duplicate,
    left_behind,
    modes_kept,
    plain,
)
from compresslab.weights.masks import masks_on_gradients

ARITHMETIC = ("fp32", "bf16")
BETAS = (0.8, 0.99)  # Adam's; a run of 50 steps is over before a longer memory has forgotten the damage
WARM_UP = 0.1  # share of the steps over which the learning rate rises
LOWEST_LR = 6.25e-5  # where the search for a learning rate ends; it goes up by doubling
SHORT = 60  # steps of a run whose learning rate is judged after a single step
TRIAL_STEPS = 5  # after which a rate is judged in longer runs: what a fresh deep network bears shows after some steps
LONG = 500  # steps of a run from where on the rate falls as one over the square root of their number
EVALUATORS = 2  # threads that evaluate, on as many cores
STATISTICS = 20  # times that a running statistic can forget what it was, in a training
SMALL = 64  # images of a batch below which a rate is judged after twice as many steps
LR_IMAGES = 256  # images, at least, whose loss judges a learning rate


@dataclass(frozen=True)
class Precision:
    """The arithmetic that training runs in.

    arithmetic     "fp32"; "bf16", autocast to bfloat16
    channels_last  True where the weights and images of 2-d convolutions are laid out channels last
    """

    arithmetic: str = "fp32"
    channels_last: bool = False

    @property
    def name(self) -> str:
        """Return one word that `fit(precision=…)` takes: "fp32", "bf16+channels_last", …"""
        return self.arithmetic + ("+channels_last" if self.channels_last else "")

    @classmethod
    def named(cls, name: str) -> "Precision":
        """Return the precision of a name; raises ValueError for an unknown one."""
        precisions = {each.name: each for last in (False, True) for kind in ARITHMETIC for each in [cls(kind, last)]}
        return precisions[checks.choice("precision", name, ["auto", *precisions])]

    @property
    def layout(self) -> torch.memory_format:
        """Return torch's memory format of 4-d tensors."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def active(self, device: torch.device | str) -> torch.autocast:
        """Return a context that computes in this arithmetic."""
        return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self.arithmetic == "bf16")


def choose_precision(model: nn.Module, device: torch.device | str | None = None) -> Precision:
    """Choose the `Precision` for training a model by what the processor is made for.

    device   where it is trained; by default where the model's weights are
    returns  bf16 on processors that multiply it in hardware (AMX on a CPU; CUDA says so itself), for float32 weights;
             fp32 on all others. 2-d convolutions are laid out channels last.
    """
    checks.module("model", model, wrapped=True)
    device = torch.device(device or next((weight.device for weight in model.parameters()), "cpu"))
    if _find_dtype(model) != torch.float32:
        return Precision()
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False)
    return Precision("bf16" if has_bf16 else "fp32", channels_last=_convolves_images(model))


@dataclass(frozen=True)
class Progress:
    """Where a training stands, after each step."""

    step: int  # steps done
    steps: int  # in all
    epoch: int  # the pass over the data it is in, from 1
    epochs: float  # passes in all, may be a fraction
    seconds: float  # since the start
    precision: str  # name of the arithmetic in use
    lr: float  # the learning rate at its peak
    model: nn.Module  # being trained: read it, or copy it, before the next step
    batch_loss: torch.Tensor

    @property
    def loss(self) -> float:
        """Return the loss of this step's batch; reading it waits for a GPU."""
        return self.batch_loss.item()


def cross_entropy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of the logits, in nats: the default loss of `fit`."""
    return functional.cross_entropy(model(images), labels)


def fit(
    model: nn.Module,
    data: Split | tuple,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    lr: float | None = None,
    batch_size: int | None = None,
    loss: Callable | None = None,
    output: int | str | None = None,
    precision: str = "auto",
    device: torch.device | str | None = None,
    bar: bool = True,
) -> Iterator[Progress]:
    """Train `model` in place, yielding a `Progress` after every step; stop iterating to cancel.

    model       any nn.Module; compression that it carries (masks) is kept
    data        a Split, a Stream, or a pair (images, labels); with a loss of your own, the labels may be targets of any
                kind
    epochs      passes over the data, may be a fraction; 1 if neither this nor `steps`, a number of batches, is given
    seed        order of the batches and dropout: private generators, torch's global one is left alone
    lr          learning rate at its peak, after a tenth of the steps; it falls linearly to 0 from there. By default it
                is found on the first batches: as large as the damage to the model is, small where there is none, and
                lower in runs of over 500 steps
    batch_size  images a step; by default 256, fewer (16 at least) where the data would give under 64 steps an epoch
    loss        loss(outputs, targets) -> scalar tensor, such as nn.MSELoss(); or loss(model, images, targets), in which
                a teacher lives. It decides what outputs and targets may be. By default that of the data, or else
                cross entropy. The parameters of a loss that is an nn.Module are trained along, in place
    output      of a model that returns several tensors, the one that counts: as of `models.choose_output`
    precision   "auto" (`choose_precision`), or a `Precision` name such as "fp32" or "bf16+channels_last"
    device      where to train; by default CUDA if there is one, else where the model is; the model goes back after
    bar         show a tqdm bar (for runs of more than half a second)
    raises      ValueError for bad values, weights that are nan, data that the model or the loss does not take; for the
                default loss, outputs that are no logits and labels beyond their classes, before the first step;
                ArithmeticError when the loss is no longer finite

    The same seed, precision, device and number of threads give the same model, to the bit.
    Adam: Kingma and Ba 2015, arXiv:1412.6980. A rate that rises and falls: Smith and Topin 2017, arXiv:1708.07120.
    """
    checks.module("model", model)
    split = split_of(data, any_targets=loss not in (None, cross_entropy))
    loss = loss or split.loss or cross_entropy
    if not callable(loss):
        hint = "loss(outputs, targets) or loss(model, images, targets), which returns a scalar tensor"
        raise ValueError(f"loss is {checks.words(loss)}; give a function {hint}")
    batch_size, per_epoch = plan_batches(split, batch_size)
    steps = count_steps(epochs, steps, per_epoch)
    seed = checks.integer("seed", seed, 0)
    lr = None if lr is None else checks.real("lr", lr, 0, math.inf)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    if not trained:
        raise ValueError("model has no parameter that requires a gradient; there is nothing to train")
    if any(weight.isnan().any() for weight in trained):
        raise ValueError("model has weights that are nan, before any training; give one whose weights are numbers")
    asked = model if output is None else choose_output(model, output)
    takes_outputs = _takes_outputs(loss)
    if loss is cross_entropy or takes_outputs:
        sample = split.sample(2) if isinstance(split, Stream) else split
        images, labels = sample.images[: min(2, batch_size)], sample.labels
        if loss is cross_entropy:
            check_takes(asked, images, labels)
        else:
            with torch.no_grad():
                compute_outputs(duplicate(asked).eval(), as_inputs(asked, images))
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else trained[0].device))
    wanted = choose_precision(model, device) if precision == "auto" else Precision.named(precision)
    _check_dtype(trained, wanted)
    chance = _PrivateChance(model, seed, device, loss)
    with_outputs = _apply_to_outputs(loss) if takes_outputs else loss

    def _loss_of(images, targets):
        return _compute_loss(with_outputs, asked, images, targets)

    feed = (_StreamFeed if isinstance(split, Stream) else _TensorFeed)(model, split, batch_size, seed, device, wanted)
    return _train(model, feed, _loss_of, loss, steps, per_epoch, lr, chance, wanted, device, bar)


def plan_batches(split: Split | Stream, batch_size: int | None = None) -> tuple[int, int]:
    """Choose the images of a step: 256, or fewer of few images; those of a loader's batches for a Stream.

    returns  images of a step, and steps of an epoch
    raises   ValueError for a size that is not the loader's
    """
    if isinstance(split, Stream):
        if batch_size not in (None, split.batch_size):
            raise ValueError(
                f"batch_size is {checks.words(batch_size)}; the loader makes batches of {split.batch_size}"
            )
        return split.batch_size, split.batches
    count = len(split)
    chosen = min(256, max(16, count // 64)) if batch_size is None else batch_size
    size = min(checks.integer("batch_size", chosen, 1), count)
    return size, count // size


def _takes_outputs(loss):
    """Tell whether a loss is called with outputs and targets, not with the model."""
    try:
        parameters = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(entry.kind in positional and entry.default is entry.empty for entry in parameters) == 2


def _apply_to_outputs(loss):
    """Return loss(model, images, targets) of a loss(outputs, targets)."""

    def _apply(model, images, targets):
        return loss(compute_outputs(model, images), targets)

    return _apply


def compute_outputs(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return a model's outputs; raises ValueError unless they are one tensor."""
    outputs = calibration.run(model, images)
    if isinstance(outputs, torch.Tensor):
        return outputs
    raise ValueError(f"the model returned {type(outputs).__name__}; {_hint_at_output(outputs)}")


def _hint_at_output(outputs):
    names = f" ({', '.join(map(repr, outputs))})" if isinstance(outputs, Mapping) else ""
    return f"say which element counts, by output={names}"


def finetune(model: nn.Module, data: Split | tuple, **settings) -> nn.Module:
    """Train a copy of `model` to the end and return it; arguments as `fit`."""
    model = duplicate(model)
    for _ in fit(model, data, **settings):
        pass
    return model


def _train(model, feed, loss_of, loss, steps, per_epoch, lr, chance, precision, device, bar):
    """Run the training loop, a step at a time."""
    start, description = time.perf_counter(), f"training ({precision.name})"
    bar = tqdm(total=steps, desc=description, delay=0.5, leave=False, disable=not bar)
    ready, follow = _trainable(model, device, precision), _quick_statistics(model, steps)
    with ready, follow, masks_on_gradients(model), bars.quiet(), bar:
        trained = nn.ModuleList([model, *([loss.to(device)] if isinstance(loss, nn.Module) else [])])

        def _loss_of(batch):
            images, targets = feed.take(batch)
            with chance.drawn(), precision.active(device):
                return loss_of(images, targets)

        batches = feed.draw()
        if lr is None:
            trial_steps = 1 if steps <= SHORT else TRIAL_STEPS * (1 + (feed.size < SMALL))
            tried = feed.try_some(batches, trial_steps + LR_IMAGES // feed.size + 2)
            lr = _find_lr(trained, _loss_of, tried, chance, trial_steps) if steps else 0.0
            lr *= min(1.0, math.sqrt(LONG / max(1, steps)))
        optimizer, batches = _make_adam(trained, lr), iter(batches)
        for step in range(steps):
            if step and step % per_epoch == 0:
                batches = iter(feed.draw())
            batch = next(batches, None)
            if batch is None:
                raise ValueError(f"the loader ended before the {per_epoch} batches that its length promises")
            batch_loss = _loss_of(batch)
            optimizer.zero_grad()
            _compute_gradients(batch_loss, model)
            optimizer.param_groups[0]["lr"] = lr * _share_of_peak(step, steps)
            optimizer.step()
            bar.update()
            if (step % 50 == 49 or step + 1 == steps) and not math.isfinite(batch_loss.item()):
                raise ArithmeticError(f"the loss is {batch_loss.item()} at step {step + 1}; try an lr below {lr:g}")
            epoch, seconds = step // per_epoch + 1, time.perf_counter() - start
            yield Progress(
                step + 1, steps, epoch, steps / per_epoch, seconds, precision.name, lr, model, batch_loss.detach()
            )


class _TensorFeed:
    """The batches of tensors, in an order drawn anew for each epoch."""

    def __init__(self, model, split, batch_size, seed, device, precision):
        self.model, self.split, self.size, self.device, self.precision = model, split, batch_size, device, precision
        self.order, self.tensors = torch.Generator().manual_seed(seed), None

    def draw(self) -> tuple:
        """Return the batches of an epoch: positions, (batch_size,) each; the last may be shorter."""
        return torch.randperm(len(self.split), generator=self.order).to(self.device).split(self.size)

    def try_some(self, batches: tuple, count: int) -> tuple:
        """Return the batches that the learning rate is chosen by: all of the first epoch."""
        return batches

    def take(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and targets of a batch, where they are trained."""
        if self.tensors is None:
            self.tensors = as_inputs(self.model, self.split.images, self.device), self.split.labels.to(self.device)
        images, labels = self.tensors
        return lay_out(images.index_select(0, batch), self.precision), labels[batch]


class _StreamFeed:
    """The batches of a loader, whose random numbers (shuffling, augmentation) come from the seed."""

    def __init__(self, model, stream, batch_size, seed, device, precision):
        self.model, self.stream, self.size, self.device, self.precision = model, stream, batch_size, device, precision
        self.chance = _PrivateChance(model, seed, torch.device("cpu"), loss=None)

    def draw(self) -> Iterator[Split]:
        """Yield the batches of an epoch."""
        batches = iter(self.stream)
        while True:
            with self.chance.drawn():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def try_some(self, batches: Iterator, count: int) -> list[Split]:
        """Read the batches that the learning rate is chosen by, `count` of them."""
        return list(itertools.islice(self.draw(), count))

    def take(self, batch: Split) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and targets of a batch, where they are trained."""
        images = as_inputs(self.model, batch.images, self.device)
        return lay_out(images, self.precision), batch.labels.to(self.device)


def _share_of_peak(step, steps):
    """Return the learning rate of a step (from 0) as a fraction of its peak."""
    rising = int(WARM_UP * steps)
    return (step + 1) / (rising + 1) if step < rising else (steps - step) / max(1, steps - rising)


def _find_lr(trained, loss_of, batches, chance, trial_steps):
    """Find the learning rate after whose first steps the loss of other images is least.

    Only where the loss is least counts, so its scale and its meaning do not matter.
    trained      nn.Module that holds all that is trained; it is left as it was
    batches      of the first epoch; the last ones judge
    chance       draws the same random numbers (dropout) for every rate
    trial_steps  Adam's steps with each rate, 1 or more
    returns      float, 6e-5 to 0.13; 0.002 where no rate makes a difference
    """
    weights = [weight for weight in trained.parameters() if weight.requires_grad]
    buffers, drawn = [(buffer, buffer.clone()) for buffer in trained.buffers()], chance.states
    start = [weight.detach().clone() for weight in weights]
    judges = batches[-1 - max(1, LR_IMAGES // len(batches[0])) :][:-1] or batches  # the last batch may be short
    trained.zero_grad()
    for batch in batches[:2]:  # the first step of every rate goes by the gradients of two batches together
        _compute_gradients(loss_of(batch), trained[0])
    first = [weight.grad for weight in weights]

    def _restore():
        chance.states = drawn
        with torch.no_grad():
            for weight, origin in zip(weights, start, strict=True):
                weight.copy_(origin)

    @functools.cache
    def _loss_after(power):
        _restore()
        optimizer = _make_adam(trained, LOWEST_LR * 2.0**power)
        for weight, gradient in zip(weights, first, strict=True):
            weight.grad = gradient
        optimizer.step()
        for step in range(1, trial_steps):
            optimizer.zero_grad()
            _compute_gradients(loss_of(batches[step % len(batches)]), trained[0])
            optimizer.step()
        with torch.no_grad():
            value = sum(loss_of(batch).item() for batch in judges)
        return value if math.isfinite(value) else math.inf

    try:
        return LOWEST_LR * 2.0 ** _find_minimum(_loss_after, 5, 0, 11)
    finally:
        _restore()
        trained.zero_grad()
        with torch.no_grad():
            for buffer, before in buffers:  # running statistics; what did not change is not written
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def _find_minimum(value_at, start, lowest, highest):
    """Walk from `start`, by 1, to the minimum; return the vertex of the parabola there."""
    place, step = start, 1 if value_at(start + 1) <= value_at(start) else -1
    while lowest <= place + step <= highest and value_at(place + step) < value_at(place):
        place += step
    if not lowest < place < highest:
        return place
    below, here, above = (value_at(place + shift) for shift in (-1, 0, 1))
    bend = below - 2 * here + above
    return place + (0.5 * (below - above) / bend if 0 < bend < math.inf else 0.0)


@contextlib.contextmanager
def _trainable(model, device, precision):
    """Yield the model ready to be trained; put it back at the end."""
    origin = next(model.parameters()).device
    with modes_kept(model):
        try:
            yield model.train().to(device, memory_format=precision.layout)
        finally:
            model.to(origin, memory_format=torch.contiguous_format)
            detach_left_behind(model)


@contextlib.contextmanager
def _quick_statistics(model, steps):
    """Let BatchNorm's running statistics follow within a short training: momentum 0.1 at most, torch's default.

    torchvision's mobilenet_v3 has 0.01: after 300 steps its statistics are still those of no images at all.
    """
    least = min(0.1, STATISTICS / max(1, steps))
    norms = [module for module in model.modules() if getattr(module, "running_mean", None) is not None]
    slow = [(norm, norm.momentum) for norm in norms if norm.momentum is not None and norm.momentum < least]
    for norm, _ in slow:
        norm.momentum = least
    try:
        yield
    finally:
        for norm, momentum in slow:
            norm.momentum = momentum


def _make_adam(model, lr):
    """Return Adam over the parameters that require a gradient, fused where torch can."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    fused = all(weight.dtype == torch.float32 and weight.device.type in ("cpu", "cuda") for weight in weights)
    return torch.optim.Adam(weights, lr=lr, betas=BETAS, fused=fused)


def lay_out(images: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Return images in the memory format of a precision; only 4-d batches have one."""
    if images.dim() != 4:
        return images
    images = images.contiguous(memory_format=precision.layout)
    if precision.channels_last and images.shape[1] == 1:  # both layouts fit a single channel; torch goes by the strides
        return images.as_strided(images.shape, (images[0].numel(), 1, images.shape[3], 1))
    return images


def count_steps(epochs: float | None, steps: int | None, per_epoch: int) -> int:
    """Count the steps of a training; raise ValueError if both lengths are given."""
    if epochs is not None and steps is not None:
        raise ValueError(f"steps is {steps!r} and epochs is {epochs!r}; give one of the two")
    if steps is not None:
        return checks.integer("steps", steps, 0)
    return math.ceil(checks.real("epochs", 1 if epochs is None else epochs, 0, math.inf) * per_epoch)


def _find_dtype(model):
    """Return the floating-point type that a model's weights have, and its images should have."""
    return next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)


def _check_dtype(trained, precision):
    """Raise ValueError for weights that cannot be trained in a precision."""
    dtypes = {weight.dtype for weight in trained}
    if torch.float16 in dtypes:
        raise ValueError(
            "model has float16 weights, in which small steps of training are lost; call model.float() first"
        )
    if dtypes != {torch.float32} and precision.arithmetic != "fp32":
        listed = ", ".join(map(str, dtypes))
        raise ValueError(f"precision is {precision.name!r} and the weights are {listed}; choose 'fp32', as they are")


@bars.quiet()
def check_takes(model: nn.Module, images: torch.Tensor, labels: torch.Tensor | None = None) -> None:
    """Raise ValueError unless the model gives logits, in both modes, with one for every label.

    images  a few;  labels  all of them, (N,) int64; None asks for logits alone
    A copy is asked, so that running statistics and whatever a model notes stay; random numbers are drawn privately.
    """
    images, twin = as_inputs(model, images), duplicate(model)
    with _PrivateChance(model, 0, images.device, cross_entropy).drawn(), torch.enable_grad():
        classes = evaluate(twin, images).shape[1]
        if labels is not None and int(labels.max()) >= classes:
            highest = f"labels go up to {int(labels.max())}"
            raise ValueError(f"{highest}, the model has {classes} classes (0 to {classes - 1})")
        logits = _compute_logits(twin.train(), images, " in training mode")
    if logits.shape[1] != classes:
        raise ValueError(f"the model has {classes} classes, but {logits.shape[1]} in training mode; give both the same")
    if not logits.requires_grad:
        raise ValueError("the model's outputs have no gradient in training mode; compute them from its weights")


def _compute_loss(loss, model, images, targets):
    """Return the loss of a batch; word what the user's model or loss raised."""
    try:
        value = loss(model, images, targets)
    except Exception as error:
        shapes = f"{tuple(images.shape)} and targets of shape {tuple(targets.shape)}"
        raise ValueError(f"model and loss do not take images of shape {shapes}: {checks.reason(error)}") from error
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or value.requires_grad != torch.is_grad_enabled():
        raise ValueError(f"loss returned {checks.words(value)}; it must return a scalar tensor that has a gradient")
    return value


def _compute_gradients(loss, model):
    """Compute the gradients of a loss; name what a model keeps from an earlier step."""
    try:
        loss.backward()
    except RuntimeError as error:
        names = [path for path, _ in left_behind(model)]
        hint = f"; the model keeps tensors of earlier steps in {names[0]!r}: detach them" if names else ""
        raise ValueError(f"the loss has no gradient: {checks.reason(error)}{hint}") from error


class _PrivateChance:
    """The random numbers of a training, such as dropout's, which are not those of torch's global generator."""

    def __init__(self, model, seed, device, loss):
        self.needed = loss is not cross_entropy or any(map(_draws, model.modules()))
        self.cuda = [torch.device("cuda", device.index or 0)] if device.type == "cuda" else []
        generators = [torch.Generator(device) for device in ("cpu", *self.cuda)]
        self.states = [generator.manual_seed(seed).get_state() for generator in generators]

    @contextlib.contextmanager
    def drawn(self) -> Iterator[None]:
        """Let torch draw these numbers inside; the next time it goes on after them."""
        if not self.needed:
            yield
            return
        with torch.random.fork_rng(self.cuda):
            torch.set_rng_state(self.states[0])
            for device, state in zip(self.cuda, self.states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            try:
                yield
            finally:
                self.states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self.cuda)]


def _draws(module):
    """Tell whether a module may draw at random: dropout, and classes torch did not write."""
    dropout = getattr(module, "dropout", 0)
    chance = isinstance(module, (*DROPOUTS, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d))
    return chance or not _is_known(module) or (isinstance(dropout, float) and dropout > 0)


def _is_known(module):
    """Tell whether torch or this package wrote a module's class."""
    return type(module).__module__.startswith(("torch.nn.", "compresslab.weights."))


def answer(model: nn.Module, data: Split | Stream | tuple, any_outputs: bool = False) -> tuple:
    """Compute the outputs of a model for the images of a data set, and return them with the targets.

    any_outputs  as of `evaluate`
    returns      outputs (N, …) float32 and targets (N, …), on the CPU; of a Stream from a single pass
    """
    split = split_of(data, any_targets=any_outputs)
    if not isinstance(split, Stream):
        return evaluate(model, split.images, any_outputs=any_outputs), split.labels.cpu()
    pairs = [
        (evaluate(model, batch.images, any_outputs=any_outputs), batch.labels)
        for batch in bars.over(split, "evaluating", total=split.batches)
    ]
    return tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))


def evaluate(
    model: nn.Module, data: Split | Stream | tuple | torch.Tensor, batch_size: int | None = None,
    any_outputs: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Compute the logits of a model in evaluation mode, without gradients, in fp32.

    data        a Split, a Stream, a pair (images, labels), or the images alone, (N, …)
    batch_size  images at a time; by default 1000, and 100, laid out channels last, for 2-d convolutions on the CPU,
                which takes a third of the time; or fewer large ones
    any_outputs  True takes outputs of any shape (N, …), not logits alone
    returns     (N, classes) float32 on the CPU; the model, its mode and its running statistics are left as they were
    raises      ValueError for no images, images the model does not take, or an output that is not (N, classes)
    """
    checks.module("model", model, wrapped=True)
    if isinstance(data, Stream):
        return answer(model, data, any_outputs)[0]
    images = data if isinstance(data, torch.Tensor) else split_of(data, any_targets=True).images
    if not len(images):
        raise ValueError("images is empty; give at least one image")
    weight = next((w for w in [*model.parameters(), *model.buffers()] if w.is_floating_point()), torch.empty(0))
    precision = Precision(channels_last=weight.device.type == "cpu" and _convolves_images(model))
    if precision.channels_last:
        model = plain(model).to(memory_format=precision.layout)
    most = 100 if precision.channels_last else 1000
    size = calibration.choose_batch_size(images, most) if batch_size is None else batch_size
    sample = as_inputs(model, images[:1])
    if sample.dtype == torch.int64:  # whether numbers are words, all of them tell
        images = sample = as_inputs(model, images)
    parts = images.split(checks.integer("batch_size", size, 1))

    def _logits_of(part):
        with torch.no_grad():  # a setting of each thread
            inputs = lay_out(part.to(sample.device, sample.dtype), precision)
            return _compute_logits(model, inputs, any_outputs=any_outputs).float().cpu()

    with contextlib.ExitStack() as stack:
        stack.enter_context(modes_kept(model))
        stack.enter_context(precision.active(weight.device))
        spread = map
        if len(parts) > 1 and may_share(model):
            spread = stack.enter_context(ThreadPoolExecutor(EVALUATORS)).map
        model.eval()
        return torch.cat([*bars.over(spread(_logits_of, parts), "evaluating", total=len(parts))])


def may_share(model: nn.Module) -> bool:
    """Tell whether two threads may measure a model side by side.

    Each batch is computed on one torch thread either way, to the same bits. A module that torch did not write, or a
    hook, may note what it has seen, in order.
    """
    on_cpu = all(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers()))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = on_cpu and torch.get_num_threads() == 1 and cores >= EVALUATORS
    return free and all(
        _is_known(module) and not module._forward_hooks and not module._forward_pre_hooks for module in model.modules()
    )


def _convolves_images(model):
    """Tell whether a model has 2-d convolutions, and no 3-d ones, whose layout differs."""
    kinds = {type(module) for module in model.modules()}
    return any(issubclass(kind, nn.Conv2d) for kind in kinds) and not any(issubclass(kind, nn.Conv3d) for kind in kinds)


def _compute_logits(model, images, mode="", any_outputs=False):
    """Run the model on images; raises ValueError unless it returns logits (N, classes), or any (N, …)."""
    logits = calibration.run(model, images)
    if not isinstance(logits, torch.Tensor):
        returned = f"{type(logits).__name__} for {len(images)} images{mode}; it must return logits (N, classes)"
        raise ValueError(f"the model returned {returned}; {_hint_at_output(logits)}")
    if logits.shape[:1] != images.shape[:1] or (logits.dim() != 2 and not any_outputs):
        wanted = "a row for each image" if any_outputs else "logits (N, classes)"
        hint = "" if any_outputs else "; other outputs need a loss and a metric of their own"
        got = f"{tuple(logits.shape)} for {len(images)} images{mode}"
        raise ValueError(f"the model returned {got}; it must return {wanted}{hint}")
    return logits


def judge(model: nn.Module, split: Split | Stream) -> float:
    """Return the accuracy of a model, or what the data's own metric says, without the checks of `measure.accuracy`."""
    if split.metric is None:
        return accuracy_of(*answer(model, split))
    return float(split.metric(*answer(model, split, any_outputs=True)))


def accuracy_of(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Compute the fraction of logits (N, classes) that are largest at the label.

    labels  (N,) int64; a row with nan counts as wrong
    """
    right = (logits.argmax(1) == labels.cpu()) & ~logits.isnan().any(1)
    return right.double().mean().item()


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run torch on `count` threads; the number before comes back at the end."""
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(checks.integer("threads", count, 1))
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)
