"""torch.export's programs and plain tensors give back what the model computes."""

import json

import pytest
import safetensors.torch
import torch
from torch import nn

import compresslab as cl
from compresslab.export.torch_files import read_safetensors
from compresslab.weights.layers import plain


@pytest.fixture
def images():
    return torch.rand(20, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def compressed(net):
    return {
        "dense": net,
        "grid": cl.quantization.quantize(net, bits=3),
        "asymmetric": cl.quantization.quantize(net, bits=8, symmetric=False),
        "codebook": cl.weight_sharing.share(net, bits=2),
        "masked": cl.zero_pruning.prune(net, sparsity=0.5),
        "masked codebook": cl.zero_pruning.prune(cl.weight_sharing.share(net, bits=2), sparsity=0.5),
    }


def test_plain_tensors_come_back_exactly(net, tmp_path):
    for name, model in compressed(net).items():
        report = cl.export.safetensors(model, tmp_path / name)
        expected = plain(model).state_dict()
        got = read_safetensors(tmp_path / name)
        assert set(got) == set(expected) and all(torch.equal(got[key], expected[key]) for key in expected), name
        files = {"model.safetensors", "model.json"}
        assert {file.name for file in (tmp_path / name).iterdir()} == files
        assert report.bytes == sum((tmp_path / name / file).stat().st_size for file in files)


def test_others_can_read_the_folder_with_the_formula_it_gives(net, tmp_path):
    model = cl.quantization.quantize(net, bits=4)
    cl.export.safetensors(model, tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    weights = json.loads((tmp_path / "model.json").read_text())["weights"]
    assert weights["0.weight"]["value"] == "(codes - zero_point) * scale"
    assert tensors["0.weight.codes"].dtype == torch.int8
    value = (tensors["0.weight.codes"].int() - tensors["0.weight.zero_point"]) * tensors["0.weight.scale"]
    assert torch.equal(value, plain(model).state_dict()["0.weight"])


def test_a_folder_that_is_a_file_is_refused(net, tmp_path):
    (tmp_path / "net").write_text("")
    with pytest.raises(ValueError, match="which is a file"):
        cl.export.safetensors(net, tmp_path / "net")


def test_a_program_of_torch_runs_without_the_package(net, images, tmp_path):
    for name, model in {**compressed(net), "inputs": cl.quantization.quantize(net, bits=8, images=images)}.items():
        report = cl.export.torch_export(model, tmp_path / "net.pt2", images)
        program = torch.export.load(tmp_path / "net.pt2").module()
        with torch.no_grad():
            assert torch.allclose(program(images[:5]), model.eval()(images[:5]), atol=1e-5), name
        assert report.max_error < 1e-5 and report.bytes == (tmp_path / "net.pt2").stat().st_size


class Branch(nn.Module):
    def forward(self, images):
        return images if images.sum() > 0 else -images


def test_a_forward_that_torch_cannot_follow_is_refused(images, tmp_path):
    with pytest.raises(ValueError, match=r"torch\.export cannot follow"):
        cl.export.torch_export(Branch(), tmp_path / "net.pt2", images)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_nan_leave_the_folder_alone(net, tmp_path):
    with torch.no_grad():
        net[0].weight[0] = float("nan")
    with pytest.raises(ValueError, match="Nothing was written"):
        cl.export.safetensors(net, tmp_path / "net")
    assert not (tmp_path / "net").exists()
