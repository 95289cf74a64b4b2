"""The bill of materials of a wheel, CycloneDX 1.6: what is in it, what is compiled in, and what the lock adds to it.

The same wheel and lock give the same bytes.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import json
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import licences
import lock
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.utils import parse_wheel_filename


def make(wheel: Path, created: int) -> str:
    """Return a wheel's bill of materials as JSON.

    Parameters
    ----------
    wheel : Path
        As released.
    created : int
        Seconds since 1970, as in SOURCE_DATE_EPOCH.
    """
    name, version, _, tags = parse_wheel_filename(wheel.name)
    tag = next(iter(tags))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    product = _package(name, str(version), "Apache-2.0", use=wheel.name, sha256=digest)
    with zipfile.ZipFile(wheel) as archive:
        parts = [*_inside(archive), *_needed(f"3.{tag.interpreter[3:]}", tag.platform.rpartition("64")[0] + "64")]
    bom = Bom(components=parts, serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"sha256:{digest}"))
    bom.metadata.component = product
    bom.metadata.timestamp = dt.datetime.fromtimestamp(created, dt.timezone.utc)
    bom.register_dependency(product, parts)
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        raise SystemExit(f"the bill of materials is not valid CycloneDX: {wrong}")
    return text + "\n"


def _inside(archive: zipfile.ZipFile) -> Iterator[Component]:
    """Yield what the wheel's own files hold of others, and the network."""
    names = archive.namelist()
    pybind11 = next(pin for pin in lock.read(lock.BUILD) if pin.name == "pybind11")
    yield _package("pybind11", pybind11.version, "BSD-3-Clause", use="headers, compiled into the extension modules")
    if any("/_cuda." in name for name in names):
        use = "linked statically into ptxsdk/_cuda; its version is that of the CUDA toolkit of the build"
        yield _component("cuda-cudart", None, "LicenseRef-NVIDIA-CUDA-Toolkit-EULA", use=use)
    for name in names:
        if name.endswith(".ptxengine"):
            content = archive.read(name)
            with zipfile.ZipFile(io.BytesIO(content)) as engine:
                manifest = json.loads(engine.read("manifest.json"))
            yield _component(
                manifest["name"],
                manifest["version"],
                "Apache-2.0",
                use=name,
                sha256=hashlib.sha256(content).hexdigest(),
                type=ComponentType.MACHINE_LEARNING_MODEL,
            )


def _needed(python: str, machine: str) -> Iterator[Component]:
    """Yield what an install from the lock adds."""
    for pin in lock.read(lock.DEVICE):
        if pin.fits(python, machine):
            yield _package(pin.name, pin.version, _stated(pin.name), use="requirements/device.txt", files=pin.hashes)


def _package(name: str, version: str, licence: str, **what: Any) -> Component:
    return _component(name, version, licence, purl=PackageURL("pypi", None, name, version), **what)


def _component(
    name: str,
    version: str | None,
    licence: str,
    *,
    use: str,
    sha256: str | None = None,
    files: Iterable[str] = (),
    **what: Any,
) -> Component:
    return Component(
        name=name,
        version=version,
        bom_ref=name,
        licenses=[LicenseFactory().make_from_string(licence)] if licence else [],
        hashes=[] if sha256 is None else [HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
        properties=[
            Property(name="ptxsdk:use", value=use),
            *(Property(name="ptxsdk:file-sha256", value=one) for one in files),
        ],
        **what,
    )


def _stated(name: str) -> str:
    """Return the licence of a package as the one installed here states it; empty where none is installed."""
    try:
        return licences.stated(metadata.metadata(name))
    except metadata.PackageNotFoundError:
        return ""
