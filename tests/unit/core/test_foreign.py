"""Foreign checkpoint files: read as tensors or refused, and nothing in them is executed."""

import io
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import anyformer as af
from anyformer import core
from anyformer.core import foreign
from anyformer.core.foreign import read_tensors, tensors_in

TENSORS = {
    "weight": torch.randn(3, 4),
    "count": torch.arange(3),
    "half": torch.randn(2).bfloat16(),
    "turned": torch.randn(2, 5).T,
    "empty": torch.zeros(0, 3),
}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) and tensor.dtype == theirs[name].dtype for name, tensor in ours.items()
    )


class Canary:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("ending", ["pth", "safetensors", "npz"])
def test_a_models_weights_come_back_to_the_bit(ending, tmp_path):
    model, other = af.create_model("vit_micro", num_classes=3), af.create_model("vit_micro", num_classes=3)
    weights = af.dump_weights(model, format="official")
    path = tmp_path / f"weights.{ending}"
    match ending:
        case "pth":
            torch.save({"model": weights, "epoch": 3}, path)
        case "safetensors":
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
        case "npz":
            np.savez(path, **{name: tensor.numpy() for name, tensor in weights.items()})
    assert same(read_tensors(path), weights)
    af.load_weights(other, path, format="official")
    assert same(other.state_dict(), model.state_dict())


def test_every_kind_of_tensor_is_handed_over_by_the_process_apart(tmp_path):
    tied = torch.randn(6)
    torch.save({"state_dict": {**TENSORS, "one": tied, "two": tied, "part": tied[2:4]}}, tmp_path / "a.pth")
    read = read_tensors(tmp_path / "a.pth")
    assert same(read, {**TENSORS, "one": tied, "two": tied, "part": tied[2:4]})


def test_the_process_apart_takes_nothing_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import os; os.mkdir('executed')")
    (tmp_path / "anyformer.py").write_text("import os; os.mkdir('executed')")
    monkeypatch.chdir(tmp_path)
    torch.save(TENSORS, tmp_path / "a.pt")
    assert same(read_tensors(tmp_path / "a.pt"), TENSORS)
    assert not (tmp_path / "executed").exists()


def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path):
    path, canary = tmp_path / "a.pth", tmp_path / "canary"
    torch.save({"model": {"weight": Canary(canary)}}, path)
    with pytest.raises(core.AnyformerError, match=r"a\.pth is refused: it holds more than plain tensors"):
        read_tensors(path)
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists(), "the canary sings where it is let"


def convert(path):
    """What the process apart does, here."""
    foreign._convert(path, path.with_suffix(".safetensors"))


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [torch.save, legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: {"model": c}, lambda c: {"a": torch.zeros(1), "b": [c]}])
def test_hostile_objects_are_refused_wherever_they_lie(save, wrap, tmp_path):
    save(wrap(Canary(tmp_path / "canary")), tmp_path / "a.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        convert(tmp_path / "a.pth")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (TENSORS["weight"], "it holds no mapping of tensors"),
        ([TENSORS], "it holds no mapping of tensors"),
        ({"weight": TENSORS["weight"], "epoch": 3}, "it holds 'epoch', which are no tensors"),
        ({"model": {"a": {"b": TENSORS["weight"]}}}, "it holds 'a', which are no tensors"),
        ({3: TENSORS["weight"]}, "it holds 3, which are no tensors"),
        ({"bomb": torch.zeros(1).expand(10**12)}, "'bomb' unpacks to more than the file holds"),
        ({"bomb": torch.zeros(4).as_strided((10**6, 4), (0, 1))}, "'bomb' unpacks to more than the file holds"),
    ],
    ids=["tensor", "list", "number", "nested", "key", "expanded", "strided"],
)
def test_what_is_no_mapping_of_tensors_is_named(content, words, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(core.AnyformerError) as caught:
        convert(tmp_path / "a.pth")
    assert str(caught.value) == words


def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused(tmp_path):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "stored.pth")
    packed = zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "stored.pth") as stored, packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    with pytest.raises(core.AnyformerError, match="it unpacks to more than the file holds"):
        convert(tmp_path / "packed.pth")


def test_a_mapping_in_memory_is_held_to_the_same(tmp_path):
    assert tensors_in({"state_dict": TENSORS}, "it") == TENSORS
    assert tensors_in({"model": {"state_dict": TENSORS}}, "it") == TENSORS
    assert tensors_in({"model": TENSORS["weight"]}, "it") == {"model": TENSORS["weight"]}, "a tensor may be named so"
    with pytest.raises(core.AnyformerError, match="the mapping holds 'a', 'b', which are no tensors"):
        af.load_weights(af.create_model("vit_micro"), {"a": 1, "b": 2}, format="timm")


def whole(ending, folder):
    path = folder / f"whole.{ending}"
    match ending:
        case "safetensors":
            save_file({"a": torch.randn(50), "b": torch.ones(3)}, path)
        case "npz":
            np.savez(path, a=np.random.randn(50), b=np.ones(3))
        case "pth":
            torch.save({"a": torch.randn(50), "b": torch.ones(3)}, path)
    return path.read_bytes()


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_a_file_cut_anywhere_is_refused(ending, tmp_path):
    data = whole(ending, tmp_path)
    path = tmp_path / f"cut.{ending}"
    for length in range(0, len(data), max(1, len(data) // 60)):
        path.write_bytes(data[:length])
        with pytest.raises(core.AnyformerError, match=f"cannot read .*cut.{ending}"):
            read_tensors(path)


def test_a_pickle_cut_anywhere_is_refused(tmp_path):
    data = whole("pth", tmp_path)
    path = tmp_path / "cut.pth"
    for length in range(0, len(data), len(data) // 40):
        path.write_bytes(data[:length])
        with pytest.raises((RuntimeError, EOFError)):
            convert(path)
    with pytest.raises(core.AnyformerError, match=r"cut\.pth is refused: it cannot be read"):
        read_tensors(path)


@settings(max_examples=100)
@given(st.data())
def test_a_changed_byte_is_read_or_refused(tmp_path_factory, choice):
    folder = tmp_path_factory.mktemp("changed")
    for ending in ("safetensors", "npz"):
        data = bytearray(whole(ending, folder))
        data[choice.draw(st.integers(0, len(data) - 1))] ^= choice.draw(st.integers(1, 255))
        (folder / f"changed.{ending}").write_bytes(data)
        try:
            tensors = read_tensors(folder / f"changed.{ending}")
        except core.AnyformerError:
            continue
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


def test_archives_of_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([Canary(tmp_path / "canary")], dtype=object))
    with pytest.raises(core.AnyformerError, match=r"cannot read .*a\.npz"):
        read_tensors(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", a=np.array(["words"]))
    with pytest.raises(core.AnyformerError, match=r"cannot read .*b\.npz"):
        read_tensors(tmp_path / "b.npz")
    assert not (tmp_path / "canary").exists()


def test_a_header_that_promises_more_than_the_file_has_is_refused(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[4000000000],"data_offsets":[0,16000000000]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(core.AnyformerError, match="cannot read"):
        read_tensors(tmp_path / "a.safetensors")
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f4", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", array.getvalue())
    with pytest.raises(core.AnyformerError, match="cannot read"):
        read_tensors(tmp_path / "a.npz")


def test_a_file_that_is_not_what_its_ending_says_is_refused(tmp_path):
    data = {ending: whole(ending, tmp_path) for ending in ("safetensors", "npz")}
    (tmp_path / "a.npz").write_bytes(data["safetensors"])
    (tmp_path / "a.safetensors").write_bytes(data["npz"])
    for name in ("a.npz", "a.safetensors"):
        with pytest.raises(core.AnyformerError, match="cannot read"):
            read_tensors(tmp_path / name)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(core.UsageError, match="there is no file"):
        read_tensors(tmp_path / "a.pth")
    with pytest.raises(core.UsageError, match="there is no file"):
        read_tensors(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(core.UsageError, match=r"known endings are \.safetensors, \.npz, \.pth, \.pt and \.bin"):
        read_tensors(tmp_path / "a.onnx")


def test_an_old_torch_does_not_read_pickles(tmp_path, monkeypatch):
    torch.save(TENSORS, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1+cpu"))
    with pytest.raises(core.UsageError, match=r"reading pickles needs torch 2\.10"):
        read_tensors(tmp_path / "a.pth")


CUT_OFF = """
import os, socket, subprocess, sys
from anyformer.core import foreign

sys.addaudithook(foreign._refuse)
for attempt in (
    lambda: socket.socket(),
    lambda: socket.getaddrinfo("localhost", 80),
    lambda: os.system("true"),
    lambda: subprocess.run(["true"]),
    lambda: os.posix_spawn("/bin/true", ["true"], {}),
    lambda: os.fork(),
):
    try:
        attempt()
    except foreign.AnyformerError as error:
        print(error)
"""


def test_the_process_apart_is_cut_off():
    done = subprocess.run([sys.executable, "-c", CUT_OFF], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == [
        "it tried socket.__new__",
        "it tried socket.getaddrinfo",
        "it tried os.system",
        "it tried subprocess.Popen",
        "it tried os.posix_spawn",
        "it tried os.fork",
        "",
    ]
