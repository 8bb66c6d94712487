"""Slicing layers: removing channels from all layers of their groups, with their masks, grids and codebooks.

Removing a channel takes a row from each producer, an entry from each BatchNorm between and a column from each consumer.

Li et al. 2017, arXiv:1608.08710 (filters).
"""

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize

from compresslab.weights.codebooks import Codebook
from compresslab.weights.layers import BATCH_NORMS, Mask, get_mask, get_rounding, plain, set_mask, set_rounding

CHANNELWISE = (*BATCH_NORMS, nn.PReLU)  # layers with an entry for each channel
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks"),
    *("_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)


def remove(model: nn.Module, groups: Iterable, removed: Mapping[str, torch.Tensor]) -> None:
    """Remove channels in place, from every layer of their groups.

    model    a copy (layers.duplicate) of the model that the groups were found in; its masks and grids are sliced along
    groups   list of Group, of `find_groups`
    removed  dict of group name -> bool tensor (size,), True where a channel goes
    raises   ValueError for an unknown name, another shape, or a group that would lose all its channels
    """
    for (name, side), which in sorted(locate(model, groups, removed).items()):  # inputs before outputs
        if which.any():
            _slice(model.get_submodule(name), side, ~which)


def add_to_bias(model: nn.Module, name: str, amount: torch.Tensor) -> None:
    """Add to the bias of a layer, in place; make one where there is none.

    name    qualified name of a Linear or a convolution;  amount  (outputs,) tensor of any dtype
    raises  ValueError for another number of amounts
    """
    module = model.get_submodule(name)
    outputs = count_channels(module, "out")
    if amount.shape != (outputs,):
        raise ValueError(f"amount has shape {tuple(amount.shape)}; layer {name!r} takes ({outputs},)")
    weight = module.weight
    with torch.no_grad():
        amount = amount.to(weight.device, weight.dtype)
        if isinstance(get_rounding(module, "bias"), Codebook):
            set_rounding(module, None, "bias")  # it has no codes for the sums
        if module.bias is None:
            trained = any(parameter.requires_grad for parameter in module.parameters())
            module.bias = nn.Parameter(amount.clone(), requires_grad=trained)
        elif parametrize.is_parametrized(module, "bias"):
            if (mask := get_mask(module, "bias")) is not None:
                set_mask(module, mask | (amount != 0), "bias")
            module.parametrizations.bias.original.add_(amount)
        else:
            module.bias.add_(amount)


def reset(model: nn.Module, seed: int = 0) -> None:
    """Draw all weights of a model anew, in place; masks and grids stay.

    seed  whole number, 0 or more; torch's global generator is left alone, and the same weights come on every device.
          A parameter of a module without a `reset_parameters` is drawn from the normal distribution of its own mean and
          spread
    """
    fresh = plain(model).cpu()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for module in fresh.modules():
            draw = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(draw):
                draw()
            else:
                for weight in module.parameters(recurse=False):
                    spread, mean = torch.std_mean(weight, correction=0)
                    weight.copy_(torch.randn_like(weight) * spread + mean)
        # Give every tensor, also below parametrizations, the value of its plain name.
        values = dict(fresh.named_parameters(remove_duplicate=False)) | dict(fresh.named_buffers())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in values:
                tensor.copy_(values[name])
        for name, module in model.named_modules():
            if parametrize.is_parametrized(module):
                for tensor, source in module.parametrizations.items():
                    value = values[f"{name}.{tensor}" if name else tensor].to(source.original.device)
                    source.original.copy_(value)
                    for part in source:
                        if isinstance(part, Mask | Codebook):
                            part.right_inverse(source.original if isinstance(part, Mask) else value.detach())


def locate(model: nn.Module, groups: Iterable, removed: Mapping[str, torch.Tensor]) -> dict:
    """Return the channels to remove, (layer, side) -> bool tensor, after checking the request."""
    known, located = {group.name: group for group in groups}, {}
    for name, which in removed.items():
        if name not in known:
            raise ValueError(f"removed has {name!r}; choose from {', '.join(known) or 'none'}")
        size = known[name].size
        if not isinstance(which, torch.Tensor) or which.dtype != torch.bool or which.shape != (size,):
            is_tensor = isinstance(which, torch.Tensor)
            actual = f"{which.dtype} of shape {tuple(which.shape)}" if is_tensor else repr(which)
            raise ValueError(f"removed[{name!r}] is {actual}; give a torch.bool tensor of shape ({size},)")
        if which.all():
            raise ValueError(f"removed[{name!r}] takes all {size} channels; at least one must stay")
        for cut in known[name].cuts:
            count = count_channels(model.get_submodule(cut.name), cut.side)
            goes = located.setdefault((cut.name, cut.side), torch.zeros(count, dtype=torch.bool))
            goes[cut.channels[which.cpu()].flatten()] = True
    return located


def _size_name(module, side):
    """Return the name of the attribute that counts the channels a layer makes or reads."""
    if isinstance(module, CHANNELWISE):
        return "num_parameters" if isinstance(module, nn.PReLU) else "num_features"
    return f"{side}_{'features' if isinstance(module, nn.Linear) else 'channels'}"


def count_channels(module: nn.Module, side: str) -> int:
    """Return the number of channels that a layer makes or reads."""
    return getattr(module, _size_name(module, side))


def _slice(module, side, keep):
    """Keep some outputs, or inputs, of a layer, in place, with its attributes.

    A convolution with groups loses whole ones; its weight has a dimension for one side only, the rest are groups.
    """
    transposed, is_grouped = getattr(module, "transposed", False), getattr(module, "groups", 1) > 1
    axes = {"bias": 0} if side == "out" else {}
    if isinstance(module, CHANNELWISE):
        axes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0)
    elif not is_grouped:
        axes["weight"] = int((side == "in") != transposed)
    elif side == ("in" if transposed else "out"):
        axes["weight"] = 0
    for name, axis in axes.items():
        _keep(module, name, axis, keep)
    count = int(keep.sum())
    if is_grouped and side == "out":
        module.groups = count // (module.out_channels // module.groups)
    setattr(module, _size_name(module, side), count)


def _keep(module, name, axis, keep):
    """Keep some entries of one tensor of a module along a dimension, below its parametrizations."""
    holders = [(module, name)]
    if parametrize.is_parametrized(module, name):
        source = module.parametrizations[name]
        holders = [(part, tensor) for part in (source, *source) for tensor in [*part._parameters, *part._buffers]]
    for holder, tensor_name in holders:
        tensor = getattr(holder, tensor_name, None)
        if tensor is None or tensor_name == "centroids" or tensor.dim() <= axis or tensor.shape[axis] != len(keep):
            continue  # it has a single entry for all channels
        part = tensor.detach()[index_along(axis, keep, tensor)]
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(holder, tensor_name, nn.Parameter(part, tensor.requires_grad) if is_parameter else part)


def index_along(axis: int, which: torch.Tensor, tensor: torch.Tensor) -> tuple:
    """Return an index that takes the entries `which` (bool) of a tensor along a dimension."""
    return (slice(None),) * axis + (which.to(tensor.device),)


def replace(model: nn.Module, stand_ins: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replace layers by other modules everywhere; return the model, or its replacement.

    model      changed in place;  stand_ins  dict of module -> module, which takes over its mode and its hooks
    """
    for old, new in stand_ins.items():
        new.train(old.training)
        vars(new).update({name: vars(old)[name] for name in _HOOKS if name in vars(old)})
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in stand_ins:
                parent._modules[name] = stand_ins[child]
    return stand_ins.get(model, model)
