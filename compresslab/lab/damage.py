"""Show what compression does to single images and classes: pictures of the answers that changed.

The mean accuracy hides damage (Hooker et al. 2019, arXiv:1911.05248).
"""

import numpy as np
import torch

from compresslab.data import Split
from compresslab.techniques import Picture

NAMES = ("changed answers", "damage by class")
ROWS = 6  # images that are shown


def make_pictures(dense: torch.Tensor, logits: torch.Tensor, split: Split, classes: tuple) -> list[Picture]:
    """Return a picture of answers that went wrong, and one of the points each class lost.

    dense, logits  (N, classes), of the network before and after compression
    split          the N images and their labels;  classes  names, () for numbers
    returns        Pictures of NAMES; none where the targets are no class numbers
    """
    labels = split.labels
    if split.metric is not None or logits.dim() != 2 or labels.dim() != 1 or labels.is_floating_point():
        return []
    names = tuple(classes) or tuple(map(str, range(logits.shape[1])))
    was_right, is_right = dense.argmax(1) == labels, logits.argmax(1) == labels
    lost, won = was_right & ~is_right, ~was_right & is_right
    return [_draw_changes(lost, won, logits, split, names), _draw_classes(was_right, is_right, labels, names)]


def _draw_changes(lost, won, logits, split, names):
    """Return a picture of the first images that the network no longer gets right, with its answers."""
    chosen = lost.nonzero().flatten()[:ROWS]
    images = split.images[chosen].float().squeeze(1)
    is_gray = images.dim() == 3 and bool(((images >= 0) & (images <= 1)).all())
    gray = images.numpy() if is_gray else None
    caption = f"Of {len(lost):,} validation images {int(lost.sum()):,} were right and are wrong now"
    caption += f" (the first are shown, with the new answers); {int(won.sum()):,} were wrong and are right."
    values = logits[chosen].softmax(1).numpy()
    labels = tuple(names[label] for label in split.labels[chosen].tolist())
    title = "Right before, wrong now" if len(chosen) else "No image went from right to wrong"
    return Picture(NAMES[0], "targets", values, title, caption, labels=labels, classes=names, images=gray)


def _draw_classes(was_right, is_right, labels, names):
    """Return a picture of the points of accuracy that each class lost."""
    counts = torch.bincount(labels, minlength=len(names)).clamp(min=1)
    before, after = (torch.bincount(labels[right], minlength=len(names)) for right in (was_right, is_right))
    points = (100 * (before - after) / counts).numpy()
    worst = int(np.argmax(points))
    caption = f"Points lost by class; the most: {names[worst]}, {points[worst]:.1f}. Below 0 a class has won."
    return Picture(NAMES[1], "bars", points, "Damage by class", caption, labels=names, axis="points lost")
