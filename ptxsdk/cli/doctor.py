"""Command: ``ptxsdk doctor``."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import ptxsdk
from ptxsdk.cli.options import JsonOption
from ptxsdk.cli.output import console, table
from ptxsdk.errors import PtxsdkError


def doctor(as_json: JsonOption = False) -> None:
    """Say what is installed and which backends are usable, or why not."""
    report = _doctor_report()
    if as_json:
        print(json.dumps(report))
        return
    terminal = console()
    table(terminal, "versions", ("", ""), list(report["versions"].items()))
    table(terminal, "CPU", ("", ""), [(name, str(value)) for name, value in report["cpu"].items()])
    table(
        terminal,
        "backends",
        ("name", "usable", ""),
        [(name, "yes" if entry["usable"] else "no", entry["reason"]) for name, entry in report["backends"].items()],
    )
    table(
        terminal, "other", ("", ""), [("gpu", report["gpu"]), ("codecs", report["codecs"]), *report["engine"].items()]
    )


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
        "cpu": cpu(),
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


def cpu() -> dict[str, Any]:
    """Return the CPU's model, its cores, and the instruction sets of the kernels that it runs."""
    from ptxsdk import _core

    model = platform.processor() or platform.machine()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return {"model": model, "cores": os.cpu_count(), "instruction_sets": _core.usable_isas()}
