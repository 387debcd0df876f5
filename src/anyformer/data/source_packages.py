"""Which package of the standard library a piece of source comes from: classification of bytes, from text at hand.

It stands where Long Range Arena (arXiv:2011.04006) has reviews of films, which would have to be downloaded. The sources are
real, those of the running interpreter; files are whole in one part, so that a model must know the package and not the file.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from anyformer.core.errors import UsageError
from anyformer.data.corpus import Text, read_text
from anyformer.data.labelled_sequences import LabelledSequences
from anyformer.data.seeds import derive_seed

PACKAGES = ("asyncio", "ctypes", "email", "importlib", "json", "multiprocessing", "unittest", "xml")
PARTS = ("train", "validation", "test")
SHARES = (0.7, 0.15, 0.15)


@dataclass(frozen=True, kw_only=True)
class SourcePackages(LabelledSequences):
    """Pieces of ``tokens`` bytes and the number of the package that each is from, all packages alike often.

    Within a package every place of every file of the part is as likely as another. Files that are shorter than a piece are
    passed over.

    Args:
        tokens: Bytes of a piece.
        part: Whose files the pieces are from.
        division: Seed by which files are dealt out to the parts; ``seed`` is that of the pieces alone.
        packages: The classes, in order.
    """

    tokens: int = 1024
    part: Literal["train", "validation", "test"] = "train"
    division: int = 0
    packages: tuple[str, ...] = PACKAGES

    def check(self) -> None:
        """See :class:`~anyformer.data.labelled_sequences.LabelledSequences`."""
        if self.tokens < 1 or len(self.packages) < 2:
            raise UsageError(
                f"pieces of {self.tokens} bytes from {len(self.packages)} packages are no task; give more of both"
            )
        if self.part not in PARTS:
            raise UsageError(f"there is no part {self.part!r}; the parts are {', '.join(PARTS)}")

    @property
    def vocabulary(self) -> int:
        """Bytes."""
        return 256

    @property
    def classes(self) -> int:
        """The packages."""
        return len(self.packages)

    def sample(self, number: int) -> tuple[np.ndarray, int]:
        """See :class:`~anyformer.data.labelled_sequences.LabelledSequences`."""
        chance = np.random.Generator(np.random.PCG64(derive_seed(self.seed, "SourcePackages", self.part, number)))
        label = int(chance.random() * self.classes)
        places = self._places[label]
        place = int(chance.random() * int(places[-1]))
        file = int(np.searchsorted(places, place, side="right")) - 1
        start = int(self._starts[label][file]) + place - int(places[file])
        return np.frombuffer(self._text.read(start, self.tokens), np.uint8), label

    @cached_property
    def _text(self) -> Text:
        return read_text("stdlib")

    @cached_property
    def _files(self) -> list[list[int]]:
        """Of every package, the files of the part."""
        return [self._dealt(package) for package in self.packages]

    @cached_property
    def _starts(self) -> list[list[int]]:
        return [[self._text.starts[file] for file in files] for files in self._files]

    @cached_property
    def _places(self) -> list[np.ndarray]:
        """Of every package, how many pieces begin before each of its files, and in all of them."""
        sizes = self._text.sizes
        return [np.cumsum([0, *(sizes[files] - self.tokens + 1)]) for files in self._files]

    def _dealt(self, package: str) -> list[int]:
        names, sizes = self._text.names, self._text.sizes
        long = [i for i, name in enumerate(names) if name.startswith(f"{package}/") and sizes[i] >= self.tokens]
        if len(long) < len(PARTS):
            raise UsageError(
                f"the package {package!r} of this interpreter has {len(long)} files of {self.tokens} bytes or more, too "
                f"few for {', '.join(PARTS)}; name others, or give shorter pieces"
            )
        order = sorted(long, key=lambda i: derive_seed(self.division, "packages", names[i]))
        counts = [max(1, int(share * len(order))) for share in SHARES[1:]]
        validation, test = order[: counts[0]], order[counts[0] : sum(counts)]
        return {"train": order[sum(counts) :], "validation": validation, "test": test}[self.part]
