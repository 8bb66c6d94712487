"""A lab's results as a CSV file in the working folder, and as a link to take them away by."""

import base64
import html
import itertools
import re
from pathlib import Path

from compresslab import journal as journals


def export(results, name):
    """Write a DataFrame to compresslab-NAME.csv in the working folder, never over an older file.

    returns  a line of HTML: where it is, and a link that downloads the same
    raises   OSError naming the path if it cannot be written
    """
    name = re.sub(r"[^\w.-]+", "-", name)  # that of a recipe has arrows
    path = journals.write_csv(results, free_path(Path.cwd() / f"compresslab-{name}.csv"))
    packed = base64.b64encode(results.to_csv(index=False).encode()).decode()
    link = f"<a download='{html.escape(path.name)}' href='data:text/csv;base64,{packed}'>download</a>"
    return f"{len(results)} rows written to {html.escape(str(path))} · {link}"


def free_path(path):
    """`path`, or the first of name-2, name-3, … that no file has yet."""
    names = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return path if not path.exists() else next(one for one in names if not one.exists())
