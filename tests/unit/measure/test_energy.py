"""Energy from counters that the test writes; no machine has to have any."""

import pytest

from anyformer.measure.energy import Meter


def package(root, name, micro, full=1_000_000):
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{micro}\n")
    (folder / "max_energy_range_uj").write_text(f"{full}\n")


def test_energy_is_that_of_all_packages_a_call(tmp_path):
    counts = {"intel-rapl:0": 1000, "intel-rapl:1": 5000}

    def write():
        for name, count in counts.items():
            package(tmp_path, name, count % 1_000_000)

    write()
    package(tmp_path, "intel-rapl:0:0", 7)  # a part of package 0 is not counted twice
    now = iter(range(100))

    def call():
        counts["intel-rapl:0"] += 300
        counts["intel-rapl:1"] += 700
        package(tmp_path, "intel-rapl:0:0", 999)
        write()

    meter = Meter(tmp_path)
    assert meter.reason == ""
    assert meter.millijoules(call, seconds=5, clock=lambda: next(now)) == pytest.approx(1.0)


def test_a_counter_that_starts_anew_is_followed(tmp_path):
    package(tmp_path, "intel-rapl:0", 999_000)
    call = lambda: package(tmp_path, "intel-rapl:0", 3_000)  # noqa: E731
    assert Meter(tmp_path).millijoules(call, seconds=0) == pytest.approx(4.0)


def test_a_machine_without_counters_says_so(tmp_path):
    meter = Meter(tmp_path / "nowhere")
    assert meter.reason == "not reported by this machine"
    assert meter.millijoules(int) is None


def test_counters_that_may_not_be_read_say_so(tmp_path):
    package(tmp_path, "intel-rapl:0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir()  # unreadable for everyone, root too
    meter = Meter(tmp_path)
    assert meter.reason.startswith("reported by this machine, but not to this user")
    assert meter.millijoules(int) is None
