import gzip
import io
import math

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn
from torch.nn.utils import prune as torch_prune

import compresslab as cl
from compresslab import measure
from compresslab.techniques import quantization


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def saved(model):
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getvalue()


def masked(model, keep):
    """`model` with the first weights of every layer kept, as a fraction."""
    for layer in cl.layers.weight_layers(model).values():
        mask = torch.zeros(layer.weight.numel(), dtype=torch.bool)
        mask[: round(keep * len(mask))] = True
        cl.layers.set_mask(layer, mask.view_as(layer.weight))
    return model


def wide():
    """A large enough network for its weights to outweigh the rest of a file."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 10))


@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_quantized_weights_are_few_bits_in_the_file_alone(bits, learned):
    dense, images = measure.sizes(wide()), torch.randn(20, 200)
    count, scales = dense.parameters, 2 * 4 * 110
    for setting in ({}, {"activations": 8, "images": images}):
        ledger = measure.sizes(quantization.quantize(wide(), bits=bits, learned=learned, **setting))
        inputs = 2 * (3 if learned else 2) * 4 if setting else 0  # scale, zero point and growth of two layers
        assert ledger.parameters == count and ledger.nonzeros <= count
        assert ledger.dense_bytes == 4 * count + inputs
        assert dense.torch_save_bytes <= ledger.torch_save_bytes < 1.05 * dense.torch_save_bytes + 2000
        assert ledger.csr_bytes <= dense.csr_bytes + inputs
        assert ledger.file_bytes < count * bits / 8 + scales + 4 * 110 + 350


def test_halves_count_as_four_bytes_but_in_the_file():
    dense, ledger = measure.sizes(wide()), measure.sizes(quantization.quantize(wide(), dtype="fp16"))
    assert (ledger.parameters, ledger.dense_bytes) == (dense.parameters, dense.dense_bytes)
    assert ledger.torch_save_bytes == dense.torch_save_bytes
    assert ledger.file_bytes < 2 * dense.parameters + 2 * 110 + 300 and ledger.compression_ratio > 1.9


def test_a_dense_model_by_hand():
    model = mlp()
    ledger = measure.sizes(model)
    count = 16 * 12 + 12 + 12 * 3 + 3
    assert (ledger.parameters, ledger.nonzeros, ledger.dense_bytes) == (count, count, 4 * count)
    assert ledger.torch_save_bytes == len(saved(model))
    assert ledger.gzip_bytes == len(gzip.compress(saved(model), 6, mtime=0))
    assert ledger.file_bytes == cl.storage.file_bytes(model)
    assert ledger.compression_ratio == ledger.dense_bytes / ledger.file_bytes
    index_bytes = (16 * 12 + 12 * 3) * 4 + (12 + 1 + 3 + 1) * 4
    assert ledger.csr_bytes == 4 * count + index_bytes


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 1.0])
def test_masked_weights(keep):
    model = masked(mlp(), keep)
    kept = round(keep * 192) + round(keep * 36)
    ledger, dense = measure.sizes(model), measure.sizes(mlp())
    assert ledger.parameters == dense.parameters
    assert ledger.nonzeros == kept + 15
    assert ledger.dense_bytes == dense.dense_bytes
    assert ledger.torch_save_bytes == dense.torch_save_bytes
    assert ledger.csr_bytes == kept * 8 + (13 + 4) * 4 + 15 * 4


def test_csr_is_scipys():
    model = masked(mlp(), 0.3)
    expected = 15 * 4
    for name, tensor in cl.layers.effective_state(model).items():
        if name.endswith("weight"):
            matrix = sparse.csr_matrix(tensor.numpy())
            assert matrix.indices.dtype == np.int32
            expected += matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    assert measure.sizes(model).csr_bytes == expected


def test_zeros_help_only_where_positions_are_coded():
    dense, sparse_ = measure.sizes(mlp()), measure.sizes(masked(mlp(), 0.05))
    assert sparse_.torch_save_bytes == dense.torch_save_bytes
    assert sparse_.gzip_bytes < dense.gzip_bytes
    assert sparse_.csr_bytes < dense.csr_bytes
    assert sparse_.file_bytes < dense.file_bytes


def test_half_the_weights_save_nothing_in_csr():
    ledger = measure.sizes(masked(mlp(), 0.5))
    assert ledger.csr_bytes >= ledger.dense_bytes


def test_convolutions_are_rows_of_filters():
    model = nn.Sequential(nn.Conv2d(2, 5, 3, bias=False), nn.ConvTranspose2d(5, 4, 2, bias=False))
    expected = (5 * 18 * 8 + 6 * 4) + (5 * 16 * 8 + 6 * 4)  # values and column indices, then row starts
    assert measure.sizes(model).csr_bytes == expected


def test_shared_weights_count_once():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    ledger = measure.sizes(model)
    assert (ledger.parameters, ledger.dense_bytes) == (80, 320)
    assert ledger.torch_save_bytes == len(saved(model))
    assert ledger.csr_bytes == 64 * 8 + 9 * 4 + 16 * 4
    assert measure.sizes(masked(model, 0.5)).csr_bytes == 32 * 8 + 9 * 4 + 16 * 4


def test_buffers_belong_to_the_model():
    ledger = measure.sizes(nn.BatchNorm1d(6))  # weight, bias, mean, variance, and one int64 counter
    assert (ledger.parameters, ledger.nonzeros) == (12, 6)
    assert ledger.dense_bytes == ledger.csr_bytes == 4 * 6 * 4 + 8


def test_half_precision_is_compared_with_fp32():
    whole, half = measure.sizes(mlp()), measure.sizes(mlp().half())
    assert half.dense_bytes == whole.dense_bytes
    assert half.csr_bytes == whole.csr_bytes
    assert half.torch_save_bytes < whole.torch_save_bytes
    assert measure.sizes(mlp().bfloat16()).csr_bytes == whole.csr_bytes
    assert measure.sizes(mlp().double()).dense_bytes == whole.dense_bytes


def test_a_model_without_parameters():
    ledger = measure.sizes(nn.Sequential(nn.Flatten()))
    assert (ledger.parameters, ledger.nonzeros, ledger.dense_bytes, ledger.csr_bytes) == (0, 0, 0, 0)
    assert ledger.file_bytes > 0
    assert ledger.compression_ratio == 0
    assert ledger.to_frame()["× smaller"].isna().sum() >= 3


def test_a_model_pruned_by_torch():
    model = mlp()
    torch_prune.l1_unstructured(model[1], "weight", amount=92)
    ledger = measure.sizes(model)
    assert (ledger.parameters, ledger.nonzeros) == (243, 151)
    assert ledger.torch_save_bytes == len(saved(mlp()))


def test_model_is_unchanged_and_the_ledger_repeats():
    model = masked(mlp(), 0.4).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert measure.sizes(model) == measure.sizes(model)
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(part.training for part in model.modules())


def test_table():
    ledger = measure.sizes(masked(mlp(), 0.1))
    frame = ledger.to_frame().set_index("kind")
    assert list(frame.index) == [
        "parameters",
        "nonzeros",
        "dense fp32",
        "torch.save",
        "torch.save + gzip",
        "CSR",
        ".clab file",
    ]
    assert frame.loc["nonzeros", "count"] == ledger.nonzeros
    assert frame.loc[".clab file", "bytes"] == ledger.file_bytes
    assert frame.loc["CSR", "KiB"] == ledger.csr_bytes / 1024
    assert frame.loc["dense fp32", "× smaller"] == 1
    assert frame.loc[".clab file", "× smaller"] == ledger.compression_ratio
    assert math.isnan(frame.loc["parameters", "KiB"])
    assert frame["meaning"].str.len().min() > 20


def test_the_breakdown_is_the_file_by_tensor_and_kind():
    model = masked(wide(), 0.3)
    ledger = measure.sizes(model)
    frame = ledger.breakdown_frame()
    assert list(frame.columns) == ["positions", "values", "codebook", "header", "all"]
    assert list(frame.index) == ["0.weight", "0.bias", "2.weight", "2.bias", ".header", ".clab file"]
    assert frame.loc[".clab file", "all"] == ledger.file_bytes == sum(one.bytes for one in ledger.breakdown)
    assert frame.loc["0.weight", "values"] > frame.loc["0.weight", "positions"] > 0
    assert frame.loc[".header", "header"] == frame.loc[".clab file", "header"] > 0 == frame.loc["0.bias", "header"]


@pytest.mark.parametrize("name", ["all", "(file)", "header", "clab file"])
def test_a_parameter_of_any_name_has_its_row(name):
    model = mlp()
    model.register_parameter(name, nn.Parameter(torch.randn(50)))
    ledger = measure.sizes(model)
    frame = ledger.breakdown_frame()
    assert frame.index.is_unique and frame.loc[name, "values"] > 100 and frame.loc[name, "header"] == 0
    assert frame["all"].iloc[-1] == ledger.file_bytes == pytest.approx(frame["all"].iloc[:-1].sum())
