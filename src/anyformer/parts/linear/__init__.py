"""Weighted products."""
