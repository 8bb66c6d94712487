"""Models of standard layers come back without a class: same layers, same outputs, same modes, same sharing."""

import copy

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab.storage import standard_layers


class Named(nn.Sequential):
    """A subclass that only adds a constructor and a method of its own."""

    def __init__(self):
        super().__init__(nn.Linear(3, 4), nn.ReLU())

    def accuracy(self):
        return 1.0


def shared():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Sequential(nn.ReLU(), layer))


def tied():
    model = nn.Sequential(nn.Embedding(9, 4, padding_idx=2), nn.Linear(4, 9, bias=False))
    model[1].weight = model[0].weight
    return model


def cut():
    """Neurons removed by hand, out_features left as it was."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model[0].weight, model[0].bias = nn.Parameter(model[0].weight[:2]), nn.Parameter(model[0].bias[:2])
    model[2].weight = nn.Parameter(model[2].weight[:, :2])
    return model


def changed_transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, activation=nn.functional.gelu, norm_first=True)
    layer.linear1, layer.linear2, layer.dropout1.p = nn.Linear(8, 5), nn.Linear(5, 8), 0.7
    return layer


IMAGE, TOKENS, ROW = (2, 2, 9, 9), torch.tensor([[1, 2, 5]]), (2, 4)
MODELS = {
    "linear": (lambda: nn.Linear(4, 3, bias=False), ROW),
    "mlp": (lambda: cl.models.article_mlp(seed=0), (2, 1, 28, 28)),
    "lenet": (lambda: cl.models.lenet_5(seed=0), (2, 1, 28, 28)),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, padding="same", padding_mode="circular"),
            nn.BatchNorm1d(4, momentum=None, eps=1e-3),
            nn.GELU("tanh"),
            nn.ConvTranspose1d(4, 2, 3, stride=2, output_padding=1, groups=2),
        ),
        (2, 2, 9),
    ),
    "conv2d": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, (3, 1), dilation=2, bias=False, groups=2, padding=(1, 0)),
            nn.InstanceNorm2d(4, affine=True),
            nn.GroupNorm(2, 4, eps=0.1),
            nn.PReLU(4),
            nn.MaxPool2d(2, 2, ceil_mode=True),
            nn.AdaptiveAvgPool2d((None, 2)),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Flatten(start_dim=2),
        ),
        IMAGE,
    ),
    "conv3d": (
        lambda: nn.Sequential(
            nn.Conv3d(1, 2, 2),
            nn.BatchNorm3d(2, affine=False, track_running_stats=False),
            nn.ELU(0.5, inplace=True),
            nn.ConvTranspose3d(2, 1, 2),
        ),
        (1, 1, 4, 4, 4),
    ),
    "infinity": (lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Hardtanh(-1, float("inf")), nn.Softmax(-1)), ROW),
    "norms": (
        lambda: nn.Sequential(nn.Embedding(9, 4, max_norm=1.0), nn.LayerNorm(4, bias=False), nn.RMSNorm(4)),
        TOKENS,
    ),
    "lstm": (lambda: nn.LSTM(4, 4, 2, dropout=0.1, proj_size=2, bidirectional=True), (5, 1, 4)),
    "gru": (lambda: nn.GRU(4, 3, bias=False, batch_first=True), (1, 5, 4)),
    "rnn": (lambda: nn.RNN(4, 3, nonlinearity="relu"), (5, 1, 4)),
    "transformer layer": (changed_transformer, (5, 2, 8)),
    "transformer encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 4, activation=nn.Tanh()), 2, nn.LayerNorm(8)),
        (5, 2, 8),
    ),
    "empty": (nn.Sequential, ROW),
    "identity": (lambda: nn.Identity(3, extra=4), ROW),
    "subclass": (Named, (2, 3)),
    "shared": (shared, ROW),
    "tied": (tied, TOKENS),
    "cut": (cut, ROW),
    "half": (lambda: nn.Linear(4, 3).half(), ROW),
    "bfloat16": (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).bfloat16(), ROW),
    "double": (lambda: nn.Linear(4, 3).double(), ROW),
}


def inputs(shape, model):
    if isinstance(shape, torch.Tensor):
        return shape
    dtype = next((one.dtype for one in model.parameters()), torch.float32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def outputs(model, batch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out = copy.deepcopy(model)(batch.clone())
    return out if isinstance(out, torch.Tensor) else out[0]


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's remarks on nested tensors
@pytest.mark.parametrize("name", MODELS)
def test_a_standard_model_comes_back_with_equal_outputs(name):
    make, shape = MODELS[name]
    model = make()
    batch = inputs(shape, model)
    for training in (True, False):
        model.train(training)
        same = cl.storage.loads(cl.storage.dumps(model))
        state, wanted = same.state_dict(), model.state_dict()
        assert list(state) == list(wanted)
        assert all(torch.equal(state[key], wanted[key]) and state[key].dtype == wanted[key].dtype for key in wanted)
        assert [key for key, _ in same.named_parameters()] == [key for key, _ in model.named_parameters()]
        assert [one.training for one in same.modules()] == [one.training for one in model.modules()]
        assert torch.equal(outputs(same, batch), outputs(model, batch))
        assert name in ("cut", "subclass") or repr(same) == repr(model)
        assert cl.storage.dumps(same) == cl.storage.dumps(model)


SIMPLE = {
    **dict.fromkeys("Bilinear".split(), (2, 3, 4)),
    **dict.fromkeys("Embedding EmbeddingBag GRUCell LSTMCell RNNCell GRU LSTM RNN".split(), (5, 4)),
    **dict.fromkeys("Linear NonDynamicallyQuantizableLinear".split(), (5, 4)),
    **{f"Conv{tail}{n}d": (4, 6, 3) for n in (1, 2, 3) for tail in ("", "Transpose")},
    **{f"{kind}Norm{n}d": (4,) for n in (1, 2, 3) for kind in ("Batch", "Instance")},
    **{f"{kind}Pool{n}d": (2,) for n in (1, 2, 3) for kind in ("Max", "Avg", "AdaptiveAvg", "AdaptiveMax")},
    **{f"LPPool{n}d": (2.0, 3) for n in (1, 2, 3)},
    **{f"FractionalMaxPool{n}d": (2, 3) for n in (2, 3)},
    **{f"MaxUnpool{n}d": (2,) for n in (1, 2, 3)},
    **{f"{kind}Pad{n}d": (1,) for n in (1, 2, 3) for kind in ("Circular", "Reflection", "Replication", "Zero")},
    **{f"ConstantPad{n}d": (1, 2.5) for n in (1, 2, 3)},
    **dict.fromkeys("ChannelShuffle CrossMapLRN2d LocalResponseNorm PixelShuffle PixelUnshuffle Unfold".split(), (2,)),
    **dict.fromkeys("LayerNorm RMSNorm SyncBatchNorm".split(), (4,)),
    "Fold": ((4, 5), (2, 2)),
    "GroupNorm": (2, 4),
    "InputGrid": (torch.tensor(0.25), torch.tensor(3.0), 0, 15, 4),
    "MultiheadAttention": (8, 2),
    "Threshold": (0.1, 20),
    "Transformer": (8, 2, 1, 1, 4),
    "TransformerDecoderLayer": (8, 2, 4),
    "TransformerEncoderLayer": (8, 2, 4),
    "Unflatten": (1, (2, 2)),
    "UpsamplingBilinear2d": (None, 2),
    "UpsamplingNearest2d": (3,),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", sorted({*standard_layers.STANDARD} - {"TransformerEncoder", "TransformerDecoder"}))
def test_every_standard_layer_comes_back(name):
    model = standard_layers.STANDARD[name](*SIMPLE.get(name, ()))
    same = cl.storage.loads(cl.storage.dumps(model))
    assert type(same) is type(model) and repr(same) == repr(model)
    public = {key: value for key, value in vars(model).items() if key[0] != "_" and key not in ("activation",)}
    assert {key: value for key, value in vars(same).items() if key in public} == public
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in model.state_dict().items())


def test_sharing_survives():
    same = cl.storage.loads(cl.storage.dumps(shared()))
    assert same[0] is same[1][1]
    same = cl.storage.loads(cl.storage.dumps(tied()))
    assert same[0].weight is same[1].weight
    assert len(cl.storage.dumps(tied())) < len(cl.storage.dumps(copy.deepcopy(nn.Sequential(*tied(), nn.Linear(4, 9)))))


def test_modes_gradients_and_odd_names_survive():
    model = nn.ModuleDict({"a b": nn.LSTM(3, 4), "é": nn.ModuleList([nn.Linear(2, 2), nn.BatchNorm1d(2)])})
    model["a b"].weight_hh_l0.requires_grad_(False)
    model["é"][1].eval()
    same = cl.storage.loads(cl.storage.dumps(model))
    assert list(same) == ["a b", "é"] and same.training and not same["é"][1].training
    assert {name: one.requires_grad for name, one in same.named_parameters()} == {
        name: one.requires_grad for name, one in model.named_parameters()
    }
    inputs = torch.rand(5, 3)
    with torch.no_grad():
        for lstm in (model["a b"], same["a b"]):  # computes with its parameters, not with copies
            lstm.weight_ih_l0.mul_(2)
    assert torch.equal(same["a b"](inputs)[0], model["a b"](inputs)[0])


def test_a_layer_that_is_not_what_its_class_says_is_not_taken_for_it():
    hooked, replaced, attended = nn.Linear(3, 3), nn.Linear(3, 3), nn.MultiheadAttention(8, 2)
    hooked.register_forward_hook(lambda module, inputs, output: output * 2)
    replaced.forward = lambda x: x
    attended.head_dim = 3
    for model in (hooked, replaced, attended):
        with pytest.raises(ValueError, match="tensors only"):
            cl.storage.loads(cl.storage.dumps(model))


def test_the_header_of_a_plain_network_is_short():
    model = cl.models.lenet_300_100(seed=0)
    with torch.no_grad():
        for one in model.parameters():
            one.zero_()
    assert len(cl.storage.dumps(model)) < 150


def test_a_thousand_normalisations_come_back_with_their_architecture():
    model = nn.Sequential(*(nn.BatchNorm1d(4) for _ in range(1000))).eval()
    same, batch = cl.storage.loads(cl.storage.dumps(model)), torch.randn(3, 4)
    assert torch.equal(same(batch), model(batch))
