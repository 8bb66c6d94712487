"""The size ledger on the page: a table, and a picture of what the bytes of the file are spent on."""

import html

import numpy as np
import pandas as pd

from compresslab.lab import words
from compresslab.measure.ledger import WHOLE, SizeLedger
from compresslab.techniques import Picture

BYTES = "bytes"  # name of the picture
MOST_BARS = 12  # tensors that have a bar of their own


def make_table(ledger: SizeLedger, title: str, dense_bytes: int) -> str:
    """Return the ledger as an HTML table; the .clab file's row stands out.

    dense_bytes  of the network before compression, which every row is compared with
    """
    against = f"against the dense network in fp32 ({words.format_kib(dense_bytes)})"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("kind", "count", "KiB", against, "what it counts"))
    rows = ""
    for row in ledger.to_frame().to_dict("records"):
        count = "" if pd.isna(row["count"]) else f"{row['count']:,}"
        kib = "" if pd.isna(row["KiB"]) else f"{row['KiB']:,.1f}"
        ratio = "" if pd.isna(row["bytes"]) else words.format_ratio(row["bytes"], dense_bytes)
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in (row["kind"], count, kib, ratio, row["meaning"]))
        rows += f"<tr class='file'>{cells}</tr>" if row["kind"] == WHOLE else f"<tr>{cells}</tr>"
    heading = f"<tr><td colspan=5><b>{html.escape(title)}</b></td></tr>"
    return f"<table class='ledger'><thead>{heading}<tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def make_picture(ledger: SizeLedger) -> Picture:
    """Return bars of KiB by tensor and kind; many small tensors share a bar."""
    frame = ledger.breakdown_frame().drop(index=WHOLE, columns="all") / 1024
    frame = frame[frame.sum(axis=1) > 0]
    kinds = [kind for kind in frame.columns if frame[kind].sum() > 0]
    large = frame.index.isin(frame.sum(axis=1).nlargest(MOST_BARS).index)
    values, labels = frame.loc[large, kinds].to_numpy(), list(frame.index[large])
    if not large.all():
        values = np.vstack([values, frame.loc[~large, kinds].sum()])
        labels.append(f"{(~large).sum()} others")
    shares = ", ".join(f"{kind} {frame[kind].sum() / frame.to_numpy().sum():.0%}" for kind in kinds)
    caption = f"Of {ledger.file_bytes:,} bytes: {shares}."
    bars = {"axis": "KiB", "labels": tuple(labels), "classes": tuple(kinds)}
    return Picture(BYTES, "stack", values, "Bytes of the file", caption, **bars)
