"""The kernel table: measured once, remembered for the machine, harmless when its file is."""

import json

import pytest
import torch

from anyformer.core.errors import UsageError
from anyformer.ops import kernels


class Workbench:
    """Calls that take the seconds they are told to, by a clock of their own."""

    def __init__(self, **seconds):
        self.now = 0.0
        self.seconds = {name: iter(values) if isinstance(values, list) else None for name, values in seconds.items()}
        self.fixed = seconds
        self.probes = 0

    def clock(self):
        return self.now

    def work(self, name):
        series = self.seconds[name]
        self.now += self.fixed[name] if series is None else next(series)

    def contestants(self, operation="", size=""):
        self.probes += 1
        return {name: lambda name=name: self.work(name) for name in self.seconds}


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty table kept in a folder that does not exist yet."""
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "new" / "cache"))
    monkeypatch.setattr(kernels, "_tables", {})
    return tmp_path / "new" / "cache" / "kernels.json"


@pytest.mark.parametrize(
    ("mkl", "onednn", "expected"), [(1.0, 0.5, "onednn"), (1.0, 0.97, "mkl"), (1.0, 1.0, "mkl"), (0.5, 1.0, "mkl")]
)
def test_the_incumbent_stays_unless_clearly_beaten(mkl, onednn, expected):
    bench = Workbench(mkl=mkl, onednn=onednn)
    assert kernels.fastest(bench.contestants(), bench.clock) == (expected, True)


def test_the_shortest_call_decides_and_a_disturbed_probe_is_told():
    disturbed = [9.0, 5.0, 1.0, 7.0, 8.0, 6.0, 9.0, 3.0]
    bench = Workbench(mkl=2.0, onednn=disturbed)
    assert kernels.fastest(bench.contestants(), bench.clock) == ("onednn", False)


def test_rounds_fill_the_time():
    bench = Workbench(mkl=0.0001, onednn=0.0001)
    kernels.fastest(bench.contestants(), bench.clock)
    assert bench.now == pytest.approx(kernels.SECONDS, rel=0.1)


def count(monkeypatch, kernel, repeatable=True):
    calls = []
    monkeypatch.setattr(kernels, "fastest", lambda contestants: calls.append(1) or (kernel, repeatable))
    return calls


def test_a_result_is_measured_once_and_remembered(fresh, monkeypatch):
    probes = count(monkeypatch, "onednn")
    bench = Workbench(mkl=1.0)
    for _ in range(2):
        assert kernels.choose("linear", "large", bench.contestants) == "onednn"
    assert kernels.table() == {("linear", "cpu", "float32", "large"): "onednn"}
    monkeypatch.setattr(kernels, "_tables", {})  # as in another process
    assert kernels.choose("linear", "large", bench.contestants) == "onednn"
    assert len(probes) == 1
    assert list(fresh.parent.iterdir()) == [fresh]


def test_the_table_is_one_for_each_operation_size_and_number_of_threads(fresh, monkeypatch):
    probes = count(monkeypatch, "mkl")
    bench = Workbench(mkl=1.0)
    kernels.choose("linear", "large", bench.contestants)
    kernels.choose("linear", "small", bench.contestants)
    kernels.choose("linear gelu", "small", bench.contestants)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    kernels.choose("linear", "large", bench.contestants)
    assert len(probes) == 4
    assert sorted(len(entries) for entries in json.loads(fresh.read_text()).values()) == [1, 3]


def test_a_disturbed_result_is_not_kept_in_the_file(fresh, monkeypatch):
    count(monkeypatch, "onednn", repeatable=False)
    assert kernels.choose("linear", "large", Workbench(mkl=1.0).contestants) == "onednn"
    assert not fresh.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"a": 3}', b'{"MACHINE": {"linear/cpu/float32/large": "cuda", "x": "mkl"}}'],
)
def test_a_broken_file_costs_a_probe_and_is_mended(fresh, monkeypatch, content):
    fresh.parent.mkdir(parents=True)
    machine = kernels._machine(torch.get_num_threads())
    fresh.write_bytes(content.replace(b"MACHINE", machine.encode()))
    probes = count(monkeypatch, "mkl")
    assert kernels.choose("linear", "large", Workbench(mkl=1.0).contestants) == "mkl"
    assert len(probes) == 1
    assert json.loads(fresh.read_text())[machine]["linear/cpu/float32/large"] == "mkl"


def test_a_folder_that_cannot_be_written_is_harmless(fresh, monkeypatch):
    fresh.parent.parent.write_text("a file where the folder should be")
    count(monkeypatch, "mkl")
    assert kernels.choose("linear", "large", Workbench(mkl=1.0).contestants) == "mkl"


def test_the_default_place(monkeypatch):
    monkeypatch.delenv("ANYFORMER_CACHE")
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(kernels.cache_file()) == "/somewhere/.cache/anyformer/kernels.json"


def test_forcing_a_kernel(fresh):
    bench = Workbench(mkl=1.0)
    with kernels.force("mkl"):
        with kernels.force("onednn"):
            assert kernels.choose("linear", "large", bench.contestants) == "onednn"
        assert kernels.choose("linear", "large", bench.contestants) == "mkl"
    assert bench.probes == 0
    with pytest.raises(UsageError, match=r"no kernel 'onedn'.*did you mean onednn"), kernels.force("onedn"):
        pass
