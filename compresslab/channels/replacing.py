"""Putting other modules in the place of a model's layers."""

from collections.abc import Mapping

from torch import nn

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks"),
    *("_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)


def replace(model: nn.Module, stand_ins: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replace layers by other modules everywhere; return the model, or its replacement.

    model      changed in place;  stand_ins  dict of module -> module, which takes over its mode and its hooks
    """
    for old, new in stand_ins.items():
        new.train(old.training)
        vars(new).update({name: vars(old)[name] for name in HOOKS if name in vars(old)})
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in stand_ins:
                parent._modules[name] = stand_ins[child]
    return stand_ins.get(model, model)
