"""From texts to batches for language modelling; each is a pure function of the seed and the step."""

import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.files import write_atomic
from anyformer.data.corpus import CHUNK, Text
from anyformer.data.pixels import ROOM, cache_folder
from anyformer.data.seeds import derive_seed
from anyformer.data.tokenizers import ByteTokenizer, Tokenizer, token_type

IN_MEMORY = 64 * 2**20  # bytes of tokens up to which no file is written and none is read twice
ENCODING = "1"  # changes whenever the same text would give other tokens
IGNORED = -100  # the target of a token that is not scored, as torch's cross entropy has it


class TextBatch(NamedTuple):
    """Rows of tokens and what follows each.

    Attributes:
        ids: ``(batch, tokens)`` int64.
        targets: ``(batch, tokens)`` int64: what is to be predicted at each token, ``IGNORED`` where nothing is.
        keep: ``(batch, tokens)`` bool, True where a token counts; all do when None.
    """

    ids: Tensor
    targets: Tensor
    keep: Tensor | None = None


class Encoded(Protocol):
    """A text as one row of tokens, read where it is asked for.

    Attributes:
        count: of its tokens.
        size: of the text, in bytes.
    """

    count: int
    size: int

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens ``(count,)`` from ``start`` on, in a type of whole numbers."""
        ...


class EncodedArray:
    """Tokens in memory.

    Args:
        tokens: ``(count,)``.
        size: Of the text, in bytes.
    """

    def __init__(self, tokens: np.ndarray, size: int):
        self.tokens, self.count, self.size = tokens, len(tokens), size

    def read(self, start: int, count: int) -> np.ndarray:
        """See :class:`Encoded`."""
        return self.tokens[start : start + count]


class EncodedBytes:
    """The bytes of files as tokens, without a copy of them.

    Args:
        text: The files.
    """

    def __init__(self, text: Text):
        self.text, self.count, self.size = text, text.size, text.size

    def read(self, start: int, count: int) -> np.ndarray:
        """See :class:`Encoded`."""
        return np.frombuffer(self.text.read(start, count), np.uint8)


class EncodedFile:
    """Tokens one behind the other in a file that is held open and only read.

    Args:
        path: The file.
        kind: The type of a token.
        size: Of the text, in bytes.
    """

    def __init__(self, path: Path, kind: np.dtype, size: int):
        self.path, self.kind, self.size = path, kind, size
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        self.count = os.fstat(self.descriptor).st_size // kind.itemsize

    def read(self, start: int, count: int) -> np.ndarray:
        """See :class:`Encoded`. Raises AnyformerError where the file was shortened, or the disk fails."""
        count = min(count, self.count - start)
        try:
            data = os.pread(self.descriptor, count * self.kind.itemsize, start * self.kind.itemsize)
        except OSError:
            data = b""
        if len(data) < count * self.kind.itemsize:
            raise AnyformerError(f"{self.path} was cut short while it was in use; delete it and run again")
        return np.frombuffer(data, self.kind)


def encode(text: Text, tokenizer: Tokenizer) -> Encoded:
    """A text as tokens: in memory while it is short; else bytes from its files, other tokens from a file in the cache.

    Where the tokenizer has a token that ends documents, each file ends with it. The cache is the folder ``tokens`` beside
    the pictures (:mod:`anyformer.data.pixels`); deleting it costs only encoding again.

    Raises:
        UsageError: The disk has no room for the tokens.
        AnyformerError: A file was changed while it was read, or writing failed.
    """
    kind = token_type(tokenizer.vocabulary)
    if text.size * kind.itemsize <= IN_MEMORY:
        return EncodedArray(np.concatenate([np.empty(0, kind), *_pieces(text, tokenizer, kind)]), text.size)
    if isinstance(tokenizer, ByteTokenizer) and tokenizer.end is None:
        return EncodedBytes(text)
    name = hashlib.sha256(f"tokens {ENCODING} {tokenizer.digest} {text.digest()}".encode()).hexdigest()
    path = cache_folder().with_name("tokens") / f"{name}.tokens"
    if not _whole(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, text, tokenizer, kind)
        except OSError as error:
            raise AnyformerError(
                f"cannot write {error.filename or path} ({error.strerror}); free space, or set ANYFORMER_CACHE to a folder "
                "on another disk"
            ) from error
    return EncodedFile(path, kind, text.size)


def _pieces(text: Text, tokenizer: Tokenizer, kind: np.dtype) -> Iterator[np.ndarray]:
    for piece, ends in text.documents():
        if isinstance(tokenizer, ByteTokenizer):
            tokens = np.frombuffer(piece, np.uint8).astype(kind)
        else:
            tokens = np.array(tokenizer.encode(piece), kind)
        yield np.append(tokens, kind.type(tokenizer.end)) if ends and tokenizer.end is not None else tokens


def _write(path: Path, text: Text, tokenizer: Tokenizer, kind: np.dtype) -> None:
    """Writes tokens beside their place and renames; a killed run leaves only a ``.partial``."""
    free = shutil.disk_usage(path.parent).free
    if text.size * kind.itemsize * ROOM > free:  # a token is a byte at least
        raise UsageError(
            f"the tokens of {text.where} take up to {text.size * kind.itemsize / 2**30:.3g} GiB in {path.parent}, which has "
            f"{free / 2**30:.3g} GiB free; free space, or set ANYFORMER_CACHE to a folder on another disk"
        )
    beside, seal = path.with_name(f"{path.name}.{os.getpid()}.partial"), hashlib.sha256()
    try:
        with open(beside, "wb") as file:
            for tokens in _pieces(text, tokenizer, kind):
                file.write(tokens.tobytes())
                seal.update(tokens.tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        write_atomic(path.with_suffix(".json"), json.dumps({"sha256": seal.hexdigest()}).encode())
    finally:
        beside.unlink(missing_ok=True)


def _whole(path: Path) -> bool:
    """Whether the file of tokens is there and is what the note beside it says."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        note = json.loads(path.with_suffix(".json").read_bytes())
        seal = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                seal.update(chunk)
        return seal.hexdigest() == note["sha256"]
    return False


class TextBatches:
    """Batches of windows of a text by step: ``context`` tokens and, one further on, what follows each.

    The windows lie one behind the other, across the ends of documents; each epoch takes every one of them once, in an order
    of its own, but for those that do not fill the last batch. There is no iterator and so nothing to save: a resumed run
    asks for the next step and gets the same bits. Memory does not grow with the text, as the order is computed.

    Args:
        text: The tokens.
        context: Tokens a row.
        size: Rows a batch; as many as there are windows when these are fewer.
        seed: Of the order.

    Raises:
        UsageError: The text has not one window, or a size is not positive.
    """

    def __init__(self, text: Encoded, *, context: int, size: int, seed: int):
        if context < 1 or size < 1:
            raise UsageError(f"batches of {size} rows of {context} tokens cannot be made; both must be positive")
        self.windows = (text.count - 1) // context
        if self.windows < 1:
            raise UsageError(
                f"the text has {text.count:,} tokens, a row takes {context + 1:,}; give more text or a shorter context"
            )
        self.text, self.context, self.seed, self.size = text, context, seed, min(size, self.windows)

    @property
    def epoch_steps(self) -> int:
        """Steps in an epoch."""
        return self.windows // self.size

    def __call__(self, step: int) -> TextBatch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.epoch_steps)
        seed = derive_seed(self.seed, "order", epoch)
        chosen = [shuffled(place * self.size + row, self.windows, seed) for row in range(self.size)]
        rows = [self.text.read(window * self.context, self.context + 1).astype(np.int64) for window in chosen]
        tokens = torch.from_numpy(np.stack(rows))
        return TextBatch(tokens[:, :-1], tokens[:, 1:])


def shuffled(place: int, count: int, seed: int) -> int:
    """Where a place comes to lie when ``count`` places are shuffled by a seed, without a table of them.

    A Feistel network of four rounds permutes the numbers of as many bits as the count has; what it puts beyond the count
    goes through again (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(4):
            left, right = right, left ^ (derive_seed(seed, turn, right) & mask)
        place = left << half | right
        if place < count:
            return place
