"""Arguments of the command line that are paths."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import typer


def path(text: str) -> Path:
    """Return the path that an argument names.

    Raises
    ------
    typer.BadParameter
        It is empty, as a shell variable is that nobody set: pathlib would take it for the current folder.
    """
    if not text:
        raise typer.BadParameter("the path is empty; the current folder is .")
    return Path(text)


path_option = partial(typer.Option, parser=path)
path_argument = partial(typer.Argument, parser=path)
