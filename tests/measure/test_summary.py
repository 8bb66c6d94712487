import pytest
import torch
from torch import nn

from compresslab import measure


@pytest.fixture
def split():
    return torch.rand(30, 1, 4, 4), torch.arange(30) % 3


@pytest.fixture
def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def test_everything_at_once(model, split):
    result = measure.measure(model, split, batch_size=2)
    assert result.accuracy == measure.accuracy(model, split)
    assert result.sizes == measure.sizes(model)
    assert result.macs == 48
    assert (result.latency.batch_size, result.latency.shape) == (2, (1, 4, 4))


def test_one_row(model, split):
    result = measure.measure(model, split)
    frame = result.to_frame()
    assert frame.shape[0] == 1
    row = frame.iloc[0]
    for column in (
        "parameters",
        "nonzeros",
        "dense_bytes",
        "torch_save_bytes",
        "gzip_bytes",
        "csr_bytes",
        "file_bytes",
    ):
        assert row[column] == getattr(result.sizes, column)
    assert list(frame) == [
        *("accuracy", "parameters", "nonzeros", "dense_bytes", "torch_save_bytes", "gzip_bytes", "csr_bytes"),
        *("file_bytes", "compression_ratio", "macs", "latency_median", "latency_low", "latency_high"),
        *("batch_size", "threads"),
    ]
    assert row["compression_ratio"] == result.sizes.compression_ratio
    assert (row["accuracy"], row["macs"], row["batch_size"], row["threads"]) == (result.accuracy, 48, 1, 1)
    assert row["latency_low"] <= row["latency_median"] <= row["latency_high"]
    assert row["latency_median"] == result.latency.median


def test_several_rows_in_order(model, split):
    result = measure.measure(model, split)
    frame = measure.table({"dense": result, "90%": result})
    assert list(frame.index) == ["dense", "90%"]
    assert frame.loc["90%"].equals(frame.loc["dense"].rename("90%"))


@pytest.mark.parametrize(
    ("measurements", "message"),
    [({}, "measurements is empty"), ({"dense": 0.98}, r"measurements\['dense'\] is no Measurement")],
)
def test_bad_tables(measurements, message):
    with pytest.raises(ValueError, match=message):
        measure.table(measurements)


def test_errors_come_through(model, split):
    with pytest.raises(ValueError, match="batch_size is 0"):
        measure.measure(model, split, batch_size=0)
    with pytest.raises(ValueError, match="at least one image"):
        measure.measure(model, (split[0][:0], split[1][:0]))
