"""What a system's file says of the paper it implements."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """One paper of the catalogue, or a reference beside it.

    Attributes:
        slug: its row in the catalogue.
        contributes: what it adds to the library: "model", "part", "pass", "objective", ...
        extends: slugs of the systems that it starts from.
        deviations: where the official code and the paper differ, and which of them is followed.
    """

    slug: str
    contributes: tuple[str, ...]
    extends: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """Figures as the source prints them: parameters, multiply-adds, at (height, width) or (tokens,), and where they stand.

    ``explained`` says why our count differs where it does by more than 3 %.
    """

    params: float | None
    macs: float | None
    at: tuple[int, ...]
    source: str
    explained: str = ""
