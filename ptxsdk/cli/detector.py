"""Engines and detectors as options name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

import ptxsdk
from ptxsdk.cli.output import fail
from ptxsdk.errors import DetectorError, PtxsdkError


def make_detector(engine: Path | ptxsdk.Engine | None, key: Path | None, **options: Any) -> ptxsdk.Detector:
    """Make a detector; options that contradict each other are usage errors."""
    keys = None if key is None else (read_key(key),)
    try:
        return ptxsdk.Detector(engine, trusted_keys=keys, **options)
    except DetectorError as error:
        if error.code != "detector.option":
            raise
        raise typer.BadParameter(error.message) from error


def open_engine(path: Path | None, key: Path | None, *, as_json: bool) -> ptxsdk.Engine:
    """Open an engine, the shipped one by default; signed by the key if one is given."""
    keys = () if key is None else (read_key(key),)
    try:
        source = ptxsdk.Engine.default_path() if path is None else path
        return ptxsdk.Engine.open(source, trusted_keys=keys, require_signature=bool(keys))
    except PtxsdkError as error:
        fail(error, as_json=as_json)


def read_key(path: Path) -> bytes:
    """Return the bytes of a key; a file that cannot be read is a usage error."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"--key {path}: {error.strerror}") from error
