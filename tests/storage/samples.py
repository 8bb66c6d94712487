"""Small models that use every form of the format, and their files: what is mutated."""

import warnings
from functools import cache

import torch
from torch import nn
from torch.nn import functional

import compresslab as cl
from compresslab.techniques import quantization, weight_sharing
from compresslab.weights import codebooks, grids, layers


class Net(nn.Module):
    """A class of one's own, whose forward becomes a graph."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.shift = nn.Linear(6, 5), nn.Linear(5, 4), nn.Parameter(torch.ones(2, 2))
        self.register_buffer("scale", torch.ones(4), persistent=False)

    def forward(self, x):
        x = functional.dropout(functional.relu(self.first(x.flatten(1))), training=self.training)
        return self.last(x)[:, :4] * self.scale + self.shift.sum() + x.shape[0]


def some_models():
    """Small models that use every form of the format."""
    torch.manual_seed(0)
    masked, grid, signed = (nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4)) for _ in range(3))
    for layer in layers.weight_layers(masked).values():
        layers.set_mask(layer, layer.weight.detach().abs() > layer.weight.detach().abs().median() * 1.5)
    grid[0].weight.data = (grid[0].weight.data * 30).round() / 30
    signed[0].weight.data *= signed[0].weight.data.abs() > 0.1
    few, layer = nn.Linear(90, 90), nn.Linear(3, 3)
    few.weight.data = torch.zeros(90, 90)
    few.weight.data[5, 7] = 1
    shared = nn.Sequential(layer, nn.Sequential(layer, nn.BatchNorm1d(3)))
    recurrent = nn.ModuleDict({"e": nn.Embedding(5, 3), "g": nn.LSTM(2, 2, 2)})
    transformer = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 4, activation=nn.ReLU(), batch_first=True), 2)
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.MaxPool2d(2)).half()
    return [masked, grid, signed, few, shared, recurrent, transformer, conv, Net(), *rounded_models(masked)]


def rounded_models(masked):
    """Small models with weights and inputs that are rounded in every way, in every form of codes."""
    images, odd = torch.randn(30, 40), nn.Linear(40, 30)
    odd.weight = nn.Parameter(torch.randn(40, 30).t())
    uneven = grids.Grid(torch.ones(30, 1) / 8, torch.arange(30.0)[:, None] % 16, 0, 15, 4)
    with torch.no_grad():
        odd.weight.copy_(uneven.values(torch.randint(0, 3, (30, 40))))
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    layers.set_rounding(odd, uneven)
    return [
        quantization.quantize(masked, images, bits=3, symmetric=False, learned=True),
        quantization.quantize(nn.Sequential(nn.Linear(40, 30)), bits=2, per_channel=False),
        quantization.quantize(tied, bits=1),
        quantization.quantize(Net(), images[:, :6], dtype="bf16", activations=4, layers=["first", "last"]),
        nn.Sequential(odd),
    ]


def adaptive_models():
    """Models whose positions and values are coded by contexts, with codebooks, and a convolution as a matrix."""
    sparse = nn.Sequential(nn.Flatten(), nn.Linear(196, 40), nn.ReLU(), nn.Linear(40, 10))
    sparse[1].weight.data *= torch.rand(40, 196) < 0.1
    shared = [weight_sharing.share(sparse, bits, biases=True) for bits in (1, 3)]
    odd = nn.Sequential(nn.Linear(30, 20))
    books = [torch.tensor([0.5, -0.25, 0.125, 2.0]), torch.tensor([0.25, -0.5, 0.25])]  # in no order; two alike
    layers.set_rounding(odd[0], codebooks.Codebook(books[0], torch.randint(0, 4, (20, 30))))
    layers.set_rounding(odd[0], codebooks.Codebook(books[1], torch.arange(20) % 3), "bias")
    toeplitz, kernel = nn.Linear(36, 32), torch.randn(2, 3, 3)
    toeplitz.weight.data = torch.zeros(32, 36)
    for unit in range(32):
        y, x = unit % 16 // 4, unit % 4
        toeplitz.weight.data[unit].reshape(6, 6)[y : y + 3, x : x + 3] = kernel[unit // 16]
    negative = nn.Linear(20, 20)
    negative.weight.data = torch.where(torch.rand(20, 20) < 0.2, torch.randn(20, 20), torch.tensor(-0.0))
    numbers = nn.Module()
    for name, dtype in (("a", torch.int8), ("b", torch.float64), ("c", torch.complex64), ("d", torch.bool)):
        numbers.register_buffer(name, torch.randint(0, 2, (5, 7)).to(dtype))
    return [sparse, *shared, quantization.quantize(sparse, bits=3), odd, toeplitz, negative, numbers]


@cache
def pool():
    """The files that are mutated: in every form of the format."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [cl.storage.dumps(model) for model in [*some_models(), *adaptive_models()]]
