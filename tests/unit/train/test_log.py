"""The log keeps whole lines and forgets what a resumed run writes again."""

import json

import pytest

from anyformer.core.errors import AnyformerError
from anyformer.train.log import Log


def test_lines_are_written_and_read(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    assert log.read() == []
    for step in (1, 2, 3):
        log.write({"step": step, "loss": step / 3})
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == log.read()
    log.forget_after(2)
    assert [record["step"] for record in log.read()] == [1, 2]
    log.forget_after(0)
    assert log.path.read_bytes() == b""


def test_half_a_line_is_dropped(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.write({"step": 1})
    whole = log.path.read_bytes()
    for torn in (b'{"step": 2', b'{"step": 2}', b"{\n", b"[]\n", b'{"step": "x"}\n'):
        log.path.write_bytes(whole + torn)
        log.forget_after(5)
        assert log.path.read_bytes() == whole


def test_no_file_is_made_for_nothing(tmp_path):
    Log(tmp_path / "log.jsonl").forget_after(3)
    assert list(tmp_path.iterdir()) == []


def test_failures_are_told(tmp_path):
    with pytest.raises(AnyformerError, match=r"cannot write .*nowhere"):
        Log(tmp_path / "nowhere" / "log").write({"step": 1})
    with pytest.raises(AnyformerError, match="cannot read"):
        Log(tmp_path).read()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AnyformerError, match="cannot read"):
        Log(tmp_path / "binary").read()
