"""Surveys and benchmarks: the models that they compare."""
