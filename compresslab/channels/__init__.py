"""Really removing neurons and channels: which of them go together, and slicing the layers."""

from compresslab.channels.groups import OUTPUT, Consumer, Group, find_groups
from compresslab.channels.slicing import add_to_bias, remove, replace, reset

__all__ = ["OUTPUT", "Consumer", "Group", "add_to_bias", "find_groups", "remove", "replace", "reset"]
