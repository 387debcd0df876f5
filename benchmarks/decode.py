"""Decoding one token at a time side by side with transformers', in one process, blocks taking turns.

``python benchmarks/decode.py`` prints a table; ``--json`` ends with one JSON line: ``rows``, the machine's read bandwidth,
and the ratios by name, such as ``llama_128``: times of theirs over times of ours at batch 1 after a context of so many
tokens, above 1 where ours is faster. Models of about 30M parameters, float32, the same weights on both sides, carried over
in transformers' folders; scores are checked equal first. Theirs run with the fastest of their caches and attentions here.
Every timed call decodes ``TOKENS`` tokens from the context and forgets them again. An A/A row shows what the method resolves.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import anyformer as af
from anyformer.core.machine import processor
from anyformer.measure.latency import Clock, interleaved, latency
from anyformer.ops import extension
from anyformer.ops.matrix_vector import matrix_vector
from anyformer.verify.oracles import declare_missing_operators

TOKENS = 4  # decoded in each timed call
PROMPT = 512  # tokens of which the scores are compared as a whole
TOLERANCE = 1e-4  # of the largest score
VOCABULARY = 8000
_LLAMA = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
_TIED = {"tie_word_embeddings": True}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**_LLAMA, **_TIED},
    "grouped_llama": {**_LLAMA, **_TIED, "num_key_value_heads": 2},
    "mamba": {"hidden_size": 512, "num_hidden_layers": 15, "use_mambapy": False, **_TIED},
    "mamba2": {
        "hidden_size": 512,
        "num_hidden_layers": 15,
        "num_heads": 16,
        "head_dim": 64,
        "n_groups": 1,
        **_TIED,
    },
    "jamba": {
        "hidden_size": 384,
        "intermediate_size": 704,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "num_experts": 4,
        "pad_token_id": None,
    },
}


class Theirs(NamedTuple):
    """One way of transformers to decode: ``step`` takes tokens (1, 1) and a cache, ``back`` forgets so many tokens."""

    name: str
    cache: Any
    step: Callable[[Tensor], Tensor]
    back: Callable[[int], object]


def pair(name: str) -> tuple[Any, nn.Module]:
    """Our model and transformers', with the same fresh weights: theirs go through a folder of theirs."""
    declare_missing_operators()  # of torchvision, which transformers looks into
    import transformers

    family = {"grouped_llama": "Llama"}.get(name, name.capitalize())
    settings = {**MODELS[name], "vocab_size": VOCABULARY, "max_position_embeddings": 2**15}
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**settings)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = af.from_pretrained(Path(folder), format="transformers").eval()
    return ours, theirs


def recurrent(name: str) -> bool:
    """Without any attention."""
    return name in ("mamba", "mamba2")


def kinds(name: str, theirs: Any, ids: Tensor, capacity: int) -> Iterator[Theirs]:
    """Their ways to decode after the context, each with a cache that has read it."""
    from transformers import DynamicCache, StaticCache

    argument = "cache_params" if recurrent(name) else "past_key_values"
    caches = {"dynamic": lambda: DynamicCache(config=theirs.config)}
    if "llama" in name:  # states of recurrences are in place as they are
        caches["static"] = lambda: StaticCache(config=theirs.config, max_cache_len=capacity)
    experts = ("eager", "batched_mm") if name == "jamba" else ("",)
    for kind, make in caches.items():
        cache = make()
        theirs(ids, **{argument: cache}, use_cache=True, logits_to_keep=1)
        for attention in ("",) if recurrent(name) else ("sdpa", "eager"):
            for routed in experts:
                settings = {"attn_implementation": attention} if attention else {}
                settings |= {"experts_implementation": routed} if routed else {}

                def step(token: Tensor, cache: Any = cache, settings: dict[str, str] = settings) -> Tensor:
                    for key, value in settings.items():
                        setattr(theirs.config, f"_{key}", value)
                    return theirs(token, **{argument: cache}, use_cache=True).logits

                yield Theirs(" ".join(filter(None, (kind, attention, routed))), cache, step, forgetting(cache))


def forgetting(cache: Any) -> Callable[[int], object]:
    """What takes the last tokens out of a cache of theirs; states of recurrences stay as they are, which costs the same."""

    def back(count: int) -> None:
        for layer in cache.layers:
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length.sub_(count)
            elif isinstance(getattr(layer, "keys", None), Tensor):
                layer.keys, layer.values = layer.keys[:, :, :-count], layer.values[:, :, :-count]

    return back


def fastest(name: str, theirs: Any, ids: Tensor, capacity: int, clock: Clock) -> Theirs:
    """Their fastest way to decode here."""
    token, times = ids[:, :1], {}
    for kind in kinds(name, theirs, ids, capacity):

        def call(kind: Theirs = kind) -> None:
            kind.step(token)
            kind.back(1)

        times[kind.name] = latency(call, seconds=0.5, clock=clock).median_ms, kind
    print("  " + ", ".join(f"{name} {time:.2f} ms" for name, (time, _) in times.items()), flush=True)
    return min(times.values(), key=lambda item: item[0])[1]


def read_bandwidth(clock: Clock) -> float:
    """Bytes a second: the most that a sum, or a matrix times a vector by any kernel, reads from 256 MB."""
    matrix, vector = torch.full((16384, 4096), 0.5), torch.full((4096,), 0.01)
    calls = (matrix.sum, lambda: torch.mv(matrix, vector), lambda: matrix_vector(matrix, vector))
    return matrix.nbytes / min(latency(call, seconds=1.0, clock=clock).p10_ms for call in calls) * 1e3


def bytes_read(name: str, model: nn.Module, state: Any, context: int) -> float:
    """What one token reads: every weight but the embedding's other rows and experts not chosen, and the states."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    if name == "jamba":
        weights -= model.embed.table.weight.nbytes  # not tied
        for block in model.blocks:
            experts = getattr(block.channel_mixer, "experts", ())
            chosen = block.channel_mixer.router.config.k if experts else 0
            weights -= sum(p.nbytes for expert in experts for p in expert.parameters()) * (
                1 - chosen / max(len(experts), 1)
            )
    held = 0
    for block in state.blocks:
        slots = block.keys.shape[2] if hasattr(block, "keys") else 0
        for tensor in pytree.tree_leaves(block):
            if isinstance(tensor, Tensor):
                held += tensor.nbytes * context // slots if slots else tensor.nbytes
    return weights + held


def compare(name: str, contexts: list[int], seconds: float, bandwidth: float, clock: Clock) -> Iterator[dict[str, Any]]:
    """One model after each context."""
    ours, theirs = pair(name)
    for context in contexts:
        capacity = context + 2 * TOKENS + 1
        ids = torch.randint(VOCABULARY, (1, context + TOKENS), generator=torch.Generator().manual_seed(context))
        prompt, next_ids = ids[:, :context], ids[:, context:].split(1, 1)
        chosen = fastest(name, theirs, prompt, capacity, clock)
        state = ours.init_state(1, capacity)
        for part in prompt.split(PROMPT, 1):
            _, state = ours.stream(part, state, last=True)

        def mine(state: Any = state, tokens: tuple[Tensor, ...] = next_ids) -> Tensor:
            for token in tokens:  # a cache's length is a number in its state: the next call begins at the context again
                scores, state = ours.stream(token, state, last=True)
            return scores

        def its(chosen: Theirs = chosen, tokens: tuple[Tensor, ...] = next_ids) -> Tensor:
            for token in tokens:
                scores = chosen.step(token)
            chosen.back(len(tokens))
            return scores

        check(name, context, ours, theirs, ids, state)
        ours_, theirs_, again = interleaved((mine, its, mine), max_seconds=seconds, clock=clock)
        speed, other = (timing.latency.median_ms / TOKENS for timing in (ours_, theirs_))
        moved = bytes_read(name, ours, state, context)
        yield {
            "name": f"{name}_{context}",
            "parameters": sum(p.numel() for p in ours.parameters()),
            "theirs": chosen.name,
            "ms_a_token": speed,
            "their_ms_a_token": other,
            "tokens_per_second": 1e3 / speed,
            "bytes_a_token": moved,
            "share_of_bandwidth": moved / (speed / 1e3) / bandwidth,
            "a_a": asdict(again.ratio),
            **asdict(theirs_.ratio),
        }


def check(name: str, context: int, ours: Any, theirs: Any, ids: Tensor, state: Any) -> None:
    """Scores of the tokens after the context agree: ours streamed, theirs from a cache of their own or at once."""
    if context > PROMPT and "llama" not in name:  # theirs take a minute for a long text, and as many gigabytes
        ids, state = ids[:, :PROMPT], ours.init_state(1, PROMPT)
        _, state = ours.stream(ids[:, :-TOKENS], state, last=True)
    state, streamed = state.clone(), []
    for token in ids[:, -TOKENS:].split(1, 1):
        scores, state = ours.stream(token, state, last=True)
        streamed.append(scores)
    expected = theirs(ids, use_cache=False, logits_to_keep=TOKENS).logits
    expected = expected[:, -TOKENS:]
    error = ((torch.cat(streamed, 1) - expected).abs().max() / expected.abs().max()).item()
    if not error <= TOLERANCE:
        raise SystemExit(f"{name}: scores after {context} tokens differ by {error:.1e}")


def main() -> None:
    """Measure all rows and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--out", type=Path, help="a file for the same JSON")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, for each row")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--contexts", nargs="*", type=int, default=[128, 8192])
    parser.add_argument(
        "--processor-time", action="store_true", help="not the clock's: on a busy machine, with 1 thread"
    )
    arguments = parser.parse_args()
    clock = time.process_time if arguments.processor_time else time.perf_counter
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        bandwidth = read_bandwidth(clock)
        print(f"{arguments.threads} threads, {bandwidth / 1e9:.1f} GB/s read from memory", flush=True)
        for name in arguments.models:
            for row in compare(name, arguments.contexts, arguments.seconds, bandwidth, clock):
                rows.append(row)
                note = "" if row["measured"] else "  unmeasured: the interval stayed wide"
                print(
                    f"{row['name']:12} {row['value']:5.2f} [{row['low']:.2f}, {row['high']:.2f}]  A/A "
                    f"{row['a_a']['value']:.2f} [{row['a_a']['low']:.2f}, {row['a_a']['high']:.2f}]  "
                    f"{row['ms_a_token']:6.2f} ms a token, theirs {row['their_ms_a_token']:6.2f} ({row['theirs']}), "
                    f"{row['share_of_bandwidth']:.0%} of the read bandwidth{note}",
                    flush=True,
                )
    summary = {
        "processor": processor(),
        "threads": arguments.threads,
        "processor_time": arguments.processor_time,
        "torch": torch.__version__,
        "compiled": extension.library("matrix_vector") is not None,
        "read_bandwidth_gb_s": bandwidth / 1e9,
        "rows": rows,
        **{row["name"]: row["value"] for row in rows},
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(summary))


if __name__ == "__main__":
    main()
