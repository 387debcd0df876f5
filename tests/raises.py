"""Which `raise` of an error for users no test has reached.

``pytest --raises FILE`` notes in FILE from where errors for users were made; ``python tests/raises.py FILE`` lists the
`raise` statements of the package that are not among them, and exits with 1 where there are any. FILE is added to, so that
a suite may run in parts; the processes that tests start note in it too.
"""

import ast
import builtins
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "anyformer"
NAMES = ("AnyformerError", "UsageError")


def inventory(package: Path = PACKAGE) -> Iterator[tuple[str, int, int, str]]:
    """File (relative to the package), first line, last line and text of every place that makes an error for users.

    That is a `raise` of what is not Python's own, and a call of an error's name that is raised elsewhere.
    """
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        nodes = list(ast.walk(ast.parse(text)))
        raised = [n for n in nodes if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call) and _ours(n.exc)]
        inside = {id(node.exc) for node in raised}
        made = [n for n in nodes if isinstance(n, ast.Call) and id(n) not in inside and _name(n) in NAMES]
        for node in sorted([*raised, *made], key=lambda node: node.lineno):
            source = ast.get_source_segment(text, node) or ""
            yield path.relative_to(package).as_posix(), node.lineno, node.end_lineno or 0, " ".join(source.split())


def _ours(call: ast.Call) -> bool:
    return not hasattr(builtins, _name(call))


def _name(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def places(frame: FrameType | None, package: Path = PACKAGE) -> Iterator[str]:
    """``file:line`` of a frame and of those that called it, within the package: a function may make what another raises."""
    root = f"{package}/"
    while frame is not None:
        if frame.f_code.co_filename.startswith(root):
            yield f"{frame.f_code.co_filename.removeprefix(root)}:{frame.f_lineno}"
        frame = frame.f_back


def record(kind: type[Exception], target: Path, package: Path = PACKAGE) -> None:
    """Have every error of a kind, and of those made from it, note in a file where it is made."""
    noted: set[str] = set()
    plain, target_name = kind.__init__, str(target)
    # bound now: tests put failing functions in the places of those that open and write
    system_open, system_write, system_close = os.open, os.write, os.close

    def append(name: str, line: bytes) -> None:
        descriptor = system_open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            system_write(descriptor, line)
        finally:
            system_close(descriptor)

    def noting(self: Exception, *arguments: object, **named: object) -> None:
        plain(self, *arguments, **named)
        new = set(places(sys._getframe(1), package)) - noted
        with suppress(OSError):  # where a test leaves its process no room to write: another test may come here too
            if new:
                append(target_name, "".join(f"{place}\n" for place in sorted(new)).encode())
                noted.update(new)

    kind.__init__ = noting  # type: ignore[method-assign]


def record_everywhere(target: Path) -> None:
    """Note errors for users of this process and, by a module that Python imports as it starts, of all that it starts."""
    folder = Path(tempfile.mkdtemp(prefix="anyformer-raises-"))
    code = f"import pathlib, runpy\nrunpy.run_path({__file__!r})['record_all'](pathlib.Path({str(target)!r}))\n"
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    record_all(target)


def record_all(target: Path) -> None:
    """Note every kind of error that the package raises."""
    import typer
    import yaml

    from anyformer.core.errors import AnyformerError

    for kind in (AnyformerError, typer.BadParameter, yaml.YAMLError):
        record(kind, target)


def unreached(noted: set[str], package: Path = PACKAGE) -> list[str]:
    """The `raise` statements that are not among the noted places."""
    return [
        f"{name}:{first}: {text}"
        for name, first, last, text in inventory(package)
        if noted.isdisjoint(f"{name}:{line}" for line in range(first, last + 1))
    ]


def main(arguments: list[str]) -> int:
    """Print what was not reached; the exit code says whether that is nothing."""
    noted = set(Path(arguments[0]).read_text(encoding="utf-8").split())
    missing, whole = unreached(noted), len(list(inventory()))
    print("\n".join([*missing, f"{whole - len(missing)} of {whole} `raise` statements reached"]))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
