"""Running calibration images through a model and looking at the inputs and outputs of its layers.

Techniques that need more than weights (activation statistics, correlations, input moments, ranges) look through
`watch`, a batch at a time, so that memory does not grow with the number of images.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
from torch import nn

from compresslab import bars, checks
from compresslab.data import Split
from compresslab.weights.layers import as_inputs, modes_kept

VALUES = 2**20  # numbers in a batch of images, at most, where nothing else is asked for


def watch(
    model: nn.Module, images: torch.Tensor | Split, watchers: Mapping[str, Callable], batch_size: int | None = None
) -> None:
    """Run images through a model and let watchers see its layers.

    It runs in evaluation mode, without gradients; its modes and its running statistics are left as they were.
    images      (N, …) calibration images, a tensor or a Split; moved to the model's device and dtype a batch at a time
    watchers    dict of qualified module name ("" is the model) -> watcher(input, output), called each time the module
                runs on a batch with its first input and its output; not to be written to
    batch_size  images at a time; by default 256, or fewer large ones
    raises      ValueError for no images, images that the model does not take, and an unknown module name
    """
    images = checked_images(images)
    modules = dict(checks.module("model", model).named_modules(remove_duplicate=False))
    for name in watchers:
        checks.choice("watchers", name, modules)
    failures = []
    with ExitStack() as stack:
        stack.enter_context(modes_kept(model))
        stack.enter_context(torch.no_grad())
        model.eval()
        for name, watcher in watchers.items():
            handle = modules[name].register_forward_hook(_hook(watcher, failures), with_kwargs=True)
            stack.callback(handle.remove)
        size = choose_batch_size(images, 256) if batch_size is None else checks.integer("batch_size", batch_size, 1)
        for batch in bars.over(images.split(size), "calibrating"):
            try:
                run(model, as_inputs(model, batch.clone()))  # a layer may write into what it is given
            except ValueError:
                if failures:
                    raise failures[0] from None
                raise


def choose_batch_size(images: torch.Tensor, most: int) -> int:
    """Return how many images to run together, fewer of large ones."""
    return min(most, max(1, VALUES // max(1, images[0].numel())))


def run(model: nn.Module, batch: torch.Tensor) -> object:
    """Return model(batch); raises ValueError that says in words what the forward raised."""
    try:
        return model(batch)
    except Exception as error:  # the user's own code
        shape = tuple(batch.shape)
        raise ValueError(f"the model does not take images of shape {shape}: {checks.reason(error)}") from error


def checked_images(images: torch.Tensor | Split, limit: int | None = None) -> torch.Tensor:
    """Return calibration images as a tensor (N, …), the first `limit` of them.

    raises  ValueError for None, an empty tensor, anything but a tensor or a Split, and values that are not finite
    """
    if images is None:
        raise ValueError("images is None; give calibration images (N, …), such as data.train.images[:1000]")
    images = images.images if isinstance(images, Split) else images
    if not isinstance(images, torch.Tensor) or images.dim() < 2:
        kind = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(f"images is {kind}; give a tensor (N, …) of calibration images, data.train.images[:1000]")
    if not len(images):
        raise ValueError("images is empty; give at least one calibration image")
    images = images if limit is None else images[: checks.integer("limit", limit, 1)]
    if images.is_floating_point() and not images.sum().isfinite() and not images.isfinite().all():  # the sum is quick
        raise ValueError("images has values that are not finite (nan or inf)")
    return images


def _hook(watcher, failures):
    """Make a forward hook that calls a watcher, and notes what it raises."""

    def _call(module, inputs, named, output):
        try:
            watcher(next(iter((*inputs, *named.values())), None), output)
        except Exception as error:
            failures.append(error)
            raise

    return _call
