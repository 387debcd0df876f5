"""Models go into folders and come back to the bit, or are refused."""

import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load, save

import anyformer as af
from anyformer import core
from anyformer.core import registry, serial, store
from anyformer.core.files import MANIFEST, write_manifest

from .random_patterns import SMALL_MODELS, models

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def noisy(model):
    for parameter in model.parameters():  # by fan-in, so that no deep model overflows
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) and tensor.dtype == theirs[name].dtype for name, tensor in ours.items()
    )


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_a_model_comes_back_to_the_bit(name, tmp_path):
    model = noisy(af.create_model(name, num_classes=3, in_chans=1, img_size=(16, 24), patch_size=2, drop_path_rate=0.1))
    model.data_config["mean"] = [0.25]
    model.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    again = af.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state), "reading a model draws no random numbers"
    assert not again.training
    assert type(again) is type(model)
    assert again.spec == model.spec
    assert same(again.state_dict(), model.state_dict())
    assert (again.model_name, again.options, again.data_config) == (name, model.options, model.data_config)
    images = torch.randn(2, 1, 16, 24)
    with torch.no_grad():
        assert torch.equal(again(images), model.eval()(images))


@settings(max_examples=15)
@given(models)
def test_a_hybrid_comes_back_to_the_bit(tmp_path_factory, pattern):
    folder = tmp_path_factory.mktemp("hybrid")
    model = noisy(store._allocate(pattern))
    model.save_pretrained(folder)
    again = af.from_pretrained(folder)
    assert again.spec == model.spec
    assert same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_type_is_kept(dtype, tmp_path):
    model = noisy(af.create_model("swin_micro", num_classes=3).to(dtype))
    model.save_pretrained(tmp_path)
    again = af.from_pretrained(tmp_path)
    assert same(again.state_dict(), model.state_dict())
    assert {b.dtype for b in again.buffers()} == {b.dtype for b in model.buffers()} == {dtype, torch.int64}
    images = torch.randn(1, 3, 32, 32, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(again(images), model.eval()(images))


def test_what_saved_a_model_is_recorded_and_never_read(tmp_path):
    model = noisy(af.create_model("vit_micro", num_classes=3))
    model.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    contents = {name: (tmp_path / "a" / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    assert contents == {name: (tmp_path / "b" / name).read_bytes() for name in contents}, "one process, one result"
    config = json.loads(contents[CONFIG])
    assert config["saved_with"] == {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": "cpu"}
    del config["saved_with"]  # as in folders of earlier versions
    write_manifest(tmp_path / "c", {**contents, CONFIG: json.dumps(config).encode()})
    assert same(af.from_pretrained(tmp_path / "c").state_dict(), model.state_dict())


def test_types_may_be_mixed(tmp_path):
    model = noisy(af.create_model("vit_micro").to(torch.bfloat16))
    model.norm.to(torch.float32)
    model.blocks[0].mixer.qkv.to(torch.float64)
    model.save_pretrained(tmp_path)
    assert same(af.from_pretrained(tmp_path).state_dict(), model.state_dict())


def test_what_is_read_can_be_trained(tmp_path):
    af.create_model("vit_micro", num_classes=2).save_pretrained(tmp_path)
    model = af.from_pretrained(tmp_path).train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())


def test_saving_again_replaces_and_keeps_what_is_extra(tmp_path):
    af.create_model("vit_micro").save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    model = noisy(af.create_model("convnext_micro"))
    store.save_pretrained(model, tmp_path, extra={"labels.txt": b"cat\ndog"})
    assert af.from_pretrained(tmp_path).model_name == "convnext_micro"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([CONFIG, WEIGHTS, MANIFEST, "labels.txt", "notes.txt"])
    recorded = json.loads((tmp_path / MANIFEST).read_text())["files"]
    for name in (CONFIG, WEIGHTS, "labels.txt"):
        assert recorded[name]["sha256"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_two_savings_are_the_same_bytes(tmp_path):
    model = af.create_model("edgenext_micro")
    model.save_pretrained(tmp_path / "a")
    af.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    for name in (CONFIG, WEIGHTS, MANIFEST):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.fixture
def folder(tmp_path):
    noisy(af.create_model("vit_micro", num_classes=3)).save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, config=None, weights=None):
    """Other contents under a manifest that fits them, as someone hostile would write them."""
    contents = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    if config is not None:
        contents[CONFIG] = config(json.loads(contents[CONFIG]))
    if weights is not None:
        contents[WEIGHTS] = weights(contents[WEIGHTS])
    write_manifest(folder, contents)


def test_damage_is_noticed(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(
        core.AnyformerError, match=r"model\.safetensors is damaged: its SHA-256 is not that of manifest"
    ):
        af.from_pretrained(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, MANIFEST])
def test_missing_files_are_named(name, folder):
    (folder / name).unlink()
    with pytest.raises(core.AnyformerError, match=f"cannot read .*{name}"):
        af.from_pretrained(folder)


def test_a_newer_format_is_named(folder):
    rewrite(folder, config=lambda c: json.dumps({"format": store.FORMAT + 1, "new": c}).encode())
    with pytest.raises(core.AnyformerError, match=r"has format 2; this version reads up to 1: update anyformer"):
        af.from_pretrained(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lambda c: b"[]", "is no configuration of a model"),
        (lambda c: b"{}", "is no configuration of a model"),
        (lambda c: json.dumps({**c, "name": 3}).encode(), "is no configuration of a model"),
        (lambda c: json.dumps({**c, "options": []}).encode(), "is no configuration of a model"),
        (lambda c: json.dumps({**c, "data_config": None}).encode(), "is no configuration of a model"),
        (lambda c: b"\xff\xfe{", "config.json: not JSON"),
        (lambda c: b'{"a": 1, "a": 2}', "stands twice"),
        (lambda c: json.dumps({**c, "spec": 3}).encode(), 'expected a mapping with a key "part"'),
        (lambda c: json.dumps({**c, "spec": {"part": "mlp", "dim": 3}}).encode(), "is no skeleton"),
        (lambda c: json.dumps({**c, "spec": {**c["spec"], "dim": 2**50}}).encode(), "makes it 1125899906842624"),
        (
            lambda c: json.dumps({**c, "spec": {**c["spec"], "norm": None}}).encode(),
            "not those of the spec beside them",
        ),
    ],
)
def test_a_configuration_that_is_none_is_refused(config, words, folder):
    rewrite(folder, config=config)
    with pytest.raises(core.AnyformerError) as caught:
        af.from_pretrained(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (lambda data: data[:-5], "cannot read .*model.safetensors"),
        (lambda data: b"", "cannot read .*model.safetensors"),
        (lambda data: b"\xff" * 8 + data, "cannot read .*model.safetensors"),
        (lambda data: save({}), "are not those of the spec beside them: embed.prefix"),
        (lambda data: save({**load(data), "more": torch.zeros(1)}), "are not those of the spec beside them: more"),
        (
            lambda data: save({**load(data), "norm.bias": torch.zeros(1)}),
            "are not those of the spec beside them: norm.bias",
        ),
    ],
)
def test_weights_that_are_none_are_refused(weights, words, folder):
    rewrite(folder, weights=weights)
    with pytest.raises(core.AnyformerError, match=words):
        af.from_pretrained(folder)


def test_a_spec_too_long_to_be_read_back_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(serial, "MAX_BYTES", 1000)
    with pytest.raises(core.UsageError, match="the configuration of a model may be at most 1000 bytes long"):
        af.create_model("vit_micro").save_pretrained(tmp_path / "long")
    assert not (tmp_path / "long").exists()


def test_pretrained_takes_weights_from_a_folder(folder):
    model = af.create_model("vit_micro", num_classes=3, pretrained=folder)
    assert same(model.state_dict(), af.from_pretrained(folder).state_dict())
    with pytest.raises(
        core.UsageError, match=r"the folder's model is another one; they differ in head\.linear\.weight"
    ):
        af.create_model("vit_micro", num_classes=4, pretrained=folder)
    with pytest.raises(core.UsageError, match=r"the folder's model is another one; they differ in "):
        af.create_model("swin_micro", pretrained=str(folder))
    with pytest.raises(core.UsageError, match="vit_micro: there is no hub copy of these weights"):
        af.create_model("vit_micro", pretrained=True)


def test_names_and_fields_are_listed():
    names = af.list_models()
    assert sorted(names) == sorted(name for system in registry.systems().values() for name in system.names)
    assert len(names) == len(set(names))
    assert af.list_models("*next_micro") == ["convnext_micro", "edgenext_micro"]
    fields = {field: af.list_models(field=field) for field in ("vision", "language", "references", "survey")}
    assert sorted(name for listed in fields.values() for name in listed) == sorted(names)
    assert "vit_micro" in fields["vision"]
    assert "mamba_130m" in fields["language"]
    assert "llama_micro" in fields["references"]


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("vit_mirco", {}, "no model is named 'vit_mirco'; did you mean vit_micro"),
        ("vit_micro", {"num_clases": 3}, "vit_micro: there is no 'num_clases'; did you mean num_classes"),
        ("vit_micro", {"num_classes": "3"}, "vit_micro: num_classes: expected a whole number, got '3'"),
        ("vit_micro", {"num_classes": -1}, "the size of axis 'num_classes' is -1"),
        ("vit_micro", {"img_size": "big"}, "vit_micro: img_size: expected "),
        ("vit_micro", {"img_size": (8, 8, 8)}, "vit_micro: img_size: expected 2 values, got 3"),
        ("vit_micro", {"img_size": (0, 8)}, "a size is one positive whole number or two, height and width, not (0, 8)"),
        ("vit_micro", {"img_size": -8}, "a size is one positive whole number or two, height and width, not -8"),
        ("swin_micro", {"patch_size": 0}, "swin_micro: these sizes do not go together (integer division or modulo"),
        ("convnext_micro", {"drop_path_rate": 1.0}, "a rate is at least 0 and below 1, not 1.0"),
        ("convnext_micro", {"drop_path_rate": float("nan")}, "drop_path_rate: expected a number, got nan"),
    ],
)
def test_what_cannot_be_created_is_named(name, options, sentence):
    with pytest.raises(core.UsageError) as caught:
        af.create_model(name, **options)
    assert sentence in str(caught.value)


def test_the_data_config_says_what_the_model_was_made_for():
    assert af.create_model("vit_micro").data_config["size"] == [32, 32]
    config = af.create_model("vit_micro", img_size=(8, 12), in_chans=1).data_config
    assert (config["size"], config["channels"], config["mean"], config["std"]) == ([8, 12], 1, [0.5], [0.5])
    grey = af.create_model("convnext_micro", in_chans=1).data_config
    assert grey["mean"] == [pytest.approx((0.485 + 0.456 + 0.406) / 3)]
    assert len(af.create_model("convnext_micro", in_chans=4).data_config["std"]) == 4
