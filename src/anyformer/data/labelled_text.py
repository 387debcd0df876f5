"""Texts with what is to be predicted of them: a folder with one sub-folder a class, or a table with a column of text."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from anyformer.core.errors import UsageError, nearest, shown
from anyformer.data.batches import Batch
from anyformer.data.corpus import read_text
from anyformer.data.decode import regular
from anyformer.data.seeds import derive_seed
from anyformer.data.split import Split, divide
from anyformer.data.tables import ENDINGS, rows
from anyformer.data.targets import Kind, Targets, check_classes, from_columns, parts_from
from anyformer.data.text import shuffled
from anyformer.data.tokenizers import Tokenizer, token_type
from anyformer.parts.embeds.token_table import Tokens

TEXTS = ("text", "sentence", "content", "review", "document")
SPLITS = ("split", "part")
PART_FOLDERS = ("train", "validation", "test")
LONGEST = 4096  # tokens of a text that are kept, unless asked otherwise
MOST_BYTES = 64  # of a token: so much is read of a file for each that is kept


@dataclass(frozen=True)
class TextSet:
    """Texts as tokens, with their labels.

    Args:
        tokens: ``(total,)``, all texts one behind the other.
        starts: ``(n + 1,)`` int64, where each begins.
        labels: As in :class:`~anyformer.data.imageset.ImageSet`.
        classes: As there.
        names: One a text: its path below the folder, or its row.
        kind: Of target.
        given: ``(n,)`` int8, the part that the source puts each text in; absent where it leaves that open.
        notes: What the reader decided and cut, in sentences for a report.
    """

    tokens: np.ndarray
    starts: np.ndarray
    labels: Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...]
    kind: Kind = "classes"
    given: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, positions: Tensor) -> Tokens:
        """Texts ``(count,)`` as rows ``(count, longest of them)`` with pads behind, and which tokens count."""
        return padded([self.text(place) for place in positions.tolist()])

    def text(self, position: int) -> np.ndarray:
        """The tokens of one text."""
        return self.tokens[self.starts[position] : self.starts[position + 1]]

    def digest(self) -> str:
        """SHA-256 of tokens, targets, given parts and names: two sets with one digest train the same model."""
        seal = hashlib.sha256(repr((len(self), self.classes, self.names, self.kind)).encode())
        for table in (
            self.tokens,
            self.starts,
            self.labels.numpy(),
            None if self.given is None else self.given.numpy(),
        ):
            seal.update(b"" if table is None else np.ascontiguousarray(table).tobytes())
        return seal.hexdigest()

    def split(self, seed: int) -> Split:
        """The division that the source gives as far as it does; the rest at random by the seed, stratified."""
        return divide(self.labels, self.kind, seed, self.given)


def padded(texts: Sequence[Sequence[int] | np.ndarray]) -> Tokens:
    """Texts as rows with pads behind, and which tokens count."""
    ids = torch.zeros(len(texts), max(map(len, texts), default=0), dtype=torch.int64)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    for row, kept, text in zip(ids, keep, texts, strict=True):
        row[: len(text)] = torch.from_numpy(np.asarray(text, np.int64))
        kept[: len(text)] = True
    return Tokens(ids, keep)


def read_labelled_text(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    longest: int = LONGEST,
    kind: Kind | None = None,
    text: str | None = None,
    target: Sequence[str] = (),
) -> TextSet:
    """Reads texts and targets.

    A folder has one sub-folder of text files for each class; or sub-folders ``train`` and ``test``, and ``validation`` if
    there is a third, which hold such. A table (.csv, .tsv, .parquet) has a column of text, with a name of ``TEXTS`` unless
    ``text`` names it, columns of targets (all others, unless ``target`` names them), and perhaps a column ``split``.

    Args:
        path: The folder or the table.
        tokenizer: Makes the tokens.
        longest: Tokens of a text that are kept, from its beginning.
        kind: Of target; found from the cells of a table when absent.
        text: Of a table, the column of text.
        target: Of a table, the columns of targets.

    Raises:
        UsageError: The source cannot be read, a text is empty, or there is nothing to learn.
    """
    if longest < 1:
        raise UsageError(f"longest={longest}: keep one token of each text at least")
    path = Path(path)
    if path.suffix.lower() in ENDINGS:
        return _from_table(path, tokenizer, longest, kind, text, target)
    return _from_folder(path, tokenizer, longest)


def _from_folder(root: Path, tokenizer: Tokenizer, longest: int) -> TextSet:
    found = read_text(root)
    parts = [Path(name).parts for name in found.names]
    divided = {"train", "test"} <= {p[0] for p in parts} <= set(PART_FOLDERS) and min(map(len, parts)) > 2
    depth = 1 if divided else 0
    outside = [f"{found.paths[i]} lies outside of the classes" for i, p in enumerate(parts) if len(p) != depth + 2]
    if outside:
        raise UsageError(
            f"{outside[0]}{f', as do {len(outside) - 1} more' if len(outside) > 1 else ''}; put text files straight into one "
            f"sub-folder of {root} for each class"
        )
    classes = sorted({p[depth] for p in parts})
    labels = torch.tensor([classes.index(p[depth]) for p in parts])
    given = torch.tensor([PART_FOLDERS.index(p[0]) for p in parts], dtype=torch.int8) if divided else None
    check_classes(Targets("classes", labels, tuple(classes)), given, str(root))
    contents = []
    for file in found.paths:
        with regular(file) as opened:
            contents.append(_encoded(opened.read(MOST_BYTES * (longest + 1)), tokenizer, longest))
    return _made(contents, longest, tokenizer, labels, tuple(classes), found.names, given=given, notes=found.notes)


def _from_table(
    path: Path, tokenizer: Tokenizer, longest: int, kind: Kind | None, text: str | None, target: Sequence[str]
) -> TextSet:
    where, table = str(path), rows(path)
    header = next(table, None)
    names = header.cells if header else ()
    column = _text_column(where, names, text)
    for name in target:
        if name not in names:
            raise UsageError(f"{where} has no column {shown(name)}{nearest(name, names)}")
    split_column = next((name for name in names if name.lower() in SPLITS and name not in target), None)
    chosen = list(target) or [name for name in names if name and name not in (column, split_column)]
    if not chosen:
        raise UsageError(f"{where} has no column of targets beside {shown(column)}; add one of the name 'label'")
    numbers, contents, columns = [], [], {name: [] for name in [*chosen, split_column] if name}
    for row in table:
        numbers.append(row.number)
        contents.append(_encoded(row.cells[names.index(column)].encode(), tokenizer, longest))
        for name, cells in columns.items():
            cells.append(row.cells[names.index(name)])
    if not numbers:
        raise UsageError(f"{where} has no row below its header; add one for each text")
    empty = [number for number, content in zip(numbers, contents, strict=True) if not len(content)]
    if empty:
        some = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        raise UsageError(f"{where} has {len(empty)} rows without text ({some}); write it or remove the rows")
    targets = from_columns({name: columns[name] for name in chosen}, numbers, where, kind)
    given = parts_from(columns[split_column], numbers, split_column, where) if split_column else None
    check_classes(targets, given, where)
    return _made(
        contents,
        longest,
        tokenizer,
        targets.values,
        targets.names,
        tuple(f"row {number}" for number in numbers),
        kind=targets.kind,
        given=given,
        notes=(targets.note,),
    )


def _text_column(where: str, names: Sequence[str], asked: str | None) -> str:
    if asked is not None and asked not in names:
        raise UsageError(f"{where} has no column {shown(asked)}{nearest(asked, names)}")
    found = [name for name in names if name.lower() in TEXTS] if asked is None else [asked]
    if len(found) != 1:
        has = ", ".join(shown(name) for name in names[:8])
        raise UsageError(
            f"{where} has {'several columns' if found else 'no column'} of text (it has {has}); name one 'text' or say text="
        )
    return found[0]


def _encoded(text: bytes, tokenizer: Tokenizer, longest: int) -> np.ndarray:
    """The first tokens of a text: one more than are kept, so that what is cut can be counted."""
    return np.array(tokenizer.encode(text)[: longest + 1], token_type(tokenizer.vocabulary))


def _made(
    contents: list[np.ndarray],
    longest: int,
    tokenizer: Tokenizer,
    labels: Tensor,
    classes: tuple[str, ...],
    names: tuple[str, ...],
    *,
    notes: tuple[str, ...],
    kind: Kind = "classes",
    given: Tensor | None = None,
) -> TextSet:
    cut = sum(len(content) > longest for content in contents)
    kept = [content[:longest] for content in contents]
    starts = np.cumsum([0, *map(len, kept)])
    said = (f"{cut:,} texts are cut to {longest:,} tokens",) if cut else ()
    tokens = np.concatenate([np.empty(0, token_type(tokenizer.vocabulary)), *kept])
    return TextSet(tokens, starts, labels, classes, names, kind, given, (*notes, *said))


class LabelledBatches:
    """Batches of labelled texts by step, shuffled anew each epoch; see :class:`~anyformer.data.batches.Batches`.

    Args:
        texts: All of them.
        positions: Of those that are learnt.
        size: Texts a batch; all of them when there are fewer.
        seed: Of the order.
    """

    def __init__(self, texts: TextSet, positions: Tensor, *, size: int, seed: int) -> None:
        self.texts, self.positions, self.seed, self.size = texts, positions, seed, min(size, len(positions))

    @property
    def epoch_steps(self) -> int:
        """Steps in an epoch."""
        return len(self.positions) // self.size

    def __call__(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs: rows of tokens stand for the pictures."""
        epoch, place = divmod(step, self.epoch_steps)
        seed = derive_seed(self.seed, "order", epoch)
        places = [shuffled(place * self.size + row, len(self.positions), seed) for row in range(self.size)]
        chosen = self.positions[places]
        return Batch(cast(Any, self.texts.rows(chosen)), self.texts.labels[chosen])
