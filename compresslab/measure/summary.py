"""Everything about one model in one row, and several models in one table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd
from torch import nn

from compresslab import checks, data, models
from compresslab.measure.correctness import accuracy
from compresslab.measure.ledger import SizeLedger, sizes
from compresslab.measure.operations import macs
from compresslab.measure.timing import Latency, latency


@dataclass(frozen=True)
class Measurement:
    """One model, measured: accuracy (fraction), the size ledger, latency, and multiply-accumulates per sample."""

    accuracy: float
    sizes: SizeLedger
    latency: Latency
    macs: int

    def to_frame(self, name: str = "model") -> pd.DataFrame:
        """Return the measurement as a row, `name` its index.

        columns  accuracy (fraction), the ledger's counts and bytes, compression_ratio, macs, latency_median,
                 latency_low, latency_high (seconds), batch_size, threads
        """
        costs = {key: value for key, value in vars(self.sizes).items() if key != "breakdown"}
        costs |= {"compression_ratio": self.sizes.compression_ratio, "macs": self.macs}
        times = {f"latency_{part}": getattr(self.latency, part) for part in ("median", "low", "high")}
        how = {"batch_size": self.latency.batch_size, "threads": self.latency.threads}
        return pd.DataFrame([{"accuracy": self.accuracy, **costs, **times, **how}], index=[name])


def measure(
    model: nn.Module, split: data.Split | tuple, batch_size: int = 1, threads: int = 1, *,
    metric: Callable | None = None, output: int | str | None = None,
) -> Measurement:  # fmt: skip
    """Measure a model on held-out images; the model is not changed.

    split       data.Split, or a pair (images (N, …), labels (N,) int64); accuracy is on all of it, and the shape of its
                images is what latency and MACs are measured with
    batch_size, threads  of the latency
    metric      as of `accuracy`, and in its place
    output      of a model that returns several tensors, the one that counts: as of `models.choose_output`
    raises      ValueError as `accuracy` and `latency`
    """
    checks.module("model", model)
    asked = model if output is None else models.choose_output(model, output)
    split = data.split_of(split, any_targets=metric is not None)
    shape = tuple(split.images.shape[1:])
    return Measurement(
        accuracy=accuracy(asked, split, metric),
        sizes=sizes(model),
        latency=latency(asked, batch_size, shape, threads=threads),
        macs=macs(asked, shape),
    )


def table(measurements: Mapping[str, Measurement]) -> pd.DataFrame:
    """Put several models side by side in a DataFrame, a row for each.

    raises  ValueError if there are none, or one is not a Measurement
    """
    if not measurements:
        raise ValueError("measurements is empty; give a dict of name -> measure(model, split)")
    if wrong := [name for name, entry in measurements.items() if not isinstance(entry, Measurement)]:
        raise ValueError(f"measurements[{wrong[0]!r}] is no Measurement; give a dict of name -> measure(model, split)")
    return pd.concat([measurement.to_frame(name) for name, measurement in measurements.items()])
