"""compresslab: compress neural networks and measure what it costs.

import compresslab as cl
data = cl.data.load("mnist")
net = cl.models.pretrained("lenet_300_100", "mnist")
small = cl.zero_pruning.prune(net, sparsity=0.9)
cl.measure.measure(small, data.test)
"""

import importlib
import importlib.util

_PARTS = {
    "compresslab": "calibration channels classroom data export lab measure models storage techniques train".split(),
    "compresslab.experiments": "allocation decide journal recipe sweep".split(),
    "compresslab.weights": "codebooks grids layers".split(),
}
_MODULES = {name: f"{package}.{name}" for package, names in _PARTS.items() for name in names}
_FUNCTIONS = {"save": "compresslab.storage", "load": "compresslab.storage", "Recipe": "compresslab.experiments.recipe"}
_FUNCTIONS["search"] = "compresslab.experiments.search"

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
