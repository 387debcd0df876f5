"""The rules of the repository that no linter knows. Each is shown to fail on a piece of text that breaks it."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "anyformer"
README = (ROOT / "README.md").read_text(encoding="utf-8")

# What could run code out of a file, or import what a file names. A dotted name stands for all below it.
UNSAFE = {
    *("pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle", "runpy"),
    *("torch.load", "torch.jit.load", "torch.export.load", "torch.package", "torch.hub"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all"),
    *("yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader"),
    *("eval", "exec", "compile", "__import__", "importlib.import_module", "importlib.util", "pkgutil.resolve_name"),
}
NETWORK = {
    *("socket", "ssl", "http", "urllib.request", "urllib3", "requests", "httpx", "aiohttp", "ftplib", "smtplib"),
    *("socketserver", "xmlrpc", "asyncio.open_connection", "websockets", "huggingface_hub"),
}
# (file, name) -> why this use is safe. An entry that is no longer needed fails too.
ALLOWED = {
    ("__init__.py", "importlib.import_module"): "names of the public face, from a table in that file",
    ("core/__init__.py", "importlib.import_module"): "one constant module, whose table of names is checked",
    ("core/__init__.py", "importlib.util"): "whether a name is one of our own submodules",
    ("core/foreign.py", "torch.load"): "the one reader of foreign weights; unsafe_calls holds it to weights_only=True",
    ("core/serial.py", "yaml.load"): "with a subclass of SafeLoader that also refuses repeated keys and aliases",
    ("core/registry.py", "importlib.import_module"): "names that walking our own package found",
    (
        "verify/subjects.py",
        "importlib.import_module",
    ): "the slug of a system of the registry, in one package of our own",
    ("verify/claim.py", "importlib.import_module"): "the slug of a system of the registry, in one package of our own",
    ("verify/oracle_of/__init__.py", "importlib.import_module"): "one constant module of transformers",
}
VAGUE = {"utils", "util", "misc", "common", "helpers", "helper"}
# Folders of a machine, in pieces so that this file does not name them.
MACHINE = re.compile(r"(?<![\w.~<>{}])/(?:" + "|".join(["home", "root", "Users", "work", "workspace", "mnt"]) + r")/\w")
EXTRAS = [
    *("PIL", "jinja2", "matplotlib", "onnx", "onnxruntime", "onnxscript", "sklearn"),
    *("huggingface_hub", "openvino", "optuna", "psycopg", "pyarrow", "skimage", "sqlalchemy", "tokenizers"),
]
FOREIGN = ["timm", "torchvision", "transformers"]


def ignored() -> list[str]:
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    return [".git", *(line.strip("/") for line in lines)]


def project_files() -> Iterator[Path]:
    patterns = ignored()
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not any(fnmatch(name, pattern) for pattern in patterns)]
        yield from (Path(folder, name) for name in files if not any(fnmatch(name, pattern) for pattern in patterns))


def modules(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def names_used(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Every name of a module, a function or a class that a file imports or refers to, written out in full."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}", node
    for node in ast.walk(tree):
        path, inner = [], node
        while isinstance(inner, ast.Attribute):
            path.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            yield ".".join([known.get(inner.id, inner.id), *reversed(path)]), node


def uses(source: str, banned: set[str]) -> set[str]:
    """The banned names that a source refers to."""
    found = set()
    for name, _ in names_used(ast.parse(source)):
        parts = name.split(".")
        found |= {".".join(parts[: n + 1]) for n in range(len(parts))} & banned
    return found


def unsafe_calls(source: str) -> list[str]:
    """Calls that are safe only with the right argument: `np.load` without pickles, `torch.load` of weights alone."""
    tree = ast.parse(source)
    names = {id(node): name for name, node in names_used(tree) if isinstance(node, ast.Name | ast.Attribute)}
    found = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = names.get(id(call.func))
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name == "numpy.load" and (given.get("allow_pickle", "False") != "False" or None in given):
            found.append(ast.unparse(call))
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append(ast.unparse(call))
    return found


def run_python(code: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nothing_of_ours_runs_code_out_of_a_file():
    found = {
        (str(file.relative_to(PACKAGE)), name)
        for file in modules("src")
        for name in uses(file.read_text(encoding="utf-8"), UNSAFE)
    }
    assert found == set(ALLOWED), "a new use needs a reason in ALLOWED, and a use that is gone has to leave it"
    assert {file: calls for file in modules("src") if (calls := unsafe_calls(file.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import pickle", "pickle"),
        ("from joblib import load", "joblib"),
        ("def f():\n    import dill.source", "dill"),
        ("import torch\ntorch.load('a.pt', weights_only=True)", "torch.load"),
        ("from torch import load as read\nread('a.pt')", "torch.load"),
        ("import torch as t\nreader = t.jit.load", "torch.jit.load"),
        ("import torch.export\ntorch.export.load('a')", "torch.export.load"),
        ("import yaml\nyaml.load(text, Loader=yaml.SafeLoader)", "yaml.load"),
        ("from yaml import FullLoader", "yaml.FullLoader"),
        ("eval('1')", "eval"),
        ("run = exec", "exec"),
        ("__import__(name)", "__import__"),
        ("import importlib as i\ni.import_module(name)", "importlib.import_module"),
        ("from importlib import import_module", "importlib.import_module"),
    ],
)
def test_code_out_of_a_file_is_seen(source, name):
    assert name in uses(source, UNSAFE)


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.load('a.npy', allow_pickle=True)",
        "import numpy\nnumpy.load('a.npy', allow_pickle=flag)",
        "from numpy import load\nload('a.npy', **options)",
        "import torch\ntorch.load('a.pt')",
        "import torch\ntorch.load('a.pt', weights_only=False)",
    ],
)
def test_an_unsafe_call_is_seen(source):
    assert len(unsafe_calls(source)) == 1


def test_safe_neighbours_are_left_alone():
    source = (
        "import re, torch, numpy as np, yaml\nre.compile('a')\nmodel.eval()\ntorch.compile(model)\n"
        "np.load('a.npy')\nyaml.safe_load(text)\ntorch.load('a', weights_only=True)\nimport urllib.parse\n"
    )
    assert uses(source, UNSAFE - {"torch.load"}) == set()
    assert uses(source, NETWORK) == set()
    assert unsafe_calls(source) == []


def test_nothing_reaches_for_the_network():
    hub = ROOT / "src/anyformer/fit/pretrained.py"  # asked for by name: --weights hub:NAME
    for file in modules("src"):
        found = uses(file.read_text(encoding="utf-8"), NETWORK)
        assert found == ({"huggingface_hub"} if file == hub else set()), file


@pytest.mark.parametrize(
    "source",
    ["import requests", "import urllib.request", "from urllib import request", "def f():\n    from http import client"],
)
def test_reaching_for_the_network_is_seen(source):
    assert uses(source, NETWORK)


def too_long(text: str) -> bool:
    return len(text.splitlines()) > 400


def test_no_file_is_longer_than_can_be_read_at_once():
    assert [file for file in modules("src", "tests", "benchmarks") if too_long(file.read_text(encoding="utf-8"))] == []
    assert too_long("a\n" * 401)
    assert not too_long("a\n" * 400)


def vague(file: Path) -> bool:
    return bool(VAGUE & {part.removeprefix("_") for part in file.with_suffix("").parts})


def test_everything_is_named_by_what_it_does():
    assert [file for file in modules("src", "tests", "benchmarks") if vague(file.relative_to(ROOT))] == []
    assert vague(Path("src/anyformer/parts/_utils.py"))
    assert vague(Path("src/anyformer/common/linear.py"))
    assert not vague(Path("src/anyformer/ops/commonly_used.py"))


def test_no_file_names_a_folder_of_one_machine():
    seen = 0
    for file in project_files():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or an array
        seen += 1
        assert not MACHINE.findall(text), file
    assert seen > 20


@pytest.mark.parametrize("folder", ["home", "root", "work", "Users"])
def test_a_folder_of_one_machine_is_seen(folder):
    assert MACHINE.search(f'open("/{folder}/me/data")')
    assert not MACHINE.search(f"https://example.org/{folder}/me and team/{folder}/hours or ~/{folder}/me")


CONTRACTS = {
    "core/a.py": ("import anyformer.parts", "Imports point one way"),
    "utils/__init__.py": ("", "Imports point one way"),
    "train/a.py": ("import anyformer.data", "Packages beside each other have no cycles"),
    "systems/vision/a.py": (
        "def late():\n    import anyformer.systems.language.b",
        "Systems do not import each other",
    ),
    "parts/a.py": ("import timm", "Other libraries of models are for tests only"),
}


def broken_contracts(source: Path) -> list[str]:
    """The contracts of .importlinter that the package in a folder breaks."""
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as run; run()",
        *("--no-cache", "--no-logo", "--config", str(ROOT / ".importlinter")),
    ]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, timeout=300)
    verdicts = dict(re.findall(r"^(.+?) (KEPT|BROKEN)(?: \(.*\))?$", done.stdout, re.MULTILINE))
    assert set(verdicts) == {name for _, name in CONTRACTS.values()}, done.stdout + done.stderr
    assert done.returncode == ("BROKEN" in verdicts.values())
    return [name for name, verdict in verdicts.items() if verdict == "BROKEN"]


def test_imports_keep_the_layers():
    assert broken_contracts(ROOT / "src") == []


@pytest.mark.parametrize("file", CONTRACTS)
def test_an_import_against_the_layers_is_seen(file, tmp_path):
    names = "app fit verify systems systems/vision systems/language data train measure deploy skeletons parts ops core"
    for package in ["", *names.split()]:
        (tmp_path / "anyformer" / package).mkdir(parents=True, exist_ok=True)
        (tmp_path / "anyformer" / package / "__init__.py").touch()
    (tmp_path / "anyformer/systems/language/b.py").touch()
    (tmp_path / "anyformer/data/b.py").write_text("import anyformer.train\n")
    assert broken_contracts(tmp_path) == []
    source, contract = CONTRACTS[file]
    (tmp_path / "anyformer" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "anyformer" / file).write_text(source + "\n")
    assert broken_contracts(tmp_path) == [contract]


IMPORT_ALL = """
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({blocked!r}))
import anyformer
names = [info.name for info in pkgutil.walk_packages(anyformer.__path__, "anyformer.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_every_module_imports_without_the_extras():
    count = int(run_python(IMPORT_ALL.format(blocked=EXTRAS + FOREIGN)))
    assert count >= len([file for file in modules("src") if file.name != "__init__.py"])


def test_importing_the_package_alone_does_not_import_torch():
    probe = "import sys, {module}; print('torch' in sys.modules)"
    assert run_python(probe.format(module="anyformer")) == "False"
    assert run_python(probe.format(module="torch")) == "True"


def test_the_readme_has_the_two_commands_that_ci_runs():
    commands = [line for line in README.splitlines() if line.startswith("pip install -c constraints.txt")]
    assert commands == [
        'pip install -c constraints.txt -e ".[fit]" && anyformer fit digits --budget "latency<=2ms" --minutes 3',
        'pip install -c constraints.txt -e ".[test]" && pytest',
    ]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_every_command_of_the_readme_exists():
    verbs = sorted(set(re.findall(r"\banyformer ([a-z]\w*)", "\n".join(blocks("sh")))))
    assert "fit" in verbs
    program = Path(sys.executable).with_name("anyformer")
    for verb in verbs:
        done = subprocess.run([program, verb, "--help"], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{verb}: {done.stderr}"
    assert subprocess.run([program, "nonsense", "--help"], capture_output=True, timeout=300).returncode == 2


def test_the_python_of_the_readme_runs(tmp_path):
    for code in blocks("python"):
        run_python(f"import os; os.chdir({str(tmp_path)!r})\n{code}")
    assert len(blocks("python")) > 0


def test_every_file_that_the_readme_points_to_exists():
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    assert "docs/front.png" in linked
    assert [path for path in linked if not (ROOT / path).exists()] == []


def test_every_dependency_is_pinned_and_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {re.split(r"[\[<>=!~ ;]", line)[0] for line in required} - {"anyformer"}
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    reasons = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    assert {name for name in names if name.lower() not in {pin.lower() for pin in pinned}} == set()
    assert {name for name in names if f"| `{name}` |" not in reasons} == set()
