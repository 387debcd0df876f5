"""From a user's data and budget to a trained, exported, checked model."""
