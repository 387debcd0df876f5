"""``anyformer generate``: go on from a prompt with a saved language model, and print the text as it comes."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from anyformer.core.errors import UsageError, shown
from anyformer.core.store import from_pretrained
from anyformer.data.tokenizers import TextStream, Tokenizer, tokenizer
from anyformer.skeletons.generation import generate, stream_tokens


def run_generate(
    folder: Path,
    prompt: str,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    beams: int = 1,
    stop: Sequence[str] = (),
    seed: int | None = None,
) -> None:
    """Print the prompt and its continuation, up to a stop string, without the stop string.

    Bytes that are no text go in as they are given and come out as the model says them.

    Raises:
        UsageError: The folder's model is no language model, or an option is out of range.
        AnyformerError: The folder is damaged.
    """
    model = from_pretrained(folder)
    name = model.data_config.get("tokenizer")
    if name is None or not hasattr(model, "stream") or "classes" in model.data_config:
        raise UsageError(f"{folder} holds no language model with a tokenizer; give a folder with one")
    words = tokenizer(name, folder)
    if words.vocabulary > model.config.vocabulary:
        raise UsageError(
            f"the tokenizer {shown(words.name)} has {words.vocabulary} tokens, the model {model.config.vocabulary}; copy the "
            "folder again"
        )
    ids = [words.encode(prompt)]
    ends = [*stop, *([] if words.end is None else [words.end])]
    if beams > 1:
        (whole,) = generate(
            model,
            ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            beams=beams,
            stop=ends,
            tokenizer=words,
        )
        tokens = iter(whole[len(ids[0]) :])
    else:
        steps = stream_tokens(
            model,
            ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop=ends,
            seed=seed,
            tokenizer=words,
        )
        tokens = (step[0] for step in steps)
    _print(prompt)
    for piece in before_stop(_pieces(words, tokens), stop):
        _print(piece)
    _print("\n")


def before_stop(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """A text as it comes, up to the first stop string; what may be the beginning of one waits until it is known."""
    waiting = ""
    for piece in pieces:
        waiting += piece
        found = [place for place in map(waiting.find, stop) if place >= 0]
        if found:
            yield waiting[: min(found)]
            return
        begun = max((_overlap(waiting, text) for text in stop), default=0)
        yield waiting[: len(waiting) - begun]
        waiting = waiting[len(waiting) - begun :]
    yield waiting


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop string."""
    return next(count for count in range(min(len(text), len(stop)), -1, -1) if text.endswith(stop[:count]))


def _pieces(words: Tokenizer, tokens: Iterator[int]) -> Iterator[str]:
    text: TextStream = words.stream()
    for token in tokens:
        yield text.feed(token)
    yield text.end()


def _print(text: str) -> None:
    # Through the buffer below: standard output refuses bytes that are no text.
    sys.stdout.buffer.write(text.encode(errors="surrogateescape"))
    sys.stdout.buffer.flush()
