"""``anyformer show``: the unrolled tree of a model, every node with its numbers, its file and its line."""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from anyformer.core import Config, resolve, serial
from anyformer.core.binding import AxisTable, axis_table
from anyformer.core.config import children, fields
from anyformer.core.files import read_manifest
from anyformer.core.registry import system_of

WIDE = 400  # columns in a file or a pipe, where nothing is to be cut off


def print_tree(name: str, as_json: bool) -> None:
    """Print the spec of a catalogue model or of a saved folder."""
    spec = _spec(name)
    if as_json:
        print(json.dumps(serial.to_data(spec), indent=1))
        return
    table = axis_table(spec)
    tree = Tree(f"[bold]{escape(name)}[/bold]")
    _grow(tree, spec, "", table)
    Console(width=None if sys.stdout.isatty() else WIDE).print(tree)


def _spec(name: str) -> Config:
    folder = Path(name)
    if folder.is_dir():
        config = json.loads(read_manifest(folder, ("config.json",))["config.json"])
        return resolve(serial.from_data(config["spec"]))
    return resolve(system_of(name).pattern(name))


def _grow(tree: Tree, config: Config, path: str, table: AxisTable) -> None:
    """Add a node's numbers, tensors and children; equal neighbours are drawn once, with their count."""
    for tensor, dimensions in config.part.axes.items():
        full = f"{path}.{tensor}" if path else tensor
        if "." not in tensor and full in table.tensors:
            tree.add(f"[dim]{tensor} {table.shape(full)}  {escape(dimensions)}[/dim]")
    nodes = list(children(config))
    index = 0
    while index < len(nodes):
        name, child = nodes[index]
        last = index
        while (
            last + 1 < len(nodes) and nodes[last + 1][1] == child and _stem(nodes[last + 1][0]) == _stem(name) != name
        ):
            last += 1
        label = name if last == index else f"{name}..{nodes[last][0].rpartition('.')[2]}"
        branch = tree.add(f"[cyan]{label}[/cyan]  {_describe(child)}")
        _grow(branch, child, f"{path}.{name}" if path else name, table)
        index = last + 1


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _describe(config: Config) -> str:
    values: list[str] = []
    for field in fields(config):
        value: Any = getattr(config, field.name)
        if isinstance(value, bool | int | float | str):
            values.append(f"{field.name}={value}")
    part = config.part
    file = inspect.getsourcefile(part) or "?"
    where = f"{Path(file).name}:{inspect.getsourcelines(part)[1]}" if Path(file).exists() else "?"
    return f"[bold]{part.name}[/bold]({escape(', '.join(values))})  [dim]{where}[/dim]"
