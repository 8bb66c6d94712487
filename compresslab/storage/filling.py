"""Putting the tensors of a file into a model: one built from the file, or one that the user gives."""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from compresslab.storage import rounded_inputs
from compresslab.storage.container import CorruptFileError
from compresslab.storage.header import Content, get_state
from compresslab.weights import layers


def check_same(model: nn.Module, entries: list) -> None:
    """Raise CorruptFileError unless a built model has exactly the tensors of `entries`, by name and shape."""
    own = {name: tuple(tensor.shape) for name, tensor in _get_tensors(model).items()}
    listed = {entry.name: tuple(entry.shape) for entry in entries}
    if own != listed:
        odd = sorted(name for name in {*own, *listed} if own.get(name) != listed.get(name))
        in_file, in_model = (str(known.get(odd[0], "missing"))[:100] for known in (listed, own))
        raise CorruptFileError(f"tensor {odd[0][:100]!r} is {in_file} in the file, {in_model} in its model")


def _get_tensors(model):
    """Return name -> Parameter or buffer, those that are not persistent included (once, if their module is shared)."""
    tensors = get_state(model)
    for name, buffer in model.named_buffers():
        tensors.setdefault(name, buffer)
    return tensors


def put_in(model: nn.Module, content: Content) -> nn.Module:
    """Give a model on the meta device its tensors, masks, roundings, modes and requires_grad flags; returns it."""
    made, seen = {}, set()
    for index, entry in enumerate(content.entries):
        module, own = _place(model, entry.name)
        source = _source(content, index)
        if source not in made:
            made[source] = _as_parameter(content, source) if own in module._parameters else content.values[source]
        setattr(module, own, made[source])
    for index, entry in enumerate(content.entries):
        module, own = _place(model, entry.name)
        rounding = content.roundings.get(_source(content, index))
        if (id(module), own) not in seen:
            _parametrize(module, own, rounding, content.keeps[index] if index in content.masked else None)
            seen.add((id(module), own))
    rounded_inputs.check(model)
    modules = dict(model.named_modules())
    if missing := content.flipped.difference(modules):
        raise CorruptFileError(f"there is no module {sorted(missing)[0]!r} to set the mode of")
    _set_modes(modules, content)
    return model


def fill(into: nn.Module, content: Content, rounded: dict) -> nn.Module:
    """Give `into` the tensors, masks, roundings, modes and requires_grad flags of a file, in place; returns it.

    rounded  path -> InputGrid: those of the file, as from rounded_inputs.build
    raises   ValueError that names what does not fit; nothing has been changed then
    """
    listed = {entry.name: index for index, entry in enumerate(content.entries) if index not in content.extra}
    names, around = rounded_inputs.find_places(into, listed, rounded)
    wanted, made = {name: listed[old] for old, name in names.items()}, {}
    _check_fits(into, content, wanted, around)
    for name, index in wanted.items():
        module, own = _place(into, name)
        _unmask(module, own)
        _assign(module, own, content.values[index])
        rounding = _rounding(content, index, getattr(module, own), made)
        _parametrize(module, own, rounding, content.keeps[index] if index in content.masked else None)
        if own in module._parameters or parametrize.is_parametrized(module, own):
            _parameter(module, own).requires_grad_(_learns(content, index))
    rounded_inputs.put(into, rounded, around)
    _set_modes(dict(into.named_modules()), content)
    return into


def _check_fits(into, content, wanted, around):
    """`wanted` is name in `into` -> index of its entry; `around` as from rounded_inputs.find_places."""
    untouched = {path for path, inside in around.items() if inside is None}
    own = {
        name: value for name, value in layers.effective_state(into).items() if name.rpartition(".")[0] not in untouched
    }
    listed = {name: content.values[index] for name, index in wanted.items()}
    missing, unexpected = [name for name in listed if name not in own], [name for name in own if name not in listed]
    if missing or unexpected:
        raise ValueError(
            f"into lacks {_list_some(missing)} of the file, and has {_list_some(unexpected)} that the file lacks"
        )
    for name, value in listed.items():
        if own[name].shape != value.shape or _category(own[name]) != _category(value):
            shapes = [f"{tuple(tensor.shape)} ({tensor.dtype})" for tensor in (own[name], value)]
            raise ValueError(f"into has {name!r} of shape {shapes[0]}; the file has {shapes[1]}")
        _check_parametrization(*_place(into, name), name)
        changed = wanted[name] in content.masked or _source(content, wanted[name]) in content.roundings
        if changed and not isinstance(_parameter(*_place(into, name)), nn.Parameter):
            raise ValueError(f"the file masks or rounds {name!r}, which is not a parameter of into")
    _check_ties(into, listed)


def _check_parametrization(module, own, name):
    """Only masks and roundings can be taken off and put back."""
    if parametrize.is_parametrized(module, own):
        foreign = [step for step in module.parametrizations[own] if not isinstance(step, layers.Mask | layers.Rounding)]
        if foreign:
            kind = type(foreign[0]).__name__
            raise ValueError(f"into has {name!r} parametrized by {kind}; give a module before that was added to it")


def _check_ties(into, listed):
    """Names that are one tensor in `into` must be equal in the file."""
    first = {}
    for name, value in listed.items():
        module, own = _place(into, name)
        earlier = first.setdefault(id(_parameter(module, own)), name)
        if value is not listed[earlier] and not torch.equal(_bits(value), _bits(listed[earlier])):
            raise ValueError(f"into has {earlier!r} and {name!r} as one tensor; they differ in the file")


def _unmask(module, own):
    if own in {getattr(hook, "_tensor_name", None) for hook in module._forward_pre_hooks.values()}:
        prune.remove(module, own)
    elif parametrize.is_parametrized(module, own):
        layers._give_own_class(module)  # a deep copy shares its class, and with it this property
        parametrize.remove_parametrizations(module, own)


def _parametrize(module, own, rounding, mask):
    """Round and mask a module's tensor, in place; either may be None."""
    if mask is not None:  # first, for then the rounded weight is not computed
        layers.set_mask(module, mask, own)
    if rounding is not None:
        layers.set_rounding(module, rounding, own)


def _rounding(content, index, parameter, made):
    """Return the rounding of an entry for the parameter it went to, one object for each; `made` remembers them."""
    rounding = content.roundings.get(_source(content, index))
    if rounding is None:
        return None
    if id(parameter) not in made:
        made[id(parameter)] = copy.deepcopy(rounding).to(parameter.device)
    return made[id(parameter)]


def _assign(module, own, value):
    """Put a value into a module's parameter or buffer: into its memory where the dtype is the same."""
    before = getattr(module, own)
    if before.is_meta:
        value = nn.Parameter(value, False) if own in module._parameters else value
        setattr(module, own, value)
    elif before.dtype == value.dtype:
        before.data.copy_(value)
    else:
        before.data = value.to(before.device, copy=True)


def _set_modes(modules, content):
    for name, module in modules.items():
        module.training = content.training != (name in content.flipped)


def _place(model, name):
    path, _, own = name.rpartition(".")
    return model.get_submodule(path), own


def _parameter(module, own):
    """Return the Parameter or buffer behind a name: the one that is trained, if it is masked."""
    if parametrize.is_parametrized(module, own):
        return module.parametrizations[own].original
    return getattr(module, f"{own}_orig", None) if f"{own}_orig" in module._parameters else getattr(module, own)


def _source(content, index):
    """Return the index of the entry that has an entry's tensor: its own, or that of the one it is tied to."""
    tied = content.entries[index].tied
    return index if tied is None else tied


def _as_parameter(content, index):
    return nn.Parameter(content.values[index], requires_grad=_learns(content, index))


def _learns(content, index):
    value = content.values[index]
    return index not in content.frozen and (value.is_floating_point() or value.is_complex())


def _category(tensor):
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool


def _bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


def _list_some(names):
    return f"{len(names)} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})" if names else "nothing"
