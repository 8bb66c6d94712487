"""Which layers, how much? Scan how sensitive each layer is, share a budget out over them, and move them by sliders.

    scan = cl.allocation.scan(net, data, "zero_pruning")            # every layer alone, measured
    shares = cl.allocation.allocate(scan, budget=40_000)            # layer -> sparsity, for a file of 40,000 bytes
    small = cl.allocation.apply(net, shares, "zero_pruning")
    cl.lab.explore(cl.allocation.per_layer("zero_pruning", net))    # a slider for each layer, and a budget

A scan sees each layer alone and adds up what they lose; what they lose together is another measurement.
"""

from compresslab.experiments.budgets import RULES, apply, per_layer, sparsities
from compresslab.experiments.sensitivity import VALUES, allocate, expected, scan

__all__ = ["RULES", "VALUES", "allocate", "apply", "expected", "per_layer", "scan", "sparsities"]
