"""Pictures with what is to be predicted of them, and where each came from."""

import hashlib
from dataclasses import dataclass

from torch import Tensor

from anyformer.data.pixels import Pixels
from anyformer.data.split import Split, divide
from anyformer.data.targets import Kind


@dataclass(frozen=True)
class ImageSet:
    """Pictures with their labels.

    Args:
        images: ``(n, channels, size, size)`` uint8; of a large set, a mapping of a file.
        labels: What is to be predicted, by ``kind``: positions in ``classes``, ``(n,)`` int64; or which of them apply,
            ``(n, classes)`` float32 of 0 and 1; or numbers ``(n, columns)`` float32.
        classes: Names of the classes, of the labels, or of the columns of numbers.
        names: One name a picture: its path below the folder, or its number in a set.
        kind: Of target: one class of several, any number of labels, or numbers.
        given: ``(n,)`` int8, the part that the source puts each picture in, as a position in ``PARTS``; absent where it
            leaves that open.
        rows: The row of the table that each picture was named in, counted from 1; absent where there is none.
        table: The file of those rows.
        notes: What the reader decided and left out, in sentences for the report.
        stored: The pixels where they lie; ``images`` when absent.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...]
    kind: Kind = "classes"
    given: Tensor | None = None
    rows: tuple[int, ...] | None = None
    table: str = ""
    notes: tuple[str, ...] = ()
    stored: Pixels | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for red, green and blue."""
        return self.images.shape[1]

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.images.shape[2]

    @property
    def pixels(self) -> Pixels:
        """All pictures, read when indexed."""
        return Pixels(self.images) if self.stored is None else self.stored

    def part(self, positions: Tensor) -> tuple[Pixels, Tensor]:
        """Some of the pictures, read when indexed, and their labels; memory does not grow with their number."""
        return self.pixels.part(positions), self.labels[positions]

    def split(self, seed: int) -> Split:
        """The division that the source gives as far as it does; the rest at random by the seed, stratified."""
        return divide(self.labels, self.kind, seed, self.given)

    def where(self, position: int) -> str:
        """Where a picture came from, for a report: its name and, of a table, file and row."""
        return (
            f"{self.names[position]} ({self.table}, row {self.rows[position]})" if self.rows else self.names[position]
        )

    def digest(self) -> str:
        """SHA-256 of pixels, targets, given parts, classes and names: two sets with one digest train the same model."""
        head = (tuple(self.images.shape), self.classes, self.names)
        seal = hashlib.sha256(repr(head if self.kind == "classes" else (*head, self.kind)).encode())
        seal.update(self.labels.numpy().astype("<i8" if self.kind == "classes" else "<f4").tobytes())
        if self.given is not None:
            seal.update(self.given.numpy().tobytes())
        for chunk in self.pixels.chunks():
            seal.update(chunk.contiguous().numpy().data)
        return seal.hexdigest()
