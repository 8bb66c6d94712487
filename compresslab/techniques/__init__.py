"""The compression techniques, one module each, and the way to look one up by its name."""

import importlib
from types import ModuleType

from compresslab import checks
from compresslab.techniques.base import Control, Picture, Technique, pictures

__all__ = ["Control", "Picture", "Technique", "get", "names", "pictures"]


NAMES = (  # each is a module of this folder that declares a TECHNIQUE
    *("activation_pruning", "distillation", "low_rank", "quantization", "redundancy_pruning"),
    *("weight_sharing", "zero_pruning"),
)


def names() -> list[str]:
    """Return the names of the techniques that come with the package, sorted."""
    return sorted(NAMES)


def get(technique: str | ModuleType | Technique | object) -> Technique:
    """Return the `Technique` of a name, a module, a Recipe, or a Technique itself.

    raises  ValueError for an unknown name, TypeError for anything else
    """
    if isinstance(technique, str):
        if technique not in names():
            hint = f"choose one of {', '.join(names())}, or give a Technique"
            raise ValueError(f"technique is {checks.words(technique)}; {hint}")
        technique = importlib.import_module(f"{__name__}.{technique}")
    if isinstance(technique, ModuleType) and hasattr(technique, "TECHNIQUE"):
        technique = technique.TECHNIQUE
    if hasattr(technique, "as_technique"):
        technique = technique.as_technique()
    if not isinstance(technique, Technique):
        hint = "give a name, a Technique, a Recipe, or a module with a TECHNIQUE"
        raise TypeError(f"technique is {checks.words(technique)}; {hint}")
    return technique
