"""Build hook: a wheel carries the data folder as compresslab/shipped; an editable install uses the checkout's own."""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShipsData(BuildHookInterface):
    """Add data/ to a wheel, and nothing to an editable install (version "editable")."""

    def initialize(self, version, build_data):
        if version == "standard":
            build_data["force_include"]["data"] = "compresslab/shipped"
