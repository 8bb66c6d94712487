"""Where the bytes of a file are, as a picture: a bar for each tensor, of positions, values, codebook and header."""

import numpy as np

from compresslab.measure.ledger import WHOLE
from compresslab.techniques import Picture

NAME = "bytes"
MOST = 12  # tensors that have a bar of their own


def picture(ledger):
    """The Picture of a SizeLedger: KiB by tensor and kind; the smallest of very many tensors share a bar."""
    frame = ledger.breakdown_frame().drop(index=WHOLE, columns="all") / 1024
    frame = frame[frame.sum(axis=1) > 0]
    kinds = [kind for kind in frame.columns if frame[kind].sum() > 0]
    large = set(frame.sum(axis=1).nlargest(MOST).index)
    shown, rest = frame[frame.index.isin(large)], frame[~frame.index.isin(large)]
    values, labels = shown[kinds].to_numpy(), list(shown.index)
    if len(rest):
        values, labels = np.vstack([values, rest[kinds].sum()]), [*labels, f"{len(rest)} others"]
    parts = ", ".join(f"{kind} {frame[kind].sum() / frame.to_numpy().sum():.0%}" for kind in kinds)
    return Picture(NAME, "stack", values, "Bytes of the file", f"Of {ledger.file_bytes:,} bytes: {parts}.", axis="KiB",
                   labels=tuple(labels), classes=tuple(kinds))  # fmt: skip
