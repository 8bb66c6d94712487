"""Plain data as JSON, both ways: what a layer is constructed with, what a call of a graph is given.

JSON has no tuples and no infinity, so: a tuple is an array; a list {"list": […]}; a dict {"dict": [[key, value], …]};
a slice {"slice": [start, stop, step]}; an ellipsis {"ellipsis": null}; inf, -inf and nan {"float": "inf"}; a dtype
{"dtype": "float32"}. Whole numbers, finite numbers, text, true, false and null are themselves.
"""

import math
import numbers

import torch
from torch.fx.immutable_collections import immutable_dict, immutable_list

from compresslab.storage.container import CorruptFileError
from compresslab.storage.tensors import NAMES, TYPES


class NotPlainError(Exception):
    """A value, layer or graph that the format has no words for; the message says which."""


def encode(value, special=None):
    """`value` as JSON values.

    special  function tried first: its answer is the encoding, unless it is None
    raises   NotPlainError for anything but the kinds above
    """
    if special is not None and (found := special(value)) is not None:
        return found
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if type(value) in (tuple, torch.Size):
        return [encode(one, special) for one in value]
    if type(value) in (list, immutable_list):
        return {"list": [encode(one, special) for one in value]}
    if type(value) in (dict, immutable_dict):
        return {"dict": [[encode(key), encode(one, special)] for key, one in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(one, special) for one in (value.start, value.stop, value.step)]}
    if value is ...:
        return {"ellipsis": None}
    if isinstance(value, torch.dtype) and value in NAMES:
        return {"dtype": NAMES[value]}
    raise NotPlainError(f"{value!r} is not plain data")


def decode(value, special=None):
    """What `encode` was given.

    special  dict of tag -> function of the tagged value, for the encodings that `special` made
    raises   CorruptFileError for JSON that `encode` does not make
    """
    if isinstance(value, list):
        return tuple(decode(one, special) for one in value)
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise CorruptFileError(f"a value has tags {sorted(value)}; one is allowed")
    ((tag, inner),) = value.items()
    if special and tag in special:
        return special[tag](inner)
    if tag not in _TAGS:
        raise CorruptFileError(f"a value has the unknown tag {tag!r}")
    return _TAGS[tag](inner, special)


def _list(inner, special):
    return list(decode(_array(inner), special))


def _dict(inner, special):
    pairs = [decode(_array(pair, 2), special) for pair in _array(inner)]
    if any(isinstance(key, (list, dict, tuple)) for key, _ in pairs):
        raise CorruptFileError("a key of a dict is not a number or text")
    return dict(pairs)


def _slice(inner, special):
    return slice(*decode(_array(inner, 3), special))


def _float(inner, special):
    if inner not in ("inf", "-inf", "nan"):
        raise CorruptFileError(f"a float is written as {inner!r}")
    return float(inner)


def _dtype(inner, special):
    if not isinstance(inner, str) or inner not in TYPES:
        raise CorruptFileError(f"there is no dtype {inner!r}")
    return TYPES[inner].dtype


def _array(inner, length=None):
    if not isinstance(inner, list) or length not in (None, len(inner)):
        raise CorruptFileError(f"an array was expected, not {type(inner).__name__}")
    return inner


_TAGS = {
    "list": _list,
    "dict": _dict,
    "slice": _slice,
    "ellipsis": lambda inner, special: ...,
    "float": _float,
    "dtype": _dtype,
}
