"""Sequence mixers on a CPU: against transformers' layers, against causal attention, and their growth with length.

``python benchmarks/sequence.py`` prints a table; ``--json`` ends with one JSON line: ``rows``, ``slopes``, and the ratios by
name (above 1 ours is faster). One layer of width 256, batch 1, float32, blocks taking turns in one process.
``--kept`` lets the C library keep freed memory
(:func:`anyformer.core.machine.keep_freed_memory`), for both sides.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor, nn

from anyformer import core
from anyformer.core.files import write_atomic
from anyformer.core.machine import keep_freed_memory, processor
from anyformer.core.pattern import parse_part
from anyformer.measure.latency import latency, ratio
from anyformer.measure.memory import growth
from anyformer.ops import extension
from anyformer.verify.oracles import declare_missing_operators

DIM = 256
MIXERS = {
    "linear": "norm_attention(heads=4)",
    "gla": "gated_linear_attention(heads=4)",
    "hgrn2": "hgrn2(heads=4)",
    "retention": "retention(heads=4)",
    "deltanet": "delta_net(heads=4)",
    "gated_deltanet": "gated_deltanet(heads=4)",
    "mamba": "mamba",
    "mamba2": "mamba2",
}
ATTENTION = "grouped_query_attention(kv_heads=4)"
LENGTHS = (2048, 4096, 8192, 16384, 32768)


def layer(text: str) -> nn.Module:
    """One mixer of width ``DIM`` with fresh weights."""
    torch.manual_seed(0)

    class Host(core.Part, name="benchmark_host"):
        """Binds the width."""

        class Config(core.Config):
            dim: int
            mixer: core.Config

    return core.build(Host.Config(dim=DIM, mixer=parse_part(text))).mixer


def features(tokens: int) -> Tensor:
    """Random features of one row."""
    return torch.randn(1, tokens, DIM, generator=torch.Generator().manual_seed(tokens))


def forward(mixer: nn.Module, x: Tensor) -> Callable[[], Any]:
    """One pass without gradients."""
    context = core.Context(layout=core.Layout(grid=(x.shape[1],)))

    def call() -> Tensor:
        with torch.no_grad():
            return mixer(x, context)

    return call


def training(run: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Callable[[], Any]:
    """One pass there and back."""

    def call() -> None:
        module.zero_grad()
        run(x).sum().backward()

    return call


def transformers_layers() -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Name, our layer and transformers', each with fresh weights."""
    declare_missing_operators()  # of torchvision, which transformers looks into
    from transformers.models.mamba.configuration_mamba import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer
    from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    yield "mamba", layer("mamba"), MambaMixer(MambaConfig(hidden_size=DIM, use_mambapy=False), 0).eval()
    config = Mamba2Config(hidden_size=DIM, num_heads=8, head_dim=64, state_size=128, n_groups=1, chunk_size=256)
    yield "mamba2", layer("mamba2"), Mamba2Mixer(config, 0).eval()


def against_transformers(seconds: float) -> Iterator[dict[str, Any]]:
    """Whole layers at 8,192 tokens, and Mamba's training step, quadratic there, at 512 and 1,024."""
    for name, ours, theirs in transformers_layers():
        x = features(8192)

        def run(x: Tensor, theirs: nn.Module = theirs) -> Tensor:
            with torch.no_grad():
                return theirs(x)

        measured = ratio(forward(ours, x), lambda x=x, run=run: run(x), max_seconds=seconds)
        yield {"name": f"{name}_vs_transformers_8192", **asdict(measured)}
    name, ours, theirs = next(transformers_layers())
    for tokens in (512, 1024):
        x = features(tokens)
        context = core.Context(layout=core.Layout(grid=(tokens,)))
        mine = training(lambda x, ours=ours, context=context: ours(x, context), ours, x)
        measured = ratio(mine, training(theirs, theirs, x), max_seconds=seconds)
        yield {"name": f"mamba_train_vs_transformers_{tokens}", **asdict(measured)}


def against_attention(seconds: float) -> Iterator[dict[str, Any]]:
    """Every mixer against a layer of causal attention of equal width."""
    attention = layer(ATTENTION)
    for tokens in (512, 2048, 16384):
        x = features(tokens)
        for name, text in MIXERS.items():
            measured = ratio(forward(layer(text), x), forward(attention, x), max_seconds=seconds)
            yield {"name": f"{name}_vs_attention_{tokens}", **asdict(measured)}


def slopes(rounds: int) -> dict[str, dict[str, Any]]:
    """How time and memory of a forward pass grow with the tokens: slopes of their logarithms, by least squares.

    Every round times all lengths once, so that the slopes of the rounds are independent; their mean has its 95 % interval
    by Student's t. Memory is the peak of one pass beside the weights.
    """
    x = torch.tensor([[math.log(tokens), 1.0] for tokens in LENGTHS], dtype=torch.float64)

    def slope(values: list[float]) -> float:
        y = torch.tensor([math.log(value) for value in values], dtype=torch.float64)
        return float(torch.linalg.lstsq(x, y[:, None]).solution[0, 0])

    found: dict[str, dict[str, Any]] = {}
    for name, text in MIXERS.items():
        mixer = layer(text)
        calls = [forward(mixer, features(tokens)) for tokens in LENGTHS]
        memory = slope([growth(call) for call in calls])
        times = [slope([latency(call, seconds=0.3, warmup=0.05).median_ms for call in calls]) for _ in range(rounds)]
        half = student.ppf(0.975, rounds - 1) * statistics.stdev(times) / math.sqrt(rounds)
        mean = statistics.fmean(times)
        found[name] = {"time": mean, "low": float(mean - half), "high": float(mean + half), "memory": memory}
    return found


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kept", action="store_true", help="let the C library keep freed memory")
    parser.add_argument("--seconds", type=float, default=20.0, help="at most, of each comparison")
    parser.add_argument("--rounds", type=int, default=5, help="of the slopes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    kept = keep_freed_memory() if arguments.kept else False
    rows: list[dict[str, Any]] = []
    for row in chain(against_transformers(arguments.seconds), against_attention(arguments.seconds)):
        rows.append(row)
        print(f"{row['name']:36} {row['value']:8.2f}  [{row['low']:.2f}, {row['high']:.2f}]", flush=True)
    grown = slopes(arguments.rounds)
    for name, slope in grown.items():
        interval = f"[{slope['low']:.2f}, {slope['high']:.2f}]"
        print(f"slope of {name:27} {slope['time']:8.2f}  {interval}  of memory {slope['memory']:.2f}")
    if arguments.json or arguments.out:
        summary = {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "compiled": extension.library("diagonal_scan") is not None,
            "kept_freed_memory": kept,
            "slopes": grown,
            "rows": rows,
            **{row["name"]: row["value"] for row in rows},
        }
        print(json.dumps(summary))
        if arguments.out:
            write_atomic(arguments.out, (json.dumps(summary, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
