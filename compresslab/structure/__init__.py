"""Really removing neurons and channels: finding the layers that must lose them together, and slicing them.

A group is a set of channels with every layer that makes, scales or reads them. Removing one of its channels takes a
row from each producer, an entry from each BatchNorm between and a column from each consumer. What `find_groups`
returns has been tried: on a copy, different numbers of channels were removed from the groups, and in evaluation and in
training mode the outputs were those of the network whose consumers no longer look at them.

Fang et al. 2023, arXiv:2301.12900 (dependency graphs); Li et al. 2017, arXiv:1608.08710 (filters).
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.utils import parametrize

from compresslab import checks
from compresslab.activations import checked_images
from compresslab.codebooks import Codebook
from compresslab.layers import (
    BATCH_NORMS,
    TYPES,
    InputRounding,
    Mask,
    as_inputs,
    duplicate,
    get_mask,
    get_rounding,
    plain,
    set_mask,
    set_rounding,
    weight_layers,
)
from compresslab.structure import coupling, trials

OUTPUT = coupling.OUTPUT

_CHANNELWISE = (*BATCH_NORMS, nn.PReLU)
_SLICED = (*TYPES, *_CHANNELWISE)


@dataclass(frozen=True, eq=False)
class Consumer:
    """A layer that reads the channels of a group.

    name    qualified name of a Linear or a convolution
    inputs  LongTensor (size, k): its input features (or channels) that belong to each channel of the group; k is above
            1 behind a Flatten
    """

    name: str
    inputs: torch.Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that can be removed from a network, and all the layers that lose something with them.

    name       qualified name of the first layer that makes them
    size       number of channels; those of a convolution with groups go by whole groups, which are counted here
    producers  names of the layers that make them (several, if their outputs are added or multiplied)
    consumers  tuple of Consumer, in module order
    cuts       tuple of coupling.Cut: where the channels lie in each of these layers and in those between
    """

    name: str
    size: int
    producers: tuple
    consumers: tuple
    cuts: tuple


def find_groups(model, images):
    """The groups of channels that can be removed from a model, and the layers that must keep theirs.

    model    any nn.Module; it is not changed
    images   (N, …) images that it takes; the first is run, or the first two where it does not take one alone, and
             small ones together, up to 32 of them
    returns  list of Group in module order, and dict of layer name -> reason for every layer of
             `layers.weight_layers` whose outputs are in no group; OUTPUT is the reason of the last layer
    raises   ValueError for no images or images that the model does not take
    """
    twin = _bare(model)
    images = as_inputs(twin, checked_images(images, 32)).clone()  # a network may write into what it is given
    with torch.enable_grad():
        with trials.steady(twin) as mode:
            first, calls = _first_run(twin, images[:2])
        if mode.answers and trials.decides(duplicate(twin), images):
            return [], dict.fromkeys(weight_layers(model), "the network decides by values of its activations")
        try:
            with torch.random.fork_rng(devices=[]):
                units, is_chain = coupling.coupled(twin, first.clone())
        except Exception as error:  # the tracer meets networks of every make
            return [], dict.fromkeys(weight_layers(model), f"the network cannot be traced: {checks.reason(error)}")
    parts, blocked = dict(model.named_parameters()) | dict(model.named_modules()), _blocked(model, calls)
    groups, reasons = [], {}
    for unit in units:
        group, reason = _group(unit, parts), _reason(unit, parts, blocked)
        if reason or not group.consumers:
            reasons |= dict.fromkeys(group.producers, reason or OUTPUT)
        else:
            groups.append(group)
    groups, failed = _tried(twin, _distinct(groups), first, False, 0)
    if groups and not is_chain:
        trials.disturb(twin)
        for run in _runs(twin, first, images):
            groups, more = _tried(twin, groups, *run, 1)
            failed += more
    reasons |= {name: reason for group, reason in failed for name in group.producers}
    free = {name for group in groups for name in group.producers}
    names = [name for name in weight_layers(model) if name not in free]
    return groups, {name: reasons.get(name) or _unread(model, name) for name in names}


def remove(model, groups, removed):
    """Remove channels in place, from every layer of their groups.

    model    a copy (layers.duplicate) of the model that the groups were found in; its masks and grids are sliced along
    groups   list of Group, of `find_groups`
    removed  dict of group name -> bool tensor (size,), True where a channel goes
    raises   ValueError for an unknown name, another shape, or a group that would lose all its channels
    """
    for (name, side), gone in sorted(_gone(model, groups, removed).items()):  # inputs before outputs
        if gone.any():
            _slice(model.get_submodule(name), side, ~gone)


def add_to_bias(model, name, amount):
    """Add to the bias of a layer, in place; one without a bias is given one, which is trained if its weight is.

    name    qualified name of a Linear or a convolution;  amount  (outputs,) tensor of any dtype
    raises  ValueError for another number of amounts
    """
    module = model.get_submodule(name)
    outputs = _count(module, "out")
    if amount.shape != (outputs,):
        raise ValueError(f"amount has shape {tuple(amount.shape)}; layer {name!r} takes ({outputs},)")
    weight = module.weight
    with torch.no_grad():
        amount = amount.to(weight.device, weight.dtype)
        if isinstance(get_rounding(module, "bias"), Codebook):
            set_rounding(module, None, "bias")  # no code is there for the sums
        if module.bias is None:
            trained = any(one.requires_grad for one in module.parameters())
            module.bias = nn.Parameter(amount.clone(), requires_grad=trained)
        elif parametrize.is_parametrized(module, "bias"):
            if (mask := get_mask(module, "bias")) is not None:
                set_mask(module, mask | (amount != 0), "bias")
            module.parametrizations.bias.original.add_(amount)
        else:
            module.bias.add_(amount)


def reset(model, seed=0):
    """Draw all weights of a model anew, in place, as its layers do when they are made; masks and grids stay.

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
        _copy_into(model, dict(fresh.named_parameters(remove_duplicate=False)) | dict(fresh.named_buffers()))


def _copy_into(model, values):
    """Give every tensor of a model, also below its parametrizations, the value of its plain name."""
    for name, own in [*model.named_parameters(), *model.named_buffers()]:
        if name in values:
            own.copy_(values[name])
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for tensor, source in module.parametrizations.items():
                value = values[f"{name}.{tensor}" if name else tensor].to(source.original.device)
                source.original.copy_(value)
                for one in source:
                    if isinstance(one, Mask):
                        source.original.masked_fill_(~one.mask, 0.0)
                    elif isinstance(one, Codebook):
                        one.right_inverse(value.detach())


def _bare(model):
    """A plain float32 copy of a model, in evaluation mode, nothing rounded, every parameter asking for a gradient."""
    twin = plain(model).eval().float()
    for parent in twin.modules():
        for name, child in parent._modules.items():
            if isinstance(child, InputRounding):
                parent._modules[name] = nn.Identity()  # rounding errors would be steps of the grid
    for weight in twin.parameters():
        weight.requires_grad_(weight.is_floating_point())
    return twin


def _first_run(twin, images):
    """As few of the images as the model takes, and how often each module runs; ValueError if it takes none."""
    calls, handles = Counter(), []
    for name, module in twin.named_modules():
        handles.append(module.register_forward_hook(lambda *_, name=name: calls.update([name])))
    try:
        for count in range(1, len(images) + 1):
            calls.clear()
            try:
                twin(images[:count].clone())
                return images[:count], calls
            except Exception as error:  # the user's own code
                failure = error
    finally:
        for handle in handles:
            handle.remove()
    shape = tuple(images.shape)
    raise ValueError(f"the model does not take images of shape {shape}: {checks.reason(failure)}") from failure


def _blocked(model, calls):
    """Layers that cannot lose anything, with the reason: tied, used twice, or with a weight made in another way."""
    holders, blocked = {}, {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(weight), []).append(name)
    tied = {name for names in holders.values() if len(names) > 1 for name in names}
    for name, module in model.named_modules():
        if isinstance(module, _SLICED):
            if any(f"{name}.{own}".lstrip(".") in tied for own, _ in module.named_parameters(remove_duplicate=False)):
                blocked[name] = "shares its weight"
            if calls[name] > 1:
                blocked[name] = "is used more than once"
            if strange := [type(one).__name__ for one in _parametrizations(module) if not _can_slice(one)]:
                blocked[name] = f"has a weight made by {strange[0]}"
    return blocked


def _parametrizations(module):
    lists = module.parametrizations.values() if parametrize.is_parametrized(module) else []
    return [one for each in lists for one in each]


def _can_slice(parametrization):
    """Masks, codebooks, and the grids of this package, whose tensors have one entry, or one for each channel."""
    known = isinstance(parametrization, Mask | Codebook)
    return known or type(parametrization).__module__ == "compresslab.grids"


def _group(unit, parts):
    """The Group of a unit; a convolution with groups hands on what it reads, and is no consumer."""
    layers = [(cut, parts.get(cut.name)) for cut in unit]
    layers = [(cut, module) for cut, module in layers if isinstance(module, TYPES)]
    producers = tuple(cut.name for cut, _ in layers if cut.side == "out")
    readers = [cut for cut, module in layers if cut.side == "in" and getattr(module, "groups", 1) == 1]
    consumers = tuple(Consumer(cut.name, cut.channels) for cut in readers)
    return Group(producers[0], len(unit[0].channels), producers, consumers, unit)


def _reason(unit, parts, blocked):
    """Why the channels of a unit must stay, or None."""
    for cut in unit:
        if cut.side == "output":
            return OUTPUT
        if cut.side == "lost":
            return "its outputs cannot be followed through the network"
        if isinstance(parts[cut.name], nn.Parameter):
            return f"its outputs go with the parameter {cut.name!r}"
        if not isinstance(parts[cut.name], _SLICED):
            return f"its outputs go through {cut.name!r} ({type(parts[cut.name]).__name__})"
        if cut.name in blocked:
            return f"{cut.name!r} {blocked[cut.name]}"
        if cut.channels.max() >= _count(parts[cut.name], cut.side):
            return "its outputs cannot be followed through the network"
    return None


def _unread(model, name):
    """Why nothing is known of what reads a layer's outputs."""
    parent = type(model.get_submodule(name.rpartition(".")[0])).__name__
    return f"it is part of a {parent}" if parent == "MultiheadAttention" else "nothing is known to read its outputs"


def _distinct(groups):
    """Groups under names of their own: parts of one layer that are read by different ones tell their channels."""
    count = {}
    for group in groups:
        count[group.name] = count.get(group.name, 0) + 1
    return [group if count[group.name] == 1 else _told_apart(group) for group in groups]


def _told_apart(group):
    own = next(cut for cut in group.cuts if cut.name == group.name and cut.side == "out").channels
    name = f"{group.name}[{int(own.min())}:{int(own.max()) + 1}]"
    return Group(name, group.size, group.producers, group.consumers, group.cuts)


def _runs(network, first, images, most=2**13):
    """The (inputs, training) in which a network runs: in evaluation and, if it does, in training mode.

    first  inputs that it takes in evaluation;  images  more of them, which it may not take;  most  numbers in them
    """
    few = images[: max(len(first), most // images[0].numel())]
    pair = images[:2] if len(images) > 1 else torch.cat([images, images.flip(-1)])  # BatchNorm may need two
    runs = []
    for training, second in ((False, first), (True, pair)):
        for inputs in (few, second):
            try:
                _seen(network, inputs, training, {})
            except Exception:  # the user's own code
                continue
            runs.append((inputs, training))
            break
    return runs


def _tried(network, groups, inputs, training, half):
    """The groups that can be removed all together, and a list of (group, reason) of the others.

    half  0 or 1: which of trials.patterns are tried
    """
    reason = _disagreement(network, groups, inputs, training, half) if groups else None
    if reason is None:
        return groups, []
    if len(groups) == 1:
        return [], [(groups[0], reason)]
    parts = groups[: len(groups) // 2], groups[len(groups) // 2 :]
    (left, failed), (right, more) = (_tried(network, part, inputs, training, half) for part in parts)
    if left and right and (reason := _disagreement(network, left + right, inputs, training, half)):
        right, more = [], more + [(group, reason) for group in right]
    return left + right, failed + more


def _disagreement(network, groups, inputs, training, half):
    """Why removing channels is not the same as reading none of those, or None where it is.

    Compared are the outputs of the model and, channel by channel that stays, what each consumer reads.
    """
    mode = " in training mode" if training else ""
    for removed in trials.patterns({group.name: group.size for group in groups})[half]:
        gone = _gone(network, groups, removed)
        kept = {name: ~which for (name, side), which in gone.items() if side == "in"}
        try:
            with trials.put_back([network.get_submodule(name) for name in {name for name, _ in gone}]):
                remove(network, groups, removed)
                sliced = _seen(network, inputs, training, dict.fromkeys(kept))
            masked = _seen(network, inputs, training, kept)
        except Exception as error:  # the user's own code
            return f"without some of its outputs the network does not run{mode}: {checks.reason(error)}"
        tolerance = 1e-2 if training else 1e-3  # BatchNorm makes rounding errors of small batches large
        if len(masked) != len(sliced) or not all(map(partial(trials.alike, tolerance=tolerance), masked, sliced)):
            return f"its outputs are mixed with others on the way{mode}"
    return None


def _seen(network, inputs, training, kept):
    """What consumers read, and the outputs of the network.

    kept  dict of consumer -> which of its channels it may read, the others being 0 for it; None for all
    """
    seen, handles, state = [], [], [(one, one.clone()) for one in network.buffers()] if training else []
    for name, keep in kept.items():
        module = network.get_submodule(name)
        handles.append(module.register_forward_pre_hook(partial(_see, seen, keep), with_kwargs=True))
    try:
        with trials.steady(network), torch.no_grad():
            outputs = (network.train() if training else network)(inputs.clone())
            for buffer, before in state:
                buffer.copy_(before)
    finally:
        if training:
            network.eval()
        for handle in handles:
            handle.remove()
    return seen + trials.tensors_of(outputs)


def _see(seen, keep, module, inputs, named):
    """Note what a layer reads; let it read zeros where it may not."""
    given = [*inputs, *named.values()][0]
    if keep is None:
        seen.append(given.clone())
        return None
    axis = given.dim() - 1 if isinstance(module, nn.Linear) else given.dim() - len(module.kernel_size) - 1
    seen.append(given[_along(axis, keep, given)])
    given = given.clone()
    given[_along(axis, ~keep, given)] = 0
    return ((given, *inputs[1:]), named) if inputs else ((), named | {next(iter(named)): given})


def _gone(model, groups, removed):
    """Which channels go, (layer, side) -> bool tensor over its channels, after checking what is asked for."""
    known, gone = {group.name: group for group in groups}, {}
    for name, which in removed.items():
        group = _checked_removal(known, name, which)
        for cut in group.cuts:
            key = cut.name, cut.side
            none = torch.zeros(_count(model.get_submodule(cut.name), cut.side), dtype=torch.bool)
            gone.setdefault(key, none)[cut.channels[which.cpu()].flatten()] = True
    return gone


def _checked_removal(known, name, which):
    if name not in known:
        raise ValueError(f"removed has {name!r}; choose from {', '.join(known) or 'none'}")
    group = known[name]
    if not isinstance(which, torch.Tensor) or which.dtype != torch.bool or which.shape != (group.size,):
        found = f"{which.dtype} of shape {tuple(which.shape)}" if isinstance(which, torch.Tensor) else repr(which)
        raise ValueError(f"removed[{name!r}] is {found}; give a torch.bool tensor of shape ({group.size},)")
    if which.all():
        raise ValueError(f"removed[{name!r}] takes all {group.size} channels; at least one must stay")
    return group


def _axis(module, side):
    """The dimension of a layer's weight that its outputs or inputs lie along."""
    transposed = getattr(module, "transposed", False)
    return int((side == "in") != transposed)


def _count(module, side):
    """Number of channels that a layer makes or reads."""
    if isinstance(module, nn.Linear):
        return module.out_features if side == "out" else module.in_features
    if isinstance(module, nn.PReLU):
        return module.num_parameters
    if isinstance(module, _CHANNELWISE):
        return module.num_features
    return module.out_channels if side == "out" else module.in_channels


def _slice(module, side, keep):
    """Keep some outputs, or inputs, of a layer, in place, with its attributes.

    A convolution with groups loses whole ones; its weight has a dimension for one side only, the rest are groups.
    """
    count = int(keep.sum())
    if isinstance(module, _CHANNELWISE):
        for name in ("weight", "bias", "running_mean", "running_var"):
            _keep(module, name, 0, keep)
        setattr(module, "num_parameters" if isinstance(module, nn.PReLU) else "num_features", count)
        return
    grouped = getattr(module, "groups", 1) > 1
    if not grouped or side == ("in" if module.transposed else "out"):
        _keep(module, "weight", 0 if grouped else _axis(module, side), keep)
    if side == "out":
        _keep(module, "bias", 0, keep)
    if isinstance(module, nn.Linear):
        setattr(module, "out_features" if side == "out" else "in_features", count)
        return
    if grouped and side == "out":
        module.groups = count // (module.out_channels // module.groups)
    setattr(module, "out_channels" if side == "out" else "in_channels", count)


def _keep(module, name, axis, keep):
    """Keep some entries of one tensor of a module along a dimension, below its parametrizations."""
    if not parametrize.is_parametrized(module, name):
        _keep_tensor(module, name, axis, keep)
        return
    source = module.parametrizations[name]
    for holder in (source, *source):
        for own in [*holder._parameters, *holder._buffers]:
            if own != "centroids":
                _keep_tensor(holder, own, axis, keep)


def _keep_tensor(module, name, axis, keep):
    """Keep some entries of a tensor; one with a single entry for all, such as a scale, stays as it is."""
    tensor = getattr(module, name, None)
    if tensor is None or tensor.dim() <= axis or tensor.shape[axis] != len(keep):
        return
    kept = tensor.detach()[_along(axis, keep, tensor)]
    setattr(module, name, nn.Parameter(kept, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else kept)


def _along(axis, which, tensor):
    """An index that takes the entries `which` (bool) of a tensor along a dimension."""
    return (slice(None),) * axis + (which.to(tensor.device),)
