"""Empirical gradients of neurons: how the answer's probability follows each activation, and skills read from it.

The package is not called ``neurons``: importing it would put the module in the place of the selector
``lens_ablation.neurons``.
"""
