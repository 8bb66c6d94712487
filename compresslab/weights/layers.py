"""Finding and counting the layers of a model, their effective tensors, and copies of the model.

The masks and roundings of `masks` can be called from here as well.
"""

import contextlib
import copy
import gc
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from compresslab import checks
from compresslab.weights.masks import (
    InputRounding,
    Mask,
    Rounding,
    bake,
    find_source,
    find_sources,
    get_mask,
    get_rounding,
    list_parametrizations,
    masks_on_gradients,
    read_value,
    set_mask,
    set_rounding,
)
from compresslab.weights.masks import give_own_class as _give_own_class

__all__ = ["InputRounding", "Mask", "Rounding", "get_mask", "get_rounding", "masks_on_gradients"]
__all__ += ["set_mask", "set_rounding", "Weight", "as_inputs", "count_nonzeros", "count_parameters"]
__all__ += [
    "distinct_weights",
    "duplicate",
    "effective_state",
    "find_matrices",
    "modes_kept",
    "plain",
    "unsupported",
    "weight_layers",
]

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
_TABLES = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class Weight:
    """A weight tensor of a model, listed once however many layers share it.

    names    qualified names of the weight layers that use it
    holders  (module, tensor name) of everything that uses it, an embedding tied to a layer included
    value    effective tensor, detached: do not write to it
    mask     True where a weight stays, or None if it is not masked
    """

    names: tuple
    holders: tuple
    value: torch.Tensor
    mask: torch.Tensor | None


def weight_layers(model: nn.Module, layers: Iterable[str] | None = None) -> dict[str, nn.Module]:
    """Return the layers a technique may compress: Linear, Conv and ConvTranspose.

    layers   names to choose, as in model.named_modules(); None for all of them
    returns  dict of qualified name -> module, in module order; a module used twice is there once, by its first name
    raises   ValueError for a name that is not such a layer, and for a lazy layer whose size is not known yet
    """
    checks.module("model", model, wrapped=True)
    names = {prefix[:-1]: module for prefix, module in _walk(model) if isinstance(module, TYPES)}
    for name, module in names.items():
        if any(is_lazy(weight) for weight in module.parameters()):
            raise ValueError(f"layer {name!r} is lazy and has no weights yet; run one batch through the model first")
        if find_source(module, "weight") is None:
            hint = "weight_norm and spectral_norm of torch.nn.utils.parametrizations work"
            raise ValueError(f"layer {name!r} has no weight parameter, a hook computes it; {hint}")
    chosen = {id(names[name]) for name in (names if layers is None else _check_names(layers, names, model))}
    first = {id(module): name for name, module in reversed(names.items())}
    return {name: module for name, module in names.items() if id(module) in chosen and first[id(module)] == name}


def plain_weight_layers(model: nn.Module) -> list[nn.Module]:
    """Return the Linear and Conv layers of a model that has no parametrizations.

    raises  ValueError where there are none, or a layer has a mask or a rounding
    """
    layers = weight_layers(model)
    if not layers:
        raise ValueError("the model has no Linear or Conv layer; there is nothing to shrink")
    for name, layer in layers.items():
        if parametrize.is_parametrized(layer):
            raise ValueError(f"layer {name!r} has a mask or a rounding; give layers.plain(model), which bakes them in")
    return list(layers.values())


def find_matrices(model: nn.Module, layers: Iterable[str] | None = None) -> dict[str, tuple[nn.Module, str]]:
    """Return the weights that can be pruned, rounded and shared, those of recurrent layers and attention included.

    layers   names to choose; None for all but embeddings. "fc1" is the weight of a layer in `weight_layers`; "lstm" are
             all weights of a recurrent layer, "lstm.weight_hh_l0" is one; "attention" is the input projection of a
             MultiheadAttention, whose output projection is the layer "attention.out_proj"; "words" is an embedding
    returns  dict of name -> (module, name of its tensor), in module order; a module used twice by its first name
    raises   ValueError as `weight_layers`
    """
    weight_layers(model)  # which refuses layers without weights
    places, groups, seen = {}, {}, {}
    for prefix, module in _walk(model):
        first = seen.setdefault(id(module), prefix)
        tensors = {"": "weight"} if isinstance(module, TYPES + _TABLES) else {}
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            tensors = {name: name for name in find_sources(module) if name.endswith("proj_weight") or "weight_" in name}
        for suffix, tensor in tensors.items():
            name = f"{first}{suffix}" if suffix else first[:-1]
            places[name] = module, tensor
            groups.setdefault(prefix[:-1], []).append(name)
            groups.setdefault(f"{prefix}{suffix}" if suffix else prefix[:-1], [name])
    if layers is None:
        return {name: place for name, place in places.items() if not isinstance(place[0], _TABLES)}
    chosen = {name for layer in _check_names(layers, groups, model) for name in groups[layer]}
    return {name: place for name, place in places.items() if name in chosen}


def distinct_weights(model: nn.Module, layers: Iterable[str] | None = None, tensor: str = "weight") -> list[Weight]:
    """Return the weights of `find_matrices(model, layers)`, or the "bias" tensors of such layers, shared ones once."""
    holders, names = {}, {}
    chosen = find_matrices(model, layers)
    if tensor == "bias":
        chosen = {name: (module, tensor) for name, (module, _) in chosen.items() if isinstance(module, TYPES)}
    for _, module in _walk(model):
        for name, source in find_sources(module).items():
            users = holders.setdefault(_identity(source), [])
            users.extend([] if (module, name) in users else [(module, name)])
    for name, (module, tensor) in chosen.items():
        if (source := find_source(module, tensor)) is not None:
            names.setdefault(_identity(source), []).append(name)
    weights = []
    for key, users in names.items():
        module, name = holders[key][0]
        # Any holder's mask counts.
        masks = {id(mask): mask for mask in (get_mask(*holder) for holder in holders[key]) if mask is not None}
        mask = torch.stack([*masks.values()]).all(0) if len(masks) > 1 else next(iter(masks.values()), None)
        value = read_value(module, name, find_source(module, name))
        weights.append(Weight(tuple(users), tuple(holders[key]), value, mask))
    return weights


def duplicate(model: nn.Module) -> nn.Module:
    """Return a deep copy that shares nothing with `model`.

    Tensors that a forward pass left behind are no obstacle, and a parametrized layer's copy gets a class of its own.

    raises  ValueError that names an attribute which cannot be copied, such as a lock
    """
    for name, module in checks.module("model", model, wrapped=True).named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"module {name!r} is compiled by torch.jit; give the module that it was made from")
    try:
        twin = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for _, tensor in left_behind(model)})
    except Exception as error:  # a module may hold anything: a lock, a file, a generator
        hint = f"model holds something that cannot be copied{_name_uncopyable(model)}"
        raise ValueError(f"{hint}: {checks.reason(error)}") from error
    uses = Counter(id(weight) for _, module in _walk(twin) for weight in module._parameters.values())
    for _, module in _walk(twin):
        _give_own_class(module)
        for name, source in find_sources(module).items():
            if isinstance(source, torch_prune.BasePruningMethod):
                weight = module._parameters[f"{name}_orig"]
                values = weight.detach().clone()
                set_mask(module, get_mask(module, name), name)
                if uses[id(weight)] > 1:  # another layer shares it, unmasked
                    weight.data.copy_(values)
    return twin


def plain(model: nn.Module) -> nn.Module:
    """Return a deep copy in which parametrizations are baked into ordinary parameters.

    Shared weights stay shared. Its state_dict has the names of the model before it was compressed.
    """
    twin, baked = duplicate(model), {}
    for _, module in _walk(twin):
        sources = find_sources(module)
        parametrized = [name for name, source in sources.items() if isinstance(source, parametrize.ParametrizationList)]
        for name in parametrized:
            source, key = sources[name], _identity(sources[name])
            if key not in baked:
                baked[key] = read_value(module, name, source)
                if _is_parameter(source):
                    trained = any(original.requires_grad for original in source.parameters(recurse=False))
                    baked[key] = nn.Parameter(baked[key], requires_grad=trained)
            bake(module, name, baked[key])
        ordered = {name: module._parameters.pop(name) for name in sources if name in module._parameters}
        module._parameters.update(ordered)
    return twin


def made_tensors(model: nn.Module) -> dict[str, str]:
    """Find tensors made by a parametrization such as spectral norm, which `plain` bakes in.

    returns  dict of qualified name -> names of the parametrizations ("SpectralNorm"); masks and roundings are none
    """
    made = {}
    for prefix, module in _walk(model):
        for name, source in find_sources(module).items():
            foreign = [part for part in list_parametrizations(source) if not isinstance(part, Rounding | Mask)]
            if foreign:
                made[f"{prefix}{name}"] = ", ".join(type(part).__name__.strip("_") for part in foreign)
    return made


def effective_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what plain(model).state_dict() holds, without copying the model.

    returns  dict of name -> detached tensor; unmasked ones are the model's own memory: clone before writing to them
    """
    state, values = {}, {}
    for prefix, module in _walk(checks.module("model", model, wrapped=True)):
        entries = {}
        module._save_to_state_dict(entries, prefix, False)
        for name, source in find_sources(module).items():
            if isinstance(source, torch_prune.BasePruningMethod):
                del entries[f"{prefix}{name}_orig"], entries[f"{prefix}{name}_mask"]
            entry = entries.pop(prefix + name, None)
            if entry is None:
                key = _identity(source)
                if key not in values:
                    values[key] = read_value(module, name, source)
                entry = values[key]
            state[prefix + name] = entry
        state.update(entries)
    return state


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[nn.Module]:
    """Put every module back into training or evaluation mode, as it was, at the end."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model
    finally:
        for module, training in modes.items():
            module.training = training


def as_inputs(model: nn.Module, images: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """Return images in a model's dtype, on `device` or the model's own.

    Whole numbers become int64 where the model begins with an embedding; where it has one later, int64 stays int64.
    """
    checks.module("model", model, wrapped=True)
    tensors = [*model.parameters(), *model.buffers()]
    weight = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
    holders = (part for part in model.modules() if parametrize.is_parametrized(part) or not part._modules)
    first = next((part for part in holders if part._modules or part._parameters or part._buffers), None)
    if images.is_floating_point():
        is_words = isinstance(first, _TABLES) and not (images % 1).any()
    else:
        is_words = any(isinstance(part, _TABLES) for part in model.modules())
    return images.to(device or weight.device, torch.int64 if is_words else weight.dtype)


def unsupported(model: nn.Module, matrices: bool = False) -> dict[str, str]:
    """Find the parts with weights that are not of `weight_layers`, such as embeddings; or not of `find_matrices`.

    returns  dict of qualified name -> name of the kind ("LSTM"), in module order; without normalisations, and without
             what shares its weights with a weight layer
    """
    known = {_identity(source) for module in weight_layers(model).values() for source in find_sources(module).values()}
    known |= {_identity(find_source(*place)) for place in find_matrices(model).values()} if matrices else set()
    kinds = {}
    for prefix, module in _walk(model):
        parameters = [source for source in find_sources(module).values() if _is_parameter(source)]
        originals = [(source, getattr(source, "original", source)) for source in parameters]
        matrices = [source for source, tensor in originals if not isinstance(tensor, torch.Tensor) or tensor.dim() > 1]
        if any(_identity(source) not in known for source in matrices):
            kinds.setdefault(id(module), (prefix[:-1], type(module).__name__.removeprefix("Parametrized")))
    return dict(kinds.values())


def count_parameters(model: nn.Module) -> int:
    """Count effective parameters: pruned ones included, shared ones once; buffers and learned step sizes not."""
    return sum(value.numel() for value in _effective_parameters(model))


def count_nonzeros(model: nn.Module) -> int:
    """Count effective parameters that are not zero; shared ones once."""
    return sum(int(value.count_nonzero()) for value in _effective_parameters(model))


def left_behind(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Find tensors of a graph that a forward left in a model's attributes.

    returns  list of (path of the attribute, tensor)
    """
    tensors, seen = [], {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name != "_modules":
                where = f"{path}.{name}" if path else name
                tensors += [(where, tensor) for tensor in _find_graph_tensors(value, seen)]
    return tensors


def detach_left_behind(model: nn.Module) -> None:
    """Detach the tensors that a forward left in a model, in place."""
    for _, tensor in left_behind(model):
        with contextlib.suppress(RuntimeError):  # a view stays
            tensor.detach_()


def _find_graph_tensors(value, seen):
    """Return the tensors that a value refers to and that are no leaves.

    seen  dict of id -> value, of values that need not be looked at again
    """
    tensors, waiting = [], [value]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, type | FunctionType | ModuleType):
            continue
        seen[id(value)] = value  # held, so that its id is not used again
        if isinstance(value, torch.Tensor):
            tensors += [] if value.is_leaf else [value]
        else:
            waiting += gc.get_referents(value)
    return tensors


def _name_uncopyable(model):
    """Return the first attribute of a model that cannot be copied, in words."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            try:
                memo = {id(tensor): tensor for tensor in _find_graph_tensors(value, {})}
                copy.deepcopy(value if name != "_modules" else None, memo)
            except Exception:
                return f" in attribute {f'{path}.{name}' if path else name!r}"
    return ""


def _effective_parameters(model):
    """Yield the effective tensor of every parameter, each shared one once."""
    checks.module("model", model, wrapped=True)
    seen = set()
    for _, module in _walk(model):
        sources = {} if isinstance(module, InputRounding) else find_sources(module)
        for name, source in sources.items():
            key = _identity(source)
            if key not in seen and _is_parameter(source):
                seen.add(key)
                yield read_value(module, name, source)


def _walk(module, prefix=""):
    """Yield prefix ("block.fc1.") and module, in the order of state_dict, without the parametrizations themselves."""
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None and not (name == "parametrizations" and parametrize.is_parametrized(module)):
            yield from _walk(child, f"{prefix}{name}.")


def _identity(source):
    """Return a key that is equal for sources of the same shared tensor."""
    if not isinstance(source, parametrize.ParametrizationList):
        return id(source)
    parts = [part for part in source if not isinstance(part, Mask)]
    if source.is_tensor and all(isinstance(part, Rounding) for part in parts):
        return (id(source.original), *map(id, parts)) if parts else id(source.original)
    return (id(source), *map(id, parts))


def _is_parameter(source):
    """Return whether a source is a parameter, not a parametrized buffer."""
    parameters = source.parameters(recurse=False) if isinstance(source, nn.Module) else [source]
    return next(iter(parameters), None) is not None


def _check_names(layers, names, model):
    """Return `layers` after checking that it is a collection of names of weight layers."""
    choices = ", ".join(names) or "none"
    if isinstance(layers, str) or not hasattr(layers, "__iter__"):
        raise ValueError(f"layers is {checks.words(layers)}; give a list of layer names, from {choices}")
    layers = list(layers)
    if not layers:
        raise ValueError(f"layers is empty; give names from {choices}, or None for all")
    if unknown := [name for name in layers if not isinstance(name, str) or name not in names]:
        kinds = {prefix[:-1]: type(module).__name__ for prefix, module in _walk(model)}
        kind = f" (a {kinds[unknown[0]]})" if unknown[0] in list(kinds) else ""
        raise ValueError(f"layers has {checks.words(unknown[0])}{kind}; choose from {choices}")
    return layers
