"""Tasks, metrics and corpora."""
