"""Knowledge distillation: a student learns from a teacher's answers, not from the labels alone.

    loss = alpha * knowledge + (1 - alpha) * cross entropy with the labels

What knowledge is can be chosen: see `distillation_losses`. The student is a network of its own, of any shape;
`student_of` makes a narrower one of the teacher's architecture.

Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531.
"""

import numpy as np
import torch
from torch import nn

from compresslab import calibration, channels, checks, train
from compresslab.data import Data, Split, split_of, stratified
from compresslab.techniques.base import Control, Picture, Technique, check_share, find_neurons, warn_left_alone
from compresslab.techniques.distillation_losses import (
    KNOWLEDGE,
    check_labels,
    check_setting,
    check_targets,
    feature_loss,
    loss,
    ordinary,
    relation_loss,
    response_loss,
)
from compresslab.weights import layers

__all__ = ["TECHNIQUE", "distill", "feature_loss", "loss", "relation_loss", "response_loss", "student", "student_of"]


def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: Split | tuple,
    temperature: float = 4.0,
    alpha: float = 0.9,
    knowledge: str = "response",
    epochs: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    *,
    label_smoothing: float = 0.0,
    hint: str | tuple | None = None,
    **training: object,
) -> nn.Module:
    """Return a copy of `student`, trained to answer as `teacher` does.

    student, teacher  any nn.Modules that take the images and return logits (N, classes), of the same classes; the
                      teacher runs in evaluation mode; they may be on different devices and in different precisions
    data              a Split or a pair (images, labels)
    epochs, steps     length of the training, as in `train.fit`; one epoch if neither is given
    seed              order of the batches, and the regressor of knowledge "feature"
    training          lr, batch_size, precision, device, bar: as in `train.fit`
    The other arguments, and the errors, are those of `distillation_losses.loss`; every error is raised before the
    training starts. Frozen parameters of the student stay frozen, its masks and grids stay.
    """
    checks.module("student", student)
    split = split_of(data)
    check_targets(split)
    options = {"label_smoothing": label_smoothing, "hint": hint, "seed": seed}
    objective = loss(teacher, temperature, alpha, knowledge, student=student, images=split.images[:2], **options)
    check_labels(split, objective)
    split = objective.remember(split)
    return train.finetune(student, split, epochs=epochs, steps=steps, seed=seed, loss=objective, **training)


def student_of(teacher: nn.Module, images: torch.Tensor | Split, width: float = 0.25, seed: int = 0) -> nn.Module:
    """Return a fresh, untrained network of the teacher's architecture with narrower hidden layers.

    images   a few images (N, …) to run through it, by which its layers are told apart
    width    above 0 to 1: each hidden layer keeps round(width * its neurons or channels), at least one; 1 keeps all
    seed     whole number, 0 or more; the global random state is not touched
    returns  model to be trained, in the teacher's mode and on its device: masks, grids and frozen layers are not taken
             over, half precision becomes float32; weights are drawn as by `channels.reset`
    raises   ValueError for a width out of range, and images that the teacher does not take
    warns    UserWarning that names layers which keep their width (recurrent ones, say), which may be all: for another
             student, give `distill` one of your own
    """
    check_share("width", width, "(0.25 for a quarter of the neurons)")
    checks.integer("seed", seed, 0)
    checks.module("teacher", teacher)
    twin = ordinary(teacher).requires_grad_(True)
    # Grids before the layers fit other weights.
    grids = [module for module in twin.modules() if isinstance(module, layers.InputRounding)]
    twin = channels.replace(twin, {grid: nn.Identity() for grid in grids})
    if width < 1:
        # Remove the last channels of every group.
        groups, reasons = find_neurons(twin, calibration.checked_images(images, 2))
        sizes = {group.name: max(1, round(width * group.size)) for group in groups}
        channels.remove(twin, groups, {group.name: torch.arange(group.size) >= sizes[group.name] for group in groups})
        warn_left_alone("distillation", reasons)
    channels.reset(twin, seed)
    return twin


def student(
    teacher: nn.Module,
    images: torch.Tensor | Split,
    width: float = 0.2,
    temperature: float = 4.0,
    alpha: float = 0.9,
    knowledge: str = "response",
    label_smoothing: float = 0.0,
    share: float = 1.0,
    seed: int = 0,
) -> nn.Module:
    """Compress a teacher, for sweep and lab, to its untrained `student_of`, with every setting checked.

    temperature, alpha, knowledge, label_smoothing  as in `loss`; share, above 0 to 1: the part of the training images
    that are used, with every class in its share. They take effect in `training`, which is called with the same setting.
    """
    check_setting(temperature, alpha, knowledge, label_smoothing)
    _check_image_share(share)
    return student_of(teacher, images, width, seed)


def training(model: nn.Module, compressed: nn.Module, split: Split, setting: dict, seed: int) -> tuple:
    """Return the Split and the loss with which a student learns, for `train.fit`.

    model, compressed  teacher and student;  setting  what `student` was called with; of its `share` of the images those
                       are taken that `seed` draws
    """
    check_targets(split)
    share, part = _check_image_share(setting.get("share", 1.0)), split
    if share < 1:  # stratified, at least one image of each class
        labels = split.labels.cpu().numpy()
        count = max(len(np.unique(labels)), round(share * len(labels)))
        _, positions = stratified(labels, count, seed, leave=0)
        part = split[torch.from_numpy(positions).to(split.labels.device)]
    names = ("temperature", "alpha", "knowledge", "label_smoothing")
    options = {name: setting[name] for name in names if name in setting}
    objective = loss(model, student=compressed, images=part.images[:2], seed=seed, **options)
    check_labels(part, objective)
    return objective.remember(part), objective


def _check_image_share(share):
    return check_share("share", share, "(0.02 for 2% of the images)")


def anatomy(model: nn.Module, compressed: nn.Module, setting: dict, data: Data) -> list[Picture]:
    """Picture the teacher's soft targets for a few test images, and the student's size."""
    weights = layers.distinct_weights(compressed)
    counts = np.array([weight.value.numel() for weight in weights], dtype=float)
    title, names = "Weights in each layer of the student", tuple(weight.names[0] for weight in weights)
    caption = "Weights of each layer of the student. Halving the width leaves a quarter of most layers."
    layer_bars = Picture("size", "bars", counts, title, caption, labels=names, axis="weights")
    return [_targets(model, setting.get("temperature", 4.0), data), layer_bars]


def _targets(teacher, temperature, data):
    """Picture the soft targets of test images: a usual one and the least sure."""
    # Of the first 500 images of 28 x 28, or fewer larger ones, take the median and those it is least sure of.
    most = max(20, min(500, 500 * 784 // data.test.images[0].numel()))
    logits = train.evaluate(teacher, data.test.images[:most])
    order = logits.softmax(1).amax(1).nan_to_num(1.0).argsort(stable=True)
    chosen = torch.cat([order[len(order) // 2 :][:1], order[: min(6, len(order) // 2)]])
    targets = (logits[chosen] / temperature).softmax(1)
    classes = targets.sum(0).topk(min(10, targets.shape[1])).indices.sort().values  # of many, those that matter here
    caption = (
        "What the teacher answers for test images, the true class in orange: first a usual image, then those it is "
        "least sure of. Raise the temperature to see what it knows about the wrong classes; at 1 that all but vanishes."
    )
    return Picture(
        "targets",
        "targets",
        targets[:, classes].numpy(),
        f"The teacher's soft targets, temperature {temperature:g}",
        caption,
        labels=tuple(_class_name(data, label) for label in data.test.labels[chosen].tolist()),
        classes=tuple(_class_name(data, label) for label in classes.tolist()),
        images=_thumbnails(data.test.images[chosen]),
    )


def _class_name(data, label):
    return data.classes[label] if label < len(data.classes) else str(label)


def _thumbnails(images):
    """Return images (count, height, width) in grey, 0 to 1, or None."""
    if images.dim() != 4:
        return None
    grey = images.float().mean(1)
    low, high = grey.amin((1, 2), keepdim=True), grey.amax((1, 2), keepdim=True)
    return ((grey - low) / (high - low).clamp(min=1e-12)).numpy()


TECHNIQUE = Technique(
    name="distillation",
    apply=student,
    controls=(
        Control("temperature", 4.0, 1.0, 20.0, 0.5, help="Softens the teacher's answers; 1 leaves them as they are."),
        Control(
            "alpha", 0.9, 0.0, 1.0, 0.05, unit="%", help="Share of the teacher in the loss; the labels' is the rest."
        ),
        Control(
            "width", 0.2, 0.02, 1.0, 0.02, unit="%", help="Width of the student's hidden layers; 100% is the teacher's."
        ),
        Control("share", 0.01, 0.01, 1.0, 0.01, unit="%", help="Share of the training images that the student sees."),
        Control("knowledge", "response", choices=KNOWLEDGE, help="What of the teacher the student imitates."),
    ),
    fair_controls={"no teacher": {"alpha": 0.0}, "label smoothing": {"alpha": 0.0, "label_smoothing": 0.1}},
    anatomy=anatomy,
    calibration=2,
    training=training,
    steps=150,
    longer=4,
)
