"""environment.yml gives conda users what pyproject.toml gives pip users."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"torch": "pytorch", "dask[distributed]": "dask"}  # conda's dask brings distributed
ONLY_CONDA = {"python", "pip"}


def named(requirement):
    """("torch", ">=2.11") of "torch>=2.11"."""
    return re.fullmatch(r"([\w.\[\]-]+?)\s*([<>=!~].*)?", requirement).groups()


def wanted():
    """What pyproject.toml asks for, package and tests, under conda's names: name -> version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    return {CONDA_NAMES.get(name, name): version for name, version in map(named, requirements)}


def offered():
    """What environment.yml installs: name -> version; pip's part of it too."""
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    by_pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    assert "-e ." in by_pip
    return dict(map(named, [entry for entry in [*listed, *by_pip] if isinstance(entry, str) and entry != "-e ."]))


def test_the_same_packages_from_the_same_versions_on():
    conda = {name: version for name, version in offered().items() if name not in ONLY_CONDA}
    assert conda == wanted()


def test_the_same_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert offered()["python"] == project["requires-python"] == ">=3.11"


def test_nothing_is_pinned_and_the_channel_is_alive():
    assert yaml.safe_load((ROOT / "environment.yml").read_text())["channels"] == ["conda-forge"]
    assert all(version.startswith(">=") for name, version in offered().items() if name != "pip")


def test_cluster_extra_is_tested_too():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras["cluster"]) <= set(extras["test"])
