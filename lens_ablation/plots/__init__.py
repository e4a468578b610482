"""Results as plotly figures: each function returns a ``Figure`` and shows, writes and changes nothing else."""
