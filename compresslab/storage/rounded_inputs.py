"""Grids on the inputs of layers (grids.InputGrid): those of a file, and putting them into a module that has none.

A layer whose inputs are rounded stands in its model as Sequential(input=InputGrid, layer=…). A user's module of the
plain architecture has the layer itself there, and gets it wrapped.
"""

from collections import OrderedDict
from collections.abc import Iterable

from torch import nn

from compresslab.storage import architecture, standard_layers
from compresslab.storage.coder import Allowance
from compresslab.storage.container import CorruptFileError
from compresslab.storage.header import Content
from compresslab.weights import grids


def settle(model: nn.Module) -> None:
    """Make the learned step sizes of input grids plain scales, in place: no reader need compute an exponential."""
    for grid in model.modules():
        if isinstance(grid, grids.InputGrid) and grid.growth is not None:
            grid.scale = grid.step_size.detach()
            grid.growth.data.zero_()


def describe(model: nn.Module) -> list:
    """Return [path, node] of each input grid, once for each place it has; not of a changed one (hooks, a subclass)."""
    return [
        [path, architecture.Describer(architecture.refuse)(module)]
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, grids.InputGrid) and standard_layers.get_standard_name(module)
    ]


def check(model: nn.Module) -> None:
    """Raise an error unless the tensors of a model's input grids are such as a grid has; ready them for use."""
    for grid in model.modules():
        if isinstance(grid, grids.InputGrid):
            _remake(grid, grid.scale, grid.zero_point, grid.growth)
            grid._settle()


def build(listed: list, content: Content, model: nn.Module | None, allowance: Allowance) -> dict:
    """Return path -> InputGrid of a file, for putting them into a module; raises CorruptFileError.

    listed  [path, node] of each, where there is no model, the one that was built from the file
    """
    places = [(path, architecture.build(node, allowance)) for path, node in listed]
    if model is not None:
        modules = model.named_modules(remove_duplicate=False)
        places = [(path, module) for path, module in modules if isinstance(module, grids.InputGrid)]
    indices = {entry.name: index for index, entry in enumerate(content.entries)}
    input_grids, made = {}, {}
    for path, empty in places:
        if not isinstance(empty, grids.InputGrid) or path in input_grids:
            raise CorruptFileError(f"{str(path)[:200]!r} is no input grid, or listed twice")
        known = {name: indices[f"{path}.{name}"] for name in empty.state_dict()}
        values = {name: content.values[index] for name, index in known.items()}
        key = id(values["scale"])
        if key not in made:
            made[key] = _remake(empty, **values)
        if empty.growth is not None:
            made[key].growth.requires_grad_(known["growth"] not in content.frozen)
        input_grids[path] = made[key]
    return input_grids


def find_places(into: nn.Module, names: Iterable, input_grids: dict) -> tuple[dict, dict]:
    """Find where the tensors of a file belong in a user's module, and what its input grids are put around.

    into     module;  names  of the file's tensors;  input_grids  path -> InputGrid, as from `build`
    returns  dict of name in the file -> name in `into`, the tensors of input grids left out; dict of path of an input
             grid -> name that its layer gets beside it, or None where `into` has an input grid already
    raises   ValueError for an input grid that has no place in `into`
    """
    if not input_grids:
        return {name: name for name in names}, {}
    known = dict(into.named_modules(remove_duplicate=False))
    inside, around, shorter = _find_children(names, 2 + max(path.count(".") for path in known)), {}, {}
    for path in input_grids:
        parent, _, name = path.rpartition(".")
        siblings = inside.get(parent, set()) - {name}
        if isinstance(known.get(path), grids.InputGrid):
            around[path] = None
        elif parent and parent in known and path not in known and len(siblings) == 1:
            (around[path],) = siblings
            shorter[f"{parent}.{around[path]}"] = parent
        else:
            raise ValueError(f"the file rounds the inputs of {parent[:200]!r}; into has no layer there to be wrapped")
    remaining = [name for name in names if name.rpartition(".")[0] not in input_grids]
    return {name: _replace_path(name, shorter) for name in remaining}, around


def put(into: nn.Module, input_grids: dict, around: dict) -> None:
    """Put input grids into a module, in place, each on its device; the arguments as of `find_places`."""
    pairs = {}
    for path, inside in around.items():
        path, name = (path, inside) if inside is None else (path.rpartition(".")[0], path.rpartition(".")[2])
        parent, _, own_name = path.rpartition(".")
        holder, old = into.get_submodule(parent), into.get_submodule(path)
        device = next((tensor.device for tensor in [*old.parameters(), *old.buffers()]), None)
        grid = input_grids[path if inside is None else f"{path}.{name}"].to(device)
        if inside is not None:
            grid = pairs.setdefault(id(old), nn.Sequential(OrderedDict({name: grid, inside: old})))
        holder._modules[own_name] = grid
    for module in into.modules():
        if isinstance(module, grids.InputGrid):
            module._settle()


def _remake(grid, scale, zero_point, growth=None):
    """Return an InputGrid like `grid` with these tensors; raises ValueError for tensors that it cannot have."""
    made = grids.InputGrid(scale, zero_point, grid.low, grid.high, grid.bits, learned=growth is not None)
    if growth is not None and growth.shape != scale.shape:
        raise CorruptFileError(f"a learned step size has shape {tuple(growth.shape)}, its scale {tuple(scale.shape)}")
    if growth is not None:
        made.growth.data = growth.data
    return made


def _find_children(names, most):
    """Return path -> names of what is directly in it, for paths of less than so many parts."""
    children = {}
    for name in names:
        parts = name.split(".", most)
        for depth in range(1, len(parts)):
            children.setdefault(".".join(parts[:depth]), set()).add(parts[depth].split(".", 1)[0])
    return children


def _replace_path(name, shorter):
    """Replace the path of a wrapped layer in a tensor's name; shorter  path in the file -> path in the module."""
    path, _, known = name.rpartition(".")
    while path and path not in shorter:
        path = path.rpartition(".")[0]
    return shorter[path] + name[len(path) :] if path else name
