"""The meter: accuracy, calibration, sizes, latency, MACs, and whether a difference between two models is real.

Every number comes from running the model on held-out images, from timing it, or from the length of real bytes. Every
function takes a model in any mode, on any device, in single or half precision, and leaves its mode, its gradients, its
running statistics and torch's random numbers as they were.
"""

from compresslab.measure.cards import model_card
from compresslab.measure.confidence import calibration_error, reliability
from compresslab.measure.correctness import (
    Changes,
    Interval,
    McNemar,
    accuracy,
    accuracy_interval,
    changed_predictions,
    estimate_interval,
    mcnemar,
    per_class,
    predictions,
)
from compresslab.measure.ledger import SizeLedger, sizes
from compresslab.measure.operations import macs
from compresslab.measure.summary import Measurement, measure, table
from compresslab.measure.timing import Latency, LatencyComparison, compare_latency, latency

__all__ = ["Changes", "Interval", "Latency", "LatencyComparison", "McNemar", "Measurement", "SizeLedger"]
__all__ += ["accuracy", "accuracy_interval", "calibration_error", "changed_predictions", "compare_latency"]
__all__ += ["estimate_interval", "latency", "macs", "mcnemar", "measure", "model_card", "per_class", "predictions"]
__all__ += ["reliability", "sizes", "table"]
