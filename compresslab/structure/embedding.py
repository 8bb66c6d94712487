"""The same function in a larger shape: a narrow network inside a wide one, a convolution written as a matrix.

A file whose network has few units at work, or repeats its weights along the image, is small though the network keeps
its shape: what is zero, and what is repeated, costs next to nothing there (see `storage`).
"""

import torch
from torch import nn

from compresslab import checks, layers

_EACH = (nn.ReLU, nn.Identity, nn.Tanh, nn.Sigmoid, nn.GELU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Dropout)


def embed(small, large):
    """Copy of `large` that computes what `small` does: its weights in the first units of each layer, 0 in the rest.

    small    network with as many weight layers as `large`, of the same kinds, in the same order, none of them larger;
             what it carries (masks, grids) is baked in
    large    network of the shape wanted; its weights do not matter. A layer behind a Flatten reads the channels of the
             layer before one after the other, as torch lays them out, and so finds those of `small` first
    returns  a new model of the class of `large`
    raises   ValueError naming the layer that does not fit
    """
    checks_ = [layers.weight_layers(layers.plain(small)), layers.weight_layers(large := layers.plain(large))]
    if len(checks_[0]) != len(checks_[1]):
        raise ValueError(f"small has {len(checks_[0])} weight layers and large has {len(checks_[1])}; give as many")
    with torch.no_grad():
        for source, (name, layer) in zip(checks_[0].values(), checks_[1].items(), strict=True):
            _put(source.weight, layer.weight, name)
            if layer.bias is not None:
                _put(torch.zeros(0) if source.bias is None else source.bias, layer.bias, name)
            elif source.bias is not None:
                raise ValueError(f"layer {name!r} of large has no bias, the one of small has; give it one")
    return large


def unrolled(model, shape):
    """The same function with every Conv2d written as a Linear: one row for each place of each map.

    model    nn.Sequential of Conv2d, Linear, Flatten, Dropout and activations; what it carries is baked in
    shape    of one image: (channels, height, width)
    returns  nn.Sequential that begins with a Flatten; its matrices repeat the kernels, shifted
    raises   ValueError naming a layer of another kind
    """
    model = layers.plain(model)
    if not isinstance(model, nn.Sequential):
        raise ValueError(f"model is a {type(model).__name__}; give an nn.Sequential")
    found, flat = [nn.Flatten()], False
    for name, layer in model.named_children():
        if isinstance(layer, nn.Conv2d) and not flat:
            layer, shape = _matrix(layer, shape)
            found.append(layer)
        elif isinstance(layer, nn.Flatten) or isinstance(layer, nn.Linear) and len(shape) == 1:
            flat = True
            shape = (layer.out_features,) if isinstance(layer, nn.Linear) else (int(torch.tensor(shape).prod()),)
            found += [layer] if isinstance(layer, nn.Linear) else []
        elif isinstance(layer, _EACH):
            found.append(layer)
        else:
            raise ValueError(f"layer {name!r} is a {type(layer).__name__} of {shape}; it cannot be written as a matrix")
    return nn.Sequential(*found).train(model.training)


def busiest_first(model):
    """The same function with the hidden units of each layer in the order of how many weights they keep, dead ones last.

    model    nn.Sequential that `embed` takes: Linear and Conv2d layers in a chain, no layer that mixes units between
    returns  a new model, plain; sums run in another order, so that outputs differ by rounding
    """
    model = layers.plain(model)
    found = list(layers.weight_layers(model).values())
    with torch.no_grad():
        for layer, reader in zip(found, found[1:], strict=False):
            units = len(layer.weight)
            read = reader.weight.view(len(reader.weight), units, -1)  # (units there, units here, inputs each)
            used = layer.weight.ne(0).flatten(1).sum(1) + read.ne(0).sum((0, 2))
            order = used.argsort(descending=True, stable=True)
            layer.weight.copy_(layer.weight[order])
            reader.weight.copy_(read[:, order].view(reader.weight.shape))
            if layer.bias is not None:
                layer.bias.copy_(layer.bias[order])
    return model


def _matrix(layer, shape):
    """A Conv2d as a Linear on flattened images of a shape (channels, height, width), and the shape of what it returns.

    Each column is what the convolution makes of an image that is 1 in one place: products with 1 and sums with 0 only,
    so that the weights are the same numbers.
    """
    checks.integer("channels", shape[0], layer.in_channels, layer.in_channels)
    inputs = int(torch.tensor(shape).prod())
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
    if part.dim() > 2 and part.shape[2:] != whole.shape[2:]:
        raise ValueError(f"layer {name!r} has kernels of {tuple(whole.shape[2:])}, small has {tuple(part.shape[2:])}")
    whole.zero_()
    whole[tuple(slice(size) for size in part.shape)] = part
