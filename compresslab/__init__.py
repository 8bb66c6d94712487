"""compresslab: compress neural networks and measure what it costs.

import compresslab as cl
data = cl.data.load("mnist")
net = cl.models.pretrained("lenet_300_100", "mnist")
small = cl.zero_pruning.prune(net, sparsity=0.9)
cl.measure.measure(small, data.test)
"""

import importlib

_MODULES = {
    "data": "compresslab.data",
    "models": "compresslab.models",
    "train": "compresslab.train",
    "layers": "compresslab.layers",
    "grids": "compresslab.grids",
    "codebooks": "compresslab.codebooks",
    "activations": "compresslab.activations",
    "structure": "compresslab.structure",
    "techniques": "compresslab.techniques",
    "storage": "compresslab.storage",
    "measure": "compresslab.measure",
    "sweep": "compresslab.sweep",
    "decide": "compresslab.decide",
    "recipe": "compresslab.recipe",
    "allocation": "compresslab.allocation",
    "journal": "compresslab.journal",
    "lab": "compresslab.lab",
    "classroom": "compresslab.classroom",
}
_FUNCTIONS = {"save": "compresslab.storage", "load": "compresslab.storage", "Recipe": "compresslab.recipe"}

__version__ = "0.3.0"
__all__ = [*_MODULES, *_FUNCTIONS, "zero_pruning"]


def __getattr__(name):
    """Import a part of the package when it is first used, so that a worker process loads no widgets."""
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    techniques = importlib.import_module("compresslab.techniques")
    if name in techniques.names():
        return importlib.import_module(f"compresslab.techniques.{name}")
    raise AttributeError(f"compresslab has no {name!r}; it has {', '.join(sorted({*__all__, *techniques.names()}))}")


def __dir__():
    return sorted({*globals(), *__all__})
