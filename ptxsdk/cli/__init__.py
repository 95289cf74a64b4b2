"""The command line.  Names, options, JSON keys and exit statuses are a contract: integrators script against them."""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

import typer

from ptxsdk.cli import audit, bench, build, doctor, engines, node, predict
from ptxsdk.deadline import wait_for_those_left
from ptxsdk.detection import DISCLAIMER

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=f"Finds pneumothorax on frontal chest radiographs and shows where it is. {DISCLAIMER}",
)
for command in (
    predict.predict,
    engines.inspect,
    engines.verify,
    engines.keygen,
    engines.sign,
    engines.provision,
    audit.audit,
    build.build,
    node.node,
    node.watch,
    node.view,
    doctor.doctor,
    bench.bench,
):
    app.command()(command)


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
