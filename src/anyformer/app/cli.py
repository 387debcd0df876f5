"""The command line. Listing and help read an index and do not import torch; everything else is imported where used."""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(
    name="anyformer",
    help="Every efficient and hybrid Transformer as parts of one system: fit, build, prove, measure and ship.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table for people.")]


@app.command("list")
def list_models(
    pattern: Annotated[str, typer.Argument(help="A shell pattern of names, such as '*next*'.")] = "*",
    field: Annotated[str | None, typer.Option(help="One field only, such as vision.")] = None,
    json: AsJson = False,
) -> None:
    """List the models: name, system, parameters, multiply-adds, what is proven."""
    from anyformer.app.listing import print_models

    print_models(pattern, field, json)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A model's name, or a folder that was saved or fitted.")],
    json: AsJson = False,
) -> None:
    """Show a model's whole tree: every part, its numbers, its axes, its file and line."""
    from anyformer.app.showing import print_tree

    print_tree(name, json)


@app.command()
def verify(
    system: Annotated[str, typer.Argument(help="A system's slug, such as vit.")],
    level: Annotated[
        str, typer.Option(help="Levels to prove, separated by commas: built, equal, learns, claim.")
    ] = "built,equal",
    name: Annotated[list[str] | None, typer.Option(help="One model of the system only; may be repeated.")] = None,
) -> None:
    """Prove a system's levels here, and write what was found into the ledger."""
    from anyformer.app.proving import prove

    prove(system, level, name or [])


@app.command()
def fit(
    data: Annotated[
        str,
        typer.Argument(
            help="A folder with one sub-folder of pictures a class, a .csv, .parquet or .npz; digits; glyphs. Or texts: a "
            "file, a folder of files, one with a sub-folder a class, stdlib."
        ),
    ],
    budget: Annotated[
        str,
        typer.Option(
            help="Limits, such as 'latency<=2ms, params<=1M, size<=4MB, macs<=50M'; of text "
            "'tokens_per_second>=500, state<=2MB, context>=1024'."
        ),
    ] = "",
    minutes: Annotated[float, typer.Option(help="Wall clock for the whole command.")] = 10.0,
    out: Annotated[Path | None, typer.Option(help="Folder to write; anyformer-DATA when absent.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split, the weights, the order and the augmentation.")] = 0,
    trials: Annotated[int, typer.Option(help="How many candidates are measured.")] = 6,
    size: Annotated[
        int | None, typer.Option(help="Side that pictures are brought to; from the data when absent.")
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Train under bfloat16 autocast.")] = False,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="What latency is measured in and predictions run in: onnx, openvino or eager; onnx when absent, of text eager."
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Pretrained weights to start from: a folder, or hub:owner/repository.")
    ] = None,
    distill: Annotated[
        bool, typer.Option("--distill", help="Let the largest candidate beyond the budget teach the finalists.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Where to train: cpu, cuda, ... or auto.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="Of target: classes, multilabel, regression, or language: what comes next; from the data when absent."
        ),
    ] = None,
    files: Annotated[str | None, typer.Option(help="Of a table, the column of picture files.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="Of a table, a column of targets; may be repeated.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Database through which workers share the training, as an SQLAlchemy URL; sqlite: in the folder."
        ),
    ] = None,
    worker: Annotated[
        bool, typer.Option("--worker", help="Help the same fit that another process began with --storage.")
    ] = False,
    measure_only: Annotated[
        bool, typer.Option("--dry-run", help="List the candidates with measured costs; train nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train the best model within a budget on your pictures or texts, export it, check it, report it."""
    options = dict(locals())
    from anyformer.app.fitting import run_fit

    run_fit(**options)


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(help="A folder that `anyformer fit` wrote.")],
    images: Annotated[list[Path], typer.Argument(help="Picture or text files.")],
    runtime: Annotated[str | None, typer.Option(help="onnx, openvino or eager; as fitted when absent.")] = None,
    json: AsJson = False,
) -> None:
    """Classify pictures or texts with a fitted folder alone."""
    from anyformer.app.predicting import print_predictions

    print_predictions(folder, images, json, runtime)


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(help="The folder of a saved language model.")],
    prompt: Annotated[str, typer.Option(help="What to go on from.")],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add, at most.")] = 200,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token; 1 draws as the model believes.")
    ] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many of the likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens that hold this share.")] = None,
    beams: Annotated[
        int, typer.Option(help="Continuations that are followed at a time, of which the best is given.")
    ] = 1,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws.")] = None,
) -> None:
    """Go on from a prompt, and print the text as it comes."""
    from anyformer.app.generating import run_generate
    from anyformer.core.machine import keep_freed_memory

    keep_freed_memory()
    run_generate(folder, prompt, max_new_tokens, temperature, top_k, top_p, beams, stop or [], seed)


@app.command("compare", help="Compare models with the first one: ratios of time, taken in turns, with their intervals.")
@app.command(
    "measure", help="Measure models here: multiply-adds, latency by runtime and precision, peak memory, energy."
)
def measure(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="Models' names, or folders that were saved, fitted or exported.")],
    runtime: Annotated[
        str, typer.Option(help="eager, compiled, onnx, openvino, separated by commas; or all.")
    ] = "eager",
    precision: Annotated[str, typer.Option(help="float32, bfloat16, int8, separated by commas.")] = "float32",
    batch: Annotated[str, typer.Option(help="Images a call, such as 1,4,16.")] = "1",
    size: Annotated[str, typer.Option(help="Sides, such as 160,224 or 224x160; each model's own when absent.")] = "",
    threads: Annotated[int | None, typer.Option(help="Threads a call may use.")] = None,
    seconds: Annotated[float, typer.Option(help="Longest time for a group that takes turns.")] = 20.0,
    width: Annotated[float, typer.Option(help="How narrow a ratio's interval has to become.")] = 0.04,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in processes apart.")] = True,
    out: Annotated[
        list[Path] | None, typer.Option(help="File to write: .json, .csv, .md, .png; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Both commands: they take the same options, and differ in who takes turns with whom."""
    options = dict(locals())
    from anyformer.app.measuring import print_table

    print_table(options.pop("context").command.name, **options)


@app.command()
def export(
    target: Annotated[str, typer.Argument(help="A model's name, or a folder that was saved or fitted.")],
    to: Annotated[str, typer.Option(help="onnx, openvino, torch; or best, the fastest form here.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16 or int8; for best, the least exact that may be.")
    ] = "float32",
    calibrate: Annotated[str | None, typer.Option(help="Data set for int8's scales and for the comparison.")] = None,
    max_loss: Annotated[float, typer.Option(help="Points of accuracy that int8 may cost.")] = 1.0,
    size: Annotated[int | None, typer.Option(help="Side of the images; the model's own when absent.")] = None,
) -> None:
    """Export a model, compared with the original on unseen inputs, or refused."""
    options = dict(locals())
    from anyformer.app.exporting import run_export

    run_export(**options)


data_app = typer.Typer(help="Make data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command()
def glyphs(
    folder: Annotated[str, typer.Argument(help="A folder that does not exist yet.")],
    per_class: Annotated[int, typer.Option(help="Pictures of each character for training.")] = 300,
    classes: Annotated[int, typer.Option(help="How many characters, up to 36.")] = 36,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
) -> None:
    """Draw labelled pictures of characters, in other fonts for testing than for training."""
    from anyformer.app.drawing import write_glyphs

    write_glyphs(folder, per_class, classes, size, seed)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; failures become one sentence and an exit code, a traceback only with ``--debug``."""
    given = sys.argv[1:] if arguments is None else arguments
    words = [word for word in given if word != "--debug"]
    debug = len(words) < len(given)
    # Threads that spin long while they wait stop each other when anything else runs here: 20 times slower, measured.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    if not debug:
        warnings.showwarning = _warn
    try:
        code = app(words, standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _stop("stopped; what was done is kept")
    except typer.Abort:
        _stop("stopped")
    except typer.Exit as error:
        code = error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output is gone, and nobody is left to complain to
        code = 1
    except Exception as error:
        if debug and not hasattr(error, "format_message"):
            raise
        code = _complain(*_sentence(error))
    sys.exit(code if isinstance(code, int) else 0)


def _sentence(error: Exception) -> tuple[str, int]:
    """What to tell of an error, and the exit code; our own errors know theirs."""
    usage: Any = getattr(error, "format_message", None)  # typer's errors of usage, whose class is not public
    if usage is not None:
        return usage(), 2
    code: Any = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return str(error), code
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "out of memory; use a smaller model, smaller images or a machine with more", 1
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}", 1
    first = str(error).strip().splitlines()
    return (
        f"unexpected {type(error).__name__}: {first[0] if first else ''}; run again with --debug for the traceback",
        1,
    )


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Our own warnings as a sentence; those of libraries are for their developers."""
    if category.__module__.startswith("anyformer."):
        print(f"anyformer: {message}", file=sys.stderr)


def _stop(sentence: str) -> NoReturn:
    """End at once with the code of Ctrl-C.

    Python itself would end by the signal, without a code, where that interrupted a text run by a library's ``exec``, even
    though it was caught here.
    """
    _complain(sentence, 130)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130)


def _complain(sentence: str, code: int) -> int:
    print(f"anyformer: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
