"""The same function in a larger shape: a narrow network inside a wide one, a convolution written as a matrix.

A file whose network has few units at work, or repeats its weights along the image, is small though the network keeps
its shape: what is zero, and what is repeated, costs next to nothing there (see `storage`).
"""

import math
from itertools import pairwise, zip_longest

import torch
from torch import nn

from compresslab import checks
from compresslab.weights import layers

_EACH = (*layers.ACTIVATIONS, nn.Dropout)
_IDLE = (nn.Identity, nn.Dropout)  # of them, those that do nothing in evaluation
_WEIGHTED = {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_DIMENSIONS = _WEIGHTED | layers.POOLS  # of the maps that a layer takes, 0 for none
_SIZES = ("in_features", "out_features", "in_channels", "out_channels", "inplace")  # may differ where networks do alike


def embed(small, large):
    """Copy of `large` that computes what `small` does: its weights in the first units of each layer, 0 in the rest.

    small    chain of the same layers as `large` (Identity and Dropout do not count), none of them wider; what it
             carries (masks, grids) is baked in
    large    nn.Sequential, nested or not, of Linear, Conv (without groups), pooling, Flatten(), Dropout and activations
             that treat each number by itself; its weights do not matter. A layer behind a Flatten reads the channels of
             the layer before one after the other, as torch lays them out, and so finds those of `small` first
    returns  a new model of the class of `large`; outputs that it has beyond those of `small` are those of weights 0
    raises   ValueError naming the layer that does not fit
    """
    chain, wide = _chain(layers.plain(small)), _chain(large := layers.plain(large))
    parts, wholes = _with_weights(chain), _with_weights(wide)
    if len(parts) != len(wholes):
        raise ValueError(f"small has {len(parts)} weight layers and large has {len(wholes)}; give as many")
    _check_alike(chain, wide)
    with torch.no_grad():
        for (_, source, fewer), (name, layer, each) in zip(parts, wholes, strict=True):
            if fewer != each:
                raise ValueError(f"layer {name!r} reads {each} numbers of each unit in large, {fewer} in small")
            _put(source.weight, layer.weight, name)
            if layer.bias is not None:
                _put(torch.zeros(0) if source.bias is None else source.bias, layer.bias, name)
            elif source.bias is not None:
                raise ValueError(f"layer {name!r} of large has no bias, the one of small has; give it one")
    return large


def unrolled(model, shape):
    """The same function with every Conv2d written as a Linear: one row for each place of each map.

    model    nn.Sequential, nested or not, of Conv2d, Linear, Flatten(), Dropout and activations that treat each number
             by itself; what it carries is baked in
    shape    of one image: (channels, height, width)
    returns  nn.Sequential that begins with a Flatten, and whose outputs are flat, (N, numbers), even those of a model
             that ends in maps; its matrices repeat the kernels, shifted
    raises   ValueError naming a layer of another kind
    """
    model = layers.plain(model)
    found, shape = [nn.Flatten()], tuple(shape)
    for name, layer in _chain(model):
        if isinstance(layer, nn.Conv2d) and len(shape) == 3 and layer.padding_mode == "zeros":
            layer, shape = _matrix(layer, shape)
        elif isinstance(layer, nn.Flatten):
            shape = (math.prod(shape),)
            continue
        elif isinstance(layer, nn.Linear) and len(shape) == 1:
            shape = (layer.out_features,)
        elif not isinstance(layer, _EACH):
            raise ValueError(f"model has {_told(name, layer)}; it cannot be written as a matrix of {shape}")
        found.append(layer)
    return nn.Sequential(*found).train(model.training)


def busiest_first(model):
    """The same function with the hidden units of each layer in the order of how many weights they keep, dead ones last.

    model    chain that `embed` takes
    returns  a new model, plain; sums run in another order, so that outputs differ by rounding
    raises   ValueError naming a layer that mixes units
    """
    model = layers.plain(model)
    with torch.no_grad():
        for (_, layer, _), (_, reader, _) in pairwise(_with_weights(_chain(model))):
            units = len(layer.weight)
            read = reader.weight.view(len(reader.weight), units, -1)  # (units there, units here, inputs each)
            used = layer.weight.ne(0).flatten(1).sum(1) + read.ne(0).sum((0, 2))
            order = used.argsort(descending=True, stable=True)
            layer.weight.copy_(layer.weight[order])
            reader.weight.copy_(read[:, order].view(reader.weight.shape))
            if layer.bias is not None:
                layer.bias.copy_(layer.bias[order])
    return model


def _chain(model):
    """(name, layer) of every layer of a chain in which none but those with weights mix units.

    raises  ValueError for a model or a layer of another kind, and for one that takes maps of other dimensions than it
            gets: it would take the units for places
    """
    found, maps = list(_leaves(model, "")), None  # maps: dimensions of what comes in, None where that is not known
    for name, layer in found:
        kind, flattens = type(layer), isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1)
        if not (flattens or kind in _EACH or (kind in _DIMENSIONS and maps in (None, _DIMENSIONS[kind]))):
            raise ValueError(
                f"model has {_told(name, layer)}; give an nn.Sequential of Linear, Conv, pooling behind Conv, Flatten()"
                " before Linear, Dropout, and activations of single numbers"
            )
        maps = 0 if flattens else _DIMENSIONS.get(kind, maps)
    return found


def _leaves(module, path):
    """(name, layer) in the order of a chain, each as often as it is used."""
    if type(module) is not nn.Sequential:
        yield path, module
        return
    for name, child in module._modules.items():
        yield from _leaves(child, f"{path}.{name}" if path else name)


def _with_weights(chain):
    """(name, layer, numbers that it reads of each unit of the one before) for a chain's layers that have weights.

    raises  ValueError for groups, for weights used twice, for a layer that does not read the units before it
    """
    found, before = [], None
    for name, layer in chain:
        if type(layer) in _WEIGHTED:
            inputs = layer.weight.shape[1]
            each, rest = divmod(inputs, max(1, inputs if before is None else len(before.weight)))
            if rest or (each != 1 and type(layer) is type(before)) or getattr(layer, "groups", 1) != 1:
                raise ValueError(f"model has {_told(name, layer)}; it does not read each unit before it")
            found.append((name, layer, each))
            before = layer
    tensors = [id(one) for _, layer, _ in found for one in layer.parameters()]
    if len(set(tensors)) < len(tensors):
        raise ValueError("model uses a weight in two places; give one whose layers have weights of their own")
    return found


def _check_alike(small, large):
    """Raise ValueError unless two chains differ in nothing but sizes."""
    chains = [[one for one in chain if not isinstance(one[1], _IDLE)] for chain in (small, large)]
    for part, whole in zip_longest(*chains, fillvalue=("", None)):
        if _settings(part[1]) != _settings(whole[1]):
            raise ValueError(f"large has {_told(*whole)} where small has {_told(*part)}; only sizes may differ")


def _settings(layer):
    names = [name for name in getattr(layer, "__constants__", ()) if name not in _SIZES]
    return type(layer), {name: getattr(layer, name) for name in names}


def _told(name, layer):
    return "nothing" if layer is None else f"{type(layer).__name__}({layer.extra_repr()}) as layer {name!r}"


def _matrix(layer, shape):
    """A Conv2d as a Linear on flattened images of a shape (channels, height, width), and the shape of what it returns.

    Each column is what the convolution makes of an image that is 1 in one place: products with 1 and sums with 0 only,
    so that the weights are the same numbers.
    """
    checks.integer("channels", shape[0], layer.in_channels, layer.in_channels)
    inputs = math.prod(shape)
    with torch.no_grad():
        unit = torch.eye(inputs, dtype=layer.weight.dtype).view(inputs, *shape)
        answer = nn.functional.conv2d(
            unit, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups
        )
        linear = nn.Linear(inputs, answer[0].numel(), bias=layer.bias is not None, dtype=layer.weight.dtype)
        linear.weight.copy_(answer.flatten(1).T + 0.0)  # sums of -0 are +0 again
        if layer.bias is not None:
            linear.bias.copy_(layer.bias.repeat_interleave(answer[0, 0].numel()))
    return linear, tuple(answer.shape[1:])


def _put(part, whole, name):
    """Write a tensor into the first places of another, and 0 into the rest."""
    if part.numel() and (part.dim() != whole.dim() or any(a > b for a, b in zip(part.shape, whole.shape, strict=True))):
        raise ValueError(f"layer {name!r} is {tuple(whole.shape)}; {tuple(part.shape)} of small does not fit into it")
    whole.zero_()
    whole[tuple(slice(size) for size in part.shape)] = part
