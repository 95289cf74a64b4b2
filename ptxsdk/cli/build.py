"""Command: ``ptxsdk build``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

import ptxsdk
from ptxsdk.cli.detector import make_detector, open_engine
from ptxsdk.cli.options import JsonOption, path_argument, path_option
from ptxsdk.cli.output import console, escaped, fail, table
from ptxsdk.errors import BuildError, PtxsdkError
from ptxsdk.files import make_folder, write_file


def build(
    source: Annotated[Path | None, path_argument(metavar="[ENGINE|ONNX]", help="Default: the one that ships.")] = None,
    films: Annotated[
        Path | None, path_option("--films", help="Folder or CSV table of films, to calibrate and to measure with.")
    ] = None,
    validation: Annotated[
        Path | None, path_option("--validation", help="Other films to measure with; else --films are split.")
    ] = None,
    out: Annotated[Path | None, path_option("--out", help="Engine to write; for an ONNX a folder.")] = None,
    precisions: Annotated[str, typer.Option("--precisions", help="Variants to make.")] = "fp16,int8",
    int8: Annotated[
        Path | None, path_option("--int8", help="The INT8 network, quantized elsewhere: training.distil_int8.")
    ] = None,
    like: Annotated[
        Path | None, path_option("--like", help="For an ONNX: engine with its contract. Default: the one that ships.")
    ] = None,
    describe: Annotated[str, typer.Option("--describe", help="What the films are, for the manifest.")] = "",
    version: Annotated[str | None, typer.Option("--version", help="Version of the new engine.")] = None,
    plans: Annotated[
        bool, typer.Option("--plans", help="Instead: build the engine's TensorRT plans for this GPU.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="For --plans: cuda[:N].")] = "cuda",
    as_json: JsonOption = False,
) -> None:
    """Make precision variants: calibrated on films, held against fp32, written only if they pass.

    Nothing is written where a variant fails; an engine that was there stays as it was. With --plans the engine's
    TensorRT plans are built on this GPU and kept, so that no first start waits for them.
    """
    if plans:
        _build_plans(source, device, as_json=as_json)
        return
    if films is None or out is None:
        raise typer.BadParameter("--films and --out are needed")
    options: dict[str, Any] = {
        "validation": validation,
        "precisions": [name.strip() for name in precisions.split(",")],
        "describe": describe,
    }
    try:
        with _stages() as track:
            options |= {"int8_network": None if int8 is None else _read_network(int8), "track": track}
            report = _build(source, films, out, like, version, options)
    except PtxsdkError as error:
        fail(error, as_json=as_json)
    if as_json:
        print(json.dumps(report))
        return
    terminal = console()
    for name, entry in report["variants"].items():
        numbers = {key: f"{value:.4g}" for key, value in entry["accuracy"].items()}
        table(terminal, f"{name}, {entry['bytes']} bytes", ("", ""), list(numbers.items()))
        if entry["float_layers"]:
            terminal.print(escaped(f"in float: {', '.join(entry['float_layers'])}"), highlight=False, soft_wrap=True)
    terminal.print(escaped(f"written: {', '.join(report['written'])}"), highlight=False, soft_wrap=True)


def _build(
    source: Path | None, films: Path, out: Path, like: Path | None, version: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Build from an engine, or from an ONNX network in an engine's place."""
    from ptxsdk.build import VARIANTS, build_engine, build_variants

    unknown = [name for name in options["precisions"] if name not in VARIANTS]
    if unknown:
        raise typer.BadParameter(f"--precisions {unknown[0]!r} is not one of {', '.join(VARIANTS)}")
    if source is not None and source.suffix.lower() == ".onnx":
        contract = ptxsdk.Engine.open(like or ptxsdk.Engine.default_path()).manifest
        network = _read_network(source)
        make_folder(out)  # said now where it cannot be, not when all is done
        variants = build_variants(contract, network, films, **options)
        written = [out / f"{source.stem}.{variant.precision}.onnx" for variant in variants]
        for path, variant in zip(written, variants, strict=True):
            write_file(path, variant.network)
    else:
        engine = ptxsdk.Engine.open(source or ptxsdk.Engine.default_path())
        written = [out]
        _, variants = build_engine(engine, films, out, version=version, **options)
    return {
        "written": [str(path) for path in written],
        "variants": {
            variant.precision: {
                "bytes": len(variant.network),
                "float_layers": list(variant.float_layers),
                "accuracy": variant.accuracy.numbers(),
            }
            for variant in variants
        },
    }


def _read_network(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BuildError("build.network", f"{str(path)!r} cannot be read: {error.strerror}") from error


def _build_plans(source: Path | None, device: str, *, as_json: bool) -> None:
    """Load the engine on a GPU in every precision, which builds what the cache of plans does not hold."""
    engine = open_engine(source, None, as_json=as_json)
    done = {}
    for precision in engine.precisions:
        started = perf_counter()
        try:
            with make_detector(engine, None, device=device, backend="tensorrt", precision=precision) as detector:
                done[precision] = {"films": detector.self_test(), "seconds": round(perf_counter() - started, 3)}
        except PtxsdkError as error:
            fail(error, as_json=as_json)
    if as_json:
        print(json.dumps({"plans": done}))
        return
    for precision, entry in done.items():
        console().print(f"{precision}: {entry['films']} golden films reproduced, {entry['seconds']} s")


@contextlib.contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each stage on a terminal; a line for each elsewhere would be noise."""
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(console=console(stderr=True), redirect_stdout=False, redirect_stderr=False) as progress:

        def track(stage: str, done: int, of: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=of)
            progress.update(tasks[stage], completed=done)

        yield track
