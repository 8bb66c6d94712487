"""Masks and roundings: the parametrizations that compression puts on a layer's tensors.

A mask (torch.nn.utils.parametrize) holds weights at zero: weight = where(mask, original, 0), and the gradient of
`original` is 0 there. A rounding (`grids.Grid`, …) keeps a weight on few values; it comes before the mask. Models
pruned by torch.nn.utils.prune are read as masked ones. The *source* of a tensor is what makes it: a Parameter, a
ParametrizationList, or a pruning hook of torch.

Source: Han et al. 2015, arXiv:1506.02626, section 3.3 (retraining keeps the removed connections out).
"""

import contextlib
from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from compresslab import checks


class Mask(nn.Module):
    """Parametrization that holds masked weights at zero.

    mask  bool tensor of the weight's shape, True where a weight stays; a buffer, so it is saved and moved along

    While training, the mask is stored a second time in the weight's dtype, to multiply with in 0.4 of the time.
    """

    def __init__(self, mask: torch.Tensor):
        super().__init__()
        self.register_buffer("mask", mask)
        self._scale = self._zeroed = self._hook = None

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight with zeros where the mask is False."""
        if torch.is_grad_enabled() and weight.requires_grad and not torch.compiler.is_compiling():
            return weight if self._zeroed == self._state_for(weight) else weight * self._scale_for(weight)
        return torch.where(self.mask, weight, 0.0)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the original of a weight, +0.0 where masked; a Parameter is zeroed in place."""
        zeroed = torch.where(self.mask, weight, torch.zeros_like(weight))
        return weight.copy_(zeroed) if isinstance(weight, nn.Parameter) else zeroed

    def _state_for(self, weight):
        """Return what changes whenever the mask, or the weight's dtype or device, does."""
        return id(self.mask), self.mask._version, weight.dtype, weight.device

    def _scale_for(self, weight):
        """Return the mask in the weight's dtype, made anew when something has changed."""
        state = self._state_for(weight)
        if self._scale is None or self._scale[0] != state:
            self._scale = (state, self.mask.to(weight.dtype), self.mask)  # holding the mask keeps its id in use
        return self._scale[1]

    def start_masking_gradient(self, weight: nn.Parameter) -> None:
        """Zero the original where masked, then mask its gradient instead of the weight."""
        with torch.no_grad():
            self.right_inverse(weight)
        self._zeroed = self._state_for(weight)
        self._hook = weight.register_post_accumulate_grad_hook(self._mask_gradient)

    def _mask_gradient(self, weight):
        weight.grad.mul_(self._scale_for(weight))

    def stop_masking_gradient(self) -> None:
        """Mask the weight again."""
        if self._hook:
            self._hook.remove()
        self._zeroed = self._hook = None

    def __getstate__(self):
        return {**super().__getstate__(), "_scale": None, "_zeroed": None, "_hook": None}


class Rounding(nn.Module):
    """Parametrization that keeps a weight on few values; a weight has at most one, and a mask comes after it.

    Layers that share a weight share the rounding too: the same object is registered on each of them.
    """

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the original of an assigned weight: the weight itself."""
        return weight


class InputRounding(nn.Module):
    """Module that keeps what passes through it on few values; its learned step size is no weight or bias."""


def get_mask(module: nn.Module, name: str = "weight") -> torch.Tensor | None:
    """Return the mask of a module's tensor, True where a weight stays, or None."""
    source = find_source(module, name)
    if isinstance(source, torch_prune.BasePruningMethod):
        return getattr(module, f"{name}_mask").bool()
    masks = [part.mask for part in list_parametrizations(source) if isinstance(part, Mask)]
    return masks[0] if masks else None


def set_mask(module: nn.Module, mask: torch.Tensor, name: str = "weight") -> None:
    """Mask a module's tensor in place, after its other parametrizations; an earlier mask is replaced.

    mask    bool tensor of the tensor's shape, True where a weight stays; used as it is, not copied
    raises  ValueError if `mask` is not bool, has another shape, or the module has no such parameter
    """
    source = _find_source_or_fail(module, name)
    weight = read_value(module, name, source)
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.shape != weight.shape:
        actual = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else checks.words(mask)
        raise ValueError(f"mask is {actual}; give a torch.bool tensor of shape {tuple(weight.shape)}")
    mask = Mask(mask.to(weight.device))
    if isinstance(source, torch_prune.BasePruningMethod):
        torch_prune.remove(module, name)
    before = [part for part in list_parametrizations(source) if not isinstance(part, Mask)]
    for earlier in set(list_parametrizations(source)) - set(before):
        earlier.stop_masking_gradient()
    _set_parametrizations(module, name, [*before, mask])
    if all(isinstance(part, Rounding) for part in before):
        with torch.no_grad():
            mask.right_inverse(find_source(module, name).original)


def get_rounding(module: nn.Module, name: str = "weight") -> Rounding | None:
    """Return the `Rounding` (a grid, …) of a module's tensor, or None."""
    roundings = [part for part in list_parametrizations(find_source(module, name)) if isinstance(part, Rounding)]
    return roundings[0] if roundings else None


def set_rounding(module: nn.Module, rounding: Rounding | None, name: str = "weight") -> None:
    """Keep a module's tensor on few values, in place; an earlier rounding is replaced.

    rounding  a `Rounding` that fits the tensor, the same object for all layers that share it; None takes it away
    raises    ValueError if `rounding` is no Rounding, or the module has no such parameter
    """
    source = _find_source_or_fail(module, name)
    if rounding is not None and not isinstance(rounding, Rounding):
        raise ValueError(f"rounding is {checks.words(rounding)}; give a Rounding such as grids.Grid, or None")
    if isinstance(source, torch_prune.BasePruningMethod):
        set_mask(module, get_mask(module, name), name)
        source = find_source(module, name)
    parts = list_parametrizations(source)
    foreign = [part for part in parts if not isinstance(part, Rounding | Mask)]
    masks = [part for part in parts if isinstance(part, Mask)]
    if not foreign and get_rounding(module, name) is not None:
        with torch.no_grad():
            source.original.copy_(read_value(module, name, source))
    _set_parametrizations(module, name, [*foreign, *([] if rounding is None else [rounding]), *masks])


@contextlib.contextmanager
def masks_on_gradients(model: nn.Module) -> Iterator[None]:
    """Mask gradients instead of weights inside this context: the same training step for less time.

    It is for an optimizer that leaves alone a weight of 0 whose gradients were all 0, as SGD and Adam do. A mask after
    another parametrization, or of a parameter with other users, goes on acting on the weight.
    """
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    sources = [source for module in model.modules() for source in _find_parametrized(module).values()]
    alone = [source for source in sources if len(source) == 1 and isinstance(source[0], Mask)]
    pairs = [(source[0], source.original) for source in alone if uses[id(source.original)] == 1]
    pairs = [(mask, weight) for mask, weight in pairs if weight.requires_grad and weight.is_leaf]
    for mask, weight in pairs:
        mask.start_masking_gradient(weight)
    try:
        yield
    finally:
        for mask, _ in pairs:
            mask.stop_masking_gradient()


def is_trained(module: nn.Module, name: str) -> bool:
    """Return whether a tensor of a module, or the parameter behind it, requires a gradient."""
    source = find_source(module, name)
    if isinstance(source, parametrize.ParametrizationList):
        return any(weight.requires_grad for weight in source.parameters(recurse=False))
    return getattr(module, name).requires_grad


def find_sources(module: nn.Module) -> dict:
    """Return the sources of a module's own tensors, by name."""
    pruned, parametrized = _find_pruned_by_torch(module), _find_parametrized(module)
    ordinary = {name: value for name, value in module._parameters.items() if value is not None}
    if not pruned and not parametrized:
        return ordinary
    for name in pruned:
        ordinary.pop(f"{name}_orig")
    sources = {**parametrized, **pruned, **ordinary}
    return dict(sorted(sources.items(), key=lambda item: item[0] != "weight"))


def find_source(module: nn.Module, name: str) -> object:
    """Return the source of one tensor, or None, without listing all sources."""
    checks.module("module", module, wrapped=True)
    if parametrize.is_parametrized(module, name):
        return module.parametrizations[name]
    pruned = _find_pruned_by_torch(module)
    hidden = name.removesuffix("_orig") in pruned
    return pruned.get(name) if hidden else module._parameters.get(name)


def _find_source_or_fail(module, name):
    source = find_source(module, name)
    if source is None:
        raise ValueError(f"name is {name!r}; {type(module).__name__} has {', '.join(find_sources(module)) or 'none'}")
    return source


def list_parametrizations(source: object) -> list[nn.Module]:
    """Return the parametrizations of a source, in their order; none for an ordinary parameter."""
    return list(source) if isinstance(source, parametrize.ParametrizationList) else []


def read_value(module: nn.Module, name: str, source: object) -> torch.Tensor:
    """Return the effective tensor of a source, detached, without a step of spectral norm."""
    if isinstance(source, nn.Parameter):
        return source.detach()
    with torch.no_grad():
        if isinstance(source, torch_prune.BasePruningMethod):
            return torch.where(getattr(module, f"{name}_mask").bool(), getattr(module, f"{name}_orig"), 0.0)
        in_training = [part for part in source.modules() if part.training]
        source.eval()
        try:
            return source().detach()
        finally:
            for part in in_training:
                part.training = True


def bake(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Replace a parametrized tensor by `value`, in a module whose class is its own."""
    delattr(type(module), name)
    del module.parametrizations[name]
    if not module.parametrizations:
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    else:
        module.register_buffer(name, value)


def give_own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own; deepcopy leaves it a shared one."""
    if parametrize.is_parametrized(module):
        shared = type(module)
        body = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(shared.__name__, shared.__bases__, body)


def _set_parametrizations(module, name, wanted):
    """Make `wanted` the parametrizations of a tensor; the Parameter behind it stays the same object."""
    source = find_source(module, name)
    if not wanted:
        if isinstance(source, parametrize.ParametrizationList):
            bake(module, name, source.original)
        return
    for part in wanted:
        part.train(module.training)
    if isinstance(source, parametrize.ParametrizationList):
        del source[:]
        source.extend(wanted)
        return
    give_own_class(module)
    for part in wanted:
        parametrize.register_parametrization(module, name, part, unsafe=True)
    module.parametrizations.train(module.training)


def _find_parametrized(module):
    return dict(module.parametrizations.items()) if parametrize.is_parametrized(module) else {}


def _find_pruned_by_torch(module):
    hooks = module._forward_pre_hooks.values()
    return {hook._tensor_name: hook for hook in hooks if isinstance(hook, torch_prune.BasePruningMethod)}
