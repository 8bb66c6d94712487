"""Files that are written completely or not at all: under a temporary name in the same folder, synced, then renamed.

A process that is killed in between leaves its temporary file behind. While it lives, it holds a lock on the file, which
the system lets go of when it ends; so the next file written into the folder can tell a leftover and remove it.
"""

import contextlib
import os
import re
import secrets
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, which itself refuses to remove a file that is open
    fcntl = None

_TEMPORARY = re.compile(r"\.clab-[0-9a-f]{16}\.tmp")


def write_file(path: str | os.PathLike, content: bytes) -> None:
    """Write bytes to a file, following links; after an OSError the old file stays."""
    target = Path(os.path.realpath(path))
    remove_leftovers(target.parent)
    file = _open_temporary(target.parent)
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if fcntl:  # renamed while it is locked
                os.replace(file.name, target)
        if not fcntl:  # an open file cannot be renamed
            os.replace(file.name, target)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(file.name)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove the temporary files in a folder whose process is gone."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _remove_unlocked(entry.path)


def _remove_unlocked(path):
    """Remove a file; raises OSError if it is locked, or cannot be."""
    if not fcntl:
        os.unlink(path)
        return
    with open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)


def _open_temporary(folder):
    """Open a new temporary file and lock it."""
    while True:
        file = open(folder / f".clab-{secrets.token_hex(8)}.tmp", "xb")
        with contextlib.suppress(OSError):  # a file system without locks: nothing is removed there
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(file.name):  # else another process took it for a leftover before it was locked
            return file
        file.close()
