"""Which channels of a network hang together: the outputs of one layer and the inputs of those that read them.

A chain of plain layers (nn.Sequential) is walked directly. Any other network is traced by Torch-Pruning, whose
dependency graph follows autograd through residual sums, concatenations, gates and depthwise convolutions; the channels
that it finds coupled are put into units, the connected components, none of which can lose a part of itself. A grouped
convolution couples all channels of one of its groups: it loses whole groups.

Fang et al. 2023, arXiv:2301.12900 (DepGraph).
"""

import time
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from compresslab import layers

OUTPUT = "its outputs are the model's outputs"
LONGEST = 20.0  # seconds that tracing a network may take; a tenth of it for each layer

_CONVOLUTIONS = (*layers.CONVOLUTIONS, *layers.TRANSPOSED)
_POOLINGS = (
    *(*layers.POOLS, nn.LPPool1d, nn.LPPool2d, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d, nn.Upsample),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
)
_ELEMENTWISE = (
    *layers.ACTIVATIONS,
    *layers.DROPOUTS,
)


@dataclass(frozen=True, eq=False)
class Cut:
    """Where the channels of a unit lie in one layer.

    name      qualified name of the layer;  side  "out": the channels it makes (or has, as a BatchNorm), "in": it reads
    channels  LongTensor (size, k): the k channels of the layer that belong to each of the units
    """

    name: str
    side: str
    channels: torch.Tensor


def coupled(model, images):
    """Units of channels that can only be removed together, as a list of tuples of Cut, in module order.

    model   a plain copy, in evaluation mode, every parameter asking for a gradient (no parametrizations)
    images  a batch that the model takes
    returns  the units, and whether the model is such a chain
    raises  any error of the tracer where the network cannot be traced; what becomes of a single layer's channels may
            also remain unknown: then the unit has a Cut of side "lost"
    """
    units = _chain(model, images)
    return (_traced(model, images), False) if units is None else (units, True)


def _chain(model, images):
    """The units of an nn.Sequential of layers whose channels are known to go straight through; None for any other."""
    units, cuts, axis, width, current = [], [], 0, 1, images
    if (steps := _steps(model)) is None:
        return None
    for name, module in steps:
        before, current = current, module(current)
        weighted = isinstance(module, layers.TYPES)
        if (cuts or weighted) and getattr(nn, type(module).__name__, None) is not type(module):
            return None  # a class of its own may do anything
        if weighted:
            here = 1 if isinstance(module, _CONVOLUTIONS) else before.dim() - 1
            if getattr(module, "groups", 1) > 1 or (cuts and axis != here):
                return None
            units += [(*cuts, Cut(name, "in", _blocks(cuts, width)))] if cuts else []
            cuts, axis, width = [Cut(name, "out", torch.arange(current.shape[here]).view(-1, 1))], here, 1
        elif cuts and isinstance(module, nn.Flatten):
            start, end = (one % before.dim() for one in (module.start_dim, module.end_dim))
            if start < axis <= end:
                return None
            width *= before.shape[axis + 1 : end + 1].numel() if start == axis else 1
            axis -= (end - start) if axis > end else 0
        elif cuts and isinstance(module, (*layers.BATCH_NORMS, nn.PReLU)):
            if axis != 1:
                return None
            per_channel = (
                module.weight is not None and module.weight.numel() > 1 or isinstance(module, layers.BATCH_NORMS)
            )
            cuts += [Cut(name, "out", _blocks(cuts, width))] if per_channel else []
        elif cuts and not isinstance(module, _ELEMENTWISE) and not (isinstance(module, _POOLINGS) and axis == 1):
            return None
    return [*units, tuple(cuts)] if cuts else units


def _steps(model, prefix=""):
    """(name, layer) of everything in nested nn.Sequentials, in order; None if the model is not of that class."""
    if type(model) is not nn.Sequential:
        return None
    steps = []
    for name, module in model._modules.items():
        inner = _steps(module, f"{prefix}{name}.")
        steps += [(prefix + name, module)] if inner is None else inner
    first = {id(module): name for name, module in reversed(steps)}
    return [(first[id(module)], module) for _, module in steps]


def _blocks(cuts, width):
    """Channels (size, width) behind a Flatten: `width` neighbours for each of the channels before it."""
    return torch.arange(len(cuts[0].channels) * width).view(-1, width)


def _traced(model, images):
    """The units of any network, by way of Torch-Pruning's dependency graph."""
    clock = _Clock()
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # the tracer's own, about shapes that it guesses
        graph = _graph(model, images, clock)
        names = {one: name for name, one in [*model.named_parameters(), *model.named_modules()]}
        edges = [edge for name, module in model.named_modules() for edge in _inside(name, module)]
        for root in [one for one in graph.module2node if isinstance(one, layers.TYPES)]:
            clock.begin()
            edges += _edges(graph, root, names)
    order = {name: number for number, name in enumerate(dict(model.named_modules()))}
    return _sorted_units(_components(edges), order)


def _edges(graph, root, names):
    """What the outputs of a layer are coupled with: (layer, side), channels, (layer, side), channels."""
    import torch_pruning

    prune, source = graph.get_pruner_of_module(root).prune_out_channels, (names[root], "out")
    every = np.arange(root.out_features if isinstance(root, nn.Linear) else root.out_channels)
    try:
        found = list(graph.get_pruning_group(root, prune, every.tolist()))
    except Exception:  # whatever it is that a network of a new make does to the tracer
        return [(source, every, (names[root], "lost"), 0 * every)]
    edges = []
    for item in found:
        target = item.dep.target.module
        side = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
        if torch_pruning.ops.module2type(target) == torch_pruning.ops.OPTYPE.OUTPUT:
            edges.append((source, every, ("", "output"), 0 * every))
        elif target in names and len(item.idxs):
            edges.append((source, item.root_idxs, (names[target], side), item.idxs))
    return edges


def _inside(name, module):
    """The edges inside a grouped convolution, whose channels go group by group."""
    if isinstance(module, _CONVOLUTIONS) and module.groups > 1:
        for side, count in (("in", module.in_channels), ("out", module.out_channels)):
            yield (name, side), np.arange(count), (name, "group"), np.arange(count) // (count // module.groups)


def _graph(model, images, clock):
    """Torch-Pruning's dependency graph of a model, which looks at the clock as it goes."""
    import torch_pruning

    class Graph(torch_pruning.DependencyGraph):
        def get_pruner_of_module(self, module):
            clock.check()
            return super().get_pruner_of_module(module)

    class Dependencies(list):
        def __iter__(self):
            clock.check()
            return super().__iter__()

    graph = Graph().build_dependency(model, images, verbose=False)
    for node in graph.module2node.values():
        node.dependencies = Dependencies(node.dependencies)
    return graph


class _Clock:
    """Ends a search that goes round and round, as a few networks make the tracer do."""

    def __init__(self):
        self.last = self.end = time.monotonic() + LONGEST

    def begin(self):
        self.end = min(self.last, time.monotonic() + LONGEST / 10)

    def check(self):
        if time.monotonic() > self.end:
            raise RuntimeError(f"tracing takes more than {LONGEST:g} s")


def _components(edges):
    """Connected components of (layer, side, channel), as dicts of (layer, side) -> list of channels."""
    sizes = {}
    for one, here, other, there in edges:
        for key, places in ((one, here), (other, there)):
            sizes[key] = max(sizes.get(key, 0), int(max(places)) + 1)
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    rows = np.concatenate([np.asarray(here) + starts[one] for one, here, _, _ in edges] or [np.empty(0, int)])
    columns = np.concatenate([np.asarray(there) + starts[other] for _, _, other, there in edges] or [rows])
    total = sum(sizes.values())
    _, labels = connected_components(coo_array((np.ones(len(rows)), (rows, columns)), (total, total)), directed=False)
    components = {}
    for key, start in starts.items():
        for channel, label in enumerate(labels[start : start + sizes[key]].tolist()):
            components.setdefault(label, {}).setdefault(key, []).append(channel)
    return list(components.values())


def _sorted_units(components, order):
    """Components that occupy the same layers in the same numbers, put together as units."""
    alike = {}
    for component in components:
        outs = [key for key in component if key[1] == "out" and key[0] in order]
        if outs:
            signature = tuple(sorted((key, len(channels)) for key, channels in component.items()))
            alike.setdefault(signature, []).append(component)
    units = []
    for signature, members in alike.items():
        keys = sorted((key for key, _ in signature if key[1] != "group"), key=lambda key: order.get(key[0], len(order)))
        units.append(tuple(Cut(*key, torch.tensor([member[key] for member in members])) for key in keys))
    first = {id(unit): next(cut for cut in unit if cut.side == "out") for unit in units}
    return sorted(units, key=lambda unit: (order[first[id(unit)].name], int(first[id(unit)].channels.min())))
