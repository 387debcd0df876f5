"""Texts in files become one row of tokens, in parts that share nothing, in batches that are a function of the step."""

import os
import sysconfig
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.data import text as text_module
from anyformer.data.corpus import read_text
from anyformer.data.text import IGNORED, EncodedArray, TextBatches, encode, shuffled
from anyformer.data.tokenizers import ByteTokenizer, TokenizerFile

BYTES = ByteTokenizer()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def lines(count: int, seed: int = 0) -> bytes:
    chance = np.random.default_rng(seed)
    return b"".join(b"line %d of %d\n" % (i, chance.integers(1e6)) for i in range(count))


def whole(text) -> bytes:
    return text.read(0, text.size)


def test_files_lie_one_behind_the_other(tmp_path):
    files = {"b.txt": b"second\n", "a/x.txt": b"first\n", "c.md": b"", ".hidden": b"no", "d/é.txt": b"\xff\0last"}
    text = read_text(write(tmp_path, files))
    assert text.names == ("a/x.txt", "b.txt", "d/é.txt")
    assert whole(text) == b"first\nsecond\n\xff\0last"
    assert text.notes == ("1 empty files are passed over",)
    assert [text.read(start, 9) for start in (0, 5, 12, 18, 19)] == [
        b"first\nsec",
        b"\nsecond\n\xff",
        b"\n\xff\0last",
        b"t",
        b"",
    ]
    assert whole(read_text(tmp_path, (".md", "b.txt"))) == b"second\n"
    assert whole(read_text(tmp_path / "b.txt")) == b"second\n"


def test_what_is_reached_twice_counts_once(tmp_path):
    write(tmp_path, {"a/one.txt": b"one", "b/two.txt": b"two"})
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "b")
    (tmp_path / "one_again.txt").symlink_to(tmp_path / "a" / "one.txt")
    os.link(tmp_path / "b" / "two.txt", tmp_path / "two_again.txt")
    assert whole(read_text(tmp_path)) == b"onetwo"


def test_unreadable_files_are_told_together(tmp_path):
    write(tmp_path, {"good.txt": b"text"})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(
        UsageError, match=r"4 files in .* cannot be used: .*circle cannot be read .*is a device or a pipe"
    ):
        read_text(tmp_path)


@pytest.mark.parametrize(
    ("files", "path", "says"),
    [
        ({}, "", "holds no file with text"),
        ({"a.txt": b""}, "", "holds no file with text"),
        ({"a.txt": b""}, "a.txt", "is empty"),
        ({}, "nowhere", "cannot be read .*; give a text file or a folder of them"),
    ],
)
def test_nothing_to_read_is_told(tmp_path, files, path, says):
    with pytest.raises(UsageError, match=says):
        read_text(write(tmp_path, files) / path)
    with pytest.raises(UsageError, match=r"holds no file that ends in \.py"):
        read_text(write(tmp_path, {"text.txt": b"x"}), (".py",))


def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(UsageError, match=r"cannot be listed \(Permission denied\)"):
        read_text(tmp_path)


def test_files_that_change_while_they_are_used_are_told(tmp_path):
    text = read_text(write(tmp_path, {"a.txt": lines(100)}))
    (tmp_path / "a.txt").write_bytes(b"short")
    with pytest.raises(AnyformerError, match="was cut short while it was in use"):
        text.read(0, 100)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(AnyformerError, match="cannot be read any more"):
        text.read(0, 100)


@pytest.mark.parametrize(
    "files",
    [
        {"one.txt": lines(5000)},
        {f"{i}.txt": lines(1 + i % 7, i) for i in range(300)},
        {"long.txt": lines(3000), **{f"{i}.txt": lines(3, i) for i in range(50)}},
        {"line.txt": "🙂é".encode() * 3000},
        {"bytes.bin": bytes(range(256)) * 100},
    ],
    ids=["one", "many", "both", "one line", "bytes"],
)
def test_parts_share_nothing_and_lose_nothing(tmp_path, files):
    text = read_text(write(tmp_path, files))
    parts = text.divide(seed=1)
    spans = sorted(tuple(span) for part in parts for span in part.spans.tolist())
    for (file, _, stop), (after, start, _) in pairwise(spans):
        assert start == (stop if after == file else 0)
    assert sum(part.size for part in parts) == text.size
    for part, share in zip(parts, (0.9, 0.05, 0.05), strict=True):
        assert abs(part.size / text.size - share) < 0.06
        if "bytes.bin" not in files:
            assert b"".join(piece for piece, _ in part.documents()).decode()  # no character is torn
    again, other = text.divide(seed=1), text.divide(seed=2)
    assert [part.digest() for part in again] == [part.digest() for part in parts]
    assert other[2].digest() != parts[2].digest()


def test_blocks_end_with_lines(tmp_path):
    for part in read_text(write(tmp_path, {"a.txt": lines(5000)})).divide(seed=0):
        for piece, _ in part.documents(100):
            assert piece.endswith(b"\n")
            assert piece.startswith(b"line")


def test_too_short_a_text_is_not_divided(tmp_path):
    with pytest.raises(UsageError, match="has 2 bytes, which is too short a text for train, validation, test"):
        read_text(write(tmp_path, {"a.txt": b"ab"})).divide(seed=0)
    parts = read_text(write(tmp_path, {"a.txt": b"abc"})).divide(seed=0)
    assert sorted(map(whole, parts)) == [b"a", b"b", b"c"]


def test_a_digest_is_of_names_and_bytes(tmp_path):
    digests = set()
    for files in ({"a": b"xy"}, {"b": b"xy"}, {"a": b"xz"}, {"a": b"x", "b": b"y"}):
        folder = tmp_path / str(len(digests))
        digests.add(read_text(write(folder, files)).digest())
    assert len(digests) == 4
    moved = write(tmp_path / "elsewhere", {"a": b"xy"})
    assert read_text(moved).digest() in digests


def test_the_standard_library_is_a_corpus(monkeypatch, tmp_path):
    text = read_text("stdlib")
    assert "argparse.py" in text.names
    assert "json/decoder.py" in text.names
    assert not any({"test", "tests", "site-packages"} & set(name.split("/")) for name in text.names)
    assert text.size > 5e6
    assert all(name.endswith(".py") for name in text.names)
    assert text.digest() == read_text("stdlib").digest()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(UsageError, match="no sources of the standard library"):
        read_text("stdlib")


def words_file() -> TokenizerFile:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["</s>"], initial_alphabet=alphabet)
    made.train_from_iterator([lines(100).decode()], trainer)
    return TokenizerFile(made.to_str().encode(), "words.json")


def test_documents_end_with_their_token(tmp_path):
    text = read_text(write(tmp_path, {"a.txt": b"ab\n", "b.txt": b"c"}))
    made = encode(text, ByteTokenizer("end"))
    assert made.read(0, 99).tolist() == [97, 98, 10, 256, 99, 256]
    assert (made.count, made.size) == (6, 4)
    words = words_file()
    again = encode(text, words)
    assert again.read(0, 99).tolist() == [*words.encode("ab\n"), words.end, *words.encode("c"), words.end]
    assert encode(text, BYTES).read(2, 99).tolist() == [10, 99]


@pytest.mark.parametrize("kind", ["bytes", "bytes+end", "file"])
def test_tokens_in_files_are_those_in_memory(tmp_path, monkeypatch, kind):
    words = {"bytes": BYTES, "bytes+end": ByteTokenizer("end"), "file": words_file()}[kind]
    text = read_text(write(tmp_path / "data", {"a.txt": lines(3000), "b.txt": lines(20, 1)}))
    memory = encode(text, words)
    monkeypatch.setattr(text_module, "IN_MEMORY", 0)
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    stored = encode(text, words)
    assert (stored.count, stored.size) == (memory.count, memory.size)
    for start, count in ((0, 10), (7, 1000), (memory.count - 5, 5), (0, memory.count)):
        assert np.array_equal(stored.read(start, count), memory.read(start, count))
    if kind == "bytes":
        assert not (tmp_path / "cache").exists()
        return
    (path,) = (tmp_path / "cache" / "tokens").glob("*.tokens")
    written = path.stat().st_mtime_ns
    assert np.array_equal(encode(text, words).read(0, 50), memory.read(0, 50))
    assert path.stat().st_mtime_ns == written  # not encoded again
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    assert np.array_equal(encode(text, words).read(0, 50), memory.read(0, 50))  # damaged, so encoded again
    stored = encode(text, words)
    os.truncate(path, 10)
    with pytest.raises(AnyformerError, match="was cut short while it was in use"):
        stored.read(20, 5)


def test_a_disk_without_room_is_told(tmp_path, monkeypatch):
    text = read_text(write(tmp_path, {"a.txt": lines(100)}))
    monkeypatch.setattr(text_module, "IN_MEMORY", 0)
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(text_module, "ROOM", 1e15)
    with pytest.raises(UsageError, match=r"the tokens of .* take up to .* GiB"):
        encode(text, ByteTokenizer("end"))
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "a.txt"))
    with pytest.raises(AnyformerError, match=r"cannot write .*; free space, or set ANYFORMER_CACHE"):
        encode(text, ByteTokenizer("end"))


@given(st.integers(1, 300), st.integers(0, 2**62))
def test_shuffling_is_a_permutation(count, seed):
    assert sorted(shuffled(place, count, seed) for place in range(count)) == list(range(count))


def test_shuffling_spreads():
    places = np.array([shuffled(place, 5000, 1) for place in range(5000)])
    assert abs(np.corrcoef(places, np.arange(5000))[0, 1]) < 0.05
    assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 0.05
    assert (places != [shuffled(place, 5000, 2) for place in range(5000)]).mean() > 0.99


def batches(count=1000, **changes) -> TextBatches:
    return TextBatches(EncodedArray(np.arange(count), count), **({"context": 9, "size": 4, "seed": 3} | changes))


def test_a_step_gives_the_same_bits_in_any_order_of_asking():
    forward, backward = batches(), batches()
    first = [forward(step) for step in range(70)]
    for step in reversed(range(70)):
        again = backward(step)
        assert torch.equal(first[step].ids, again.ids)
        assert torch.equal(first[step].targets, again.targets)
    assert not torch.equal(first[0].ids, batches(seed=4)(0).ids)


def test_epochs_take_every_window_once_and_shuffle_anew():
    made = batches()
    assert (made.windows, made.epoch_steps) == (111, 27)
    epochs = [torch.cat([made(27 * epoch + step).ids for step in range(27)]) for epoch in range(2)]
    for rows in epochs:
        assert len(rows[:, 0].unique()) == 108
        assert (rows[:, 0] % 9 == 0).all()
    assert not torch.equal(*epochs)


def test_targets_are_what_follows():
    batch = batches()(5)
    assert torch.equal(batch.targets, batch.ids + 1)
    assert batch.ids.dtype == batch.targets.dtype == torch.int64
    assert batch.keep is None
    assert not (batch.targets == IGNORED).any()


def test_short_texts_make_small_batches_or_none():
    assert batches(count=28, size=50)(0).ids.shape == (3, 9)
    assert batches(count=10)(0).targets.tolist() == [list(range(1, 10))]
    with pytest.raises(UsageError, match="the text has 9 tokens, a row takes 10"):
        batches(count=9)
    for changes in ({"context": 0}, {"size": 0}):
        with pytest.raises(UsageError, match="both must be positive"):
            batches(**changes)


def test_memory_does_not_grow_with_the_text(tmp_path):
    with open(tmp_path / "large.txt", "wb") as file:  # 4 GB of zeros that take no disk, one line without an end
        file.truncate(4 * 2**30)
    before = psutil.Process().memory_info().rss
    text = read_text(tmp_path / "large.txt")
    train, validation, _ = text.divide(seed=0)
    made = TextBatches(encode(train, BYTES), context=1024, size=8, seed=0)
    assert made.windows > 3e6
    for step in (0, 10**5, 10**9):
        assert not made(step).ids.any()
    assert encode(validation, BYTES).count > 1e8
    assert psutil.Process().memory_info().rss - before < 64 * 2**20
