"""Sweeps and pruning curves."""
