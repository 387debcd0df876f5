"""Passes: models in, models out, by `apply(models, data) -> (models, record)`."""
