"""The files behind the data sets: where they lie, that they are undamaged, what is in them.

Nothing is ever written into a data folder; only a download (CIFAR-10) lands in the user's cache, `paths.home()`.
"""

import contextlib
import gzip
import hashlib
import socket
import tarfile
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


def locate(name, folder=None):
    """Where the data set lies, as something that changes when its files do (it is the key of the cache).

    folder   a data folder to use instead of `paths.data_folders()`
    raises   FileNotFoundError naming what is missing
    """
    if name == "cifar10":
        return _cifar10_root(paths.data_folders() if folder is None else [Path(folder).expanduser()])
    files = [_find(f"{_IDX[name]}/raw/{part}.gz", folder) for part in _PARTS]
    return tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def _find(relative, folder):
    if folder is None:
        return paths.find_data(relative)
    file = Path(folder).expanduser() / relative
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; give as folder a copy of the workbook's data folder")
    return file


def read(name, source):
    """Arrays (images, labels) for training and for test, and the names of the classes.

    source   what `locate` answered
    returns  ((images, labels), (images, labels), classes); images (N, channels, height, width) uint8, labels (N,) uint8
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
    """Bytes in the gzip file, after checking their SHA-256; raises ValueError naming the file and both checksums."""
    try:
        with gzip.open(file) as packed:
            content = packed.read(_LARGEST)
        found = hashlib.sha256(content).hexdigest()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(_damaged(file, f"it does not unpack ({error})", f"SHA-256 {expected}")) from error
    if found != expected:
        raise ValueError(_damaged(file, f"its content has SHA-256 {found}", expected))
    return content


def _damaged(file, found, expected):
    return (
        f"{file} is damaged: {found}, expected {expected}; copy the file again from an undamaged checkout "
        "(there: git checkout -- data), or set COMPRESSLAB_DATA to a data folder that is whole"
    )


def _cifar10_root(folders):
    """Folder to give to torchvision's CIFAR10: the one that has it, or else the user's cache."""
    from torchvision.datasets import CIFAR10

    places = [place for folder in folders for place in (folder / "CIFAR10", folder)]
    for place in places:
        if (place / CIFAR10.base_folder).is_dir():
            return place
        if (place / CIFAR10.filename).is_file():
            own = _cifar10_home()
            if not (own / CIFAR10.base_folder / "batches.meta").is_file():
                _unpack_cifar10(place / CIFAR10.filename, own)
    return _cifar10_home()


def _cifar10_home():
    return paths.home() / "CIFAR10"


def _unpack_cifar10(archive, folder):
    from torchvision.datasets import CIFAR10

    if (found := _md5(archive)) != CIFAR10.tgz_md5:
        raise ValueError(_damaged(archive, f"it has MD5 {found}", CIFAR10.tgz_md5))
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")


def _md5(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _read_cifar10(root):
    from torchvision.datasets import CIFAR10

    try:
        own = _cifar10_home()
    except OSError:  # no home, so root is in a data folder
        own = "the folder CIFAR10 of COMPRESSLAB_HOME"
    try:
        with _patience(seconds=20):  # nothing is written but into the user's cache
            parts = [CIFAR10(root, train=train, download=root == own) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        problem = _cifar10_damage(root) if root != own else f"cifar10 is not here and could not be downloaded ({error})"
        raise FileNotFoundError(
            f"{problem}; with a network, load it again; without one, fetch {CIFAR10.url} on another machine and put "
            f"it, still packed, into {own}, or into a folder CIFAR10 of the data folder that COMPRESSLAB_DATA names"
        ) from error
    arrays = [
        (np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.array(part.targets, np.uint8)) for part in parts
    ]
    return *arrays, tuple(parts[0].classes)


def _cifar10_damage(root):
    """Which file of an unpacked CIFAR-10 is not as it should be, with its expected checksum."""
    from torchvision.datasets import CIFAR10

    known = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    for name, expected in known:
        file = root / CIFAR10.base_folder / name
        found = f"has MD5 {_md5(file)}" if file.is_file() else "is missing"
        if found != f"has MD5 {expected}":
            return f"{file} {found}, expected MD5 {expected}"
    return f"{root} cannot be read"


@contextlib.contextmanager
def _patience(seconds):
    """Limit how long a new connection may stay silent: torchvision's downloader itself would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
