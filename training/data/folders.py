"""Read a folder of films in whichever of the known layouts it has."""

from __future__ import annotations

from pathlib import Path

from training.data.films import Film
from training.data.manifest import read_manifest
from training.data.nih import ENTRIES, read_nih
from training.data.siim import TABLES, find_table, read_siim


def read_films(folder: Path) -> list[Film]:
    """Read the films of a folder; its own ``manifest.csv`` goes before any published layout.

    Parameters
    ----------
    folder : Path
        As `read_manifest`, `read_nih` or `read_siim` takes it.

    Raises
    ------
    ValueError
        The folder has no known layout, or both published ones; TableError, which is one, where a table is wrong.
    """
    if (folder / "manifest.csv").is_file():
        return read_manifest(folder)
    nih = any((folder / name).is_file() for name in ENTRIES)
    siim = find_table(folder)
    if nih and siim is not None:
        raise ValueError(f"{folder.name} holds both ChestX-ray14 and SIIM-ACR tables; give each a folder")
    if nih:
        return read_nih(folder)
    if siim is not None:
        return read_siim(folder)
    raise ValueError(
        f"{folder.name} is no folder of films: looked for manifest.csv, {', '.join(ENTRIES)}, {', '.join(TABLES)}"
    )
