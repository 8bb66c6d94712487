"""Accuracy of a model and of each class, changed predictions, and whether a difference is real.

The mean hides damage: a pruned model can keep its accuracy and still give other answers on many images, or lose one
class (Hooker et al. 2019, arXiv:1911.05248).
"""

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import nn

from compresslab import checks, data, train
from compresslab.data import Split

_ALPHA = 0.05  # level of McNemar's verdict


@dataclass(frozen=True)
class Changes:
    """The images to which a model and its reference give different answers.

    fraction  of all images, 0 to 1;  indices  (count,) int64 tensor, which images
    broken    the reference was right, the model is wrong;  repaired  the other way round
    """

    count: int
    fraction: float
    broken: int
    repaired: int
    indices: torch.Tensor


@dataclass(frozen=True)
class Interval:
    """An accuracy with its interval, all fractions, low <= accuracy <= high."""

    accuracy: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class McNemar:
    """A paired comparison of two models.

    only_a, only_b  number of images that only the first, only the second model gets right
    p_value         chance of a split at least this uneven if both models were equally good, 0 to 1
    verdict         "a is better" | "b is better" | "can't tell" (p_value above 0.05)
    """

    only_a: int
    only_b: int
    p_value: float
    verdict: str


def predictions(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the class that the model predicts for each image.

    images   (N, …) tensor of finite numbers; uint8 images are divided by 255, as in `data`
    returns  (N,) int64 tensor on the CPU; -1 where the model's output is nan (it gives no answer), with a warning
    raises   ValueError if there are no images, or if the model does not answer with logits (N, classes)
    """
    checks.module("model", model, wrapped=True)
    images = torch.as_tensor(images)
    return _predict(train.evaluate(model, data.split_of((images, torch.zeros(images.shape[:1])))))[0]


def accuracy(model: nn.Module, split: Split | tuple, metric: Callable | None = None) -> float:
    """Return the fraction of images that the model gets right, or what a metric says of its outputs.

    split   data.Split or data.Stream, or a pair (images (N, …), labels (N,) int64, or targets of any kind for a metric)
    metric  metric(outputs, targets) -> float, the higher the better; by default the split's own, or the accuracy
    warns   where an output is nan: it counts as wrong
    raises  ValueError for an empty split, lengths that differ, labels that are not classes of the model, and a metric
            that returns nan or no number
    """
    metric = metric or getattr(split, "metric", None)
    if metric is None:
        return float(correct(model, split).mean())
    checks.module("model", model, wrapped=True)
    if not callable(metric):
        raise ValueError(f"metric is {checks.words(metric)}; give a function metric(outputs, targets) -> float")
    outputs, targets = train.answer(model, split, any_outputs=True)
    try:
        value = float(metric(outputs, targets))
    except Exception as error:  # the user's own code
        shapes = f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}"
        raise ValueError(f"metric does not take {shapes}: {checks.reason(error)}") from error
    if math.isnan(value):
        raise ValueError("metric returned nan; give one that is a number for every output, the higher the better")
    return value


def correct(model: nn.Module, split: Split | tuple) -> np.ndarray:
    """Tell of each image whether the model gets it right: (N,) bool."""
    answers, labels, _ = _predict_split(model, split)
    return answers == labels


def per_class(model: nn.Module, split: Split | tuple, reference: nn.Module | None = None) -> pd.DataFrame:
    """Measure the accuracy of every class; with a reference model, the damage done to it.

    returns  DataFrame: class, count (images of it), accuracy (fraction; nan where count is 0); with a reference also
             reference_accuracy and damage = reference_accuracy - accuracy, in fractions
    raises   ValueError as `accuracy`, and if the two models have different numbers of classes
    """
    answers, labels, classes = _predict_split(model, split)
    counts = np.bincount(labels, minlength=classes)
    frame = pd.DataFrame({"class": range(classes), "count": counts, "accuracy": _rates(answers, labels, counts)})
    if reference is None:
        return frame
    before, _, count = _predict_split(reference, split, "reference")
    if count != classes:
        raise ValueError(f"reference has {count} classes and model has {classes}; compare models of the same task")
    reference_accuracy = _rates(before, labels, counts)
    return frame.assign(reference_accuracy=reference_accuracy, damage=reference_accuracy - frame["accuracy"])


def changed_predictions(model: nn.Module, reference: nn.Module, split: Split | tuple) -> Changes:
    """Find the images that the model answers differently than the reference; errors as in `accuracy`."""
    after, labels, _ = _predict_split(model, split)
    before, _, _ = _predict_split(reference, split, "reference")
    changed = after != before
    return Changes(
        count=int(changed.sum()),
        fraction=float(changed.mean()),
        broken=int((changed & (before == labels)).sum()),
        repaired=int((changed & (after == labels)).sum()),
        indices=torch.from_numpy(np.flatnonzero(changed)),
    )


def accuracy_interval(
    model: nn.Module, split: Split | tuple, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Bootstrap an interval of the accuracy on more images of the same kind.

    Drawing N images again with replacement makes the number of right ones binomial, so it is drawn as that. Where all
    images are right, or none, the bootstrap sees no doubt; there the exact (Clopper-Pearson) bound is given.

    confidence  fraction strictly between 0 and 1;  resamples  number of bootstrap draws, 100 or more
    returns     Interval (percentile method)
    raises      ValueError, as `accuracy` does, and for the two settings

    Efron 1979, doi:10.1214/aos/1176344552; Clopper and Pearson 1934.
    """
    confidence = checks.fraction("confidence", confidence)
    if confidence in (0, 1):
        raise ValueError(f"confidence is {confidence:g}; give a fraction between 0 and 1, without the ends (0.95)")
    resamples = checks.integer("resamples", resamples, 100)
    seed = checks.integer("seed", seed, 0)
    right = correct(model, split)
    return estimate_interval(int(right.sum()), len(right), confidence, resamples, seed)


@functools.lru_cache(maxsize=10_000)
def estimate_interval(
    right: int, total: int, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Estimate the interval of `accuracy_interval` from counts: answers that are right, and all of them."""
    if right in (0, total):
        exact = stats.binomtest(right, total).proportion_ci(confidence, method="exact")
        low, high = exact.low, exact.high
    else:
        draws = np.random.default_rng(seed).binomial(total, right / total, resamples) / total
        low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(accuracy=right / total, low=float(low), high=float(high), confidence=confidence)


def mcnemar(a: nn.Module, b: nn.Module, split: Split | tuple) -> McNemar:
    """Test whether a model is really better, by McNemar's exact test; errors as `accuracy`.

    McNemar 1947, doi:10.1007/BF02295996; for classifiers, Dietterich 1998, doi:10.1162/089976698300017197.
    """
    right_a, right_b = correct(a, split), correct(b, split)
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    disagree = only_a + only_b
    p_value = float(stats.binomtest(only_a, disagree).pvalue) if disagree else 1.0
    better = "a is better" if only_a > only_b else "b is better"
    return McNemar(only_a, only_b, p_value, better if p_value <= _ALPHA else "can't tell")


def judge_split(model: nn.Module, split: Split | tuple, name: str = "model") -> tuple:
    """Run a model on a checked split of classes.

    returns  predicted classes (N,), labels (N,), logits (N, classes): tensors on the CPU
    raises   ValueError as `accuracy`; `name` is what its message calls the model
    """
    checks.module(name, model, wrapped=True)
    split = data.split_of(split)
    if split.metric is not None:
        raise ValueError("these data have a metric of their own; this needs classes, judged by accuracy")
    logits, labels = train.answer(model, split)
    if labels.dim() != 1 or labels.is_floating_point():
        raise ValueError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}; give class numbers, or a metric=")
    answers, classes = _predict(logits)
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}; the model has {classes} outputs, "
            f"so give labels from 0 to {classes - 1}"
        )
    return answers, labels, logits


def _predict_split(model, split, name="model"):
    """Predict a split: predictions (N,), labels (N,), both arrays, and the number of classes."""
    answers, labels, logits = judge_split(model, split, name)
    return answers.numpy(), labels.numpy(), logits.shape[1]


def _predict(logits):
    """Return the class with the largest logit of each image, -1 for nan, and the number of classes."""
    if logits.shape[1] == 0:
        raise ValueError(f"the model's output has shape {tuple(logits.shape)}; it must be logits, (N, classes)")
    bad = logits.isnan().any(dim=1)
    if bad.any():
        message = f"the model's output is nan for {int(bad.sum())} of {len(bad)} images; they count as wrong"
        warnings.warn(message, stacklevel=3)
    return logits.argmax(dim=1).masked_fill(bad, -1), logits.shape[1]


def _rates(answers, labels, counts):
    """Return the fraction right of every class, (classes,); nan where a class has no images."""
    right = np.bincount(labels[answers == labels], minlength=len(counts))
    return np.divide(right, counts, out=np.full(len(counts), np.nan), where=counts > 0)
