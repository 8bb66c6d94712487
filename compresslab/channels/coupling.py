"""Units: the channels of a network that can only be removed together, in all layers that make, scale or read them.

A chain of plain layers (nn.Sequential) is walked directly. Torch-Pruning traces any other network: its dependency
graph follows autograd through residual sums, concatenations, gates and depthwise convolutions. Channels that the graph
links are connected components. Components that occupy the same layers in the same numbers make up a unit; a grouped
convolution loses whole groups.

Fang et al. 2023, arXiv:2301.12900 (DepGraph).
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from compresslab.channels.slicing import count_channels
from compresslab.weights import layers

_CONVOLUTIONS = (*layers.CONVOLUTIONS, *layers.TRANSPOSED)
_ELEMENTWISE = (*layers.ACTIVATIONS, *layers.DROPOUTS)
_PER_CHANNEL = (*layers.POOLS, nn.Upsample, nn.ZeroPad1d, nn.ZeroPad2d, nn.ReflectionPad1d, nn.ReflectionPad2d)


@dataclass(frozen=True, eq=False)
class Cut:
    """The place of a unit's channels in one layer.

    name      qualified name of the layer
    side      "out": the channels it makes (or has, as a BatchNorm); "in": it reads; "output": of the network;
              "lost": not followed
    channels  LongTensor (size, k): the k channels of the layer that belong to each component of the unit
    """

    name: str
    side: str
    channels: torch.Tensor


def find_units(model: nn.Module, images: torch.Tensor) -> tuple[list[tuple[Cut, ...]], bool]:
    """Find the units of channels that can only be removed together, in module order.

    model   a plain copy, in evaluation mode, every parameter asking for a gradient;  images  a batch that it takes
    returns  tuples of Cut, and whether the model is a chain
    raises  any error of the tracer where the network cannot be traced; where it loses the channels of a single layer,
            the unit has a Cut of side "lost"
    """
    units = _walk_chain(model, images)
    return (_trace(model, images), False) if units is None else (units, True)


def _walk_chain(model, images):
    """Return the units of an nn.Sequential of plain layers; None for other networks."""
    if (steps := _list_steps(model)) is None:
        return None
    units, cuts, axis, width, output = [], [], 0, 1, images
    for name, module in steps:
        inputs, output = output, module(output)
        is_weighted, is_norm = isinstance(module, layers.TYPES), isinstance(module, layers.BATCH_NORMS)
        if (cuts or is_weighted) and getattr(nn, type(module).__name__, None) is not type(module):
            return None  # a user's own class may do anything
        if is_weighted:
            weighted_axis = 1 if isinstance(module, _CONVOLUTIONS) else inputs.dim() - 1
            if getattr(module, "groups", 1) > 1 or (cuts and axis != weighted_axis):
                return None
            units += [(*cuts, Cut(name, "in", _blocks(cuts, width)))] if cuts else []
            axis, width = weighted_axis, 1
            cuts = [Cut(name, "out", torch.arange(output.shape[axis]).view(-1, 1))]
        elif cuts and isinstance(module, nn.Flatten):
            start, end = module.start_dim % inputs.dim(), module.end_dim % inputs.dim()
            if start < axis <= end:
                return None
            if start == axis:  # each channel becomes a block of neighbours
                width *= inputs.shape[axis + 1 : end + 1].numel()
            axis -= (end - start) if axis > end else 0
        elif cuts and (is_norm or isinstance(module, nn.PReLU)):
            if axis != 1:
                return None
            if is_norm or module.weight.numel() > 1:
                cuts.append(Cut(name, "out", _blocks(cuts, width)))
        elif cuts and not isinstance(module, _ELEMENTWISE) and not (isinstance(module, _PER_CHANNEL) and axis == 1):
            return None
    return [*units, tuple(cuts)] if cuts else units


def _list_steps(model, prefix=""):
    """Return (name, layer) of everything in nested nn.Sequentials, or None for another class."""
    if type(model) is not nn.Sequential:
        return None
    steps = []
    for name, module in model._modules.items():
        inner = _list_steps(module, f"{prefix}{name}.")
        steps += [(prefix + name, module)] if inner is None else inner
    first = {id(module): name for name, module in reversed(steps)}
    return [(first[id(module)], module) for _, module in steps]


def _blocks(cuts, width):
    """Return the channels (size, width) behind a Flatten: `width` neighbours for each channel."""
    return torch.arange(len(cuts[0].channels) * width).view(-1, width)


def _trace(model, images):
    """Return the units of any network, by way of Torch-Pruning's dependency graph."""
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # the tracer's own, about shapes that it guesses
        links, walk = [], _Walk(model, images)
        # Link the channels of each group of a grouped convolution.
        for name, module in model.named_modules():
            if isinstance(module, _CONVOLUTIONS) and module.groups > 1:
                for side in ("in", "out"):
                    channels = np.arange(count_channels(module, side))
                    links.append(
                        ((name, side), channels, (name, "group"), channels // (len(channels) // module.groups))
                    )
        for name, module in model.named_modules():
            if isinstance(module, layers.TYPES) and module in walk.graph.module2node:
                links += walk.follow(name, module)
    order = {name: number for number, name in enumerate(dict(model.named_modules()))}
    makers = {name for name, module in model.named_modules() if isinstance(module, layers.TYPES)}
    components = _connect(links)
    made = [part for part in components if any(side == "out" and name in makers for name, side in part)]
    return _collect_units(made, order)


class _Walk:
    """A walk over Torch-Pruning's dependency graph, which visits each channel of each node once.

    A place is (layer name, or the id of another node, side). A link is (place, channels, place, channels): the first
    channel of one place goes with the first channel of the other, and so on.
    """

    def __init__(self, model, images):
        import torch_pruning
        from torch_pruning.dependency import index_mapping

        self.graph = torch_pruning.DependencyGraph().build_dependency(model, images, verbose=False)
        index_mapping.update_index_mapping(self.graph)
        self.names = {part: name for name, part in [*model.named_parameters(), *model.named_modules()]}
        self.visited = {}  # (node, pruning function) -> channels
        weighted = [module for module in model.modules() if isinstance(module, layers.TYPES)]
        self.widest = max(count_channels(module, side) for module in weighted for side in ("in", "out"))
        self._index, self._ops = torch_pruning._helpers._HybridIndex, torch_pruning.ops

    def follow(self, name: str, layer: nn.Module) -> list[tuple]:
        """Return the links that begin at the outputs of a layer, each link once."""
        outputs = range(count_channels(layer, "out"))
        links = [((name, "out"), outputs, (name, "out"), outputs)]
        try:
            prune = self.graph.get_pruner_of_module(layer).prune_out_channels
            for link in self._walk(self.graph.module2node[layer], prune, outputs):
                links.append(link)  # one by one: those before an error count
        except Exception:  # a network of a new kind may do anything to the tracer
            links.append(((name, "out"), outputs, (name, "lost"), [0] * len(outputs)))
        return links

    def _walk(self, node, prune, channels) -> Iterator[tuple]:
        waiting = [(node, prune, channels)]
        while waiting:
            node, prune, channels = waiting.pop()
            seen = self.visited.setdefault((id(node), prune), set())
            new = [channel for channel in channels if channel not in seen]
            seen.update(new)
            triggered = [dependency for dependency in node.dependencies if dependency.is_triggered_by(prune)]
            for dependency in triggered if new else ():
                # Map the channels of this node to those of the next: behind a Flatten, or inside a concatenation.
                indices = [self._index(channel, channel) for channel in new]
                for mapping in filter(None, dependency.index_mapping):
                    indices = mapping(indices)
                origins, targets = [int(index.root_idx) for index in indices], [index.idx for index in indices]
                if max(targets, default=0) >= self.widest:
                    raise ValueError("the tracer goes round in circles, to channels that no layer has")
                origin = self._place(node, prune)
                if self._ops.module2type(dependency.target.module) == self._ops.OPTYPE.OUTPUT:
                    yield origin, origins, ("", "output"), [0] * len(origins)
                elif origins:
                    yield origin, origins, self._place(dependency.target, dependency.handler), targets
                waiting.append((dependency.target, dependency.handler, targets))

    def _place(self, node, prune):
        side = "out" if self.graph.is_out_channel_pruning_fn(prune) else "in"
        return self.names.get(node.module, id(node)), side


def _connect(links):
    """Return the connected components of (place, channel), as dicts of place -> list of channels."""
    # Number all channels of all places, and connect the numbers.
    numbers, rows, columns = {}, [], []
    for origin, origins, target, targets in links:
        rows += [numbers.setdefault((origin, int(channel)), len(numbers)) for channel in origins]
        columns += [numbers.setdefault((target, int(channel)), len(numbers)) for channel in targets]
    pairs = coo_array((np.ones(len(rows)), (rows, columns)), (len(numbers), len(numbers)))
    _, labels = connected_components(pairs, directed=False)
    # List the channels of each component, layer by layer as the links name them.
    ranks = {place: rank for rank, place in enumerate(dict.fromkeys(place for place, _ in numbers))}
    components = {}
    for place, channel in sorted(numbers, key=lambda key: (ranks[key[0]], key[1])):
        if isinstance(place[0], str):
            component = components.setdefault(labels[numbers[place, channel]], {})
            component.setdefault(place, []).append(channel)
    return list(components.values())


def _collect_units(components, order):
    """Put components that occupy the same layers in the same numbers together as units."""
    alike = {}
    for component in components:
        signature = tuple(sorted((place, len(channels)) for place, channels in component.items()))
        alike.setdefault(signature, []).append(component)
    units = []
    for signature, members in alike.items():
        places = [place for place, _ in signature if place[1] != "group"]
        places.sort(key=lambda place: order.get(place[0], len(order)))
        units.append(tuple(Cut(*place, torch.tensor([member[place] for member in members])) for place in places))
    firsts = {unit: next(cut for cut in unit if cut.side == "out") for unit in units}
    return sorted(units, key=lambda unit: (order[firsts[unit].name], int(firsts[unit].channels.min())))
