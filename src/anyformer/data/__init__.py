"""Readers, splits and augmentations: from a user's files to batches of tensors."""
