"""A tree of standard layers as JSON and back, so that a file needs neither its model's class nor pickle.

    [type, {argument: value}, {child name: node}]   a layer of torch.nn, by its name there, or one of compresslab's own
                                                    (see `standard`). Arguments that have their default and children
                                                    that its constructor makes alike are left out, and so is an empty
                                                    last item
    {"same": "path.of.an.earlier.module"}           one module used in two places
    null                                            a child that is None
    ["Module", {"parameters": …}, children]         a module of another class, see `graph`

Argument values are as in `plain`, with {"module": node} for a module given to a constructor. A layer is built on the
meta device, where tensors have shapes but no memory; its numbers are put in later.
"""

from torch import nn

from compresslab.storage import container, plain, standard
from compresslab.storage.container import CorruptFileError
from compresslab.storage.plain import NotPlainError

DEEPEST = 256  # layers inside one recurrent layer or nn.Transformer; torch takes the square of it to make them
PAID = 2_000  # modules, tensors and steps of a graph that any file may have, beside one for each byte of it
MODULES, MADE, STEPS = 8_000, 32_000, 20_000  # most of them, but for one in SHARE bytes beyond the first MiB
SHARE = 128


def allowed(length, most):
    """How many things a file of so many bytes may have, if one of 1 MiB may have at most `most`."""
    return min(PAID + length, most + container.beyond(length) // SHARE)


class Budget:
    """What building may still cost; spending more raises CorruptFileError.

    length   of the file, in bytes: pays for modules and the steps of graphs
    tensors  that the file lists: they pay for tensors, several times over, since a constructor makes some that are
             replaced afterwards
    """

    def __init__(self, length, tensors):
        self.modules, self.steps = allowed(length, MODULES), allowed(length, STEPS)
        self.tensors = min(64 + 4 * tensors, tensors + MADE)
        self._from = self.modules, self.steps

    def check(self, modules, tensors):
        if modules > self.modules or tensors > self.tensors:
            raise CorruptFileError("the architecture has more layers than a file of this length holds")

    def charge(self, allowance):
        """Take off a streams.Allowance what has been spent."""
        modules, steps = self._from[0] - self.modules, self._from[1] - self.steps
        allowance.keep(2_500 * modules + 800 * steps)  # bytes
        allowance.spend(8_000 * modules + 1_000 * steps)

    def step(self, count):
        """Spend so many steps of a graph."""
        self.steps -= count
        if self.steps < 0:
            raise CorruptFileError("the architecture has more steps than a file of this length holds")

    def spend(self, module):
        modules, tensors = cost = _cost(module)
        self.check(*cost)
        self.modules -= modules
        self.tensors -= tensors


class Describer:
    """Turns modules into nodes; remembers those already described. `custom(describer, module, path)` does the rest."""

    def __init__(self, custom):
        self._custom, self._paths = custom, {}

    def __call__(self, module, path=""):
        """The node of a module (or None); raises NotPlainError if it is not standard and `custom` refuses it too."""
        if module is None:
            return None
        if id(module) in self._paths:
            return {"same": self._paths[id(module)]}
        self._paths[id(module)] = path
        name = standard.standard_name(module)
        if name is None:
            return self._custom(self, module, path)
        return self._standard(name, module, path)

    def children(self, module, path, bare=None):
        """Nodes of the children that differ from what `bare`, as constructed, has in their place."""
        made = dict(bare.named_children()) if bare is not None else {}
        nodes = {}
        for name, child in module._modules.items():
            node = self(child, f"{path}.{name}" if path else name)
            if name not in made or node != Describer(refuse)(made[name]):
                nodes[name] = node
        return nodes

    def _standard(self, name, module, path):
        if isinstance(module, standard.LISTS):
            return _shortened(name, {}, self.children(module, path))
        arguments, bare = _remade(name, module)
        return _shortened(name, arguments, self.children(module, path, bare))


def _remade(name, module):
    """A standard layer's encoded arguments, and the layer that they make."""
    kind = standard.STANDARD[name]
    try:
        arguments = standard.arguments_of(kind, module)
        encoded = {key: plain.encode(value, _given_module) for key, value in arguments.items()}
        bare = standard.construct(kind, {key: plain.decode(value, _GIVEN) for key, value in encoded.items()})
    except NotPlainError:
        raise
    except Exception as error:  # surgery may have left any attribute changed or gone
        raise NotPlainError(f"a {name} was changed and cannot be made again: {error}") from error
    standard.check_alike(module, bare, arguments)
    return encoded, bare


def build(node, budget, custom=None):
    """The module that a node describes, on the meta device.

    budget  Budget;  custom(arguments, path) makes the module of a ["Module", …] node, without its children
    raises  CorruptFileError for a node that Describer does not make
    """
    return _Builder(budget, custom).module(node, "")


def nodes(node, kind, most):
    """[path, node] of each layer of the type `kind` in a node, once for each place.

    raises  CorruptFileError for more than `most` of them
    """
    found = []
    _collect(node, kind, "", found, most)
    return found


def _collect(node, kind, path, found, most):
    if len(found) > most:  # shared modules could double them at each level
        raise CorruptFileError(f"the architecture has more than {most} layers {kind}")
    if isinstance(node, dict):
        first = str(node.get("same"))
        below = [[one, inner] for one, inner in found if f"{one}.".startswith(f"{first}.")]
        found.extend([path + one.removeprefix(first), inner] for one, inner in below)
    elif node is not None:
        name, _, children = read_node(node)
        if name == kind:
            found.append([path, node])
        for child, inner in children.items():
            _collect(inner, kind, f"{path}.{child}" if path else child, found, most)


class _Builder:
    def __init__(self, budget, custom):
        self._budget, self._custom, self._made = budget, custom, {}

    def module(self, node, path):
        """A module counts against the budget once for each place it has: shared ones could double it at each level."""
        if node is None:
            return None
        if isinstance(node, dict):
            return self._earlier(node)
        name, arguments, children = read_node(node)
        custom = name == "Module" and self._custom is not None
        module = self._custom(arguments, path) if custom else self._standard(name, arguments)
        self._budget.spend(module)
        for child, inner in children.items():
            _adopt(module, child, self.module(inner, f"{path}.{child}" if path else child))
        for own, inner in module.named_modules(prefix=path):
            self._made.setdefault(own, inner)
        return module

    def _standard(self, name, arguments):
        if name not in standard.STANDARD:
            raise CorruptFileError(f"there is no standard layer {name!r}")
        special = {"module": lambda node: _Builder(self._budget, None).module(node, "")}
        arguments = {key: plain.decode(value, special) for key, value in arguments.items()}
        self._check_repeats(arguments)
        try:
            return standard.construct(standard.STANDARD[name], arguments)
        except Exception as error:  # whatever a constructor makes of arguments that no layer was saved with
            raise CorruptFileError(f"{name} cannot be made with {str(arguments)[:200]}: {error}") from error

    def _check_repeats(self, arguments):
        """Refuse a layer that would repeat another more often than the file pays for, before it does."""
        given = [_cost(value) for value in arguments.values() if isinstance(value, nn.Module)]
        modules, tensors = map(sum, zip(*given, strict=True)) if given else (0, 2)  # a recurrent layer has 2 or more
        for key, times in arguments.items():
            if key.endswith("_layers") and isinstance(times, int):
                each = (modules, tensors) if key == "num_layers" else (10, 12)  # nn.Transformer's own layers
                self._budget.check(times * each[0], times * each[1])
                if not given and times > DEEPEST:
                    raise CorruptFileError(f"{key} is {times}, more than {DEEPEST}")

    def _earlier(self, node):
        path = node.get("same")
        if len(node) != 1 or not isinstance(path, str) or path not in self._made:
            raise CorruptFileError(f"a module refers to {str(path)[:200]!r}, which is not there yet")
        self._budget.spend(self._made[path])
        return self._made[path]


def _cost(module):
    """Modules and tensors in a module, counted once for each place."""
    every = [one for _, one in module.named_modules(remove_duplicate=False)]
    return len(every), sum(len(one._parameters) + len(one._buffers) for one in every)


def read_node(node):
    """Name, arguments and children of a node; raises CorruptFileError unless it has their types."""
    right = isinstance(node, list) and 1 <= len(node) <= 3
    name, arguments, children = [*node, *({}, {})[len(node) - 1 :]] if right else (None, None, None)
    if not isinstance(name, str) or not isinstance(arguments, dict) or not isinstance(children, dict):
        raise CorruptFileError(f"a module is described as {str(node)[:200]}")
    return name, arguments, children


def _adopt(parent, name, child):
    """Make `child` a child of `parent`, in the place of one that its constructor made or as a new one."""
    if name in parent._modules:
        parent._modules[name] = child
        return
    try:
        parent.add_module(name, child)
    except (KeyError, TypeError) as error:
        raise CorruptFileError(f"a module cannot be named {name!r}: {error}") from error


def _shortened(name, arguments, children):
    node = [name, arguments, children]
    while len(node) > 1 and not node[-1]:
        node.pop()
    return node


def _given_module(value):
    return {"module": Describer(refuse)(value)} if isinstance(value, nn.Module) else None


_GIVEN = {"module": lambda node: build(node, Budget(2**32, 2**32))}


def refuse(describer, module, path):
    """The `custom` of a Describer of standard layers alone."""
    raise NotPlainError(f"{path or 'the model'} is a {type(module).__name__}, not a layer of torch.nn")
