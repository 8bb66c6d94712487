"""Trying a removal so that a mistake shows: patterns of channels, weights drawn anew, no chance.

A wrong cut is hidden where every layer loses the same channels, and where neurons are dead, zero or copies of each
other. So the layers lose different numbers of channels, the weights are drawn anew, and all random numbers are alike.
"""

import contextlib
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from compresslab.weights.layers import BATCH_NORMS

SMALL = 32  # channels, from where on chance hides no mistake
_FILLED = frozenset(  # operations whose results are random numbers and nothing else
    "rand rand_like randn randn_like normal normal_ normal_functional uniform uniform_ exponential_ log_normal_".split()
)


class Steady(TorchDispatchMode):
    """Makes all random numbers alike and dropout idle; lists in `answers` the values that the network reads of tensors.

    With it, what a layer computes depends on its inputs and weights alone, not on how many channels are beside it.
    """

    def __init__(self):
        super().__init__()
        self.answers = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        if name.startswith("rrelu_with_noise"):
            arguments = (*arguments[:4], False, *arguments[5:])  # the mean slope, as in evaluation
        if torch.Tag.nondeterministic_seeded in function.tags:
            torch.default_generator.manual_seed(0)
        result = function(*arguments, **(keywords or {}))
        if name == "_local_scalar_dense":
            self.answers.append(result)
        elif name in ("bernoulli", "bernoulli_"):
            result.fill_(1)
        elif name == "native_dropout":
            return arguments[0].clone(), torch.ones_like(arguments[0], dtype=torch.bool)
        elif name in _FILLED and result.is_floating_point():
            result.fill_(0.5)
        return result


@contextlib.contextmanager
def steady(network: nn.Module) -> Iterator[Steady]:
    """Run a network without chance; every generator is afterwards as it was before."""
    states, devices = (random.getstate(), np.random.get_state()), {weight.device for weight in network.parameters()}
    random.seed(0)
    np.random.seed(0)
    try:
        with torch.random.fork_rng([device for device in devices if device.type == "cuda"]), Steady() as mode:
            yield mode
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextlib.contextmanager
def put_back(modules: list[nn.Module]) -> Iterator[None]:
    """Restore the tensors and sizes of modules at the end."""
    saved = [(module, dict(vars(module)), *map(dict, (module._parameters, module._buffers))) for module in modules]
    try:
        yield
    finally:
        for module, attributes, parameters, buffers in saved:
            vars(module).update(attributes)
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def patterns(sizes: dict[str, int]) -> tuple[list, list]:
    """Draw the channels to remove in each trial; one in eight stays at least.

    sizes    dict of group name -> number of channels, those of a layer in their order
    returns  two lists of dicts of group name -> bool tensor (size,), True where a channel goes. Of two groups of one
             size the second loses more in a trial of the first list, and the first in one of the second list: what
             splits channels in equal parts finds the border in a wrong place
    """
    generator, classes = torch.Generator().manual_seed(0), {}
    for name, size in sizes.items():
        classes.setdefault(size, []).append(name)
    steps = {size: _share_out(len(names), size - max(1, size // 8)) for size, names in classes.items()}
    halves = [], []
    for number in range(max(map(len, steps.values()))):
        for half, trials in enumerate(halves):
            counts = {}
            for size, names in classes.items():
                counts |= zip(names, steps[size][number % len(steps[size])][half], strict=True)
            if any(counts.values()):
                trials.append({name: torch.zeros(size, dtype=torch.bool) for name, size in sizes.items()})
                for name, which in trials[-1].items():
                    which[torch.randperm(len(which), generator=generator)[: counts[name]]] = True
    return halves


def _share_out(groups, most):
    """Return how many channels, up to `most`, each group loses: pairs of lists.

    The rank of a group is written in digits. Each digit gives a pair: as much as it says, and as much as it lacks.
    """
    pairs = []
    if most < SMALL:  # what is left may be dead for all images: try with nearly all channels, and more than once
        few = [[min(most, 1 + (rank + shift) % 3) for rank in range(groups)] for shift in range(2)]
        pairs = 2 * [(few[0], few[1])]
    if groups == 1:
        return [([most], [-(-most // 2)]), *pairs]
    base, unit = max(2, min(groups, most + 1)), 1
    while unit < groups:
        counts = [rank // unit % base * most // (base - 1) for rank in range(groups)]
        pairs.append((counts, [most - count for count in counts]))
        unit *= base
    return pairs


def disturb(network: nn.Module) -> None:
    """Draw the weights anew, in place, so that no neuron is dead or like another.

    Each tensor keeps its mean and its spread; one whose numbers are all the same gets a spread of a tenth.
    """
    generator = torch.Generator().manual_seed(0)
    noise, start = torch.randn(65537, generator=generator), 0  # as many as it takes are drawn too slowly
    with torch.no_grad():
        for weight in filter(torch.is_floating_point, network.parameters()):
            start, end = (start + 997) % len(noise), start + 997 + weight.numel()
            numbers = noise.repeat(1 + end // len(noise))[start : start + weight.numel()].view(weight.shape)
            sample = weight.reshape(-1)[:: 1 + weight.numel() // len(noise)]
            spread, mean = torch.std_mean(sample, correction=0)
            spread = spread if spread > 0 else 0.1
            weight.copy_(mean + spread * numbers.to(weight))
        for module in network.modules():
            if isinstance(module, BATCH_NORMS) and module.running_mean is not None:
                numbers = torch.rand(2, module.num_features, generator=generator).to(module.running_mean)
                module.running_mean += numbers[0] * module.running_var.sqrt()
                module.running_var *= 0.5 + numbers[1]


def tensors_of(value: object) -> list[torch.Tensor]:
    """Return the tensors and numbers in whatever a forward returns."""
    tensors, seen, waiting = [], set(), [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif isinstance(value, bool | int | float | complex | np.ndarray | np.generic):
            tensors.append(torch.as_tensor(value))
        elif id(value) not in seen and not isinstance(value, str | bytes | type | nn.Module):
            seen.add(id(value))
            if isinstance(value, Mapping):
                waiting += value.values()
            elif isinstance(value, list | tuple | set | frozenset):
                waiting += value
            else:
                waiting += getattr(value, "__dict__", {}).values()
    return tensors


def alike(first: torch.Tensor, second: torch.Tensor, tolerance: float) -> bool:
    """Return whether two tensors are equal, up to a share of the largest number."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    finite = first[first.isfinite()].abs()
    reach = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(first, second, rtol=0.0, atol=tolerance * reach, equal_nan=True)


def decides(network: nn.Module, images: torch.Tensor) -> bool:
    """Return whether a network reads values of its tensors that differ between inputs.

    network  a copy, whose weights are changed;  images  (N, …) that it takes
    """
    inputs = [*images.split(1), images, torch.zeros_like(images), images.flip(0), images.flip(-1)]
    if images.is_floating_point():
        inputs += [factor * images for factor in (-1, 10, 100)]
    answers = []
    for _ in range(2):
        for batch in inputs:
            with steady(network) as mode, torch.no_grad(), contextlib.suppress(Exception):  # it may not take this batch
                network(batch.clone())
                answers.append(mode.answers)
        disturb(network)
    return any(answer != answers[0] for answer in answers)
