"""benchmarks.peers: one row a coder, for any network, and what is said of coders that are not there."""

import numpy as np
import pandas as pd
import pytest
import torch

import compresslab as cl
from benchmarks import peers
from benchmarks.coders import general, nncodec


@pytest.fixture(scope="module")
def one():
    """A small network of few values with random images."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    images = torch.rand(300, 1, 4, 4)
    labels = model(images).argmax(1).detach()
    labels[:30] = torch.arange(30) % 3
    data = cl.data.from_tensors(images, labels, images, labels)
    small = cl.weight_sharing.share(cl.zero_pruning.prune(model, sparsity=0.5), bits=3)
    return peers.network("small", small, data, before=model, reference=model)


def test_what_is_judged_is_the_validation_accuracy(one):
    random = np.random.default_rng(0)
    floor = cl.measure.accuracy(one.model, one.data.validation) - 0.02
    judged, seen = peers.good(one, points=0.02), set()
    for noise in (0, 0.01, 0.1, 0.3, 1):
        tensors = {k: (v + noise * random.normal(size=v.shape)).astype(np.float32) for k, v in one.tensors.items()}
        accurate = cl.measure.accuracy(one.holding(tensors), one.data.validation) >= floor - 1e-9
        assert judged(tensors) == accurate
        seen.add(accurate)
    assert seen == {True, False}


def test_a_row_for_each_coder(one, monkeypatch):
    monkeypatch.setattr(nncodec, "load", lambda: None)
    monkeypatch.setattr(general, "zstandard", None)
    table = pd.DataFrame(peers.rows(one)).set_index("coder")
    others = ["NNCodec, exact", "NNCodec, quantized", "NNCodec, the reference"]
    assert list(table.index) == ["ours", *others, "Deep Compression", "zstd", "xz"]
    assert table.loc["ours", "bytes"] == one.bytes
    assert all("pip install" in table.loc[name, "how"] for name in (*others, "zstd"))
    assert table.loc["xz", "test"] == table.loc["ours", "test"]
    assert "-" in peers.shown(table.reset_index())["bytes"].tolist()
    assert not list(peers.verdicts(table.reset_index()))


@pytest.mark.skipif(nncodec.load() is None, reason=f"needs NNCodec: {nncodec.INSTALL}")
def test_nncodec_is_as_accurate(one):
    table = pd.DataFrame(peers.rows(one, quick=True)).set_index("coder")
    for name in ("NNCodec, quantized", peers.REFERENCE):
        assert table.loc[name, "validation"] >= table.loc["ours", "validation"] - peers.POINTS
    assert table.loc[peers.ROUNDED, "validation"] == table.loc["NNCodec, quantized", "validation"]
    ours, reference = peers.verdicts(table.reset_index())
    assert ours.startswith("small: of NNCodec's smallest of these weights: ours ")
    assert reference.startswith("small: of NNCodec's of the reference network: ")


def test_a_network_of_which_no_other_is_known(one, monkeypatch):
    monkeypatch.setattr(peers, "coders", lambda *_: {peers.REFERENCE: (lambda: None, False, None)})
    (row,) = peers.rows(peers.network("alone", one.model, one.data))
    assert row["how"] == "no network before"


def test_numbers_that_are_no_floats_are_refused():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="1.num_batches_tracked of torch.int64"):
        peers.arrays(model)


def test_no_records_yet(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "RECORDS", tmp_path / "records")
    assert peers.records() == []
    assert "no .clab file yet" in capsys.readouterr().out
