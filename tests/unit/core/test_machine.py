"""The processor has a name, and where the system tells none, that of its architecture."""

import platform
from pathlib import Path

import pytest

from anyformer.core.machine import processor


@pytest.mark.parametrize(
    ("told", "expected"),
    [("cores : 2\nmodel name\t: Fast One\nmodel name : b\n", "Fast One"), ("", "plain"), (None, "plain")],
)
def test_the_processor_has_a_name(monkeypatch, told, expected):
    def read(self, encoding):
        if told is None:
            raise FileNotFoundError
        return told

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(platform, "processor", lambda: "plain")
    assert processor.__wrapped__() == expected
