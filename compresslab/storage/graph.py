"""Run what a custom module computes, as the data that `tracing` makes of it.

    graph    {"inputs": [names], "steps": [[kind, name, arguments, keywords], …], "output": value}
    value    numbered, the inputs, then the steps; {"node": number} stands for an earlier one
    step     a call: "function" or "method" of the lists in `calls`, "module" (a standard layer, by path), or "tensor"
    program  a graph that was checked and is ready to run
    part     a custom module inside another, whose forward was traced along

A custom module is the node ["Module", {…}, children] with the names of its own `parameters`, `buffers` and `constants`
(not in its state dict), and its `graph`, or `graphs`, {"train": graph, "eval": graph}; a part has neither.

Source: Reed et al. 2022, arXiv:2112.08429 (torch.fx).
"""

from dataclasses import dataclass

import torch
from torch import nn

from compresslab.storage import architecture, calls
from compresslab.storage.arguments import decode
from compresslab.storage.coder import Allowance
from compresslab.storage.container import CorruptFileError
from compresslab.storage.standard_layers import get_standard_name

_TENSORS = ("parameters", "buffers", "constants")
_NAMES = {"function": calls.FUNCTIONS, "method": calls.METHODS}
MODES = {"train": True, "eval": False}
STEP, STEP_BYTES = 1_000, 800  # symbols that take as long as a step, and bytes that it takes


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

    def __init__(self, graphs: dict):
        super().__init__()
        self._clab_graphs = graphs
        self._clab_programs = {mode: make_program(graph) for mode, graph in graphs.items()}

    def forward(self, *inputs: object, **named: object) -> object:
        """Run the recorded program of the mode, training or evaluation."""
        names, steps, output = self._clab_programs[self.training]
        values = dict(enumerate(_in_order(names, inputs, named)))
        for number, (kind, name, arguments, keywords, done) in enumerate(steps, start=len(names)):
            values[number] = _run(self, kind, name, _fill(arguments, values), _fill(keywords, values))
            for unused in done:
                del values[unused]
        return _fill(output, values)


def build(node: object, entries: list, allowance: Allowance) -> nn.Module:
    """Build the model of a node, on the meta device.

    entries  the file's header.Entry list: shapes of the tensors that custom modules have
    raises   CorruptFileError
    """
    shapes = {entry.name: entry.shape for entry in entries}
    model = architecture.build(node, allowance, lambda *item: _build_custom(*item, shapes, allowance))
    if model is None:
        raise CorruptFileError("the architecture is empty")
    for module in model.modules():
        if isinstance(module, GraphModel):
            _check_targets(module)
    return model


def make_program(graph: dict) -> tuple:
    """Make a graph ready to run: input names, steps (kind, name, arguments, keywords, values that end there), output.

    raises  CorruptFileError for a graph that is not as the module's docstring says
    """
    if not isinstance(graph, dict) or set(graph) != {"inputs", "steps", "output"}:
        raise CorruptFileError("a graph has not inputs, steps and output")
    names, steps = graph["inputs"], graph["steps"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len({*names}) != len(names):
        raise CorruptFileError("inputs of a graph are not different names")
    if not isinstance(steps, list) or not all(isinstance(step, list) and len(step) in (3, 4) for step in steps):
        raise CorruptFileError("steps of a graph are not lists of kind, name, arguments and keywords")
    last_user, calls_ = dict.fromkeys(range(len(names)), -1), []
    for number, step in enumerate(steps, start=len(names)):
        calls_.append(_read_step(step, number, last_user))
        last_user[number] = number
    count = len(last_user)
    output = decode(graph["output"], {"node": lambda earlier: _refer(earlier, count, count, last_user)})
    # After which step is each value needed no longer?
    done = {number: [] for number in last_user}
    for number, user in last_user.items():
        if 0 <= user < count:
            done[user].append(number)
    return names, [(*call, done[number]) for number, call in enumerate(calls_, start=len(names))], output


def _read_step(step, number, last_user):
    kind, name, arguments, keywords = [*step, {}][:4]
    if not isinstance(name, str) or not isinstance(arguments, list) or not isinstance(keywords, dict):
        raise CorruptFileError(f"a step is {str(step)[:200]}")
    if not isinstance(kind, str) or name not in _NAMES.get(kind, ()) and kind not in ("module", "tensor"):
        raise CorruptFileError(f"a step calls {str(kind)[:50]} {name[:100]!r}, which is not in the lists")
    special = {"node": lambda earlier: _refer(earlier, number, number, last_user)}
    arguments = decode(arguments, special)
    keywords = {key: decode(value, special) for key, value in keywords.items()}
    return kind, name, arguments, keywords


def _run(model, kind, name, arguments, keywords):
    if kind == "function":
        return calls.FUNCTIONS[name](*arguments, **keywords)
    if kind == "method":
        return getattr(arguments[0], name)(*arguments[1:], **keywords)
    if kind == "module":
        return model.get_submodule(name)(*arguments, **keywords)
    holder, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(holder), attribute)


def _refer(number, limit, user, last_user):
    if type(number) is not int or not 0 <= number < limit:
        raise CorruptFileError(f"a step uses value {str(number)[:50]}; there are {limit} before it")
    last_user[number] = user
    return Ref(number)


def _fill(template, values):
    """Return the template with every Ref replaced by its value."""
    if isinstance(template, Ref):
        return values[template.number]
    if isinstance(template, tuple):
        return tuple(_fill(item, values) for item in template)
    if isinstance(template, list):
        return [_fill(item, values) for item in template]
    if isinstance(template, dict):
        return {key: _fill(item, values) for key, item in template.items()}
    if isinstance(template, slice):
        return slice(*(_fill(item, values) for item in (template.start, template.stop, template.step)))
    return template


def _in_order(names, inputs, named):
    """Return inputs by position and by name in the order of the names; raises TypeError as a function would."""
    left = names[len(inputs) :]
    if len(inputs) > len(names) or set(left) != set(named):
        inputs_got = f"{len(inputs)} by position and {sorted(named)} by name"
        raise TypeError(f"the model takes ({', '.join(names)}); got {inputs_got}")
    return [*inputs, *(named[name] for name in left)]


def _check_targets(model):
    """Raise CorruptFileError unless a graph's modules are standard layers of the model and its tensors are there."""
    for graph in model._clab_graphs.values():
        for kind, path, *_ in graph["steps"]:
            if kind == "module" and get_standard_name(model.get_submodule(path)) is None:
                raise CorruptFileError(f"a step calls the module {path[:200]!r}, which is not a standard layer")
            if kind == "tensor":
                holder = model.get_submodule(path.rpartition(".")[0])
                if path.rpartition(".")[2] not in {**holder._parameters, **holder._buffers}:
                    raise CorruptFileError(f"a step uses the tensor {path[:200]!r}, which is not there")


def _build_custom(arguments, path, shapes, allowance):
    """Build a GraphModel or Part with its own tensors on the meta device."""
    names = {key: arguments.get(key, []) for key in _TENSORS}
    graphs = {key: value for key, value in arguments.items() if key not in _TENSORS}
    graphs = _read_graphs(graphs) if graphs else {}
    for graph in {id(graph): graph for graph in graphs.values()}.values():
        steps = len(graph.get("steps", ())) if isinstance(graph, dict) else 0
        allowance.spend(STEP * steps)
        allowance.take(STEP_BYTES * steps)
    module = GraphModel(graphs) if graphs else Part()
    for key, own_names in names.items():
        if not isinstance(own_names, list) or not all(isinstance(name, str) for name in own_names):
            raise CorruptFileError(f"{key} of a module are not names")
        for name in own_names:
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
