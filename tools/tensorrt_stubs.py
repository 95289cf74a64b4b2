"""Make type stubs of a TensorRT, for mypy: ``python tools/tensorrt_stubs.py 10.3|10|11|rtx FOLDER``.

For TensorRT 10 they are on PyPI (tensorrt-stubs).  For TensorRT 11 and TensorRT for RTX they are made here from
NVIDIA's own bindings, whose docstrings carry the signatures.  To import the bindings takes no TensorRT, only libraries
with the names and symbols they ask for, which are never called.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

STUBGEN = "pybind11-stubgen>=2.5"
# By name: what pip installs, and the package that holds the API.
VARIANTS = {
    "10.3": ("tensorrt_cu12_bindings==10.3.0", "tensorrt_bindings"),  # JetPack 6's, the oldest we take
    "10": ("tensorrt-stubs==10.*", "tensorrt_bindings"),
    "11": ("tensorrt_cu13_bindings==11.*", "tensorrt_bindings"),
    "rtx": ("tensorrt_rtx_cu13_bindings==1.*", "tensorrt_rtx_bindings"),
}


def run(*command: str | Path, **environment: str) -> str:
    """Run a command and return what it printed."""
    done = subprocess.run(
        [str(part) for part in command], env=os.environ | environment, check=True, capture_output=True, text=True
    )
    return done.stdout


def generate(bindings: Path, package: str, work: Path, stubs: Path) -> None:
    """Write the stubs of an installed bindings package into `stubs`."""
    libraries = work / "libraries"
    libraries.mkdir(exist_ok=True)
    (extension,) = (bindings / package).glob("*.so")
    module = f"{package}.{extension.name.partition('.')[0]}"
    hollow = libraries / "hollow.c"
    symbols = re.findall(r" U ((?!_?Py)\w+)$", run("nm", "-D", "--undefined-only", extension), re.MULTILINE)
    hollow.write_text("".join(f"int {symbol};\n" for symbol in symbols))
    for name in re.findall(r"\[(lib(?:nv|tensorrt)[^\]]*)\]", run("readelf", "-d", extension)):
        run("cc", "-shared", "-o", libraries / name, hollow)
    run(
        *(sys.executable, "-m", "pybind11_stubgen", module, "--ignore-all-errors", "--output-dir", stubs),
        LD_LIBRARY_PATH=str(libraries),
        PYTHONPATH=f"{bindings}{os.pathsep}{work / 'stubgen'}",
    )
    (stubs / "tensorrt").mkdir(exist_ok=True)
    (stubs / "tensorrt" / "__init__.pyi").write_text(f"from {module} import *\n")


def loosen(stub: Path) -> None:
    """Take the parameters away from every signature that is no Python: C++ allows what Python does not."""
    lines = stub.read_text(encoding="utf-8").splitlines()
    while True:
        try:
            ast.parse("\n".join(lines))
        except SyntaxError as error:
            at = (error.lineno or 0) - 1
            while at >= 0 and not re.match(r"\s*def ", lines[at]):
                at -= 1
            loose = re.sub(r"\(.*\)", "(self, *args: typing.Any, **kwargs: typing.Any)", lines[at])
            if at < 0 or loose == lines[at]:
                raise
            lines[at] = loose
        else:
            break
    stub.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(variant: str, folder: str) -> None:
    """Make the stubs of `variant` in `folder`, which mypy then finds through MYPYPATH."""
    requirement, package = VARIANTS[variant]
    stubs = Path(folder)
    work = stubs.with_name(f"{stubs.name}.work")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target")
    if variant == "10":
        run(*pip, stubs, "--no-deps", requirement)
    else:
        run(*pip, work / "stubgen", STUBGEN)
        run(*pip, work / "bindings", "--no-deps", requirement)
        generate(work / "bindings", package, work, stubs)
    for stub in (stubs / package).glob("*.pyi"):
        loosen(stub)


if __name__ == "__main__":
    main(*sys.argv[1:])
