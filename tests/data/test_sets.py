"""Data sets: what comes back, how it is split, and what is said when something is wrong."""

import gzip
import hashlib
import http.server
import pickle
import shutil
import socket
import tarfile
import threading
import urllib.error
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import compresslab as cl
from compresslab.data import files, sets

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture
def tiny():
    """60 images of 6 features, 3 classes of 20."""
    return torch.rand(60, 6, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3


@pytest.fixture
def mnist_copy(tmp_path):
    shutil.copytree(DATA / "MNIST", tmp_path / "MNIST")
    return tmp_path


def position_of(split, images):
    """Where the images of `split` stand among `images`, each of which is different."""
    return [int((images == image).flatten(1).all(1).nonzero()) for image in split.images]


# the data sets that ship


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_shipped_sizes_types_and_range(name):
    data = cl.data.load(name)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [50_000, 10_000, 10_000]
    assert data.train.images.shape == (50_000, 1, 28, 28)
    assert (data.name, len(data.classes)) == (name, 10)
    for part in (data.train, data.validation, data.test):
        assert (part.images.dtype, part.labels.dtype) == (torch.float32, torch.int64)
        assert (part.images.min(), part.images.max()) == (0, 1)
        assert part.labels.unique().tolist() == list(range(10))


@pytest.mark.parametrize("name, reader", [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_the_same_images_as_torchvision_reads(name, reader, tmp_path):
    raw = tmp_path / reader / "raw"
    raw.mkdir(parents=True)
    for file in (DATA / reader / "raw").glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    oracle = getattr(torchvision.datasets, reader)
    train, test = (oracle(tmp_path, train=which) for which in (True, False))
    data = cl.data.load(name)
    rest, validation = cl.data.stratified(train.targets.numpy(), 10_000)
    assert torch.equal(data.test.images[:, 0], test.data / 255)
    assert torch.equal(data.test.labels, test.targets)
    assert torch.equal(data.train.images[:, 0], train.data[rest] / 255)
    assert torch.equal(data.validation.images[:, 0], train.data[validation] / 255)
    assert torch.equal(data.validation.labels, train.targets[validation])


def test_validation_keeps_every_class_in_its_share():
    data = cl.data.load("mnist")
    train, validation = (torch.bincount(part.labels) for part in (data.train, data.validation))
    assert ((validation - (train + validation) / 6).abs() < 1).all()


def test_the_split_is_the_same_on_every_machine():
    digest = hashlib.sha256(cl.data.load("mnist").validation.labels.numpy().astype("<i8")).hexdigest()
    assert digest == "2fcf02a01218a7a75796e79e880d776190daf64cc29800c845b15cc0f21f51ad"


def test_loaded_once_then_the_same_object():
    assert cl.data.load("mnist") is cl.data.load("mnist")


def test_fingerprint_is_of_the_content(tiny):
    first, same = cl.data.from_tensors(*tiny), cl.data.from_tensors(*tiny)
    other = cl.data.from_tensors(tiny[0], tiny[1], seed=1)
    assert first.fingerprint == same.fingerprint != other.fingerprint
    assert len(first.fingerprint) == 64


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_data_changed_in_place_have_another_fingerprint(tiny, part, monkeypatch):
    data = cl.data.from_tensors(*tiny)
    before = data.fingerprint
    getattr(data, part).labels[:2] += 1
    after = data.fingerprint
    assert after != before and pickle.loads(pickle.dumps(data)).fingerprint == after
    monkeypatch.setattr(sets, "_digest", None)
    assert data.fingerprint == after  # which is not computed twice


def test_data_made_in_inference_mode_have_a_fingerprint(tiny):
    with torch.inference_mode():
        data = cl.data.from_tensors(*tiny)
    assert data.fingerprint == cl.data.from_tensors(*tiny).fingerprint


def test_loading_leaves_the_global_generator_alone(tiny):
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    cl.data.from_tensors(*tiny, seed=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


@pytest.mark.parametrize("name", ["cifar", "", "MNIST", None, ["mnist"]])
def test_unknown_name_lists_the_choices(name):
    with pytest.raises(ValueError, match=r"name is .*'mnist', 'fashion_mnist', 'cifar10'"):
        cl.data.load(name)


def test_checksums_are_those_beside_the_data():
    listed = dict(reversed(line.split()) for line in (DATA / "SHA256SUMS").read_text().splitlines())
    known = {
        f"{folder}/raw/{part}": sha
        for folder, sums in files._SHA256.items()
        for part, sha in zip(files._PARTS, sums, strict=True)
    }
    assert listed == known


# damaged, missing, read-only


def damage_truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def damage_one_bit(file):
    raw = bytearray(gzip.decompress(file.read_bytes()))
    raw[1000] ^= 1
    file.write_bytes(gzip.compress(bytes(raw), 1))


def damage_packed_byte(file):
    packed = bytearray(file.read_bytes())
    packed[len(packed) // 2] ^= 255
    file.write_bytes(packed)


def damage_not_gzip(file):
    file.write_bytes(b"<html>404</html>")


def damage_empty(file):
    file.write_bytes(b"")


def damage_enlarge(file):
    file.write_bytes(gzip.compress(bytes(files._LARGEST + 10), 1))


@pytest.mark.parametrize(
    "damage",
    [damage_truncate, damage_one_bit, damage_packed_byte, damage_not_gzip, damage_empty, damage_enlarge],
    ids=lambda damage: damage.__name__,
)
def test_damaged_file_is_named_with_its_expected_checksum(mnist_copy, damage, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_DATA", str(mnist_copy))
    name = "t10k-labels-idx1-ubyte.gz"
    damage(mnist_copy / "MNIST/raw" / name)
    expected = "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    with pytest.raises(ValueError, match=f"{name} is damaged.*{expected}.*COMPRESSLAB_DATA"):
        cl.data.load("mnist")
    shutil.copy(DATA / "MNIST/raw" / name, mnist_copy / "MNIST/raw" / name)
    assert len(cl.data.load("mnist").test) == 10_000  # repaired: no error is remembered


def test_found_checksum_is_named(mnist_copy):
    file = mnist_copy / "MNIST/raw/train-labels-idx1-ubyte.gz"
    damage_one_bit(file)
    found = hashlib.sha256(gzip.decompress(file.read_bytes())).hexdigest()
    with pytest.raises(ValueError, match=f"SHA-256 {found}, expected 65a50cbb"):
        cl.data.load("mnist", folder=mnist_copy)


def test_read_only_folder_is_enough(mnist_copy):
    for path in sorted(mnist_copy.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(mnist_copy.rglob("*"))
    data = cl.data.load("mnist", folder=str(mnist_copy))
    assert data.fingerprint == cl.data.load("mnist").fingerprint
    assert sorted(mnist_copy.rglob("*")) == before
    for path in before:
        path.chmod(0o755)


def test_missing_files_say_where_they_were_looked_for(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/MNIST/raw/train-images.*data folder"):
        cl.data.load("mnist", folder=tmp_path)
    monkeypatch.setenv("COMPRESSLAB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*COMPRESSLAB_DATA"):
        cl.data.load("mnist")


def test_found_from_any_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COMPRESSLAB_DATA", raising=False)
    assert cl.data.load("fashion_mnist").classes[9] == "Ankle boot"


# CIFAR-10, with a small archive in place of the real one


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COMPRESSLAB_DATA", str(tmp_path / "data"))
    return tmp_path / "home"


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cifar_archive(tmp_path, monkeypatch):
    """An archive laid out as CIFAR-10's, with 10 images in each training batch; torchvision told its checksums."""
    reader = torchvision.datasets.CIFAR10
    folder = tmp_path / "made" / reader.base_folder
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(0)
    sums = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        entry = {"data": numbers.integers(0, 256, (10, 3072), np.uint8), "labels": list(range(10))}
        if name == "batches.meta":
            entry = {"label_names": list("abcdefghij")}
        (folder / name).write_bytes(pickle.dumps(entry))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    archive = tmp_path / "made" / reader.filename
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, reader.base_folder)
    monkeypatch.setattr(reader, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(reader, "train_list", [[name, sums[name]] for name in sums if name.startswith("data")])
    monkeypatch.setattr(reader, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": sums["batches.meta"]})
    monkeypatch.setattr(sets, "VALIDATION", 10)
    return archive


def test_cifar10_offline_says_what_to_do(home, offline):
    with pytest.raises(FileNotFoundError, match="cifar-10-python.tar.gz.*COMPRESSLAB_DATA") as caught:
        cl.data.load("cifar10")
    assert str(home / "CIFAR10") in str(caught.value)
    assert isinstance(caught.value.__cause__, urllib.error.URLError)


def check_cifar(data):
    assert [len(part) for part in (data.train, data.validation, data.test)] == [40, 10, 10]
    assert data.train.images.shape[1:] == (3, 32, 32)
    assert data.classes == tuple("abcdefghij")


@pytest.fixture
def served(cifar_archive, monkeypatch):
    """The archive on a server of this machine; the number of its bytes that are sent, None for all."""
    sent = {"bytes": None}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(cifar_archive.stat().st_size))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(cifar_archive.read_bytes()[: sent["bytes"]])

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/cifar.tar.gz")
        yield sent
        server.shutdown()


def test_cifar10_through_the_downloader(home, served):
    data = cl.data.load("cifar10")
    check_cifar(data)
    oracle = torchvision.datasets.CIFAR10(home / "CIFAR10", train=False)
    assert torch.equal(data.test.images[3], torchvision.transforms.functional.to_tensor(oracle[3][0]))
    assert cl.data.load("cifar10") is data


def test_cifar10_from_an_archive_put_there_by_hand(home, offline, cifar_archive):
    (home / "CIFAR10").mkdir(parents=True)
    shutil.copy(cifar_archive, home / "CIFAR10")
    check_cifar(cl.data.load("cifar10"))


def test_cifar10_damaged_file_is_seen(home, offline, cifar_archive):
    with tarfile.open(cifar_archive) as packed:
        packed.extractall(home.parent / "data", filter="data")
    (home.parent / "data/cifar-10-batches-py/data_batch_3").write_bytes(b"cut")
    with pytest.raises(FileNotFoundError, match="data/cifar-10-batches-py is damaged"):
        cl.data.load("cifar10")


def test_cifar10_half_a_download_does_not_break_the_next_try(home, served):
    served["bytes"] = 500
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        cl.data.load("cifar10")
    served["bytes"] = None
    check_cifar(cl.data.load("cifar10"))


def test_cifar10_of_a_data_folder_asks_for_no_home(home, cifar_archive, monkeypatch):
    with tarfile.open(cifar_archive) as packed:
        packed.extractall(home.parent / "data", filter="data")
    monkeypatch.setenv("COMPRESSLAB_HOME", str(cifar_archive / "in a file"))
    check_cifar(cl.data.load("cifar10"))


# a user's own tensors


def test_own_tensors_are_split_in_three(tiny):
    data = cl.data.from_tensors(*tiny)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [40, 10, 10]
    together = [position_of(part, tiny[0]) for part in (data.train, data.validation, data.test)]
    assert sorted(sum(together, [])) == list(range(60))  # every image once
    assert all(part == sorted(part) for part in together)
    for part, positions in zip((data.train, data.validation, data.test), together, strict=True):
        assert torch.equal(part.labels, tiny[1][positions])
    assert data.classes == ("0", "1", "2")


def test_own_test_set_stays_whole(tiny):
    images = torch.rand(7, 6)
    data = cl.data.from_tensors(*tiny, images, torch.tensor([3, 0, 0, 0, 0, 0, 0]))
    assert torch.equal(data.test.images, images)
    assert [len(data.train), len(data.validation)] == [50, 10]
    assert data.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize("kind", ["numpy", "list", "list of tensors", "float labels", "read-only numpy"])
def test_arrays_and_lists_are_tensors_too(tiny, kind):
    images, labels = tiny
    frozen = images.numpy().copy()
    frozen.setflags(write=False)
    given = {
        "numpy": (images.numpy(), labels.numpy()),
        "list": (images.tolist(), labels.tolist()),
        "list of tensors": (list(images), list(labels)),
        "float labels": (images, labels.double()),
        "read-only numpy": (frozen, labels.numpy().astype(np.uint16)),
    }[kind]
    assert cl.data.from_tensors(*given).fingerprint == cl.data.from_tensors(*tiny).fingerprint


def test_bytes_become_fractions_and_other_numbers_stay(tiny):
    labels = tiny[1]
    pixels = torch.randint(0, 256, (60, 3, 4, 4), dtype=torch.uint8)
    scaled, plain = cl.data.from_tensors(pixels, labels), cl.data.from_tensors(pixels.int(), labels)
    assert torch.equal(scaled.train.images * 255, plain.train.images)
    assert scaled.train.images.max() <= 1


def test_what_was_passed_is_neither_changed_nor_shared(tiny):
    images, labels = tiny[0].requires_grad_(), tiny[1]
    test_images, test_labels = torch.rand(5, 6), torch.zeros(5, dtype=torch.long)
    before = [tensor.detach().clone() for tensor in (images, labels, test_images, test_labels)]
    data = cl.data.from_tensors(images, labels, test_images, test_labels)
    for part in (data.train, data.validation, data.test):
        part.images.zero_()
        part.labels.fill_(9)
    assert not data.train.images.requires_grad
    for now, then in zip((images, labels, test_images, test_labels), before, strict=True):
        assert torch.equal(now, then)


def test_seed_and_fractions_decide_the_split(tiny):
    same = [position_of(cl.data.from_tensors(*tiny, seed=seed).test, tiny[0]) for seed in (3, 3, 4)]
    assert same[0] == same[1] != same[2]
    data = cl.data.from_tensors(*tiny, validation_fraction=0.25, test_fraction=0.5)
    assert [len(data.train), len(data.validation), len(data.test)] == [15, 15, 30]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.floats(0.05, 0.6), st.integers(0, 2**40))
def test_stratified_keeps_shares(sizes, fraction, seed):
    assume(any(sizes))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    count = round(fraction * len(labels))
    try:
        rest, chosen = cl.data.stratified(labels, count, seed)
    except ValueError:
        present = sum(size > 0 for size in sizes)
        assert 1 in sizes or count < present or count > len(labels) - present
        return
    assert len(chosen) == count
    assert sorted([*rest, *chosen]) == list(range(len(labels)))
    taken = np.bincount(labels[chosen], minlength=len(sizes))
    share = np.array(sizes) * count / len(labels)
    assert all(0 < t < size for t, size in zip(taken, sizes, strict=True) if size)
    if share[np.array(sizes) > 0].min() >= 1 and (np.array(sizes) - share)[np.array(sizes) > 0].min() >= 1:
        assert (np.abs(taken - share) < 1).all()


def test_largest_remainder_by_hand():
    labels = np.repeat([0, 1, 2], [10, 7, 3])  # 5 of 20: shares 2.5, 1.75, 0.75, so 2 + 2 + 1
    _, chosen = cl.data.stratified(labels, 5)
    assert np.bincount(labels[chosen]).tolist() == [2, 2, 1]


BAD = {
    "empty": (lambda i, y: (i[:0], y[:0]), {}, "images have shape .*give at least one"),
    "no features": (lambda i, y: (i[:, 0], y), {}, r"images have shape \(60,\)"),
    "lengths": (lambda i, y: (i, y[:-1]), {}, r"labels have shape \(59,\) for 60 images"),
    "one-hot": (lambda i, y: (i, torch.eye(3)[y]), {}, "give each image one class number"),
    "half label": (lambda i, y: (i, y + 0.5), {}, "labels hold 0.5; give whole numbers"),
    "nan label": (lambda i, y: (i, torch.where(y == 1, torch.nan, y.float())), {}, "labels hold nan"),
    "negative": (lambda i, y: (i, y - 1), {}, "labels hold -1"),
    "out of range": (lambda i, y: (i, y), {"classes": ["a", "b"]}, "labels hold 2 but there are 2 classes"),
    "huge label": (lambda i, y: (i, y * 10**9), {}, "labels hold 2000000000"),
    "text labels": (lambda i, y: (i, ["cat"] * 60), {}, "labels cannot be made one tensor"),
    "text in an array": (lambda i, y: (i, np.array(["cat"] * 60, object)), {}, r"labels .* text \('cat'\); number"),
    "from 1": (
        lambda i, y: (i, y + 1),
        {},
        r"labels run from 1 to 3; count the classes from 0 \(labels - 1\)",
    ),
    "a column": (lambda i, y: (i, y[:, None]), {}, r"labels have shape \(60, 1\) .*labels\[:, 0\]"),
    "ragged": (lambda i, y: ([[1.0], [1.0, 2.0]], [0, 1]), {}, "images cannot be made one tensor"),
    "none": (lambda i, y: (None, y), {}, "images"),
    "complex": (lambda i, y: (i + 1j, y), {}, "images are a tensor of .* real"),
    "sparse": (lambda i, y: (i.to_sparse(), y), {}, "images are a tensor of .* dense"),
    "meta": (lambda i, y: (i, y.to("meta")), {}, "labels are a tensor of .*meta"),
    "unordered classes": (lambda i, y: (i, y), {"classes": {"a", "b", "c"}}, "give a list of names"),
    "no name": (lambda i, y: (i, y), {"name": None}, "name is None"),
    "no fraction": (lambda i, y: (i, y), {"test_fraction": None}, "test_fraction is None"),
    "nan": (lambda i, y: (torch.where(i > 0.9, torch.nan, i), y), {}, "images hold nan or infinite"),
    "too large": (lambda i, y: (i.double() * 1e300, y), {}, "images hold nan or infinite"),
    "only test images": (lambda i, y: (i, y, i), {}, "belong together"),
    "other shape": (lambda i, y: (i, y, i[:, :5], y), {}, r"test_images have shape \(5,\), images have \(6,\)"),
    "test labels": (lambda i, y: (i, y, i, y[:5]), {}, "test_labels have shape"),
    "test label range": (lambda i, y: (i, y, i, y + 7), {"classes": "a b c".split()}, "labels hold 9"),
    "small class": (lambda i, y: (i, (torch.arange(60) == 7).long()), {}, "class 1 has 1 image"),
    "few for classes": (lambda i, y: (i, torch.arange(60) % 20), {}, "20 classes"),
    "nothing to train": (lambda i, y: (i, y), {"validation_fraction": 0.6, "test_fraction": 0.5}, "images cannot be"),
    "percent": (lambda i, y: (i, y), {"validation_fraction": 20}, "validation_fraction is 20; give a fraction"),
    "no validation": (lambda i, y: (i, y), {"validation_fraction": 0}, "validation_fraction is 0"),
    "all test": (lambda i, y: (i, y), {"test_fraction": 1.0}, "test_fraction is 1.0"),
    "seed": (lambda i, y: (i, y), {"seed": -1}, "seed is -1"),
    "classes a word": (lambda i, y: (i, y), {"classes": "cat"}, "classes is 'cat'"),
}


@pytest.mark.parametrize("change, options, message", BAD.values(), ids=BAD.keys())
def test_bad_data_is_refused_in_words(tiny, change, options, message):
    with pytest.raises(ValueError, match=message):
        cl.data.from_tensors(*change(*tiny), **options)


# torchvision data sets


class Pictures:
    """20 PIL pictures of 2 classes, as torchvision's data sets give them."""

    classes = ["left", "right"]

    def __init__(self, transform=None, mode="L"):
        pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 5), np.uint8)
        self.images = [torchvision.transforms.functional.to_pil_image(image).convert(mode) for image in pixels]
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, position):
        image = self.images[position]
        return self.transform(image) if self.transform else image, position % 2


@pytest.mark.parametrize("mode, channels", [("L", 1), ("RGB", 3)])
def test_pil_pictures_become_fractions(mode, channels):
    pictures = Pictures(mode=mode)
    data = cl.data.from_torchvision(pictures, name="pictures")
    wanted = torch.stack([torchvision.transforms.functional.to_tensor(image) for image in pictures.images])
    assert data.train.images.shape[1:] == (channels, 4, 5)
    assert torch.equal(data.test.images, wanted[position_of(data.test, wanted)])
    assert (data.name, data.classes) == ("pictures", ("left", "right"))


def test_the_data_sets_own_transform_is_applied():
    raw = torchvision.transforms.PILToTensor()  # uint8
    half = torchvision.transforms.Compose([torchvision.transforms.ToTensor(), lambda image: image - 0.5])
    plain, bytes_, shifted = (cl.data.from_torchvision(Pictures(change)) for change in (None, raw, half))
    assert torch.equal(plain.train.images, bytes_.train.images)
    assert torch.equal(plain.train.images - 0.5, shifted.train.images)


def test_second_data_set_is_the_test_set():
    data = cl.data.from_torchvision(Pictures(), test=Pictures())
    assert len(data.test) == 20
    assert len(data.train) + len(data.validation) == 20


def test_real_torchvision_data_set_and_a_subset_of_it(tmp_path):
    fake = torchvision.datasets.FakeData(40, (3, 8, 8), 2)
    data = cl.data.from_torchvision(torch.utils.data.Subset(Pictures(), range(18)))
    assert data.classes == ("left", "right")
    assert cl.data.from_torchvision(fake).train.images.shape[1:] == (3, 8, 8)


class Mixed(Pictures):
    def __getitem__(self, position):
        return torch.zeros(1, 4, 4 + position), 0


@pytest.mark.parametrize(
    "dataset, message",
    [
        ([], "dataset is empty"),
        (iter([]), "no data set"),
        (7, "no data set"),
        ([1, 2, 3], "no data set"),
        ([(1, 2, 3)], "no data set"),
        (Mixed(), "image 1 has shape .* Resize"),
    ],
    ids=["empty", "iterator", "number", "no pairs", "triples", "sizes differ"],
)
def test_what_is_no_data_set_is_refused(dataset, message):
    with pytest.raises(ValueError, match=message):
        cl.data.from_torchvision(dataset)


# splits


def test_split_indexing(tiny):
    split = cl.data.Split(*tiny)
    mask = split.labels == 1
    for index, wanted in [
        (slice(2, 9, 3), [2, 5, 8]),
        (torch.tensor([4, 1]), [4, 1]),
        ([4, -1], [4, 59]),
        (range(3), [0, 1, 2]),
        (np.array([7]), [7]),
        (mask, list(range(1, 60, 3))),
        (mask.tolist(), list(range(1, 60, 3))),
        ([], []),
    ]:
        part = split[index]
        assert isinstance(part, cl.data.Split)
        assert torch.equal(part.images, tiny[0][wanted])
        assert torch.equal(part.labels, tiny[1][wanted])


def test_a_split_is_a_data_set_for_a_loader(tiny):
    split = cl.data.Split(*tiny)
    batches = list(torch.utils.data.DataLoader(split, batch_size=25))
    assert torch.equal(torch.cat([labels for _, labels in batches]), tiny[1])
    assert len(list(split)) == len(split) == 60


def test_split_moves_and_shows_itself(tiny):
    split = cl.data.Split(*tiny)
    assert split.to("meta").images.device.type == "meta"
    assert repr(split) == "Split(60 images of shape (6,))"


def test_split_refuses_what_does_not_match(tiny):
    with pytest.raises(ValueError, match="60 images but 59 labels"):
        cl.data.Split(tiny[0], tiny[1][:-1])
    with pytest.raises(ValueError, match="two tensors"):
        cl.data.Split([1.0], [0])


def test_split_of_takes_a_split_or_a_pair(tiny):
    split = cl.data.Split(*tiny)
    assert cl.data.split_of(split) is split
    for pair in [tiny, list(tiny), (tiny[0].numpy(), tiny[1].tolist()), cl.data.Split(tiny[0].double(), tiny[1].int())]:
        made = cl.data.split_of(pair)
        assert torch.equal(made.images, tiny[0])
        assert torch.equal(made.labels, tiny[1])


def test_split_of_refuses_the_rest(tiny):
    for wrong, message in [
        (cl.data.from_tensors(*tiny), "give one part"),
        (tiny[0], "give a split"),
        (cl.data.Split(*tiny)[:0], "at least one image"),
        ((tiny[0], tiny[1] - 1), "labels hold -1"),
        (None, "data is a NoneType"),
    ]:
        with pytest.raises(ValueError, match=message):
            cl.data.split_of(wrong)


def test_data_survives_the_way_to_another_process(tiny):
    data = cl.data.from_tensors(*tiny)
    assert pickle.loads(pickle.dumps(data)).fingerprint == data.fingerprint


def test_labels_from_1_are_taken_where_all_classes_are_named(tiny):
    data = cl.data.from_tensors(tiny[0], tiny[1] + 1, classes=["none", "a", "b", "c"])
    assert data.classes[int(data.train.labels.min())] == "a"


def test_labels_of_pandas_with_missing_values_allowed(tiny):
    labels = pd.Series(tiny[1].numpy(), dtype="Int64")
    assert cl.data.from_tensors(tiny[0], labels).classes == ("0", "1", "2")


def test_split_of_keeps_targets_and_whole_numbers():
    words, targets = torch.randint(9, (5, 4)), torch.rand(5, 2, dtype=torch.float64)
    split = cl.data.split_of((words, targets), any_targets=True)
    assert split.images.dtype == torch.int64 and torch.equal(split.labels, targets)
    with pytest.raises(ValueError, match="give each image one target"):
        cl.data.split_of((words, targets[:3]), any_targets=True)
