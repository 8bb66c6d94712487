"""The compression techniques, one module each, and the way to look one up by its name."""

import importlib
import pkgutil
from types import ModuleType

from compresslab import checks
from compresslab.techniques.contract import Control, Picture, Technique, pictures

__all__ = ["Control", "Picture", "Technique", "get", "names", "pictures"]


def names():
    """Names of the techniques that come with the package, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "contract")


def get(technique):
    """The `Technique` of a name, of a module with a `TECHNIQUE`, of a Recipe, or of a `Technique` itself (your own).

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
