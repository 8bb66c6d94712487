"""Files written whole or not at all: what a killed process leaves behind goes, what a running one writes stays."""

import os
import subprocess
import sys

import pytest

from compresslab import writing

pytestmark = pytest.mark.slow

HANGING = """
import os, sys, time
from compresslab import writing
real = os.fsync
def wait(number):
    print("half way", flush=True)
    sys.stdin.read()
    real(number)
os.fsync = wait
writing.write_file(sys.argv[1], b"late")
"""


@pytest.fixture
def half_way(tmp_path):
    """A process in the middle of writing the file "slow"."""
    command = [sys.executable, "-c", HANGING, str(tmp_path / "slow")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half way\n"
    yield process
    process.kill()
    process.communicate()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_is_there_and_nothing_else(tmp_path):
    writing.write_file(tmp_path / "a", b"first")
    writing.write_file(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"second" and names(tmp_path) == ["a"]


def test_the_leftover_of_a_killed_process_goes_at_the_next_file(tmp_path, half_way):
    assert len(names(tmp_path)) == 1
    half_way.kill()
    half_way.wait()
    assert len(names(tmp_path)) == 1
    writing.write_file(tmp_path / "next", b"x")
    assert names(tmp_path) == ["next"]


@pytest.mark.skipif(sys.platform == "win32", reason="there, the system itself keeps an open file")
def test_a_running_process_keeps_its_file(tmp_path, half_way):
    writing.write_file(tmp_path / "next", b"x")
    assert len(names(tmp_path)) == 2
    half_way.communicate("")
    assert names(tmp_path) == ["next", "slow"] and (tmp_path / "slow").read_bytes() == b"late"


def test_what_is_not_ours_stays(tmp_path):
    strangers = [".clab-notes.tmp", ".clab-0123456789abcdef.tmp.txt", "clab-0123456789abcdef.tmp", ".clab-0123.tmp"]
    for name in strangers:
        (tmp_path / name).touch()
    (tmp_path / ".clab-00000000000000aa.tmp").mkdir()
    (tmp_path / ".clab-00000000000000bb.tmp").symlink_to(tmp_path / ".clab-notes.tmp")
    before = names(tmp_path)
    writing.write_file(tmp_path / "a", b"x")
    assert names(tmp_path) == sorted([*before, "a"])


def test_a_file_taken_for_a_leftover_before_it_was_locked_is_begun_again(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    lock, removed = fcntl.flock, []

    def slow_lock(file, how):
        if not removed:
            removed.append(file.name)
            os.unlink(file.name)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", slow_lock)
    writing.write_file(tmp_path / "a", b"x")
    assert len(removed) == 1 and (tmp_path / "a").read_bytes() == b"x" and names(tmp_path) == ["a"]


def test_where_there_are_no_locks_nothing_is_removed(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".clab-0123456789abcdef.tmp").touch()
    writing.write_file(tmp_path / "a", b"x")
    assert names(tmp_path) == [".clab-0123456789abcdef.tmp", "a"]
