"""Text goes into tokens and comes back, byte by byte or by a tokenizer's file."""

import contextlib
import json
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.data.tokenizers import ByteTokenizer, TokenizerFile, token_type, tokenizer

TEXT = "def größe(x):\n    return 'αβγ 🙂' * x  # naïve\n" * 20


@pytest.fixture(scope="module")
def trained() -> bytes:
    """A byte-level BPE file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    )
    made.enable_truncation(5)
    made.enable_padding()
    return made.to_str().encode()


@given(st.binary())
def test_any_bytes_come_back(data):
    words = ByteTokenizer()
    assert words.encode(data) == list(data)
    assert words.to_bytes(words.encode(data)) == data
    assert words.encode(words.decode(data)) == list(data)


@given(st.text())
def test_any_text_comes_back(text):
    words = ByteTokenizer("end")
    assert words.decode([*words.encode(text), words.end]) == text


@given(st.binary())
def test_a_stream_of_bytes_says_what_the_whole_says(data):
    stream = ByteTokenizer().stream()
    pieces = [stream.feed(token) for token in data]
    assert "".join(pieces) + stream.end() == data.decode(errors="surrogateescape")


def test_special_tokens_stand_behind_the_bytes():
    plain, special = ByteTokenizer(), ByteTokenizer("end", "pad")
    assert (plain.vocabulary, plain.end, plain.name) == (256, None, "bytes")
    assert (special.vocabulary, special.end, special.name) == (258, 256, "bytes+end+pad")
    assert special.specials == {"end": 256, "pad": 257}
    assert special.decode([104, 257, 105, 256]) == "hi"
    assert special.stream().feed(256) == ""
    assert tokenizer("bytes+end+pad").vocabulary == 258
    assert plain.digest != special.digest


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(UsageError, match="character 1 of the text is half of a surrogate pair"):
        ByteTokenizer().encode("a\ud800")


def test_a_file_gives_the_librarys_tokens(trained, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(trained)
    words = tokenizer(tmp_path / "tokenizer.json")
    ids = words.encode(TEXT)
    assert 257 < words.vocabulary <= 300
    assert len(ids) > 5  # the truncation that the file was saved with is left aside
    assert len(ids) < len(TEXT.encode()) / 1.5
    assert max(ids) < words.vocabulary
    assert words.decode(ids) == TEXT
    assert words.encode(TEXT.encode()) == ids
    assert words.end is not None
    assert words.decode([*ids, words.end]) == TEXT
    assert words.name == "tokenizer.json"
    assert tokenizer("tokenizer.json", tmp_path).digest == words.digest
    assert words.decode(words.encode(b"a\xff\0b")) == "a\N{REPLACEMENT CHARACTER}\0b"


def test_a_stream_of_a_file_says_what_the_whole_says(trained):
    words = TokenizerFile(trained, "tokenizer.json")
    ids = words.encode(TEXT)
    stream = words.stream()
    pieces = [stream.feed(token) for token in ids]
    assert "".join(pieces) + stream.end() == TEXT
    assert sum(map(bool, pieces)) > 20
    cut = words.encode("x🙂")[:-1]
    stream = words.stream()
    assert "".join([*map(stream.feed, cut), stream.end()]) == words.decode(cut)


@pytest.mark.parametrize("specials", [("end", "end"), ("a b",), ("",)])
def test_special_tokens_need_names(specials):
    with pytest.raises(UsageError, match="special tokens have different names"):
        ByteTokenizer(*specials)


def test_unknown_tokenizers_are_refused(trained, tmp_path):
    with pytest.raises(UsageError, match=r"no tokenizer 'byte'; .*did you mean bytes"):
        tokenizer("byte")
    with pytest.raises(UsageError, match=r"nowhere\.json cannot be read"):
        tokenizer(tmp_path / "nowhere.json")
    with pytest.raises(AnyformerError, match=r"cannot read .*nowhere\.json .*; copy the whole folder again"):
        tokenizer("nowhere.json", tmp_path)
    (tmp_path / "inside").mkdir()
    (tmp_path / "words.json").write_bytes(trained)
    for name in ("../words.json", str(tmp_path / "words.json")):
        with pytest.raises(UsageError, match="is to lie in the model's folder"):
            tokenizer(name, tmp_path / "inside")
    (tmp_path / "inside" / "words.json").symlink_to(tmp_path / "words.json")
    with pytest.raises(AnyformerError, match="is a link or no file"):
        tokenizer("words.json", tmp_path / "inside")


def test_damaged_files_are_refused(trained):
    data = json.loads(trained)
    chance = random.Random(0)
    hostile = [b"", b"{}", b"[]", b"\xff\0", trained[: len(trained) // 2], b'{"model": ' * 10_000]
    hostile += [json.dumps({**data, "model": {"type": kind}}).encode() for kind in ("BPE", "Unigram", "", 3)]
    for content in hostile:
        with pytest.raises(UsageError, match=r"t\.json is no file of the tokenizers library"):
            TokenizerFile(content, "t.json")
    for _ in range(100):
        changed = bytearray(trained)
        for _ in range(3):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        with contextlib.suppress(UsageError):
            TokenizerFile(bytes(changed), "t.json").encode("text")


def test_what_a_file_has_no_token_for_is_told():
    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    made = TokenizerFile(json.dumps({"version": "1.0", "added_tokens": [], "model": words}).encode(), "words.json")
    assert made.encode("a") == [0]
    assert made.end is None
    with pytest.raises(UsageError, match=r"words\.json cannot encode the text"):
        made.encode("b")


def test_without_the_library_the_extra_is_named():
    blocked = (
        "import sys; sys.modules['tokenizers'] = None\n"
        "from anyformer.data.tokenizers import TokenizerFile, UsageError\n"
        "try: TokenizerFile(b'{}', 'tokenizer.json')\n"
        "except UsageError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, timeout=60)
    assert 'reading tokenizer.json needs tokenizers: pip install "anyformer[text]"' in done.stdout


def test_tokens_take_few_bytes():
    assert [token_type(size).itemsize for size in (2, 256, 257, 65536, 65537)] == [1, 1, 2, 2, 4]
