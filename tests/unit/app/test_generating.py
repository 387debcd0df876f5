"""``anyformer generate``: the prompt and what the model makes of it, on standard output."""

import pytest
import torch

from anyformer import core
from anyformer.app.generating import before_stop, run_generate
from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.store import create_model, save_pretrained
from anyformer.data.tokenizers import ByteTokenizer, TokenizerFile
from anyformer.skeletons.decoder import Decoder
from anyformer.skeletons.generation import generate

LAYERS = "1 x grouped_query_attention(kv_heads=2, position=rotary()), 1 x retention(heads=2)"


def decoder(vocabulary):
    torch.manual_seed(0)
    model = core.build(Decoder.pattern(dim=32, layers=LAYERS, vocabulary=vocabulary, tie=False)).eval()
    torch.nn.init.normal_(model.embed.table.weight)
    torch.nn.init.normal_(model.head.linear.weight, std=0.3)
    model.data_config = {"vocabulary": vocabulary, "tokenizer": "bytes", "context": 64}
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("models") / "bytes", decoder(256)
    model.save_pretrained(folder)
    return folder, model


def continued(model, prompt, count, **options):
    words = ByteTokenizer()
    (row,) = generate(model, [words.encode(prompt)], max_new_tokens=count, tokenizer=words, **options)
    return words.to_bytes(row)


@pytest.mark.parametrize(
    "options",
    [{}, {"beams": 3}, {"temperature": 1.0, "seed": 5}, {"temperature": 2.0, "top_k": 4, "top_p": 0.9, "seed": 1}],
)
def test_prompt_and_continuation_are_printed(saved, capfdbinary, options):
    folder, model = saved
    run_generate(folder, "Möwe: ", max_new_tokens=20, **options)
    assert capfdbinary.readouterr().out == continued(model, "Möwe: ", 20, **options) + b"\n"


def test_bytes_that_are_no_text_are_kept(saved, capfdbinary):
    folder, model = saved
    prompt = b"a\xff\0\xe2\x82".decode(errors="surrogateescape")
    run_generate(folder, prompt, max_new_tokens=30)
    out = capfdbinary.readouterr().out
    assert out.startswith(b"a\xff\0\xe2\x82")
    assert out == continued(model, prompt, 30) + b"\n"


@pytest.mark.parametrize("beams", [1, 2])
def test_text_ends_before_a_stop_string(saved, capfdbinary, beams):
    folder, model = saved
    new = continued(model, "abc", 30, beams=beams)[3:]
    text = new.decode(errors="surrogateescape")
    stop = text[6:8]
    run_generate(folder, "abc", max_new_tokens=30, beams=beams, stop=[stop, "never in there"])
    out = capfdbinary.readouterr().out.decode(errors="surrogateescape")
    assert stop not in out[3:]
    if beams == 1:
        assert out == "abc" + text[: text.index(stop)] + "\n"


def test_words_of_a_file_and_its_end(tmp_path, capfdbinary):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"</s>": 0, **{f"word{i}": i for i in range(1, 30)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="word1"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.Fuse()
    made.add_special_tokens(["</s>"])
    data = made.to_str().encode()
    model = decoder(30)
    model.data_config["tokenizer"] = "words.json"
    words = TokenizerFile(data, "words.json")
    assert words.end == 0
    (free,) = generate(model, [words.encode("word2 word3")], max_new_tokens=12)
    model.head.linear.weight.data[[0, free[7]]] = model.head.linear.weight.data[[free[7], 0]]  # it ends there
    model.embed.table.weight.data[[0, free[7]]] = model.embed.table.weight.data[[free[7], 0]]
    save_pretrained(model, tmp_path / "words", {"words.json": data})
    run_generate(tmp_path / "words", "word2 word3", max_new_tokens=12)
    out = capfdbinary.readouterr().out.decode()
    (row,) = generate(model, [words.encode("word2 word3")], max_new_tokens=12, stop=0)
    assert row[-1] == 0
    assert len(row) < 14
    assert out == "word2 word3" + words.decode(row[2:]) + "\n"


def test_what_waits_for_a_stop_string_is_not_lost():
    cases = [
        (["a", "b", "c"], ["bcd"], "abc"),
        (["ab", "cd", "e"], ["bcd"], "a"),
        (["aab"], ["ab"], "a"),
        (["a", "a", "b", "x"], ["ab"], "a"),
        (["x", "aa", "ab"], ["aab", "b"], "xa"),
        (["one", " two"], [], "one two"),
        (["", "", "é"], ["e"], "é"),
    ]
    for pieces, stop, wanted in cases:
        assert "".join(before_stop(iter(pieces), stop)) == wanted
    stream = before_stop(iter(["abc", "def", "ghi"]), ["cdx"])
    assert [next(stream), next(stream)] == ["ab", "cdef"]  # nothing waits longer than it must


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompt": ""}, "the prompt of row 0 is empty"),
        ({"max_new_tokens": 63}, "do not fit into the model's context of 64"),
        ({"stop": [""]}, "a stop string is empty"),
        ({"beams": 2, "temperature": 1.0}, "leave temperature at 0"),
        ({"top_p": 2.0}, "top_p=2.0"),
    ],
)
def test_options_out_of_range_are_told(saved, options, says):
    with pytest.raises(UsageError, match=says):
        run_generate(saved[0], **({"prompt": "ab", "max_new_tokens": 3} | options))


def test_other_folders_are_told(tmp_path):
    with pytest.raises(AnyformerError, match="there is no folder"):
        run_generate(tmp_path / "nowhere", "a")
    create_model("vit_micro").save_pretrained(tmp_path / "pictures")
    with pytest.raises(UsageError, match="holds no language model with a tokenizer"):
        run_generate(tmp_path / "pictures", "a")
    small = decoder(256)
    small.data_config["tokenizer"] = "bytes+end"
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(UsageError, match=r"the tokenizer 'bytes\+end' has 257 tokens, the model 256"):
        run_generate(tmp_path / "small", "a")
