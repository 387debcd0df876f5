"""Ctrl-C and SIGTERM put off until the work at hand is safe."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Deferred:
    """Whether a signal has come."""

    received: int | None = None

    def deliver(self) -> None:
        """Ends the program's work as the signal would have: nothing where none has come.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            SystemExit: SIGTERM, with the code 143 that a shell expects.
        """
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def deferred_signals() -> Iterator[Deferred]:
    """Within the block the first SIGINT or SIGTERM is only noted; a second one acts at once.

    Outside of the main thread, where Python delivers no signals, the block changes nothing.
    """
    deferred = Deferred()
    if threading.current_thread() is not threading.main_thread():
        yield deferred
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def put_back() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number: int, _: FrameType | None) -> None:
        deferred.received = number
        put_back()

    for number in previous:
        signal.signal(number, note)
    try:
        yield deferred
    finally:
        put_back()
