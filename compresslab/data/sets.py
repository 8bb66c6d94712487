"""Data sets as tensors, split into train, validation and test.

Settings are chosen on validation images; the test images are for the one number at the end. The split is made once,
stratified (every class keeps its share), and depends on the labels and the seed alone.

MNIST: LeCun et al. 1998. Fashion-MNIST: Xiao et al. 2017, arXiv:1708.07747. CIFAR-10: Krizhevsky 2009.
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np
import torch

from compresslab import checks
from compresslab.data import files

VALIDATION = 10_000  # images of every data set that `load` knows
MOST_CLASSES = 100_000  # a label beyond it is an id or a pixel by mistake, not a class
_READING = Lock()


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels, and what training and measuring on them go by.

    images  (N, …) float32, on the CPU until `.to(device)`
    labels  (N,) int64, class numbers from 0; with a loss or a metric, targets of any kind, (N, …)
    loss    that `train.fit` makes small, loss(outputs, targets) or loss(model, images, targets); None for cross entropy
    metric  metric(outputs, targets) -> float, the higher the better, in place of the accuracy; None for the accuracy
    """

    images: torch.Tensor
    labels: torch.Tensor
    loss: Callable | None = None
    metric: Callable | None = None

    def __post_init__(self):
        if not (isinstance(self.images, torch.Tensor) and isinstance(self.labels, torch.Tensor)):
            raise ValueError("a Split holds two tensors; make one of anything else by from_tensors")
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images but {len(self.labels)} labels; give one label for each image")

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        """Select rows as a Split; for a single position return (image, label)."""
        if isinstance(index, (list, tuple, range)):
            index = torch.as_tensor(index, dtype=torch.long if len(index) == 0 else None)
        images, labels = self.images[index], self.labels[index]
        return Split(images, labels, self.loss, self.metric) if labels.ndim else (images, labels)

    def sample(self, count: int) -> "Split":
        """Return the first images, `count` at most."""
        return self[:count]

    def __repr__(self):
        return f"Split({len(self):,} images of shape {tuple(self.images.shape[1:])})"

    def to(self, device: torch.device | str) -> "Split":
        """Return the same split on `device`."""
        return Split(self.images.to(device), self.labels.to(device), self.loss, self.metric)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set: its name, its three splits and the names of its classes (label 0 is classes[0])."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of every image and label; it identifies the data of a measurement.

        Computed anew only after a tensor was changed in place. Of a DataLoader, and of a loss or metric of your own,
        nobody can tell later whether they are the same: such Data have one that holds in this process alone.
        """
        splits = self.train, self.validation, self.test
        if any(not isinstance(split, Split) or split.loss or split.metric for split in splits):
            return _digests.setdefault(self, (None, secrets.token_hex(32)))[1]
        tensors = [tensor for split in splits for tensor in (split.images, split.labels)]
        state = [None if tensor.is_inference() else tensor._version for tensor in tensors]
        if None in state or _digests.get(self, (None,))[0] != state:
            _digests[self] = state, _digest(tensors)
        return _digests[self][1]


_digests = WeakKeyDictionary()  # Data -> (versions of its tensors, their digest)


def _digest(tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


def names() -> tuple[str, ...]:
    """List the names that `load` knows."""
    return files.NAMES


def load(name: str, folder: str | None = None) -> Data:
    """Load a data set by its name, once per process.

    name    "mnist", "fashion_mnist" (50,000 train, 10,000 validation, 10,000 test images, (N, 1, 28, 28)) or
            "cifar10" (40,000, 10,000, 10,000; (N, 3, 32, 32)), which torchvision downloads at first
    folder  a data folder to use instead of COMPRESSLAB_DATA and the workbook's own
    raises  ValueError for an unknown name or a damaged file, FileNotFoundError for a missing one
    """
    checks.choice("name", name, names())
    with _READING:
        return _load(name, files.locate(name, folder))


@lru_cache(maxsize=4)
def _load(name, source):
    train, test, classes = files.read(name, source)
    images, labels = (torch.from_numpy(array) for array in train)
    rest, validation = stratified(labels.numpy(), VALIDATION)
    test_images, test_labels = (torch.from_numpy(array) for array in test)
    splits = [Split(_scale(images[rows]), labels[rows].long()) for rows in (rest, validation)]
    return Data(name, *splits, Split(_scale(test_images), test_labels.long()), classes)


def from_tensors(
    images: Sequence, labels: Sequence, test_images: Sequence | None = None, test_labels: Sequence | None = None, *,
    validation_fraction: float = 1 / 6, test_fraction: float = 1 / 6, classes: Sequence[str] | None = None,
    seed: int = 0, name: str = "custom", loss: Callable | None = None, metric: Callable | None = None,
) -> Data:  # fmt: skip
    """Make Data of copies of your own tensors, arrays or lists.

    images, labels            (N, …) and (N,): tensors, arrays or lists; uint8 images are divided by 255, any other
                              numbers are taken as they are; labels are whole numbers from 0
    test_images, test_labels  a test set, of the same image shape; without them one is split off
    validation_fraction, test_fraction  fractions of the N images split off, stratified by label, by a draw from `seed`;
                              test_fraction counts only where no test set is given
    classes                   names of the classes, label 0 first; without them "0", "1", …, and a label 0 has to occur
    loss, metric              as of `Split`; with either, labels may be targets of any kind, (N, …), split by lot
    returns                   Data; every class that occurs has at least one image in each part that is split off
    raises                    ValueError naming what is wrong
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"name is {name!r}; give a word for the data set")
    free = (loss is not None or metric is not None) and not _are_classes(labels)
    images, labels = (part.cpu() for part in _pair(images, labels, any_targets=free, ids=free))
    if (test_images is None) != (test_labels is None):
        raise ValueError("test_images and test_labels belong together; give both, or neither")
    test = None
    if test_images is not None:
        test = Split(*(part.to("cpu", copy=True) for part in _pair(test_images, test_labels, "test_", free, free)))
        if test.images.shape[1:] != images.shape[1:]:
            shapes = f"{tuple(test.images.shape[1:])}, images have {tuple(images.shape[1:])}"
            raise ValueError(f"test_images have shape {shapes}; give both the same shape")
    if free:
        classes = tuple(map(str, classes or ()))
    else:
        classes = _class_names(classes, labels if test is None else torch.cat([labels, test.labels]))
    groups = torch.zeros(len(labels), dtype=torch.int64) if free else labels  # what each part gets its share of
    rest, seed = np.arange(len(labels)), checks.integer("seed", seed, 0)
    count = _count("validation_fraction", validation_fraction, labels)
    if test is None:
        rest, held_out = stratified(groups, _count("test_fraction", test_fraction, labels), seed, leave=2)
        test = Split(images[held_out], labels[held_out])
    parts = [rest[rows] for rows in stratified(groups[rest], count, seed)]
    splits = [*(Split(images[rows], labels[rows]) for rows in parts), test]
    return Data(name, *(replace(split, loss=loss, metric=metric) for split in splits), classes)


def from_torchvision(
    dataset: Sequence, test: Sequence | None = None, *, classes: Sequence[str] | None = None, **options
) -> Data:
    """Make Data of a torchvision data set, or any with items (image, label).

    dataset, test  the data set's own transform is applied; PIL images become float tensors in [0, 1]
    classes        names of the classes; without them `dataset.classes`, where there is one
    options, the result and the errors are those of `from_tensors`
    """
    if classes is None:
        classes = getattr(dataset, "classes", getattr(getattr(dataset, "dataset", None), "classes", None))
    held_out = (None, None) if test is None else _read_items("test", test)
    return from_tensors(*_read_items("dataset", dataset), *held_out, classes=classes, **options)


def split_of(data: Split | tuple, any_targets: bool = False) -> Split:
    """Check a Split or a pair (images, labels); return a Split. A Stream is returned as it is.

    Whole numbers stay so, for a model that begins with an embedding; uint8 images are divided by 255.
    any_targets  True where a loss of the user's own decides what the labels may be
    raises       ValueError for anything else
    """
    if isinstance(data, Data):
        raise ValueError(f"data is the whole data set {data.name!r}; give one part: .train, .validation or .test")
    from compresslab.data.streams import Stream  # which is made of Splits

    if isinstance(data, Stream):
        return data
    if isinstance(data, Split):
        any_targets = any_targets or data.loss is not None or data.metric is not None
        classes = any_targets or (data.labels.dtype == torch.int64 and data.labels.dim() == 1)
        if len(data) and data.images.dtype == torch.float32 and classes and (any_targets or data.labels.amin() >= 0):
            return data
        return Split(*_pair(data.images, data.labels, any_targets=any_targets, ids=True), data.loss, data.metric)
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError(f"data is a {type(data).__name__}; give a split (data.train) or a pair (images, labels)")
    return Split(*_pair(*data, any_targets=any_targets, ids=True))


def stratified(labels: Sequence, count: int, seed: int = 0, leave: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Split off `count` positions of `labels` (N,), every class in its share.

    leave    images of every class that the rest keeps at least
    raises   ValueError if a class is too small, or `count` too small or too large for the classes

    Each image draws a 64-bit number from PCG64, a stream that NumPy keeps fixed; the lowest of a class are taken.
    """
    labels = np.asarray(labels)
    counts = np.bincount(labels)
    order = np.lexsort((np.random.PCG64(seed).random_raw(len(labels)), labels))  # by class, then by the number drawn
    chosen = np.zeros(len(labels), bool)
    for end, size, share in zip(np.cumsum(counts), counts, _divide(counts, count, leave), strict=True):
        chosen[order[end - size : end - size + share]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _divide(counts, total, leave):
    """Divide `total` among the classes by largest remainder, at least 1 each."""
    present, most = counts > 0, counts - leave
    if (small := np.flatnonzero(present & (most < 1))).size:
        raise ValueError(
            f"class {small[0]} has {counts[small[0]]} image(s), too few to be split; "
            f"give at least {leave + 1} images of each class"
        )
    if not present.sum() <= total <= most[present].sum():
        raise ValueError(
            f"{total} of {counts.sum()} images cannot be split off with each of {present.sum()} classes on both sides; "
            "give more images, or other fractions"
        )
    shares = np.where(present, np.clip(counts * total // counts.sum(), 1, most), 0)
    while shares.sum() != total:
        step = 1 if shares.sum() < total else -1
        free = shares < most if step > 0 else shares > 1
        lack = np.where(present & free, step * (counts * total - shares * counts.sum()), np.iinfo(np.int64).min)
        shares[np.argmax(lack)] += step
    return shares


def _count(name, fraction, labels):
    """Turn a fraction, above 0 and below 1, into a number of images."""
    if not 0 < checks.fraction(name, fraction) < 1:
        raise ValueError(f"{name} is {fraction!r}; give a fraction above 0 and below 1")
    return max(1, round(fraction * len(labels)))


def _pair(images, labels, prefix="", any_targets=False, ids=False):
    """Check images, as finite float32 (N, …), and labels, as int64 (N,).

    any_targets  True takes labels of any shape and dtype, a row for each image;  ids  True leaves int64 images alone
    """
    images, labels = _tensor(f"{prefix}images", images), _tensor(f"{prefix}labels", labels)
    if images.ndim < 2 or not images.numel():
        raise ValueError(f"{prefix}images have shape {tuple(images.shape)}; give at least one image, (N, …)")
    if labels.ndim != 1 and not any_targets or labels.shape[:1] != images.shape[:1]:
        hint = ""
        if labels.ndim == 2 and len(labels) == len(images):
            hint = " (one-hot labels: labels.argmax(1))" if labels.shape[1] > 1 else " (a column: labels[:, 0])"
        raise ValueError(
            f"{prefix}labels have shape {tuple(labels.shape)} for {len(images)} {prefix}images; "
            f"give each image one {'target' if any_targets else 'class number'}{hint}"
        )
    images = images if ids and images.dtype == torch.int64 else _scale(images)
    if not torch.isfinite(images).all():
        raise ValueError(f"{prefix}images hold nan or infinite numbers; give finite float32 numbers")
    return images, labels if any_targets else _to_classes(f"{prefix}labels", labels)


def _tensor(name, value):
    """Turn a tensor, array or list into a detached tensor of real numbers."""
    text = None
    try:
        if isinstance(value, (list, tuple)) and any(isinstance(item, torch.Tensor) for item in value):
            value = torch.stack([torch.as_tensor(item) for item in value])
        elif not isinstance(value, torch.Tensor):
            array = np.array(value)  # a copy: never a view of the caller's array
            text = next((item for item in array.flat[:1] if isinstance(item, str | bytes)), None)
            value = torch.from_numpy(array.astype(np.float64) if array.dtype == object and text is None else array)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition(". ")[0]
        if text is not None:
            hint = "; number the classes from 0, and give their names as classes=…" if "labels" in name else ""
            reason = f"they are text ({checks.words(str(text))}){hint}"
        raise ValueError(f"{name} cannot be made one tensor of numbers: {reason}") from error
    if value.is_complex() or value.is_quantized or value.is_meta or value.layout != torch.strided:
        kind = f"{value.dtype}, {value.layout}, on {value.device}"
        raise ValueError(f"{name} are a tensor of {kind}; give an ordinary dense one of real numbers")
    return value.detach()


def _scale(images):
    """Turn images into float32; bytes, 0 to 255, become 0 to 1."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def _are_classes(labels):
    """Tell whether labels are one whole number for each image."""
    labels = _tensor("labels", labels)
    return labels.ndim == 1 and not labels.is_floating_point()


def _to_classes(name, labels):
    """Turn labels into int64, after checking that they are whole numbers and not negative."""
    classes = labels.long()
    if labels.is_floating_point() and not torch.equal(classes.to(labels.dtype), labels):
        fraction = labels[classes.to(labels.dtype) != labels][0].item()
        raise ValueError(f"{name} hold {fraction!r}; give whole numbers, the classes counted from 0")
    if (lowest := classes.min().item()) < 0:
        raise ValueError(f"{name} hold {lowest}; give class numbers from 0")
    return classes


def _class_names(classes, labels):
    """Check that every class has a name; return the names."""
    lowest, highest = labels.min().item(), labels.max().item()
    if classes is None:
        if lowest > 0:
            hint = f"count the classes from 0 (labels - {lowest}), or name them all (classes=…)"
            raise ValueError(f"labels run from {lowest} to {highest}; {hint}")
        if highest >= MOST_CLASSES:
            raise ValueError(f"labels hold {highest}; number the classes 0, 1, 2, …")
        return tuple(map(str, range(highest + 1)))
    if isinstance(classes, str) or not hasattr(classes, "__getitem__"):
        raise ValueError(f"classes is {checks.words(classes)}; give a list of names, label 0 first")
    if highest >= len(classes):
        hint = f"there are {len(classes)} classes; give labels from 0 to {len(classes) - 1}"
        raise ValueError(f"labels hold {highest} but {hint}")
    return tuple(map(str, classes))


def _read_items(name, dataset):
    """Read the (image, label) items of a data set into two lists."""
    try:
        pairs = [(image, label) for image, label in (dataset[position] for position in range(len(dataset)))]
    except (TypeError, ValueError) as error:
        reason = checks.reason(error)
        raise ValueError(f"{name} is no data set of (image, label) items with a length: {reason}") from error
    if not pairs:
        raise ValueError(f"{name} is empty; give at least one image")
    images = [_to_tensor(image) for image, _ in pairs]
    for position, image in enumerate(images):
        if image.shape != images[0].shape:
            shapes = f"{tuple(image.shape)}, image 0 {tuple(images[0].shape)}"
            raise ValueError(f"{name}: image {position} has shape {shapes}; give its transform a Resize")
    return images, [label for _, label in pairs]


def _to_tensor(image):
    """Turn an image into a tensor; PIL images become floats in [0, 1]."""
    from torchvision.transforms.functional import to_tensor

    if not hasattr(image, "getbands"):
        return torch.as_tensor(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(f"an image has mode {image.mode!r}; give 8-bit images, or a transform to tensors in [0, 1]")
    return to_tensor(image.convert("RGB") if image.mode == "P" else image)
