"""Data sets as tensors, and the files that they are read from."""

from compresslab.data.sets import Data, Split, from_tensors, from_torchvision, load, names, split_of, stratified

__all__ = ["Data", "Split", "from_tensors", "from_torchvision", "load", "names", "split_of", "stratified"]
