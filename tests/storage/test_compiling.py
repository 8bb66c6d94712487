"""Machine code is kept for the next process where that is possible; where it is not, functions work all the same."""

import os
import subprocess
import sys

import numba
import pytest

from compresslab.storage import compiling

pytestmark = pytest.mark.slow

MODULE = """
from compresslab.storage.compiling import kept_on_disk

@kept_on_disk
def add(first, second):
    return first + second

print(add(1, 2))
"""
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"


@pytest.fixture
def run(tmp_path):
    """run(before=…, **environment): what a process prints that imports a module with such a function."""
    (tmp_path / "module.py").write_text(MODULE)
    (tmp_path / "cache").mkdir()

    def run(before="", **environment):
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")} | environment
        code = f"{before}\nimport module"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def kept_files(folder):
    return [path for path in folder.rglob("*") if path.suffix in (".nbi", ".nbc")]


def test_kept_and_mended_after_damage(run, tmp_path):
    assert run() == "3\n"
    files = kept_files(tmp_path / "cache")
    assert files
    for damaged in (b"", b"\x80\x05damage", files[0].read_bytes()[:-9]):
        for file in files:
            file.write_bytes(damaged)
        assert run() == "3\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_a_full_disk(run, tmp_path):
    assert run(FULL) == "3\n"
    assert kept_files(tmp_path / "cache") == []


def test_no_folder_to_keep_it_in(monkeypatch):
    def refuse(**options):
        if "cache" in options:
            raise RuntimeError("cannot cache function 'add': no locator available for file 'module.py'")
        return real(**options)

    real = numba.njit
    with monkeypatch.context() as patch:
        patch.setattr(numba, "njit", refuse)
        add = compiling.kept_on_disk(lambda first, second: first + second)
    assert add(1, 2) == 3


def test_without_a_home_numba_makes_no_folder_named_tilde(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compiling.Path, "home", no_home)
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with monkeypatch.context() as patch:
        patch.setattr(numba, "njit", lambda cache=False, **_: "kept" if cache else lambda function: "in memory")
        assert compiling.kept_on_disk(lambda: 0) == "in memory"


def test_an_error_of_the_function_itself_comes_out():
    def pick(numbers):
        if len(numbers) == 0:
            raise ValueError("no numbers")
        return numbers[0]

    with pytest.raises(ValueError, match="no numbers"):
        compiling.kept_on_disk(pick)(())
