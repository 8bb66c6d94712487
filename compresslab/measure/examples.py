"""Inputs to run a model on when only its speed or its operations matter."""

from collections.abc import Sequence

import torch
from torch import nn

from compresslab import checks
from compresslab.weights import layers

_WORKBOOK = (1, 28, 28)  # shape of one MNIST or Fashion-MNIST image


def batch(model: nn.Module, shape: Sequence[int], batch_size: int = 1) -> torch.Tensor:
    """Draw random inputs (batch_size, *shape) in [0, 1) on the model's device, in its dtype.

    Where the model begins with an embedding, they are the whole number 0.
    raises  ValueError if `shape` is not the shape of one sample: whole numbers, 1 or more
    """
    if not isinstance(shape, (tuple, list)) or not shape:
        hint = f"give the shape of one sample, without the batch: {_WORKBOOK}"
        raise ValueError(f"shape is {checks.words(shape)}; {hint}")
    sides = [checks.integer("a side of shape", side, 1) for side in shape]
    takes_words = layers.as_inputs(model, torch.zeros(1)).dtype == torch.int64
    numbers = torch.rand(batch_size, *sides, generator=torch.Generator().manual_seed(0))
    return layers.as_inputs(model, numbers.floor() if takes_words else numbers)


def sample_shape(model: nn.Module, shape: Sequence[int] | None = None) -> tuple[int, ...]:
    """Check that the model takes a shape; for None, find such a shape.

    Tried are (1, 28, 28), and for a model that starts with a Linear layer its number of inputs. `model` must be in
    eval mode.

    raises   ValueError naming what was tried and what the model said
    """
    if shape is not None:
        if error := refusal(model, batch(model, shape)):
            raise ValueError(f"the model does not take a batch of shape {(1, *shape)}: {error}; give another shape")
        return tuple(shape)
    first, tried = next(iter(layers.weight_layers(model).values()), None), []
    candidates = [_WORKBOOK, (first.in_features,)] if isinstance(first, nn.Linear) else [_WORKBOOK]
    for candidate in candidates:
        if not (error := refusal(model, batch(model, candidate))):
            return candidate
        tried.append(str(candidate))
    hint = f"give the shape of one sample, (3, 32, 32); the model said {error}"
    raise ValueError(f"shape is None, and the model takes neither {' nor '.join(tried)}; {hint}")


def refusal(model: nn.Module, inputs: torch.Tensor) -> str | None:
    """Return why the model does not take these inputs, None if it does."""
    try:
        with torch.no_grad():
            model(inputs)
    except Exception as error:  # a model's forward may raise anything; the caller reports it
        return checks.reason(error)
    return None
