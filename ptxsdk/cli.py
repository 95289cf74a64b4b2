"""The command line.  Names, options, JSON keys and exit statuses are a contract: integrators script against them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import numpy as np
import typer

import ptxsdk
from ptxsdk.arguments import path_argument, path_option
from ptxsdk.deadline import wait_for_those_left
from ptxsdk.detection import DISCLAIMER, Detection
from ptxsdk.errors import BuildError, DetectorError, InputError, PtxsdkError, WriterError
from ptxsdk.files import open_file, write_file
from ptxsdk.node import command as node_commands

if TYPE_CHECKING:
    from rich.console import Console

OVERLAY_SUFFIX = ".overlay.png"
RESULT_SUFFIXES = (OVERLAY_SUFFIX, ".sc.dcm", ".sr.dcm", ".seg.dcm", ".gsps.dcm")
MAX_NAME_BYTES = 255
"""Of a file's name, on the usual file systems."""

_log = logging.getLogger("ptxsdk.cli")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=f"Finds pneumothorax on frontal chest radiographs and shows where it is. {DISCLAIMER}",
)


class Precision(str, Enum):
    """Arithmetic of the network."""

    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class Profile(str, Enum):
    """What results may show."""

    triage = "triage"
    cade = "cade"


EngineOption = Annotated[Path | None, path_option("--engine", help="A .ptxengine; default: the one that ships.")]
EngineArgument = Annotated[Path | None, path_argument(metavar="[ENGINE]", help="Default: the one that ships.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda[:N].")]
BackendOption = Annotated[str, typer.Option("--backend", help="auto, openvino, tensorrt or onnxruntime.")]
PrecisionOption = Annotated[Precision, typer.Option("--precision", help="Arithmetic of the network.")]
KeyOption = Annotated[
    Path | None, path_option("--key", metavar="PUB", help="Ed25519 public key, raw or PEM: refuse other engines.")
]
RollbackOption = Annotated[
    Path | None,
    path_option("--rollback", metavar="FILE", help="With --key: refuse engines older than this file knows."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else.")]


def main() -> NoReturn:
    """Run the command line; exit status 0 done, 1 something failed, 2 usage."""
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    try:
        try:
            app(prog_name="ptxsdk")
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
    except OSError as error:  # stdout is full or gone: what could not be said is not done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"ptxsdk: cannot write the output: {error.strerror}", file=sys.stderr)
        status = 1
    if not wait_for_those_left():  # a network that hangs would abort the process
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)
    sys.exit(status)


def _open_standard_streams() -> None:
    """Have all three where the caller closed some: or the next file opened, an audit log, would be taken for one.

    Without standard output nothing can be said, so nothing is done.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - to the end
    if sys.stdout is None:
        print("ptxsdk: cannot write the output: standard output is closed", file=sys.stderr)
        sys.exit(1)


@app.command()
def predict(
    films: Annotated[list[Path], path_argument(metavar="FILE|DIR...", help="Films; folders are searched.")],
    engine: EngineOption = None,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    precision: PrecisionOption = Precision.auto,
    profile: Annotated[Profile, typer.Option("--profile", help="triage: never a location.")] = Profile.cade,
    operating_point: Annotated[str | None, typer.Option("--operating-point", help="By name.")] = None,
    as_json: JsonOption = False,
    out: Annotated[Path | None, path_option("--out", help="Folder for what --write names.")] = None,
    write: Annotated[
        str | None, typer.Option("--write", help="With --out: overlay,json (the default), sc,sr,seg,gsps.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Research: score films that the input gate refuses, and mark the results.")
    ] = False,
    key: KeyOption = None,
    rollback: RollbackOption = None,
    audit: Annotated[
        Path | None, path_option("--audit", metavar="FILE", help="Append a record of every film, scored or not.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", help="Give up a film that takes longer.")
    ] = None,
) -> None:
    """Score films.

    One JSON object a line with --json. A film that fails never stops the others; exit status 1 when any was not
    scored.
    """
    if timeout is not None and not 0 < timeout <= threading.TIMEOUT_MAX:
        raise typer.BadParameter(f"--timeout {timeout} is not a number of seconds above 0")
    writers = _chosen_writers(write, out, profile)
    console = _console(stderr=True)
    found = list(_find_films(films))
    failed = False

    def report(path: Path, outcome: Detection | PtxsdkError) -> None:
        nonlocal failed
        failed |= isinstance(outcome, PtxsdkError)
        if as_json:
            _print_json_line(path, outcome)
        elif isinstance(outcome, PtxsdkError):
            console.print(_printable(f"{path}: {outcome}"), style="red", markup=False, highlight=False, soft_wrap=True)
        else:
            _print_detection(path, outcome)

    log: ptxsdk.AuditFile | None = None
    try:
        if out is not None:
            _make_folder(out)
        log = None if audit is None else ptxsdk.AuditFile(audit)
        detector = _make_detector(
            engine,
            key,
            audit=log,
            rollback=rollback,
            device=device,
            backend=backend,
            precision=precision.value,
            operating_point=operating_point,
            profile=profile.value,
            gate_policy=ptxsdk.GatePolicy(enforce=not force),
        )
    except PtxsdkError as error:
        if log is not None:
            log.close()
        if not as_json:
            _fail(error, as_json=False)
        for path, _ in found:
            report(path, error)
        raise typer.Exit(1) from error
    with detector, log or contextlib.nullcontext():
        for path, name in _progress(found, console):
            if isinstance(name, PtxsdkError):
                report(path, name)
            else:
                report(path, _predict_one(detector, path, timeout, None if out is None else out / name, writers))
    raise typer.Exit(1 if failed else 0)


@app.command()
def inspect(engine: EngineArgument = None, as_json: JsonOption = False) -> None:
    """Show an engine's manifest: precisions, operating points, metrics, provenance."""
    opened = _open_engine(engine, None, as_json=as_json)
    manifest = opened.manifest
    if as_json:
        print(json.dumps({"sha256": opened.sha256, "signature": opened.signature, **json.loads(manifest.to_json())}))
        return
    console = _console()
    console.print(f"{manifest.name} {manifest.version}", style="bold")
    rows = [
        ("file SHA-256", opened.sha256),
        ("created", manifest.created),
        ("signature", opened.signature),
        ("security version", str(opened.security_version)),
        ("precisions", ", ".join(opened.precisions)),
        ("input", f"{manifest.input.size[0]} x {manifest.input.size[1]}"),
        ("image score", manifest.aggregation.method),
        ("intended use", manifest.intended_use),
    ]
    _table(console, "", ("", ""), rows)
    notes: list[str] = []

    def note(text: str) -> str:
        if text not in notes:
            notes.append(text)
        return f"({notes.index(text) + 1})"

    _table(
        console,
        "operating points",
        ("name", "threshold", "sensitivity (95 %)", "specificity (95 %)", "data"),
        [
            (
                f"{point.name}{' *' if point.name == manifest.default_operating_point else ''}",
                f"{point.threshold:.3f}",
                _interval(point.sensitivity),
                _interval(point.specificity),
                note(point.data),
            )
            for point in manifest.operating_points
        ],
    )
    _table(
        console,
        "metrics",
        ("name", "value (95 %)", "data"),
        [(metric.name, _interval(metric), note(metric.data)) for metric in manifest.metrics],
    )
    for number, text in enumerate(notes, 1):
        console.print(f"({number}) {_escaped(text)}", highlight=False)
    _table(
        console,
        "training data",
        ("name", "films", "credit", "licence"),
        [(source.name, str(source.n), source.credit, source.licence) for source in manifest.provenance.training_data],
    )


@app.command()
def verify(
    engine: EngineArgument = None,
    key: KeyOption = None,
    rollback: RollbackOption = None,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    precision: PrecisionOption = Precision.auto,
    as_json: JsonOption = False,
) -> None:
    """Check an engine: every hash, the signature if a key is given, and its golden films on this device.

    With --rollback its security version is checked too, and kept as what this device has accepted.
    """
    opened = _open_engine(engine, key, as_json=as_json)
    try:
        with _make_detector(
            opened, key, rollback=rollback, device=device, backend=backend, precision=precision.value
        ) as detector:
            compared = detector.self_test()
            ran = f"{detector.backend} {detector.precision}"
    except PtxsdkError as error:
        _fail(error, as_json=as_json)
    if as_json:
        result = {"sha256": opened.sha256, "signature": opened.signature, "golden": compared, "ran": ran}
        print(json.dumps(result))
        return
    console = _console()
    console.print(f"contents  {len(opened.manifest.entries)} entries, every hash right")
    console.print(f"signature {opened.signature}")
    console.print(f"self-test {compared} golden films reproduced on {ran}")


@app.command()
def keygen(
    out: Annotated[Path, path_option("--out", metavar="FILE", help="The private key; its public key is FILE.pub.")],
) -> None:
    """Make an Ed25519 key to sign engines with, and the public key that devices trust; replace no file."""
    from ptxsdk.engine import new_keys

    public = out.with_name(f"{out.name}.pub")
    try:
        for path in (out, public):
            if os.path.lexists(path):
                raise WriterError("writer.failed", f"there is a {str(path)!r} already")
        for path, key, mode in zip((out, public), new_keys(), (0o600, 0o644), strict=True):
            write_file(path, key, mode=mode)
    except PtxsdkError as error:
        _fail(error, as_json=False)
    _console().print(_escaped(f"private key {out}: keep it off the devices\npublic key {public}"), highlight=False)


@app.command()
def sign(
    engine: Annotated[Path, path_argument(metavar="ENGINE", help="All but its signature is verified first.")],
    key: Annotated[Path, path_option("--key", metavar="PRIVATE", help="Ed25519 private key, raw or plain PEM.")],
    out: Annotated[Path, path_option("--out", metavar="FILE", help="Engine to write; may be ENGINE.")],
    security_version: Annotated[
        int | None, typer.Option("--security-version", min=1, help="Devices refuse lower ones once they ran this.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sign an engine, in place of any signature it has."""
    from ptxsdk.engine import sign_engine

    try:
        signed = sign_engine(engine, out, signing_key=_read_key(key), security_version=security_version)
    except PtxsdkError as error:
        _fail(error, as_json=as_json)
    if as_json:
        print(json.dumps({"written": str(out), "sha256": signed.sha256, "security_version": signed.security_version}))
        return
    _console().print(
        _escaped(f"written: {out}, security version {signed.security_version}"), highlight=False, soft_wrap=True
    )


@app.command()
def provision(
    file: Annotated[Path, path_argument(metavar="FILE", help="Must not exist.")],
    security_version: Annotated[
        int, typer.Option("--security-version", min=0, help="The lowest that this device accepts.")
    ] = 0,
) -> None:
    """Make the file in which a device keeps the highest security version it has accepted: --rollback."""
    try:
        ptxsdk.RollbackFile.create(file, security_version)
    except PtxsdkError as error:
        _fail(error, as_json=False)


@app.command()
def audit(
    file: Annotated[Path, path_argument(metavar="FILE", help="An audit log; it may be in use.")],
    head: Annotated[
        str | None, typer.Option("--head", metavar="HASH", help="Hash of a record that must be there.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check an audit log: every record as written, none missing between; exit status 1 where not, or cut short."""
    from ptxsdk.audit import verify as verify_audit

    try:
        found = verify_audit(file, head=head)
    except PtxsdkError as error:
        _fail(error, as_json=as_json)
    if as_json:
        result = {"records": found.records, "head": found.head.hash, "torn_bytes": found.torn}
        print(json.dumps(result))
    else:
        console = _console()
        console.print(f"{found.records} records, each follows the one before", highlight=False)
        console.print(f"head {found.head.hash}", highlight=False, soft_wrap=True)
        if found.torn:
            console.print(f"{found.torn} bytes of an unfinished record at the end", style="yellow", highlight=False)
    raise typer.Exit(1 if found.torn else 0)


@app.command()
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
        _fail(error, as_json=as_json)
    if as_json:
        print(json.dumps(report))
        return
    console = _console()
    for name, entry in report["variants"].items():
        numbers = {key: f"{value:.4g}" for key, value in entry["accuracy"].items()}
        _table(console, f"{name}, {entry['bytes']} bytes", ("", ""), list(numbers.items()))
        if entry["float_layers"]:
            console.print(_escaped(f"in float: {', '.join(entry['float_layers'])}"), highlight=False, soft_wrap=True)
    console.print(_escaped(f"written: {', '.join(report['written'])}"), highlight=False, soft_wrap=True)


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
        _make_folder(out)  # said now where it cannot be, not when all is done
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
    engine = _open_engine(source, None, as_json=as_json)
    done = {}
    for precision in engine.precisions:
        started = perf_counter()
        try:
            with _make_detector(engine, None, device=device, backend="tensorrt", precision=precision) as detector:
                done[precision] = {"films": detector.self_test(), "seconds": round(perf_counter() - started, 3)}
        except PtxsdkError as error:
            _fail(error, as_json=as_json)
    if as_json:
        print(json.dumps({"plans": done}))
        return
    for precision, entry in done.items():
        _console().print(f"{precision}: {entry['films']} golden films reproduced, {entry['seconds']} s")


@contextlib.contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each stage on a terminal; a line for each elsewhere would be noise."""
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(console=_console(stderr=True), redirect_stdout=False, redirect_stderr=False) as progress:

        def track(stage: str, done: int, of: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=of)
            progress.update(tasks[stage], completed=done)

        yield track


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what is installed and which backends are usable, or why not."""
    report = _doctor_report()
    if as_json:
        print(json.dumps(report))
        return
    console = _console()
    _table(console, "versions", ("", ""), list(report["versions"].items()))
    _table(console, "CPU", ("", ""), [(name, str(value)) for name, value in report["cpu"].items()])
    _table(
        console,
        "backends",
        ("name", "usable", ""),
        [(name, "yes" if entry["usable"] else "no", entry["reason"]) for name, entry in report["backends"].items()],
    )
    _table(
        console, "other", ("", ""), [("gpu", report["gpu"]), ("codecs", report["codecs"]), *report["engine"].items()]
    )


@app.command()
def bench(
    engine: EngineOption = None,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    precision: PrecisionOption = Precision.auto,
    repeats: Annotated[int, typer.Option("--repeats", min=5, help="Films to time.")] = 50,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time cold start, every stage and end to end on this device, with a 3000 x 2500 uint16 film in memory."""
    started = perf_counter()
    try:
        detector = _make_detector(engine, key, device=device, backend=backend, precision=precision.value)
        cold = perf_counter() - started
        film = _bench_film(detector)
        for _ in range(3):
            detector.predict(film)
        timings = [detector.predict(film).timings for _ in range(repeats)]
    except PtxsdkError as error:
        _fail(error, as_json=as_json)
    report: dict[str, Any] = {
        "engine": {"name": detector.engine.id.name, "version": detector.engine.id.version},
        "backend": detector.backend,
        "precision": detector.precision,
        "cpu": _cpu()["model"],
        "film": "3000 x 2500 uint16",
        "repeats": repeats,
        "cold_start_ms": round(1e3 * cold, 1),
        "stages_ms": {},
    }
    for stage in ("read", "gate", "preprocess", "network", "aggregate", "total"):
        values = [getattr(timing, stage) for timing in timings]
        p50, p95, p99 = (round(float(value), 3) for value in np.percentile(values, (50, 95, 99)))
        report["stages_ms"][stage] = {"p50": p50, "p95": p95, "p99": p99}
    detector.close()
    if as_json:
        print(json.dumps(report))
        return
    console = _console()
    console.print(
        f"{report['backend']} {report['precision']} on {report['cpu']}, cold start {report['cold_start_ms']} ms"
    )
    _table(
        console,
        f"milliseconds a film, {repeats} films",
        ("stage", "p50", "p95", "p99"),
        [
            (stage, f"{entry['p50']:.2f}", f"{entry['p95']:.2f}", f"{entry['p99']:.2f}")
            for stage, entry in report["stages_ms"].items()
        ],
    )


node_commands.add_to(app)


def _chosen_writers(write: str | None, out: Path | None, profile: Profile) -> tuple[str, ...]:
    from ptxsdk.writers import DEFAULT, NAMES, permitted

    if write is not None and out is None:
        raise typer.BadParameter("--write needs --out")
    if write is None:
        return () if out is None else permitted(profile.value, DEFAULT)
    names = tuple(name.strip() for name in write.split(","))
    for name in names:
        if name not in NAMES:
            raise typer.BadParameter(f"--write {name!r} is not one of {', '.join(NAMES)}")
        if not permitted(profile.value, (name,)):
            raise typer.BadParameter(f"--profile triage shows no location: it cannot write {name}")
    return names


def _find_films(films: Iterable[Path]) -> Iterator[tuple[Path, str | PtxsdkError]]:
    """Yield every film with the name its results get, unique in this run, or with the reason why there is none."""
    taken: set[str] = set()
    for given in films:
        paths, refused = _look_into(given)
        yield from refused
        if not paths and not refused:
            yield given, InputError("input.not_found", "the folder holds no film")
        for path in paths:
            relative = path.relative_to(given) if path != given else Path(path.name)
            wanted = "__".join(relative.parts)
            name = _shortened(wanted)
            count = 1
            while name in taken:
                count += 1
                name = _shortened(f"{wanted}-{count}")
            taken.add(name)
            yield path, name


def _shortened(name: str) -> str:
    """Return a name that every suffix of results can follow: one too long ends with a hash of all of it instead."""
    room = MAX_NAME_BYTES - max(map(len, RESULT_SUFFIXES))
    encoded = os.fsencode(name)
    if len(encoded) <= room:
        return name
    end = f"-{hashlib.sha256(encoded).hexdigest()[:32]}"
    beginning = name[: room - len(end)]
    while len(os.fsencode(beginning)) > room - len(end):  # cut between characters, not inside one
        beginning = beginning[:-1]
    return beginning + end


def _look_into(given: Path) -> tuple[list[Path], list[tuple[Path, PtxsdkError]]]:
    """Return the films of a folder, however deep, and what could not be looked at; of another path the path itself."""
    films: list[Path] = []
    refused: list[tuple[Path, PtxsdkError]] = []
    folders = [given]
    while folders:
        folder = folders.pop()
        try:
            if folder == given and not folder.is_dir():
                return [given], []
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    elif _is_film(Path(entry.path)):
                        films.append(Path(entry.path))
        except OSError as error:
            why = InputError("input.unreadable", f"the path cannot be looked at: {error.strerror}")
            refused.append((folder, why))
    return sorted(films), refused


def _is_film(path: Path) -> bool:
    """Say whether a file found in a folder is one: by suffix or by content; no index, no result."""
    from ptxsdk import readers

    if path.name == "DICOMDIR" or path.name.endswith(RESULT_SUFFIXES):
        return False
    try:
        if path.suffix.lower() in readers.FILM_SUFFIXES:
            return path.is_file()
        with open_file(path) as file:
            return readers.looks_like_film(file.read(256))
    except OSError:
        return False


def _predict_one(
    detector: ptxsdk.Detector, path: Path, timeout: float | None, stem: Path | None, writers: tuple[str, ...]
) -> Detection | PtxsdkError:
    try:
        film, detection = detector.read_and_predict(path, timeout=timeout)
        if stem is not None:
            _write(detection, film, path, stem, writers)
    except PtxsdkError as error:
        return error
    except MemoryError:
        return InputError("input.too_large", "there is not enough memory for this film")
    except Exception as error:  # noqa: BLE001 - a defect of ours must not stop the other films
        _log.exception("unexpected failure")
        return DetectorError("detector.internal", f"unexpected {type(error).__name__}")
    return detection


def _write(detection: Detection, film: ptxsdk.Radiograph, path: Path, stem: Path, writers: tuple[str, ...]) -> None:
    """Write what was asked for, beside each other, under the name that the film's results have: all of it or nothing.

    The JSON is written last: where it is, the other files are there.  So one of an earlier run goes first.
    """
    from ptxsdk.writers import DICOM, dicom_content, dicom_objects
    from ptxsdk.writers.json import json_content
    from ptxsdk.writers.overlay import overlay_content

    formats = [name for name in DICOM if name in writers]
    objects = dicom_objects(detection, film, formats) if formats else {}
    contents: dict[Path, bytes] = {}
    if "overlay" in writers:
        contents[stem.with_name(f"{stem.name}{OVERLAY_SUFFIX}")] = overlay_content(film, detection)
    for name, dataset in objects.items():
        contents[stem.with_name(f"{stem.name}.{name}.dcm")] = dicom_content(dataset)
    if "json" in writers:
        last = stem.with_name(f"{stem.name}.json")
        contents[last] = json_content(str(path), detection)
        _remove(last)
    written: list[Path] = []
    try:
        for target, content in contents.items():
            write_file(target, content)
            written.append(target)
    except BaseException:
        for target in written:
            with contextlib.suppress(OSError):
                target.unlink()
        raise


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WriterError("writer.failed", f"{str(path)!r} cannot be replaced: {error.strerror}") from error


def _progress(
    found: list[tuple[Path, str | PtxsdkError]], console: Console
) -> Iterable[tuple[Path, str | PtxsdkError]]:
    """Show a bar for many films where results do not run through the same terminal."""
    if len(found) < 5 or not console.is_terminal or sys.stdout.isatty():
        return found
    from rich.progress import Progress

    def shown() -> Iterator[tuple[Path, str | PtxsdkError]]:
        with Progress(console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
            yield from progress.track(found, description="films")

    return shown()


def _print_json_line(path: Path, outcome: Detection | PtxsdkError) -> None:
    from ptxsdk.writers.json import to_line

    print(to_line(str(path), outcome), flush=True)


def _print_detection(path: Path, detection: Detection) -> None:
    console = _console()
    point = detection.operating_point
    verdict = "[bold yellow]PNEUMOTHORAX FLAGGED[/]" if detection.flagged else "not flagged"
    console.print(
        f"{_escaped(str(path))}: {verdict}  probability {detection.probability:.3f} "
        f"({point.name}, threshold {point.threshold:.3f})",
        highlight=False,
        soft_wrap=True,
    )
    for region in detection.regions:
        area = f"{region.area_px:.0f} px" if region.area_mm2 is None else f"{region.area_mm2 / 100:.1f} cm2"
        console.print(
            f"  {region.side or 'side unknown'}  box {region.box}  area {area}  peak {region.probability:.2f}",
            highlight=False,
        )
    if detection.forced:
        overridden = "; ".join(
            f"{check.code}: {check.detail}" for check in detection.quality.checks if check.status == "fail"
        )
        console.print(f"  GATE OVERRIDDEN  {_escaped(overridden)}", style="red", highlight=False, soft_wrap=True)
    for warning in detection.quality.warnings:
        console.print(f"  {_escaped(warning)}", style="dim", highlight=False, soft_wrap=True)
    console.print(f"  {DISCLAIMER}", style="dim", highlight=False, soft_wrap=True)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(_printable(text))


def _printable(text: str) -> str:
    """Return `text` without what a terminal would act on or an encoding could not write."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _make_detector(engine: Path | ptxsdk.Engine | None, key: Path | None, **options: Any) -> ptxsdk.Detector:
    keys = None if key is None else (_read_key(key),)
    try:
        return ptxsdk.Detector(engine, trusted_keys=keys, **options)
    except DetectorError as error:
        raise typer.BadParameter(error.message) from error


def _open_engine(path: Path | None, key: Path | None, *, as_json: bool) -> ptxsdk.Engine:
    keys = () if key is None else (_read_key(key),)
    try:
        source = ptxsdk.Engine.default_path() if path is None else path
        return ptxsdk.Engine.open(source, trusted_keys=keys, require_signature=bool(keys))
    except PtxsdkError as error:
        _fail(error, as_json=as_json)


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"--key {path}: {error.strerror}") from error


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriterError("writer.failed", f"no folder {str(out)!r}: {error.strerror}") from error


def _fail(error: PtxsdkError, *, as_json: bool) -> NoReturn:
    if as_json:
        print(json.dumps({"error": {"code": error.code, "message": error.message}}))
    else:
        console = _console(stderr=True)
        console.print(_printable(str(error)), style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1) from error


def _doctor_report() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    from ptxsdk import backends

    versions = {"ptxsdk": ptxsdk.__version__, "python": platform.python_version(), "system": platform.platform()}
    for name in (
        "numpy",
        "openvino",
        "onnxruntime",
        "pydicom",
        "imagecodecs",
        "opencv-python-headless",
        "highdicom",
        "pynetdicom",
    ):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    probes = {name: backends.probe(name) for name in backends.NAMES}
    try:
        opened = ptxsdk.Engine.open(ptxsdk.Engine.default_path())
        engine = {"name": opened.id.name, "version": opened.id.version, "sha256": opened.sha256}
    except PtxsdkError as error:
        engine = {"error": str(error)}
    return {
        "versions": versions,
        "cpu": _cpu(),
        "backends": {name: {"usable": usable, "reason": reason} for name, (usable, reason) in probes.items()},
        "gpu": _gpus(),
        "codecs": _confinement(),
        "engine": engine,
    }


def _confinement() -> str:
    """Say how far the kernel confines the helper process that codecs run in."""
    from ptxsdk.readers.decoder import landlock

    offered = landlock()
    confined = [what for what, least in (("files", 1), ("TCP", 4), ("signals", 6)) if offered >= least]
    return f"helper kept from {', '.join(confined)} by Landlock {offered}" if confined else "helper not confined"


def _gpus() -> str:
    """Say which CUDA devices there are, or why none is seen."""
    from ptxsdk.backends import cuda

    try:
        return ", ".join(cuda.Gpu.open(index).name for index in range(cuda.count()))
    except PtxsdkError as error:
        return error.message


def _cpu() -> dict[str, Any]:
    from ptxsdk import _core

    model = platform.processor() or platform.machine()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return {"model": model, "cores": os.cpu_count(), "instruction_sets": _core.usable_isas()}


def _bench_film(detector: ptxsdk.Detector) -> ptxsdk.Radiograph:
    """Return a golden film of the engine, enlarged to 3000 x 2500 and 12 bits: what a portable unit has in memory."""
    import cv2

    golden = detector.engine.golden()[0]
    low, high = golden.window
    pixels = cv2.resize(golden.pixels.astype(np.float32) * 16, (2500, 3000), interpolation=cv2.INTER_CUBIC)
    return ptxsdk.Radiograph.from_array(np.clip(pixels, 0, 4095).astype(np.uint16), window=(16 * low, 16 * high))


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _interval(estimate: Any) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f}-{estimate.high:.3f}, n={estimate.n})"


def _table(console: Console, title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.table import Table

    table = Table(*head, title=title or None, title_justify="left", show_header=any(head), box=None)
    for row in rows:
        table.add_row(*(_escaped(cell) for cell in row))
    console.print(table)
