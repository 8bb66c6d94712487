"""Arithmetic on tensors that techniques share: rankings, ranges, moments, correlations, decompositions."""
