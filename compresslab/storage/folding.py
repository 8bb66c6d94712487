"""Set weights to zero that no prediction depends on, those of dead units: they then cost next to nothing.

In a chain of layers a unit (a neuron, or a convolution's channel)
    without output, all weights that read it being zero, needs no incoming weights and no bias;
    without input, and of output f(bias) = 0, needs no outgoing weights: a bias of 0 or less before ReLU, say.
Folding one can leave another without input or output, so it is repeated. Predictions stay the same to the bit for every
input that leaves all activations finite: what is dropped was multiplied by zero, or zero itself.

A chain is nn.Sequential, nested or not, of Linear, Conv and layers that treat every unit by itself; its inputs have a
batch dimension, as Flatten wants it. Left alone are
    a layer all of whose units are dead: it does not do its work yet, as one below a head of zeros;
    a convolution written as a matrix (`unrolled`): it costs its kernel only while it is whole.
"""

from dataclasses import dataclass

import torch
from torch import nn

from compresslab.storage import tensors, unrolled
from compresslab.storage.standard_layers import get_standard_name
from compresslab.weights import codebooks, grids, layers
from compresslab.weights.masks import get_rounding

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CONVOLUTIONS = {"Conv1d": 1, "Conv2d": 2, "Conv3d": 3}


def _list_between():
    """List the layers that may stand between two of a chain: name -> whether they make 0 of 0, and a dimension.

    They treat every unit by itself; poolings and norms (0 is the dimension of all others) only do so with images of
    their own dimension, as a convolution makes them.
    """
    zero = (
        "ReLU ReLU6 LeakyReLU PReLU ELU SELU CELU GELU SiLU Mish Tanh Tanhshrink Softsign Hardswish Softshrink "
        "Hardshrink Identity Flatten Dropout Dropout1d Dropout2d Dropout3d"
    )
    shifted = "Sigmoid Softplus Hardsigmoid LogSigmoid InputGrid"
    between = dict.fromkeys(zero.split(), (True, 0)) | dict.fromkeys(shifted.split(), (False, 0))
    between |= {f"BatchNorm{dimension}d": (False, dimension) for dimension in _CONVOLUTIONS.values()}
    return between | {kind.__name__: (True, dimension) for kind, dimension in layers.POOLS.items()}


_BETWEEN = _list_between()


@dataclass(frozen=True)
class Link:
    """Two layers of which the second reads the first, by name; between: the layers there.

    each  inputs of the second for every unit of the first
    """

    first: str
    second: str
    between: tuple
    each: int


def fold(model: nn.Module, flat: nn.Module, masks: dict) -> dict:
    """Set to zero what no prediction depends on, in place.

    model  as the user has it: its roundings say which weights can be zero;  flat  plain copy of it, which is changed
    masks  name -> mask, of `flat`'s tensors; returns them with what was folded taken out
    """
    masks, links = dict(masks), _find_links(flat)
    matrices = {name for link in links for name in (link.first, link.second) if _is_unrolled(flat.get_submodule(name))}
    links = [link for link in links if not {link.first, link.second} & matrices]
    while any([_fold_link(link, model, flat, masks) for link in links]):
        pass
    return masks


def _is_unrolled(layer):
    weight = layer.weight.detach()
    words = tensors.get_words(weight, tensors.TYPES[tensors.NAMES[weight.dtype]]).reshape(weight.shape)
    return weight.dim() == 2 and unrolled.find(words)[0] is not None


def _find_links(flat):
    """Find the links of a chain; none where a layer with tensors, or a weight, is used twice."""
    names = list(_walk_chain(flat, ""))
    modules = [flat.get_submodule(name) for name in names]
    weights = [weight for module in modules for weight in module.parameters()]
    busy = [module for module in modules if next(iter([*module.parameters(), *module.buffers()]), None) is not None]
    if len(set(map(id, [*weights, *busy]))) < len(weights) + len(busy):
        return []
    # Behind a Linear or Flatten what a convolution takes for channels may be the batch.
    flattened = [isinstance(module, nn.Linear | nn.Flatten) for module in modules]
    first_flat = (*flattened, True).index(True)
    at = [i for i, m in enumerate(modules) if _count_units(m) and (i < first_flat or isinstance(m, nn.Linear))]
    pairs = [(a, b, tuple(modules[a + 1 : b])) for a, b in zip(at, at[1:], strict=False)]
    links = [
        Link(names[a], names[b], between, _count_inputs(modules[a], modules[b], between)) for a, b, between in pairs
    ]
    return [link for link in links if link.each]


def _walk_chain(module, path):
    """Yield the names of the layers of a chain; "" or that of anything else inside is a layer that is not known."""
    if get_standard_name(module) != "Sequential":
        yield path
        return
    for name, child in module._modules.items():
        yield from _walk_chain(child, f"{path}.{name}" if path else name)


def _count_units(module):
    """Count the units of a layer whose weights may be folded; 0 for any other layer."""
    kind = get_standard_name(module)
    plain = kind and isinstance(module, nn.Linear) or kind in _CONVOLUTIONS and module.groups == 1
    return module.weight.shape[0] if plain and all(weight.dtype in _FLOATS for weight in module.parameters()) else 0


def _count_inputs(first, second, between):
    """Count the inputs of `second` for each unit of `first`; 0 where that cannot be told."""
    images, wanted = (
        _CONVOLUTIONS.get(get_standard_name(layer), 0) for layer in (first, second)
    )  # dimension, 0 for none
    spread = images > wanted == 0
    for layer in between:
        if not _is_by_unit(layer, images):
            return 0
        images = 0 if isinstance(layer, nn.Flatten) else images
    each, rest = divmod(second.weight.shape[1], first.weight.shape[0])
    return each if images == wanted and not rest and (spread or each == 1) else 0


def _is_by_unit(module, images):
    """Tell whether a layer that gets images of so many dimensions, or none, treats every unit by itself."""
    if get_standard_name(module) not in _BETWEEN:
        return False
    if isinstance(module, nn.Flatten):
        return module.start_dim == 1 and module.end_dim == -1
    dimension = _BETWEEN[get_standard_name(module)][1]
    if isinstance(module, layers.BATCH_NORMS):  # statistics of three-dimensional input may be those of its places
        return not module.training and module.running_mean is not None or images == dimension > 1
    return dimension in (0, images)


def _fold_link(link, model, flat, masks):
    """Fold the units of a link's first layer, unless it would lose all; returns whether anything changed."""
    first, second = flat.get_submodule(link.first), flat.get_submodule(link.second)
    fed, read = tensors.find_nonzeros(first.weight), tensors.find_nonzeros(second.weight)
    fed = torch.from_numpy(fed.reshape(len(fed), -1).any(axis=1))
    unread = ~torch.from_numpy(read.any(axis=0).reshape(len(fed), -1).any(axis=1))  # inputs, then units
    silent = ~fed & _are_silent(first.bias, link.between, len(fed)).cpu()
    if (unread | silent).all():
        return False
    changed = _set_zero(link.first, "weight", unread, model, flat, masks)
    if first.bias is not None:
        changed |= _set_zero(link.first, "bias", unread | silent, model, flat, masks)
    columns = silent.repeat_interleave(link.each)
    return _set_zero(link.second, "weight", columns, model, flat, masks, dim=1) | changed


def _are_silent(bias, between, count):
    """Tell which units without input have an output of exactly 0, as a bool tensor."""
    if not all(_BETWEEN[get_standard_name(layer)][0] for layer in between):
        return torch.zeros(count, dtype=torch.bool)
    if bias is None:
        return torch.ones(count, dtype=torch.bool)
    first = next((layer for layer in between if not isinstance(layer, nn.Flatten | nn.Identity)), None)
    return bias.detach() <= 0 if isinstance(first, (nn.ReLU, nn.ReLU6)) else bias.detach() == 0


def _set_zero(path, kind, dead, model, flat, masks, dim=0):
    """Set slices of a tensor to zero (dead: bool tensor), where it can be zero; return whether anything changed."""
    tensor, name = getattr(flat.get_submodule(path), kind), f"{path}.{kind}" if path else kind
    mask, rounding = masks.get(name), get_rounding(model.get_submodule(path), kind)
    if not dead.any() or mask is None and not _has_zero(rounding):
        return False
    places = dead.nonzero().flatten().to(tensor.device)
    mask = None if mask is None else mask.to(tensor.device)
    if not (tensor.detach() if mask is None else mask).index_select(dim, places).any():
        return False
    with torch.no_grad():
        tensor.index_fill_(dim, places, 0.0)
    if mask is not None:
        masks[name] = mask.index_fill(dim, places, False)
    return True


def _has_zero(rounding):
    """Tell whether a weight with this rounding, or None, can be exactly 0."""
    if isinstance(rounding, grids.Grid):
        zero = torch.zeros_like(rounding.scale)
        return bool((rounding.values(rounding.codes(zero)) == 0).all())
    if isinstance(rounding, codebooks.Codebook):
        return bool((rounding.centroids == 0).sum() == 1)
    return True
