"""From text to token identifiers and back: bytes, or any file of the ``tokenizers`` library."""

import codecs
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from anyformer.core.errors import AnyformerError, UsageError, nearest, shown
from anyformer.core.files import read_own
from anyformer.data.decode import reason, regular

# what files call the end of a document, the surest first
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]", "<|im_end|>")


class TextStream(Protocol):
    """Text from tokens that come one after the other."""

    def feed(self, token: int) -> str:
        """The text that this token completes, "" where a character is still open."""
        ...

    def end(self) -> str:
        """What was left open."""
        ...


class Tokenizer(Protocol):
    """What turns text into tokens.

    Attributes:
        name: what ``data_config["tokenizer"]`` says of it.
        vocabulary: the number of different tokens.
        end: the token that ends a document, where there is one.
        digest: of all that its tokens depend on.
    """

    name: str
    vocabulary: int
    end: int | None
    digest: str

    def encode(self, text: str | bytes) -> list[int]:
        """The tokens of a text."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens; special ones have none."""
        ...

    def stream(self) -> TextStream:
        """Decodes tokens as they come."""
        ...


class ByteTokenizer:
    """Every byte of UTF-8 is a token; bytes that are no text are kept, so that any file comes back as it was.

    Args:
        specials: Names of tokens behind the 256 bytes; the one named ``end`` ends documents.

    Raises:
        UsageError: A special token is named twice, or not in letters.
    """

    def __init__(self, *specials: str):
        if len(set(specials)) < len(specials) or not all(name.isidentifier() for name in specials):
            raise UsageError(f"special tokens have different names of letters, not {shown('+'.join(specials))}")
        self.name = "+".join(("bytes", *specials))
        self.specials = {name: 256 + place for place, name in enumerate(specials)}
        self.vocabulary = 256 + len(specials)
        self.end = self.specials.get("end")
        self.digest = hashlib.sha256(self.name.encode()).hexdigest()

    def encode(self, text: str | bytes) -> list[int]:
        """The bytes of a text; what :meth:`decode` gave for bytes that are no text becomes those bytes again."""
        return list(_bytes(text))

    def to_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of tokens, special ones left out."""
        return bytes(token for token in ids if token < 256)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens; a byte that is no text becomes the surrogate that Python's ``surrogateescape`` makes of it."""
        return self.to_bytes(ids).decode(errors="surrogateescape")

    def stream(self) -> TextStream:
        """Decodes tokens as they come."""
        return _ByteStream()


class _ByteStream:
    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def feed(self, token: int) -> str:
        return self.decoder.decode(bytes([token])) if token < 256 else ""

    def end(self) -> str:
        return self.decoder.decode(b"", final=True)


class TokenizerFile:
    """A ``tokenizer.json`` of the ``tokenizers`` library (extra ``text``): BPE, unigram, word pieces, words.

    Bytes that are no text become U+FFFD before the file's own normalization. No token is added at the ends.

    Args:
        data: The bytes of the file.
        name: The name of the file, for ``data_config`` and for errors.

    Raises:
        UsageError: The library is not installed, or the file is not its.
    """

    def __init__(self, data: bytes, name: str):
        try:
            import tokenizers
        except ImportError:
            raise UsageError(f'reading {name} needs tokenizers: pip install "anyformer[text]"') from None
        try:
            self.inner: Any = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises its own failures as plain exceptions
            raise UsageError(f"{name} is no file of the tokenizers library ({reason(error)}); copy it again") from None
        # What a file says of lengths belongs to the batches that it was saved with, not to a stream of text.
        self.inner.no_truncation()
        self.inner.no_padding()
        self.data, self.name = data, name
        known: dict[str, int] = self.inner.get_vocab(with_added_tokens=True)
        self.vocabulary = max(known.values(), default=-1) + 1  # identifiers may have gaps
        special = {token.content for token in self.inner.get_added_tokens_decoder().values() if token.special}
        ends = [word for word in ENDS if word in special]
        self.end = known[ends[0]] if ends else None
        self.digest = hashlib.sha256(data).hexdigest()

    def encode(self, text: str | bytes) -> list[int]:
        """The tokens of a text. Raises UsageError where the file has none for a part of it."""
        whole = _bytes(text).decode(errors="replace")
        try:
            return self.inner.encode(whole, add_special_tokens=False).ids
        except Exception as error:
            raise UsageError(f"{self.name} cannot encode the text ({reason(error)}); take another tokenizer") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens; those that the file does not know have none."""
        return self.inner.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> TextStream:
        """Decodes tokens as they come."""
        return _FileStream(self.inner, self.decode)


ENDS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "[SEP]",
    "<|im_end|>",
)  # what files call the end of a document


class _FileStream:
    def __init__(self, inner: Any, decode: Callable[[Sequence[int]], str]):
        from tokenizers.decoders import DecodeStream

        self.inner, self.decode = inner, decode
        self.steps = DecodeStream(skip_special_tokens=True)
        self.open: list[int] = []  # tokens since the last one that completed a character

    def feed(self, token: int) -> str:
        text = self.steps.step(self.inner, token)
        self.open = [] if text else [*self.open, token]
        return text or ""

    def end(self) -> str:
        return self.decode(self.open) if self.open else ""


def tokenizer(name: str | Path, folder: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a name.

    Args:
        name: ``bytes``; with special tokens behind the bytes, ``bytes+end``; or a file that ends in ``.json``.
        folder: Where the file lies beside a model: then the name is that of a file in it, and no path.

    Raises:
        UsageError: There is no such tokenizer, or the file cannot be read.
        AnyformerError: The file in the model's folder cannot be read.
    """
    text = str(name)
    if text.partition("+")[0] == "bytes":
        return ByteTokenizer(*text.split("+")[1:])
    if not text.endswith(".json"):
        raise UsageError(
            f"there is no tokenizer {shown(text)}; known are bytes, bytes+end and a file that ends in .json"
            f"{nearest(text, ['bytes'])}"
        )
    if folder is not None and Path(text).name != text:
        raise UsageError(f"the tokenizer {shown(text)} is to lie in the model's folder; name the file alone")
    if folder is None:
        with regular(Path(text)) as file:
            return TokenizerFile(file.read(), Path(text).name)
    try:
        return TokenizerFile(read_own(Path(folder) / text), text)
    except OSError as error:
        raise AnyformerError(f"cannot read {error.filename} ({error.strerror}); copy the whole folder again") from None


def token_type(vocabulary: int) -> np.dtype:
    """The smallest type that holds every token, in the byte order of files."""
    return np.dtype("<u1" if vocabulary <= 2**8 else "<u2" if vocabulary <= 2**16 else "<u4")


def _bytes(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"character {error.start} of the text is half of a surrogate pair, which no file can hold; remove it"
        ) from None
