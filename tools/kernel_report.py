"""What the CUDA compiler made of the kernels, for every architecture: registers, spills, shared memory, wide loads.

Prints the table of docs/kernels.md; needs nvcc.  Machine code is looked at where cuobjdump is found (it comes with the
toolkit, and as the package nvidia-cuda-cuobjdump), else only PTX.
"""

from __future__ import annotations

import argparse
import itertools
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 110, 120)
KERNELS = ("preprocess", "aggregate")
_WIDE = r"\b(LDG\.E\.128\.CONSTANT|LDGSTS\.E\.BYPASS\.128)\b"
FLAGS = ("-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra")


@dataclass(frozen=True)
class Compiled:
    """One kernel on one architecture; sizes in bytes.

    `wide` is the number of 16-byte loads and copies to shared memory in its machine code, `together` how many of them
    follow another within two dozen instructions: under way at the same time, not one after the other's arithmetic.
    """

    kernel: str
    architecture: int
    registers: int
    spill_stores: int
    spill_loads: int
    wide: int | None
    together: int | None


def compiled(kernel: str, architecture: int, folder: Path) -> Compiled:
    """Compile a kernel and read what ptxas says of it."""
    binary = folder / f"{kernel}.{architecture}.cubin"
    said = subprocess.run(
        ["nvcc", *FLAGS, f"-I{ROOT / 'csrc'}", f"-arch=sm_{architecture}", "-Xptxas=-v", "-cubin", "-o", str(binary),
         str(ROOT / f"csrc/ops/{kernel}.cu")],
        check=True, capture_output=True, text=True,
    ).stderr  # fmt: skip
    stores, loads = map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said).groups())
    registers = int(re.search(r"Used (\d+) registers", said).group(1))
    wide = together = None
    if shutil.which("cuobjdump"):
        code = subprocess.run(["cuobjdump", "-sass", str(binary)], check=True, capture_output=True, text=True).stdout
        instructions = [line for line in code.splitlines() if re.search(r"/\*[0-9a-f]{4,}\*/\s+\S+.*;", line)]
        at = [i for i, line in enumerate(instructions) if re.search(_WIDE, line)]
        wide, together = len(at), sum(b - a <= 24 for a, b in itertools.pairwise(at))
    return Compiled(kernel, architecture, registers, stores, loads, wide, together)


def wide_loads_in_ptx(kernel: str) -> int:
    """Count the 16-byte loads through the read-only path."""
    ptx = subprocess.run(
        ["nvcc", *FLAGS, f"-I{ROOT / 'csrc'}", "-arch=compute_75", "-ptx", "-o", "-",
         str(ROOT / f"csrc/ops/{kernel}.cu")],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return len(re.findall(r"\bld\.global\.nc\.v4\.(?:u32|b32)\b", ptx))


def main() -> None:
    """Print one row a kernel and architecture."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    if not shutil.which("nvcc"):
        sys.exit("there is no nvcc")
    print("| kernel | compute capability | registers | spilled (stores, loads) | 16-byte copies, of these together |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kernel in KERNELS:
            for architecture in ARCHITECTURES:
                made = compiled(kernel, architecture, Path(folder))
                wide = "not looked at" if made.wide is None else f"{made.wide}, {made.together}"
                print(
                    f"| {kernel} | {architecture // 10}.{architecture % 10} | {made.registers} | "
                    f"{made.spill_stores}, {made.spill_loads} | {wide} |"
                )


if __name__ == "__main__":
    main()
