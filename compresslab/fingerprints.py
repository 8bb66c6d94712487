"""Digests of what a measurement depends on: of a network, and of the functions of a technique.

The same in every process for what is the same; another for what may lead to other numbers.
"""

import dis
import functools
import hashlib
import sys
import uuid
import weakref
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType

import torch
from torch import nn

from compresslab import checks, layers

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_AROUND = (property, staticmethod, classmethod, functools.cached_property, type(functools.cache(len)))
_NOTES = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_LIBRARIES = {"torch", "numpy", "compresslab", *sys.stdlib_module_names}
_tokens = weakref.WeakKeyDictionary()


def of_model(model):
    """SHA-256 (hex) of a model: its layers with what their forward may read, hooks and attributes, private ones too,
    the code of those that torch did not write, its tensors as they act.

    A copy, and the same model saved and loaded, have the same fingerprint, in every process; whether it is in training
    mode is left out. An attribute that no pickle could hold (a lock) is told by which object it is, in this process.
    """
    words = _Words(checks.module("model", model, wrapped=True))
    return hashlib.sha256(repr(words.of_model(model)).encode()).hexdigest()


def of_technique(technique):
    """Digest (16 hex digits) of what a technique's functions do, which changes with their code."""
    words, told = _Words(), technique.depends
    for function in (technique.apply, technique.training):
        if isinstance(function, functools.partial):
            told += words((function.args, function.keywords))
            function = function.func
        told += words.of_code(function)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def kind_of(module):
    """Name of a module's class, without the "Parametrized" that torch's parametrize puts before it."""
    return type(module).__name__.removeprefix("Parametrized")


class _Words:
    """Values as text: the same for equal values, in every process, and another for different ones.

    What libraries wrote is told by its name, whatever else by what it is made of: functions by their code, objects by
    what a pickle of them would hold. What has no words at all, such as a lock, is told by which object it is.
    model  its modules, parameters and buffers are told by their names
    """

    def __init__(self, model=None):
        parts = [] if model is None else [*model.named_modules(), *model.named_parameters(), *model.named_buffers()]
        self.known = {id(part): (part, f"its {name}") for name, part in parts}  # held, so that no id is used again
        self.path = []  # what is being told, outermost first

    def __call__(self, value):
        return repr(value) if type(value) in _PLAIN else self._once(id(value), value, self._told)

    def of_model(self, model):
        """Everything that a model's outputs and its training depend on, as a list."""
        told = [self._module(name, module) for name, module in model.named_modules()]
        tensors = [*layers.effective_state(model).items(), *model.named_buffers()]
        told += [(name, self._tensor(one) if isinstance(one, torch.Tensor) else self(one)) for name, one in tensors]
        return [*told, [name for name, weight in model.named_parameters() if not weight.requires_grad]]

    def of_code(self, function):
        """A function's code, a library's too."""
        return self._once(("code", id(function)), function, self._code)

    def _once(self, key, value, told):
        """`told(value)` as a digest, found once; within itself a value is told by how far outside it begins."""
        if key in self.path:
            return f"{len(self.path) - self.path.index(key)} around"
        if key not in self.known:
            self.path.append(key)
            self.known[key] = value, hashlib.sha256(repr(told(value)).encode()).hexdigest()
            self.path.pop()
        return self.known[key][1]

    def _told(self, value):
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, nn.Module):
            return self.of_model(value)
        if type(value) in (list, tuple, torch.Size):  # alike, for a file knows lists alone
            return [*map(self, value)]
        if type(value) is dict:
            return ["dict", *((self(name), self(one)) for name, one in value.items())]
        if isinstance(value, (set, frozenset)):
            return ["set", *sorted(map(self, value))]
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, FunctionType):
            return _name(value) if _of_library(value) else self._code(value)
        if isinstance(value, _AROUND):
            return [self(getattr(value, name, None)) for name in ("fget", "fset", "__wrapped__", "func")]
        if isinstance(value, weakref.ref):
            return self(value())
        if isinstance(value, _NOTES):  # they come and go with what they are about
            return _name(type(value))
        return value.__name__ if isinstance(value, ModuleType) else self._pickled(value)

    def _module(self, name, module):
        """A module without its parameters, buffers and modules."""
        kind, own = type(module), not all(_top(one) in ("torch", "builtins") for one in type(module).__mro__)
        state = module.__getstate__() if own else vars(module)
        state = state if isinstance(state, dict) else vars(module)
        hidden = {*vars(nn.Module()), "_compiled_call_impl", *(_left_behind(kind) if own else ())}
        held = {name: one for name, one in sorted(state.items()) if name not in hidden}
        if not own:  # torch keeps caches in its modules, too
            held = {name: one for name, one in held.items() if name[0] != "_" and _is_setting(one)}
        code = module.code if isinstance(module, torch.fx.GraphModule | torch.jit.ScriptModule) else ""
        hooks = [hook for name in _HOOKS for hook in vars(module).get(name, {}).values() if not _is_ours(hook)]
        told = {name: self(one) for name, one in held.items()}
        return name, kind_of(module), module.extra_repr(), told, code, [*map(self, hooks)], self(kind)

    def _tensor(self, tensor):
        values = tensor.detach()
        values = values if tensor.layout == torch.strided else values.to_dense()
        content = b"" if tensor.is_meta else values.cpu().contiguous().flatten().view(torch.uint8).numpy()
        return str(tensor.dtype), tuple(tensor.shape), hashlib.sha256(content).hexdigest()

    def _class(self, kind):
        """The names of a class and its bases; of those that no library wrote what they are made of."""
        own = [one for one in kind.__mro__ if not _of_library(one)]
        held = [(name, one) for kind in own for name, one in vars(kind).items() if _counts(name, one)]
        bases = [_name(one) for one in kind.__mro__ if one not in own and not one.__name__.startswith("Parametrized")]
        return bases, [(name, self(one)) for name, one in held]

    def _code(self, function):
        """What a function does: bytecode, defaults, closure, and what it uses of its own module."""
        while hasattr(function, "_torchdynamo_orig_callable"):
            function = function._torchdynamo_orig_callable
        code = getattr(function, "__code__", None)
        if code is None:
            return self(function)
        codes = [*_nested(code)]
        held = [function.__defaults__, function.__kwdefaults__]
        held += [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
        read = [name for code in codes for name in _globals_of(code) if name in function.__globals__]
        used = [(name, function.__globals__[name]) for name in read]
        return [*map(_bytecode, codes)], [*map(self, held)], [(name, self._used(one, function)) for name, one in used]

    def _used(self, value, function):
        """A global that a function uses; functions and classes of other modules are told by their names."""
        if not callable(value) or isinstance(value, nn.Module) or not hasattr(value, "__qualname__"):
            return self(value)
        if value.__module__ != function.__module__:
            return _name(value)
        return self.of_code(value) if isinstance(value, FunctionType) else self(value)

    def _pickled(self, value):
        """An object by what a pickle of it would hold."""
        try:
            held = value.__reduce_ex__(4)
        except Exception:  # whatever its class raises: it cannot be pickled
            return _token(value)
        if isinstance(held, str):
            return _name(type(value)), held
        make, given, state, *items = held if len(held) > 2 else (*held, None)
        state = sorted(state.items(), key=str) if type(state) is dict else state
        return [*map(self, (make, given, state)), *(self(list(one)) for one in items if one is not None)]


def _token(thing):
    """A word for an object that has none: its own for as long as it lives, and never another's."""
    try:
        return _tokens.setdefault(thing, uuid.uuid4().hex)
    except TypeError:  # nothing can be noted about it: another word each time
        return uuid.uuid4().hex


def _top(thing):
    """Name of the package that a class or function is from."""
    return str(thing.__module__).partition(".")[0]


def _of_library(thing):
    return _top(thing) in _LIBRARIES


def _is_ours(hook):
    """Whether a hook is one with which the workbook looks on."""
    function = hook.func if isinstance(hook, functools.partial) else hook
    return _top(function) == "compresslab"


def _name(thing):
    return f"{thing.__module__}.{thing.__qualname__}"


def _is_setting(value):
    """Whether an attribute of one of torch's modules is a setting of it: plain values, tensors, functions."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_setting, value))
    if isinstance(value, dict):
        return all(map(_is_setting, [*value, *value.values()]))
    functions = (FunctionType, BuiltinFunctionType, MethodType, functools.partial)
    return isinstance(value, (*_PLAIN, *functions, torch.Tensor, torch.dtype))


def _counts(name, value):
    """Whether an entry of a class says what its objects do: not what Python notes there."""
    special = name.startswith("__") and name.endswith("__")
    return name != "_abc_impl" and (not special or isinstance(value, (FunctionType, *_AROUND)))


@functools.lru_cache(maxsize=256)
def _left_behind(kind):
    """Names of attributes that say nothing about a class's objects but what they have done so far: cached properties,
    and what forward writes and no method reads, such as the attention that it shows of its last batch.
    """
    own = [(name, one) for base in kind.__mro__ if not _of_library(base) for name, one in vars(base).items()]
    methods = [(name, code) for name, one in own if isinstance(one, FunctionType) for code in _nested(one.__code__)]
    used = [(name, one.opname, one.argval) for name, code in methods for one in dis.get_instructions(code)]
    written = {name for method, way, name in used if method == "forward" and way == "STORE_ATTR"}
    cached = {name for name, one in own if isinstance(one, functools.cached_property)}
    return cached | written - {name for _, way, name in used if way != "STORE_ATTR"}


@functools.lru_cache(maxsize=4096)
def _globals_of(code):
    """Names of the globals that a code object reads, in order."""
    return sorted({one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")})


def _nested(code):
    """A code object, and those of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _bytecode(code):
    """The instructions and constants of a code object, the same in every process."""
    held = [one for one in code.co_consts if not isinstance(one, CodeType)]
    told = [sorted(map(repr, one)) if isinstance(one, frozenset) else repr(one) for one in held]  # sets have no order
    return code.co_code.hex(), code.co_names, told
