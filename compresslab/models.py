"""The reference networks of the workbook, untrained and trained.

Every model takes images (N, 1, 28, 28), float32 in [0, 1], and returns logits (N, classes).
LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition" (LeNet-300-100, LeNet-5);
article_mlp is the network of "Model Compression: An Overlooked ML Technique", Daily Dose of Data Science.
"""

import contextlib
import itertools
from collections import OrderedDict
from collections.abc import Iterator

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from compresslab import checks, paths


@contextlib.contextmanager
def seed_global(seed: int | None) -> Iterator[None]:
    """Seed torch's global generator inside, unless seed is None; afterwards it is as it was."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(checks.integer("seed", seed, 0))  # CUDA's generators stay as they are
        yield


def article_mlp(seed: int | None = None, classes: int = 10) -> nn.Sequential:
    """Build 784-512-256-128-10, ReLU between; 567,434 parameters. `seed` fixes the initial weights."""
    return _build_mlp(seed, 784, 512, 256, 128, classes)


def lenet_300_100(seed: int | None = None, classes: int = 10) -> nn.Sequential:
    """Build 784-300-100-10, ReLU between; 266,610 parameters. `seed` fixes the initial weights."""
    return _build_mlp(seed, 784, 300, 100, classes)


def _build_mlp(seed, *widths):
    layers = [("flatten", nn.Flatten())]
    with seed_global(seed):
        for number, (inputs, outputs) in enumerate(itertools.pairwise(widths), start=1):
            layers += [(f"fc{number}", nn.Linear(inputs, outputs)), (f"relu{number}", nn.ReLU())]
    return nn.Sequential(OrderedDict(layers[:-1]))


def lenet_5(seed: int | None = None, classes: int = 10) -> nn.Sequential:
    """Build Caffe's LeNet-5: convolutions of 20 and 50 filters, 500 hidden units; 431,080 parameters.

    Jia et al. 2014, arXiv:1408.5093; the network that Deep Compression (arXiv:1510.00149) calls LeNet-5.
    """
    with seed_global(seed):
        layers = OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),  # (N, 20, 24, 24)
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),  # (N, 50, 8, 8)
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),  # (N, 800)
            fc1=nn.Linear(800, 500),
            relu1=nn.ReLU(),
            fc2=nn.Linear(500, classes),
        )
    return nn.Sequential(layers)


class ChosenOutput(nn.Module):
    """A model of which one output counts; made by `choose_output`."""

    def __init__(self, model: nn.Module, output: int | str):
        super().__init__()
        self.model, self.output = model, output

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the chosen output."""
        outputs = self.model(images)
        if isinstance(self.output, int) or hasattr(outputs, "keys"):
            return outputs[self.output]
        return getattr(outputs, self.output)


def choose_output(model: nn.Module, output: int | str) -> ChosenOutput:
    """Wrap a model that returns several tensors, so that one of them is all it returns.

    output   position in a tuple, key of a dict, or name of a dataclass's attribute
    returns  module that shares the model; it can be trained, compressed, measured like any other
    """
    checks.module("model", model)
    if not isinstance(output, int | str) or isinstance(output, bool):
        raise ValueError(f"output is {checks.words(output)}; give a position (0), a key or a name ('logits')")
    return ChosenOutput(model, output)


_BUILDERS = {"article_mlp": article_mlp, "lenet_300_100": lenet_300_100, "lenet_5": lenet_5}


def names() -> list[str]:
    """List the names of the reference networks, for `build` and `pretrained`."""
    return list(_BUILDERS)


def build(name: str, seed: int | None = None, classes: int = 10) -> nn.Sequential:
    """Build an untrained reference network by its name; raises ValueError for an unknown one."""
    return _BUILDERS[checks.choice("name", name, _BUILDERS)](seed, classes)


def pretrained(name: str, dataset: str) -> nn.Sequential:
    """Load a reference network with the trained weights that ship in data/baselines, in evaluation mode.

    dataset  "mnist" or "fashion_mnist"
    raises   ValueError for an unknown name or damaged weights (naming the file), FileNotFoundError for missing ones
    """
    model = build(name)
    path = paths.find_data(baseline_file(name, checks.choice("dataset", dataset, ("mnist", "fashion_mnist"))))
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        hint = "make them again with `make baselines`"
        raise ValueError(f"{path} does not hold the weights of {name}; {hint}") from error
    return model.eval()


def baseline_file(name: str, dataset: str) -> str:
    """Return the path of a network's trained weights, below a data folder."""
    return f"baselines/{dataset}-{name}.safetensors"
