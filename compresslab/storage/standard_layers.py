"""The layers that a file may name, those of torch.nn and compresslab's own: which, and what each was constructed with.

["InputGrid", {"bits": …, "low": …, "high": …, "shape": of its scale if it is not (), "learned": true if it is}]
"""

import inspect
import warnings
from contextlib import nullcontext
from functools import cache, lru_cache

import torch
from torch import nn
from torch.nn import modules as families
from torch.nn.modules import linear, rnn
from torch.nn.utils import parametrize

from compresslab.storage.arguments import NotPlainError, encode
from compresslab.weights import grids, layers

_FAMILIES = (
    "activation batchnorm channelshuffle container conv distance dropout flatten fold instancenorm linear "
    "normalization padding pixelshuffle pooling rnn sparse transformer upsampling"
)
LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_PER_DIMENSION = "kernel_size stride padding output_padding dilation".split()
_DERIVED = "in_features out_features in_channels out_channels num_features".split()


def _list_standard():
    """List the layers a file may name: InputGrid and those of torch.nn but for lazy and abstract ones."""
    left_out = {"Module", "Container", "ParameterList", "ParameterDict", "RNNBase", "RNNCellBase"}
    standard = {"NonDynamicallyQuantizableLinear": linear.NonDynamicallyQuantizableLinear}  # inside MultiheadAttention
    for family in map(families.__dict__.get, _FAMILIES.split()):
        for name in family.__all__:
            if hasattr(nn, name) and name not in left_out and not name.startswith("Lazy"):
                standard[name] = getattr(nn, name)
    return standard | {"InputGrid": grids.InputGrid}


STANDARD = _list_standard()
_NAMES = {kind: name for name, kind in STANDARD.items()}


def get_standard_name(module: nn.Module) -> str | None:
    """Return the name of the standard layer that a module is, or None.

    A subclass counts as its standard base if it only adds a constructor, text for people, or names that the base does
    not know; not if it has its own forward. So does a module whose own forward was replaced or has hooks: it does not.
    """
    changed = "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    return None if changed or parametrize.is_parametrized(module) else _class_name(type(module))


@lru_cache(maxsize=1024)
def _class_name(kind):
    base = next((parent for parent in kind.__mro__ if parent in _NAMES), None)
    if base is None:
        return None
    added = {name for parent in kind.__mro__ if parent not in base.__mro__ for name in vars(parent)}
    return _NAMES[base] if not any(hasattr(base, name) for name in added - _HARMLESS) else None


_HARMLESS = {
    *"__init__ __annotations__ __annotate_func__ __static_attributes__ __firstlineno__ __repr__ extra_repr".split(),
    *vars(type("Empty", (nn.Identity,), {})),
}


def construct(kind: type, arguments: dict) -> nn.Module:
    """Make a layer on the meta device, its numbers never drawn."""
    # Only these have remarks on their arguments; what warnings are shown is one setting for all threads.
    remarks = warnings.catch_warnings(action="ignore") if issubclass(kind, _TALKATIVE) else nullcontext()
    with remarks, torch.device("meta"), _NoInit():
        return _MAKERS.get(kind, kind)(**arguments)


_TALKATIVE = (nn.Transformer, nn.TransformerEncoder, rnn.RNNBase)


def _input_grid(bits, low, high, shape=(), learned=False):
    """Make an InputGrid whose tensors, on the meta device, have that shape; what it checks of them is checked later."""
    scale = torch.ones((), device="cpu")
    grid = grids.InputGrid(scale, torch.zeros_like(scale), low, high, bits, learned=bool(learned))
    grid.scale, grid.zero_point = torch.empty(shape), torch.empty(shape)
    if learned:
        grid.growth = nn.Parameter(torch.empty(shape))
    return grid


_MAKERS = {grids.InputGrid: _input_grid}


class _NoInit(torch.overrides.TorchFunctionMode):
    """Skips torch.nn.init, which a meta tensor has no use for."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if getattr(function, "__module__", None) == "torch.nn.init" or function is torch.Tensor.fill_:
            return keywords.get("tensor", arguments[0] if arguments else None)
        return function(*arguments, **keywords)


def check_alike(module: nn.Module, bare: nn.Module, arguments: dict) -> None:
    """Raise NotPlainError if a layer was changed in a way its arguments do not tell."""
    for key, value in vars(bare).items():
        if key.startswith("_") or key in ("training", *arguments, *_DERIVED) or isinstance(value, torch.Tensor):
            continue
        if key not in vars(module) or not _equal(vars(module)[key], value):
            raise NotPlainError(f"{type(module).__name__}.{key} was changed after it was made")


def _equal(a, b):
    try:
        return repr(encode(a)) == repr(encode(b))  # repr tells 1 from 1.0 and True
    except NotPlainError:
        return a is b


def find_arguments(kind: type, module: nn.Module) -> dict:
    """Return the constructor's arguments that differ from their defaults, read from the layer's attributes."""
    if issubclass(kind, LISTS):
        return {}
    arguments, defaults = _SPECIAL.get(kind, _by_name)(module), get_defaults(kind)
    return {
        name: value
        for name, value in arguments.items()
        if name not in defaults or defaults[name] is inspect.Parameter.empty or not _equal(value, defaults[name])
    }


@cache
def get_defaults(kind: type) -> dict:
    """Return the constructor arguments of a layer and their defaults, but for device, dtype and private ones."""
    recurrent = issubclass(kind, rnn.RNNBase)
    known = inspect.signature((rnn.RNNBase if recurrent else kind).__init__).parameters
    named = {name: item for name, item in known.items() if item.kind is item.POSITIONAL_OR_KEYWORD and name[0] != "_"}
    hidden = {"self", "device", "dtype", *(["mode"] if recurrent else [])}
    return {name: item.default for name, item in named.items() if name not in hidden}


def _by_name(module):
    """Find arguments by attributes of the same name; sizes by the tensors, for surgery may leave attributes behind."""
    base = STANDARD[get_standard_name(module)]
    arguments = {name: getattr(module, name) for name in get_defaults(base) if hasattr(module, name)}
    if isinstance(arguments.get("bias"), torch.Tensor) or ("bias" in arguments and arguments["bias"] is None):
        arguments["bias"] = arguments["bias"] is not None
    arguments |= _sizes(module)
    if isinstance(module, (*layers.CONVOLUTIONS, *layers.TRANSPOSED)):
        arguments |= {name: _one_for_all(arguments[name]) for name in _PER_DIMENSION if name in arguments}
    return arguments


def _one_for_all(value):
    """3 for (3, 3): what a convolution repeats by itself."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _sizes(module):
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        return {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    if isinstance(module, layers.TRANSPOSED):
        return {"in_channels": weight.shape[0], "out_channels": weight.shape[1] * module.groups}
    if isinstance(module, layers.CONVOLUTIONS):
        return {"in_channels": weight.shape[1] * module.groups, "out_channels": weight.shape[0]}
    if isinstance(module, (*layers.BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)):
        sized = weight if weight is not None else module.running_mean
        return {} if sized is None else {"num_features": sized.shape[0]}
    return {}


def _rnn(module):
    arguments = {name: getattr(module, name) for name in get_defaults(type(module)) if hasattr(module, name)}
    if not isinstance(module, nn.LSTM):
        arguments.pop("proj_size", None)
    return arguments | ({"nonlinearity": module.nonlinearity} if isinstance(module, nn.RNN) else {})


def _attention(module):
    return {
        **{name: getattr(module, name) for name in "embed_dim num_heads dropout add_zero_attn".split()},
        **{name: size for name in ("kdim", "vdim") if (size := getattr(module, name)) != module.embed_dim},
        "bias": module.in_proj_bias is not None,
        "add_bias_kv": module.bias_k is not None,
        "batch_first": module.batch_first,
    }


def _transformer_layer(module):
    return {
        "d_model": module.self_attn.embed_dim,
        "nhead": module.self_attn.num_heads,
        "dim_feedforward": getattr(module.linear1, "out_features", 1),
        "dropout": module.dropout.p,
        "activation": _ACTIVATIONS.get(module.activation, module.activation),
        "layer_norm_eps": module.norm1.eps,
        "batch_first": module.self_attn.batch_first,
        "norm_first": module.norm_first,
        "bias": module.self_attn.in_proj_bias is not None,
    }


def _transformer_stack(module):
    kind = "encoder_layer" if isinstance(module, nn.TransformerEncoder) else "decoder_layer"
    if not len(module.layers):
        raise NotPlainError(f"{type(module).__name__} has no layers")
    names = [name for name in get_defaults(type(module)) if name not in ("encoder_layer", "decoder_layer")]
    return {kind: module.layers[0]} | {name: getattr(module, name) for name in names if hasattr(module, name)}


def _transformer(module):
    layers = [*module.encoder.layers, *module.decoder.layers]
    first = _transformer_layer(layers[0])
    names = "dim_feedforward dropout activation layer_norm_eps batch_first norm_first bias".split()
    counts = {"num_encoder_layers": len(module.encoder.layers), "num_decoder_layers": len(module.decoder.layers)}
    return {"d_model": module.d_model, "nhead": module.nhead, **counts, **{name: first[name] for name in names}}


def _input_grid_arguments(module):
    arguments = {"bits": module.bits, "low": module.low, "high": module.high}
    shaped = {"shape": tuple(module.scale.shape)} if module.scale.dim() else {}
    return arguments | shaped | {"learned": module.growth is not None}


_ACTIVATIONS = {nn.functional.relu: "relu", nn.functional.gelu: "gelu"}
_SPECIAL = {
    nn.Identity: lambda module: {},
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), _rnn),
    nn.MultiheadAttention: _attention,
    grids.InputGrid: _input_grid_arguments,
    **dict.fromkeys((nn.TransformerEncoderLayer, nn.TransformerDecoderLayer), _transformer_layer),
    **dict.fromkeys((nn.TransformerEncoder, nn.TransformerDecoder), _transformer_stack),
    nn.Transformer: _transformer,
}
