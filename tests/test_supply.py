"""Supply chain: the locks, the licences of the default install, and a wheel's bill of materials."""

from __future__ import annotations

import json
import re
import zipfile
from importlib import metadata
from pathlib import Path

import licences
import lock
import pytest
import sbom
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


@pytest.mark.requirement("R-SUPPLY-1")
@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_holds_one_version_within_bounds_of_every_dependency(python):
    pins = [pin for pin in lock.read(lock.DEVICE) if pin.fits(python, "x86_64")]
    names = [pin.name for pin in pins]
    assert len(set(names)) == len(names)
    wanted = [Requirement(line) for line in metadata.requires("ptxsdk")]
    for requirement in wanted:
        if requirement.marker is None:
            (pin,) = (pin for pin in pins if pin.name == canonicalize_name(requirement.name))
            assert requirement.specifier.contains(pin.version), pin


@pytest.mark.requirement("R-SUPPLY-1")
@pytest.mark.parametrize("path", [lock.DEVICE, lock.BUILD], ids=lambda path: path.name)
def test_every_pin_is_exact_and_has_hashes(path):
    pins = lock.read(path)
    assert len(pins) > 5
    for pin in pins:
        assert str(pin.requirement.specifier) == f"=={pin.version}"
        assert pin.hashes
        assert all(re.fullmatch("[0-9a-f]{64}", one) for one in pin.hashes)
    assert "://" not in path.read_text("utf-8")  # no index of ours


@pytest.mark.requirement("R-SUPPLY-1")
def test_what_dependencies_need_is_locked_too():
    names = {pin.name for pin in lock.read(lock.DEVICE)}
    assert set(licences.closure()) - names == {"ptxsdk"}


@pytest.mark.requirement("R-SUPPLY-2")
def test_the_default_install_has_no_gpl():
    found = [licences.examine(name) for name in licences.closure()]
    assert {each.name: each.faults for each in found if each.faults} == {}
    assert any("libavcodec" in library for each in found for library in each.carried)  # it does look inside


@pytest.mark.parametrize(
    ("licence", "gpl"),
    [
        ("GPL-3.0-or-later", True),
        ("AGPL-3.0", True),
        ("GNU General Public v2 (GPLv2)", True),
        ("GNU Affero General Public v3", True),
        ("MIT AND GPL-2.0-only", True),
        ("GPL-2.0 OR AGPL-3.0", True),
        ("GPL-2.0-or-later OR MIT", False),
        ("LGPL-2.1-or-later", False),
        ("GNU Lesser General Public v3 (LGPLv3)", False),
        ("GPL-3.0-or-later WITH GCC-exception-3.1", False),
        ("Apache-2.0", False),
    ],
)
def test_what_counts_as_gpl(licence, gpl):
    assert licences.is_gpl(licence) is gpl


def package(folder, name, *lines, **files):
    """Make an installed package that states `lines`."""
    info = folder / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.4", f"Name: {name}", "Version: 1", *lines, ""]))
    record = []
    for file, content in files.items():
        path = folder / f"{name}.libs" / file.replace("__", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        record.append(f"{name}.libs/{path.name},,\n")
    (info / "RECORD").write_text("".join(record))


@pytest.mark.requirement("R-SUPPLY-2")
def test_gpl_anywhere_in_the_closure_is_found(tmp_path, monkeypatch, capsys):
    package(tmp_path, "top", "License-Expression: MIT", "Requires-Dist: middle", 'Requires-Dist: extra; extra == "x"')
    package(tmp_path, "middle", "Classifier: License :: OSI Approved :: BSD License", "Requires-Dist: bottom>=0")
    package(tmp_path, "bottom", "License: GPLv3")
    package(tmp_path, "extra", "License-Expression: AGPL-3.0-only")
    package(tmp_path, "silent")
    said = b"\0libavcodec license: GPL version 2 or later\0"
    library = {"libx264__so__1": b"", "libavcodec__so": said, "libgomp__so": b""}
    package(tmp_path, "carrier", "License-Expression: MIT", **library)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert licences.closure("top") == ["bottom", "middle", "top"]
    faults = {name: licences.examine(name).faults for name in ("top", "middle", "bottom", "extra", "silent", "carrier")}
    assert not faults["top"] + faults["middle"]
    assert all(len(faults[name]) == 1 for name in ("bottom", "extra", "silent"))
    assert sorted(fault.split()[1] for fault in faults["carrier"]) == ["libavcodec.so,", "libx264.so.1,"]
    with monkeypatch.context() as patch:
        patch.setattr(licences, "closure", lambda: ["top", "bottom"])
        with pytest.raises(SystemExit, match="bottom 1 is under GPLv3"):
            licences.main()
    assert "| top | 1 | MIT |" in capsys.readouterr().out


@pytest.mark.requirement("R-SUPPLY-3")
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_bill_of_materials(tmp_path, tiny_engine, machine):
    wheel = tmp_path / f"ptxsdk-0.1.0-cp312-cp312-manylinux_2_34_{machine}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("ptxsdk/models/clasegnet.ptxengine", tiny_engine)
        archive.writestr(f"ptxsdk/_core.cpython-312-{machine}-linux-gnu.so", b"\x7fELF")
    text = sbom.make(wheel, 1_700_000_000)
    assert sbom.make(wheel, 1_700_000_000) == text
    bill = json.loads(text)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["timestamp"].startswith("2023-11-14T22:13:20")
    assert bill["metadata"]["component"]["name"] == "ptxsdk"
    parts = {part["name"]: part for part in bill["components"]}
    assert parts["tiny"]["type"] == "machine-learning-model"
    pins = {pin.name: pin for pin in (*lock.read(lock.DEVICE), *lock.read(lock.BUILD)) if pin.fits("3.12", machine)}
    assert parts["pybind11"]["version"] == pins["pybind11"].version
    for name in licences.closure():
        if name != "ptxsdk":
            assert parts[name]["version"] == pins[name].version
            assert parts[name]["licenses"]
    assert not {"colorama", "exceptiongroup"} & parts.keys()  # another system's, another interpreter's
    assert not any("cudart" in name for name in parts)
    (depends,) = (each for each in bill["dependencies"] if each["ref"] == "ptxsdk")
    assert sorted(depends["dependsOn"]) == sorted(parts)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("ptxsdk/_cuda.so", b"\x7fELF")
    assert "cuda-cudart" in sbom.make(wheel, 0)


def test_soup_lists_every_package_of_the_lock():
    page = Path(__file__).parents[1].joinpath("docs", "soup.md").read_text("utf-8")
    for pin in (*lock.read(lock.DEVICE), *(pin for pin in lock.read(lock.BUILD) if pin.name == "pybind11")):
        if pin.fits("3.11", "x86_64"):
            assert re.search(rf"^\| {re.escape(pin.name)} \| {re.escape(pin.version)} \|", page, re.MULTILINE), pin
