"""The architecture of any model as a node: standard layers as such, a class of its own by what torch.fx traces.

Its forward is traced in training mode and in eval mode. Refused is what a graph would not repeat: calls that are not in
the lists of `calls`, branches on values, random tensors, hooks, state that is not tensors.

Source: Reed et al. 2022, arXiv:2112.08429 (torch.fx).
"""

import copy
import inspect
import threading

import torch
from torch import fx, nn

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
    """Stops at standard layers; only the inputs that forward demands are traced, the others have their default."""

    proxy_buffer_attributes = True

    def trace(self, root):
        self._thread = threading.get_ident()
        return super().trace(root)

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


def _graphs(module):
    """Graphs of a module in training and eval mode, and its tensor constants by path.

    What forward draws at random would be another constant in the second trace.
    """
    if isinstance(module, graph.GraphModel):
        return module._clab_graphs, {}
    with _TRACING, torch.random.fork_rng(devices=[]):
        _check_plain_call(module)
        traces = {mode: _trace(module, mode) for mode in (True, False)}
    (train, constants), (evaluation, others) = traces[True], traces[False]
    if constants.keys() != others.keys() or not all(_alike(constants[name], others[name]) for name in constants):
        raise NotPlainError("forward uses tensors that differ from call to call")
    modes = {one.training for one in module.modules() if standard_name(one) is None}
    if train != evaluation and len(modes) > 1:
        raise NotPlainError("forward depends on the mode of parts that are not in the same mode")
    return {True: train, False: evaluation}, constants


def _check_plain_call(module):
    for one in module.modules():
        hooks = one._forward_hooks or one._forward_pre_hooks
        if standard_name(one) is None and (hooks or "forward" in vars(one) or type(one).__call__ is not _CALL):
            raise NotPlainError(f"{type(one).__name__} is called in another way than through its class's forward")


_CALL = nn.Module.__call__


def _trace(module, training):
    twin = copy.deepcopy(module).train(training)
    try:
        traced = _Tracer().trace(twin)
    except NotPlainError:
        raise
    except Exception as error:  # forward is the user's code, given something that is not a tensor
        raise NotPlainError(f"{type(module).__name__} cannot be traced: {error}") from error
    return _encoded(traced, twin)


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
