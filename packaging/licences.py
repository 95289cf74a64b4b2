"""Licences of what the default install brings: a report, and a failure where anything is under GPL or AGPL, or unknown.

Two things are looked at: what each package states of itself, and the libraries that its wheel carries along.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# GCC's runtime libraries: the Runtime Library Exception lets programs of any licence use them.
EXCEPTED = {"libgcc_s", "libgfortran", "libgomp", "libquadmath", "libstdc++"}
# Libraries under GPL or AGPL that wheels of this field are known to carry.
DENIED = ("fftw3", "gsl", "jbig", "mupdf", "poppler", "postproc", "readline", "rubberband", "vidstab", "x264", "x265")
_FFMPEG = re.compile(rb"lib\w+ license: ([ -~]+)")
_GPL = re.compile(r"\bA?GPL|\bGNU (Affero )?General Public", re.IGNORECASE)


@dataclass(frozen=True)
class Licence:
    """What a package states, and what its wheel carries.

    Attributes
    ----------
    name, version, licence : str
        Of the package; the licence as it states it, empty where it states none.
    carried : tuple of str
        File names of the shared libraries beside its own modules.
    faults : tuple of str
        Why it must not be in the default install.
    """

    name: str
    version: str
    licence: str
    carried: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


def closure(root: str = "ptxsdk") -> list[str]:
    """Return the names of all packages that an install of `root` without extras brings, itself included."""
    found: set[str] = set()
    todo = [root]
    while todo:
        name = canonicalize_name(todo.pop())
        if name in found:
            continue
        found.add(name)
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return sorted(found)


def examine(name: str) -> Licence:
    """Look at an installed package."""
    distribution = metadata.distribution(name)
    licence = stated(distribution.metadata)
    carried = [Path(str(distribution.locate_file(file))) for file in distribution.files or () if _is_carried(str(file))]
    faults = [] if licence else ["states no licence"]
    if is_gpl(licence):
        faults.append(f"is under {licence}")
    faults += [fault for library in carried for fault in faults_of(library)]
    return Licence(name, distribution.version, licence, tuple(sorted(path.name for path in carried)), tuple(faults))


def stated(core: metadata.PackageMetadata) -> str:
    """Return the licence that a package's metadata state: expression, else classifiers, else the old free text."""
    if core["License-Expression"]:
        return core["License-Expression"]
    names = [line.split(" :: ")[-1] for line in core.get_all("Classifier") or () if line.startswith("License ::")]
    names = [name.removesuffix(" License") for name in names if name != "OSI Approved"]
    return " AND ".join(names) or (core["License"] or "").strip().partition("\n")[0][:80]


def is_gpl(licence: str) -> bool:
    """Say whether a licence leaves no choice but GPL or AGPL; LGPL is neither."""
    return all(_GPL.search(choice) and "exception" not in choice.lower() for choice in licence.split(" OR "))


def faults_of(library: Path) -> list[str]:
    """Return why a library must not be carried: known to be under GPL, or an FFmpeg that says so of itself."""
    name = library.name
    if name.split("-")[0].split(".")[0] in EXCEPTED:
        return []
    if name.startswith(tuple(f"lib{stem}" for stem in DENIED)):
        return [f"carries {name}, which is under GPL"]
    if name.startswith(("libav", "libsw")):
        said = _FFMPEG.search(library.read_bytes())
        if said and is_gpl(said[1].decode()):
            return [f"carries {name}, which says of itself: {said[1].decode()}"]
    return []


def report(licences: Iterable[Licence]) -> str:
    """Return a table in Markdown."""
    rows = ["| package | version | licence | libraries carried along |", "|---|---|---|---|"]
    rows += [f"| {each.name} | {each.version} | {each.licence} | {len(each.carried) or ''} |" for each in licences]
    return "\n".join(rows)


def _is_carried(file: str) -> bool:
    """Say whether a file of a wheel is a library, not a module of Python's."""
    name = file.rpartition("/")[2]
    return name.startswith("lib") and ".so" in name


def main() -> None:
    """Print the report; leave with the faults where there are any."""
    licences = [examine(name) for name in closure()]
    print(report(licences))
    faults = [f"{each.name} {each.version} {fault}" for each in licences for fault in each.faults]
    if faults:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()
