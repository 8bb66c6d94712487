"""Confidence of a classifier: whether it is right as often as it says.

A model's confidence in an answer is the largest probability of its softmax. It is calibrated if, of the answers given
with confidence 0.8, four in five are right. Accuracy does not show this (Guo et al. 2017, arXiv:1706.04599).
"""

import numpy as np
import pandas as pd
from torch import nn

from compresslab import checks
from compresslab.data import Split
from compresslab.measure.correctness import judge_split


def calibration_error(model: nn.Module, split: Split | tuple, bins: int = 15) -> float:
    """Return the expected calibration error: the mean distance of confidence and accuracy.

    split    data.Split or data.Stream, or a pair (images (N, …), labels (N,) int64)
    bins     number of intervals of confidence, all equally wide, 1 or more
    returns  fraction, 0 (calibrated) to 1: sum over the bins of count / N * |accuracy - confidence|
    raises   ValueError as `accuracy`, and for outputs that are not finite numbers

    Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    table = reliability(model, split, bins)
    gaps = (table["accuracy"] - table["confidence"]).abs()
    return float((gaps * table["count"]).sum() / table["count"].sum())


def reliability(model: nn.Module, split: Split | tuple, bins: int = 15) -> pd.DataFrame:
    """Compare confidence with accuracy in each interval of confidence.

    returns  DataFrame, a row for each bin: low and high (its ends; a confidence at an end belongs to the bin below),
             count, confidence and accuracy (means, fractions; nan where count is 0)
    raises   ValueError as `calibration_error`
    """
    bins = checks.integer("bins", bins, 1)
    answers, labels, logits = judge_split(model, split)
    confidence = logits.double().softmax(dim=1).amax(dim=1).numpy()  # (N,)
    if not np.isfinite(confidence).all():
        raise ValueError("the model's output is not finite for some images; confidence needs numbers")
    ends = np.linspace(0, 1, bins + 1)
    places = np.clip(np.searchsorted(ends, confidence) - 1, 0, bins - 1)  # (N,), the bin of each image
    counts = np.bincount(places, minlength=bins)
    columns = {"low": ends[:-1], "high": ends[1:], "count": counts}
    for name, values in {"confidence": confidence, "accuracy": (answers == labels).numpy()}.items():
        totals = np.bincount(places, weights=values, minlength=bins)
        columns[name] = np.divide(totals, counts, out=np.full(bins, np.nan), where=counts > 0)
    return pd.DataFrame(columns)
