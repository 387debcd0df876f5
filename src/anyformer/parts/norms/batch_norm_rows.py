"""The lines of a key map for a batch norm, whose tensors bear torch's names everywhere."""

from anyformer.core.keymap import Row, row

TENSORS = ("{p}", "running_mean", "running_var", "num_batches_tracked")


def batch_norm_rows(theirs: str, ours: str) -> tuple[Row, ...]:
    """Weight, bias, moments and their count, from one path to another."""
    return tuple(row(f"{theirs}.{tensor}", f"{ours}.{tensor}") for tensor in TENSORS)
