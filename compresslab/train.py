"""The one training loop of the workbook, and the evaluation that goes with it.

`fit` is a generator: it trains the model a step at a time and hands over after every step, so that whoever drives it
can draw, measure, pause, or stop. Whatever compresses the model (a mask, a grid) is part of the model and stays.
Arithmetic (fp32, bf16, channels_last) is picked by a short calibration and named, so that a run can be repeated.
"""

import contextlib
import hashlib
import json
import math
import os
import threading
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm

from compresslab import checks, paths
from compresslab.data import split_of
from compresslab.layers import as_inputs, duplicate, modes_kept, plain

ARITHMETIC = ("fp32", "medium", "bf16")


@dataclass(frozen=True)
class Precision:
    """The arithmetic that training runs in.

    arithmetic     "fp32"; "medium", torch.set_float32_matmul_precision("medium"); "bf16", autocast to bfloat16
    channels_last  True where the weights and images of 2-d convolutions are laid out channels last
    """

    arithmetic: str = "fp32"
    channels_last: bool = False

    @property
    def name(self):
        """One word that `fit(precision=…)` takes: "fp32", "bf16+channels_last", …"""
        return self.arithmetic + ("+channels_last" if self.channels_last else "")

    @classmethod
    def named(cls, name):
        """The precision of a name; raises ValueError for an unknown one."""
        names = [cls(kind, last).name for last in (False, True) for kind in ARITHMETIC]
        checks.choice("precision", name, ["auto", *names])
        arithmetic, _, layout = name.partition("+")
        return cls(arithmetic, bool(layout))

    @property
    def layout(self):
        """torch's memory format of 4-d tensors."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @contextlib.contextmanager
    def active(self, device):
        """Compute in this arithmetic; what was set before comes back at the end. torch has one setting for all threads:
        while one computes in here, others wait.
        """
        with _one_at_a_time:
            yield from self._active(device)

    def _active(self, device):
        before = torch.get_float32_matmul_precision()
        wanted = "medium" if self.arithmetic == "medium" else "highest"
        if wanted != before:
            torch.set_float32_matmul_precision(wanted)
        try:
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self.arithmetic == "bf16"):
                yield
        finally:
            if wanted != before:
                torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Progress:
    """Where a training stands, after each step.

    step, steps    steps done, and in all
    epoch, epochs  the pass over the data it is in (from 1), and passes in all (may be a fraction)
    loss           loss of this step's batch, before the step
    seconds        time since the start
    precision      name of the arithmetic in use
    model          the model being trained: read it, or copy it, before the next step
    """

    step: int
    steps: int
    epoch: int
    epochs: float
    seconds: float
    precision: str
    model: nn.Module
    batch_loss: torch.Tensor

    @property
    def loss(self):
        """The batch's loss as a float; reading it waits for a GPU."""
        return self.batch_loss.item()


def cross_entropy(model, images, labels):
    """The loss of `fit` unless told otherwise: mean cross entropy of the logits (batch, classes), in nats."""
    return functional.cross_entropy(model(images), labels)


def fit(
    model,
    data,
    *,
    epochs=None,
    steps=None,
    seed=0,
    lr=2e-3,
    batch_size=None,
    loss=cross_entropy,
    precision="auto",
    device=None,
    bar=True,
):
    """Train `model` in place with Adam, yielding a `Progress` after every step; stop iterating to cancel.

    model       any nn.Module; compression that it carries (masks) is kept
    data        a Split or a pair (images, labels)
    epochs      passes over the data, may be a fraction; 1 if neither this nor `steps` is given
    steps       number of batches instead of `epochs`
    seed        order of the batches and dropout: private generators, torch's global one is left alone
    lr          learning rate at the start; it falls linearly to 0 over the run
    batch_size  images a step; by default 512, fewer (16 at least) where the data would give under 64 steps an epoch
    loss        loss(model, images, labels) -> scalar tensor; a teacher lives in here. The parameters of a loss that is
                an nn.Module are trained along with the model's, in place
    precision   "auto" (calibrated), or a `Precision` name such as "fp32" or "bf16+channels_last"
    device      where to train; by default CUDA if there is one, else where the model is; the model goes back after
    bar         show a tqdm bar (for runs of more than half a second)
    raises      ValueError for bad values, weights that are nan, data that the model does not take, labels beyond its
                classes; ArithmeticError when the loss is no longer finite

    The same seed, precision, device and number of threads give the same model, to the bit.
    Adam: Kingma and Ba 2015, arXiv:1412.6980.
    """
    split = split_of(data)
    batch_size = batch_size_for(len(split), batch_size)
    per_epoch = len(split) // batch_size
    steps = _steps(epochs, steps, per_epoch)
    seed, lr = checks.integer("seed", seed, 0), checks.real("lr", lr, 0, math.inf)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    if not trained:
        raise ValueError("model has no parameter that requires a gradient; there is nothing to train")
    if any(weight.isnan().any() for weight in trained):
        raise ValueError("model has weights that are nan, before any training; give one whose weights are numbers")
    _check_takes(model, split, classes=loss is cross_entropy)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else trained[0].device))
    wanted = calibrate(model, split.images, batch_size, device) if precision == "auto" else Precision.named(precision)
    _check_dtype(trained, wanted)
    return _training(model, split, steps, per_epoch, batch_size, seed, lr, loss, wanted, device, bar)


def batch_size_for(count, batch_size=None):
    """Images in a training step, of `count` in all: `batch_size`; by default 512, fewer where those make few steps."""
    chosen = min(512, max(16, count // 64)) if batch_size is None else batch_size
    return min(checks.integer("batch_size", chosen, 1), count)


def finetune(model, data, **settings):
    """Train a copy of `model` to the end and return it; the same arguments and errors as `fit`."""
    model = duplicate(model)
    for _ in fit(model, data, **settings):
        pass
    return model


def _training(model, split, steps, per_epoch, batch_size, seed, lr, loss, precision, device, bar):
    """The loop itself."""
    start, description = time.perf_counter(), f"training ({precision.name})"
    order, chance = torch.Generator().manual_seed(seed), _PrivateChance(model, seed, device, loss)
    bar = tqdm(total=steps, desc=description, delay=0.5, leave=False, disable=not bar)
    with _trainable(model, device, precision), bar:
        images, labels = as_inputs(model, split.images, device), split.labels.to(device)
        own = nn.ModuleList([model, *([loss.to(device)] if isinstance(loss, nn.Module) else [])])
        optimizer = adam(own, lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=max(1, steps))
        for step in range(steps):
            if step % per_epoch == 0:
                batches = torch.randperm(len(labels), generator=order).to(device).split(batch_size)
            batch = batches[step % per_epoch]
            with chance, precision.active(device):
                batch_loss = loss(model, laid_out(images.index_select(0, batch), precision), labels[batch])
            optimizer.zero_grad()
            batch_loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
            if (step % 50 == 49 or step + 1 == steps) and not math.isfinite(batch_loss.item()):
                raise ArithmeticError(f"the loss is {batch_loss.item()} at step {step + 1}; try an lr below {lr:g}")
            epoch, seconds = step // per_epoch + 1, time.perf_counter() - start
            yield Progress(
                step + 1, steps, epoch, steps / per_epoch, seconds, precision.name, model, batch_loss.detach()
            )


@contextlib.contextmanager
def _trainable(model, device, precision):
    """The model in training mode, on a device, in a layout; at the end it is where and how it was."""
    origin = next(model.parameters()).device
    with modes_kept(model):
        try:
            yield model.train().to(device, memory_format=precision.layout)
        finally:
            model.to(origin, memory_format=torch.contiguous_format)


def adam(model, lr):
    """Adam over the parameters that require a gradient, in torch's fused form where that exists for them."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    fused = all(weight.dtype == torch.float32 and weight.device.type in ("cpu", "cuda") for weight in weights)
    return torch.optim.Adam(weights, lr=lr, fused=fused)


def laid_out(images, precision):
    """Images in the memory format of a precision; only 4-d batches (batch, channels, height, width) have one."""
    if images.dim() != 4:
        return images
    images = images.contiguous(memory_format=precision.layout)
    if precision.channels_last and images.shape[1] == 1:  # both layouts fit a single channel; torch goes by the strides
        return images.as_strided(images.shape, (images[0].numel(), 1, images.shape[3], 1))
    return images


def _steps(epochs, steps, per_epoch):
    if epochs is not None and steps is not None:
        raise ValueError(f"epochs is {epochs!r} and steps is {steps!r}; give one of the two")
    if steps is not None:
        return checks.integer("steps", steps, 0)
    epochs = checks.real("epochs", 1 if epochs is None else epochs, 0, math.inf)
    return math.ceil(epochs * per_epoch)


def _dtype(model):
    """The floating-point type that a model's weights have, and its images should have."""
    return next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)


def _check_dtype(trained, precision):
    """Raise ValueError for weights that cannot be trained in a precision."""
    dtypes = {weight.dtype for weight in trained}
    if torch.float16 in dtypes:
        raise ValueError(
            "model has float16 weights, in which small steps of training are lost; call model.float() first"
        )
    if dtypes != {torch.float32} and precision.arithmetic != "fp32":
        found = ", ".join(map(str, dtypes))
        raise ValueError(f"precision is {precision.name!r} and the weights are {found}; choose 'fp32', as they are")


def _check_takes(model, split, classes):
    """Raise ValueError unless the model takes the images and, with `classes`, has a logit for every label."""
    logits = evaluate(model, split.images[:2])
    highest = int(split.labels.max())
    if classes and highest >= logits.shape[1]:
        raise ValueError(
            f"labels go up to {highest}, the model has {logits.shape[1]} classes (0 to {logits.shape[1] - 1})"
        )


class _PrivateChance:
    """Context in which dropout draws from a generator of this training, not from torch's global one."""

    def __init__(self, model, seed, device, loss=cross_entropy):
        self.needed = loss is not cross_entropy or any(map(_draws, model.modules()))
        self.devices = [device.index or 0] if device.type == "cuda" else []
        self.states = [torch.Generator(device).manual_seed(seed).get_state() for device in ("cpu", *self._cuda())]

    def _cuda(self):
        return [torch.device("cuda", index) for index in self.devices]

    def _read(self):
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self.devices)]

    def __enter__(self):
        if self.needed:
            self.fork = torch.random.fork_rng(self.devices)
            self.fork.__enter__()
            torch.set_rng_state(self.states[0])
            for device, state in zip(self.devices, self.states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)

    def __exit__(self, *error):
        if self.needed:
            self.states = self._read()
            self.fork.__exit__(*error)


def _draws(module):
    """Whether a module may draw random numbers in training: dropout, and every class that torch did not write."""
    dropout = getattr(module, "dropout", 0)
    known = type(module).__module__.startswith(
        ("torch.nn.", "compresslab.layers", "compresslab.grids", "compresslab.codebooks")
    )
    chance = isinstance(
        module, nn.modules.dropout._DropoutNd | nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d
    )
    return chance or not known or (isinstance(dropout, float) and dropout > 0)


def _renew_lock():
    """A process forked while another thread computes would wait for it for ever."""
    global _one_at_a_time
    _one_at_a_time = threading.RLock()


_renew_lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def evaluate(model, data, batch_size=None):
    """Logits of a model over images, in evaluation mode, without gradients, in fp32 arithmetic.

    data        a Split, a pair (images, labels), or the images alone, (N, …)
    batch_size  images at a time; by default 1000, and 100, laid out channels last, for 2-d convolutions on the CPU,
                which takes a third of the time
    returns     (N, classes) float32 on the CPU; the model, its mode and its running statistics are left as they were
    raises      ValueError for no images, images the model does not take, or an output that is not (N, classes)
    """
    images = data if isinstance(data, torch.Tensor) else split_of(data).images
    if not len(images):
        raise ValueError("images is empty; give at least one image")
    weight = next((w for w in [*model.parameters(), *model.buffers()] if w.is_floating_point()), torch.empty(0))
    precision = Precision(channels_last=weight.device.type == "cpu" and _convolves_images(model))
    if precision.channels_last:
        model = plain(model).to(memory_format=precision.layout)
    size = (100 if precision.channels_last else 1000) if batch_size is None else batch_size
    parts = images.split(checks.integer("batch_size", size, 1))
    with modes_kept(model), torch.no_grad(), precision.active(weight.device):
        model.eval()
        batches = (laid_out(as_inputs(model, part), precision) for part in parts)
        return torch.cat([_logits(model, batch) for batch in batches])


def _convolves_images(model):
    """Whether a model has 2-d convolutions, and no 3-d ones, for which channels last is another layout."""
    kinds = {type(module) for module in model.modules()}
    return any(issubclass(kind, nn.Conv2d) for kind in kinds) and not any(issubclass(kind, nn.Conv3d) for kind in kinds)


def _logits(model, images):
    try:
        logits = model(images)
    except RuntimeError as error:
        raise ValueError(f"the model does not take images of shape {tuple(images.shape)}: {error}") from error
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or len(logits) != len(images):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"the model returned {got} for {len(images)} images; it must return logits (N, classes)")
    return logits.float().cpu()


def accuracy_of(logits, labels):
    """Fraction of rows of `logits` (N, classes) whose largest entry is at the label, rows with nan counted as wrong.

    labels  (N,) int64
    """
    right = (logits.argmax(1) == labels.cpu()) & ~logits.isnan().any(1)
    return right.double().mean().item()


@contextlib.contextmanager
def threads(count):
    """Run torch on `count` threads of this process; the number before comes back at the end."""
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(checks.integer("threads", count, 1))
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)


_calibrated = {}


def calibrate(model, images, batch_size=None, device=None):
    """The fastest `Precision` for training this kind of model on this machine, by timing a few steps of each.

    model       any nn.Module; a copy is timed
    images      (N, …) float32, at least one batch is taken from them
    returns     the fastest; fp32 unless another is at least 10% faster, and where the weights are not float32

    Layer types, size (to a factor of ten), image shape, batch size and machine are the key under which the answer is
    kept, in `paths.home()/calibration.json`, so that a later run on the same machine computes in the same arithmetic.
    """
    device = torch.device(device or next((weight.device for weight in model.parameters()), "cpu"))
    if _dtype(model) != torch.float32:
        return Precision()
    batch = as_inputs(model, images[: batch_size or min(512, len(images))], device)
    key = _calibration_key(model, batch, device)
    if key not in _calibrated:
        kept = _read_calibration()
        if key not in kept:
            kept[key] = _fastest(model, batch, device).name
            _write_calibration(kept)
        _calibrated[key] = Precision.named(kept[key])
    return _calibrated[key]


def _fastest(model, batch, device, rounds=7, budget=2.0):
    """Time a training step in every candidate, in turns, so that a busy moment of the machine meets them all alike.

    The least time of each counts, its first step, slow as it is, left out; one half as slow again as the fastest is
    timed no more. After `budget` seconds of warming up no further candidate begins, after as many no further round.
    """
    start = time.perf_counter()
    layouts = (False, True) if _convolves_images(model) else (False,)
    plain = Precision()
    steps, least = {}, {}
    for candidate in (Precision(kind, last) for last in layouts for kind in ARITHMETIC):
        if candidate == plain or time.perf_counter() - start < budget:
            steps[candidate] = _timed_steps(model, batch, candidate, device)
            next(steps[candidate])
    start = time.perf_counter()
    for _ in range(rounds):
        for candidate, seconds in steps.items():
            least[candidate] = min(next(seconds), least.get(candidate, math.inf))
        best = min(least.values())
        steps = {candidate: seconds for candidate, seconds in steps.items() if least[candidate] < 1.5 * best}
        if time.perf_counter() - start > budget:
            break
    best = min(least, key=least.get)
    return best if least[best] < 0.9 * least[plain] else plain


def _timed_steps(model, batch, precision, device):
    """Train a copy for ever, yielding the seconds of each step; infinite where this arithmetic is not to be had."""
    try:
        model = duplicate(model).train().to(device, memory_format=precision.layout)
        optimizer, batch, chance = adam(model, 1e-3), laid_out(batch, precision), _PrivateChance(model, 0, device)
        while True:
            start = time.perf_counter()
            with chance, precision.active(device):
                loss = model(batch).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            yield time.perf_counter() - start
    except RuntimeError:
        while True:
            yield math.inf


def _calibration_key(model, batch, device):
    kinds = {type(module).__name__.removeprefix("Parametrized") for module in model.modules()}
    kinds = sorted(kinds - {"Mask", "Grid", "Half", "InputGrid", "Codebook", "ParametrizationList", "ModuleDict"})
    size = round(math.log10(1 + sum(weight.numel() for weight in model.parameters())))
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    told = [kinds, size, tuple(batch.shape), str(device), machine, os.cpu_count(), torch.__version__]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _read_calibration():
    try:
        return json.loads((paths.home() / "calibration.json").read_text())
    except (OSError, ValueError):
        return {}


def _write_calibration(kept):
    """Keep the answers for the next run; a home that cannot be written only costs that run a calibration."""
    with contextlib.suppress(OSError):
        temporary = paths.home() / f"calibration.{os.getpid()}.json"
        temporary.write_text(json.dumps(kept, indent=1, sort_keys=True))
        temporary.replace(paths.home() / "calibration.json")
