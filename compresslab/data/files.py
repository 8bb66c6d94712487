"""The files of the data sets: finding them, checking that they are undamaged, reading them.

Nothing is ever written into a data folder; only a download (CIFAR-10) lands in the user's cache, `paths.home()`.
"""

import gzip
import hashlib
import socket
import zlib
from pathlib import Path

import numpy as np

from compresslab import paths

_LARGEST = 64 * 2**20  # bytes: no idx file here is longer, so nothing longer is unpacked
_PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_HEADERS = (16, 8, 16, 8)  # bytes before the pixels or labels

# SHA-256 of the unpacked files, in the order of _PARTS; the same as in data/SHA256SUMS
_SHA256 = {
    "MNIST": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "FashionMNIST": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
_IDX = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
_CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}
NAMES = (*_IDX, "cifar10")
_CIFAR10_FOLDER = "cifar-10-batches-py"  # torchvision's CIFAR10.base_folder


def locate(name: str, folder: str | Path | None = None) -> Path | tuple:
    """Find the files of a data set; the answer changes when they do.

    folder   a data folder to use instead of `paths.data_folders()`
    raises   FileNotFoundError naming what is missing
    """
    folder = None if folder is None else Path(folder).expanduser()
    if name == "cifar10":
        folders = paths.data_folders() if folder is None else [folder]
        places = [place for each in folders for place in (each / "CIFAR10", each)]
        unpacked = (place for place in places if (place / _CIFAR10_FOLDER).is_dir())
        return next(unpacked, None) or paths.home() / "CIFAR10"
    relative = [f"{_IDX[name]}/raw/{part}.gz" for part in _PARTS]
    files = [paths.find_data(path) if folder is None else folder / path for path in relative]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not there; give as folder a copy of the workbook's data folder")
    return tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def read(name: str, source: Path | tuple) -> tuple:
    """Read the images, labels and class names of a data set that `locate` found.

    returns  ((images, labels), (images, labels), classes) of training and test; images (N, channels, height, width)
             uint8, labels (N,) uint8
    raises   ValueError naming a damaged file, FileNotFoundError for a download that did not work
    """
    if name == "cifar10":
        return _read_cifar10(source)
    contents = [_unpack(file, sha) for (file, *_), sha in zip(source, _SHA256[_IDX[name]], strict=True)]
    values = [np.frombuffer(raw, np.uint8, offset=skip) for raw, skip in zip(contents, _HEADERS, strict=True)]
    train_images, train_labels, test_images, test_labels = (array.copy() for array in values)
    shape = (-1, 1, 28, 28)
    return (train_images.reshape(shape), train_labels), (test_images.reshape(shape), test_labels), _CLASSES[name]


def _unpack(file, expected):
    """Unpack a gzip file and check its SHA-256; raises ValueError naming both checksums."""
    try:
        with gzip.open(file) as packed:
            content = packed.read(_LARGEST)
        actual = hashlib.sha256(content).hexdigest()
        if actual == expected:
            return content
        problem = f"its content has SHA-256 {actual}, expected {expected}"
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        problem = f"it does not unpack ({error}), expected SHA-256 {expected}"
    raise ValueError(
        f"{file} is damaged: {problem}; copy the file again from an undamaged checkout "
        "(there: git checkout -- data), or set COMPRESSLAB_DATA to a data folder that is complete"
    )


def _read_cifar10(root):
    from torchvision.datasets import CIFAR10

    unpacked, silence = (root / _CIFAR10_FOLDER).is_dir(), socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(20)  # seconds that a connection may be silent; torchvision would wait for ever
        parts = [CIFAR10(root, train=train, download=not unpacked) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        if unpacked:
            damage = f"{root / _CIFAR10_FOLDER} is damaged ({error}); remove it and load again"
            raise FileNotFoundError(damage) from error
        raise FileNotFoundError(
            f"cifar10 is not here and could not be downloaded ({error}); with a network, load it again; without one, "
            f"fetch {CIFAR10.url} on another machine and put it, still packed, into {root}, or unpacked into the data "
            "folder that COMPRESSLAB_DATA names"
        ) from error
    finally:
        socket.setdefaulttimeout(silence)
    train, test = (
        (np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.array(part.targets, np.uint8)) for part in parts
    )
    return train, test, tuple(parts[0].classes)
