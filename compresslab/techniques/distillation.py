"""Knowledge distillation: a student learns from a teacher's answers, not from the labels alone.

    loss = alpha * knowledge + (1 - alpha) * cross entropy with the labels

What knowledge is can be chosen: the teacher's softened responses, the features of one of its layers, or the relations
between images that those features express. The student is a network of its own, of any shape; `student_of` makes a
narrower one of the teacher's architecture.

Sources: Hinton, Vinyals, Dean 2015, arXiv:1503.02531 (responses, temperature); Romero et al. 2014, arXiv:1412.6550
(FitNets: features, through a hint layer); Park et al. 2019, arXiv:1904.05068 (relations).
"""

import weakref

import numpy as np
import torch
from torch import nn

from compresslab import activations, checks, layers, structure, train
from compresslab.data import split_of, stratified
from compresslab.knowledge import (
    KNOWLEDGE,
    check_labels,
    check_setting,
    feature_loss,
    loss,
    ordinary,
    relation_loss,
    response_loss,
)
from compresslab.techniques.contract import Control, Picture, Technique, warn_left_alone

__all__ = ["TECHNIQUE", "distill", "feature_loss", "loss", "relation_loss", "response_loss", "student", "student_of"]


def distill(
    student,
    teacher,
    data,
    temperature=4.0,
    alpha=0.9,
    knowledge="response",
    epochs=None,
    steps=None,
    seed=0,
    *,
    label_smoothing=0.0,
    hint=None,
    **training,
):
    """A copy of `student`, trained to answer as `teacher` does. Neither of the two is changed.

    student, teacher  any nn.Modules that take the images and return logits (N, classes), of the same classes; the
                      teacher runs in evaluation mode; they may be on different devices and in different precisions
    data              a Split or a pair (images, labels)
    epochs, steps     length of the training, as in `train.fit`; one epoch if neither is given
    seed              order of the batches, and the regressor of knowledge "feature"
    training          lr, batch_size, precision, device, bar: as in `train.fit`
    The other arguments, and the errors, are those of `loss` (compresslab.knowledge); every error is raised before the
    training starts. Frozen parameters of the student stay frozen, its masks and grids stay.
    """
    checks.module("student", student)
    split = split_of(data)
    options = {"label_smoothing": label_smoothing, "hint": hint, "seed": seed}
    objective = loss(teacher, temperature, alpha, knowledge, student=student, images=split.images[:2], **options)
    check_labels(split, objective)
    split = objective.remember(split)
    return train.finetune(student, split, epochs=epochs, steps=steps, seed=seed, loss=objective, **training)


def student_of(teacher, images, width=0.25, seed=0):
    """A fresh network of the teacher's architecture, its hidden layers narrower: untrained, weights drawn with `seed`.

    images   a few images (N, …) to run through it, by which its layers are told apart
    width    above 0 to 1: each hidden layer keeps round(width * its neurons or channels), at least one; 1 keeps all
    seed     whole number, 0 or more; the global random state is not touched
    returns  model with ordinary parameters, all of them to be trained: masks, grids and frozen layers of the teacher
             are not taken over, half precision becomes float32; device and mode are the teacher's
    raises   ValueError for a width out of range, and images that the teacher does not take
    warns    UserWarning that names layers which keep their width (recurrent ones, say), which may be all: for another
             student, give `distill` one of your own

    Weights get torch's default initialization; a parameter for which there is none (of a class of your own without
    reset_parameters) is drawn from a normal distribution of the mean and standard deviation that it has.
    """
    _check_width(width)
    checks.integer("seed", seed, 0)
    checks.module("teacher", teacher)
    twin = _unrounded(ordinary(teacher)).requires_grad_(True)
    if width < 1:
        _narrow(twin, activations.checked_images(images, 2), width)
    structure.reset(twin, seed)
    return twin


def _unrounded(model):
    """The model, whose layers no longer round what goes into them: the ranges were those of other weights."""
    for name, module in list(model.named_modules()):
        if name and isinstance(module, layers.InputRounding):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, nn.Identity())
    return model


def student(
    teacher,
    images,
    width=0.2,
    temperature=4.0,
    alpha=0.9,
    knowledge="response",
    label_smoothing=0.0,
    share=1.0,
    seed=0,
):
    """What the sweep and the lab compress a teacher to: its `student_of`, untrained, every setting checked.

    temperature, alpha, knowledge, label_smoothing  as in `loss`; share, above 0 to 1: the part of the training images
    that are used, with every class in its share. They take effect in `training`, which is called with the same setting.
    """
    check_setting(temperature, alpha, knowledge, label_smoothing)
    _check_share(share)
    return student_of(teacher, images, width, seed)


def training(model, compressed, split, setting, seed):
    """On what, and with which loss, a student learns: (Split, loss), for `train.fit`, which belong together.

    model, compressed  teacher and student;  setting  what `student` was called with
    split, seed        training images, of which `setting["share"]` is drawn with `seed`
    """
    part = _part(split, setting.get("share", 1.0), seed)
    names = ("temperature", "alpha", "knowledge", "label_smoothing")
    options = {name: setting[name] for name in names if name in setting}
    objective = loss(model, student=compressed, images=part.images[:2], seed=seed, **options)
    check_labels(part, objective)
    return objective.remember(part), objective


def _part(split, share, seed):
    """A share of a Split, stratified and drawn with `seed`; at least one image of each class."""
    if _check_share(share) == 1:
        return split
    labels = split.labels.cpu().numpy()
    count = max(len(np.unique(labels)), round(share * len(labels)))
    _, positions = stratified(labels, count, seed, leave=0)
    return split[torch.from_numpy(positions).to(split.labels.device)]


def _narrow(model, images, width):
    """Remove channels of every group of a model, in place; the last ones go, as their weights are drawn anew anyhow."""
    groups, reasons = structure.find_groups(model, images)
    if groups:
        reasons = {name: why for name, why in reasons.items() if why != structure.OUTPUT}
    kept = {group.name: max(1, round(width * group.size)) for group in groups}
    structure.remove(model, groups, {group.name: torch.arange(group.size) >= kept[group.name] for group in groups})
    warn_left_alone("distillation", reasons | layers.unsupported(model))


def _check_width(width):
    if not checks.fraction("width", width) > 0:
        raise ValueError(f"width is {width!r}; give a fraction above 0, to 1")


def _check_share(share):
    if not checks.fraction("share", share) > 0:
        raise ValueError(f"share is {share!r}; give a fraction above 0, to 1 (0.02 for 2% of the images)")
    return share


def anatomy(model, compressed, setting, data):
    """Pictures of what a student is to learn: the teacher's soft targets for a few test images, and its own size.

    model, compressed  teacher and student;  setting  what `student` was called with;  data  cl.data.Data
    returns            list of Picture, quick enough for every move of a slider
    """
    return [_targets(model, setting.get("temperature", 4.0), data), _size_bars(compressed)]


def _targets(teacher, temperature, data):
    """The soft targets of test images: a usual one, and those that the teacher is least sure of."""
    chosen, logits = _unsure(teacher, data.test)
    targets = (logits / temperature).softmax(1)
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


def _unsure(teacher, split, count=6):
    """Positions and logits (rows, classes), of the first images: that of median confidence, then the least sure.

    500 images of 28 x 28, fewer larger ones. What is found is kept, as long as the teacher's weights and the images are
    the same: a slider asks again at every move.
    """
    tensors = (*teacher.parameters(), *teacher.buffers(), split.images)
    state = [(id(tensor), tensor._version) for tensor in tensors]
    if teacher not in _asked or _asked[teacher][0] != state:
        most = max(20, min(500, 500 * 784 // split.images[0].numel()))
        logits = train.evaluate(teacher, split.images[:most])
        order = logits.softmax(1).amax(1).nan_to_num(1.0).argsort(stable=True)
        chosen = torch.cat([order[len(order) // 2 :][:1], order[: min(count, len(order) // 2)]])
        _asked[teacher] = state, chosen, logits[chosen]
    return _asked[teacher][1:]


_asked = weakref.WeakKeyDictionary()  # teacher -> what `_unsure` found; at most 7 rows each


def _class_name(data, label):
    return data.classes[label] if label < len(data.classes) else str(label)


def _thumbnails(images):
    """Images (count, height, width) in grey, 0 to 1; None for what is no image, a sequence or a table."""
    if images.dim() != 4:
        return None
    grey = images.float().mean(1)
    low, high = grey.amin((1, 2), keepdim=True), grey.amax((1, 2), keepdim=True)
    return ((grey - low) / (high - low).clamp(min=1e-12)).numpy()


def _size_bars(student):
    """Parameters of each weight layer of the student, shared ones once."""
    weights = layers.distinct_weights(student)
    counts = np.array([weight.value.numel() for weight in weights], dtype=float)
    caption = "Weights of each layer of the student. Halving the width leaves a quarter of most layers."
    names = tuple(weight.names[0] for weight in weights)
    return Picture(
        "size", "bars", counts, "Weights in each layer of the student", caption, labels=names, axis="weights"
    )


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
    fair_controls={
        "no teacher": {"alpha": 0.0},
        "label smoothing": {"alpha": 0.0, "label_smoothing": 0.1},
    },
    anatomy=anatomy,
    calibration=2,
    training=training,
    steps=150,
    longer=4,
)
