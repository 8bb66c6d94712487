"""What a model of a class of its own computes, as data: torch.fx's trace of its forward, run by a small interpreter.

A module whose class is not in torch.nn is the node ["Module", {…}, children] with
    parameters, buffers, constants   names of its own tensors; constants are not in its state dict
    graph                            its computation; or graphs, {"train": graph, "eval": graph}, where the two differ;
                                     or neither for a module inside such a one, whose forward was traced along
A graph is {"inputs": [names], "steps": [[kind, name, arguments, keywords], …], "output": value}. Values are numbered:
the inputs, then the steps; {"node": number} stands for an earlier one. A step's kind is "function", "method" (of the
first argument; both from the lists in `calls`), "module" (a standard layer, by path) or "tensor" (by path).

Source: Reed et al. 2022, arXiv:2112.08429 (torch.fx).
"""

import copy
import inspect
import threading
from dataclasses import dataclass

import torch
from torch import fx, nn

from compresslab.storage import architecture, calls, plain
from compresslab.storage.container import CorruptFileError
from compresslab.storage.plain import NotPlainError
from compresslab.storage.standard import standard_name

_TENSORS = ("parameters", "buffers", "constants")
_NAMES = {"function": calls.FUNCTIONS, "method": calls.METHODS}
_MODES = {"train": True, "eval": False}


@dataclass(frozen=True)
class Ref:
    """Stands for the value of that number among a step's arguments."""

    number: int


class Part(nn.Module):
    """A module inside a GraphModel: it only holds tensors and layers by their names."""


class GraphModel(nn.Module):
    """A model that runs a graph. Its layers and tensors have the names of the model that was traced.

    graphs  {True: graph for training mode, False: graph for eval mode}, as in the module's docstring
    It takes the positional arguments that the model's forward demanded; optional ones have their default.
    """

    def __init__(self, graphs):
        super().__init__()
        self._clab_graphs = graphs
        self._clab_programs = {mode: _program(graph) for mode, graph in graphs.items()}

    def forward(self, *inputs, **named):
        names, steps, output = self._clab_programs[self.training]
        values = dict(enumerate(_in_order(names, inputs, named)))
        for number, (kind, name, arguments, keywords, done) in enumerate(steps, start=len(names)):
            values[number] = _run(self, kind, name, _filled(arguments, values), _filled(keywords, values))
            for old in done:
                del values[old]
        return _filled(output, values)


def describe(model):
    """The node of a model, and name -> tensor of what it needs beside its state dict.

    model   a copy that may be used up: without parametrizations or torch pruning
    raises  NotPlainError if it is not made of standard layers and cannot be traced into calls of the lists
    """
    extra = {}
    node = architecture.Describer(_Custom(extra))(model)
    return node, extra


def build(node, entries, length):
    """The model of a node, on the meta device.

    entries  the file's content.Entry list: shapes of the tensors that a module of its own class has
    length   of the file, in bytes: what pays for the layers
    raises   CorruptFileError
    """
    shapes = {entry.name: entry.shape for entry in entries}
    model = architecture.build(
        node, architecture.Budget(length, len(entries)), lambda *one: _custom_module(*one, shapes)
    )
    if model is None:
        raise CorruptFileError("the architecture is empty")
    for module in model.modules():
        if isinstance(module, GraphModel):
            _check_targets(module)
    return model


class _Custom:
    """Describes the modules that are not standard, for architecture.Describer."""

    def __init__(self, extra):
        self._extra, self._inside = extra, False

    def __call__(self, describer, module, path):
        arguments, constants = {}, {}
        outermost = not self._inside
        if outermost:
            graphs, constants = _graphs(module)
            same = graphs[True] == graphs[False]
            arguments = {"graph": graphs[True]} if same else {"graphs": {key: graphs[_MODES[key]] for key in _MODES}}
        self._inside = True
        children = describer.children(module, path)
        self._inside = not outermost
        self._extra |= {f"{path}.{name}" if path else name: value for name, value in constants.items()}
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
        with _TRACING:
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
        return forward, [self.root, *(self.create_proxy("placeholder", one.name, (), {}) for one in demanded)]


def _graphs(module):
    """Graphs of a module in training and eval mode, and its tensor constants by path.

    What forward draws at random would be another constant in the second trace.
    """
    if isinstance(module, GraphModel):
        return module._clab_graphs, {}
    _check_plain_call(module)
    with torch.random.fork_rng(devices=[]):
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
    numbers, inputs, steps, constants = {}, [], [], {}
    output = None

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
    graph = {"inputs": inputs, "steps": steps, "output": output}
    _program(graph)
    return graph, constants


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
        if own not in holder._parameters and own not in holder._buffers:
            found = getattr(holder, own)
            if not isinstance(found, torch.Tensor) or standard_name(holder):
                raise NotPlainError(f"forward uses {node.target}, a {type(found).__name__}")
            constants[node.target] = found.detach()
        return "tensor", node.target
    raise NotPlainError(f"forward calls {node.target}, which is not in the lists of compresslab.storage.calls")


def _program(graph):
    """A graph ready to run: input names, steps (kind, name, arguments, keywords, numbers no longer needed), output.

    raises  CorruptFileError for a graph that is not as the module's docstring says
    """
    if not isinstance(graph, dict) or set(graph) != {"inputs", "steps", "output"}:
        raise CorruptFileError("a graph has not inputs, steps and output")
    names, steps = graph["inputs"], graph["steps"]
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names) or len({*names}) != len(names):
        raise CorruptFileError("inputs of a graph are not different names")
    if not isinstance(steps, list) or not all(isinstance(one, list) and len(one) in (3, 4) for one in steps):
        raise CorruptFileError("steps of a graph are not lists of kind, name, arguments and keywords")
    last, program = dict.fromkeys(range(len(names)), -1), []
    for number, step in enumerate(steps, start=len(names)):
        program.append(_step(step, number, last))
        last[number] = number
    output = plain.decode(graph["output"], {"node": lambda one: _ref(one, len(last), len(last), last)})
    done = {number: [] for number in last}
    for number, user in last.items():
        if user < len(last) and user >= 0:
            done[user].append(number)
    return names, [(*step, done[number]) for number, step in enumerate(program, start=len(names))], output


def _step(step, number, last):
    kind, name, arguments, keywords = [*step, {}][:4]
    if not isinstance(name, str) or not isinstance(arguments, list) or not isinstance(keywords, dict):
        raise CorruptFileError(f"a step is {str(step)[:200]}")
    if not isinstance(kind, str) or name not in _NAMES.get(kind, ()) and kind not in ("module", "tensor"):
        raise CorruptFileError(f"a step calls {str(kind)[:50]} {name[:100]!r}, which is not in the lists")
    special = {"node": lambda one: _ref(one, number, number, last)}
    arguments = plain.decode(arguments, special)
    keywords = {key: plain.decode(one, special) for key, one in keywords.items()}
    return kind, name, arguments, keywords


def _run(model, kind, name, arguments, keywords):
    if kind == "function":
        return calls.FUNCTIONS[name](*arguments, **keywords)
    if kind == "method":
        return getattr(arguments[0], name)(*arguments[1:], **keywords)
    if kind == "module":
        return model.get_submodule(name)(*arguments, **keywords)
    holder, _, own = name.rpartition(".")
    return getattr(model.get_submodule(holder), own)


def _ref(number, limit, user, last):
    if type(number) is not int or not 0 <= number < limit:
        raise CorruptFileError(f"a step uses value {str(number)[:50]}; there are {limit} before it")
    last[number] = user
    return Ref(number)


def _own_tensor(model, path):
    holder, _, own = path.rpartition(".")
    return getattr(model.get_submodule(holder), own)


def _filled(template, values):
    """The template with every Ref replaced by its value."""
    if isinstance(template, Ref):
        return values[template.number]
    if isinstance(template, tuple):
        return tuple(_filled(one, values) for one in template)
    if isinstance(template, list):
        return [_filled(one, values) for one in template]
    if isinstance(template, dict):
        return {key: _filled(one, values) for key, one in template.items()}
    if isinstance(template, slice):
        return slice(*(_filled(one, values) for one in (template.start, template.stop, template.step)))
    return template


def _in_order(names, inputs, named):
    """Inputs given by position and by name, in the order of the names; raises TypeError as a function would."""
    left = names[len(inputs) :]
    if len(inputs) > len(names) or set(left) != set(named):
        given = f"{len(inputs)} by position and {sorted(named)} by name"
        raise TypeError(f"the model takes ({', '.join(names)}); got {given}")
    return [*inputs, *(named[name] for name in left)]


def _check_targets(model):
    """Raise CorruptFileError unless a graph's modules are standard layers of the model and its tensors are there."""
    for graph in model._clab_graphs.values():
        for kind, path, *_ in graph["steps"]:
            if kind == "module" and standard_name(model.get_submodule(path)) is None:
                raise CorruptFileError(f"a step calls the module {path[:200]!r}, which is not a standard layer")
            if kind == "tensor":
                holder = model.get_submodule(path.rpartition(".")[0])
                if path.rpartition(".")[2] not in {**holder._parameters, **holder._buffers}:
                    raise CorruptFileError(f"a step uses the tensor {path[:200]!r}, which is not there")


def _custom_module(arguments, path, shapes):
    """A GraphModel or Part with its own tensors on the meta device."""
    names = {key: arguments.get(key, []) for key in _TENSORS}
    graphs = {key: value for key, value in arguments.items() if key not in _TENSORS}
    module = GraphModel(_read_graphs(graphs)) if graphs else Part()
    for key, own in names.items():
        if not isinstance(own, list) or not all(isinstance(name, str) for name in own):
            raise CorruptFileError(f"{key} of a module are not names")
        for name in own:
            empty = torch.empty(shapes[f"{path}.{name}" if path else name], device="meta")
            if key == "parameters":
                module.register_parameter(name, nn.Parameter(empty))
            else:
                module.register_buffer(name, empty, persistent=key == "buffers")
    return module


def _read_graphs(arguments):
    if set(arguments) == {"graph"}:
        return dict.fromkeys((True, False), arguments["graph"])
    if set(arguments) == {"graphs"} and isinstance(arguments["graphs"], dict) and set(arguments["graphs"]) == {*_MODES}:
        return {mode: arguments["graphs"][key] for key, mode in _MODES.items()}
    raise CorruptFileError(f"a module has {sorted(arguments)}")


def _alike(one, other):
    return one.dtype == other.dtype and torch.equal(one, other)
