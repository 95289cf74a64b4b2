"""Commands: ``ptxsdk inspect``, ``verify``, ``keygen``, ``sign`` and ``provision``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

import ptxsdk
from ptxsdk.cli.detector import make_detector, open_engine, read_key
from ptxsdk.cli.options import (
    BackendOption,
    DeviceOption,
    EngineArgument,
    JsonOption,
    KeyOption,
    Precision,
    PrecisionOption,
    RollbackOption,
    path_argument,
    path_option,
)
from ptxsdk.cli.output import console, escaped, fail, interval, table
from ptxsdk.errors import PtxsdkError, WriterError
from ptxsdk.files import write_file


def inspect(engine: EngineArgument = None, as_json: JsonOption = False) -> None:
    """Show an engine's manifest: precisions, operating points, metrics, provenance."""
    opened = open_engine(engine, None, as_json=as_json)
    manifest = opened.manifest
    if as_json:
        print(json.dumps({"sha256": opened.sha256, "signature": opened.signature, **json.loads(manifest.to_json())}))
        return
    terminal = console()
    terminal.print(f"{manifest.name} {manifest.version}", style="bold")
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
    table(terminal, "", ("", ""), rows)
    notes: list[str] = []

    def note(text: str) -> str:
        if text not in notes:
            notes.append(text)
        return f"({notes.index(text) + 1})"

    table(
        terminal,
        "operating points",
        ("name", "threshold", "sensitivity (95 %)", "specificity (95 %)", "data"),
        [
            (
                f"{point.name}{' *' if point.name == manifest.default_operating_point else ''}",
                f"{point.threshold:.3f}",
                interval(point.sensitivity),
                interval(point.specificity),
                note(point.data),
            )
            for point in manifest.operating_points
        ],
    )
    table(
        terminal,
        "metrics",
        ("name", "value (95 %)", "data"),
        [(metric.name, interval(metric), note(metric.data)) for metric in manifest.metrics],
    )
    for number, text in enumerate(notes, 1):
        terminal.print(f"({number}) {escaped(text)}", highlight=False)
    table(
        terminal,
        "training data",
        ("name", "films", "credit", "licence"),
        [(source.name, str(source.n), source.credit, source.licence) for source in manifest.provenance.training_data],
    )


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
    opened = open_engine(engine, key, as_json=as_json)
    try:
        with make_detector(
            opened, key, rollback=rollback, device=device, backend=backend, precision=precision.value
        ) as detector:
            compared = detector.self_test()
            ran = f"{detector.backend} {detector.precision}"
    except PtxsdkError as error:
        fail(error, as_json=as_json)
    if as_json:
        result = {"sha256": opened.sha256, "signature": opened.signature, "golden": compared, "ran": ran}
        print(json.dumps(result))
        return
    terminal = console()
    terminal.print(f"contents  {len(opened.manifest.entries)} entries, every hash right")
    terminal.print(f"signature {opened.signature}")
    terminal.print(f"self-test {compared} golden films reproduced on {ran}")


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
        fail(error, as_json=False)
    console().print(escaped(f"private key {out}: keep it off the devices\npublic key {public}"), highlight=False)


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
        signed = sign_engine(engine, out, signing_key=read_key(key), security_version=security_version)
    except PtxsdkError as error:
        fail(error, as_json=as_json)
    if as_json:
        print(json.dumps({"written": str(out), "sha256": signed.sha256, "security_version": signed.security_version}))
        return
    console().print(
        escaped(f"written: {out}, security version {signed.security_version}"), highlight=False, soft_wrap=True
    )


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
        fail(error, as_json=False)
