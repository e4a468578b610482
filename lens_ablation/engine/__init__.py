"""Running many ablations."""
