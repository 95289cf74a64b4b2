"""Print the input matrix: how many ways of writing one picture as DICOM are read back as that picture.

Every combination of how values are to be shown, in explicit little endian; and every encoder of every transfer syntax
with every number of bits, sign and padding.  Exit status 1 where one of them is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import dicom_matrix as matrix

from ptxsdk.errors import InputError
from ptxsdk.readers import read

Cell = matrix.Cell


def judge(cells: Iterable[Cell]) -> list[tuple[Cell, str, bool]]:
    """Return each cell, what is wrong with it, and whether it could be written here."""
    found = []
    for cell in cells:
        missing = matrix.available(cell)
        if missing:
            found.append((cell, missing, False))
            continue
        try:
            found.append((cell, matrix.fault(cell, read(matrix.make(cell))), True))
        except InputError as error:
            found.append((cell, str(error), True))
    return found


def table(
    judged: list[tuple[Cell, str, bool]], rows: Callable[[Cell], str], columns: Callable[[Cell], str]
) -> list[str]:
    """Return the lines of a Markdown table: right of all, for each row and column."""
    right: Counter[tuple[str, str]] = Counter()
    all_: Counter[tuple[str, str]] = Counter()
    for cell, fault, written in judged:
        place = (rows(cell), columns(cell))
        all_[place] += written
        right[place] += written and not fault
    cells = [cell for cell, _, _ in judged]
    heads = dict.fromkeys(columns(cell) for cell in sorted(cells, key=_in_order))
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for row in dict.fromkeys(rows(cell) for cell in sorted(cells, key=lambda cell: _in_order(cell)[::-1])):
        values = (f"{right[row, head]}/{all_[row, head]}" if all_[row, head] else "-" for head in heads)
        lines.append(f"| {row} | " + " | ".join(values) + " |")
    return lines


def _in_order(cell: Cell) -> tuple[int, ...]:
    return tuple(values.index(getattr(cell, name)) for name, values in matrix.FACTORS.items())


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--covering", action="store_true", help="the reduced form that the tests run")
    options = parser.parse_args()
    if options.covering:
        shown = encoded = judge(matrix.covering_cells())
    else:
        shown = judge(matrix.all_cells(encodings=[matrix.ENCODINGS[1]]))
        encoded = judge(
            cell
            for cell in matrix.all_cells(photometric="MONOCHROME1", shape="INVERSE", modality="none")
            if cell.voi in ("LINEAR", "SIGMOID", "LUT 16 bit")
        )
    shape_names = {"": "absent"}
    print(
        "How values are shown (right of all; explicit little endian)\n" if not options.covering else "Covering form\n"
    )
    print(
        *table(
            shown,
            lambda cell: f"VOI {cell.voi}",
            lambda cell: (
                f"{cell.photometric}, shape {shape_names.get(cell.shape, cell.shape)}"
                + (" (contradiction)" if cell.contradicts_itself else "")
            ),
        ),
        sep="\n",
    )
    print()
    print(*table(shown, lambda cell: f"modality {cell.modality}", lambda cell: f"padding {cell.padding}"), sep="\n")
    print("\nHow pixels are encoded\n")
    print(
        *table(
            encoded,
            lambda cell: f"{cell.encoding.syntax.name} ({cell.encoding.encoder})",
            lambda cell: f"{cell.bits} bit {'signed' if cell.signed else 'unsigned'}",
        ),
        sep="\n",
    )
    judged = shown if shown is encoded else shown + encoded
    wrong = [(cell, fault) for cell, fault, written in judged if fault and written]
    skipped = Counter(fault for _, fault, written in judged if not written)
    for cell, fault in wrong[:50]:
        print(f"WRONG {cell.name}: {fault}")
    for reason, count in skipped.items():
        print(f"not written: {count} cells: {reason}")
    total = sum(written for _, _, written in judged)
    print(f"\n{total - len(wrong)} of {total} cells show the picture to within one gray level")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
