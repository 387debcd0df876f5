"""``anyformer data glyphs``: labelled pictures of characters, drawn here."""

from rich.console import Console

from anyformer.data.glyphs import PARAMETERS, write


def write_glyphs(folder: str, per_class: int, classes: int, size: int, seed: int) -> None:
    """Write a folder of ``train`` and ``test`` pictures and say what to do with it."""
    count = write(folder, per_class=per_class, classes=classes, size=size, seed=seed)
    out = Console(highlight=False)
    out.print(f"{count:,} pictures of {classes} characters at {size} x {size} in {folder}", soft_wrap=True)
    out.print(
        f"  fonts      {len(PARAMETERS.train_fonts)} in train, {len(PARAMETERS.test_fonts)} of other families in test"
    )
    out.print(f"  generator  {PARAMETERS.digest()[:16]}, seed {seed}")
    out.print(f"  next       anyformer fit {folder}", soft_wrap=True)
