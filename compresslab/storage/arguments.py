"""Plain data as JSON, both ways: what a layer is constructed with, what a call of a graph is given.

plain  numbers, text, true, false, None; tuples, lists, dicts, slices and dtypes of these
tag    the key of an object that stands for what JSON lacks: {"list": […]}, {"float": "inf"}; docs/format.md, section 3
"""

import math
import numbers
from collections.abc import Callable

import torch
from torch.fx.immutable_collections import immutable_dict, immutable_list

from compresslab.storage.container import CorruptFileError
from compresslab.storage.tensors import NAMES, TYPES


class NotPlainError(Exception):
    """A value, layer or graph that the format has no words for; the message says which."""


def encode(value: object, special: Callable | None = None) -> object:
    """Return `value` as JSON values.

    special  function tried first: its answer is the encoding, unless it is None
    raises   NotPlainError for anything but the kinds above
    """
    if special is not None and (encoded := special(value)) is not None:
        return encoded
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if type(value) in (tuple, torch.Size):
        return [encode(item, special) for item in value]
    if type(value) in (list, immutable_list):
        return {"list": [encode(item, special) for item in value]}
    if type(value) in (dict, immutable_dict):
        return {"dict": [[encode(key), encode(item, special)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(item, special) for item in (value.start, value.stop, value.step)]}
    if value is ...:
        return {"ellipsis": None}
    if isinstance(value, torch.dtype) and value in NAMES:
        return {"dtype": NAMES[value]}
    raise NotPlainError(f"{value!r} is not plain data")


def decode(value: object, special: dict | None = None) -> object:
    """Return what `encode` was given.

    special  dict of tag -> function of the tagged value, for the encodings that `special` made
    raises   CorruptFileError for JSON that `encode` does not make
    """
    if isinstance(value, list):
        return tuple(decode(item, special) for item in value)
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise CorruptFileError(f"a value has tags {sorted(value)}; one is allowed")
    ((tag, inner),) = value.items()
    if special and tag in special:
        return special[tag](inner)
    if tag == "list":
        return list(decode(_check_array(inner), special))
    if tag == "dict":
        pairs = [decode(_check_array(pair, 2), special) for pair in _check_array(inner)]
        if any(isinstance(key, (list, dict, tuple)) for key, _ in pairs):
            raise CorruptFileError("a key of a dict is not a number or text")
        return dict(pairs)
    if tag == "slice":
        return slice(*decode(_check_array(inner, 3), special))
    if tag == "ellipsis":
        return ...
    if tag == "float" and inner in ("inf", "-inf", "nan"):
        return float(inner)
    if tag == "dtype" and isinstance(inner, str) and inner in TYPES:
        return TYPES[inner].dtype
    raise CorruptFileError(f"a value has the unknown tag {tag!r}, or {str(inner)[:50]} in it")


def _check_array(inner, length=None):
    if not isinstance(inner, list) or length not in (None, len(inner)):
        raise CorruptFileError(f"an array was expected, not {type(inner).__name__}")
    return inner
