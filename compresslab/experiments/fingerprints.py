"""Fingerprints of networks and techniques, which the journal's keys are made of.

A fingerprint is the SHA-256 of a description: tensors by their bytes, settings by their values, functions and classes
by their name and, unless a library wrote them, the source of their module and of what it imports. What has no such
description (a class of a notebook, a lambda, a lock, a module edited since the start of the process) makes it unnamed:
it stands for one object in this process, and nothing that was measured under it is used again.
"""

import ast
import functools
import hashlib
import importlib.util
import math
import sys
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType

import torch
from torch import nn

from compresslab import checks
from compresslab.techniques import Technique
from compresslab.weights import layers

UNNAMED = "unnamed-"
_START = time.time()
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_LIBRARIES = {"torch", "torchvision", "numpy", "compresslab", *sys.stdlib_module_names}
_READ_AS_SOURCE = "compresslab.techniques."  # a technique that is edited here is measured anew
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_tokens = weakref.WeakKeyDictionary()


class _UnnamedError(Exception):
    """Something has no description."""


def of_model(model: nn.Module) -> str:
    """Return the fingerprint of a model: SHA-256 (hex), or an unnamed one.

    It covers classes, settings, hooks and tensors, not the mode; a copy, or a file loaded elsewhere, has the same.
    """
    checks.module("model", model, wrapped=True)
    return _digest(lambda: _Describer(model).describe_model(), model)


def of_technique(technique: Technique) -> str:
    """Return the fingerprint of a technique's functions: 16 hex digits, or an unnamed one."""
    functions = technique.apply, technique.training
    fingerprint = _digest(lambda: [technique.depends, *map(_Describer().describe, functions)], *functions)
    return fingerprint if is_unnamed(fingerprint) else fingerprint[:16]


def is_unnamed(fingerprint: str) -> bool:
    """Tell whether a fingerprint stands for an object that has no description."""
    return fingerprint.startswith(UNNAMED)


def kind_of(module: nn.Module) -> str:
    """Return the name of a module's class, without torch's "Parametrized"."""
    return type(module).__name__.removeprefix("Parametrized")


def _digest(describe: Callable, *things: object) -> str:
    """Hash a description; without one, make up a fingerprint of these things."""
    try:
        return hashlib.sha256(repr(describe()).encode()).hexdigest()
    except (_UnnamedError, RecursionError):  # something holds itself
        return UNNAMED + "-".join(map(_make_token, things))


def _make_token(thing):
    """Make up a word for an object, the same for as long as it lives."""
    try:
        return _tokens.setdefault(thing, uuid.uuid4().hex)
    except TypeError:  # it cannot be referred to weakly
        return uuid.uuid4().hex if thing is not None else ""


class _Describer:
    """Describes values by nested lists of text: the same in every process, different for different values.

    model  its modules, parameters and buffers are described by their names, wherever they are met
    """

    def __init__(self, model: nn.Module | None = None):
        parts = [] if model is None else [*model.named_modules(), *model.named_parameters(), *model.named_buffers()]
        self.model, self.names = model, {id(part): name for name, part in parts}

    def describe_model(self) -> list:
        """Describe the model: its modules, its tensors, and which are not trained."""
        tensors = [*layers.effective_state(self.model).items(), *self.model.named_buffers()]
        return [
            [[name, *self._describe_module(module)] for name, module in self.model.named_modules()],
            [[name, _describe_tensor(value) if isinstance(value, torch.Tensor) else self.describe(value)]
             for name, value in tensors],
            [name for name, weight in self.model.named_parameters() if not weight.requires_grad],
        ]  # fmt: skip

    def describe(self, value: object) -> object:
        """Describe any value; raises _UnnamedError for one that has no description."""
        if type(value) in _PLAIN:
            return repr(value)
        if id(value) in self.names:
            return ["part", self.names[id(value)]]
        if isinstance(value, torch.Tensor):
            return _describe_tensor(value)
        if isinstance(value, nn.Module):
            return _Describer(value).describe_model()
        if isinstance(value, (list, tuple)):  # alike, for a file knows lists alone
            return ["list", *map(self.describe, value)]
        if isinstance(value, Mapping):
            return ["dict", *([self.describe(key), self.describe(item)] for key, item in value.items())]
        if isinstance(value, (set, frozenset)):
            return ["set", *sorted(str(self.describe(item)) for item in value)]
        if isinstance(value, type):
            return self._describe_class(value)
        if isinstance(value, FunctionType):
            if "<" in value.__qualname__:  # a lambda, or made within a function: many have this name
                raise _UnnamedError
            return _describe_name(value)
        if isinstance(value, weakref.ref):
            return self.describe(value())
        return self._describe_by_pickle(value)

    def _describe_module(self, module):
        """Describe a module without its parameters, buffers and modules."""
        from_torch = all(_top(base) in ("torch", "builtins") for base in type(module).__mro__)
        state = vars(module) if from_torch else module.__getstate__()
        state = state if isinstance(state, dict) else vars(module)
        hidden = {*vars(nn.Module()), "_compiled_call_impl"}
        settings = []
        for name, value in sorted(state.items()):
            cached = isinstance(getattr(type(module), name, None), functools.cached_property)
            if name in hidden or cached or (from_torch and name.startswith("_")):  # torch's caches are private
                continue
            try:
                settings.append([name, self.describe(value)])
            except _UnnamedError:
                if not from_torch or callable(value):
                    raise
        hooks = [hook for name in _HOOKS for hook in vars(module).get(name, {}).values()]
        watched = [self.describe(hook) for hook in hooks if _top(getattr(hook, "func", hook)) != "compresslab"]
        traced = isinstance(module, torch.fx.GraphModule | torch.jit.ScriptModule)
        code = module.code if traced else ""
        return kind_of(module), module.extra_repr(), settings, watched, code, self.describe(type(module))

    def _describe_class(self, kind):
        """Describe a class by its bases."""
        words = []
        for base in kind.__mro__:
            if base.__name__.startswith("Parametrized") and _top(base) == "torch":
                continue
            words.append(_describe_name(base))
            if not _is_library(base.__module__):
                for name, value in vars(base).items():
                    if isinstance(value, FunctionType):  # somebody may have set it from outside
                        here = value.__module__ == base.__module__
                        words.append([name, value.__qualname__ if here else self.describe(value)])
        return words

    def _describe_by_pickle(self, value):
        """Describe an object by what a pickle of it would hold."""
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:  # whatever its class raises: it cannot be pickled
            raise _UnnamedError from error
        if isinstance(reduced, str):  # the name of a global
            return [_describe_name(type(value)), reduced]
        make, arguments, *rest = reduced
        contents = [part if isinstance(part, (dict, tuple)) or part is None else list(part) for part in rest[1:]]
        return [self.describe(part) for part in (make, arguments, *rest[:1], *contents)]


def _describe_tensor(tensor):
    values = tensor.detach()
    values = values if values.layout == torch.strided else values.to_dense()
    content = b"" if values.is_meta else values.cpu().contiguous().flatten().view(torch.uint8).numpy()
    return [str(tensor.dtype), tuple(tensor.shape), hashlib.sha256(content).hexdigest()]


def _describe_name(thing):
    """Describe a class or function by its name and its version or source text."""
    module, name = str(thing.__module__), thing.__qualname__
    if _is_library(module):
        return [f"{module}.{name}", str(getattr(sys.modules.get(_top(thing)), "__version__", ""))]
    if "<" in name:  # a class made within a function
        raise _UnnamedError
    return [f"{module}.{name}", _source_digests(module)]


def _source_digests(name):
    """Digest the source of a module and its imports, and their plain globals.

    Libraries are left out. Raises _UnnamedError for a module without a source file, with one that was changed since the
    start, or with a global that a notebook has set.
    """
    digests, waiting = {}, [name]
    while waiting:
        name = waiting.pop()
        module, parent = sys.modules.get(name), sys.modules.get(name.rpartition(".")[0])
        is_attribute = module is None and hasattr(parent, name.rpartition(".")[2])
        if name in digests or is_attribute or _is_library(name):
            continue
        file = getattr(module, "__file__", None)  # None for a notebook, and for what a function will import later
        modified = Path(file).stat().st_mtime if file and file.endswith(".py") else math.inf
        globals_of = {} if module is None else vars(module)
        code = [value for value in globals_of.values() if isinstance(value, FunctionType | type)]
        if modified > _START or (name != "__main__" and any(value.__module__ == "__main__" for value in code)):
            raise _UnnamedError
        text, imported = _read_source(file, modified, module.__package__ or "")
        settings = [(key, value) for key, value in sorted(globals_of.items()) if type(value) in _PLAIN]
        settings = [(key, repr(value)) for key, value in settings if not key.startswith("__")]
        digests[name] = hashlib.sha256(repr([text, settings]).encode()).hexdigest()
        waiting += imported
    return sorted(digests.items())


@functools.lru_cache(maxsize=1024)
def _read_source(file, modified, package):
    """Return the digest of a source file, and the names of its imports."""
    text, imported = Path(file).read_bytes(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package or None)
            imported |= {base, *(f"{base}.{alias.name}" for alias in node.names if alias.name != "*")}
    return hashlib.sha256(text).hexdigest(), sorted(imported)


def _is_library(name):
    """Tell whether a module is installed, or not there at all."""
    top = str(name).partition(".")[0]
    if str(name).startswith(_READ_AS_SOURCE) or top == "__main__":
        return False
    if top in _LIBRARIES:
        return True
    module = sys.modules.get(top)
    spec = importlib.util.find_spec(top) if module is None else getattr(module, "__spec__", None)
    if spec is None:  # not installed; or a module that was made by hand
        return module is None
    folders = [spec.origin or "", *(spec.submodule_search_locations or ())]
    return any(part in ("site-packages", "dist-packages") for folder in folders for part in Path(folder).parts)


def _top(thing):
    """Name of the package that a class or function is from."""
    return str(getattr(thing, "__module__", "")).partition(".")[0]
