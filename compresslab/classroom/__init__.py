"""The classroom: instant checks of the notebooks' exercises.

    cl.classroom.check("00.file_bytes", file_bytes)     # one line: right and why it matters, or not yet and a hint
    cl.classroom.exercises()                            # name -> what is asked

Every notebook has a module here with its exercises. A check never compares with a stored solution: it measures the
answer, or calls the learner's function on cases that it computes itself.
"""

from compresslab.classroom import (  # noqa: F401  importing them registers their exercises
    activation_pruning,
    audit,
    combine,
    distillation,
    honest_meter,
    low_rank,
    quantization,
    redundancy_pruning,
    ship_it,
    which_layers,
    zero_pruning,
)
from compresslab.classroom.feedback import Feedback, check, exercises

__all__ = ["Feedback", "check", "exercises"]
