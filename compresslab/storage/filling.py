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
    shapes = {name: tuple(tensor.shape) for name, tensor in _get_tensors(model).items()}
    listed = {entry.name: tuple(entry.shape) for entry in entries}
    if shapes != listed:
        odd = sorted(name for name in {*shapes, *listed} if shapes.get(name) != listed.get(name))
        in_file, in_model = (str(known.get(odd[0], "missing"))[:100] for known in (listed, shapes))
        raise CorruptFileError(f"tensor {odd[0][:100]!r} is {in_file} in the file, {in_model} in its model")


def _get_tensors(model):
    """Return name -> Parameter or buffer, those that are not persistent included (once, if their module is shared)."""
    tensors = get_state(model)
    for name, buffer in model.named_buffers():
        tensors.setdefault(name, buffer)
    return tensors


def put_in(model: nn.Module, content: Content) -> nn.Module:
    """Give a model on the meta device its tensors, masks, roundings, modes and requires_grad flags; returns it."""
    _put_all(model, content, {entry.name: index for index, entry in enumerate(content.entries)})
    rounded_inputs.check(model)
    if missing := content.flipped.difference(dict(model.named_modules())):
        raise CorruptFileError(f"there is no module {sorted(missing)[0]!r} to set the mode of")
    _set_modes(model, content)
    return model


def fill(into: nn.Module, content: Content, input_grids: dict) -> nn.Module:
    """Give `into` the tensors, masks, roundings, modes and requires_grad flags of a file, in place; returns it.

    input_grids  path -> InputGrid: those of the file, as from rounded_inputs.build
    raises       ValueError that names what does not fit; nothing has been changed then
    """
    listed = {entry.name: index for index, entry in enumerate(content.entries) if index not in content.extra}
    names, around = rounded_inputs.find_places(into, listed, input_grids)
    wanted = {name: listed[old] for old, name in names.items()}
    _check_fits(into, content, wanted, around)
    _put_all(into, content, wanted)
    rounded_inputs.put(into, input_grids, around)
    _set_modes(into, content)
    return into


def _put_all(model, content, wanted):
    """Put tensors in their places, with masks and roundings; wanted  name in the model -> index of the entry."""
    made, roundings, seen, used = {}, {}, set(), set()
    for name, index in wanted.items():
        module, key = _place(model, name)
        if (id(module), key) in seen:  # a shared module has two names
            continue
        seen.add((id(module), key))
        source, is_parameter = _source(content, index), isinstance(_parameter(module, key), nn.Parameter)
        value = content.values[source]
        _unmask(module, key)
        before = getattr(module, key)
        if before.is_meta:
            setattr(module, key, made.setdefault(source, nn.Parameter(value, False) if is_parameter else value))
        elif before.dtype == value.dtype:
            before.data.copy_(value)
        else:
            before.data = value.to(before.device, copy=True)
        # Masks first, for then the rounded weight is not computed.
        parameter = getattr(module, key)
        if index in content.masked:
            layers.set_mask(module, content.keeps[index], key)
        if source in content.roundings:
            if id(parameter) not in roundings:
                rounding = copy.deepcopy(content.roundings[source]) if source in used else content.roundings[source]
                roundings[id(parameter)] = rounding.to(parameter.device)
                used.add(source)
            layers.set_rounding(module, roundings[id(parameter)], key)
        if is_parameter:
            learns = source not in content.frozen and (value.is_floating_point() or value.is_complex())
            _parameter(module, key).requires_grad_(learns)


def _check_fits(into, content, wanted, around):
    """`wanted` is name in `into` -> index of its entry; `around` as from rounded_inputs.find_places."""
    untouched = {path for path, inside in around.items() if inside is None}
    values = {
        name: value for name, value in layers.effective_state(into).items() if name.rpartition(".")[0] not in untouched
    }
    listed = {name: content.values[index] for name, index in wanted.items()}
    missing = [name for name in listed if name not in values]
    unexpected = [name for name in values if name not in listed]
    if missing or unexpected:
        raise ValueError(
            f"into lacks {_list_some(missing)} of the file, and has {_list_some(unexpected)} that the file lacks"
        )
    for name, value in listed.items():
        if values[name].shape != value.shape or _category(values[name]) != _category(value):
            shapes = [f"{tuple(tensor.shape)} ({tensor.dtype})" for tensor in (values[name], value)]
            raise ValueError(f"into has {name!r} of shape {shapes[0]}; the file has {shapes[1]}")
        _check_parametrization(*_place(into, name), name)
        changed = wanted[name] in content.masked or _source(content, wanted[name]) in content.roundings
        if changed and not isinstance(_parameter(*_place(into, name)), nn.Parameter):
            raise ValueError(f"the file masks or rounds {name!r}, which is not a parameter of into")
    _check_ties(into, listed)


def _check_parametrization(module, key, name):
    """Only masks and roundings can be taken off and put back."""
    if parametrize.is_parametrized(module, key):
        steps = module.parametrizations[key]
        foreign = [step for step in steps if not isinstance(step, layers.Mask | layers.Rounding)]
        if foreign:
            kind = type(foreign[0]).__name__
            raise ValueError(f"into has {name!r} parametrized by {kind}; give a module before that was added to it")


def _check_ties(into, listed):
    """Names that are one tensor in `into` must be equal in the file."""
    first = {}
    for name, value in listed.items():
        module, key = _place(into, name)
        earlier = first.setdefault(id(_parameter(module, key)), name)
        if value is not listed[earlier] and not torch.equal(_bits(value), _bits(listed[earlier])):
            raise ValueError(f"into has {earlier!r} and {name!r} as one tensor; they differ in the file")


def _unmask(module, key):
    if key in {getattr(hook, "_tensor_name", None) for hook in module._forward_pre_hooks.values()}:
        prune.remove(module, key)
    elif parametrize.is_parametrized(module, key):
        layers._give_own_class(module)  # a deep copy shares its class, and with it this property
        parametrize.remove_parametrizations(module, key)


def _set_modes(model, content):
    for name, module in model.named_modules():
        module.training = content.training != (name in content.flipped)


def _place(model, name):
    path, _, key = name.rpartition(".")
    return model.get_submodule(path), key


def _parameter(module, key):
    """Return the Parameter or buffer behind a name: the one that is trained, if it is masked."""
    if parametrize.is_parametrized(module, key):
        return module.parametrizations[key].original
    return module._parameters.get(f"{key}_orig", getattr(module, key))


def _source(content, index):
    """Return the index of the entry that has an entry's tensor: its own, or that of the one it is tied to."""
    tied = content.entries[index].tied
    return index if tied is None else tied


def _category(tensor):
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool


def _bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


def _list_some(names):
    return f"{len(names)} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})" if names else "nothing"
