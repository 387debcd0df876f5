import subprocess
import sys

from anyformer.verify import index


def test_reading_needs_no_torch():
    code = (
        "import sys; from anyformer.verify import index; rows = index.read(); print(len(rows), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [str(len(index.read())), "False"]


def test_writing_gives_what_reading_reads(tmp_path, monkeypatch):
    row = {"name": "a é b", "levels": ["built"], "licence": None}
    monkeypatch.setattr(index, "rows", lambda: [row, row])
    monkeypatch.setattr(index, "INDEX", tmp_path / "index.json")
    index.write(index.INDEX)
    assert index.read() == [row, row]
    assert len(index.INDEX.read_text(encoding="utf-8").splitlines()) == 4
