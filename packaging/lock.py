"""The locks in requirements/: every package of an install at one version, with the SHA-256 of each of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
DEVICE = ROOT / "requirements" / "device.txt"
BUILD = ROOT / "requirements" / "build.txt"


@dataclass(frozen=True)
class Pin:
    """One package at one version, for the interpreters and systems that its marker names."""

    requirement: Requirement
    hashes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name as package indexes compare it."""
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str:
        """The one version."""
        (only,) = self.requirement.specifier
        return only.version

    def fits(self, python: str, machine: str) -> bool:
        """Say whether an install by CPython `python`, e.g. "3.11", on Linux takes this pin."""
        environment = {
            "python_version": python,
            "python_full_version": f"{python}.0",
            "platform_machine": machine,
            "sys_platform": "linux",
            "platform_system": "Linux",
            "os_name": "posix",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
        }
        return self.requirement.marker is None or self.requirement.marker.evaluate(environment)


def read(path: Path) -> list[Pin]:
    """Read the pins of a lock, which holds nothing else."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    pins = []
    for entry in "\n".join(lines).replace("\\\n", " ").splitlines():
        if entry.strip():
            requirement, *hashes = entry.split("--hash=sha256:")
            pins.append(Pin(Requirement(requirement.strip()), tuple(one.strip() for one in hashes)))
    return pins
