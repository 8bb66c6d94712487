import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import compresslab as cl
from compresslab import measure
from compresslab.measure.examples import sample_shape


class First(nn.Module):
    """Output of a recurrent layer without its state."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs):
        return self.layer(inputs)[0]


class Calls(nn.Module):
    """A model of a plain function."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, inputs):
        return self.function(inputs, *self.layers)


def attend(keys=None, **settings):
    """Attention of inputs (batch, length, width), to their first `keys` places if that is given."""
    return lambda x, layer: layer(x, x[:, :keys], x[:, :keys], **settings)[0]


def multi_head(width=16, heads=2, **settings):
    return nn.MultiheadAttention(width, heads, batch_first=True, **settings)


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (nn.Linear(7, 5), (7,), 35),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10)),
            (1, 28, 28),
            784 * 300 + 3000,
        ),
        (nn.Conv1d(2, 4, 3, groups=2), (2, 9), 7 * 4 * 3),
        (nn.Conv2d(2, 3, 3), (2, 6, 6), 16 * 3 * 2 * 9),
        (nn.Conv3d(1, 2, 2), (1, 4, 4, 4), 27 * 2 * 8),
        (nn.ConvTranspose2d(2, 3, 3), (2, 6, 6), 36 * 2 * 3 * 9),
        (nn.Conv2d(4, 6, 3, dilation=2, stride=2, padding=1, groups=2), (4, 9, 9), 4 * 4 * 6 * 2 * 9),
        (nn.Conv2d(2, 3, 4, padding="same"), (2, 6, 6), 36 * 3 * 2 * 16),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5), 25 * 4 * 3 * 9),
        (nn.Linear(7, 5), (3, 7), 3 * 35),
        (nn.ReLU(), (5,), 0),
        (First(nn.LSTM(8, 16, batch_first=True)), (3, 8), 3 * 4 * 16 * (8 + 16)),
        (First(nn.GRU(8, 16, batch_first=True)), (3, 8), 3 * 3 * 16 * (8 + 16)),
        (
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
            (5, 16),
            5 * 16 * 48 + 5 * 16 * 16 + 2 * 5 * 16 * 32 + 2 * 2 * 5 * 5 * 8,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_by_hand(model, shape, expected):
    assert measure.macs(model, shape) == expected
    assert measure.macs(model, torch.rand(4, *shape)) == expected


CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)


@pytest.mark.parametrize(
    ("function", "layers", "shape", "expected"),
    [
        (attend(need_weights=False), [multi_head()], (5, 16), 5 * 16 * 64 + 2 * 5 * 5 * 16),
        (attend(need_weights=True), [multi_head()], (5, 16), 5 * 16 * 64 + 2 * 5 * 5 * 16),
        (attend(need_weights=False, attn_mask=CAUSAL), [multi_head()], (5, 16), 5 * 16 * 64 + 2 * 5 * 5 * 16),
        (
            attend(need_weights=False, attn_mask=CAUSAL, is_causal=True),
            [multi_head()],
            (5, 16),
            5 * 16 * 64 + 2 * 5 * 5 * 16,
        ),
        (attend(keys=3, need_weights=False), [multi_head()], (5, 16), (5 + 3 + 3 + 5) * 16 * 16 + 2 * 5 * 3 * 16),
        (attend(need_weights=False), [multi_head(kdim=16, vdim=16)], (5, 16), 5 * 16 * 64 + 2 * 5 * 5 * 16),
        (lambda x, encoder: encoder(x, mask=CAUSAL), None, (5, 16), 2 * 11_040),
        (lambda x, encoder: encoder(x, src_key_padding_mask=torch.eye(5)[:1] > 0), None, (5, 16), 2 * 11_040),
        (lambda x, whole: whole(x, x[:, :3]), [nn.Transformer(16, 2, 1, 1, 32, batch_first=True)], (5, 16), 22_048),
        (lambda x, layer: layer(x)[0], [nn.LSTM(8, 16, 2, bidirectional=True)], (3, 8), 3 * 8 * 16 * (24 + 48)),
        (lambda x, layer: layer(x)[0], [nn.LSTM(8, 16, proj_size=4)], (3, 8), 3 * (64 * (8 + 4) + 16 * 4)),
        (lambda x, layer: layer(x), [nn.LSTMCell(8, 16)], (8,), 64 * 24),
        (lambda x, layer: layer(x), [nn.GRUCell(8, 16)], (8,), 48 * 24),
        (lambda x, layer: layer(x, x), [nn.Bilinear(4, 4, 3)], (4,), 4 * 4 * 3),
        (lambda x: torch.einsum("bi,bj->bij", x, x).flatten(1) @ torch.ones(16, 2), [], (4,), 32),
        (lambda x: torch.einsum("bqd,bkd->bqk", x, x), [], (5, 4), 100),
        (lambda x: torch.bmm(x, x.mT), [], (5, 4), 100),
        (lambda x: torch.baddbmm(x[:, :, :1], x, x.mT), [], (5, 4), 100),
        (lambda x: x @ torch.ones(4), [], (5, 4), 20),
        (lambda x: x[0] @ torch.ones(4), [], (5, 4), 20),
        (lambda x: x[0] @ torch.ones(4), [], (4,), 4),
        (lambda x: functional.linear(x[0], torch.ones(3, 4), torch.ones(3)), [], (4,), 12),
        (lambda x: torch.addmv(torch.ones(5), x[0], torch.ones(4)), [], (5, 4), 20),
        (lambda x: torch.addbmm(torch.ones(5, 5), x, x.mT), [], (5, 4), 100),
        (lambda x: x[0] @ torch.eye(4).to_sparse_csr(), [], (5, 4), 80),
    ],
)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad], ids=["inference", "gradients"])
def test_other_products_by_hand(function, layers, shape, expected, mode):
    """Whatever torch computes them with, and whether the forward chooses how."""
    if layers is None:
        layers = [nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)]
    model = Calls(lambda x, *layers: mode()(function)(x, *layers), *layers)
    assert measure.macs(model, shape) == expected
    assert measure.macs(model, torch.rand(4, *shape)) == expected


@pytest.mark.parametrize("kernel", SDPBackend.__members__.values(), ids=str)
def test_the_kernel_of_attention_does_not_count(kernel):
    def attention(x):
        heads = x.unflatten(-1, (2, 8)).transpose(1, 2)  # (batch, head, length, width)
        with sdpa_kernel(kernel):
            return functional.scaled_dot_product_attention(heads, heads[:, :, :3], heads[:, :, :3])

    try:
        attention(torch.rand(1, 5, 16))
    except (RuntimeError, ValueError):
        pytest.skip(f"no {kernel} on this machine")
    assert measure.macs(Calls(attention), (5, 16)) == 2 * 5 * 3 * 16


def test_what_the_counter_cannot_follow_is_refused_in_words():
    def forward(x):
        if not torch.backends.mha.get_fastpath_enabled():  # while it counts
            raise TypeError("no implementation of flex_attention")
        return x

    with pytest.raises(ValueError, match=r"torch's counter cannot follow \(TypeError: no implementation of flex"):
        measure.macs(Calls(forward), (5,))
    with pytest.raises(ValueError, match=r"does not take a batch of shape \(1, 3\): IndexError"):
        measure.macs(nn.Embedding(5, 2), torch.full((2, 3), 7))
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_numbers_of_the_literature():
    assert measure.macs(cl.models.lenet_300_100()) == 266_200
    assert measure.macs(cl.models.lenet_5()) == 24 * 24 * 20 * 25 + 8 * 8 * 50 * 500 + 800 * 500 + 5000


def test_a_mask_saves_nothing():
    model = nn.Linear(8, 4)
    cl.layers.set_mask(model, torch.zeros(4, 8, dtype=torch.bool))
    assert measure.macs(model, (8,)) == 32


def test_a_split_or_an_array_will_do():
    model, images = nn.Linear(8, 4), torch.rand(3, 8)
    assert measure.macs(model, cl.data.Split(images, torch.zeros(3, dtype=torch.long))) == 32
    assert measure.macs(model, images.numpy().astype("float64")) == 32


def test_whole_numbers_stay_whole():
    assert measure.macs(nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 2)), torch.zeros(1, 5, dtype=torch.long)) == 60


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    assert measure.macs(nn.Conv2d(1, 2, 3).to(dtype), (1, 5, 5)) == 9 * 2 * 9


def test_model_and_torch_are_left_as_they_were():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), First(nn.RNN(4, 4)))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chance = torch.get_rng_state()
    measure.macs(model, (4,))
    assert [part.training for part in model] == [True, False, True, True]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(chance, torch.get_rng_state())
    assert torch.backends.mkldnn.enabled == torch.backends.cudnn.enabled == torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


def test_two_threads_at_once_leave_torch_as_it_was():
    models = [First(nn.LSTM(8, 16, batch_first=True)) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        counts = set(pool.map(lambda model: measure.macs(model, (3, 8)), models * 5))
    assert counts == {3 * 4 * 16 * (8 + 16)}
    assert torch.backends.mkldnn.enabled and torch.backends.mha.get_fastpath_enabled()


def test_while_another_thread_trains():
    model, failures, done = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)), [], threading.Event()

    def train():
        other = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
        try:
            while not done.is_set():
                other(torch.rand(3, 6)).sum().backward()
        except Exception as error:
            failures.append(error)

    worker = threading.Thread(target=train)
    worker.start()
    counts = {measure.macs(model, (6,)) for _ in range(20)}
    done.set()
    worker.join()
    assert counts == {48}
    assert failures == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((9,), r"does not take a batch of shape \(1, 9\).*; give another shape"),
        (torch.rand(2, 9), r"does not take a batch of shape \(1, 9\)"),
        (torch.rand(0, 8), r"images has shape \(0, 8\)"),
        (torch.tensor(1.0), r"images has shape \(\)"),
        (8, r"shape is 8; give the shape of one sample, without the batch"),
        ((), r"shape is \(\)"),
        ((0,), "a side of shape is 0"),
        ((2.5,), "a side of shape is 2.5"),
        (None, r"neither \(1, 28, 28\); give the shape"),
    ],
)
def test_bad_inputs(images, message):
    model = nn.Conv1d(8, 4, 1) if images is None else nn.Linear(8, 4)
    with pytest.raises(ValueError, match=message):
        measure.macs(model, images)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), (1, 28, 28)),
        (nn.Conv2d(1, 4, 5), (1, 28, 28)),
        (nn.Linear(784, 3), (784,)),
        (nn.Sequential(nn.Linear(20, 3)), (20,)),
        (nn.Linear(28, 3), (1, 28, 28)),
    ],
)
def test_the_shape_that_a_model_asks_for(model, expected):
    assert sample_shape(model) == expected
