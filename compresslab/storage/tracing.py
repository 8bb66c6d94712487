"""The architecture of any model as a node: standard layers as such, a class of its own by what torch.fx traces.

Its forward is traced in training mode and in eval mode. Refused is what a graph would not repeat: calls that are not in
the lists of `calls`, branches on values or on what class they are of, exceptions that are caught, random numbers and
the time, hooks, parts that run without gradients or in other precision, and state that a call changes, unless it is a
tensor changed in place.

Source: Reed et al. 2022, arXiv:2112.08429 (torch.fx).
"""

import contextlib
import copy
import datetime
import dis
import functools
import gc
import inspect
import random
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compresslab import checks
from compresslab.storage import architecture, calls, graph, plain
from compresslab.storage.plain import NotPlainError
from compresslab.storage.standard import standard_name


def describe(model):
    """The node of a model, and name -> tensor of what it needs beside its state dict.

    model   a copy that may be used up: without parametrizations or torch pruning
    raises  NotPlainError if it is not made of standard layers and cannot be traced into calls of the lists
    """
    extra = {}
    node = architecture.Describer(_Custom(extra))(model)
    return node, extra


class _Custom:
    """Describes the modules that are not standard, for architecture.Describer."""

    def __init__(self, extra):
        self._extra, self._inside = extra, False

    def __call__(self, describer, module, path):
        arguments, outermost = {}, not self._inside
        if outermost:
            graphs, constants = _graphs(module)
            modes = {key: graphs[mode] for key, mode in graph.MODES.items()}
            arguments = {"graph": graphs[True]} if graphs[True] == graphs[False] else {"graphs": modes}
            self._extra |= {f"{path}.{name}" if path else name: value for name, value in constants.items()}
        self._inside = True
        children = describer.children(module, path)
        self._inside = not outermost
        return ["Module", {**arguments, **self._tensors(module, path)}, children]

    def _tensors(self, module, path):
        """Names of a module's own tensors; those that its state dict leaves out go to the extra ones."""
        prefix = f"{path}." if path else ""
        buffers = [name for name, one in module._buffers.items() if one is not None]
        hidden = [name for name in buffers if name in module._non_persistent_buffers_set]
        self._extra |= {prefix + name: module._buffers[name] for name in hidden}
        used = [name for name in self._extra if name.rpartition(".")[0] == path]
        names = {
            "parameters": [name for name, one in module._parameters.items() if one is not None],
            "buffers": [name for name in buffers if name not in hidden],
            "constants": sorted(name[len(prefix) :] for name in used),
        }
        return {key: value for key, value in names.items() if value}


_TRACING = threading.Lock()  # fx patches nn.Module while it traces


class _Tracer(fx.Tracer):
    """Stops at standard layers; only the inputs that forward demands are traced, the others have their default.

    switches  whether forward may switch gradients or autocast, which a graph does not
    """

    proxy_buffer_attributes = True

    def __init__(self, switches):
        super().__init__()
        self._thread, self._settings = threading.get_ident(), None if switches else _settings()

    def proxy(self, node):
        return _Value(node, self)

    def create_node(self, *arguments, **keywords):
        if self._settings not in (None, _settings()):
            raise NotPlainError("forward switches gradients or autocast")
        return super().create_node(*arguments, **keywords)

    def call_module(self, module, forward, arguments, keywords):
        """Record a call; one by another thread, which fx redirects here too, just runs."""
        if threading.get_ident() != self._thread:
            return forward(*arguments, **keywords)
        return super().call_module(module, forward, arguments, keywords)

    def is_leaf_module(self, module, path):
        inner = module.modules() if isinstance(module, nn.Sequential) else [module]
        return all(standard_name(one) for one in inner)

    def create_args_for_root(self, forward, is_module, concrete_args=None):
        demanded = [
            one
            for one in list(inspect.signature(forward).parameters.values())[1:]
            if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        ]
        if any(one.kind is one.KEYWORD_ONLY for one in demanded):
            raise NotPlainError("forward demands keyword arguments")
        if not demanded:
            raise NotPlainError("forward names no input")
        return forward, [self.root, *(self.create_proxy("placeholder", one.name, (), {}) for one in demanded)]


class _NoChance(TorchDispatchMode):
    """Refuses to draw at random: what depends on it would be the same for ever."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if torch.Tag.nondeterministic_seeded in function.tags:
            raise NotPlainError(f"forward draws at random ({function})")
        return function(*arguments, **(keywords or {}))


def _settings():
    """What torch computes with in this thread, beside the values."""
    casts = [torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), casts


class _Guarded:
    """A traced value stands for a tensor, a number, a tuple: what code asks of it must not depend on its being neither.

    torch's own code may ask; fx records what it does then.
    """

    @property
    def __class__(self):
        _check_asked("asks for the class of a value that depends on its input (isinstance)")
        return type(self)

    def __getattr__(self, name):
        if name not in calls.METHODS | calls.ATTRIBUTES:
            _check_asked(f"reads the attribute {name!r} of a value")
        return _Attribute(self, name)

    def __setattr__(self, name, value):
        _check_asked(f"sets the attribute {name!r} of a value")
        object.__setattr__(self, name, value)


class _Value(_Guarded, fx.Proxy):
    """What a step gives."""


class _Attribute(_Guarded, fx.proxy.Attribute):
    """An attribute or method of it, recorded when it is used."""


def _check_asked(what):
    """Raise NotPlainError unless torch's code asked, be it through the standard library."""
    root, frame = _asker(sys._getframe(2))
    if root != "torch" or frame.f_code is torch.is_tensor.__code__:
        raise NotPlainError(f"forward {what}")


def _asker(frame):
    """Name of the package that runs a frame, and the frame; it may run it through the standard library."""
    while (root := frame.f_globals.get("__name__", "").partition(".")[0]) in sys.stdlib_module_names:
        frame = frame.f_back
    return root, frame


class _Watch:
    """Looks at the functions that a forward runs, but for torch's; `check` refuses what a graph would not repeat.

    An exception that is caught may come from the tracer alone, and another may come from other inputs.
    """

    def __enter__(self):
        self._seen, self._reasons, self._before = set(), [], sys.getprofile()
        self._collects = gc.isenabled()
        gc.disable()  # what others have the garbage collector call is no part of a forward
        sys.setprofile(self._look)
        return self

    def __exit__(self, *_):
        sys.setprofile(self._before)
        if self._collects:
            gc.enable()

    def check(self):
        if self._reasons:
            raise NotPlainError(f"forward {self._reasons[0]}")

    def _look(self, frame, event, function):
        """Called by Python at each call."""
        if event == "call" and frame.f_code is contextlib.suppress.__enter__.__code__:
            self._note(frame, "suppresses exceptions")
        elif event == "call" and frame.f_code not in self._seen:
            self._seen.add(frame.f_code)
            if frame.f_globals.get("__name__", "").partition(".")[0] not in sys.stdlib_module_names:
                self._note(frame, _unrepeatable(frame.f_code))
                self._note(frame, "draws at random (numpy)" if _draws(frame) else None)
        elif event == "c_call":
            owner = getattr(function, "__self__", None)
            if owner is time or owner is datetime.datetime or owner is datetime.date:
                self._note(frame, "asks for the time" if function.__name__ in _CLOCKS else None)
            elif issubclass(type(owner), random.Random):
                self._note(frame, "draws at random (Python's random)")

    def _note(self, frame, reason):
        if reason and _asker(frame)[0] not in ("torch", "compresslab"):
            self._reasons.append(reason)


_CLOCKS = frozenset(
    "time time_ns monotonic monotonic_ns perf_counter perf_counter_ns process_time process_time_ns thread_time "
    "localtime gmtime ctime now utcnow today".split()
)


@functools.lru_cache(maxsize=4096)
def _unrepeatable(code):
    """What a function does that no graph repeats, in words, or None."""
    steps, inside = list(dis.get_instructions(code)), 0
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        inside += step.opname == "WITH_EXCEPT_START"
        if step.opname == "POP_EXCEPT" and following.opname != "RERAISE":  # it goes on behind a handler
            if not inside:
                return f"catches exceptions (in {code.co_name})"
            inside -= 1  # that of a `with`, whose __exit__ decides
        if step.opname == "LOAD_GLOBAL" and step.argval == "type":
            return f"asks for the type of something (in {code.co_name})"
        if step.opname == "STORE_GLOBAL":
            return f"changes the global name {step.argval!r}"
        constant = step.opname in ("LOAD_CONST", "RETURN_CONST")
        returned = step.opname == "RETURN_CONST" or (following is not None and following.opname == "RETURN_VALUE")
        if code.co_name == "__exit__" and returned and not (constant and not step.argval):
            return "may suppress exceptions (in an __exit__)"
    return None


def _draws(frame):
    """Whether a function names what numpy draws with."""
    names = frame.f_code.co_names
    values = [frame.f_globals.get(name) for name in names]
    kinds = np.random.RandomState | np.random.Generator
    makers = any(one is np.random or isinstance(getattr(one, "__self__", one), kinds) for one in values)
    return makers or ("random" in names and any(one is np for one in values))


def _graphs(module):
    """Graphs of a module in training and eval mode, and its tensor constants by path.

    What forward draws at random would be another constant in the second trace.
    """
    if isinstance(module, graph.GraphModel):
        return module._clab_graphs, {}
    with _TRACING, torch.random.fork_rng(devices=[]):
        _check_plain_call(module)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            traces = {mode: _trace(module, mode) for mode in (True, False)}
        with torch.inference_mode(), torch.autocast("cpu"):
            again = {mode: _trace(module, mode, without=traces[mode].replaced) for mode in (False, True)}
        if any(again[mode].graph != traces[mode].graph for mode in (True, False)):
            kept = "".join(f"what it keeps in {path!r}, or on " for path in traces[True].replaced[:1])
            raise NotPlainError(f"forward depends on {kept}earlier calls, gradients or autocast")
    (train, constants), (evaluation, others) = ((traces[mode].graph, traces[mode].constants) for mode in (True, False))
    if constants.keys() != others.keys() or not all(_alike(constants[name], others[name]) for name in constants):
        raise NotPlainError("forward uses tensors that differ from call to call")
    modes = {one.training for one in module.modules() if standard_name(one) is None}
    if train != evaluation and len(modes) > 1:
        raise NotPlainError("forward depends on the mode of parts that are not in the same mode")
    return {True: train, False: evaluation}, constants


def _check_plain_call(module):
    for one in module.modules():
        hooks = one._forward_hooks or one._forward_pre_hooks
        odd = hooks or "forward" in vars(one) or type(one).__call__ not in _CALLS
        if odd and standard_name(one) is None:
            raise NotPlainError(f"{type(one).__name__} is called in another way than through its class's forward")


_CALLS = {one.__call__ for one in (nn.Module, nn.ParameterList, nn.ParameterDict)}  # the lists' only refuse


@dataclass(frozen=True)
class _Trace:
    """A graph, the tensors it uses that are not parameters or buffers, and paths of attributes that it changed."""

    graph: dict
    constants: dict
    replaced: list


def _trace(module, training, without=None):
    """The _Trace of a module in one mode.

    without  paths of attributes that an earlier trace changed: now they are empty or missing, in case it had read them
             before. If given, forward may switch gradients and autocast
    """
    twin = copy.deepcopy(module).train(training)
    for path, _, name in (one.rpartition(".") for one in without or ()):
        holder = twin.get_submodule(path)
        clear = getattr(getattr(holder, name), "clear", None)
        clear() if callable(clear) else delattr(holder, name)
    tensors, before = _tensors(twin), _attributes(twin)
    contents = {path: _contents(value) for path, value in before.items()}
    watch = _Watch() if without is None else None
    found, constants = _traced(twin, watch)
    if lost := [path for path, now in _tensors(twin).items() if not _in_place(now, path, tensors.get(path))]:
        raise NotPlainError(f"forward puts another tensor in the place of {lost[0]!r}")
    after = _attributes(twin)
    changed = [path for path, value in before.items() if _is_state(value) and not _same(value, after.get(path))]
    changed += [path for path, held in contents.items() if held is not None and _differ(held, after.get(path))]
    if left := [*changed, *sorted(after.keys() - before.keys())] if without is None else []:
        with contextlib.suppress(NotPlainError):
            if _traced(twin)[0] == found:
                return _Trace(found, constants, changed)
        raise NotPlainError(f"forward depends on what an earlier call left in {left[0]!r}")
    return _Trace(found, constants, changed)


def _traced(twin, watch=None):
    """The graph of a module as plain data, and its tensors that are not parameters or buffers; it may change them.

    watch  a _Watch over the first trace; behind it, forward may switch gradients and autocast
    """
    try:
        with _NoChance(), watch or contextlib.nullcontext():
            traced = _Tracer(switches=watch is None).trace(twin)
        if watch is not None:
            watch.check()
        return _encoded(traced, twin)
    except NotPlainError:
        raise
    except Exception as error:  # forward is the user's code, given something that is not a tensor
        raise NotPlainError(f"{type(twin).__name__} cannot be traced: {checks.reason(error)}") from error


def _tensors(module):
    """Path -> parameter or buffer."""
    found = {}
    for path, one in module.named_modules():
        own = {**one._parameters, **one._buffers}
        found |= {f"{path}.{name}" if path else name: value for name, value in own.items()}
    return found


def _in_place(value, path, before):
    """Whether the tensor of a path is the one from before, perhaps after calls that change it (self.count.add_(1))."""
    if type(value) is not _Value:
        return value is before
    node = value.node
    while node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__"):
        node = node.args[0]
    return node.op == "get_attr" and node.target == path


def _attributes(module):
    """Path -> value of the attributes of modules that are not standard."""
    found, hidden = {}, vars(nn.Module())
    for path, one in module.named_modules():
        if standard_name(one) is None:
            own = {name: value for name, value in vars(one).items() if name not in hidden}
            found |= {f"{path}.{name}" if path else name: value for name, value in own.items()}
    return found


def _contents(value):
    """What a container or an object of the user's own holds, as a list; None for anything else."""
    if isinstance(value, (list, set, deque)):
        return list(value)
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, np.random.Generator | np.random.RandomState):
        return [str(value.bit_generator.state if isinstance(value, np.random.Generator) else value.get_state())]
    if isinstance(value, (nn.Module, torch.Tensor)) or callable(value):
        return None
    return [*vars(value).values()] if hasattr(value, "__dict__") else None


def _differ(held, now):
    """Whether a container holds other things than those, its `_contents`."""
    found = _contents(now)
    return found is None or len(found) != len(held) or not all(map(_same, held, found))


def _is_state(value):
    return isinstance(value, (bool, int, float, str, torch.Tensor, type(None)))


def _same(value, now):
    return now is value or (type(now) is type(value) and type(now) in (bool, int, float, str) and now == value)


def _encoded(traced, twin):
    """A traced fx.Graph as plain data, and the tensors it uses that are not parameters or buffers."""
    numbers, inputs, steps, constants, output = {}, [], [], {}, None

    def value(one):
        return {"node": numbers[one]} if isinstance(one, fx.Node) else None

    for node in traced.nodes:
        if node.op == "output":
            output = plain.encode(node.args[0], value)
            continue
        if node.op == "placeholder":
            inputs.append(node.target)
        else:
            steps.append([*_target(node, twin, constants), plain.encode(tuple(node.args), value)])
            if node.kwargs:
                steps[-1].append({key: plain.encode(one, value) for key, one in node.kwargs.items()})
        numbers[node] = len(numbers)
    found = {"inputs": inputs, "steps": steps, "output": output}
    graph.program(found)
    return found, constants


def _target(node, twin, constants):
    """Kind and name of a step; raises NotPlainError if it is not in the lists."""
    if node.op == "call_module":
        return "module", node.target
    if node.op == "call_method" and node.target in calls.METHODS:
        return "method", node.target
    if node.op == "call_function" and (name := calls.function_name(node.target)):
        if name == "attribute" and node.args[1] not in calls.ATTRIBUTES:
            raise NotPlainError(f"forward reads the attribute {node.args[1]!r}")
        return "function", name
    if node.op == "get_attr":
        path, _, own = node.target.rpartition(".")
        holder = twin.get_submodule(path)
        path = next(name for name, one in twin.named_modules() if one is holder)  # the first of its names
        target = f"{path}.{own}" if path else own
        if own not in holder._parameters and own not in holder._buffers:
            found = getattr(holder, own)
            if not isinstance(found, torch.Tensor) or standard_name(holder):
                raise NotPlainError(f"forward uses {node.target}, a {type(found).__name__}")
            constants[target] = found.detach()
        return "tensor", target
    raise NotPlainError(f"forward calls {node.target}, which is not in the lists of compresslab.storage.calls")


def _alike(one, other):
    return one.dtype == other.dtype and torch.equal(one, other)
