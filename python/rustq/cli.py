"""The command line.

Exit status: 0 done; 1 the work failed, with one `error: …` line on standard error; 2 wrong usage;
130 interrupted. Set `RUSTQ_TRACEBACK=1` to see where an error comes from.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import click

from rustq import console, text
from rustq.config import (
    ACTIVATIONS,
    METHODS,
    PRECISIONS,
    QUANT_FORMATS,
    ROUNDINGS,
    WEIGHTS,
    QuantConfig,
)
from rustq.images import ImageOptions
from rustq.options import (
    DATA_HELP,
    MODEL,
    checked_output,
    config,
    data_options,
    executor_of,
    external_data,
    image_flags,
    named_shape,
    workers_option,
)
from rustq.progress import reporting
from rustq.report import FAMILIES
from rustq.samples import shape_text
from rustq.targets import SCHEMES, TARGETS

__all__ = ["commands", "main"]

report_option = click.option(
    "--report",
    type=MODEL,
    metavar="FILE",
    help="Also write a report: an HTML page, or JSON if the name ends in .json.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    Args:
        arguments: without the program's name; `None` takes those of the process.
    """
    try:
        status = commands.main(arguments, prog_name="rustq", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.UsageError as error:
        help_line = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        return _fail(error.format_message().rstrip(".") + help_line, 2)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # Whoever read our output has gone; keep Python from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("RUSTQ_TRACEBACK"):
            raise
        return _fail(_message(error), 1)


def _fail(message: str, status: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return status


def _message(error: Exception) -> str:
    """What to tell of an error: its own text if it was meant for people, else its type as well."""
    from rustq.errors import RustqError

    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, RustqError | ValueError | OSError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _show_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        import rustq

        click.echo(f"rustq {rustq.__version__}")
        context.exit()


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.pass_context
def commands(context: click.Context) -> None:
    """Makes ONNX models small and fast: folds, calibrates and quantizes them to INT8."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


@commands.command(short_help="Quantize a model to INT8.")
@click.argument("model", type=MODEL)
@click.option(
    "--data", metavar="PATH", help=f"{DATA_HELP} Or a file from 'rustq calibrate'. None: dynamic."
)
@click.option(
    "--scheme",
    type=click.Choice(SCHEMES),
    help="uint8 activations with a zero point, or int8 without.  [default: asym, or sym for a"
    " target that needs it]",
)
@click.option("--target", type=click.Choice(TARGETS), default="onnxruntime", show_default=True)
@click.option("--method", type=click.Choice(METHODS), default="auto", show_default=True)
@click.option("--percentile", type=float, help="For --method percentile.  [default: 99.99]")
@click.option("--exclude", multiple=True, help="Node that stays float: a name or glob. Repeatable.")
@click.option("--per-tensor", is_flag=True, help="One scale per weight, not per channel.")
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    help="Energy of the outputs' error allowed, relative to theirs: 0.01 is 20 dB. Layers that cost"
    " too much stay float.",
)
@click.option(
    "--high-precision",
    type=click.Choice(PRECISIONS),
    help="For TensorRT: the type of what is not int8.  [default: fp32]",
)
@click.option(
    "--tensorrt-version", help="For TensorRT: of the calibration cache.  [default: 10.3.0]"
)
@click.option(
    "--ascend-qdq",
    is_flag=True,
    help="For Ascend: also write a .qdq.onnx file for convert_qat_model.",
)
@click.option(
    "--weights",
    type=click.Choice(WEIGHTS),
    default="int8",
    show_default=True,
    help="Number format of weights: below 8 bits for onnxruntime (int4 for tensorrt too), float for"
    " ncnn.",
)
@click.option(
    "--activations",
    type=click.Choice(ACTIVATIONS),
    help="Number format of activations, with --data.  [default: int8]",
)
@click.option(
    "--block-size",
    type=click.IntRange(min=0),
    help="int4 and uint4: inputs of a matrix product that share a scale; 0 for all.",
)
@click.option(
    "--quant-format",
    type=click.Choice(QUANT_FORMATS),
    help="How weights below 8 bits are written: qdq for standard operators only.  [default: auto]",
)
@click.option(
    "--rounding",
    type=click.Choice(ROUNDINGS),
    help="Of weights; learned for the sake of the results on --data.  [default: nearest]",
)
@click.option(
    "--input-shape",
    "input_shapes",
    type=named_shape,
    multiple=True,
    metavar="NAME=1x3x224x224",
    help="Fixed shape of an input, for targets that need one. Repeatable.  [default: the model's,"
    " or that of the first sample]",
)
@click.option(
    "--list-unsupported",
    is_flag=True,
    help="Only list what the target cannot run; status 1 if any.",
)
@click.option(
    "-o",
    "--output",
    type=MODEL,
    help="File to write.  [default: MODEL.int8.onnx, or what the target reads]",
)
@external_data
@report_option
@as_json
@workers_option
@data_options
def quantize(
    model: Path,
    data: str | None,
    scheme: str | None,
    target: str,
    output: Path | None,
    external_data: bool | None,
    report: Path | None,
    as_json: bool,
    images: ImageOptions | None,
    per_tensor: bool,
    max_drop: float | None,
    list_unsupported: bool,
    workers: int | None,
    **knobs: Any,
) -> int:
    """Quantize MODEL to INT8, static with --data, dynamic without."""
    import rustq

    settings = config(images=images, per_channel=not per_tensor, **knobs)
    if list_unsupported:
        return _list_unsupported(model, data, target, settings, as_json)
    suffix = f".{settings.weights}{TARGETS[target].suffix}"
    path = checked_output(output or _beside(model, suffix))
    report = report and checked_output(report)
    with executor_of(workers) as executor:
        result = rustq.quantize(
            model,
            None if data is None else _data(data),
            scheme=scheme,
            target=target,
            config=settings,
            max_drop=max_drop,
            progress=True,
            executor=executor,
        )
    files = result.save(path, external_data=external_data)
    if report:
        from rustq.page import quantization_page

        samples = Path(data) if data is not None and _is_data(data) else None
        about = {"float model": model} | {f"for {target}": file for file in files}
        files.append(
            quantization_page(
                report,
                result,
                model=model,
                data=samples,
                config=settings,
                files=about,
                seen=True,
            )
        )
    if as_json:
        console.show_json({"files": files, "report": result.report.to_dict()})
        return 0
    console.show_quantized(result.report)
    click.echo(f"wrote {', '.join(map(str, files))}")
    if target == "onnxruntime":
        _next(f"compare {_quoted(model, files[0])} --data OTHER_DATA{image_flags(images)}")
        if data is not None:
            click.echo("      on samples that it was not calibrated on: on those it looks better")
    else:
        click.echo(f"\nnext: {TARGETS[target].next_step(result, files)}")
    return 0


def _list_unsupported(
    model: Path, data: str | None, target: str, settings: QuantConfig, as_json: bool
) -> int:
    """Shows what a target cannot run of a model; returns the exit status."""
    from rustq.api import unsupported

    known = data if data is not None and _is_data(data) else None
    found = unsupported(model, known and Path(known), target=target, config=settings)
    if as_json:
        console.show_json({"unsupported": [asdict(entry) for entry in found]})
    elif found:
        header = ("node", "operator", "why not", "what to do")
        console.show_table(f"what {target} cannot run", header, [astuple(e) for e in found])
    else:
        click.echo(f"{target} can run all of {model}")
    return 1 if found else 0


@commands.command(short_help="Observe a model on data once, for every method and target.")
@click.argument("model", type=MODEL)
@click.option("--data", metavar="PATH", required=True, help=DATA_HELP)
@click.option("-o", "--output", type=MODEL, help="File to write.  [default: MODEL.calibration]")
@click.option(
    "--resume",
    type=MODEL,
    help="File to keep what was counted in, and to go on from if it exists.",
)
@as_json
@workers_option
@data_options
def calibrate(
    model: Path,
    data: str,
    output: Path | None,
    as_json: bool,
    images: ImageOptions | None,
    threads: int | None,
    workers: int | None,
    resume: Path | None,
) -> None:
    """Observe MODEL on data once; every method and target can then be derived from the file."""
    import rustq

    path = checked_output(output or _beside(model, ".calibration"))
    settings = config(images=images, threads=threads)
    with executor_of(workers) as executor:
        calibration = rustq.calibrate(
            model,
            Path(data),
            config=settings,
            progress=True,
            executor=executor,
            resume=None if resume is None else checked_output(resume),
        )
    calibration.save(path)
    if as_json:
        console.show_json({"files": [path], "tensors": len(calibration.tensors)})
        return
    click.echo(f"observed {len(calibration.tensors)} tensors\nwrote {path}")
    _next(f"quantize {_quoted(model)} --data {_quoted(path)}")


@commands.command(short_help="Fold constant arithmetic into the weights.")
@click.argument("model", type=MODEL)
@click.option("-o", "--output", type=MODEL, help="File to write.  [default: MODEL.folded.onnx]")
@external_data
@as_json
def fold(model: Path, output: Path | None, external_data: bool | None, as_json: bool) -> None:
    """Fold BatchNormalization and other constant arithmetic of MODEL into its weights."""
    import rustq

    path = checked_output(output or _beside(model, ".folded.onnx"))
    before = rustq.load(model)
    after = rustq.fold(before)
    files = after.save(path, external_data=external_data)
    counts = before.op_counts, after.op_counts
    if as_json:
        nodes = [sum(count.values()) for count in counts]
        console.show_json(
            {
                "files": files,
                "nodes_before": nodes[0],
                "nodes_after": nodes[1],
                "folding": [asdict(record) for record in after.folding],
            }
        )
        return
    changed = sorted(
        op for op in {*counts[0], *counts[1]} if counts[0].get(op) != counts[1].get(op)
    )
    rows = [(op, str(counts[0].get(op, 0)), str(counts[1].get(op, 0))) for op in changed]
    console.show_table("operators", ("operator", "before", "after"), rows)
    if not rows:
        click.echo("nothing to fold")
    stayed = [
        (record.node, record.declined or "")
        for record in after.folding
        if record.op_type == "BatchNormalization" and record.declined
    ]
    if stayed:
        console.show_table("BatchNormalization that stays", ("node", "why"), stayed)
    click.echo(f"wrote {', '.join(map(str, files))}")


@commands.command(short_help="Show what a model is made of.")
@click.argument("model", type=MODEL)
@as_json
def inspect(model: Path, as_json: bool) -> None:
    """Show what MODEL, an ONNX or ncnn model, is made of, and what quantization would change."""
    import rustq

    if model.suffix == ".param":
        _inspect_ncnn(model, as_json)
        return
    loaded = rustq.load(model)
    facts = {
        "opset": loaded.opset,
        "ir_version": loaded.ir_version,
        "producer": loaded.producer,
        "weight_bytes": loaded.weight_bytes,
        "batch_normalizations": loaded.op_counts.get("BatchNormalization", 0),
    }
    if as_json:
        sides = {"inputs": loaded.inputs, "outputs": loaded.outputs}
        console.show_json({**sides, **facts, "op_counts": loaded.op_counts})
        return
    origin = f", from {loaded.producer}" if loaded.producer else ""
    click.echo(f"{model}: opset {loaded.opset}, IR version {loaded.ir_version}{origin}\n")
    rows = [
        (side, value.name, value.dtype, shape_text(value.shape))
        for side, values in (("input", loaded.inputs), ("output", loaded.outputs))
        for value in values
    ]
    console.show_table("inputs and outputs", ("", "name", "dtype", "shape"), rows)
    by_count = sorted(loaded.op_counts.items(), key=lambda entry: (-entry[1], entry[0]))
    console.show_table("operators", ("operator", "nodes"), [(op, str(n)) for op, n in by_count])
    click.echo(_prospect(loaded.op_counts, loaded.weight_bytes))
    _next(f"quantize {_quoted(model)} --data YOUR_DATA")


def _inspect_ncnn(path: Path, as_json: bool) -> None:
    """Shows what an ncnn model is made of, once it is sure that ncnn could run it."""
    from rustq.targets import ncnn

    contents = ncnn.read(path)
    if as_json:
        console.show_json(contents.to_dict())
        return
    click.echo(f"{path}: ncnn model, {len(contents.layers)} layers\n")
    rows = [("input", name) for name in contents.inputs]
    rows += [("output", name) for name in contents.outputs]
    console.show_table("inputs and outputs", ("", "name"), rows)
    counted = [
        (kind, str(count), str(int8) if int8 else "", text.size(size) if size else "")
        for kind, (count, int8, size) in contents.kinds.items()
    ]
    console.show_table("layers", ("layer", "number", "in int8", "weights"), counted)
    if contents.weight_bytes is None:
        click.echo(
            f"there is no {path.with_suffix('.bin').name} beside it: weights are not checked"
        )
    else:
        click.echo(f"weights: {text.size(contents.weight_bytes)}, each where ncnn looks for it")


def _prospect(op_counts: dict[str, int], weight_bytes: int) -> str:
    """What quantization has to work with, in a few words."""
    from rustq.fusion import computing_on_integers

    if op_counts.get("QuantizeLinear") or op_counts.get("DequantizeLinear"):
        return "this model is quantized already: its scales are kept, for any --target"
    if computing_on_integers(op_counts):
        return "this model is quantized already, and will stay so: give the one it was made from"
    counted = [
        f"{number} {name if number == 1 else plural}"
        for name, plural, ops in FAMILIES
        if (number := sum(op_counts.get(op, 0) for op in ops))
    ]
    if not counted:
        return "quantization has nothing to do here: no convolution or matrix product"
    normalizations = op_counts.get("BatchNormalization", 0)
    folded = f"; {normalizations} BatchNormalization to fold first" if normalizations else ""
    return (
        f"weights: {text.size(weight_bytes)}, about {text.size(weight_bytes // 4)} in int8\n"
        f"candidates for int8: {', '.join(counted)}{folded}"
    )


@commands.command(short_help="Rank the layers by what int8 does to the outputs.")
@click.argument("model", type=MODEL)
@click.option("--data", metavar="PATH", required=True, help=DATA_HELP)
@click.option("--scheme", type=click.Choice(SCHEMES), help="[default: the target's]")
@click.option("--target", type=click.Choice(TARGETS), default="onnxruntime", show_default=True)
@click.option("--method", type=click.Choice(METHODS), default="auto", show_default=True)
@click.option("--exact", is_flag=True, help="Measure every layer by itself: slow.")
@click.option(
    "--top", type=click.IntRange(min=1), default=20, show_default=True, help="Layers shown."
)
@as_json
@data_options
def sensitivity(
    model: Path,
    data: str,
    scheme: str | None,
    target: str,
    exact: bool,
    top: int,
    as_json: bool,
    images: ImageOptions | None,
    **knobs: Any,
) -> None:
    """Rank the layers of MODEL by what their int8 forms do to its outputs."""
    import rustq
    from rustq.ranking import HEADER

    settings = config(images=images, **knobs)
    with reporting(True, "measuring") as progress:
        found = rustq.sensitivity(
            model,
            Path(data),
            scheme=scheme,
            target=target,
            config=settings,
            exact=exact,
            progress=progress,
        )
    if as_json:
        console.show_json(found.to_dict())
        return
    # The last column is a user's metric, which the command line has none of.
    rows = [row[:-1] for row in found.rows()]
    console.show_table("layers in int8, the most harmful first", HEADER[:-1], rows[:top])
    if len(rows) > top:
        click.echo(f"{len(rows) - top} more, see --top\n")
    click.echo(found.summary())


@commands.command(short_help="Run two models on the same data: error, size, latency.")
@click.argument("model", type=MODEL)
@click.argument("quantized", type=MODEL)
@click.option("--data", metavar="PATH", required=True, help=DATA_HELP)
@report_option
@as_json
@data_options
def compare(
    model: Path,
    quantized: Path,
    data: str,
    report: Path | None,
    as_json: bool,
    images: ImageOptions | None,
    threads: int | None,
) -> None:
    """Run MODEL and QUANTIZED on the same data: error, size and latency."""
    report = report and checked_output(report)
    from rustq.comparison import COST_HEADER, OUTPUT_HEADER
    from rustq.comparison import compare as compare_models
    from rustq.fusion import fusion
    from rustq.page.facts import Facts

    settings = config(images=images, threads=threads)
    result = compare_models(model, quantized, Path(data), config=settings, progress=True)
    if report:
        from rustq.page import comparison_page

        about = {"float model": model, "quantized model": quantized}
        comparison_page(
            report, result, quantized, model=model, data=Path(data), config=settings, files=about
        )
    if as_json:
        console.show_json(result.to_dict())
        return
    console.show_table(
        f"outputs over {text.count(result.samples, 'sample')}", OUTPUT_HEADER, result.output_rows()
    )
    console.show_table("cost in ONNX Runtime", COST_HEADER, result.cost_rows())
    console.show_advice(Facts(comparison=result, fusion=fusion(quantized)))
    console.show_notes(result.notes)


@commands.command(short_help="Quantize a small model that ships with rustq.")
@as_json
def demo(as_json: bool) -> None:
    """Quantize a small model that ships with rustq and show what that costs and gains."""
    from rustq.showcase import run_demo

    result = run_demo(progress=True)
    if as_json:
        console.show_json(result)
        return
    click.echo(result.summary)
    console.show_table(
        "handwritten digits, in ONNX Runtime", ("", "float", "int8", ""), result.rows()
    )
    console.show_notes(result.notes)
    click.echo("next: rustq quantize YOUR_MODEL.onnx --data YOUR_DATA")


def _beside(model: Path, suffix: str) -> Path:
    """A file beside the model, called like it."""
    named = model if model.name else model.resolve()
    return named.with_name(named.stem + suffix)


def _is_data(data: str) -> bool:
    from rustq.data import is_data_path

    return is_data_path(Path(data))


def _data(data: str) -> Any:
    """The value of `--data`: a path that `rustq.data` reads, or a calibration to load."""
    path = Path(data)
    if _is_data(data):
        return path
    import rustq

    try:
        return rustq.Calibration.load(path)
    except rustq.DataError as error:
        raise rustq.DataError(
            f"{error}, and no .npy, .npz or image file, or folder of them"
        ) from None


def _quoted(*paths: Path) -> str:
    return " ".join(shlex.quote(str(path)) for path in paths)


def _next(command: str) -> None:
    click.echo(f"\nnext: rustq {command}")
