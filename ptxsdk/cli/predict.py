"""Command: ``ptxsdk predict``."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import ptxsdk
from ptxsdk.cli.detector import make_detector
from ptxsdk.cli.options import (
    AuditOption,
    BackendOption,
    DeviceOption,
    EngineOption,
    JsonOption,
    KeyOption,
    OperatingPointOption,
    Precision,
    PrecisionOption,
    Profile,
    ProfileOption,
    RollbackOption,
    path_argument,
    path_option,
)
from ptxsdk.cli.output import console, escaped, fail, printable
from ptxsdk.detection import DISCLAIMER, Detection
from ptxsdk.errors import DetectorError, InputError, PtxsdkError, WriterError
from ptxsdk.files import make_folder, open_file, write_file

if TYPE_CHECKING:
    from rich.console import Console

OVERLAY_SUFFIX = ".overlay.png"
RESULT_SUFFIXES = (OVERLAY_SUFFIX, ".sc.dcm", ".sr.dcm", ".seg.dcm", ".gsps.dcm")
MAX_NAME_BYTES = 255
"""Of a file's name, on the usual file systems."""

_log = logging.getLogger("ptxsdk.cli")


def predict(
    films: Annotated[list[Path], path_argument(metavar="FILE|DIR...", help="Films; folders are searched.")],
    engine: EngineOption = None,
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
    precision: PrecisionOption = Precision.auto,
    profile: ProfileOption = Profile.cade,
    operating_point: OperatingPointOption = None,
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
    audit: AuditOption = None,
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
    terminal = console(stderr=True)
    found = list(find_films(films))
    failed = False

    def report(path: Path, outcome: Detection | PtxsdkError) -> None:
        nonlocal failed
        failed |= isinstance(outcome, PtxsdkError)
        if as_json:
            _print_json_line(path, outcome)
        elif isinstance(outcome, PtxsdkError):
            terminal.print(printable(f"{path}: {outcome}"), style="red", markup=False, highlight=False, soft_wrap=True)
        else:
            _print_detection(path, outcome)

    log: ptxsdk.AuditFile | None = None
    try:
        if out is not None:
            make_folder(out)
        log = None if audit is None else ptxsdk.AuditFile(audit)
        detector = make_detector(
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
            fail(error, as_json=False)
        for path, _ in found:
            report(path, error)
        raise typer.Exit(1) from error
    with detector, log or contextlib.nullcontext():
        for path, name in _progress(found, terminal):
            if isinstance(name, PtxsdkError):
                report(path, name)
            else:
                report(path, _predict_one(detector, path, timeout, None if out is None else out / name, writers))
    raise typer.Exit(1 if failed else 0)


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


def find_films(films: Iterable[Path]) -> Iterator[tuple[Path, str | PtxsdkError]]:
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
    found: list[tuple[Path, str | PtxsdkError]], terminal: Console
) -> Iterable[tuple[Path, str | PtxsdkError]]:
    """Show a bar for many films where results do not run through the same terminal."""
    if len(found) < 5 or not terminal.is_terminal or sys.stdout.isatty():
        return found
    from rich.progress import Progress

    def shown() -> Iterator[tuple[Path, str | PtxsdkError]]:
        with Progress(console=terminal, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
            yield from progress.track(found, description="films")

    return shown()


def _print_json_line(path: Path, outcome: Detection | PtxsdkError) -> None:
    from ptxsdk.writers.json import to_line

    print(to_line(str(path), outcome), flush=True)


def _print_detection(path: Path, detection: Detection) -> None:
    terminal = console()
    point = detection.operating_point
    verdict = "[bold yellow]PNEUMOTHORAX FLAGGED[/]" if detection.flagged else "not flagged"
    terminal.print(
        f"{escaped(str(path))}: {verdict}  probability {detection.probability:.3f} "
        f"({point.name}, threshold {point.threshold:.3f})",
        highlight=False,
        soft_wrap=True,
    )
    for region in detection.regions:
        area = f"{region.area_px:.0f} px" if region.area_mm2 is None else f"{region.area_mm2 / 100:.1f} cm2"
        terminal.print(
            f"  {region.side or 'side unknown'}  box {region.box}  area {area}  peak {region.probability:.2f}",
            highlight=False,
        )
    if detection.forced:
        overridden = "; ".join(
            f"{check.code}: {check.detail}" for check in detection.quality.checks if check.status == "fail"
        )
        terminal.print(f"  GATE OVERRIDDEN  {escaped(overridden)}", style="red", highlight=False, soft_wrap=True)
    for warning in detection.quality.warnings:
        terminal.print(f"  {escaped(warning)}", style="dim", highlight=False, soft_wrap=True)
    terminal.print(f"  {DISCLAIMER}", style="dim", highlight=False, soft_wrap=True)
