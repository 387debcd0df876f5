"""``anyformer verify``: prove levels here and print what was found."""

from typing import Any

from anyformer.verify.ledger import Record
from anyformer.verify.levels import verify


def prove(system: str, level: str, names: list[str]) -> None:
    """Prove the levels, a line for each model as it is done; exit with 1 where one was not reached."""
    levels = [word.strip() for word in level.split(",") if word.strip()]
    records = verify(system, levels, names or None, _say, note=lambda sentence: print(sentence, flush=True))
    if not all(record.reached for record in records):
        raise SystemExit(1)


def _say(record: Record) -> None:
    word = "reached" if record.reached else "NOT reached"
    print(f"{record.name}  {record.level} {word}  {_figures(record)}  {record.seconds:.0f} s", flush=True)
    for failure in record.failures:
        print(f"  {failure}", flush=True)


def _figures(record: Record) -> str:
    """The figures of a level in a few words."""
    figures: dict[str, Any] = record.figures
    match record.level:
        case "built":
            printed = figures.get("published", {})
            beside = f" (printed {printed['params'] / 1e6:.4g} M)" if printed.get("params") else ""
            return f"{figures['params']:,} parameters{beside}, {figures['macs'] / 1e9:.4g} G multiply-adds"
        case "equal":
            keys = ("outputs", "features", "input_gradient", "parameter_gradients")
            worst = max(comparison[key] for comparison in figures["comparisons"] for key in keys)
            return (
                f"worst error in float64 {worst:.1e}, float32 {max(c['float32'] for c in figures['comparisons']):.1e}"
            )
        case "claim":
            low, high = figures["interval"]
            return f"{figures['verdict']}: the mechanism is ahead by {low:.3g} to {high:.3g}"
        case _ if "bits_per_byte" in figures:
            low, high = figures["interval"]
            return f"ahead of the baseline by {low:.2f} to {high:.2f} bits per byte"
        case _:
            low, high = figures["interval"]
            return f"ahead of the baseline by {low:.2%} to {high:.2%}"
