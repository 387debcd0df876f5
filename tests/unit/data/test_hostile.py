"""Every source of a hostile corpus gives one sentence with the remedy, in little time and memory, or is read rightly."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from .hostile import Case, write_folders
from .hostile_tables import write_archives, write_tables

MEMORY = 512 * 2**20  # of addresses that a source may take beyond what the imports did
RESIDENT = 300 * 2**20  # of memory that the worst source may take
SECONDS = 10  # that a source may take

# Reads every source with an alarm for hangs and a limit on memory, and writes what came of it, one line each.
CHILD = """
import json, resource, signal, sys, traceback
from pathlib import Path
import numpy as np
from PIL import Image
import pyarrow.parquet
from anyformer.core.errors import UsageError
from anyformer.data.images import load

def hang(*_):
    raise BaseException("hang")

signal.signal(signal.SIGALRM, hang)
used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (used + {memory}, used + {memory}))
for line in Path(sys.argv[1]).read_text().splitlines():
    case = json.loads(line)
    signal.alarm({seconds})
    try:
        data = load(case["source"], **case["options"])
        result = ["read", f"{{data.kind}} {{tuple(data.images.shape)}}"]
    except UsageError as error:
        result = ["refused", str(error)]
    except BaseException:
        result = ["failed", traceback.format_exc()]
    signal.alarm(0)
    print(json.dumps(result), flush=True)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps(["grown", 1024 * (peak - before)]))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Case, str, str]]:
    """Every case with what came of it."""
    cases = []
    for write in (write_folders, write_tables, write_archives):
        folder = tmp_path_factory.mktemp(write.__name__)
        cases += list(write(folder))
    outside = tmp_path_factory.mktemp("outside")
    listing = outside / "cases.jsonl"
    listing.write_text("".join(json.dumps(asdict(case)) + "\n" for case in cases))
    code = CHILD.format(memory=MEMORY, seconds=SECONDS)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(listing)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=outside,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert list(outside.iterdir()) == [listing]  # nothing was unpacked or run
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert results.pop()[1] < RESIDENT
    return [(case, *result) for case, result in zip(cases, results, strict=True)]


def test_the_corpus_is_large(corpus):
    assert sum(case.outcome == "refused" for case, _, _ in corpus) >= 300
    assert sum(case.outcome == "read" for case, _, _ in corpus) >= 20
    assert len({case.source for case, _, _ in corpus}) >= 400


def test_nothing_fails_hangs_or_takes_all_memory(corpus):
    assert [(case.source, text) for case, outcome, text in corpus if outcome == "failed"] == []


def test_what_is_bad_is_refused_and_what_is_sound_is_read(corpus):
    wrong = [(case, outcome, text) for case, outcome, text in corpus if case.outcome not in ("either", outcome)]
    assert wrong == []


def test_every_refusal_is_one_sentence_that_names_the_file_the_fault_and_the_remedy(corpus):
    for case, outcome, text in corpus:
        if outcome != "refused":
            continue
        assert text.isprintable(), (case, text)
        assert len(text) < 2000 + len(case.source), (case, text)
        named = Path(case.source).name.replace("\0", r"\x00")
        assert named in text or case.options, (case, text)
        assert re.search(case.says, text), (case, text)
        assert re.search(r"[;:,] .*\b\w+", text.split(named)[-1]), (case, text)


def test_what_was_read_has_the_right_form(corpus):
    for case, outcome, text in corpus:
        if outcome == "read":
            assert re.fullmatch(r"(classes|multilabel|regression) \(\d+, [13], \d+, \d+\)", text), (case, text)
