"""What a model of a class of its own computes, as data that a small interpreter runs; `tracing` makes it.

A module whose class is not in torch.nn is the node ["Module", {…}, children] with
    parameters, buffers, constants   names of its own tensors; constants are not in its state dict
    graph                            its computation; or graphs, {"train": graph, "eval": graph}, where the two differ;
                                     or neither for a module inside such a one, whose forward was traced along
A graph is {"inputs": [names], "steps": [[kind, name, arguments, keywords], …], "output": value}. Values are numbered:
the inputs, then the steps; {"node": number} stands for an earlier one. A step's kind is "function", "method" (of the
first argument; both from the lists in `calls`), "module" (a standard layer, by path) or "tensor" (by path).

Source: Reed et al. 2022, arXiv:2112.08429 (torch.fx).
"""

from dataclasses import dataclass

import torch
from torch import nn

from compresslab.storage import architecture, calls, plain
from compresslab.storage.container import CorruptFileError
from compresslab.storage.standard import standard_name

_TENSORS = ("parameters", "buffers", "constants")
_NAMES = {"function": calls.FUNCTIONS, "method": calls.METHODS}
MODES = {"train": True, "eval": False}


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
        self._clab_programs = {mode: program(graph) for mode, graph in graphs.items()}

    def forward(self, *inputs, **named):
        names, steps, output = self._clab_programs[self.training]
        values = dict(enumerate(_in_order(names, inputs, named)))
        for number, (kind, name, arguments, keywords, done) in enumerate(steps, start=len(names)):
            values[number] = _run(self, kind, name, _filled(arguments, values), _filled(keywords, values))
            for old in done:
                del values[old]
        return _filled(output, values)


def build(node, entries, budget):
    """The model of a node, on the meta device.

    entries  the file's content.Entry list: shapes of the tensors that a module of its own class has
    budget   architecture.Budget: what building may cost
    raises   CorruptFileError
    """
    shapes = {entry.name: entry.shape for entry in entries}
    model = architecture.build(node, budget, lambda *one: _custom_module(*one, shapes, budget))
    if model is None:
        raise CorruptFileError("the architecture is empty")
    for module in model.modules():
        if isinstance(module, GraphModel):
            _check_targets(module)
    return model


def program(graph):
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
                own = path.rpartition(".")[2]
                if own not in holder._parameters and own not in holder._buffers:
                    raise CorruptFileError(f"a step uses the tensor {path[:200]!r}, which is not there")


def _custom_module(arguments, path, shapes, budget):
    """A GraphModel or Part with its own tensors on the meta device."""
    names = {key: arguments.get(key, []) for key in _TENSORS}
    graphs = {key: value for key, value in arguments.items() if key not in _TENSORS}
    graphs = _read_graphs(graphs) if graphs else {}
    for one in {id(one): one for one in graphs.values()}.values():
        budget.step(len(one.get("steps", ())) if isinstance(one, dict) else 0)
    module = GraphModel(graphs) if graphs else Part()
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
    if set(arguments) == {"graphs"} and isinstance(arguments["graphs"], dict) and set(arguments["graphs"]) == {*MODES}:
        return {mode: arguments["graphs"][key] for key, mode in MODES.items()}
    raise CorruptFileError(f"a module has {sorted(arguments)}")
