"""Finding the groups of channels that a network can lose, and trying that it can.

A group is a set of channels with every layer that makes, scales or reads them. `find_groups` tries its groups on a
copy: it removes random channels, a different number from each group, and in evaluation and training mode the outputs
must be those of the network whose consumers read zeros there.

Fang et al. 2023, arXiv:2301.12900 (dependency graphs).
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from compresslab import checks
from compresslab.calibration import checked_images
from compresslab.channels import coupling, probing
from compresslab.channels.slicing import CHANNELWISE, count_channels, index_along, locate, remove, replace
from compresslab.data import Split
from compresslab.weights import grids
from compresslab.weights.codebooks import Codebook
from compresslab.weights.layers import TYPES, InputRounding, Mask, as_inputs, duplicate, plain, weight_layers
from compresslab.weights.masks import find_sources, list_parametrizations

OUTPUT = "its outputs are the model's outputs"

_SLICEABLE = (Mask, Codebook, grids.Grid, grids.Half)  # their tensors have one entry, or one for each channel
_SLICED = (*TYPES, *CHANNELWISE)


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


def find_groups(model: nn.Module, images: torch.Tensor | Split) -> tuple[list[Group], dict[str, str]]:
    """Find the groups of channels that can be removed, and the layers that must stay.

    model    any nn.Module; it is not changed
    images   (N, …) images that it takes; the first, or the first two, and small ones together, up to 32, are run
    returns  list of Group in module order, and dict of layer name -> reason for every layer of
             `layers.weight_layers` whose outputs are in no group; OUTPUT is the reason of the last layer
    raises   ValueError for no images or images that the model does not take
    """
    twin = _make_bare(model)
    images = as_inputs(twin, checked_images(images, 32)).clone()  # a network may write into what it is given
    with torch.enable_grad():
        with probing.steady(twin) as mode:
            first, calls = _run_first(twin, images[:2])
        if mode.answers and probing.decides(duplicate(twin), images):
            return [], dict.fromkeys(weight_layers(model), "the network decides by values of its activations")
        try:
            with torch.random.fork_rng(devices=[]):
                units, is_chain = coupling.find_units(twin, first.clone())
        except Exception as error:  # a network of a new kind may do anything to the tracer
            return [], dict.fromkeys(weight_layers(model), f"the network cannot be traced: {checks.reason(error)}")
    # Make groups of the units whose channels may go.
    parts, blocked = dict(model.named_parameters()) | dict(model.named_modules()), _find_blocked(model, calls)
    groups, reasons = [], {}
    for unit in units:
        group, reason = _make_group(unit, parts), _reason(unit, parts, blocked)
        if reason or not group.consumers:
            reasons |= dict.fromkeys(group.producers, reason or OUTPUT)
        else:
            groups.append(group)
    # Try them: in evaluation mode as the network is, then, but for a chain, in both modes with weights drawn anew.
    groups, failed = _try_groups(twin, _name_distinctly(groups), first, False, 0)
    if groups and not is_chain:
        probing.disturb(twin)
        for inputs, training in _find_runs(twin, first, images):
            groups, more = _try_groups(twin, groups, inputs, training, 1)
            failed += more
    reasons |= {name: reason for group, reason in failed for name in group.producers}
    free = {name for group in groups for name in group.producers}
    names = [name for name in weight_layers(model) if name not in free]
    for name in names:
        parent = type(model.get_submodule(name.rpartition(".")[0])).__name__
        is_inside = parent == "MultiheadAttention"
        reasons.setdefault(name, f"it is part of a {parent}" if is_inside else "nothing is known to read its outputs")
    return groups, {name: reasons[name] for name in names}


def _make_bare(model):
    """Return a plain float32 copy in evaluation mode, without rounding, with gradients."""
    twin = plain(model).eval().float()
    roundings = [part for part in twin.modules() if isinstance(part, InputRounding)]
    twin = replace(twin, {part: nn.Identity() for part in roundings})  # rounding errors would be steps
    for weight in twin.parameters():
        weight.requires_grad_(weight.is_floating_point())
    return twin


def _run_first(twin, images):
    """Return the fewest images that the model takes, and how often each module runs."""
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


def _find_blocked(model, calls):
    """Return the layers that cannot lose channels, with the reason."""
    counts = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    blocked = {}
    for name, module in model.named_modules():
        if isinstance(module, _SLICED):
            if any(counts[id(weight)] > 1 for weight in module.parameters()):
                blocked[name] = "shares its weight"
            if calls[name] > 1:
                blocked[name] = "is used more than once"
            for source in find_sources(module).values():
                for part in list_parametrizations(source):
                    if not isinstance(part, _SLICEABLE):
                        blocked.setdefault(name, f"has a weight made by {type(part).__name__}")
    return blocked


def _make_group(unit, parts):
    """Return the Group of a unit; a grouped convolution is no consumer."""
    layers = [(cut, parts.get(cut.name)) for cut in unit]
    layers = [(cut, module) for cut, module in layers if isinstance(module, TYPES)]
    producers = tuple(cut.name for cut, _ in layers if cut.side == "out")
    readers = [cut for cut, module in layers if cut.side == "in" and getattr(module, "groups", 1) == 1]
    consumers = tuple(Consumer(cut.name, cut.channels) for cut in readers)
    return Group(producers[0], len(unit[0].channels), producers, consumers, unit)


def _reason(unit, parts, blocked):
    """Return why the channels of a unit must stay, or None."""
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
        if cut.channels.max() >= count_channels(parts[cut.name], cut.side):
            return "its outputs cannot be followed through the network"
    return None


def _name_distinctly(groups):
    """Give parts of one layer that different layers read names of their own."""
    counts = Counter(group.name for group in groups)
    named = []
    for group in groups:
        if counts[group.name] > 1:
            cut = next(cut for cut in group.cuts if cut.name == group.name and cut.side == "out")
            name = f"{group.name}[{int(cut.channels.min())}:{int(cut.channels.max()) + 1}]"
            group = dataclasses.replace(group, name=name)
        named.append(group)
    return named


def _find_runs(network, first, images, most=2**13):
    """Return the (inputs, training) in which a network runs, one for each mode.

    first  inputs that it takes in evaluation;  images  more of them, which it may not take;  most  numbers in them
    """
    few = images[: max(len(first), most // images[0].numel())]
    pair = images[:2] if len(images) > 1 else torch.cat([images, images.flip(-1)])  # BatchNorm may need two
    runs = []
    for training, second in ((False, first), (True, pair)):
        for inputs in (few, second):
            try:
                _run_watched(network, inputs, training, {})
            except Exception:  # the user's own code
                continue
            runs.append((inputs, training))
            break
    return runs


def _try_groups(network, groups, inputs, training, half):
    """Return the groups that can be removed together, and (group, reason) of the rest.

    half  0 or 1: which of the lists of probing.patterns is tried

    A failing list is halved until the groups that fail are alone; two good halves must also go together.
    """
    reason = _find_disagreement(network, groups, inputs, training, half) if groups else None
    if reason is None:
        return groups, []
    if len(groups) == 1:
        return [], [(groups[0], reason)]
    middle = len(groups) // 2
    left, failed = _try_groups(network, groups[:middle], inputs, training, half)
    right, more = _try_groups(network, groups[middle:], inputs, training, half)
    if left and right and (reason := _find_disagreement(network, left + right, inputs, training, half)):
        right, more = [], more + [(group, reason) for group in right]
    return left + right, failed + more


def _find_disagreement(network, groups, inputs, training, half):
    """Return why removing channels differs from reading zeros there, or None where it does not.

    Compared are the outputs of the model and what each consumer reads in the channels that stay.
    """
    mode = " in training mode" if training else ""
    for removed in probing.patterns({group.name: group.size for group in groups})[half]:
        located = locate(network, groups, removed)
        readable = {name: ~which for (name, side), which in located.items() if side == "in"}
        try:
            with probing.put_back([network.get_submodule(name) for name in {name for name, _ in located}]):
                remove(network, groups, removed)
                sliced = _run_watched(network, inputs, training, dict.fromkeys(readable))
            masked = _run_watched(network, inputs, training, readable)
        except Exception as error:  # the user's own code
            return f"without some of its outputs the network does not run{mode}: {checks.reason(error)}"
        tolerance = 1e-2 if training else 1e-3  # BatchNorm makes rounding errors of small batches large
        if len(masked) != len(sliced) or not all(map(partial(probing.alike, tolerance=tolerance), masked, sliced)):
            return f"its outputs are mixed with others on the way{mode}"
    return None


def _run_watched(network, inputs, training, readable):
    """Run a network, and return what its consumers read and its outputs.

    readable  dict of consumer -> the channels it may read, the others being 0 for it; None for all
    """
    seen, handles = [], []
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()] if training else []
    for name, keep in readable.items():
        module = network.get_submodule(name)
        handles.append(module.register_forward_pre_hook(partial(_watch_inputs, seen, keep), with_kwargs=True))
    try:
        with probing.steady(network), torch.no_grad():
            outputs = (network.train() if training else network)(inputs.clone())
            for buffer, before in buffers:
                buffer.copy_(before)
    finally:
        if training:
            network.eval()
        for handle in handles:
            handle.remove()
    return seen + probing.tensors_of(outputs)


def _watch_inputs(seen, keep, module, inputs, named):
    """Note what a layer reads in the channels `keep`, and zero the rest."""
    value = [*inputs, *named.values()][0]
    if keep is None:
        seen.append(value.clone())
        return None
    axis = value.dim() - 1 if isinstance(module, nn.Linear) else value.dim() - len(module.kernel_size) - 1
    seen.append(value[index_along(axis, keep, value)])
    value = value.clone()
    value[index_along(axis, ~keep, value)] = 0
    return ((value, *inputs[1:]), named) if inputs else ((), named | {next(iter(named)): value})
