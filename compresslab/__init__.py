"""compresslab: compress neural networks and measure what it costs.

import compresslab as cl
data = cl.data.load("mnist")
net = cl.models.pretrained("lenet_300_100", "mnist")
small = cl.zero_pruning.prune(net, sparsity=0.9)
cl.measure.measure(small, data.test)
"""

import importlib
import importlib.util

_MODULES = {
    "allocation": "compresslab.experiments.allocation",
    "calibration": "compresslab.calibration",
    "channels": "compresslab.channels",
    "classroom": "compresslab.classroom",
    "codebooks": "compresslab.weights.codebooks",
    "data": "compresslab.data",
    "decide": "compresslab.experiments.decide",
    "grids": "compresslab.weights.grids",
    "journal": "compresslab.experiments.journal",
    "lab": "compresslab.lab",
    "layers": "compresslab.weights.layers",
    "measure": "compresslab.measure",
    "models": "compresslab.models",
    "recipe": "compresslab.experiments.recipe",
    "storage": "compresslab.storage",
    "sweep": "compresslab.experiments.sweep",
    "techniques": "compresslab.techniques",
    "train": "compresslab.train",
}
_FUNCTIONS = {"save": "compresslab.storage", "load": "compresslab.storage", "Recipe": "compresslab.experiments.recipe"}

__version__ = "0.3.0"
__all__ = [*_MODULES, *_FUNCTIONS, "zero_pruning"]


def __getattr__(name: str) -> object:
    """Import a part of the package when it is first used: workers need no widgets."""
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if importlib.util.find_spec(f"{__name__}.{name}"):  # `from compresslab import checks`: Python imports it itself
        raise AttributeError(f"compresslab.{name} is not imported yet")
    techniques = importlib.import_module("compresslab.techniques")
    if name in techniques.names():
        return importlib.import_module(f"compresslab.techniques.{name}")
    raise AttributeError(f"compresslab has no {name!r}; it has {', '.join(sorted({*__all__, *techniques.names()}))}")


def __dir__():
    return sorted({*globals(), *__all__})
