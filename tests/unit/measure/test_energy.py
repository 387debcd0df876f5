"""Energy from counters that the test writes, in the layout of Linux's powercap; no machine has to have any."""

import pytest

from anyformer.measure.energy import Meter

FULL = 262_143_328_850  # microjoules at which a counter starts anew: a figure of Intel's


@pytest.fixture
def machine(tmp_path):
    """A machine whose counters are set by the name of their folder."""

    def write(folder, micro, name="package-0"):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        for file, content in (("name", name), ("energy_uj", micro), ("max_energy_range_uj", FULL)):
            (place / file).write_text(f"{content}\n")

    write.root = tmp_path
    return write


def test_energy_is_that_of_all_packages_a_call(machine):
    counts = {"intel-rapl:0": 1000, "intel-rapl:1": 5000}

    def write():
        for number, (folder, count) in enumerate(counts.items()):
            machine(folder, count, f"package-{number}")

    write()
    now = iter(range(100))

    def call():
        counts["intel-rapl:0"] += 300
        counts["intel-rapl:1"] += 700
        write()

    meter = Meter(machine.root)
    assert meter.reason == ""
    assert meter.millijoules(call, seconds=5, clock=lambda: next(now)) == pytest.approx(1.0)
    assert counts["intel-rapl:0"] == 1000 + 300 * 5


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:0:2", "dram"),
        ("intel-rapl:1", "psys"),
        ("intel-rapl-mmio:0", "package-0"),
    ],
)
def test_what_a_package_counts_already_is_not_counted_twice(machine, folder, name):
    machine("intel-rapl:0", 0)
    machine(folder, 0, name)

    def call():
        machine("intel-rapl:0", 2000)
        machine(folder, 9000, name)

    assert Meter(machine.root).millijoules(call, seconds=0) == pytest.approx(2.0)


def test_a_counter_that_starts_anew_is_followed(machine):
    machine("intel-rapl:0", FULL - 1000)
    assert Meter(machine.root).millijoules(lambda: machine("intel-rapl:0", 3000), seconds=0) == pytest.approx(4.0)


def test_a_machine_without_counters_says_so(machine):
    meter = Meter(machine.root / "nowhere")
    assert meter.reason == "not reported by this machine"
    assert meter.millijoules(int) is None


@pytest.mark.parametrize("file", ["name", "energy_uj"])
def test_counters_that_may_not_be_read_say_so(machine, file):
    machine("intel-rapl:0", 1)
    (machine.root / "intel-rapl:0" / file).unlink()
    (machine.root / "intel-rapl:0" / file).mkdir()  # unreadable for everyone, root too
    meter = Meter(machine.root)
    assert meter.reason == "reported by this machine, but not to this user (Is a directory)"
    assert meter.millijoules(int) is None
