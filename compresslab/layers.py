"""Looking into a model: which layers hold weights, which of them are masked, what the effective tensors are.

A mask is a parametrization (torch.nn.utils.parametrize) of a layer's weight: weight = where(mask, original, 0). The
optimizer goes on training `original`, its gradient is 0 where the mask is False, and so zeros stay zero. Models pruned
by torch.nn.utils.prune are read as masked ones. A rounding (`grids.Grid`, …) is another, which comes before a mask.

Source: Han et al. 2015, arXiv:1506.02626, section 3.3 (retraining keeps the removed connections out).
"""

import contextlib
import copy
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType, ModuleType

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from compresslab import checks

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)  # weights (in, out, …), not (out, in, …)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
TYPES = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
ACTIVATIONS = (  # of each number by itself
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid),
    *(nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.LogSigmoid, nn.Softshrink),
    *(nn.Hardshrink, nn.Tanhshrink, nn.Threshold, nn.RReLU),
)
POOLS = {  # of each channel by itself: class -> dimensions of its maps
    getattr(nn, f"{kind}Pool{dimensions}d"): dimensions
    for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg")
    for dimensions in (1, 2, 3)
}

_WITHOUT_TENSORS = (str, bytes, int, float, type(None), type, FunctionType, ModuleType)


class Mask(nn.Module):
    """Parametrization that holds masked weights at zero.

    mask  bool tensor of the weight's shape, True where a weight stays; a buffer, so that it is saved and moved along

    While training, the mask is kept a second time in the weight's dtype: the multiplication, forward and backward,
    takes 0.4 of the time that torch.where with a bool mask takes. `masks_on_gradients` does without it.
    """

    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)
        self._scale = self._zeroed = self._hook = None

    def forward(self, weight):
        if torch.is_grad_enabled() and weight.requires_grad and not torch.compiler.is_compiling():
            return weight if self._zeroed == self._state_of(weight) else weight * self._scale_for(weight)
        return torch.where(self.mask, weight, 0.0)

    def right_inverse(self, weight):
        """What is kept as the original: +0.0 where masked, so that no nan hides there.

        Registration hands over the module's own Parameter, zeroed in place; an assigned tensor is left alone.
        """
        kept = torch.where(self.mask, weight, torch.zeros_like(weight))
        return weight.copy_(kept) if isinstance(weight, nn.Parameter) else kept

    def _state_of(self, weight):
        return id(self.mask), self.mask._version, weight.dtype, weight.device

    def _scale_for(self, weight):
        state = self._state_of(weight)
        if self._scale is None or self._scale[0] != state:
            self._scale = (state, self.mask.to(weight.dtype), self.mask)  # the mask kept alive, so that its id is
        return self._scale[1]

    def start_masking_gradient(self, weight):
        """Zero the original where masked, then mask its gradient instead, for as long as the mask stays."""
        with torch.no_grad():
            self.right_inverse(weight)
        self._zeroed = self._state_of(weight)
        self._hook = weight.register_post_accumulate_grad_hook(self._mask_gradient)

    def _mask_gradient(self, weight):
        weight.grad.mul_(self._scale_for(weight))

    def stop_masking_gradient(self):
        """Mask the weight again."""
        if self._hook:
            self._hook.remove()
        self._zeroed = self._hook = None

    def __getstate__(self):
        return {**super().__getstate__(), "_scale": None, "_zeroed": None, "_hook": None}


class Rounding(nn.Module):
    """Parametrization that keeps a weight on few values; a weight has one at most, and a mask comes after it.

    Layers that share a weight share the rounding too: one object, registered on each of them.
    """

    def right_inverse(self, weight):
        """What is kept as the original of a weight that is assigned: the weight itself."""
        return weight


class InputRounding(nn.Module):
    """Module that keeps what passes through it on few values; a step size that it learns is no weight or bias."""


@dataclass(frozen=True)
class Weight:
    """One weight tensor of a model, once, however many layers share it.

    names    qualified names of the weight layers that use it
    holders  (module, tensor name) of everything that uses it, an embedding tied to a layer included
    value    effective tensor, detached: do not write to it
    mask     True where a weight stays, or None if it is not masked
    """

    names: tuple
    holders: tuple
    value: torch.Tensor
    mask: torch.Tensor | None


def weight_layers(model, layers=None):
    """Layers whose weight a technique may compress: Linear, Conv and ConvTranspose in 1, 2 and 3 dimensions.

    Of a MultiheadAttention that is the output projection (a Linear); embeddings and recurrent layers are not there.

    layers   names to keep, as in model.named_modules(); None for all of them
    returns  dict of qualified name -> module, in module order; a module used twice is there once, by its first name
    raises   ValueError for a name that is not such a layer, and for a lazy layer whose size is not known yet
    """
    checks.module("model", model, wrapped=True)
    names = {prefix[:-1]: module for prefix, module in _walk(model) if isinstance(module, TYPES)}
    for name, module in names.items():
        _refuse_unready(name, module)
    kept = {id(names[name]) for name in (names if layers is None else _checked(layers, names, model))}
    first = {id(module): name for name, module in reversed(names.items())}
    return {name: module for name, module in names.items() if id(module) in kept and first[id(module)] == name}


def plain_weight_layers(model):
    """The Linear and Conv layers of a model, as a list, for a training that puts parametrizations of its own on them.

    raises  ValueError where there are none, or one has a mask or a rounding
    """
    found = weight_layers(model)
    if not found:
        raise ValueError("the model has no Linear or Conv layer; there is nothing to shrink")
    for name, layer in found.items():
        if parametrize.is_parametrized(layer):
            raise ValueError(f"layer {name!r} has a mask or a rounding; give layers.plain(model), which bakes them in")
    return list(found.values())


def distinct_weights(model, layers=None, tensor="weight"):
    """The weights of `weight_layers(model, layers)` as a list of Weight, shared ones once; same errors.

    tensor  name of the layers' tensor: "bias" for the biases of those that have one
    """
    chosen, holders, names = weight_layers(model, layers), {}, {}
    for _, module in _walk(model):
        for name, source in _sources(module).items():
            users = holders.setdefault(_identity(source), [])
            users.extend([] if (module, name) in users else [(module, name)])
    for name, module in chosen.items():
        if (source := _source(module, tensor)) is not None:
            names.setdefault(_identity(source), []).append(name)
    return [_weight(tuple(users), tuple(holders[key])) for key, users in names.items()]


def get_mask(module, name="weight"):
    """The mask of a module's tensor, True where a weight stays, or None if it has none."""
    source = _source(module, name)
    if isinstance(source, torch_prune.BasePruningMethod):
        return getattr(module, f"{name}_mask").bool()
    masks = [one.mask for one in _parametrizations(source) if isinstance(one, Mask)]
    return masks[0] if masks else None


def set_mask(module, mask, name="weight"):
    """Mask a module's tensor in place; an earlier mask is replaced and other parametrizations come before it.

    mask    bool tensor of the tensor's shape, True where a weight stays; used as it is, not copied
    raises  ValueError if `mask` is not bool, has another shape, or the module has no such parameter
    """
    source = _source(module, name)
    if source is None:
        raise ValueError(f"name is {name!r}; {type(module).__name__} has {', '.join(_sources(module)) or 'none'}")
    weight = _value(module, name, source)
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.shape != weight.shape:
        found = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else checks.words(mask)
        raise ValueError(f"mask is {found}; give a torch.bool tensor of shape {tuple(weight.shape)}")
    mask = Mask(mask.to(weight.device))
    if isinstance(source, torch_prune.BasePruningMethod):
        torch_prune.remove(module, name)
    others = [one for one in _parametrizations(source) if not isinstance(one, Mask)]
    for earlier in set(_parametrizations(source)) - set(others):
        earlier.stop_masking_gradient()
    _set_parametrizations(module, name, [*others, mask])
    if all(isinstance(one, Rounding) for one in others):
        with torch.no_grad():
            mask.right_inverse(_source(module, name).original)


def get_rounding(module, name="weight"):
    """The `Rounding` (a grid, …) of a module's tensor, or None if it has none."""
    found = [one for one in _parametrizations(_source(module, name)) if isinstance(one, Rounding)]
    return found[0] if found else None


def set_rounding(module, rounding, name="weight"):
    """Keep a module's tensor on few values, in place; an earlier rounding is replaced, a mask still comes last.

    rounding  a `Rounding` that fits the tensor, the same object for all layers that share it; None takes it away
    raises    ValueError if `rounding` is no Rounding, or the module has no such parameter

    An earlier rounding's values become the weight that the new one rounds: what there is to see is what is quantized.
    """
    source = _source(module, name)
    if source is None:
        raise ValueError(f"name is {name!r}; {type(module).__name__} has {', '.join(_sources(module)) or 'none'}")
    if rounding is not None and not isinstance(rounding, Rounding):
        raise ValueError(f"rounding is {checks.words(rounding)}; give a Rounding such as grids.Grid, or None")
    if isinstance(source, torch_prune.BasePruningMethod):
        set_mask(module, get_mask(module, name), name)
        source = _source(module, name)
    made = [one for one in _parametrizations(source) if not isinstance(one, Rounding | Mask)]
    masks = [one for one in _parametrizations(source) if isinstance(one, Mask)]
    if not made and get_rounding(module, name) is not None:
        with torch.no_grad():
            source.original.copy_(_value(module, name, source))
    _set_parametrizations(module, name, [*made, *([] if rounding is None else [rounding]), *masks])


def _set_parametrizations(module, name, wanted):
    """Make `wanted` the parametrizations of a tensor, in this order; the parameter behind it stays the same object."""
    source = _source(module, name)
    if not wanted:
        if isinstance(source, parametrize.ParametrizationList):
            _bake(module, name, source.original)
        return
    for one in wanted:
        one.train(module.training)
    if isinstance(source, parametrize.ParametrizationList):
        del source[:]
        source.extend(wanted)
        return
    _give_own_class(module)
    for one in wanted:
        parametrize.register_parametrization(module, name, one, unsafe=True)
    module.parametrizations.train(module.training)


def duplicate(model):
    """Deep copy that shares nothing with `model`; layers pruned by torch.nn.utils.prune carry a Mask in it instead.

    Unlike copy.deepcopy it copes with tensors that a forward pass left behind, and a parametrized layer's copy gets
    a class of its own (torch's parametrizations live in the class, which deepcopy shares).

    raises  ValueError that names an attribute which cannot be copied, such as a lock
    """
    for name, module in checks.module("model", model, wrapped=True).named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"module {name!r} is compiled by torch.jit; give the module that it was made from")
    try:
        twin = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for _, tensor in left_behind(model)})
    except Exception as error:  # a module may hold anything: a lock, a file, a generator
        hint = f"model holds something that cannot be copied{_named_uncopyable(model)}"
        raise ValueError(f"{hint}: {checks.reason(error)}") from error
    uses = Counter(id(weight) for _, module in _walk(twin) for weight in module._parameters.values())
    for _, module in _walk(twin):
        _give_own_class(module)
        for name in _pruned_by_torch(module):
            weight = module._parameters[f"{name}_orig"]
            values = weight.detach().clone()
            set_mask(module, get_mask(module, name), name)
            if uses[id(weight)] > 1:  # who shares it is not masked
                weight.data.copy_(values)
    return twin


def plain(model):
    """Deep copy in which every parametrization is baked into an ordinary parameter: same outputs, zeros as values.

    Shared weights stay shared. Its state_dict has the names of the model before it was compressed.
    """
    twin, baked = duplicate(model), {}
    for _, module in _walk(twin):
        sources = _sources(module)
        for name in list(_parametrized(module)):
            source = sources[name]
            _bake(module, name, baked.setdefault(_identity(source), _as_leaf(module, name, source)))
        ordered = {name: module._parameters.pop(name) for name in sources if name in module._parameters}
        module._parameters.update(ordered)
    return twin


def made_tensors(model):
    """Find the tensors that a parametrization such as spectral norm makes, which `plain` bakes in for good.

    returns  dict of qualified name -> names of the parametrizations ("SpectralNorm"); masks and roundings are none
    """
    found = {}
    for prefix, module in _walk(model):
        for name, source in _parametrized(module).items():
            kinds = [type(one).__name__.strip("_") for one in source if not isinstance(one, Rounding | Mask)]
            found |= {f"{prefix}{name}": ", ".join(kinds)} if kinds else {}
    return found


def effective_state(model):
    """What plain(model).state_dict() holds, without copying the model.

    returns  dict of name -> detached tensor, same names and order; a shared tensor is there under each of its names;
             unmasked tensors are the model's own memory: clone one before writing to it
    """
    state, values = {}, {}
    for prefix, module in _walk(checks.module("model", model, wrapped=True)):
        own = {}
        module._save_to_state_dict(own, prefix, False)
        for name in _pruned_by_torch(module):
            del own[f"{prefix}{name}_orig"], own[f"{prefix}{name}_mask"]
        for name, source in _sources(module).items():
            saved = own.pop(prefix + name, None)
            if saved is None:
                key = _identity(source)
                saved = values[key] = values[key] if key in values else _value(module, name, source)
            state[prefix + name] = saved
        state.update(own)
    return state


@contextlib.contextmanager
def masks_on_gradients(model):
    """Within this context masks act on gradients, not on weights: a training step is the same, and costs less.

    It is for an optimizer that leaves alone a weight of 0 whose gradients were all 0, as SGD and Adam do. A mask that
    comes after another parametrization, and one of a parameter that is used elsewhere too, acts on the weight as ever.
    """
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    sources = [source for module in model.modules() for source in _parametrized(module).values()]
    masks = [
        (source[0], source.original)
        for source in sources
        if len(source) == 1 and isinstance(source[0], Mask) and uses[id(source.original)] == 1
    ]
    masks = [(mask, weight) for mask, weight in masks if weight.requires_grad and weight.is_leaf]
    for mask, weight in masks:
        mask.start_masking_gradient(weight)
    try:
        yield
    finally:
        for mask, _ in masks:
            mask.stop_masking_gradient()


@contextlib.contextmanager
def modes_kept(model):
    """At the end, every module is in training or evaluation mode as it was before."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model
    finally:
        for module, training in modes.items():
            module.training = training


def as_inputs(model, images, device=None):
    """Images as a model takes them: of its weights' dtype; where it begins with an embedding whole numbers as int64,
    where it has one int64 as it is; on `device`, None for the model's own. A copy only where something changes.
    """
    checks.module("model", model, wrapped=True)
    tables = nn.Embedding | nn.EmbeddingBag
    weight = next((one for one in [*model.parameters(), *model.buffers()] if one.is_floating_point()), torch.empty(0))
    first = next((part for part in model.modules() if _is_layer_with_tensors(part)), None)
    has_table = any(isinstance(part, tables) for part in model.modules())
    words = has_table and (not images.is_floating_point() or (isinstance(first, tables) and not (images % 1).any()))
    return images.to(device or weight.device, torch.int64 if words else weight.dtype)


def _is_layer_with_tensors(part):
    """Whether a module holds tensors and no modules: positions that a model itself holds are not its first layer."""
    return parametrize.is_parametrized(part) or (not part._modules and bool(part._parameters or part._buffers))


def unsupported(model):
    """Parts that hold weights which are not of `weight_layers`: embeddings, recurrent layers, attention's projections.

    returns  dict of qualified name -> name of the kind ("LSTM"), in module order. Normalisations, whose parameters are
             a scale and a shift for each channel, are not there, nor is what shares its weights with a weight layer
    """
    chosen, found = weight_layers(model).values(), {}
    known = {_identity(source) for module in chosen for source in _sources(module).values()}
    for prefix, module in _walk(model):
        own = [source for source in _sources(module).values() if _is_trained(source) and _dimensions(source) > 1]
        if any(_identity(source) not in known for source in own):
            found.setdefault(id(module), (prefix[:-1], type(module).__name__.removeprefix("Parametrized")))
    return dict(found.values())


def count_parameters(model):
    """Number of effective parameters: pruned ones included, shared ones once; buffers and learned step sizes not."""
    return sum(value.numel() for value in _effective_parameters(model))


def count_nonzeros(model):
    """Number of effective parameters that are not zero; shared ones once."""
    return sum(int(value.count_nonzero()) for value in _effective_parameters(model))


def _weight(names, holders):
    """The Weight of all its holders; an entry masked in one of them counts as masked."""
    module, name = holders[0]
    masks = [mask for mask in (get_mask(*holder) for holder in holders) if mask is not None]
    mask = None
    for other in masks:
        mask = other if mask is None or mask is other else mask & other
    return Weight(names, holders, _value(module, name, _source(module, name)), mask)


def _effective_parameters(model):
    """Effective tensor of every parameter, each shared one once."""
    checks.module("model", model, wrapped=True)
    seen = set()
    for module in [one for _, one in _walk(model) if not isinstance(one, InputRounding)]:
        for name, source in _sources(module).items():
            key = _identity(source)
            if key not in seen and _is_trained(source):
                seen.add(key)
                yield _value(module, name, source)


def _walk(module, prefix=""):
    """Prefix ("block.fc1.") and module, in the order of state_dict; the parametrizations themselves are left out."""
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None and not (name == "parametrizations" and parametrize.is_parametrized(module)):
            yield from _walk(child, f"{prefix}{name}.")


def _sources(module):
    """Where a module's own parameters come from: name -> Parameter, ParametrizationList or torch pruning hook."""
    pruned, parametrized = _pruned_by_torch(module), _parametrized(module)
    own = {name: value for name, value in module._parameters.items() if value is not None}
    if not pruned and not parametrized:
        return own
    for name in pruned:
        own.pop(f"{name}_orig")
    sources = {**parametrized, **pruned, **own}
    return dict(sorted(sources.items(), key=lambda item: item[0] != "weight"))


def _source(module, name):
    """What _sources(module) has under one name, or None: of many parameters one is found without going through all."""
    checks.module("module", module, wrapped=True)
    if parametrize.is_parametrized(module, name):
        return module.parametrizations[name]
    pruned = _pruned_by_torch(module)
    hidden = name.removesuffix("_orig") in pruned
    return pruned.get(name) if hidden else module._parameters.get(name)


def _parametrized(module):
    return dict(module.parametrizations.items()) if parametrize.is_parametrized(module) else {}


def _pruned_by_torch(module):
    hooks = module._forward_pre_hooks.values()
    return {hook._tensor_name: hook for hook in hooks if isinstance(hook, torch_prune.BasePruningMethod)}


def _parametrizations(source):
    return list(source) if isinstance(source, parametrize.ParametrizationList) else []


def _identity(source):
    """A key that is equal for parameters that are one and the same tensor, shared between layers."""
    if not isinstance(source, parametrize.ParametrizationList):
        return id(source)
    others = [one for one in source if not isinstance(one, Mask)]
    if source.is_tensor and all(isinstance(one, Rounding) for one in others):
        return (id(source.original), *map(id, others)) if others else id(source.original)
    return (id(source), *map(id, others))


def _is_trained(source):
    """Whether a source is a parameter, not a parametrized buffer."""
    own = source.parameters(recurse=False) if isinstance(source, nn.Module) else [source]
    return next(iter(own), None) is not None


def _dimensions(source):
    """Number of dimensions of the tensor that a source is made from."""
    original = getattr(source, "original", source)
    return original.dim() if isinstance(original, torch.Tensor) else 2


def _value(module, name, source):
    """Effective tensor of one source, detached; a spectral norm takes no step of its power iteration for it."""
    if isinstance(source, nn.Parameter):
        return source.detach()
    with torch.no_grad():
        if isinstance(source, torch_prune.BasePruningMethod):
            return torch.where(getattr(module, f"{name}_mask").bool(), getattr(module, f"{name}_orig"), 0.0)
        training = [one for one in source.modules() if one.training]
        source.eval()
        try:
            return source().detach()
        finally:
            for one in training:
                one.training = True


def _as_leaf(module, name, source):
    """Effective tensor of a parametrized one, as the Parameter (or buffer) it becomes when baked."""
    value = _value(module, name, source)
    own = list(source.parameters(recurse=False))
    return nn.Parameter(value, requires_grad=any(one.requires_grad for one in own)) if own else value


def _bake(module, name, value):
    """Put `value` in the place of a parametrized tensor, in a module whose class is its own."""
    delattr(type(module), name)
    del module.parametrizations[name]
    if not module.parametrizations:
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    else:
        module.register_buffer(name, value)


def _give_own_class(module):
    """Undo the sharing of a parametrized module's class with the module it was deep-copied from."""
    if parametrize.is_parametrized(module):
        shared = type(module)
        body = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(shared.__name__, shared.__bases__, body)


def left_behind(model):
    """Find the tensors of a graph that a forward left in a model: in attributes, in containers and objects they hold.

    returns  list of (path of the attribute, tensor)
    """
    found, seen = [], {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            tensors = [] if name == "_modules" else _graph_tensors(value, seen)
            found += [(f"{path}.{name}" if path else name, tensor) for tensor in tensors]
    return found


def detach_left_behind(model):
    """Take the tensors that a forward left in a model out of their graph, in place: it can be copied, and is freed."""
    for _, tensor in left_behind(model):
        with contextlib.suppress(RuntimeError):  # a view stays
            tensor.detach_()


def _graph_tensors(value, seen):
    """Tensors that are no leaves of their graph, in a value or in what it holds; seen  id -> value seen before."""
    found, waiting = [], [value]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, _WITHOUT_TENSORS):
            continue
        seen[id(value)] = value  # held, so that no id is used again
        if isinstance(value, torch.Tensor):
            found += [] if value.is_leaf else [value]
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            waiting += value
        elif isinstance(value, MethodType):
            waiting.append(value.__self__)
        elif isinstance(value, partial):
            waiting += [value.func, value.args, value.keywords]
        else:
            slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
            waiting += [getattr(value, name, None) for name in slots if isinstance(name, str)]
            waiting.append(getattr(value, "__dict__", None))
    return found


def _named_uncopyable(model):
    """Return the first attribute of a model that cannot be copied, in words."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            try:
                memo = {id(tensor): tensor for tensor in _graph_tensors(value, {})}
                copy.deepcopy(value if name != "_modules" else None, memo)
            except Exception:
                return f" in attribute {f'{path}.{name}' if path else name!r}"
    return ""


def _checked(layers, names, model):
    """`layers` after checking that it is a collection of names of weight layers."""
    if isinstance(layers, str) or not hasattr(layers, "__iter__"):
        allowed = f"give a list of layer names, from {', '.join(names) or 'none'}"
        raise ValueError(f"layers is {checks.words(layers)}; {allowed}")
    layers = list(layers)
    if not layers:
        raise ValueError(f"layers is empty; give names from {', '.join(names) or 'none'}, or None for all")
    if unknown := [name for name in layers if not isinstance(name, str) or name not in names]:
        others = {prefix[:-1]: type(module).__name__ for prefix, module in _walk(model)}
        found = f" (a {others[unknown[0]]})" if unknown[0] in list(others) else ""
        raise ValueError(f"layers has {checks.words(unknown[0])}{found}; choose from {', '.join(names) or 'none'}")
    return layers


def _refuse_unready(name, module):
    """Say what to do about a layer whose weight has no size, no values, or is made by a hook before each forward."""
    weight = next((one for one in module.parameters() if is_lazy(one)), None)
    if weight is not None:
        raise ValueError(f"layer {name!r} is lazy and has no weights yet; run one batch through the model first")
    source = _source(module, "weight")
    if source is None:
        hint = "weight_norm and spectral_norm of torch.nn.utils.parametrizations work"
        raise ValueError(f"layer {name!r} has no weight parameter, a hook computes it; {hint}")
