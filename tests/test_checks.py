"""How values, exceptions and models are worded and checked."""

import numpy as np
import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab import checks


@pytest.mark.parametrize(
    "value, message",
    [
        (0.5, "0.5"),
        ("magnitude", "'magnitude'"),
        (torch.zeros(1000, 1000), "Tensor of shape (1000, 1000)"),
        (np.zeros((3, 4)), "ndarray of shape (3, 4)"),
        ([nn.Linear(2, 2)], "[Linear]"),
        ({"weight": torch.zeros(3)}, "{'weight': Tensor of shape (3,)}"),
    ],
    ids=["number", "text", "tensor", "array", "list", "dict"],
)
def test_values_are_worded_without_their_contents(value, message):
    assert checks.words(value) == message


@pytest.mark.parametrize(
    "value",
    ["a" * 999, list(range(999)), {str(key): torch.zeros(9) for key in range(99)}, nn.Linear(9, 9).state_dict()],
    ids=["text", "list", "dict", "state dict"],
)
def test_long_values_are_cut(value):
    assert len(checks.words(value)) <= checks.LONGEST


def test_an_exception_is_worded_by_its_type_and_what_it_says():
    assert checks.reason(AssertionError()) == "AssertionError"
    assert checks.reason(IndexError("out\n of  range")) == "IndexError: out of range"
    assert len(checks.reason(ValueError(str(list(range(9999)))))) < 3 * checks.LONGEST


def test_a_value_that_cannot_be_compared_is_no_choice():
    with pytest.raises(ValueError, match=r"scope is ndarray of shape \(2,\); choose one of 'global'"):
        cl.zero_pruning.prune(nn.Linear(2, 2), 0.5, scope=np.zeros(2))
