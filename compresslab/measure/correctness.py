"""Which images a model gets right: accuracy, accuracy per class, and what changed against a reference model.

The mean hides damage: a pruned model can keep its accuracy and still give other answers on many images, or lose one
class (Hooker et al. 2019, arXiv:1911.05248).
"""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from compresslab import checks, data, train

FIRST = 1000  # images that are run before the labels are checked


@dataclass(frozen=True)
class Changes:
    """The images to which a model and its reference give different answers.

    count     how many;  fraction  of all images, 0 to 1
    broken    the reference was right, the model is wrong
    repaired  the reference was wrong, the model is right (the rest: wrong before and after, differently)
    indices   (count,) int64 tensor, which images
    """

    count: int
    fraction: float
    broken: int
    repaired: int
    indices: torch.Tensor


def predictions(model, images):
    """The class that the model gives each image.

    images   (N, …) tensor of finite numbers; uint8 images are divided by 255, as in `data`
    returns  (N,) int64 tensor on the CPU; -1 where the model's output is nan (it gives no answer), with a warning
    raises   ValueError if there are no images, or if the model does not answer with logits (N, classes)
    """
    checks.module("model", model, wrapped=True)
    images = torch.as_tensor(images)
    return _answers(_logits(model, data.split_of((images, torch.zeros(images.shape[:1])))))


def accuracy(model, split):
    """Fraction of images that the model gets right, 0 to 1; an output of nan counts as wrong, with a warning.

    split   data.Split, or a pair (images (N, …), labels (N,) int64)
    raises  ValueError for an empty split, lengths that differ, labels that are not classes of the model
    """
    return float(correct(model, split).mean())


def correct(model, split):
    """Whether the model gets each image right: (N,) bool array; arguments and errors as in `accuracy`."""
    answers, labels, _ = _answers_and_labels(model, split)
    return answers == labels


def per_class(model, split, reference=None):
    """Accuracy of every class; with a reference model, the damage done to it.

    returns  DataFrame, a row for each class: class, count (images of it), accuracy (fraction; nan where count is 0);
             with a reference also reference_accuracy and damage = reference_accuracy - accuracy, in fractions
    raises   ValueError as `accuracy`, and if the two models have different numbers of classes
    """
    answers, labels, classes = _answers_and_labels(model, split)
    counts = np.bincount(labels, minlength=classes)
    frame = pd.DataFrame({"class": range(classes), "count": counts, "accuracy": _rates(answers, labels, counts)})
    if reference is None:
        return frame
    before, _, others = _answers_and_labels(reference, split, "reference")
    if others != classes:
        raise ValueError(f"reference has {others} classes and model has {classes}; compare models of the same task")
    reference_accuracy = _rates(before, labels, counts)
    return frame.assign(reference_accuracy=reference_accuracy, damage=reference_accuracy - frame["accuracy"])


def changed_predictions(model, reference, split):
    """The images that the model answers differently than the reference: `Changes`; errors as in `accuracy`."""
    after, labels, _ = _answers_and_labels(model, split)
    before, _, _ = _answers_and_labels(reference, split, "reference")
    changed = after != before
    return Changes(
        count=int(changed.sum()),
        fraction=float(changed.mean()),
        broken=int((changed & (before == labels)).sum()),
        repaired=int((changed & (after == labels)).sum()),
        indices=torch.from_numpy(np.flatnonzero(changed)),
    )


def _answers_and_labels(model, split, name="model"):
    """Answers (N,), labels (N,) as arrays, and the number of classes, after checking that the labels are classes."""
    checks.module(name, model, wrapped=True)
    split = data.split_of(split)
    first, rest, labels = _logits(model, split[:FIRST]), split[FIRST:], split.labels.cpu().numpy()
    classes = first.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}; the model has {classes} outputs, "
            f"so give labels from 0 to {classes - 1}"
        )
    logits = torch.cat([first, _logits(model, rest)]) if len(rest) else first
    return _answers(logits).numpy(), labels, classes


def _logits(model, split):
    """Logits (N, classes) of all images, after checking that there are classes."""
    logits = train.evaluate(model, split.images)
    if logits.shape[1] == 0:
        raise ValueError(f"the model's output has shape {tuple(logits.shape)}; it must be logits, (N, classes)")
    return logits


def _answers(logits):
    """Class with the largest logit of each row, -1 (no class, so never right) where a logit is nan."""
    bad = logits.isnan().any(dim=1)
    if bad.any():
        warnings.warn(
            f"the model's output is nan for {int(bad.sum())} of {len(bad)} images; they count as wrong", stacklevel=3
        )
    return logits.argmax(dim=1).masked_fill(bad, -1)


def _rates(answers, labels, counts):
    """Fraction right of every class, (classes,); nan where a class has no images."""
    right = np.bincount(labels[answers == labels], minlength=len(counts))
    return np.divide(right, counts, out=np.full(len(counts), np.nan), where=counts > 0)
