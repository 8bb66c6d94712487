"""Arithmetic on tensors that techniques are made of: rankings, ranges, moments, correlations, decompositions.

Nothing here knows of a technique; each module can be read and tested by itself.
"""
