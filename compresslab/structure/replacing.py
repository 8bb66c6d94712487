"""Putting other modules in the place of a model's layers: where that can be done without anyone noticing, and how.

A layer can be replaced where the model only calls it. Where a forward reads its weight itself (torch's
MultiheadAttention does, for speed) the stand-in, which has no such tensor, would break it.
"""

import dis
import functools
from types import FunctionType

from torch import nn

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks"),
    *("_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)
TENSORS = ("weight", "bias")
OF_LAYERS = (*TENSORS, *"in_features out_features in_channels out_channels kernel_size stride padding".split())
GLOBAL = "a global name"


def replace(model, stand_ins):
    """Put modules in the place of others, everywhere they are used; returns the model, or what replaces all of it.

    model      changed in place;  stand_ins  dict of module -> module, which takes over its mode and its hooks
    """
    for old, new in stand_ins.items():
        new.train(old.training)
        vars(new).update({name: vars(old)[name] for name in HOOKS if name in vars(old)})
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in stand_ins:
                parent._modules[name] = stand_ins[child]
    return stand_ins.get(model, model)


def read_from_outside(model):
    """Layers of which a forward reads more than it may of an nn.Sequential, such as the weight.

    returns  dict of qualified name -> name of the class that reads it, "MultiheadAttention"

    Found in the bytecode of the forwards in the model and of the methods they call. What is read of a local variable
    counts for every layer below the reader whose name fits; what a function outside the class reads is not seen.
    """
    names, found = [name for name, _ in model.named_modules(remove_duplicate=False)], {}
    for reader, module in model.named_modules(remove_duplicate=False):
        prefix = f"{reader}." if reader else ""
        for own, path in _reads(type(module)):
            for name in names:
                below = name.removeprefix(prefix) if name.startswith(prefix) and name != reader else None
                if below is not None and _fits(below, own, path):
                    found.setdefault(name, type(module).__name__.removeprefix("Parametrized"))
    return found


def _fits(name, own, path):
    return name == path if own else not path or f".{name}".endswith(f".{path}")


def _reads(kind):
    """Where the forward of a class reads attributes that an nn.Sequential lacks: pairs (own, path).

    own  True for self.path, False for the path of another variable, "" for the variable itself
    """
    return {read for function in _reached(kind) for read in _reads_of(function)}


def _reached(kind):
    """The forward of a module's class, the methods that it names, those that they name, and so on."""
    reached, waiting = {}, ["forward"]
    while waiting:
        name = waiting.pop()
        method = getattr(kind, name, None)
        method = getattr(method, "fget", method)  # of a property
        if name not in reached and isinstance(method, FunctionType) and method is not getattr(nn.Module, name, None):
            reached[name] = method
            waiting += method.__code__.co_names
    return list(reached.values())


@functools.lru_cache(maxsize=1024)
def _reads_of(function):
    """Pairs (own, path) of the attributes that a function reads: self.fc.weight gives (True, "fc")."""
    itself, found = next(iter(function.__code__.co_varnames), None), set()
    start, path = None, []
    for step in dis.get_instructions(function):
        if step.opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
            start, path = step.argval[-1] if isinstance(step.argval, tuple) else step.argval, []
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            own = start == itself
            if step.argval in (OF_LAYERS if own and path else () if own or start is GLOBAL else TENSORS):
                found.add((own, ".".join(path)))
            path.append(step.argval)
        elif step.opname not in ("EXTENDED_ARG", "CACHE"):
            start, path = GLOBAL if step.opname == "LOAD_GLOBAL" else None, []
    return found
