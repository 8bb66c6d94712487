"""Dead units folded away: weights that no prediction depends on become zeros, which cost next to nothing.

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

from compresslab import codebooks, grids, layers
from compresslab.storage import tensors, unrolled
from compresslab.storage.standard import standard_name

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CONVOLUTIONS = {"Conv1d": 1, "Conv2d": 2, "Conv3d": 3}


def _between():
    """Layers that may stand between two of a chain: name -> whether they make 0 of 0, and a dimension.

    They treat every unit by itself; poolings and norms (0 is the dimension of all others) only do so with images of
    their own dimension, as a convolution makes them.
    """
    zero = (
        "ReLU ReLU6 LeakyReLU PReLU ELU SELU CELU GELU SiLU Mish Tanh Tanhshrink Softsign Hardswish Softshrink "
        "Hardshrink Identity Flatten Dropout Dropout1d Dropout2d Dropout3d"
    )
    other = "Sigmoid Softplus Hardsigmoid LogSigmoid InputGrid"
    found = dict.fromkeys(zero.split(), (True, 0)) | dict.fromkeys(other.split(), (False, 0))
    found |= {f"BatchNorm{dimension}d": (False, dimension) for dimension in _CONVOLUTIONS.values()}
    return found | {kind.__name__: (True, dimension) for kind, dimension in layers.POOLS.items()}


_BETWEEN = _between()


@dataclass(frozen=True)
class Link:
    """Two layers of which the second reads the first, by name; between: the layers there.

    each  inputs of the second for every unit of the first
    """

    first: str
    second: str
    between: tuple
    each: int


def fold(model, flat, masks):
    """Zero what no prediction depends on, in place.

    model  as the user has it: its roundings say which weights can be zero;  flat  plain copy of it, which is changed
    masks  name -> mask, of `flat`'s tensors; returns them with what was folded taken out
    """
    masks, links = dict(masks), _links(flat)
    whole = {name for link in links for name in (link.first, link.second) if _is_unrolled(flat.get_submodule(name))}
    links = [link for link in links if not {link.first, link.second} & whole]
    while any([_fold_link(link, model, flat, masks) for link in links]):
        pass
    return masks


def _is_unrolled(layer):
    weight = layer.weight.detach()
    words = tensors.words_of(weight, tensors.TYPES[tensors.NAMES[weight.dtype]]).reshape(weight.shape)
    return weight.dim() == 2 and unrolled.find(words)[0] is not None


def _links(flat):
    """The links of a chain; none where a layer with tensors, or a weight, is used twice."""
    names = list(_chain(flat, ""))
    modules = [flat.get_submodule(name) for name in names]
    own = [(module, list(module.parameters())) for module in modules]
    held = [id(module) for module, some in own if some or next(module.buffers(), None) is not None]
    held += [id(one) for _, some in own for one in some]
    if len(set(held)) < len(held):
        return []
    # Behind a Linear or Flatten what a convolution takes for channels may be the batch.
    flat = next((index for index, one in enumerate(modules) if isinstance(one, nn.Linear | nn.Flatten)), len(modules))
    at = [index for index, one in enumerate(modules) if _units(one) and (index < flat or isinstance(one, nn.Linear))]
    pairs = [(a, b, tuple(modules[a + 1 : b])) for a, b in zip(at, at[1:], strict=False)]
    links = [Link(names[a], names[b], between, _each(modules[a], modules[b], between)) for a, b, between in pairs]
    return [link for link in links if link.each]


def _chain(module, path):
    """Names of the layers of a chain; "" or that of anything else inside is a layer that is not known."""
    if standard_name(module) != "Sequential":
        yield path
        return
    for name, child in module._modules.items():
        yield from _chain(child, f"{path}.{name}" if path else name)


def _units(module):
    """How many units a layer has whose weights may be folded, 0 for any other layer."""
    kind = standard_name(module)
    plain = kind and isinstance(module, nn.Linear) or kind in _CONVOLUTIONS and module.groups == 1
    return module.weight.shape[0] if plain and all(one.dtype in _FLOATS for one in module.parameters()) else 0


def _each(first, second, between):
    """Inputs of `second` for each unit of `first`; 0 where what lies between, or their sizes, do not let it be told."""
    images, wanted = (_CONVOLUTIONS.get(standard_name(one), 0) for one in (first, second))  # dimension, 0 for none
    spread = images > wanted == 0
    for one in between:
        if not _is_by_unit(one, images):
            return 0
        images = 0 if isinstance(one, nn.Flatten) else images
    each, rest = divmod(second.weight.shape[1], first.weight.shape[0])
    return each if images == wanted and not rest and (spread or each == 1) else 0


def _is_by_unit(module, images):
    """Whether a layer that gets images of so many dimensions, or none, treats every unit by itself."""
    if standard_name(module) not in _BETWEEN:
        return False
    if isinstance(module, nn.Flatten):
        return module.start_dim == 1 and module.end_dim == -1
    dimension = _BETWEEN[standard_name(module)][1]
    if isinstance(module, layers.BATCH_NORMS):  # statistics of three-dimensional input may be those of its places
        return not module.training and module.running_mean is not None or images == dimension > 1
    return dimension in (0, images)


def _fold_link(link, model, flat, masks):
    """Fold the units of a link's first layer, unless it would lose all; returns whether anything changed."""
    first, second = flat.get_submodule(link.first), flat.get_submodule(link.second)
    fed, read = tensors.find_nonzeros(first.weight), tensors.find_nonzeros(second.weight)
    fed = torch.from_numpy(fed.reshape(len(fed), -1).any(axis=1))
    unread = ~torch.from_numpy(read.any(axis=0).reshape(len(fed), -1).any(axis=1))  # inputs, then units
    silent = ~fed & _is_zero(first.bias, link.between, len(fed)).cpu()
    if (unread | silent).all():
        return False
    changed = _zero(link.first, "weight", unread, model, flat, masks)
    if first.bias is not None:
        changed |= _zero(link.first, "bias", unread | silent, model, flat, masks)
    columns = silent.repeat_interleave(link.each)
    return _zero(link.second, "weight", columns, model, flat, masks, dim=1) | changed


def _is_zero(bias, between, count):
    """Which units without input have an output of exactly 0, as a bool tensor."""
    if not all(_BETWEEN[standard_name(one)][0] for one in between):
        return torch.zeros(count, dtype=torch.bool)
    if bias is None:
        return torch.ones(count, dtype=torch.bool)
    first = next((one for one in between if not isinstance(one, (nn.Flatten, nn.Identity))), None)
    return bias.detach() <= 0 if isinstance(first, (nn.ReLU, nn.ReLU6)) else bias.detach() == 0


def _zero(path, own, dead, model, flat, masks, dim=0):
    """Zero the slices `dead` (bool tensor) of a tensor, where it can be zero; returns whether anything changed."""
    tensor, name = getattr(flat.get_submodule(path), own), f"{path}.{own}" if path else own
    mask, rounding = masks.get(name), layers.get_rounding(model.get_submodule(path), own)
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
    """Whether a weight with this rounding, or None, can be exactly 0."""
    if isinstance(rounding, grids.Grid):
        zero = torch.zeros_like(rounding.scale)
        return bool((rounding.values(rounding.codes(zero)) == 0).all())
    if isinstance(rounding, codebooks.Codebook):
        return bool((rounding.centroids == 0).sum() == 1)
    return True
