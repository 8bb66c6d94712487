"""The architecture of any model as a node: standard layers as such, a custom module by what torch.fx traces.

    trace     the graph of a module's forward in one mode, training or eval
    proxy     what stands for a value while forward is traced; torch.fx records what is done with it
    constant  a tensor that forward uses and that is neither parameter nor buffer

A forward is traced several times, and the graphs must be equal: with proxies that say they are proxies, tensors or
tuples; with and without gradients and autocast; before and after an earlier call. What a graph would not repeat is so
noticed, or refused: calls that are not in the lists of `calls`, branches on values, random numbers, hooks, parts that
run without gradients or in other precision, and tensors that a call puts in the place of others. What no trace shows is
refused by the source of forward and of the functions that it names: catching exceptions, `type`, chance and the clock.

Source: Reed et al. 2022, arXiv:2112.08429 (torch.fx).
"""

import ast
import copy
import inspect
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from typing import NoReturn

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compresslab import checks
from compresslab.storage import architecture, calls, graph
from compresslab.storage.arguments import NotPlainError, encode
from compresslab.storage.standard_layers import get_standard_name

_UNSEEN = {"type", "__class__", "suppress", "random", "rand", "randint", "default_rng", "getrandbits", "urandom"}
_UNSEEN |= {"time", "time_ns", "monotonic", "perf_counter", "process_time", "datetime"}
_TRACING = threading.Lock()  # fx patches nn.Module while it traces
_DISGUISES = (None, torch.Tensor, tuple)  # what isinstance is told that a proxy is; None: what it is


def describe(model: nn.Module) -> tuple[object, dict]:
    """Return the node of a model, and name -> tensor of what it needs beside its state dict.

    model   a copy that may be used up: without parametrizations or torch pruning
    raises  NotPlainError if it is not made of standard layers and cannot be traced into calls of the lists
    """
    custom = _CustomModules()
    node = architecture.Describer(custom.describe)(model)
    return node, custom.extra


class _CustomModules:
    """Describe the modules that are not standard; `extra` is name -> tensor of what the state dict leaves out."""

    def __init__(self):
        self.extra, self._inside = {}, False

    def describe(self, describer: object, module: nn.Module, path: str) -> list:
        """Return a custom module as a node: its traced graphs and its children."""
        arguments, outermost = {}, not self._inside
        if outermost:
            graphs, constants = _find_graphs(module)
            modes = {key: graphs[mode] for key, mode in graph.MODES.items()}
            arguments = {"graph": graphs[True]} if graphs[True] == graphs[False] else {"graphs": modes}
            self.extra |= {f"{path}.{name}" if path else name: value for name, value in constants.items()}
        self._inside = True
        children = describer.describe_children(module, path)
        self._inside = not outermost
        return ["Module", {**arguments, **self._name_tensors(module, path)}, children]

    def _name_tensors(self, module, path):
        """Name a module's own tensors; those that its state dict leaves out go to the extra ones."""
        prefix = f"{path}." if path else ""
        buffers = [name for name, buffer in module._buffers.items() if buffer is not None]
        hidden = [name for name in buffers if name in module._non_persistent_buffers_set]
        self.extra |= {prefix + name: module._buffers[name] for name in hidden}
        constants = [name for name in self.extra if name.rpartition(".")[0] == path]
        names = {
            "parameters": [name for name, parameter in module._parameters.items() if parameter is not None],
            "buffers": [name for name in buffers if name not in hidden],
            "constants": sorted(name[len(prefix) :] for name in constants),
        }
        return {key: listed for key, listed in names.items() if listed}


class _Proxy(fx.Proxy):
    """A proxy that does as a tensor does, and may say that it is something else (see _DISGUISES)."""

    @property
    def __class__(self):
        return object.__getattribute__(self, "tracer").disguise or type(self)

    def __getattr__(self, name):
        if not hasattr(torch.Tensor, name):
            raise AttributeError(f"a tensor has no attribute {name!r}")
        return _Attribute(self, name)

    def __setattr__(self, name, value):
        if name not in ("tracer", "node"):
            self.tracer.refuse(f"sets the attribute {name!r} of a value")
        object.__setattr__(self, name, value)

    def __len__(self):
        self.tracer.refuse("asks for the length of a value")


class _Attribute(_Proxy, fx.proxy.Attribute):
    """An attribute or method of a proxy, recorded when it is used."""

    def __init__(self, root, attr):
        for name, value in {"root": root, "attr": attr, "tracer": root.tracer, "_node": None}.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name, value):
        object.__setattr__(self, name, value)


class _Tracer(fx.Tracer):
    """Stops at standard layers; only the inputs that forward demands are traced, the others have their default.

    disguise  what proxies say that they are;  switches  whether forward may switch gradients or autocast
    refusal   why forward cannot be traced, or None: it may have caught the exception
    kinds     classes of the modules whose forward ran
    """

    proxy_buffer_attributes = True

    def __init__(self, disguise=None, switches=False):
        super().__init__()
        self.disguise, self.refusal, self._thread = disguise, None, threading.get_ident()
        self.kinds = set()
        self._settings = None if switches else _get_settings()

    def refuse(self, reason: str) -> NoReturn:
        """Note why forward cannot be traced, and raise NotPlainError."""
        self.refusal = self.refusal or f"forward {reason}"
        raise NotPlainError(self.refusal)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the stand-in for a value; as fx's."""
        return _Proxy(node, self)

    def create_arg(self, value: object) -> object:
        """Return an argument as a graph holds it; as fx's."""
        return value.node if issubclass(type(value), fx.Proxy) else super().create_arg(value)

    def getattr(self, name: str, value: object, cache: dict) -> object:
        """Return an attribute of a module; as fx's."""
        return value if issubclass(type(value), fx.Proxy) else super().getattr(name, value, cache)

    def create_node(self, *arguments: object, **keywords: object) -> fx.Node:
        """Record a step, unless forward has switched gradients or autocast before it."""
        if self._settings not in (None, _get_settings()):
            self.refuse("switches gradients or autocast")
        return super().create_node(*arguments, **keywords)

    def to_bool(self, value: fx.Proxy) -> bool:
        """Refuse: a branch on the values of an input."""
        self.refuse("depends on the values of its input")

    def iter(self, value: fx.Proxy) -> Iterator:
        """Go through a value of known length."""
        try:
            return super().iter(value)
        except fx.proxy.TraceError as error:
            self.refusal = self.refusal or f"forward goes through a value whose length it does not know: {error}"
            raise

    def call_module(self, module: nn.Module, forward: Callable, arguments: tuple, keywords: dict) -> object:
        """Record a call; one by another thread, which fx redirects here too, just runs."""
        if threading.get_ident() != self._thread:
            return forward(*arguments, **keywords)
        if get_standard_name(module) is None:
            self.kinds.add(type(module))
        return super().call_module(module, forward, arguments, keywords)

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        """Tell whether a module is a step of its own: a standard layer, or a sequence of them."""
        inner = module.modules() if isinstance(module, nn.Sequential) else [module]
        return all(get_standard_name(part) for part in inner)

    def create_args_for_root(self, forward: Callable, is_module: bool, concrete_args: object = None) -> tuple:
        """Record the inputs of forward, all that it demands."""
        known = list(inspect.signature(forward).parameters.values())[1:]
        demanded = [item for item in known if item.default is item.empty]
        demanded = [item for item in demanded if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)]
        if any(item.kind is item.KEYWORD_ONLY for item in demanded):
            raise NotPlainError("forward demands keyword arguments")
        if not demanded:
            raise NotPlainError("forward names no input")
        self.kinds.add(type(self.root))
        return forward, [self.root, *(self.create_proxy("placeholder", item.name, (), {}) for item in demanded)]


class _NoChance(TorchDispatchMode):
    """Refuses to draw at random: what depends on it would be the same for ever."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if torch.Tag.nondeterministic_seeded in function.tags:
            raise NotPlainError(f"forward draws at random ({function})")
        return function(*arguments, **(keywords or {}))


def _get_settings():
    """Return what torch computes with in this thread, beside the values."""
    casts = [torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), casts


def _find_graphs(module):
    """Find the graphs of a module in training and eval mode, and its constants by path."""
    if isinstance(module, graph.GraphModel):
        return module._clab_graphs, {}
    _check_calls(module)
    with _TRACING, torch.random.fork_rng(devices=[]):
        traces = {mode: _trace_mode(module, mode) for mode in (True, False)}
    (train, constants), (evaluation, again) = traces[True], traces[False]
    same = constants.keys() == again.keys() and all(
        torch.equal(value, again[name]) for name, value in constants.items()
    )
    if not same:
        raise NotPlainError("forward uses tensors that differ from call to call")
    modes = {part.training for part in module.modules() if get_standard_name(part) is None}
    if train != evaluation and len(modes) > 1:
        raise NotPlainError("forward depends on the mode of parts that are not in the same mode")
    return {True: train, False: evaluation}, constants


def _check_calls(module):
    for part in module.modules():
        hooks = part._forward_hooks or part._forward_pre_hooks
        odd = hooks or "forward" in vars(part) or type(part).__call__ not in _CALLS
        if odd and get_standard_name(part) is None:
            raise NotPlainError(f"{type(part).__name__} is called in another way than through its class's forward")


def _check_sources(kinds):
    """Refuse classes whose forward depends on what no trace shows (see _UNSEEN), or catches exceptions."""
    waiting, checked = [(kind.forward, kind) for kind in kinds], set()
    while waiting:
        function, kind = waiting.pop()
        function = inspect.unwrap(function)
        home = str(getattr(function, "__module__", None)).partition(".")[0]
        code = getattr(function, "__code__", None)
        if code is None or (code, kind) in checked or home in ("torch", *sys.stdlib_module_names - {"__main__"}):
            continue
        checked.add((code, kind))
        names = _list_names(code)
        if unseen := sorted(names & _UNSEEN):
            raise NotPlainError(f"{function.__qualname__} uses {unseen[0]!r}, which a trace does not show")
        if _catches(function):
            raise NotPlainError(f"{function.__qualname__} may catch exceptions that a trace does not raise")
        # The functions that it names: of its module, and of its class.
        named = [function.__globals__.get(name) for name in names] + [getattr(kind, name, None) for name in names]
        waiting += [(value, kind) for value in named if isinstance(value, types.FunctionType)]


def _list_names(code):
    """Return the global names and attributes that code mentions, with those of the functions inside it."""
    inner = [value for value in code.co_consts if isinstance(value, types.CodeType)]
    return set(code.co_names).union(*map(_list_names, inner))


def _catches(function):
    """Tell whether a function has an `except` that does not raise; without its source, whether it may have one."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return bool(getattr(function.__code__, "co_exceptiontable", True))
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    return not all(isinstance(handler.body[-1], ast.Raise) for handler in handlers)


_CALLS = {kind.__call__ for kind in (nn.Module, nn.ParameterList, nn.ParameterDict)}  # the lists' only refuse


def _trace_mode(module, training):
    """Trace a module in one mode, in all ways that must give the same graph."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        twin = copy.deepcopy(module).train(training)
        tracer = _Tracer()
        traced, constants = _trace(twin, tracer)
        _check_sources(tracer.kinds)
        if _trace_again(twin) != traced:
            raise NotPlainError("forward depends on what an earlier call left, on the time, or on chance")
        for disguise in _DISGUISES[1:]:
            if _trace(copy.deepcopy(module).train(training), _Tracer(disguise))[0] != traced:
                raise NotPlainError("forward asks for the class of a value that depends on its input (isinstance)")
    with torch.inference_mode(), torch.autocast("cpu"):
        if _trace(copy.deepcopy(module).train(training), _Tracer(switches=True))[0] != traced:
            raise NotPlainError("forward depends on gradients or autocast")
    return traced, constants


def _trace_again(twin):
    """Return the graph of a module that was traced before, or None where it cannot be traced any more."""
    try:
        return _trace(twin, _Tracer())[0]
    except NotPlainError:
        return None


def _trace(twin, tracer):
    """Return the graph of a module as plain data, and its constants by path."""
    before = _get_tensors(twin)
    try:
        with _NoChance():
            traced = tracer.trace(twin)
        if tracer.refusal is not None:
            raise NotPlainError(tracer.refusal)
        graph_and_constants = _encode_graph(traced, twin)
    except NotPlainError:
        raise
    except Exception as error:  # forward is the user's code, given something that is not a tensor
        reason = tracer.refusal or checks.reason(error)
        raise NotPlainError(f"{type(twin).__name__} cannot be traced: {reason}") from error
    for path, value in _get_tensors(twin).items():
        if not _is_in_place(value, path, before.get(path)):
            raise NotPlainError(f"forward puts another tensor in the place of {path!r}")
        holder, _, attribute = path.rpartition(".")
        part = twin.get_submodule(holder)
        (part._parameters if attribute in part._parameters else part._buffers)[attribute] = before[path]
    return graph_and_constants


def _get_tensors(module):
    """Return path -> parameter or buffer."""
    tensors = {}
    for path, part in module.named_modules():
        inside = {**part._parameters, **part._buffers}
        tensors |= {f"{path}.{name}" if path else name: value for name, value in inside.items()}
    return tensors


def _is_in_place(value, path, before):
    """Tell whether a path still has the tensor from before, perhaps after calls that change it (count.add_(1))."""
    if type(value) is not _Proxy:
        return value is before
    node = value.node
    while node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__"):
        node = node.args[0]
    return node.op == "get_attr" and node.target == path


def _encode_graph(traced, twin):
    """Return a traced fx.Graph as plain data, and its constants by path."""
    numbers, inputs, steps, constants, output = {}, [], [], {}, None

    def refer(value):
        return {"node": numbers[value]} if isinstance(value, fx.Node) else None

    for node in traced.nodes:
        if node.op == "output":
            output = encode(node.args[0], refer)
            continue
        if node.op == "placeholder":
            inputs.append(node.target)
        else:
            steps.append([*_encode_target(node, twin, constants), encode(tuple(node.args), refer)])
            if node.kwargs:
                steps[-1].append({key: encode(value, refer) for key, value in node.kwargs.items()})
        numbers[node] = len(numbers)
    encoded = {"inputs": inputs, "steps": steps, "output": output}
    graph.make_program(encoded)
    return encoded, constants


def _encode_target(node, twin, constants):
    """Return the kind and name of a step; raises NotPlainError if it is not in the lists."""
    if node.op == "call_module":
        return "module", node.target
    if node.op == "call_method" and node.target in calls.METHODS:
        return "method", node.target
    if node.op == "call_function" and (name := calls.function_name(node.target)):
        if name == "attribute" and node.args[1] not in calls.ATTRIBUTES:
            raise NotPlainError(f"forward reads the attribute {node.args[1]!r}")
        return "function", name
    if node.op == "get_attr":
        path, _, attribute = node.target.rpartition(".")
        holder = twin.get_submodule(path)
        path = next(name for name, part in twin.named_modules() if part is holder)  # the first of its names
        target = f"{path}.{attribute}" if path else attribute
        if attribute not in holder._parameters and attribute not in holder._buffers:
            value = getattr(holder, attribute)
            if not isinstance(value, torch.Tensor) or get_standard_name(holder):
                raise NotPlainError(f"forward uses {node.target}, a {type(value).__name__}")
            constants[target] = value.detach()
        return "tensor", target
    raise NotPlainError(f"forward calls {node.target}, which is not in the lists of compresslab.storage.calls")
