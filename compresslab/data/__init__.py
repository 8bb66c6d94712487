"""Data sets as tensors, and the files that they are read from."""

from compresslab.data.sets import Data, Split, from_tensors, from_torchvision, load, names, split_of, stratified
from compresslab.data.streams import Stream, from_loader

__all__ = ["Data", "Split", "Stream", "from_loader", "from_tensors", "from_torchvision", "load", "names", "split_of"]
__all__ += ["stratified"]
