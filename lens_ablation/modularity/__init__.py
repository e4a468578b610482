"""Which neurons serve what: importance by data, selective pruning, experts, overlap.

Named for the field; no public function has this name.
"""
