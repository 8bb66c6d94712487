"""ONNX files compute what the torch model computes, and the report says what of each saving survives."""

import onnx
import pytest
import torch
import torchvision
from torch import nn

import compresslab as cl
from compresslab.export.runtime import list_kernels


@pytest.fixture(scope="module")
def data():
    return cl.data.load("mnist")


@pytest.fixture(scope="module")
def net():
    return cl.models.pretrained("lenet_300_100", "mnist")


@pytest.fixture
def images(data):
    return data.test.images[:300]


def outputs(model, images):
    with torch.no_grad():
        return model.eval()(images)


def test_a_dense_model_gives_the_same_outputs_for_batches_of_any_size(net, images, tmp_path):
    report = cl.export.onnx(net, tmp_path / "net.onnx", images)
    assert report.bytes == (tmp_path / "net.onnx").stat().st_size
    assert report.max_error < 1e-4 and report.agreement == 1
    for count in (1, 7, 300):
        got = cl.export.run_onnx(tmp_path / "net.onnx", images[:count], batch_size=256)
        assert torch.allclose(got, outputs(net, images[:count]), atol=1e-4)
    assert list(report.to_frame().index) == ["fc1", "fc2", "fc3"]


@pytest.mark.parametrize(
    ("share", "settings"),
    [
        (0.25, {"bits": 8}),
        (0.25, {"bits": 6, "symmetric": False, "per_channel": False}),
        (0.125, {"bits": 4, "per_channel": False}),
        (0.125, {"bits": 3, "symmetric": False}),
        (0.125, {"bits": 2}),
    ],
)
def test_grids_become_integers(net, images, tmp_path, share, settings):
    small = cl.quantization.quantize(net, **settings)
    report = cl.export.onnx(small, tmp_path / "net.onnx", images)
    assert report.max_error < 1e-3
    dense = sum(layer.fp32_bytes for layer in report.layers)
    assert report.bytes < share * dense + 12_000
    assert all(layer.stored.startswith(("int", "uint")) for layer in report.layers)
    assert all("fp32" in layer.speed for layer in report.layers)


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet_5"])
def test_grids_on_inputs_and_weights_run_in_integer_kernels(data, images, tmp_path, name):
    dense = cl.models.pretrained(name, "mnist")
    small = cl.quantization.quantize(dense, bits=8, images=data.train.images[:500])
    report = cl.export.onnx(small, tmp_path / "net.onnx", images)
    assert {layer.kernel for layer in report.layers} <= {"QGemm", "QLinearConv"}
    used = [kind for kinds in list_kernels(tmp_path / "net.onnx").values() for kind in kinds]
    assert not {"Gemm", "FusedGemm", "Conv", "FusedConv"} & set(used)
    assert report.agreement > 0.99
    accuracy = cl.measure.accuracy(small, data.test)
    logits = cl.export.run_onnx(tmp_path / "net.onnx", data.test.images)
    assert abs((logits.argmax(1) == data.test.labels).double().mean().item() - accuracy) < 0.002


def test_inputs_of_fewer_bits_keep_their_rounding(net, data, images, tmp_path):
    small = cl.quantization.quantize(net, bits=4, images=data.train.images[:500])
    report = cl.export.onnx(small, tmp_path / "net.onnx", images)
    assert report.agreement > 0.98


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_codebooks_become_indices(net, images, tmp_path, bits):
    small = cl.weight_sharing.share(net, bits=bits)
    report = cl.export.onnx(small, tmp_path / "net.onnx", images)
    assert report.max_error < 1e-3
    assert report.layers[0].bytes < (0.13 if bits <= 4 else 0.26) * report.layers[0].fp32_bytes


def test_a_masked_codebook_and_a_masked_grid_keep_their_zeros(net, images, tmp_path):
    for small in (
        cl.zero_pruning.prune(cl.weight_sharing.share(net, bits=3), sparsity=0.5),
        cl.quantization.quantize(cl.zero_pruning.prune(net, sparsity=0.9), bits=4),
    ):
        report = cl.export.onnx(small, tmp_path / "net.onnx", images)
        assert report.max_error < 1e-3
        assert "zeros stored in full" in report.layers[0].size


def test_removed_neurons_are_gone_and_low_rank_is_two_layers(net, data, images, tmp_path):
    dense = cl.export.onnx(net, tmp_path / "dense.onnx", images)
    removed = cl.activation_pruning.prune(net, data.train.images[:500], sparsity=0.5)
    report = cl.export.onnx(removed, tmp_path / "removed.onnx", images)
    assert report.bytes < 0.6 * dense.bytes and report.layers[0].shape[0] < 300
    factors = cl.low_rank.factorize(net, rank=8)
    report = cl.export.onnx(factors, tmp_path / "low_rank.onnx", images)
    assert report.bytes < 0.1 * dense.bytes
    assert [layer.layer for layer in report.layers][:2] == ["fc1.0", "fc1.1"]


def test_batchnorm_is_folded_into_codes_and_scales(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
        images = torch.randn(20, 3, 8, 8)
        with torch.no_grad():
            model[1].weight.copy_(torch.tensor([1.0, -1, 0.5, 0, 2, -3, 1, 1]))
            model[1].running_var.uniform_(0.5, 2)
            model[1].running_mean.normal_()
    for settings in ({"bits": 8}, {"bits": 5, "symmetric": False}, {"bits": 4, "per_channel": False}):
        report = cl.export.onnx(cl.quantization.quantize(model, **settings), tmp_path / "net.onnx", images)
        assert report.layers[0].stored.startswith(("int", "uint")), settings
        assert report.max_error < 1e-4
    report = cl.export.onnx(cl.quantization.quantize(model, bits=8, images=images), tmp_path / "net.onnx", images)
    assert report.layers[0].kernel == "QLinearConv"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "transformer"])
def test_ordinary_networks(tmp_path, name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = torch.rand(32, 3, 32, 32)
        if name == "transformer":
            model = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)
            nn.init.normal_(model.heads.head.weight)
        else:
            model = getattr(torchvision.models, name)(num_classes=10)
    small = cl.quantization.quantize(model.eval(), bits=8, per_channel=True)
    report = cl.export.onnx(small, tmp_path / "net.onnx", images)
    assert report.max_error <= 1e-3 * max(1, outputs(small, images).abs().max())
    stored = sum(layer.bytes for layer in report.layers if layer.saving)
    assert stored < 0.3 * sum(layer.fp32_bytes for layer in report.layers if layer.saving)


def test_an_lstm_says_that_it_stays_in_fp32(tmp_path):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(28, 16, batch_first=True), nn.Linear(16, 10)

        def forward(self, images):
            return self.head(self.lstm(images.flatten(1, 2))[0][:, -1])

    report = cl.export.onnx(Reader(), tmp_path / "net.onnx", torch.rand(5, 1, 28, 28))
    rows = report.to_frame()
    assert list(rows.index) == ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "head"]
    assert all(rows["stored"].str.startswith("fp32")) and report.max_error < 1e-5


def test_a_tied_weight_is_stored_once(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    model[2].weight = model[0].weight
    report = cl.export.onnx(cl.quantization.quantize(model, bits=8), tmp_path / "net.onnx", torch.randn(5, 64))
    assert report.max_error < 1e-4
    assert report.bytes < 1.2 * 4 * 64 * 64


class Bessel(nn.Module):
    def forward(self, values):
        return torch.special.i1(values)


def test_an_operation_that_the_exporter_lacks_names_its_layer(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(9, 3), Bessel()))
    with pytest.raises(ValueError, match=r"layer '1\.1' \(Bessel\) uses .*bessel_i1"):
        cl.export.onnx(model, tmp_path / "net.onnx", torch.rand(4, 1, 3, 3))
    assert not list(tmp_path.iterdir())


def test_outputs_beyond_the_tolerance_leave_the_old_file(net, images, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="tolerance is 0"):
        cl.export.onnx(net, path, images, tolerance=0)
    assert path.read_bytes() == b"before"


class Pair(nn.Module):
    def forward(self, images):
        return images, images


@pytest.mark.parametrize(
    ("model", "images", "words"),
    [
        (Pair(), torch.rand(3, 2), "returned tuple"),
        (nn.Linear(3, 2), torch.rand(4, 5), "does not take images"),
        (nn.Linear(3, 2), None, "images is None"),
        ("net", torch.rand(4, 3), "model is 'net'"),
    ],
)
def test_bad_input_is_refused(model, images, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        cl.export.onnx(model, tmp_path / "net.onnx", images)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_says_how_to_install_it(net, images, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime is not installed.*compresslab\[export\]"):
        cl.export.onnx(net, tmp_path / "net.onnx", images)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="ONNX Runtime refuses"):
        cl.export.run_onnx(tmp_path / "net.onnx", torch.rand(2, 3))
    with pytest.raises(ValueError, match="there is no file"):
        cl.export.run_onnx(tmp_path / "other.onnx", torch.rand(2, 3))


def test_the_model_is_left_as_it_was(net, images, tmp_path):
    small = cl.quantization.quantize(net, bits=4)
    state = {name: value.clone() for name, value in small.state_dict().items()}
    small.train()
    cl.export.onnx(small, tmp_path / "net.onnx", images)
    assert small.training and all(torch.equal(value, state[name]) for name, value in small.state_dict().items())


def test_the_file_passes_the_checker_of_onnx(net, images, tmp_path):
    cl.export.onnx(cl.quantization.quantize(net, bits=4), tmp_path / "net.onnx", images)
    onnx.checker.check_model(onnx.load(tmp_path / "net.onnx"), full_check=True)


def test_a_file_is_measured_like_a_torch_model(net, data, images, tmp_path):
    cl.export.onnx(net, tmp_path / "net.onnx", images)
    model = cl.export.OnnxModel(tmp_path / "net.onnx")
    assert cl.measure.accuracy(model, data.test) == cl.measure.accuracy(net, data.test)
    comparison = cl.measure.compare_latency(net, model, batch_size=8, shape=(1, 28, 28))
    assert comparison.low <= comparison.ratio <= comparison.high


def test_attention_embeddings_and_recurrent_weights_have_a_row_that_names_their_saving(tmp_path):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.memory = nn.Embedding(50, 16), nn.LSTM(16, 16, batch_first=True)
            self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)

        def forward(self, tokens):
            sequence = self.memory(self.words(tokens))[0]
            return self.head(self.attention(sequence, sequence, sequence, need_weights=False)[0].mean(1))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, tokens = Reader().eval(), torch.randint(0, 50, (20, 7))
    names = ["words", "memory", "attention", "attention.out_proj", "head"]
    small = cl.quantization.quantize(model, bits=8, layers=names)
    report = cl.export.onnx(small, tmp_path / "net.onnx", tokens)
    rows = report.to_frame()
    assert report.max_error < 1e-3 * outputs(small, tokens).abs().max()
    assert set(rows["saving"]) == {"8-bit grid"} and len(rows) == 6
    assert rows.loc["words", "stored"].startswith("int8") and rows.loc["head", "stored"].startswith("int8")
    assert rows.loc["memory.weight_ih_l0", "stored"].startswith("fp32")  # the saving is lost, and the row says so


def test_a_model_without_weights_has_an_empty_table(tmp_path):
    report = cl.export.onnx(nn.Flatten(), tmp_path / "net.onnx", torch.rand(5, 2, 3))
    assert len(report.to_frame()) == 0 and report.max_error == 0
