"""What a call costs in energy, where the machine reports it: the counters of Intel's and AMD's processors under Linux."""

import time
from pathlib import Path

from anyformer.measure.latency import Call, Clock

POWERCAP = Path("/sys/class/powercap")
SECONDS = 1.0  # the counters move every millisecond: long against that


class Meter:
    """The counters of all processor packages, in microjoules; each starts anew when it is full.

    Attributes:
        reason: Why there is nothing to read, "" where there is.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        try:
            self.packages = sorted(
                path for path in root.glob("intel-rapl:*") if (path / "name").read_text().startswith("package-")
            )  # the others are parts of a package, or the whole machine, which the packages are parts of
            self.reason = "" if self.packages else "not reported by this machine"
            self.read()
        except OSError as error:
            self.reason = f"reported by this machine, but not to this user ({error.strerror})"

    def read(self) -> list[tuple[int, int]]:
        """Count and capacity of each package."""
        return [
            (int((package / "energy_uj").read_text()), int((package / "max_energy_range_uj").read_text()))
            for package in self.packages
        ]

    def millijoules(self, call: Call, *, seconds: float = SECONDS, clock: Clock = time.perf_counter) -> float | None:
        """What one call takes of all packages, idle power and everything else that runs included.

        Args:
            call: What is measured, over and over.
            seconds: For how long; once at least.
            clock: Tells the time in seconds.

        Returns:
            None where the machine does not report it.
        """
        if self.reason:
            return None
        calls, before, start = 0, self.read(), clock()
        while not calls or clock() - start < seconds:
            call()
            calls += 1
        used = [(end - begin) % full for (begin, full), (end, _) in zip(before, self.read(), strict=True)]
        return sum(used) / calls / 1000
