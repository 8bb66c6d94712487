"""What the graph of a model may call: functions and methods of tensors by name, and nothing else."""

import math
import operator
from collections.abc import Callable

import torch
from torch.nn import functional

_ELEMENTWISE = (
    "abs add addcdiv addcmul ceil clamp clip cos cumprod cumsum deg2rad div eq erf exp expm1 fix floor floor_divide "
    "fmod ge gt isfinite isinf isnan le lerp log log10 log1p log2 logical_and logical_not logical_or logical_xor lt "
    "maximum minimum mul multiply nan_to_num ne neg negative pow reciprocal relu remainder round rsqrt sigmoid "
    "sign sin sqrt square sub subtract tan tanh true_divide trunc where"
)
_SHAPING = (
    "broadcast_to chunk diagonal expand_as flatten flip gather index_select masked_fill masked_select movedim narrow "
    "permute repeat_interleave reshape roll select split squeeze swapaxes swapdims take_along_dim tensor_split tile "
    "transpose tril triu unbind unflatten unsqueeze"
)
_REDUCING = (
    "all amax amin any argmax argmin argsort count_nonzero log_softmax logsumexp max mean median min norm prod "
    "softmax sort std sum topk var"
)
_PRODUCTS = "addmm baddbmm bmm dot matmul mm mv outer"
_TORCH = (
    f"{_ELEMENTWISE} {_SHAPING} {_REDUCING} {_PRODUCTS} arange cat clone concat concatenate detach einsum full "
    "full_like hstack linspace meshgrid numel ones ones_like stack tensordot unique vstack zeros zeros_like conv1d "
    "conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d avg_pool1d max_pool1d max_pool2d max_pool3d "
    "adaptive_avg_pool1d dropout layer_norm group_norm batch_norm instance_norm pixel_shuffle prelu celu rrelu selu"
)
_FUNCTIONAL = (
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d affine_grid alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear celu "
    "channel_shuffle conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity dropout "
    "dropout1d dropout2d dropout3d elu embedding feature_alpha_dropout fold gelu glu grid_sample group_norm hardshrink "
    "hardsigmoid hardswish hardtanh instance_norm interpolate layer_norm leaky_relu linear local_response_norm "
    "log_softmax logsigmoid lp_pool1d lp_pool2d max_pool1d max_pool2d max_pool3d mish normalize one_hot pad "
    "pairwise_distance pixel_shuffle pixel_unshuffle prelu relu relu6 rms_norm rrelu scaled_dot_product_attention selu "
    "sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink threshold unfold upsample"
)
_OPERATORS = (
    "abs add and_ eq floordiv ge getitem gt iadd iand ifloordiv imatmul imod imul invert ior ipow isub itruediv le lt "
    "matmul mod mul ne neg not_ or_ pos pow setitem sub truediv xor"
)
_IN_PLACE = (
    "abs_ add_ addcmul_ clamp_ clip_ copy_ div_ exp_ fill_ lerp_ masked_fill_ mul_ neg_ pow_ relu_ sigmoid_ sqrt_ "
    "squeeze_ sub_ tanh_ unsqueeze_ zero_"
)
_MODULES = {
    "torch": (torch, f"{_TORCH} _assert"),
    "F": (functional, _FUNCTIONAL),
    "operator": (operator, _OPERATORS),
    "math": (math, "ceil exp floor log sqrt"),
}
ATTRIBUTES = frozenset("T device dtype imag indices itemsize mT mH H ndim real shape values".split())
METHODS = frozenset(
    f"{_ELEMENTWISE} {_SHAPING} {_REDUCING} {_PRODUCTS} {_IN_PLACE} bfloat16 bool clone contiguous detach dim double "
    "expand float half int ndimension new_full new_ones new_zeros numel repeat reshape_as size t to type type_as "
    "unfold view view_as __getitem__".split()
)


def attribute(value: object, name: str) -> object:
    """Read an attribute of a tensor, one of those that a graph may read."""
    if name not in ATTRIBUTES:
        raise ValueError(f"attribute is {name!r}; a graph may read {', '.join(sorted(ATTRIBUTES))}")
    return getattr(value, name)


FUNCTIONS = {
    f"{prefix}.{name}": getattr(module, name)
    for prefix, (module, names) in _MODULES.items()
    for name in names.split()
    if hasattr(module, name)
} | {"attribute": attribute}
_NAMES = {id(function): name for name, function in reversed(FUNCTIONS.items())} | {id(getattr): "attribute"}


def function_name(function: Callable) -> str | None:
    """Return the name of a function in FUNCTIONS, or None."""
    return _NAMES.get(id(function))
