"""Saving whole or not at all, loading what was saved: masks, into=, errors that say what to do."""

import copy
import errno
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import compresslab as cl
from compresslab import writing
from compresslab.storage import container
from compresslab.weights import codebooks, grids, layers


def pruned(*sizes, keep=0.3, seed=0):
    """An MLP of linear layers whose smaller weights are masked."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)))
    for layer in model:
        layers.set_mask(layer, layer.weight.detach().abs() > layer.weight.detach().abs().flatten().quantile(1 - keep))
    return model


class Own(nn.Module):
    """A forward that no graph can hold."""

    def __init__(self, width=5):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 3)

    def forward(self, x):
        return self.last(self.norm(self.first(x))) if float(x.sum()) > 0 else self.last(self.first(x))


def test_a_fresh_process_makes_the_same_predictions(tmp_path):
    model, images = cl.models.lenet_300_100(seed=0), torch.randn(8, 1, 28, 28)
    torch.save(images, tmp_path / "images.pt")
    written = cl.save(model, tmp_path / "net.clab")
    assert written == (tmp_path / "net.clab").stat().st_size == cl.storage.file_bytes(model)
    code = """
import sys, torch, compresslab as cl
folder = sys.argv[1] + "/"
torch.save(cl.load(folder + "net.clab")(torch.load(folder + "images.pt")), folder + "logits.pt")
cl.save(cl.load(folder + "net.clab"), folder + "again.clab")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), model(images))
    assert (tmp_path / "again.clab").read_bytes() == (tmp_path / "net.clab").read_bytes()


def numbers(*shape):
    count = torch.Size(shape).numel()
    return (torch.arange(count) * 37 % 101 - 50).reshape(shape) / 64


def golden():
    """A model whose numbers are the same everywhere: masked, on a grid, tied, with buffers and a forward of its own."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.scale = nn.Linear(8, 3), nn.Parameter(torch.ones(3))

        def forward(self, x):
            return torch.relu(self.last(x)) * self.scale + x.shape[1]

    model = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), Head())
    model[4].weight = model[2].weight
    with torch.no_grad():
        for one in model.parameters():
            one.copy_(numbers(*one.shape))
    layers.set_mask(model[0], numbers(8, 20) > 0.2)
    return model.eval(), numbers(4, 20)


def check_roundings(same, model, *places):
    """That both models have the like at places (path, name of a tensor)."""
    for path, own in places:
        one, other = (layers.get_rounding(each.get_submodule(path), own) for each in (same, model))
        assert type(one) is type(other) and one.extra_repr() == other.extra_repr()


def golden_of_roundings():
    """A model with every rounding, every form of codes and a layout, whose numbers are the same everywhere."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            grid = grids.InputGrid(torch.tensor(1 / 8), torch.tensor(3.0), 0, 15, 4, learned=True)
            self.last = nn.Sequential(OrderedDict(input=grid, layer=nn.Linear(30, 3)))

        def forward(self, x):
            return self.last(torch.relu(x)) + x.shape[1]

    model = nn.Sequential(nn.Linear(40, 30), *(nn.Linear(30, 30) for _ in range(5)), Head())
    model[3].weight = model[2].weight
    with torch.no_grad():
        for one in model.parameters():
            one.copy_(numbers(*one.shape) if one.dim() else one)
    zeros, scales = (torch.arange(30) % 5)[:, None] + 1.0, torch.full((30, 1), 1 / 4)
    layers.set_rounding(model[0], grids.Grid(scales, zeros, 0, 7, 3))
    layers.set_mask(model[0], numbers(30, 40) > 0.2)
    layers.set_rounding(model[1], grids.Grid(scales, zeros * 0 + 0.5, 0, 1, 1))
    shared = grids.Grid(torch.tensor(1 / 2), torch.tensor(0.0), -8, 7, 4, learned=True)
    layers.set_rounding(model[2], shared)
    layers.set_rounding(model[3], shared)
    model[4].weight = nn.Parameter(numbers(30, 30).t())
    layers.set_rounding(model[4], grids.Half(torch.bfloat16))
    uneven = grids.Grid(scales / 16, torch.arange(30.0)[:, None] * 7 % 16, 0, 15, 4)
    model[5].weight = nn.Parameter(uneven.values(((numbers(30, 30) + 0.8).clamp(0) * 2).round()))
    layers.set_rounding(model[5], uneven)
    layers.set_rounding(model[6].last.layer, grids.Grid(scales[:3] / 16, zeros[:3], -128, 127, 8))
    return model.eval(), numbers(4, 40)


def golden_of_contexts():
    """A model with every form that contexts code: fields, signs, sizes, palettes, codebooks, grids, a convolution."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(8 * 4 * 4, 36), nn.Linear(36, 48), nn.Linear(48, 30), nn.Linear(30, 30), nn.Linear(30, 5)),
    )
    with torch.no_grad():
        for one in model.parameters():
            one.copy_((numbers(*one.shape) * 6).round() / 8)  # a step and its multiples
        model[6].weight[numbers(36, 128) < 0.35] = 0
        model[6].weight[::5] = 0
        model[7].weight.zero_()
        for unit in range(48):  # a kernel of 3 x 3 at 16 places of a square of 6 x 6, for three maps
            y, x, kernel = unit % 16 // 4, unit % 4, numbers(3, 3, 3)[unit // 16]
            model[7].weight[unit].reshape(6, 6)[y : y + 3, x : x + 3] = kernel
        model[8].weight[numbers(30, 48) < 0.5] = 0
        model[10].weight[:, 7] = 0
        model[10].bias.copy_(torch.tensor([1.5, 0.1, -0.3, 1.5, 0.0]))
    layers.set_mask(model[3], numbers(8, 6, 3, 3) > -0.3)
    chosen = (numbers(30, 48).abs() * 8).long() * (numbers(30, 48) > 0.2)
    layers.set_rounding(model[8], codebooks.Codebook(torch.tensor([0.0, 0.7, -0.2, 0.3, -1.1, 2.5, 9.0]), chosen, True))
    layers.set_mask(model[8], chosen != 0)
    bias = codebooks.Codebook(torch.tensor([0.25, -0.5, 0.25]), torch.arange(30) // 4 % 3)
    layers.set_rounding(model[8], bias, "bias")
    layers.set_rounding(model[9], grids.Grid(torch.tensor(0.3), torch.tensor(0.0), -4, 3, 3))
    return model.eval(), numbers(3, 1, 14, 14)


@pytest.mark.parametrize("make", ["golden", "golden_of_roundings", "golden_of_contexts"])
def test_models_with_everything_in_them_come_back(make):
    model, batch = globals()[make]()
    same = cl.storage.loads(cl.storage.dumps(model))
    assert torch.equal(same(batch), model(batch)) and not same.training
    for (path, module), (_, again) in zip(model.named_modules(), same.named_modules(), strict=False):
        if isinstance(module, nn.Linear | nn.Conv2d) and hasattr(again, "weight"):
            if layers.get_rounding(module) is not None:
                check_roundings(same, model, (path, "weight"))
            masks = [layers.get_mask(layer) for layer in (module, again)]
            assert (masks[0] is None) == (masks[1] is None) and (masks[0] is None or torch.equal(*masks))


def test_the_same_model_gives_the_same_bytes_on_every_machine():
    """A new digest is right after a change of the writer; zlib, which packs the header, has several versions."""
    parts = container.unpack(cl.storage.dumps(golden_of_contexts()[0]))
    digest = hashlib.sha256(parts.data + parts.coded).hexdigest()
    assert digest.startswith("d4a14c4c59a5ae7a")


def test_the_breakdown_adds_up_to_the_file():
    for model in (golden()[0], golden_of_roundings()[0], golden_of_contexts()[0], Own(), nn.ReLU()):
        shares, length = cl.storage.breakdown(model), cl.storage.file_bytes(model)
        assert sum(one.bytes for one in shares) == length and shares[-1].kind == "header"
        assert {one.kind for one in shares} <= set(cl.storage.KINDS) and all(one.bytes > 0 for one in shares)
        assert {one.tensor for one in shares} <= {"", *layers.effective_state(model)}
        assert len({(one.tensor, one.kind) for one in shares}) == len(shares)
    shares = {(one.tensor, one.kind): one.bytes for one in cl.storage.breakdown(golden_of_contexts()[0])}
    assert shares["6.weight", "values"] > shares["6.weight", "positions"] > 15 * shares["6.weight", "codebook"]
    assert shares["9.weight", "codebook"] < 12


def test_headers_of_small_networks_are_short():
    """All that is no tensor: magic, version, architecture, lengths, checksum."""
    for name in cl.models.names():
        model = cl.models.build(name, seed=0)
        for variant in (model, model.eval(), cl.zero_pruning.prune(model, 0.9)):
            assert cl.storage.breakdown(variant)[-1].bytes < 110


def header_bytes(header):
    return len(container.deflate(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()))


@pytest.mark.parametrize("name", cl.models.names())
def test_a_reference_network_pays_for_its_header_as_a_stranger_does(name):
    """The decoder knows names of layers and of arguments, and no network: other sizes and layer names cost as much."""
    header = container.unpack(cl.storage.dumps(cl.models.build(name, 0))).header
    text = json.dumps(header)
    sizes = re.sub(r": (\d\d+)", lambda size: f": {int(size[1]) * 7 // 6 + 1}", text)
    numbers = re.sub(r'"(conv|pool|fc|relu)#"', lambda layer: f'"{layer[1]}5"', text, count=1)
    words = text.replace('"conv#"', '"look#"').replace('"fc#"', '"up#"').replace('"pool#"', '"rest#"')
    costs = [header_bytes(json.loads(changed)) for changed in (text, sizes, numbers, words)]
    assert len({text, sizes, words}) == 3 and max(costs) - costs[0] <= 8


def test_no_number_and_no_network_stands_in_the_dictionary():
    assert not re.search(rb"(?<![A-Za-z0-9_])[0-9]", container.DICTIONARY)
    for name in cl.models.names():
        text = json.dumps(container.unpack(cl.storage.dumps(cl.models.build(name, 0))).header, separators=(",", ":"))
        longest = max(end - start for start in range(len(text)) for end in range(start, min(start + 60, len(text)))
                      if text[start:end].encode() in container.DICTIONARY)  # fmt: skip
        assert longest < 45


def test_masks_come_back_and_hold_while_the_model_trains_on():
    model = pruned(20, 15, 4)
    same = cl.storage.loads(cl.storage.dumps(model, fold=False))
    masks = [layers.get_mask(layer) for layer in same]
    assert all(torch.equal(mask, layers.get_mask(layer)) for mask, layer in zip(masks, model, strict=True))
    optimizer = torch.optim.Adam(same.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        same(torch.randn(5, 20)).square().sum().backward()
        optimizer.step()
    for mask, layer, before in zip(masks, same, model, strict=True):
        assert not layer.weight[~mask].any()
        assert (layer.weight[mask] != before.weight[mask]).any()


def test_a_kept_weight_may_be_zero_and_stays_in_the_mask():
    model = pruned(20, 4)
    mask = layers.get_mask(model[0])
    with torch.no_grad():
        model[0].parametrizations.weight.original[mask.nonzero()[0][0], mask.nonzero()[0][1]] = 0
    same = cl.storage.loads(cl.storage.dumps(model))
    assert torch.equal(layers.get_mask(same[0]), mask)
    assert torch.equal(same[0].weight, model[0].weight)


def test_masks_of_torch_become_masks_and_other_parametrizations_are_baked():
    model = nn.Sequential(nn.Linear(6, 5), parametrizations.weight_norm(nn.Linear(5, 4)), nn.Linear(4, 2))
    prune.l1_unstructured(model[0], "weight", 0.5)
    batch, untouched = torch.randn(3, 6), copy.deepcopy(model.state_dict())
    same = cl.storage.loads(cl.storage.dumps(model))
    assert torch.equal(same(batch), model(batch))
    assert torch.equal(layers.get_mask(same[0]), model[0].weight_mask.bool())
    assert list(same.state_dict()) == [
        *("0.bias", "0.parametrizations.weight.original", "0.parametrizations.weight.0.mask"),
        *("1.weight", "1.bias", "2.weight", "2.bias"),
    ] or set(same[1].state_dict()) == {"weight", "bias"}
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in untouched.items())


def test_tied_layers_keep_tie_and_mask():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    mask = torch.rand(6, 6) < 0.5
    for layer in model:
        layers.set_mask(layer, mask)
    same = cl.storage.loads(cl.storage.dumps(model))
    assert same[0].parametrizations.weight.original is same[1].parametrizations.weight.original
    assert all(torch.equal(layers.get_mask(layer), mask) for layer in same)
    batch = torch.randn(2, 6)
    assert torch.equal(same(batch), model(batch))


def test_into_fills_a_module_of_any_class_in_place():
    torch.manual_seed(1)
    model, target = Own().eval(), Own()
    layers.set_mask(model.first, torch.rand(5, 4) < 0.5)
    model.last.bias.requires_grad_(False)
    model.norm.running_mean += 1
    weight = target.last.weight
    same = cl.storage.loads(cl.storage.dumps(model), into=target)
    assert same is target and target.last.weight is weight
    assert torch.equal(same(torch.ones(2, 4)), model(torch.ones(2, 4)))
    assert not same.training and not same.last.bias.requires_grad and same.last.weight.requires_grad
    assert torch.equal(layers.get_mask(same.first), layers.get_mask(model.first))


def test_into_replaces_masks_dtypes_and_meta_tensors():
    model = pruned(6, 5).half()
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(6, 5))
    masked, torchs = pruned(6, 5, keep=0.9, seed=3), nn.Sequential(nn.Linear(6, 5))
    prune.random_unstructured(torchs[0], "weight", 0.5)
    twin = copy.deepcopy(masked)
    for target in (empty, masked, torchs, nn.Sequential(nn.Linear(6, 5))):
        cl.storage.loads(cl.storage.dumps(model), into=target)
        assert torch.equal(target[0].weight, model[0].weight) and target[0].weight.dtype == torch.half
        assert torch.equal(layers.get_mask(target[0]), layers.get_mask(model[0]))
    dense = nn.Sequential(nn.Linear(6, 5))
    cl.storage.loads(cl.storage.dumps(dense), into=masked)
    assert torch.equal(masked[0].weight, dense[0].weight) and layers.get_mask(masked[0]) is None
    assert layers.get_mask(twin[0]) is not None and twin[0].weight.shape == (5, 6)


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda: Own(6), r"first.weight.*\(6, 4\).*file has.*\(5, 4\)"),
        (lambda: nn.Sequential(nn.Linear(4, 5)), r"lacks 9 .*first.weight.*has 2 \(0.weight, 0.bias\)"),
        (lambda: nn.Sequential(), "lacks 9 .*has nothing"),
        (lambda: Own().to(torch.complex64), "first.weight.*complex64"),
        (lambda: 3, "into is 3"),
    ],
    ids=["shapes", "names", "empty", "kind", "no module"],
)
def test_into_of_another_shape_is_refused_and_unchanged(target, message):
    model = target()
    before = copy.deepcopy(model.state_dict()) if isinstance(model, nn.Module) else {}
    with pytest.raises(ValueError, match=message) as caught:
        cl.storage.loads(cl.storage.dumps(Own()), into=model)
    assert not isinstance(caught.value, cl.storage.CorruptFileError)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_into_with_other_parametrizations_or_ties_is_refused():
    source = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="0.weight.*parametrized"):
        cl.storage.loads(cl.storage.dumps(source), into=normed)
    tied = copy.deepcopy(source)
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="0.weight.*1.weight.*one tensor"):
        cl.storage.loads(cl.storage.dumps(source), into=tied)
    free = cl.storage.loads(cl.storage.dumps(tied), into=copy.deepcopy(source))
    assert torch.equal(free[0].weight, free[1].weight) and free[0].weight is not free[1].weight
    assert free[0].weight.data_ptr() != free[1].weight.data_ptr()


def test_saving_twice_gives_the_same_bytes_and_leaves_the_model_alone(tmp_path):
    model = pruned(30, 20, 5)
    before = copy.deepcopy(model.state_dict())
    assert cl.storage.dumps(model) == cl.storage.dumps(model) == cl.storage.dumps(copy.deepcopy(model))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_the_file_follows_the_mask_down():
    sizes = [cl.storage.file_bytes(pruned(100, 100, keep=keep)) for keep in (1.0, 0.5, 0.2, 0.1, 0.02)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < 100 * 101 * 4 and sizes[3] < 0.1 * 100 * 101 * 4 * 1.2


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (3, "model is 3; give a torch.nn.Module"),
        (nn.LazyLinear(3), "lazy"),
        (nn.Linear(2, 2, device="meta"), "meta"),
    ],
    ids=["no module", "lazy", "meta"],
)
def test_models_without_values_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        cl.storage.dumps(model)


def test_extra_state_and_sparse_tensors_are_refused_by_name():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    model = nn.Sequential(nn.Identity())
    model.register_buffer("table", torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match="'table'.*sparse"):
        cl.storage.dumps(model)
    with pytest.raises(ValueError, match="'0'.*extra state"):
        cl.storage.dumps(nn.Sequential(Extra(2, 2)))


def test_paths_may_be_text_and_errors_name_them(tmp_path):
    model, path = nn.Linear(2, 2), tmp_path / "net.clab"
    assert cl.save(model, str(path)) == cl.save(model, path)
    for call, wrong, error in [
        (lambda where: cl.save(model, where), tmp_path / "missing" / "net.clab", FileNotFoundError),
        (lambda where: cl.save(model, where), tmp_path, IsADirectoryError),
        (cl.load, tmp_path / "missing.clab", FileNotFoundError),
        (cl.load, tmp_path, IsADirectoryError),
    ]:
        with pytest.raises(error, match=wrong.name):
            call(wrong)
    assert [one.name for one in tmp_path.iterdir()] == ["net.clab"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "net.clab"
    cl.save(nn.Linear(2, 2), path)
    before = path.read_bytes()

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "write":

        class Full(io.FileIO):
            def write(self, content):
                super().write(content[:9])
                full()

        monkeypatch.setattr(writing, "open", Full, raising=False)
    else:
        monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match=r"No space left.*unchanged.*net\.clab") as caught:
        cl.save(nn.Linear(3, 3), path)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["net.clab"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"net\.clab"):
        cl.save(nn.Linear(2, 2), tmp_path / "net.clab")


def test_a_link_is_followed_and_a_device_is_not_replaced(tmp_path):
    cl.save(nn.Linear(2, 2), tmp_path / "real.clab")
    (tmp_path / "link.clab").symlink_to(tmp_path / "real.clab")
    cl.save(nn.Linear(3, 3), tmp_path / "link.clab")
    assert (tmp_path / "link.clab").is_symlink() and cl.load(tmp_path / "real.clab").in_features == 3
    with pytest.raises(OSError, match="not a regular file"):
        cl.save(nn.Linear(2, 2), os.devnull)


class Holding(nn.Module):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_what_cannot_be_copied_or_is_no_path_is_refused_with_words(tmp_path):
    with pytest.raises(ValueError, match="cannot be copied.*lock"):
        cl.save(Holding(), tmp_path / "a.clab")
    with pytest.raises(ValueError, match="'0' is compiled by torch.jit; save the module"):
        cl.save(nn.Sequential(torch.jit.script(nn.Linear(2, 2))), tmp_path / "a.clab")
    for step in (lambda: cl.save(nn.Linear(2, 2), None), lambda: cl.load(3)):
        with pytest.raises(ValueError, match="path is (None|3); give the name of a file"):
            step()
