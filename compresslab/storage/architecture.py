"""A tree of standard layers as JSON and back, so that a file needs neither its model's class nor pickle.

    node      what a file says of a module: [type, {argument: value}, children], {"same": path} for a module that is
              there already, or null; docs/format.md, section 3
    standard  (of a layer) of torch.nn, or one of compresslab's own that a file may name (`standard_layers`)
    custom    (of a module) of any other class, the node ["Module", …]: `tracing` describes it, `graph` builds it
    bare      (of a layer) as its constructor makes it

Arguments that have their default, and children that the constructor makes alike, are left out. A file leaves out more
(`shorten`): names that follow a pattern, and sizes that follow from the layer before. A layer is built on the meta
device, where tensors have shapes but no memory; its numbers are put in later.
"""

import inspect
import re
from collections.abc import Callable

from torch import nn

from compresslab.storage import standard_layers
from compresslab.storage.arguments import NotPlainError, decode, encode
from compresslab.storage.coder import Allowance
from compresslab.storage.container import CorruptFileError

DEEPEST = 256  # layers inside one recurrent layer or nn.Transformer; torch takes the square of it to make them
MODULE, TENSOR = 8_000, 1_000  # symbols that take as long as building a module, and an empty tensor
MODULE_BYTES = 2_500
_INPUTS = ("in_features", "in_channels", "num_features", "num_channels", "input_size", "embed_dim")
_OUTPUTS = ("out_features", "out_channels", "hidden_size", "embedding_dim", *_INPUTS)


class Describer:
    """Turns modules into nodes; remembers those already described. `custom(describer, module, path)` does the rest."""

    def __init__(self, custom: Callable):
        self._custom, self._paths = custom, {}

    def __call__(self, module: nn.Module | None, path: str = "") -> object:
        """Return the node of a module; raises NotPlainError if it is not standard and `custom` refuses it too."""
        if module is None:
            return None
        if id(module) in self._paths:
            return {"same": self._paths[id(module)]}
        self._paths[id(module)] = path
        name = standard_layers.get_standard_name(module)
        if name is None:
            return self._custom(self, module, path)
        if isinstance(module, standard_layers.LISTS):
            return _drop_empty(name, {}, self.describe_children(module, path))
        arguments, bare = _remake(name, module)
        return _drop_empty(name, arguments, self.describe_children(module, path, bare))

    def describe_children(self, module: nn.Module, path: str, bare: nn.Module | None = None) -> dict:
        """Return name -> node of the children that differ from what `bare`, as constructed, has in their place."""
        made = dict(bare.named_children()) if bare is not None else {}
        nodes = {}
        for name, child in module._modules.items():
            node = self(child, f"{path}.{name}" if path else name)
            if name not in made or node != Describer(refuse)(made[name]):
                nodes[name] = node
        return nodes


def refuse(describer: Describer, module: nn.Module, path: str) -> object:
    """Refuse all modules that are not standard: the `custom` of a Describer of standard layers alone."""
    raise NotPlainError(f"{path or 'the model'} is a {type(module).__name__}, not a layer of torch.nn")


def _remake(name, module):
    """Return a standard layer's encoded arguments, and the layer that they make."""
    kind, trusted = standard_layers.STANDARD[name], {"module": lambda node: build(node, Allowance(2**40))}
    try:
        arguments = standard_layers.find_arguments(kind, module)
        encoded = {key: encode(value, _encode_module) for key, value in arguments.items()}
        bare = standard_layers.construct(kind, {key: decode(value, trusted) for key, value in encoded.items()})
    except NotPlainError:
        raise
    except Exception as error:  # surgery may have left any attribute changed or gone
        raise NotPlainError(f"a {name} was changed and cannot be made again: {error}") from error
    standard_layers.check_alike(module, bare, arguments)
    return encoded, bare


def _encode_module(value):
    return {"module": Describer(refuse)(value)} if isinstance(value, nn.Module) else None


def _drop_empty(name, arguments, children):
    node = [name, arguments, children]
    while len(node) > 1 and not node[-1]:
        node.pop()
    return node


# Building a module.


def build(node: object, allowance: Allowance, custom: Callable | None = None) -> nn.Module | None:
    """Build the module that a node describes, on the meta device.

    custom  custom(arguments, path) makes a custom module, without its children
    raises  CorruptFileError for a node that Describer does not make
    """
    return _Builder(allowance, custom).build(node, "")


class _Builder:
    def __init__(self, allowance, custom):
        self._allowance, self._custom, self._made = allowance, custom, {}

    def build(self, node: object, path: str) -> nn.Module | None:
        """Build a module. It is charged once for each place it has: shared ones could double it at each level."""
        if node is None:
            return None
        if isinstance(node, dict):
            return self._find_earlier(node)
        name, arguments, children = read_node(node)
        custom = name == "Module" and self._custom is not None
        module = self._custom(arguments, path) if custom else self._build_standard(name, arguments)
        self._charge(*_count_parts(module))
        for child, inner in children.items():
            _adopt(module, child, self.build(inner, f"{path}.{child}" if path else child))
        for inner_path, inner in module.named_modules(prefix=path):
            self._made.setdefault(inner_path, inner)
        return module

    def _charge(self, modules, tensors):
        self._allowance.spend(MODULE * modules + TENSOR * tensors)
        self._allowance.take(MODULE_BYTES * modules)

    def _build_standard(self, name, arguments):
        if name not in standard_layers.STANDARD:
            raise CorruptFileError(f"there is no standard layer {name!r}")
        special = {"module": lambda node: _Builder(self._allowance, None).build(node, "")}
        arguments = {key: decode(value, special) for key, value in arguments.items()}
        self._check_repeats(arguments)
        try:
            return standard_layers.construct(standard_layers.STANDARD[name], arguments)
        except Exception as error:  # whatever a constructor makes of arguments that no layer was saved with
            raise CorruptFileError(f"{name} cannot be made with {str(arguments)[:200]}: {error}") from error

    def _check_repeats(self, arguments):
        """Refuse a layer that would repeat another more often than the file pays for, before it does."""
        repeated = [_count_parts(value) for value in arguments.values() if isinstance(value, nn.Module)]
        modules, tensors = map(sum, zip(*repeated, strict=True)) if repeated else (0, 2)  # a recurrent layer has 2
        for key, times in arguments.items():
            if key.endswith("_layers") and isinstance(times, int):
                # nn.Transformer makes its own layers, of ten modules and twelve tensors.
                each = (modules, tensors) if key == "num_layers" else (10, 12)
                self._allowance.spend(max(0, times) * (MODULE * each[0] + TENSOR * each[1]))
                if not repeated and times > DEEPEST:
                    raise CorruptFileError(f"{key} is {times}, more than {DEEPEST}")

    def _find_earlier(self, node):
        path = node.get("same")
        if len(node) != 1 or not isinstance(path, str) or path not in self._made:
            raise CorruptFileError(f"a module refers to {str(path)[:200]!r}, which is not there yet")
        self._charge(*_count_parts(self._made[path]))
        return self._made[path]


def _count_parts(module):
    """Count the modules and tensors in a module, once for each place."""
    modules = [inner for _, inner in module.named_modules(remove_duplicate=False)]
    return len(modules), sum(len(inner._parameters) + len(inner._buffers) for inner in modules)


def _adopt(parent, name, child):
    """Make `child` a child of `parent`, in the place of one that its constructor made or as a new one."""
    if name in parent._modules:
        parent._modules[name] = child
        return
    try:
        parent.add_module(name, child)
    except (KeyError, TypeError) as error:
        raise CorruptFileError(f"a module cannot be named {name!r}: {error}") from error


def read_node(node: object) -> tuple[str, dict, dict]:
    """Return the name, arguments and children of a node; raises CorruptFileError unless it has their types."""
    right = isinstance(node, list) and 1 <= len(node) <= 3
    name, arguments, children = [*node, *({}, {})[len(node) - 1 :]] if right else (None, None, None)
    if not isinstance(name, str) or not isinstance(arguments, dict) or not isinstance(children, dict):
        raise CorruptFileError(f"a module is described as {str(node)[:200]}")
    return name, arguments, children


# What a file leaves out of nodes, since it follows.


def shorten(node: object) -> object:
    """Leave out of a node what `lengthen` finds again: sizes that follow from the layer before, patterns in names."""
    return _Shorthand().shorten(node)


def lengthen(node: object) -> object:
    """Undo `shorten`; raises CorruptFileError."""
    return _Shorthand().lengthen(node)


class _Shorthand:
    """Goes through the nodes of a tree in order; knows how many features the layer before gives."""

    def __init__(self):
        self._size = None

    def shorten(self, node: object) -> object:
        """Leave out of a node what the reader can tell from what comes before it."""
        if not isinstance(node, list):
            return node
        name, arguments, children = read_node(node)
        shorter = {key: value for key, value in arguments.items() if not self._follows(name, key, value)}
        self._note_size(arguments)
        children = {child: self.shorten(inner) for child, inner in children.items()}
        return _drop_empty(name, shorter, _shorten_names(children))

    def lengthen(self, node: object) -> object:
        """Put back what `shorten` left out."""
        if not isinstance(node, list):
            return node
        children = _lengthen_names(node[2]) if len(node) == 3 else {}
        name, arguments, children = read_node([*node[:2], *[{}][len(node) - 1 :], children])
        if name in standard_layers.STANDARD and self._size is not None:
            for key in _list_required(name):
                arguments = arguments if key in arguments else {key: self._size, **arguments}
        self._note_size(arguments)
        return _drop_empty(name, arguments, {child: self.lengthen(inner) for child, inner in children.items()})

    def _follows(self, name, key, value):
        return name in standard_layers.STANDARD and key in _list_required(name) and value == self._size

    def _note_size(self, arguments):
        self._size = next((arguments[key] for key in _OUTPUTS if type(arguments.get(key)) is int), self._size)


def _list_required(name):
    """List the arguments of a layer that say how many inputs it has, and have no default."""
    defaults = standard_layers.get_defaults(standard_layers.STANDARD[name])
    return [key for key in _INPUTS if defaults.get(key) is inspect.Parameter.empty]


def _shorten_names(children):
    if list(children) == [str(number) for number in range(len(children))]:
        return list(children.values())
    if any(name.endswith("#") for name in children):
        return children
    items, last = [], {}
    for name, node in children.items():
        stem, number = _split_name(name)
        items += [f"{stem}#" if number == last.get(stem, 0) + 1 else name, node]
        last[stem] = number or 0
    return items


def _lengthen_names(children):
    if not isinstance(children, list):
        return children
    if not children or not isinstance(children[0], str):
        return {str(number): node for number, node in enumerate(children)}
    names, last = {}, {}
    for name, node in zip(children[::2], children[1::2], strict=True):
        if not isinstance(name, str):
            raise CorruptFileError(f"a module is named {str(name)[:100]}")
        if name.endswith("#"):
            name = f"{name[:-1]}{last.get(name[:-1], 0) + 1}"
        if name in names:
            raise CorruptFileError(f"two modules are named {name[:100]!r}")
        stem, number = _split_name(name)
        names[name], last[stem] = node, number or 0
    return names


def _split_name(name):
    """Split a name before the number at its end: ("fc", 1); the number is None where there is none, or a leading 0."""
    stem, digits = re.fullmatch(r"(.*?)([1-9][0-9]{0,5})?", name, re.DOTALL).groups()
    return stem, None if digits is None else int(digits)
