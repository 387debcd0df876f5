"""Baselines that are in no catalogue of ours, in the form of its systems."""
