"""Kernels in C++ are compiled once, found again, and never missed: where anything fails, there is a reason, not an error."""

import ctypes
import shutil

import pytest
import torch

from anyformer.ops import extension

needs_compiler = pytest.mark.skipif(
    not (shutil.which("ninja") and shutil.which("c++")), reason="this machine has no ninja or no compiler"
)
SOURCE = 'extern "C" void twice(double* x) { *x *= 2; }'


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Puts sources where those of the package would be, and their results into a cache of the test's own."""
    monkeypatch.setattr(extension, "__file__", str(tmp_path / "extension.py"))
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ANYFORMER_COMPILE", raising=False)
    monkeypatch.setattr(extension, "_reasons", {})
    extension._loaded.cache_clear()
    yield lambda name, source: (tmp_path / f"{name}.cpp").write_text(source)
    extension._loaded.cache_clear()


def never(*_):
    raise AssertionError("compiled again")


@needs_compiler
def test_compiled_once_and_found_again(write, tmp_path, monkeypatch):
    write("first_of_two", SOURCE)
    for _ in range(2):
        library = extension.library("first_of_two")
        assert library is not None, extension.reason("first_of_two")
        number = torch.tensor(21.0, dtype=torch.float64)
        library.twice(*extension.addresses(number))
        assert number == 42
        extension._loaded.cache_clear()
        monkeypatch.setattr(extension, "_compile", never)
    assert extension.reason("first_of_two") is None
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".so"]  # no lock, no half file
    write("first_of_two", SOURCE.replace("2", "3"))
    assert extension.library("first_of_two") is None
    assert extension.reason("first_of_two") == "AssertionError: compiled again"


@needs_compiler
def test_what_does_not_compile_has_a_reason(write):
    write("wrong", "this is no C++")
    assert extension.library("wrong") is None
    assert "wrong" in extension.reason("wrong")


def test_without_a_compiler(write, monkeypatch, tmp_path):
    write("lonely", SOURCE)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert extension.library("lonely") is None
    assert extension.reason("lonely")


def test_without_a_folder_to_write_to(write, monkeypatch, tmp_path):
    (tmp_path / "a_file").touch()
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "a_file" / "cache"))
    write("homeless", SOURCE)
    assert extension.library("homeless") is None
    assert "a_file" in extension.reason("homeless")


def test_switched_off(write, monkeypatch):
    write("idle", SOURCE)
    monkeypatch.setattr(extension, "_compile", never)
    with extension.without():
        assert extension.library("idle") is None
        assert "switched off" in extension.reason("idle")
    assert extension.reason("idle") is None
    monkeypatch.setenv("ANYFORMER_COMPILE", "0")
    assert extension.library("idle") is None
    assert "switched off" in extension.reason("idle")


@needs_compiler
def test_the_packages_own_kernels_compile(monkeypatch):
    monkeypatch.delenv("ANYFORMER_COMPILE", raising=False)  # which whoever runs the tests may have set
    monkeypatch.setattr(extension, "_reasons", {})
    extension._loaded.cache_clear()
    for path in extension.Path(extension.__file__).parent.glob("*.cpp"):
        assert isinstance(extension.library(path.stem), ctypes.CDLL), extension.reason(path.stem)
