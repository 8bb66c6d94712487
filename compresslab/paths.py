"""The folders of the workbook: the data that ships with it, and what is written while using it."""

import os
from pathlib import Path

import platformdirs

PACKAGE = Path(__file__).resolve().parent


def data_folders() -> list[Path]:
    """List the folders that may hold the data, in the order they are tried.

    COMPRESSLAB_DATA alone if it is set; otherwise `data` of a checkout (beside the package), the copy inside an
    installed package, and `data` in the working folder and the folders above it.
    """
    if named := os.environ.get("COMPRESSLAB_DATA"):
        return [Path(os.path.expanduser(named))]
    here = Path.cwd()
    return [PACKAGE.parent / "data", PACKAGE / "shipped", *(folder / "data" for folder in (here, *here.parents))]


def find_data(relative: str) -> Path:
    """Find the file `relative` ("MNIST/raw/…") in the first data folder that has it."""
    folders = data_folders()
    for folder in folders:
        if (folder / relative).is_file():
            return folder / relative
    tried = ", ".join(dict.fromkeys(map(str, folders)))
    raise FileNotFoundError(
        f"{relative} is in none of the data folders ({tried}); "
        "set COMPRESSLAB_DATA to the workbook's data folder, or fetch the checkout's data folder again"
    )


def home() -> Path:
    """Return the folder for the journal and downloads, made at its first use.

    COMPRESSLAB_HOME, or the user's cache folder; raises OSError naming the variable where none can be made.
    """
    hint = "set COMPRESSLAB_HOME to a folder you can write to"
    try:
        folder = Path(os.environ.get("COMPRESSLAB_HOME") or platformdirs.user_cache_dir("compresslab")).expanduser()
    except RuntimeError as error:  # neither HOME nor an entry in the list of users
        raise FileNotFoundError(f"this user has no home folder; {hint}") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"{folder} cannot be made ({error.strerror}); {hint}") from error
    return folder
