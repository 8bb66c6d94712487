"""Grids on the inputs of layers (grids.InputGrid): those of a file, and putting them into a module that has none.

A layer whose inputs are rounded stands in its model as Sequential(input=InputGrid, layer=…). A user's module of the
plain architecture has the layer itself there, and gets it wrapped.
"""

from collections import OrderedDict

from torch import nn

from compresslab import grids
from compresslab.storage import architecture, standard
from compresslab.storage.container import CorruptFileError


def settle(model):
    """Make the learned step sizes of input grids plain scales, in place: no reader need compute an exponential."""
    for grid in model.modules():
        if isinstance(grid, grids.InputGrid) and grid.growth is not None:
            grid.scale = grid.step_size.detach()
            grid.growth.data.zero_()


def describe(model):
    """[path, node] of each input grid, once for each place it has; not of one that was changed (hooks, a subclass)."""
    return [
        [path, architecture.Describer(architecture.refuse)(module)]
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, grids.InputGrid) and standard.standard_name(module)
    ]


def check(model):
    """Raise an error unless the tensors of a model's input grids are such as a grid has; ready them for use."""
    for grid in model.modules():
        if isinstance(grid, grids.InputGrid):
            _remade(grid, grid.scale, grid.zero_point, grid.growth)
            grid._settle()


def build(header, content, length):
    """Path -> InputGrid of a file, for putting them into a module; raises CorruptFileError.

    content  content.Content;  length  of the file, in bytes
    """
    listed, budget = header.get("inputs", ()), architecture.Budget(length, len(content.entries))
    if header["model"] is not None:
        listed = architecture.nodes(header["model"], "InputGrid", len(content.entries))
    indices = {entry.name: index for index, entry in enumerate(content.entries)}
    found, made = {}, {}
    for path, node in listed:
        empty = architecture.build(node, budget)
        if not isinstance(empty, grids.InputGrid) or path in found:
            raise CorruptFileError(f"{str(path)[:200]!r} is no input grid, or listed twice")
        own = {name: indices[f"{path}.{name}"] for name in empty.state_dict()}
        values = {name: content.values[index] for name, index in own.items()}
        key = id(values["scale"])
        if key not in made:
            made[key] = _remade(empty, **values)
        if empty.growth is not None:
            made[key].growth.requires_grad_(own["growth"] not in content.frozen)
        found[path] = made[key]
    return found


def places(into, names, rounded):
    """Where the tensors of a file belong in a user's module, and what its input grids are put around.

    into     module;  names  of the file's tensors;  rounded  path -> InputGrid, as from `build`
    returns  dict of name in the file -> name in `into`, the tensors of input grids left out; dict of path of an input
             grid -> name that its layer gets beside it, or None where `into` has an input grid already
    raises   ValueError for an input grid that has no place in `into`
    """
    if not rounded:
        return {name: name for name in names}, {}
    own = dict(into.named_modules(remove_duplicate=False))
    inside, around, shorter = _children(names, 2 + max(path.count(".") for path in own)), {}, {}
    for path in rounded:
        parent, _, name = path.rpartition(".")
        others = inside.get(parent, set()) - {name}
        if isinstance(own.get(path), grids.InputGrid):
            around[path] = None
        elif parent and parent in own and path not in own and len(others) == 1:
            (around[path],) = others
            shorter[f"{parent}.{around[path]}"] = parent
        else:
            raise ValueError(f"the file rounds the inputs of {parent[:200]!r}; into has no layer there to be wrapped")
    kept = [name for name in names if name.rpartition(".")[0] not in rounded]
    return {name: _shortened(name, shorter) for name in kept}, around


def put(into, rounded, around):
    """Put input grids into a module, in place, each on its device; `rounded` and `around` as for `places`."""
    pairs = {}
    for path, inside in around.items():
        path, name = (path, inside) if inside is None else (path.rpartition(".")[0], path.rpartition(".")[2])
        parent, _, own = path.rpartition(".")
        holder, old = into.get_submodule(parent), into.get_submodule(path)
        device = next((one.device for one in [*old.parameters(), *old.buffers()]), None)
        grid = rounded[path if inside is None else f"{path}.{name}"].to(device)
        if inside is not None:
            grid = pairs.setdefault(id(old), nn.Sequential(OrderedDict({name: grid, inside: old})))
        holder._modules[own] = grid
    for module in into.modules():
        if isinstance(module, grids.InputGrid):
            module._settle()


def _remade(grid, scale, zero_point, growth=None):
    """An InputGrid like `grid` with these tensors; raises ValueError for tensors that it cannot have."""
    made = grids.InputGrid(scale, zero_point, grid.low, grid.high, grid.bits, learned=growth is not None)
    if growth is not None and growth.shape != scale.shape:
        raise CorruptFileError(f"a learned step size has shape {tuple(growth.shape)}, its scale {tuple(scale.shape)}")
    if growth is not None:
        made.growth.data = growth.data
    return made


def _children(names, most):
    """Path -> names of what is directly in it, for paths of less than so many parts."""
    found = {}
    for name in names:
        parts = name.split(".", most)
        for depth in range(1, len(parts)):
            found.setdefault(".".join(parts[:depth]), set()).add(parts[depth].split(".", 1)[0])
    return found


def _shortened(name, shorter):
    """A tensor's name with the path of a wrapped layer replaced; shorter  path in the file -> path in the module."""
    path, _, own = name.rpartition(".")
    while path and path not in shorter:
        path = path.rpartition(".")[0]
    return shorter[path] + name[len(path) :] if path else name
