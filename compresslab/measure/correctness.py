"""Accuracy of a model, of each class, and the predictions that changed against a reference model.

The mean hides damage: a pruned model can keep its accuracy and still give other answers on many images, or lose one
class (Hooker et al. 2019, arXiv:1911.05248).
"""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from compresslab import checks, data, train
from compresslab.data import Split


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


def predictions(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the class that the model predicts for each image.

    images   (N, …) tensor of finite numbers; uint8 images are divided by 255, as in `data`
    returns  (N,) int64 tensor on the CPU; -1 where the model's output is nan (it gives no answer), with a warning
    raises   ValueError if there are no images, or if the model does not answer with logits (N, classes)
    """
    checks.module("model", model, wrapped=True)
    images = torch.as_tensor(images)
    return _predict(model, data.split_of((images, torch.zeros(images.shape[:1]))))[0]


def accuracy(model: nn.Module, split: Split | tuple) -> float:
    """Return the fraction of images that the model gets right.

    split   data.Split, or a pair (images (N, …), labels (N,) int64)
    warns   where an output is nan: it counts as wrong
    raises  ValueError for an empty split, lengths that differ, labels that are not classes of the model
    """
    return float(correct(model, split).mean())


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


def _predict_split(model, split, name="model"):
    """Predict a checked split: predictions (N,), labels (N,), the number of classes."""
    checks.module(name, model, wrapped=True)
    split = data.split_of(split)
    labels = split.labels.cpu().numpy()
    answers, classes = _predict(model, split)
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}; the model has {classes} outputs, "
            f"so give labels from 0 to {classes - 1}"
        )
    return answers.numpy(), labels, classes


def _predict(model, split):
    """Return the predicted classes, -1 for nan, and the number of classes."""
    logits = train.evaluate(model, split.images)
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
