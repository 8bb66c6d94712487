"""Which layers, how much? Scan how sensitive each layer is, share a budget out over them, and move them by sliders.

    scan = cl.allocation.scan(net, data, "zero_pruning")            # every layer alone, measured
    shares = cl.allocation.allocate(scan, budget=40_000)            # layer -> sparsity, for a file of 40,000 bytes
    small = cl.allocation.apply(net, shares, "zero_pruning")
    cl.lab.explore(cl.allocation.per_layer("zero_pruning", net))    # a slider for each layer, and a budget

A scan sees each layer alone and adds up what they lose; what they lose together is another measurement.

Sources: Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers" (the convex hull); Li et
al. 2017, arXiv:1608.08710 (sensitivity, layer by layer); Evci et al. 2020, arXiv:1911.11134 (Erdős-Rényi-kernel); Lee
et al. 2021, arXiv:2010.07611 (LAMP).
"""

from compresslab.allocation.budgets import RULES, allocate, expected, sparsities
from compresslab.allocation.layerwise import apply, per_layer
from compresslab.allocation.scanning import VALUES, scan

__all__ = ["RULES", "VALUES", "allocate", "apply", "expected", "per_layer", "scan", "sparsities"]
