"""Numerics without parameters, one file an operation: a plain reference and the fast form side by side."""
