"""Ablation methods: what stands in the place of an activation, one file each."""
