"""Data that are read from DataLoaders: anew each time, never whole, with the loader's own batches and augmentation."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import compresslab as cl


class Counted(Dataset):
    """A data set that counts what is read, and adds noise to each image, drawn anew."""

    def __init__(self, images, labels, noise=0.0):
        self.images, self.labels, self.noise, self.reads, self.seen = images, labels, noise, 0, []

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.reads += 1
        image = self.images[index] + self.noise * torch.randn(self.images[index].shape)
        self.seen.append(float(image.sum()))
        return image, self.labels[index]


def make(data, noise=0.0, batch_size=50):
    images, labels = data
    train = Counted(images[:400], labels[:400], noise)
    rest = TensorDataset(images[400:], labels[400:])
    loader = DataLoader(train, batch_size, shuffle=True)
    held_out = DataLoader(rest, batch_size, shuffle=True)  # measuring must not rest on the order
    return train, cl.data.from_loader(train=loader, validation=held_out, test=held_out)


def test_each_epoch_reads_the_loader_anew(data, net):
    source, streams = make(data, noise=0.1)
    before = source.reads
    cl.train.finetune(net, streams.train, epochs=3, lr=0.01, seed=0)
    assert source.reads - before == 50 + 3 * 400  # a batch is looked at before
    assert len(set(source.seen)) > 0.99 * len(source.seen)


def test_the_seed_fixes_shuffling_and_augmentation(data, net):
    trained = [cl.train.finetune(net, make(data, noise=0.1)[1].train, epochs=1, seed=seed) for seed in (0, 0, 1)]
    weights = [model.state_dict()["0.weight"] for model in trained]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_it_learns_as_tensors_do(data, net):
    _, streams = make(data)
    images, labels = data
    held_out = images[400:], labels[400:]
    from_loader = cl.measure.accuracy(cl.train.finetune(net, streams.train, epochs=20, seed=0), held_out)
    tensors = images[:400], labels[:400]
    from_tensors = cl.measure.accuracy(cl.train.finetune(net, tensors, epochs=20, batch_size=50, seed=0), held_out)
    assert from_loader > 0.8 and abs(from_loader - from_tensors) < 0.1


def test_measuring_a_shuffled_loader_gives_the_accuracy_of_its_tensors(data, net):
    _, streams = make(data)
    images, labels = data
    expected = cl.measure.accuracy(net, (images[400:], labels[400:]))
    assert cl.measure.accuracy(net, streams.test) == expected
    assert cl.measure.measure(net, streams.test).accuracy == expected


def test_recipes_sweeps_and_search_take_it(data, net, tmp_path):
    _, streams = make(data)
    recipe = cl.Recipe([("zero_pruning", {"sparsity": 0.5}), ("retrain", {"epochs": 2})])
    small = recipe.apply(net, streams, journal=tmp_path / "journal.db", bar=False)
    assert cl.measure.sizes(small).nonzeros < 0.7 * cl.measure.sizes(net).nonzeros
    (result,) = cl.sweep.run("quantization", net, streams, {"bits": [4]}, steps=10, journal=False, bar=False)
    assert 0 < result.accuracy <= 1
    found = cl.search(net, streams, min_accuracy=0.1, trials=2, steps=5, journal=False, bar=False)
    assert found.file_bytes > 0


def test_what_is_measured_on_a_loader_is_not_taken_for_another(data, net):
    assert make(data)[1].fingerprint != make(data)[1].fingerprint


def test_a_loader_without_a_length(data, net):
    images, labels = data

    class Flow(IterableDataset):
        def __iter__(self):
            return iter(zip(images, labels, strict=True))

    loader = DataLoader(Flow(), 60)
    streams = cl.data.from_loader(train=loader, validation=loader, test=loader)
    assert (len(streams.train), streams.train.batches) == (600, 10)
    cl.train.finetune(net, streams.train, epochs=1, seed=0)


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (DataLoader(TensorDataset(torch.rand(20, 3)), 5), "train: batch 0 of the loader is a list of 1"),
        ([{"image": 1}], "batch 0 of the loader is a dict"),
        ([("a", "b")], "a pair of str and str"),
        ([], "the loader yields nothing"),
        (iter([1]), "can be read again and again"),
        (3, "loader is 3"),
    ],
)
def test_a_loader_that_yields_something_else_is_refused(loader, words):
    with pytest.raises(ValueError, match=words):
        cl.data.from_loader(train=loader, validation=loader, test=loader)


def test_a_batch_size_that_is_not_the_loaders_is_refused(data, net):
    with pytest.raises(ValueError, match="batch_size is 64; the loader makes batches of 50"):
        cl.train.finetune(net, make(data)[1].train, batch_size=64)


def test_what_needs_all_labels_says_so(data, net):
    with pytest.raises(ValueError, match="a DataLoader does not give them"):
        cl.distillation.distill(net, net, make(data)[1].train, epochs=1)
    assert isinstance(nn.Flatten(), nn.Module)
