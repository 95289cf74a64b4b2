"""Command: ``ptxsdk audit``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ptxsdk.cli.options import JsonOption, path_argument
from ptxsdk.cli.output import console, fail
from ptxsdk.errors import PtxsdkError


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
        fail(error, as_json=as_json)
    if as_json:
        result = {"records": found.records, "head": found.head.hash, "torn_bytes": found.torn}
        print(json.dumps(result))
    else:
        terminal = console()
        terminal.print(f"{found.records} records, each follows the one before", highlight=False)
        terminal.print(f"head {found.head.hash}", highlight=False, soft_wrap=True)
        if found.torn:
            terminal.print(f"{found.torn} bytes of an unfinished record at the end", style="yellow", highlight=False)
    raise typer.Exit(1 if found.torn else 0)
