"""Optimal ablation: constants that hurt least, comparison of methods, causal tracing, and lenses."""
