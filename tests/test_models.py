"""The reference networks and their trained baselines."""

import json

import pytest
import torch
from safetensors import safe_open

import compresslab as cl
from compresslab import paths, train

COUNTS = {"article_mlp": 567_434, "lenet_300_100": 266_610, "lenet_5": 431_080}
TARGETS = {
    ("article_mlp", "mnist"): 0.983,
    ("lenet_300_100", "mnist"): 0.983,
    ("lenet_5", "mnist"): 0.991,
    ("article_mlp", "fashion_mnist"): 0.89,
    ("lenet_300_100", "fashion_mnist"): 0.89,
    ("lenet_5", "fashion_mnist"): 0.91,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_shapes(name):
    model = cl.models.build(name)
    assert sum(weight.numel() for weight in model.parameters()) == COUNTS[name]
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_widths_are_the_published_ones():
    assert [layer.out_features for layer in cl.layers.weight_layers(cl.models.article_mlp()).values()] == [
        512,
        256,
        128,
        10,
    ]
    assert [tuple(layer.weight.shape) for layer in cl.layers.weight_layers(cl.models.lenet_5()).values()] == [
        (20, 1, 5, 5),
        (50, 20, 5, 5),
        (500, 800),
        (10, 500),
    ]


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator():
    before = torch.get_rng_state()
    first, second = cl.models.lenet_300_100(seed=1), cl.models.lenet_300_100(seed=1)
    assert torch.equal(first.fc1.weight, second.fc1.weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first.fc1.weight, cl.models.lenet_300_100(seed=2).fc1.weight)


@pytest.mark.parametrize(("name", "dataset"), TARGETS)
def test_baselines_reach_their_accuracy(name, dataset):
    model, test = cl.models.pretrained(name, dataset), cl.data.load(dataset).test
    accuracy = train.accuracy_of(train.evaluate(model, test), test.labels)
    assert accuracy >= TARGETS[name, dataset]
    with safe_open(paths.find_data(cl.models.baseline_file(name, dataset)), "pt") as file:
        told = json.loads(file.metadata()["baseline"])
    assert abs(told["accuracy"]["test"] - accuracy) < 0.001
    assert not model.training


@pytest.mark.parametrize(("name", "dataset"), TARGETS)
def test_baselines_hold_no_denormal_number(name, dataset):
    """A CPU computes many times more slowly with them, and any comparison of speed would be one of denormals."""
    for weight in cl.models.pretrained(name, dataset).parameters():
        small = weight.abs() < torch.finfo(torch.float32).tiny
        assert not weight[small].any()


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="name is 'lenet'; choose one of 'article_mlp'"):
        cl.models.build("lenet")
    with pytest.raises(ValueError, match="dataset is 'cifar'"):
        cl.models.pretrained("lenet_5", "cifar")


def test_missing_and_damaged_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="mnist-lenet_5.safetensors"):
        cl.models.pretrained("lenet_5", "mnist")
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "mnist-lenet_5.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="make baselines"):
        cl.models.pretrained("lenet_5", "mnist")
