"""Neurons: how the answer's probability follows each activation, and skills read from it."""
