"""What commands say on a terminal, and how they end where something fails."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from ptxsdk.errors import PtxsdkError

if TYPE_CHECKING:
    from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """Return the terminal, or what stands in its place."""
    from rich.console import Console

    return Console(stderr=stderr)


def table(terminal: Console, title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print rows of text under a title; an empty head is not shown."""
    from rich.table import Table

    made = Table(*head, title=title or None, title_justify="left", show_header=any(head), box=None)
    for row in rows:
        made.add_row(*(escaped(cell) for cell in row))
    terminal.print(made)


def escaped(text: str) -> str:
    """Return `text` as rich prints it unchanged, printable."""
    from rich.markup import escape

    return escape(printable(text))


def printable(text: str) -> str:
    """Return `text` without what a terminal would act on or an encoding could not write."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def interval(estimate: Any) -> str:
    """Return an estimate of the manifest with its interval and n."""
    return f"{estimate.value:.3f} ({estimate.low:.3f}-{estimate.high:.3f}, n={estimate.n})"


def fail(error: PtxsdkError, *, as_json: bool) -> NoReturn:
    """Say what went wrong, as JSON on stdout or as text on stderr, and end with exit status 1."""
    if as_json:
        print(json.dumps({"error": {"code": error.code, "message": error.message}}))
    else:
        terminal = console(stderr=True)
        terminal.print(printable(str(error)), style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1) from error
