"""Training and export give the same files in every process, whatever order Python's sets happen to have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("one_run.py")
FILES = {"config.json", "manifest.json", "model.onnx", "model.safetensors"}


def surroundings(seed: int) -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": str(1000 + seed)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = [tmp_path_factory.mktemp(f"run-{seed}") for seed in (0, 1, 2)]
    processes = [
        subprocess.Popen([sys.executable, str(PROGRAM), str(folder)], env=surroundings(seed))
        for seed, folder in enumerate(made)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]
    return made


@pytest.mark.parametrize("file", sorted(FILES))
def test_three_runs_give_the_same_bits(folders: list[Path], file: str) -> None:
    first, *others = [(folder / file).read_bytes() for folder in folders]
    assert [other == first for other in others] == [True, True]


def test_these_are_all_files(folders: list[Path]) -> None:
    assert [{path.name for path in folder.iterdir()} for folder in folders] == [FILES] * 3


def test_the_order_of_sets_did_differ() -> None:
    code = "print(list({'weight', 'bias', 'table', 'gamma'}))"
    orders = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            env=surroundings(seed),
            timeout=60,
        ).stdout
        for seed in (0, 1, 2)
    }
    assert len(orders) > 1
