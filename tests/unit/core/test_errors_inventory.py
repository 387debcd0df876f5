"""The inventory of raised errors sees what no test reaches, and nothing else."""

import importlib.util
import sys

import pytest

from ...raises import inventory, main, record, unreached

SOURCE = '''"""A module."""


class OddError(Exception):
    pass


def reached(value):
    if value:
        raise OddError(
            f"{value} is odd"
        )
    raise ValueError("Python's own")


def refusal(value):
    return UsageError(value)


def helped(value):
    raise refusal(value)


def never():
    raise OddError("nobody comes here")


class UsageError(OddError):
    pass
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of one module, whose errors are noted in a file."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "module.py").write_text(SOURCE)
    specification = importlib.util.spec_from_file_location("odd_module", folder / "module.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "odd_module", module)
    specification.loader.exec_module(module)
    record(module.OddError, tmp_path / "noted", folder)
    return folder, module, tmp_path / "noted"


def test_every_place_that_makes_an_error_is_found(package):
    folder, _, _ = package
    assert [(name, first, last) for name, first, last, _ in inventory(folder)] == [
        ("module.py", 10, 12),
        ("module.py", 17, 17),
        ("module.py", 21, 21),
        ("module.py", 25, 25),
    ]


def test_what_no_test_reached_is_listed(package):
    folder, module, noted = package
    for call in (module.reached, module.reached, module.helped):
        with pytest.raises(module.OddError):
            call(1)
    lines = noted.read_text().split()
    assert len(lines) == len(set(lines)), "each place is noted once"
    assert unreached(set(lines), folder) == ['module.py:25: raise OddError("nobody comes here")']


def test_an_error_that_is_made_by_another_is_reached_where_it_is_raised(package):
    folder, module, noted = package
    module.refusal(1)
    assert [line.partition(": ")[2] for line in unreached(set(noted.read_text().split()), folder)] == [
        'raise OddError( f"{value} is odd" )',
        "raise refusal(value)",
        'raise OddError("nobody comes here")',
    ]


def test_the_command_fails_where_something_is_missing(tmp_path, capsys):
    (tmp_path / "noted").write_text("")
    assert main([str(tmp_path / "noted")]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("0 of ")
    (tmp_path / "noted").write_text("\n".join(f"{name}:{first}" for name, first, _, _ in inventory()))
    assert main([str(tmp_path / "noted")]) == 0
